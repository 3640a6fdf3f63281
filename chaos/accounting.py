"""Compares what clients were told with the table, its witness, and the handlers' own log."""

import collections
import dataclasses
import json
import threading
import time

from chaos.producers import Ledger, Offer
from chaos.stage import Stage

RECOVERY_SECONDS = 60
SLOW_SECONDS = 5                # of recovery, after which the table tells what it waited for
CUT_OFF = "the worker died"     # how the error of a task begins that kills every worker
EARLY_SECONDS = 0.05            # that the clock of the log and the one of the database may differ


@dataclasses.dataclass
class Account:
    """A line of the table, and all that is wrong with it."""

    scenario: str
    skipped: str = ""
    offered: int = 0
    accepted: int = 0
    completed: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    doubled: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    more_runs: int = 0
    explained_runs: int = 0
    pause: float = 0.0
    recovery: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_good(self) -> bool:
        if self.skipped:
            return True
        is_kept = not (self.lost or self.doubled or self.wrong)
        return is_kept and self.recovery is not None and self.more_runs <= self.explained_runs


@dataclasses.dataclass
class Row:
    id: int
    status: str
    attempt: int
    key: str | None
    payload: dict
    result: dict
    error: str
    history: str
    created: float

    @property
    def has_ended(self) -> bool:
        return self.status in ("Completed", "Failed")


class Accounting:
    """Of one scenario: begun before its fault, and ended when everything is in order again."""

    def __init__(self, stage: Stage, ledger: Ledger):
        self.stage, self.ledger = stage, ledger
        self.began = time.time()
        self.slow = ""      # what the recovery waited for last, if it took long
        self.floor, = stage.query("select coalesce(max(id), 0) from tasks")[0]
        self.documented = stage.documented
        stage.lost_attempts, stage.documented_at_risk = 0, False
        stage.notes.clear()

    def rows(self) -> list[Row]:
        """Return the tasks that were created since the scenario began."""
        sql = f"""select id, status, attempt, idempotency_key, cast(payload as text), cast(result as text),
                         error, history, {self.stage.epoch_of_creation}
                  from   tasks
                  where  id > {self.floor:d}"""
        return [Row(id, status, attempt, key, json.loads(payload or "{}"), json.loads(result or "{}"),
                    error or "", history or "", float(created))
                for id, status, attempt, key, payload, result, error, history, created
                in self.stage.query(sql)]

    # Recovery

    def wait_for_recovery(self, producers: list[threading.Thread]) -> float | None:
        """Wait until everything is as if nothing had happened, and stop the producers.

        Return after how many seconds that was; None when it took too long.
        """
        healed, healed_at = time.monotonic(), time.time()
        recovery, doors = None, {each.name for each in producers}
        while recovery is None and time.monotonic() < healed + RECOVERY_SECONDS:
            time.sleep(0.1)
            now = time.monotonic()
            try:
                self.waits_for = self._still_to_recover(self.rows(), healed, healed_at, set(doors))
            except self.stage.database_errors as error:
                self.waits_for = f"the database: {error}"
            if not self.waits_for:
                recovery = now - healed
            elif now > healed + SLOW_SECONDS:
                self.slow = self.waits_for
        self.recovered_at = time.time()
        self.ledger.stopped.set()
        for producer in producers:
            producer.join(30)
        return recovery

    def _still_to_recover(self, rows: list[Row], healed, healed_at, doors: set[str]) -> str:
        """Return what is not as before the fault, "" when everything is."""
        status = {row.payload.get("n"): row.status for row in rows if row.has_ended}
        for offer in self.ledger.offers():
            if offer.told == "accepted":
                has_ended = offer.token in status or offer.door == "poison"
                if offer.at <= healed and not has_ended:
                    return f"the end of {offer.token} at the door {offer.door}"
                if offer.at > healed and has_ended:
                    doors.discard(offer.door)
        if any(not row.payload and row.has_ended and row.created > healed_at for row in rows):
            doors.discard("document")
        return ", ".join(sorted(doors))

    def wait_until_idle(self) -> None:
        """Wait until nothing is left to do: then what is missing is lost."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            rows = self.rows()
            there = {row.payload.get("n") for row in rows}
            is_there = all(
                offer.token in there or offer.told != "accepted" or offer.door == "poison"
                for offer in self.ledger.offers())
            documented = sum(not row.payload for row in rows)
            if (is_there and all(row.has_ended for row in rows) and self._poison_is_there()
                    and documented >= self.stage.documented - self.documented):
                return
            if self.stage.documented_at_risk and is_there and all(row.has_ended for row in rows):
                deadline = min(deadline, time.monotonic() + 2)
            time.sleep(0.1)

    def _poison_is_there(self) -> bool:
        poison = [offer for offer in self.ledger.offers() if offer.door == "poison"]
        if poison:
            self.stage.collect_rejected()
        return all(offer.token in self.stage.rejected for offer in poison if offer.told == "accepted")

    # The account

    def settle(self, recovery: float | None) -> Account:
        rows, offers = self.rows(), self.ledger.offers()
        account = Account(self.ledger.name, recovery=recovery, explained_runs=self.stage.lost_attempts)
        account.notes += self.stage.notes
        if self.slow:
            account.notes.append(f"last of all came {self.slow}")
        account.offered = len(offers) + self.stage.documented - self.documented
        by_token = collections.defaultdict(list)
        for row in rows:
            by_token[row.payload.get("n")].append(row)
        self._check_offers(account, offers, by_token)
        self._check_documented(account, by_token[None])
        self._check_table(account, rows)
        self._check_runs(account, {offer.token: offer for offer in offers}, rows)
        self.stage.kept.update(row.id for row in rows if row.has_ended)
        account.pause = self._longest_pause(account)
        return account

    def _check_offers(self, account, offers: list[Offer], by_token):
        again = maybe = 0
        for offer in offers:
            found = by_token[offer.token]
            if offer.door == "poison":
                self._check_poison(account, offer, found)
                continue
            if offer.told == "accepted":
                account.accepted += 1
                if not found or offer.id and offer.id not in [row.id for row in found]:
                    account.lost.append(f"no row: {offer}; with its token: {found}")
            elif offer.told == "refused":
                account.wrong.append(f"refused: {offer}")
            else:
                maybe += len(found)
            if len(found) > 1:
                if offer.keyed or not offer.door.startswith("message"):
                    account.doubled.append(f"{len(found)} rows: {offer} {found}")
                else:
                    again += len(found) - 1
            for row in found:
                self._check_end(account, offer, row)
        if maybe:
            account.notes.append(f"{maybe} tasks of clients that got no answer")
        if again:
            account.notes.append(f"{again} messages without message_id delivered twice")

    def _check_end(self, account, offer: Offer, row: Row):
        expected = "Failed" if offer.fields.get("kind") == "deadly" else "Completed"
        if row.status != expected or expected == "Failed" and not row.error.startswith(CUT_OFF):
            account.lost.append(f"expected {expected}: {offer} {row}")
        else:
            account.completed += 1

    def _check_poison(self, account, offer: Offer, found):
        if found:
            account.wrong.append(f"poison in the table: {offer} {found}")
        if offer.told == "accepted":
            account.accepted += 1
            if offer.token in self.stage.rejected:
                account.completed += 1
            else:
                account.lost.append(f"not among the rejected messages: {offer}")

    def _check_documented(self, account, found: list[Row]):
        """Of the document's own producer it is only known how many messages it has sent."""
        sent = self.stage.documented - self.documented
        account.accepted += sent
        account.completed += sum(row.status == "Completed" for row in found)
        missing = sent - len(found)
        if missing > 0 and self.stage.documented_at_risk:
            account.accepted -= missing
            account.notes.append(f"{missing} of the document's messages lost with its transient queue")
        elif missing > 0:
            account.lost.append(f"{missing} of {sent} messages of the document's producer have no row")
        elif missing < 0:
            account.notes.append(f"{-missing} of the document's messages delivered twice")
        account.lost += [f"expected Completed: {row}" for row in found if row.status != "Completed"]

    def _check_table(self, account, rows: list[Row]):
        """No task ends twice, or by an attempt that was not the current one."""
        ends = collections.Counter()
        for task, attempt, was, became in self.stage.query(
                f"select task, attempt, was, became from chaos_transitions where task > {self.floor:d}"):
            ends[task] += became in ("Completed", "Failed")
            if was in ("Completed", "Failed"):
                account.doubled.append(f"task {task} was {was} and became {became} in attempt {attempt}")
        account.doubled += [f"task {task} ended {n} times" for task, n in ends.items() if n > 1]
        account.doubled += [f"completed by another attempt than its current one: {row}" for row in rows
                            if row.status == "Completed" and row.result.get("attempt") != row.attempt]

    def _check_runs(self, account, offers: dict[str, Offer], rows: list[Row]):
        """No attempt runs twice, none is completed that did not run, and none of a delayed task is early."""
        begun, ended, first = collections.Counter(), set(), {}
        for word, task, attempt, pid, at in self.stage.runs():
            if task <= self.floor:
                continue
            if word == "end":
                ended.add((task, attempt))
                continue
            begun[task, attempt] += 1
            if begun[task, attempt] > 1:
                account.doubled.append(f"attempt {attempt} of task {task} also began in process {pid}")
            first.setdefault(task, at)
        account.more_runs = len(begun) - len(first)
        if account.more_runs > account.explained_runs and (load := self.stage.overload()):
            account.explained_runs = account.more_runs
            account.notes.append(f"leases ran out: the machine has {load:.0f} processes for each core")
        for row in rows:
            if row.status == "Completed" and (row.id, row.attempt) not in ended:
                account.wrong.append(f"completed without an end of its handler: {row}")
            offer = offers.get(row.payload.get("n"))
            delay = offer.fields.get("delay", 0) if offer else 0
            if delay and row.id in first and first[row.id] < row.created + delay - EARLY_SECONDS:
                account.wrong.append(f"began {first[row.id] - row.created} s after its creation: {offer}")

    def check_once_more(self, account: Account) -> None:
        """See that what earlier scenarios have left is still as it was."""
        ended = {id for id, in self.stage.query(
            "select id from tasks where status in ('Completed', 'Failed')")}
        account.lost += [f"was ended, and is no more: task {id}" for id in self.stage.kept - ended]

    def _longest_pause(self, account) -> float:
        ends = [at for at, in self.stage.query(
            "select at from chaos_transitions where became = 'Completed' "
            f"and at between {self.began} and {self.recovered_at} order by at")]
        moments = [self.began, *ends, self.recovered_at]
        return max(after - before for before, after in zip(moments, moments[1:], strict=False))
