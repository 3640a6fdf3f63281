"""How the attempts of a task went: their numbers, times, ends and errors, whatever path the task took."""

import json

import pytest

import taskmanager
from helpers import LEASE, eventually, expire, order, set_time, sql
from taskmanager import Attempt, Filters, NewTask, TaskNotFound


def ended(store, id):
    """Number, outcome and error of each attempt."""
    return [(each.attempt, each.outcome, each.error) for each in store.attempts(id)]


def claim(store, worker=None, **kwargs):
    store.promote()
    [row] = store.claim(1, LEASE, worker, **kwargs)
    return row.id, row.attempt


def test_a_task_that_never_ran_has_no_attempts(store):
    [id] = store.create()
    assert store.attempts(id) == []
    store.cancel(id)
    assert store.attempts(id) == []


def test_attempts_of_no_task(store):
    for id in (0, 5, 10**30):
        with pytest.raises(TaskNotFound):
            store.attempts(id)


def test_a_running_attempt_has_no_end(store):
    [id] = store.create()
    claim(store, "host:7:0123abcd")
    [attempt] = store.attempts(id)
    assert attempt == Attempt(1, "host:7", store.read(id).updated_at, None, None, None)


@pytest.mark.parametrize(
    "stored, shown",
    [
        ("host:7:0123abcd", "host:7"),
        ("@mill", "mill"),
        ("@host:7:0123abcd", "host:7:0123abcd"),
        ('@"ключ"\n{}', '"ключ"\n{}'),
        ("somebody", "somebody"),
        (None, None),
    ],
)
def test_the_worker_is_shown_by_its_name(store, stored, shown):
    [id] = store.create()
    store.retry([(*claim(store, stored), "why", 0)])
    claim(store, stored)
    assert [attempt.worker for attempt in store.attempts(id)] == [shown, shown]


ENDS = {
    "completed": lambda store, held: store.complete([(*held, '"done"')]),
    "failed": lambda store, held: store.fail([(*held, "why")]),
    "timed_out": lambda store, held: store.fail([(*held, "no answer", None, "timed_out")]),
}


@pytest.mark.parametrize("outcome", ENDS)
def test_the_last_attempt_is_that_of_the_row(store, outcome):
    [id] = store.create()
    ENDS[outcome](store, claim(store))
    set_time(store, id, "started_at", -60)
    row = store.read(id)
    [attempt] = store.attempts(id)
    assert (attempt.outcome, attempt.error, attempt.ended_at) == (outcome, row.error, row.updated_at)
    assert attempt.started_at < attempt.ended_at


def test_every_attempt_has_its_line(store):
    [id] = store.create([NewTask(max_attempts=9)])
    store.retry([(*claim(store), 'a "reason" \\ of \x01 two\nlines: ключ ☃', 0)])
    store.retry([(*claim(store), "timed out after 2 s", 0, "timed_out")])
    store.release([claim(store)])
    claim(store)
    expire(store, id)
    store.reclaim(3)
    store.fail([(*claim(store), "for good")])
    store.retry_by_hand(id)
    store.complete([(*claim(store), None)])
    cut_off = "the worker died or was cut off during attempt 3 of 9"
    assert ended(store, id) == [
        (1, "retried", 'a "reason" \\ of \x01 two\nlines: ключ ☃'),
        (2, "timed_out", "timed out after 2 s"),
        (3, "released", None),
        (4, "reclaimed", cut_off),
        (5, "failed", "for good"),
        (6, "completed", None),
    ]
    assert all(each.started_at <= each.ended_at for each in store.attempts(id))


@pytest.mark.parametrize("error", ["timed out after 5 s, it says", "the worker died or was cut off"])
def test_the_words_of_an_error_say_nothing_about_the_outcome(store, error):
    [id] = store.create([NewTask(max_attempts=9)])
    store.retry([(*claim(store, single=True), error, 0)])
    store.release([claim(store, single=True)])
    assert not store.read(id).alone             # no worker has died
    store.fail([(*claim(store), error)])
    assert ended(store, id) == [(1, "retried", error), (2, "released", None), (3, "failed", error)]
    store.retry_by_hand(id)
    assert ended(store, id)[2:] == [(3, "failed", error)]


def test_what_must_run_alone_is_given_back_any_number_of_times(store):
    [id] = store.create([NewTask(max_attempts=2)])
    claim(store)
    expire(store, id)
    store.reclaim(3)
    for _ in range(3):
        store.release([claim(store)])
        assert store.read(id).alone


def test_many_that_are_retried_by_hand_keep_their_attempts(store):
    ids = store.create([NewTask()] * 2)
    store.fail([(*claim(store), "why"), (*claim(store), "why")])
    assert store.retry_all(Filters(statuses=["Failed"]))[0] == 2
    store.claim(2, LEASE)
    assert [ended(store, id) for id in ids] == [[(1, "failed", "why"), (2, None, None)]] * 2


def test_a_task_that_was_retried_by_hand_and_canceled_has_its_last_attempt_once(store):
    [id] = store.create()
    store.fail([(*claim(store), "why")])
    store.retry_by_hand(id)
    store.cancel(id)
    assert ended(store, id) == [(1, "failed", "why")]


@pytest.mark.parametrize("end", ["retry", "release", "reclaim"])
def test_a_task_that_waits_for_its_next_attempt_has_the_last_one_once(store, end):
    [id] = store.create()
    held = claim(store)
    if end == "retry":
        store.retry([(*held, "why", 60)])
    elif end == "release":
        store.release([held])
    else:
        expire(store, id)
        store.reclaim(3)
    attempts = store.attempts(id)
    assert len(attempts) == 1
    store.cancel(id)        # while New: that was no attempt
    assert store.attempts(id) == attempts
    store.retry_by_hand(id)
    assert store.attempts(id) == attempts
    claim(store)
    assert ended(store, id)[1:] == [(2, None, None)]


@pytest.mark.parametrize("end", ["complete", "retry", "fail", "release", "reclaim"])
def test_an_attempt_that_was_canceled_ended_so(store, end):
    [id] = store.create()
    held = claim(store)
    store.cancel(id)
    assert ended(store, id) == [(1, None, None)]
    if end == "reclaim":
        expire(store, id)
        store.reclaim(3)
    else:
        values = {"complete": ["1"], "retry": ["why", 0], "fail": ["why"], "release": []}[end]
        getattr(store, end)([(*held, *values)])
    assert ended(store, id) == [(1, "canceled", "canceled")]
    store.retry_by_hand(id)
    claim(store)
    assert ended(store, id) == [(1, "canceled", "canceled"), (2, None, None)]


def test_an_attempt_that_ran_alone_and_was_the_last_was_reclaimed(store):
    [id] = store.create([NewTask(max_attempts=1)])
    claim(store, single=True)
    expire(store, id)
    store.reclaim(3)
    error = "the worker died or was cut off during attempt 1 of 1"
    assert (store.read(id).status, ended(store, id)) == ("Failed", [(1, "reclaimed", error)])


def test_a_long_history_keeps_the_newest_attempts_with_the_ends_of_their_errors(store):
    [id] = store.create()
    for n in range(1, 61):
        store.retry([(*claim(store), f"{n} " + "x" * 1000 + f" {n}", 0)])
    attempts = store.attempts(id)
    numbers = [attempt.attempt for attempt in attempts]
    assert numbers == list(range(numbers[0], 61)) and 10 <= len(numbers) <= 20
    assert all(len(attempt.error) == 500 and attempt.error.endswith(f" {attempt.attempt}")
               for attempt in attempts)
    [(history,)] = store._execute("select history from tasks")
    assert len(history) == 8000


@pytest.mark.parametrize(
    "history",
    ["nonsense", "{}", "[1]", "\n\n", '{"attempt": 1}', "[" * 5000, "x" * 9000],
    ids=lambda text: text[:9],
)
def test_a_history_that_is_none_keeps_no_attempt_from_being_shown(store, history):
    [id] = store.create()
    claim(store)
    sql(store, "update tasks set history = %(history)s", history=history)
    assert ended(store, id) == [(1, None, None)]
    store.release([(id, 1)])
    claim(store)
    assert ended(store, id) == [(1, "released", None), (2, None, None)]


def test_the_attempts_of_a_row_by_plain_sql_or_an_older_program(store):
    rows = {
        "'New', 2": [],
        "'In Progress', 0": [],
        "'In Progress', 2": [(2, None, None)],
        "'Completed', 2": [(2, "completed", None)],
        "'Completed', 0": [],
        "'Failed', 2": [(2, "failed", None)],
    }
    for values, expected in rows.items():
        [(id,)] = sql(store, f"insert into tasks (status, attempt) values ({values})")
        assert ended(store, id) == expected


def test_attempts_are_read_by_one_statement(store, monkeypatch):
    [id] = store.create()
    store.retry([(*claim(store), "why", 0)])
    claim(store)
    statements, execute = [], store._execute
    monkeypatch.setattr(store, "_execute", lambda sql, *args: statements.append(sql) or execute(sql, *args))
    assert len(store.attempts(id)) == 2
    assert statements == [taskmanager.ATTEMPTS]


def test_an_end_that_is_refused_adds_no_line(store):
    [id] = store.create()
    held = claim(store)
    for _ in range(2):
        store.retry([(*held, "why", 0)])
        store.release([held])
    assert ended(store, id) == [(1, "retried", "why")]


def test_a_worker_has_each_attempt_of_its_tasks_written(store, work):
    worker = work()
    id = order(store, until=3)
    eventually(lambda: store.read(id).status == "Completed")
    attempts = store.attempts(id)
    assert [(each.attempt, each.outcome) for each in attempts] == [
        (1, "retried"), (2, "retried"), (3, "completed")]
    assert "attempt 2 is too early" in attempts[1].error
    assert {each.worker for each in attempts} == {worker.name.rpartition(":")[0]}


def test_a_timeout_is_an_outcome_of_its_own(store, work):
    work()
    id = order(store, max_attempts=2, timeout=0.1, sleep=60)
    eventually(lambda: store.read(id).status == "Failed")
    assert ended(store, id) == [(n, "timed_out", "timed out after 0.1 s") for n in (1, 2)]


def test_a_line_of_the_history_is_json(store):
    [id] = store.create()
    store.retry([(*claim(store, "host:7:0123abcd"), "why", 0)])
    [(line,)] = store._execute("select history from tasks")
    started, ended = (store.attempts(id)[0][n] for n in (2, 3))
    assert json.loads(line) == {"attempt": 1, "worker": "host:7:0123abcd", "started_at": started,
                                "ended_at": ended, "outcome": "retried", "error": "why"}
