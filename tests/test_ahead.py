"""Tasks that a worker has claimed before it has a slot for them: how many, and for how long."""

import json
import math
import threading
import time

import pytest

import taskmanager
from helpers import create, eventually, finished, set_time, sql
from taskmanager import Config, NewTask, StopReason, Worker


class Door:
    """A handler that notes what it runs, and keeps the tasks with a payload until the door is opened."""

    def __init__(self):
        self.ran, self.reasons, self.left, self.open = [], [], [], threading.Event()

    def __call__(self, task):
        self.ran.append(task.id)
        self.left.append((task.deadline or math.inf) - time.monotonic())
        while task.payload and not self.open.is_set() and not task.canceled:
            time.sleep(0.005)
        self.reasons.append(task.stop_reason)
        return "done"


@pytest.fixture
def behind(store, work, monkeypatch):
    """behind(seconds, **settings): a worker of one slot, its door, a task in it, and tasks that wait behind.

    They may wait for so many seconds.
    """
    doors = []

    def start(seconds, **settings):
        monkeypatch.setattr(taskmanager, "CLAIM_AHEAD_SECONDS", seconds)
        doors.append(Door())
        worker = work(doors[0], concurrency=1, poll_seconds=0.05, **settings)
        worker._ahead["default"] = 100
        slow, *waiting = store.create([NewTask(payload="1", timeout=60), *[NewTask(timeout=0.4)] * 20])
        eventually(lambda: len(doors[0].ran) == 1)
        return worker, doors[0], slow, waiting

    yield start
    for door in doors:
        door.open.set()


def status(store, *ids):
    return {store.read(id).status for id in ids}


def take_over(store, id):
    sql(store, "update tasks set attempt = attempt + 1, worker = 'another' where id = %(id)s", id=id)
    set_time(store, id, "lease_until", 3600)


def outcomes(store, id):
    return [attempt.outcome for attempt in store.attempts(id)]


def limits(store, monkeypatch):
    """How many tasks each claim asks for, from now on."""
    found, claim = [], store.claim

    def count(limit, *args):
        found.append(limit)
        return claim(limit, *args)
    monkeypatch.setattr(store, "claim", count)
    return found


def test_quick_tasks_are_claimed_by_the_hundred(store, work, monkeypatch):
    monkeypatch.setattr(taskmanager, "CLAIM_AHEAD_SECONDS", 20)      # the machine may be slow
    asked = limits(store, monkeypatch)
    ids = store.create([NewTask()] * 3000)
    work(lambda task: None, poll_seconds=3600, lease_seconds=86400)
    for id in ids[::100] + ids[-1:]:
        assert finished(store, id).status == "Completed"
    assert max(asked) > 100 and len(asked) < 300


def test_no_slot_stays_free_while_a_few_tasks_begin(store):
    """What comes during a claim wakes the worker before the threads have taken what was claimed."""
    worker = Worker(store, Config(concurrency=8, poll_seconds=3600), lambda task: None)
    for number in (5, 3):
        store.create([NewTask()] * number)
        worker.wake()
        worker._claim()
    assert len(store.list_tasks("In Progress")) == 8


def test_slow_tasks_are_claimed_one_a_slot(store, work, monkeypatch):
    ended, claimed, held, claim = [], [], [], store.claim

    def count(*args):
        held.append(len(claimed) - len(ended) + args[0])
        rows = claim(*args)
        claimed.extend(rows)
        return rows

    def handle(task):
        time.sleep(0.15)
        ended.append(task.id)       # a slot is free only after this

    monkeypatch.setattr(store, "claim", count)
    ids = store.create([NewTask()] * 12)
    work(handle, concurrency=3)
    for id in ids:
        finished(store, id)
    assert max(held) == 3


def test_what_waits_behind_a_slow_task_is_given_back(store, behind):
    _, door, slow, waiting = behind(0.3)
    eventually(lambda: status(store, *waiting) == {"New"} and outcomes(store, waiting[0]) == ["released"])
    assert status(store, slow) == {"In Progress"} and door.ran == [slow]
    assert {store.read(id).attempts for id in waiting} == {0}
    time.sleep(0.2)         # several polls
    assert outcomes(store, waiting[0]) == ["released"]      # and is not claimed again
    door.open.set()
    assert [finished(store, id).status for id in waiting] == ["Completed"] * 20


def test_what_waits_is_given_back_at_a_stop_at_once(store, behind):
    worker, door, slow, waiting = behind(60)
    assert status(store, *waiting) == {"In Progress"}
    worker.begin_stop(grace=20)
    eventually(lambda: status(store, *waiting) == {"New"})
    assert {store.read(id).attempts for id in waiting} == {0}
    door.open.set()
    assert finished(store, slow).status == "Completed"
    worker.stop()
    assert door.ran == [slow]


def test_what_waits_keeps_its_lease_and_has_all_its_time_when_it_begins(store, behind):
    _, door, slow, waiting = behind(60, lease_seconds=1)
    deadline = time.monotonic() + 1.6
    while time.monotonic() < deadline:
        assert store.reclaim(3, "another") == 0
        time.sleep(0.05)
    door.open.set()
    rows = [finished(store, id) for id in (slow, *waiting)]
    assert {(row.status, row.attempts) for row in rows} == {("Completed", 1)}
    assert min(door.left) > 0


def test_a_task_that_waits_is_canceled_without_being_run(store, behind):
    _, door, slow, waiting = behind(60)
    store.cancel(waiting[3])
    row = finished(store, waiting[3])
    assert (row.status, row.error) == ("Failed", "canceled")
    door.open.set()
    finished(store, waiting[-1])
    assert waiting[3] not in door.ran and door.reasons == [None] * 20


def test_a_task_that_waits_and_is_taken_over_is_not_run_here(store, behind, caplog):
    worker, door, slow, waiting = behind(60)
    take_over(store, waiting[3])
    worker._next_heartbeat = 0.0
    eventually(lambda: f"lost task={waiting[3]} attempt=1" in caplog.text)
    door.open.set()
    finished(store, waiting[-1])
    assert waiting[3] not in door.ran and status(store, waiting[3]) == {"In Progress"}
    assert StopReason.LEASE_LOST not in door.reasons


def test_after_a_freeze_what_waits_begins_only_when_it_was_found_to_be_still_ours(store, behind):
    worker, door, slow, waiting = behind(60)
    for task in worker._held_tasks():
        task.leased_until = time.monotonic()
    take_over(store, waiting[3])
    door.open.set()
    finished(store, slow)
    worker._next_heartbeat = 0.0
    ours = [id for id in waiting if id != waiting[3]]
    assert [(finished(store, id).status, store.read(id).attempts) for id in ours] == [("Completed", 1)] * 19
    assert door.ran == [slow, *ours]


def test_after_a_freeze_during_a_claim_nothing_begins_that_others_have(store, work, monkeypatch):
    claim, door = store.claim, Door()

    def freeze(*args):
        rows = claim(*args)
        monkeypatch.setattr(store, "claim", claim)
        time.sleep(1.1)
        take_over(store, rows[0].id)
        return rows

    lost, *others = store.create([NewTask()] * 4)
    monkeypatch.setattr(store, "claim", freeze)
    work(door, lease_seconds=1)
    assert {finished(store, id).attempts for id in others} == {1}
    assert lost not in door.ran


def test_what_waits_in_a_worker_with_one_slot_does_not_count_as_alone(store, behind):
    """If the process dies, nobody knows which of them has killed it."""
    _, _, slow, waiting = behind(60)
    assert not any(store.read(id).alone for id in (slow, *waiting))


def test_one_task_at_a_time_in_a_worker_with_one_slot_counts_as_alone(store, work):
    door = Door()
    work(door, concurrency=1)
    id = create(store, payload=1)
    eventually(lambda: door.ran == [id])
    assert store.read(id).alone
    door.open.set()
    finished(store, id)


def test_a_task_that_is_to_run_alone_is_not_claimed_beside_what_waits(store, behind):
    _, door, slow, waiting = behind(60)
    [(alone,)] = sql(store, "insert into tasks (alone) values (true)")
    time.sleep(0.2)
    assert status(store, alone) == {"New"}
    door.open.set()
    assert finished(store, alone).status == "Completed"
    assert door.ran == [slow, *waiting, alone]


def test_what_waits_takes_no_slot_of_another_kind(store, work, monkeypatch):
    monkeypatch.setattr(taskmanager, "CLAIM_AHEAD_SECONDS", 60)
    door = Door()
    worker = work(door, kinds="a:2,b", concurrency=1)
    worker._ahead.update(a=100, b=100)
    ids = store.create([NewTask(kind="a", payload="1")] * 9)
    eventually(lambda: len(store.list_tasks("In Progress")) == 9 and len(door.ran) == 2)
    assert finished(store, create(store, kind="b")).status == "Completed"
    assert len(door.ran) == 3
    door.open.set()
    for id in ids:
        finished(store, id)


def test_a_slow_kind_gets_slots_beside_a_quick_one(store, work):
    """The quick one's tasks come by the hundred, so that there would be no free slot when it is asked."""
    flood = store.create([NewTask(kind="quick")] * 8000)
    slow = store.create([NewTask(kind="slow")] * 8)
    work(lambda task: time.sleep(0.12 if task.kind == "slow" else 0.001), kinds="quick,slow", concurrency=2)
    for id in slow:
        assert finished(store, id).status == "Completed"
    assert status(store, flood[-1]) == {"New"}


def test_nothing_is_claimed_ahead_while_another_kind_has_its_turn(store):
    worker = Worker(store, Config(kinds="b,a", concurrency=2, poll_seconds=3600), lambda task: None)
    first = store.create([NewTask(kind="a")] * 2)
    worker.wake()
    worker._claim()
    worker._ahead["a"] = 100
    store.create([NewTask(kind="a")] * 5 + [NewTask(kind="b")])
    worker.wake()
    worker._claim()     # there is room for an "a", but none for the "b"
    assert [row.id for row in store.list_tasks("In Progress")] == first


@pytest.mark.parametrize("broken", ["promote", "repeat", "reclaim", "unscheduled"])
def test_what_can_not_be_swept_keeps_nothing_else_from_going_on(store, work, monkeypatch, caplog, broken):
    """A trigger of the operator's refuses one row, so that the statement fails each time."""
    def refuse(*args, **kwargs):
        raise taskmanager.invalid("refused-by-database", "the trigger says no")
    monkeypatch.setattr(store, broken, refuse)
    work(lambda task: "done")
    assert finished(store, create(store)).status == "Completed"
    later = create(store, delay=0.05)
    [lost] = sql(store, "insert into tasks (status, attempt) values ('In Progress', 1)")[0]
    [ended] = sql(store, "insert into tasks (status, repeat) values ('Completed', '3600')")[0]
    [again] = sql(store, "insert into tasks (status, repeat, run_at) values ('Failed', '3600', now())")[0]
    checks = {
        "promote": lambda: status(store, later) == {"Completed"},
        "repeat": lambda: status(store, again) == {"Completed"},
        "reclaim": lambda: status(store, lost) == {"Completed"},
        "unscheduled": lambda: store.read(ended).run_at,
    }
    for name, check in checks.items():
        if name != broken:
            eventually(check)
    assert not checks[broken]()
    assert caplog.text.count("the trigger says no") == 1


def test_payloads_reach_the_handlers_in_the_order_of_the_claims(store, work):
    ran = []
    ids = store.create([NewTask(payload=json.dumps(n)) for n in range(300)])
    work(lambda task: ran.append(task.payload), concurrency=1)
    for id in ids:
        finished(store, id)
    assert ran == list(range(300))
