"""Run scenarios and print the table: `make chaos`; see the package's docstring."""

import concurrent.futures
import contextlib
import os
import random
import sys
import time

import chaos
import servers
from chaos import table
from chaos.accounting import Account, Accounting
from chaos.producers import Ledger, start_producers
from chaos.scenarios import SCENARIOS, Scenario
from chaos.stage import ServerStage, Stage

BEFORE = 0.8        # seconds of ordinary work before a fault; in the short form half of it
TOGETHER = 3        # scenarios at the same time, at most, in the long form


def play(stage: Stage, scenarios: list[Scenario], name: str, seed) -> Account:
    """Run scenarios at the same time, and account for every task of that time."""
    ledger = Ledger(name, seed)
    stage.random.seed(f"{seed} {name}")
    accounting = Accounting(stage, ledger)
    producers = start_producers(stage, ledger)
    stage.rest(BEFORE)
    with concurrent.futures.ThreadPoolExecutor(len(scenarios)) as pool:
        futures = [pool.submit(each.run, stage, ledger) for each in scenarios]
    errors = [future.exception() for future in futures]
    recovery = accounting.wait_for_recovery(producers)
    accounting.wait_until_idle()
    for future in futures:
        if not future.exception() and (afterwards := future.result()):
            afterwards()
    account = accounting.settle(recovery)
    accounting.check_once_more(account)
    account.wrong += ledger.wrong
    for error in filter(None, errors):
        if isinstance(error, servers.Missing):
            account.skipped = str(error).partition(":")[0]
        else:
            account.wrong.append(f"the scenario itself failed: {error!r}")
    return account


def play_group(names: list[str], seed, report=lambda account: None, is_short=True) -> list[Account]:
    """Run scenarios of one group, one after the other, on one stage."""
    accounts = []
    with contextlib.closing(SCENARIOS[names[0]].stage(seed, is_short)) as stage:
        stage.open()
        for name in names:
            accounts.append(play(stage, [SCENARIOS[name]], name, seed))
            report(accounts[-1])
        if logs := stage.tracebacks():
            accounts[-1].notes.append(f"tracebacks in {', '.join(logs)}")
    return accounts


def play_together(candidates: list[Scenario], minutes: float, seed, report) -> list[Account]:
    """Run scenarios at random at the same time, for so many minutes."""
    accounts, chance = [], random.Random(f"{seed} together")
    until = time.monotonic() + 60 * minutes
    with contextlib.closing(ServerStage(seed, is_short=False)) as stage:
        stage.open()
        while time.monotonic() < until:
            chosen: list[Scenario] = []
            for each in chance.sample(candidates, len(candidates)):
                if len(chosen) < TOGETHER and not any(each.breaks & other.breaks for other in chosen):
                    chosen.append(each)
            name = f"{len(accounts) + 1}:" + "+".join(each.name for each in chosen)
            accounts.append(play(stage, chosen, name, seed))
            report(accounts[-1])
    return accounts


def chosen_groups(words: list[str]) -> dict[str, list[str]]:
    """Return the scenarios that have one of these words in their name or group, by their groups."""
    groups: dict[str, list[str]] = {}
    for each in SCENARIOS.values():
        if not words or any(word in each.name or word in each.group for word in words):
            groups.setdefault(each.group, []).append(each.name)
    return groups


def main() -> int:
    if len(sys.argv) > 1:
        sys.exit(chaos.__doc__)
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1_000_000))
    words = os.environ.get("SCENARIO", "").replace(",", " ").split()
    minutes = float(os.environ.get("MINUTES") or 0)
    jobs = int(os.environ.get("JOBS") or 3)
    groups = chosen_groups(words)
    if not groups:
        sys.exit(f"SCENARIO={' '.join(words)}: expected words in {' '.join(SCENARIOS)}")
    servers.install()
    print(f"SEED={seed}", flush=True)

    def report(account: Account):
        for line in [*table.lines_of([account])[1:], *table.details_of(account)]:
            print(line, flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(play_group, names, seed, report, not minutes) for names in groups.values()]
        accounts = [account for future in futures for account in future.result()]
    together = [SCENARIOS[name] for names in groups.values() for name in names]
    together = [each for each in together if each.stage is ServerStage]
    if minutes and together:
        accounts += play_together(together, minutes, seed, report)
    print()
    print("\n".join(table.lines_of([*accounts, table.sum_of(accounts)])))
    for account in accounts:
        for line in table.details_of(account):
            print(line)
    return not all(account.is_good for account in accounts)


if __name__ == "__main__":
    sys.exit(main())
