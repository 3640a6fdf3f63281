"""What must not cost work.

Rows of plain SQL, neighbours that die, lateness, lost answers, wrong clocks, rows that can't be deleted.
"""

import contextlib
import ctypes
import itertools
import json
import re
import signal
import threading
import time

import pytest

import taskmanager
from helpers import DOCUMENT_TABLE, LEASE, QUICK, eventually, expire, finished, http, order, set_time, sql
from taskmanager import Config, Invalid, NewTask, Unavailable, Worker, new_task

SLEEPERS = dict(HANDLER="tests.handlers:obey", LEASE_SECONDS=1, POLL_SECONDS=0.05, RETRY_SECONDS=0.05)


def column(store, name, id):
    [(value,)] = store._execute(f"select {name} from tasks where id = %(id)s", {"id": id})
    return value


# One row by plain SQL

TIMES = ("created_at", "updated_at", "run_at", "lease_until", "ready_at", "started_at", "planned_at")
WHOLE = (
    "-2147483649",
    "-2147483648",
    "-1",
    "0",
    "1",
    "2147483646",
    "2147483647",
    "2147483648",
    "9223372036854775807",
)
NUMBERS = ("'NaN'", "'Infinity'", "'-Infinity'", "-1", "0", "1e-300", "1e98", "1e300")
ALIKE = {
    "id": ("-9223372036854775808", "-1", "0", "1000000000000000", "9007199254740992", "9223372036854775807"),
    "attempt": WHOLE,
    "max_attempts": WHOLE,
    "timeout": NUMBERS,
    "progress": NUMBERS,
    "priority": ("-32769", "-32768", "32767", "32768"),
    "idempotency_key": ("''", "'\"'", "'\n'"),
    "worker": ("''", "'somebody'"),
    "canceled": ("true",),
    "alone": ("true",),
}
NUMERIC = ("attempt", "max_attempts", "priority", "canceled", "alone", "timeout", "progress", "id")
EXTREMES = {
    "postgres": ALIKE
    | dict.fromkeys(
        TIMES,
        (
            "'infinity'",
            "'-infinity'",
            "'294276-12-31 23:59:59.999999'",
            "'4714-11-24 BC'",
            "'0001-01-01'",
            "'9999-12-31 23:59:59.999999'",
        ),
    )
    | {
        "payload": (
            "'\"\\u0000\"'",
            "'\"\\ud800\"'",
            "repeat('[', 5000)::json",
            "(repeat('[', 900) || repeat(']', 900))::json",
            "to_json(repeat('x', 34000000))",
        ),
        "error": ("repeat('x', 34000000)", "''"),
        "result": ("'1e999'",),
    },
    "sqlite": ALIKE
    | dict.fromkeys(
        TIMES, ("1e300", "-1e300", "9e999", "-9e999", "'soon'", "x'ff'", "-62135596800", "253402300799")
    )
    | {
        "payload": (
            "'NaN'",
            "cast(x'22ff22' as text)",
            "x'2222'",
            "'\"\\ud800\"'",
            "'\"' || hex(zeroblob(17000000)) || '\"'",
        ),
        "result": ("x'31'", "'1e999'", "1e300"),
        "error": ("x'ff'", "cast(x'ff00ff' as text)", "hex(zeroblob(17000000))", "1e300"),
        "fingerprint": ("x'ff'",),
        "idempotency_key": ("cast(x'ff' as text)", "x'ff'", "1"),
        "worker": ("x'ff'", "cast(x'ff' as text)"),
        "status": ("x'ff'", "null"),
        **{name: ("'many'", "1.5", "x'ff'", "1e300", *ALIKE[name]) for name in NUMERIC},
    },
}


def strict(text):
    """JSON as every other language reads it."""
    def refuse(constant):
        raise ValueError(constant)
    return json.loads(text, parse_constant=refuse)


def test_no_row_that_the_table_accepts_keeps_the_others_from_anything(api, store, database):
    """Somebody's script, a restored dump, another program's bug: whatever it wrote stands in the table."""
    kind = "sqlite" if database.startswith("sqlite") else "postgres"
    accepted = []
    for name, values in EXTREMES[kind].items():
        for value, status in itertools.product(
            values,
            taskmanager.STATUSES[:1] if name in ("payload", "result", "error") else taskmanager.STATUSES,
        ):
            names, row = (f"status, {name}", f"'{status}', {value}") if name != "status" else (name, value)
            with contextlib.suppress(Invalid, Unavailable):
                accepted.append((*sql(store, f"insert into tasks ({names}) values ({row})")[0], name, value))
    assert {name for _, name, _ in accepted} >= {
        "id",
        *TIMES,
        "attempt",
        "max_attempts",
        "priority",
        "timeout",
        "payload",
        "idempotency_key",
        "alone",
    }
    with contextlib.suppress(Unavailable):      # PostgreSQL: an id was taken
        store.create()
    [id] = store.create([NewTask(priority=-32768)])

    for query in (
        "",
        "?order=desc",
        *(f"?status={status.replace(' ', '%20')}" for status in taskmanager.STATUSES),
    ):
        answer = http("GET", f"{api}/tasks{query}")
        assert answer.status == 200
        for task in strict(answer.body):
            for moment in ("created_at", "updated_at", "run_at"):
                assert re.fullmatch(
                    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", task.get(moment, "2000-01-01T00:00:00")
                ), task
    metrics = http("GET", f"{api}/metrics").body.decode()
    assert metrics.count("taskmanager_tasks{") == 4
    assert "taskmanager_oldest_ready_seconds" in metrics
    assert "taskmanager_database_up 1" in metrics

    seen, nobody = set(), [(0, 0)]
    for _ in range(100):
        moved = store.promote() + store.repeat() + store.reclaim(3)
        held = [(row.id, row.attempt) for row in store.claim(100, LEASE)]
        if not held and not moved:
            break
        assert {id for id, _ in held} == store.extend([(*each, 0.5) for each in held or nobody], LEASE)
        seen |= {id for id, _ in held}
        if len(held) > 2:
            store.retry([(*held.pop(), "why", 0.0)])
            store.fail([(*held.pop(), "why")])
        store.complete([(*each, "1") for each in held or nobody])
    assert id in seen
    for each in [id, *(row for row, *_ in accepted)]:
        with contextlib.suppress(taskmanager.TaskNotFound, taskmanager.NotInState):
            store.cancel(each)
        with contextlib.suppress(taskmanager.TaskNotFound, taskmanager.NotInState):
            store.retry_by_hand(each)
    store.delete_old("Completed", 0)
    store.delete_old("Failed", 0)
    for each in [id, *(row for row, *_ in accepted)]:
        with contextlib.suppress(taskmanager.TaskNotFound, taskmanager.NotInState):
            store.delete(each)
    assert store.create()


def test_a_table_of_others_is_upgraded_with_all_that_stands_in_it(postgres_database):
    """The documented table, in which a script wrote for years what it liked."""
    import psycopg2
    with contextlib.closing(psycopg2.connect(postgres_database)) as connection:
        connection.cursor().execute(DOCUMENT_TABLE)
        connection.cursor().execute("""
            insert into tasks (created_at) values
                ('infinity'), ('-infinity'), ('4713-01-01 BC'), (null), ('294276-12-31');
            insert into tasks (updated_at) values ('infinity'), ('-infinity'), (null);
            insert into tasks (id) values (-5), (0);
            insert into tasks (status, updated_at) values
                ('Done', 'infinity'), ('In Progress', '-infinity'), ('Completed', '-infinity');
            alter table tasks add constraint tasks_status_check
                check (status in ('New', 'In Progress', 'Completed', 'Failed')) not valid""")
        connection.commit()
    store = taskmanager.open_store(postgres_database)
    rows = store.list_tasks()
    assert len(store._execute("select id from tasks")) == 13
    assert len(rows) == 11
    assert all(re.match(r"\d{4}-", row.created_at) and re.match(r"\d{4}-", row.updated_at) for row in rows)
    store.reclaim(3)
    assert len(store.claim(100, LEASE)) == 11       # all but Done and Completed
    assert store.delete_old("Completed", 1) == 1
    store.close()


# A task that kills its worker

def die(store, *held):
    """The worker is dead, and the leases of what it held have run out."""
    for id in held:
        expire(store, id)
    store.reclaim(3)


@pytest.mark.parametrize("most, deaths", [(1, 2), (2, 2), (3, 3), (5, 5)])
def test_only_a_task_that_ran_alone_fails_by_the_death_of_its_worker(store, most, deaths):
    """Of eight that run together one kills its worker, each time."""
    ids = store.create([NewTask(max_attempts=most)] * 8)
    killer, died = ids[3], 0
    while store.list_tasks("New") and died < 9:
        rows = store.claim(8, LEASE, f"worker {died}")
        assert [row.id for row in rows] == ids or len(rows) == 1 and rows[0].alone
        if killer in [row.id for row in rows]:
            died += 1
            die(store, *[row.id for row in rows])
        else:
            store.complete([(row.id, row.attempt, None) for row in rows])
    assert died == deaths
    assert store.read(killer).error == f"the worker died or was cut off during attempt {most} of {most}"
    assert {row.id: row.status for row in store.list_tasks()} == {
        id: "Failed" if id == killer else "Completed" for id in ids
    }
    assert all(row.attempts <= most for row in store.list_tasks())


def test_a_worker_that_runs_one_task_at_a_time_runs_each_alone(store):
    [id] = store.create([NewTask(max_attempts=1)])
    store.claim(1, LEASE, "worker", single=True)
    die(store, id)
    assert store.read(id).status == "Failed"


@pytest.mark.parametrize("transition", ["retry", "release", "repeat"])
def test_what_a_worker_with_one_slot_did_not_finish_runs_beside_others_again(store, transition):
    """Or each such task would have to wait until a worker with many slots has nothing else to do."""
    [id, _] = store.create([new_task({"repeat": 60}), NewTask()])
    [row] = store.claim(1, LEASE, "worker", single=True)
    if transition == "retry":
        store.retry([(id, row.attempt, "why", 0.0)])
    elif transition == "release":
        store.release([(id, row.attempt)])
    else:
        store.fail([(id, row.attempt, "why", store.next_run(row))])
    set_time(store, id, "run_at", -1)
    store.promote()
    store.repeat()
    assert len(store.claim(8, LEASE)) == 2


@pytest.mark.parametrize("transition", ["release", "repeat"])
def test_what_may_have_killed_a_worker_stays_alone(store, transition):
    """When it is given back by a worker that stops, and in its next run."""
    [id, _] = store.create([new_task({"repeat": 60, "max_attempts": 1}), NewTask()])
    store.claim(2, LEASE)
    die(store, id)
    [row] = store.claim(8, LEASE)
    if transition == "release":
        store.release([(id, row.attempt)])
    else:
        die(store, id)
        store.schedule([(id, row.attempt, store.next_run(row))])
        set_time(store, id, "run_at", -1)
        store.repeat()
    [row] = store.claim(8, LEASE)
    assert row.id == id and row.alone


def test_what_was_tried_again_by_hand_runs_beside_others_again(store):
    [id] = store.create([NewTask(max_attempts=1)])
    for _ in range(2):
        store.claim(1, LEASE)
        die(store, id)
    store.retry_by_hand(id)
    store.create()
    assert len(store.claim(8, LEASE)) == 2


def test_a_task_that_runs_alone_waits_for_a_worker_without_others_but_not_for_ever(store):
    before, alone, behind = store.create([NewTask()] * 3)
    sql(store, "update tasks set alone = true, ready_at = now() where id = %(id)s", id=alone)
    assert [row.id for row in store.claim(8, LEASE)] == [before]
    # beside what began before the task was ready
    assert [row.id for row in store.claim(8, LEASE, busy=60.0)] == [behind]
    [last] = store.create()
    time.sleep(0.05)
    # beside what began since: it has been overtaken
    assert store.claim(8, LEASE, busy=0.01) == []
    assert [row.id for row in store.claim(8, LEASE)] == [alone]
    assert [row.id for row in store.claim(8, LEASE)] == [last]


def test_a_busy_worker_comes_to_run_what_must_run_alone(store, work):
    """New tasks come all the time, so that the worker would never be without any."""
    running, beside, stop = set(), [], threading.Event()

    def handle(task):
        running.add(task.id)
        if task.row.alone:
            beside.append(len(running))
        time.sleep(0.03)
        running.discard(task.id)

    def produce():
        while not stop.wait(0.01):
            store.create([NewTask()] * 2)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        work(handle, concurrency=4)
        eventually(lambda: len(store.list_tasks("Completed", limit=20)) == 20)
        for _ in range(2):
            [(id,)] = sql(store, "insert into tasks (alone) values (true)")
            finished(store, id)
        count = store.list_tasks(order="desc", limit=1)[0].id
        finished(store, count)      # and it goes on with the others
    finally:
        stop.set()
        producer.join()
    assert beside == [1, 1]


@pytest.mark.parametrize(
    "database, workers, concurrency, most",
    [("sqlite", 1, 8, 2), ("postgres", 2, 4, 1), ("postgres", 1, 1, 1)],
    indirect=["database"],
)
def test_a_killer_fails_alone_and_its_neighbours_are_completed(
    start, store, database, workers, concurrency, most
):
    """Seven sleep innocently beside a task that ends its process; a supervisor starts it again."""
    ids = [
        order(store, max_attempts=most, **({"sleep": 0.1, "die": 9} if n == 2 else {"sleep": 0.3}))
        for n in range(8)
    ]
    programs, deadline = [], time.monotonic() + 60
    while store.list_tasks("New", "In Progress") and time.monotonic() < deadline:
        programs = [program for program in programs if program.process.poll() is None]
        programs += [
            start("worker.py", DATABASE_URL=database, **SLEEPERS, CONCURRENCY=concurrency)
            for _ in range(workers - len(programs))
        ]
        time.sleep(0.05)
    assert [(row.id, row.status) for row in store.list_tasks()] == [
        (id, "Failed" if n == 2 else "Completed") for n, id in enumerate(ids)
    ]


# Late, but still the holder

def test_finished_work_counts_however_late_when_nobody_took_over(start, store, database, tmp_path):
    """A suspended laptop, a paused container; a handler that holds the interpreter (a regular expression)."""
    trace = tmp_path / "trace"
    worker = start("worker.py", DATABASE_URL=database, **SLEEPERS)
    id = order(store, max_attempts=1, file=str(trace), sleep=0.3, **{"return": "done"})
    eventually(trace.exists)
    worker.send(signal.SIGSTOP)
    time.sleep(1.5)
    worker.send(signal.SIGCONT)
    row = finished(store, id)
    assert (row.status, row.result, row.attempts) == ("Completed", '"done"', 1)
    assert "lost task" not in worker.log()


def test_a_handler_that_keeps_the_interpreter_busy_for_longer_than_the_lease_keeps_its_task(store, work):
    """As one regular expression or one call of a library may do."""
    def search(task):
        ctypes.PyDLL(None).poll(None, 0, 1200)      # milliseconds in which nothing else of Python runs
        return task.attempt
    ids = [order(store, max_attempts=1) for _ in range(2)]
    work(search, lease_seconds=1, poll_seconds=0.01, concurrency=2)
    assert [finished(store, id).result for id in ids] == ["1"] * 2


def test_workers_keep_their_tasks_while_the_database_is_away(database, store, monkeypatch):
    """A failover takes longer than the lease; the worker that is back first takes nothing from the others."""
    told, away, workers = [], threading.Event(), []

    def handle(task):
        time.sleep(2)
        told.append(task.canceled)
        return "done"

    def unless_away(call):
        def called(*args, **kwargs):
            if away.is_set():
                raise Unavailable("away")
            return call(*args, **kwargs)
        return called

    for _ in range(2):
        other = taskmanager.open_store(database)
        for name in ("_execute", "_batch"):
            monkeypatch.setattr(other, name, unless_away(getattr(other, name)))
        workers.append(Worker(other, Config(**QUICK, lease_seconds=1, concurrency=2), handle))
    ids = [order(store, max_attempts=1) for _ in range(4)]
    for worker in workers:
        worker.start()
    eventually(lambda: len(store.list_tasks("In Progress")) == 4)
    away.set()
    time.sleep(1.5)
    away.clear()
    rows = [finished(store, id) for id in ids]
    for worker in workers:
        worker.stop(0)
    assert {(row.status, row.result, row.attempts) for row in rows} == {("Completed", '"done"', 1)}
    assert told == [False] * 4


def test_a_worker_that_waited_for_the_database_takes_nothing_from_others_at_once(
        store, database, monkeypatch):
    """After an outage a new worker may come first, before those that still run what they hold."""
    order(store)
    [row] = store.claim(1, LEASE, "away")
    expire(store, row.id)
    failures = [Unavailable("away")]
    for kind in taskmanager.PostgresStore, taskmanager.SQLiteStore:
        apply = kind.apply_schema
        monkeypatch.setattr(kind, "apply_schema",
                            lambda self, apply=apply: fail() if failures else apply(self))

    def fail():
        raise failures.pop()
    worker = Worker(taskmanager.open_store(database, wait=True), Config(**QUICK), lambda task: None)
    worker.start()
    id = order(store)
    assert finished(store, id).status == "Completed"
    assert store.read(row.id).attempt == row.attempt
    assert store.complete([(row.id, row.attempt, None)]) == {row.id}
    worker.stop(0)


def test_a_handler_is_told_to_stop_when_another_attempt_has_begun(store, work):
    told = []

    def wait(task):
        while not task.canceled:
            time.sleep(0.01)
        told.append(task.stop_reason)
    worker = work(wait, lease_seconds=86400, concurrency=1)
    id = order(store)
    eventually(lambda: store.read(id).status == "In Progress")
    expire(store, id)
    assert store.reclaim(3) == 1 and len(store.claim(1, LEASE)) == 1
    assert told == []
    worker._next_heartbeat = 0.0       # as after a third of the lease
    eventually(lambda: told == [taskmanager.StopReason.LEASE_LOST])


def test_a_worker_takes_back_nothing_of_its_own(store):
    [id] = store.create()
    store.claim(1, LEASE, "mine")
    expire(store, id)
    assert store.reclaim(3, "mine") == 0 and store.reclaim(3, "another") == 1


# The answer to a claim is lost

@pytest.mark.parametrize("late", [False, True], ids=["at once", "when it was no longer waited for"])
def test_what_was_claimed_without_an_answer_is_given_back_at_once_and_does_not_count(
    store, work, monkeypatch, late
):
    """The connection breaks after the commit; or a synchronous standby is missing: the commit comes late."""
    execute, lost, waiting = store._execute, [], []

    def lose(sql, params=None, repeat=True):
        if sql == taskmanager.CLAIM and not lost and store.list_tasks("New"):
            lost.append(sql)
            waiting.append(lambda: execute(sql, params))
            if not late:
                waiting.pop()()
            raise Unavailable("the answer is lost")
        return execute(sql, params, repeat)
    ids = [order(store, max_attempts=1, **{"return": n}) for n in range(3)]
    monkeypatch.setattr(store, "_execute", lose)
    worker = work(lease_seconds=3 if late else 86400, poll_seconds=3600, concurrency=2 if late else 8)
    if late:
        rows = [finished(store, id) for id in ids]
        ids = [order(store, max_attempts=1, **{"return": 5})]
        monkeypatch.setattr(worker, "_claim", lambda: None)
        waiting.pop()()
        monkeypatch.undo()
    rows = [finished(store, id) for id in ids]
    assert {(row.status, row.attempts) for row in rows} == {("Completed", 1)}


def test_the_table_says_whose_an_attempt_is(store, api, work):
    """Two workers in one process, a forked child, another machine's process with the same id: all differ."""
    names = {Worker(store, Config(), print).name for _ in range(2)}
    assert len(names) == 2
    worker = work()
    assert column(store, "worker", finished(store, order(store)).id) == worker.name
    worker.stop()
    [id] = store.create()
    http("POST", f"{api}/tasks/claim")
    assert column(store, "worker", id) is None


# One clock

def test_delay_and_run_at_are_counted_by_the_database(store):
    """The API's clock is wrong, or its machine was asleep."""
    ids = store.create(
        [
            new_task({"delay": 60.5}),
            new_task({"delay": 0}),
            new_task({"run_at": "2001-01-01T00:00:00Z"}),
            new_task({"run_at": "9999-12-31T23:59:59.999999Z"}),
            new_task({"run_at": "0001-01-01T00:00:00Z"}),
        ]
    )
    spans = store._execute(
        "select date_part('epoch', run_at - created_at) from tasks where id = %(id)s", {"id": ids[0]}
    )
    assert round(spans[0][0], 3) == 60.5
    assert [column(store, "run_at", id) is None for id in ids] == [False, True, True, False, True]


# Deleting what is old

def old(store, many):
    """Make so many tasks that were completed ten days ago; their ids."""
    ids = store.create([NewTask()] * many)
    ended = "status = 'Completed', updated_at = now() - %(age)s * interval '1 second'"
    sql(store, f"update tasks set {ended} where id >= %(first)s", first=ids[0], age=864_000.0)
    return ids


def test_old_tasks_are_deleted_however_seldom_the_worker_looks(store, work):
    old(store, 3000)
    work(poll_seconds=30, retention_days=1)
    eventually(lambda: not store.list_tasks())


def test_a_row_that_another_table_refers_to_keeps_no_other_from_being_deleted(postgres_database, caplog):
    """Somebody's table of invoices names the tasks that sent them."""
    store = taskmanager.open_store(postgres_database)
    ids = old(store, 700)
    kept = [*ids[:2], ids[350], ids[-1]]
    store._execute("create table invoices (task bigint references tasks)")
    for id in kept:
        store._execute("insert into invoices values (%(id)s)", {"id": id})
    worker = Worker(store, Config(**QUICK, retention_days=1), lambda task: "done")
    worker.start()
    eventually(lambda: [row.id for row in store.list_tasks()] == kept)
    for _ in range(2):
        # until it is over; and then once more
        eventually(lambda: 0 < worker._next_delete < time.monotonic() + 3600)
        worker._next_delete = 0
    assert finished(store, order(store)).status == "Completed"
    worker.stop(0)
    assert caplog.text.count("can't be deleted") == 1
    assert "Traceback" not in caplog.text
    store.close()
