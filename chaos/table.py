"""Prints accounts as a table, and what is wrong with them."""

from chaos.accounting import Account

HEADINGS = ("scenario", "offered", "accepted", "completed", "lost", "doubled", "more runs", "pause",
            "recovery")
WIDTHS = (30, 7, 8, 9, 4, 7, 9, 5, 8)       # characters, at least
MOST = 10       # things wrong of one sort that are printed


def lines_of(accounts: list[Account]) -> list[str]:
    rows = [HEADINGS, *(cells(account) for account in accounts)]
    widths = [max(least, *(len(row[n]) for row in rows)) for n, least in enumerate(WIDTHS)]
    lines = ["  ".join(cell.ljust(width) if n == 0 else cell.rjust(width)
                       for n, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows]
    remarks = [[], *(remarks_on(account) for account in accounts)]
    return [f"{line}  {'; '.join(said)}".rstrip() for line, said in zip(lines, remarks, strict=True)]


def cells(account: Account) -> tuple[str, ...]:
    if account.skipped:
        return (account.scenario, *[""] * (len(HEADINGS) - 1))
    recovery = "none" if account.recovery is None else f"{account.recovery:.1f}"
    return (account.scenario, f"{account.offered:,}", f"{account.accepted:,}", f"{account.completed:,}",
            str(len(account.lost)), str(len(account.doubled)),
            f"{account.more_runs} of {account.explained_runs}", f"{account.pause:.1f}", recovery)


def remarks_on(account: Account) -> list[str]:
    if account.skipped:
        return [f"skipped: {account.skipped}"]
    return ["WRONG"] * (not account.is_good) + account.notes


def details_of(account: Account) -> list[str]:
    """Return what is known about all that is wrong."""
    found = [("lost", account.lost), ("doubled", account.doubled), ("wrong", account.wrong)]
    lines = []
    for word, entries in found:
        lines += [f"{account.scenario}: {word}: {entry}" for entry in entries[:MOST]]
        if len(entries) > MOST:
            lines.append(f"{account.scenario}: {word}: {len(entries) - MOST} more")
    if account.more_runs > account.explained_runs:
        lines.append(f"{account.scenario}: {account.more_runs} handlers ran again; "
                     f"the fault explains {account.explained_runs}")
    if account.recovery is None and not account.skipped:
        lines.append(f"{account.scenario}: it did not recover in time")
    return lines


def sum_of(accounts: list[Account]) -> Account:
    """Return the last line of the table."""
    total = Account("in all", recovery=0.0)
    for each in accounts:
        if each.skipped:
            continue
        for name in ("offered", "accepted", "completed", "lost", "doubled", "wrong", "more_runs",
                     "explained_runs"):
            setattr(total, name, getattr(total, name) + getattr(each, name))
        total.pause = max(total.pause, each.pause)
        if each.recovery is None or total.recovery is None:
            total.recovery = None
        else:
            total.recovery = max(total.recovery, each.recovery)
    return total
