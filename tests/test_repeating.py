"""Tasks that repeat: one row that goes round, and what clients, workers and the sweep do to it."""

import json
import time
from datetime import datetime, timedelta

import pytest

import taskmanager
from helpers import LEASE, at_once, eventually, expire, set_time, sql
from taskmanager import Config, Worker, new_task, next_time

MINUTELY = {"repeat": 60}
SECOND = timedelta(seconds=1)


def repeating(store, key=None, **fields):
    """A new task that repeats; its id."""
    [id] = store.create([new_task(MINUTELY | fields, key)])
    return id


def claim(store, id):
    """Claim it, as the only one that is ready."""
    store.promote()
    store.repeat()
    [row] = store.claim(2, LEASE)
    assert row.id == id
    return row


def end(store, row, *values, how="complete"):
    """End its attempt and plan its next run, as a worker does."""
    value = values[0] if values else {"complete": None, "fail": "why"}[how]
    assert getattr(store, how)([(row.id, row.attempt, value, store.next_run(row))]) == {row.id}


def seconds_until(store, id, column="run_at"):
    """Seconds until a time of a task, None where it has none."""
    [(seconds,)] = store._execute(
        f"select date_part('epoch', {column} - {taskmanager.NOW}) from tasks where id = %(id)s", {"id": id})
    return seconds if seconds is None else float(seconds)


def sweep(store):
    """Plan what has ended without a next time, as a worker does; the ids."""
    return store.schedule([(row.id, row.attempt, store.next_run(row)) for row in store.unscheduled()])


def seen(row):
    return row.status, row.result, row.error, row.attempts, row.attempt


# When it runs first

@pytest.mark.parametrize(
    "fields, seconds",
    [
        ({}, 0),
        ({"delay": 600}, 600),
        ({"delay": 0, "repeat": "0 0 1 1 *"}, 0),
        ({"run_at": "2001-01-01T00:00:00Z", "repeat": "0 0 1 1 *"}, 0),
    ],
)
def test_the_first_run_is_at_once_or_when_it_is_said(store, fields, seconds):
    id = repeating(store, **fields)
    left = seconds_until(store, id)
    assert (left or 0) == pytest.approx(seconds, abs=5)
    assert (left is None) == (seconds == 0)


def test_a_cron_expression_runs_first_at_its_next_time(store):
    id = repeating(store, repeat="30 3 * * *", timezone="Asia/Kolkata")
    planned = datetime.fromisoformat(store.read(id).run_at)
    assert (planned.hour, planned.minute, planned.second) == (22, 0, 0)      # 03:30 there, in UTC
    assert 0 < seconds_until(store, id) <= 86400
    assert store.read(id).planned_at == (planned - datetime(1970, 1, 1)).total_seconds()


# How it goes round

def test_between_two_runs_it_keeps_how_the_last_one_went(store):
    id = repeating(store)
    end(store, claim(store, id), '"done"')
    assert seen(store.read(id)) == ("Completed", '"done"', None, 1, 1)
    shown = json.loads(store.read(id).to_json())
    assert (shown["repeat"], shown["result"]) == (60, "done")
    assert 50 < seconds_until(store, id) <= 60
    assert store.repeat() == 0 and store.claim(1, LEASE) == []


def test_when_its_time_comes_it_is_new_again(store):
    id = repeating(store)
    row = claim(store, id)
    store.retry([(id, row.attempt, "busy", 0)])
    end(store, claim(store, id), '"done"')
    set_time(store, id, "run_at", -7)
    set_time(store, id, "updated_at", -50)
    assert store.repeat() == 1
    assert seen(store.read(id)) == ("New", None, None, 0, 2)
    shown = json.loads(store.read(id).to_json())
    assert shown.keys() == {"id", "status", "created_at", "updated_at", "repeat"}
    assert seconds_until(store, id, "updated_at") == pytest.approx(0, abs=5)
    assert seconds_until(store, id, "ready_at") == pytest.approx(-7, abs=5)
    end(store, claim(store, id), "broken", how="fail")
    assert seen(store.read(id)) == ("Failed", None, "broken", 1, 3)
    assert 0 < seconds_until(store, id) <= 60
    assert [(each.attempt, each.outcome, each.error) for each in store.attempts(id)] == [
        (1, "retried", "busy"), (2, "completed", None), (3, "failed", "broken")]
    [_, second, _] = store.attempts(id)
    assert second.ended_at < store.read(id).updated_at      # when it ended, not when it was made New
    set_time(store, id, "run_at", -1)
    store.repeat()
    assert seen(store.read(id)) == ("New", None, None, 0, 3)


def test_each_run_has_all_attempts_before_it(store):
    id = repeating(store, max_attempts=2)
    for _ in range(3):
        first = claim(store, id)
        store.retry([(id, first.attempt, "why", 0)])
        second = claim(store, id)
        assert (first.attempts, second.attempts) == (1, 2)
        end(store, second, "why", how="fail")
        set_time(store, id, "run_at", -1)
    assert store.read(id).attempt == 6


@pytest.mark.parametrize("how", ["complete", "fail"])
def test_one_that_ran_alone_and_ended_by_itself_does_not_so_again(store, how):
    id = repeating(store)
    sql(store, "update tasks set alone = true where id = %(id)s", id=id)
    end(store, claim(store, id), how=how)
    set_time(store, id, "run_at", -1)
    store.repeat()
    assert not store.read(id).alone


def test_the_times_of_an_interval_do_not_drift(store):
    id = repeating(store, repeat=1.5, run_at="2001-01-01T00:00:00.25Z")
    for _ in range(3):
        row = claim(store, id)
        end(store, row)
        [(at,)] = store._execute("select date_part('epoch', run_at) from tasks")
        offset = (float(at) - 978307200.25) % 1.5
        assert min(offset, 1.5 - offset) < 0.001
        sql(store, "update tasks set run_at = run_at - 6 * interval '1 second'")    # its time has come


def test_a_retry_does_not_move_the_times(store):
    id = repeating(store, repeat=3600, run_at="2001-01-01T00:10:00Z")
    row = claim(store, id)
    store.retry([(id, row.attempt, "why", 60)])
    set_time(store, id, "run_at", -0.5)
    row = claim(store, id)
    store.release([(id, row.attempt)])
    row = claim(store, id)
    end(store, row)
    assert store.read(id).run_at.endswith(":10:00")


def test_missed_runs_become_one_and_a_long_one_skips_what_it_missed(store):
    id = repeating(store, repeat=1, run_at="2001-01-01T00:00:00Z")
    row = claim(store, id)
    time.sleep(1.2)
    end(store, row)
    assert 0 < seconds_until(store, id) <= 1


def test_the_next_time_is_later_by_the_databases_clock(store, monkeypatch):
    """The clock of this machine is an hour slow, or fast."""
    id = repeating(store, repeat="* * * * *", delay=0)
    row = claim(store, id)
    for off in (-3600, 3600):
        now = store.now()
        if isinstance(store, taskmanager.PostgresStore):
            monkeypatch.setattr(taskmanager.time, "time", lambda off=off: 1e9 + off)
        after = store.next_run(row)
        assert now < after <= now + 61 * SECOND
        assert after.second == 0
    assert abs(seconds_until(store, id, "created_at")) < 20


def test_now_asks_the_database_once_a_second(store, monkeypatch):
    asked, execute = [], store._execute
    monkeypatch.setattr(store, "_execute", lambda sql, *args: asked.append(sql) or execute(sql, *args))
    times = [store.now() for _ in range(1000)]
    assert times == sorted(times)
    assert 1 <= asked.count(taskmanager.CLOCK) <= 3


# What ended without a next time

def test_the_sweep_plans_what_has_ended_without_a_next_time(store):
    completed = repeating(store)
    store.complete([(completed, claim(store, completed).attempt, None)])
    reclaimed = repeating(store, max_attempts=1)
    sql(store, "update tasks set alone = true where id = %(id)s", id=reclaimed)
    claim(store, reclaimed)
    expire(store, reclaimed)
    store.reclaim(3)
    [(by_sql,)] = sql(store, "insert into tasks (status, repeat) values ('Failed', '60')")
    once = claimed_once(store)
    ids = {completed, reclaimed, by_sql}
    assert [store.read(id).run_at for id in (*ids, once)] == [None] * 4
    assert store.read(reclaimed).status == "Failed"
    before = [store.read(id)._replace(run_at=None) for id in ids]
    assert sweep(store) == ids
    assert [store.read(id)._replace(run_at=None) for id in ids] == before
    assert all(0 < seconds_until(store, id) <= 60 for id in ids)
    assert store.unscheduled() == [] and sweep(store) == set()
    assert store.read(once).run_at is None


def claimed_once(store):
    """A task that does not repeat, and has ended; its id."""
    [id] = store.create()
    row = claim(store, id)
    store.complete([(id, row.attempt, None)])
    return id


def test_a_time_is_refused_when_the_task_has_gone_on(store):
    id = repeating(store)
    store.complete([(id, claim(store, id).attempt, None)])
    [row] = store.unscheduled()
    planned = [(id, row.attempt, store.next_run(row))]
    store.retry_by_hand(id)
    assert store.schedule(planned) == set()
    store.complete([(id, claim(store, id).attempt, None)])
    assert store.schedule(planned) == set()     # of another attempt
    assert store.read(id).run_at is None
    [row] = store.unscheduled()
    planned = [(id, row.attempt, store.next_run(row))]
    assert (store.schedule(planned), store.schedule(planned)) == ({id}, set())


def test_what_can_not_be_scheduled_here_waits_and_keeps_no_other_from_it(store, caplog):
    ids = [repeating(store) for _ in range(6)]
    for row in store.claim(9, LEASE):
        store.complete([(row.id, row.attempt, None)])
    for id, wrong in zip(ids[:4], ["timezone = 'Mars/Olympus', repeat = '\"@daily\"'", "repeat = '0'",
                                   "repeat = 'null'", "repeat = '[1]'"], strict=True):
        sql(store, f"update tasks set {wrong} where id = %(id)s", id=id)
    planned = set()
    for _ in range(4):
        rows = store.unscheduled(2)
        assert len(rows) <= 2
        planned |= store.schedule([(row.id, row.attempt, store.next_run(row)) for row in rows])
    assert planned == set(ids[4:])
    caplog.clear()
    assert store.next_run(store.read(ids[0])) is None
    assert "could not schedule task=1 " in caplog.text and "Mars/Olympus" in caplog.text
    # and another machine knows it
    sql(store, "update tasks set timezone = 'UTC' where id = %(id)s", id=ids[0])
    store.unscheduled(2)
    assert ids[0] in sweep(store) | sweep(store)


def test_a_task_whose_last_time_has_passed_ends(store, monkeypatch):
    id = repeating(store, repeat="@daily", delay=0)
    row = claim(store, id)
    monkeypatch.setattr(store, "now", lambda: datetime(9999, 12, 31, 23, 59, 30))
    end(store, row)
    assert store.read(id).run_at == "9999-12-31T23:59:59"
    monkeypatch.undo()
    assert store.repeat() == 0


def test_a_task_that_does_not_repeat_has_no_next_run(store):
    [id] = store.create()
    row = claim(store, id)
    assert store.next_run(row) is None
    store.complete([(id, row.attempt, None, datetime(2999, 1, 1))])
    assert store.read(id).run_at is None


# Clients

def test_cancel_between_runs_ends_the_repetition_and_keeps_how_the_last_run_went(store):
    id = repeating(store, repeat="@daily", timezone="Europe/Berlin", delay=0)
    end(store, claim(store, id), '"done"')
    canceled = store.read(id)._replace(canceled=True, run_at=None)
    assert store.cancel(id) == canceled
    assert store.unscheduled() == [] and store.promote() == store.repeat() == 0
    assert store.cancel(id) == canceled         # again: no harm
    assert [each.outcome for each in store.attempts(id)] == ["completed"]


def test_what_failed_and_was_canceled_between_runs_tells_how_it_failed(store):
    id = repeating(store)
    end(store, claim(store, id), "why", how="fail")
    store.cancel(id)
    assert [(each.outcome, each.error) for each in store.attempts(id)] == [("failed", "why")]


@pytest.mark.parametrize("how", ["complete", "fail"])
def test_cancel_ends_it_for_good_and_retry_by_hand_lets_it_go_on(store, how):
    waiting = repeating(store)
    end(store, claim(store, waiting), how=how)
    store.cancel(waiting)
    new = repeating(store)
    store.cancel(new)
    running = repeating(store)
    row = claim(store, running)
    store.cancel(running)
    end(store, row, how=how)
    for id in (new, running):
        assert seen(store.read(id))[:3] == ("Failed", None, "canceled")
        assert store.read(id).run_at is None
        assert store.cancel(id).status == "Failed"      # again: no harm
    assert store.unscheduled() == [] and store.promote() == store.repeat() == 0
    for id in (waiting, new, running):
        assert seen(store.retry_by_hand(id))[:3] == ("New", None, None)
        end(store, claim(store, id))
        assert store.read(id).run_at and not store.read(id).canceled


@pytest.mark.parametrize("how", ["complete", "fail"])
def test_retry_between_runs_runs_it_now_and_then_at_its_next_time(store, how):
    id = repeating(store, repeat=3600, run_at="2001-01-01T00:10:00Z")
    end(store, claim(store, id), '"done"' if how == "complete" else "why", how=how)
    planned = store.read(id).run_at
    assert seen(store.retry_by_hand(id)) == ("New", None, None, 0, 1)
    row = claim(store, id)
    assert (row.attempt, row.attempts) == (2, 1)
    end(store, row)
    assert store.read(id).run_at == planned
    assert [each.attempt for each in store.attempts(id)] == [1, 2]


def test_retry_of_one_that_was_to_run_first_in_years_keeps_its_times(store):
    id = repeating(store, repeat=86400, run_at="9990-01-01T00:10:00Z")
    store.cancel(id)
    store.retry_by_hand(id)
    end(store, claim(store, id))
    assert 0 < seconds_until(store, id) <= 86400
    assert store.read(id).run_at.endswith("T00:10:00")


def test_delete_between_runs(store):
    id = repeating(store)
    end(store, claim(store, id))
    assert store.delete(id).id == id
    assert store.repeat() == 0 and store.list_tasks() == []


# Keeping

def test_what_still_repeats_is_never_deleted(store):
    ids = [repeating(store) for _ in range(4)]
    kept, failed, stopped, canceled = ids
    for row in store.claim(9, LEASE):
        if row.id == canceled:
            store.cancel(canceled)
        end(store, row, "why", how="fail") if row.id == failed else end(store, row)
    store.cancel(stopped)
    for id in ids:
        set_time(store, id, "updated_at", -3000 * 86400)
    deleted = {status: store.delete_old(status, 1) for status in ("Completed", "Failed")}
    assert deleted == {"Completed": 1, "Failed": 1}
    assert [row.id for row in store.list_tasks()] == [kept, failed]


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({"retention_days": 5}, []),
        ({"retention_days": 5, "failed_retention_days": 50}, ["Failed"]),
        ({"retention_days": 50, "failed_retention_days": 5}, ["Completed"]),
        ({"failed_retention_days": 5}, ["Completed"]),
        ({"failed_retention_days": 0, "retention_days": 50}, ["Completed"]),
    ],
)
def test_failed_tasks_have_a_retention_of_their_own(store, settings, kept):
    for status in ("Completed", "Failed"):
        sql(store, f"""insert into tasks (status, updated_at)
                       values ('{status}', now() - 864000 * interval '1 second')""")
    worker = Worker(store, Config(poll_seconds=0.05, **settings), lambda task: None)
    worker._sweep()
    deadline = time.monotonic() + 20
    while worker._next_delete > time.monotonic() + 3600 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [row.status for row in store.list_tasks()] == kept


# A deployment

def test_a_key_makes_one_repeating_task_however_often_it_is_deployed(store):
    fields = {"repeat": "*/5 * * * *", "timezone": "Europe/Berlin", "payload": {"report": "daily"}}
    ids = at_once(*[lambda: store.create([new_task(fields, "nightly")])] * 20)
    assert ids == [ids[0]] * 20
    [id] = ids[0]
    for _ in range(3):
        before = store.read(id)
        assert store.create([new_task(fields, "nightly")]) == [id]
        assert store.read(id) == before
        set_time(store, id, "run_at", -1)
        end(store, claim(store, id), '"done"')
    with pytest.raises(taskmanager.KeyReused):
        store.create([new_task(fields | {"repeat": "*/6 * * * *"}, "nightly")])
    assert store.read(id).repeat == '"*/5 * * * *"'
    store.cancel(id)                    # what was ended stays so
    assert store.create([new_task(fields, "nightly")]) == [id]
    assert store.read(id).canceled and store.read(id).run_at is None
    store.delete(id)
    assert store.create([new_task(fields, "nightly")]) != [id]


def test_next_time_and_the_store_agree(store):
    id = repeating(store, repeat="0 0 29 2 *")
    now = store.now()
    assert store.read(id).run_at == next_time("0 0 29 2 *", None, now, now).isoformat()


@pytest.mark.parametrize("repeat", [
    '"x"', "null", "{}", "0", "-1", "true", "1" * 990, "[" * 400 + "]" * 400, '"\\ud800"', "1e400",
    '"0 0 30 2 *"'], ids=lambda text: text[:10])
def test_nonsense_that_plain_sql_wrote_is_never_due_and_holds_up_nothing(store, work, repeat):
    sql(store, "insert into tasks (status, repeat) values ('Completed', %(repeat)s)", repeat=repeat)
    other = repeating(store)
    work()
    eventually(lambda: seconds_until(store, other))
    [row] = store.unscheduled()
    assert store.next_run(row) is None and store.read(row.id).status == "Completed"


@pytest.mark.sqlite
def test_a_number_too_long_for_python_in_an_older_table_holds_up_nothing(store):
    """A file that was made before the table had a limit."""
    store.next_run(taskmanager.Unscheduled(1, 1, "1" * 5000, None, 0.0))
    with pytest.raises(taskmanager.Invalid):
        sql(store, "insert into tasks (repeat) values (%(repeat)s)", repeat="1" * 5000)


@pytest.mark.parametrize("given, shown", [(60, "60"), (60.0, "60"), (1.5, "1.5"), ("@daily", '"@daily"')])
def test_an_interval_is_shown_as_it_was_given(store, given, shown):
    assert f'"repeat": {shown}' in store.read(repeating(store, repeat=given)).to_json()


def test_one_that_plain_sql_ended_without_an_attempt_has_none_in_its_history(store):
    [(id,)] = sql(store, "insert into tasks (status, repeat, run_at) values ('Completed', '60', now())")
    store.repeat()
    assert store.read(id).status == "New" and store.attempts(id) == []


def test_each_run_has_an_idempotency_key_of_its_own_and_its_attempts_share_it(store):
    id = repeating(store)

    def key():
        return taskmanager.Task(row, None).idempotency_key
    row = claim(store, id)
    first = key()
    assert store.retry([(id, row.attempt, "why", 0)]) == {id}
    row = claim(store, id)
    assert key() == first
    assert store.release([(id, row.attempt)]) == {id}       # an attempt that does not count
    row = claim(store, id)
    assert key() == first
    end(store, row)
    set_time(store, id, "run_at", -1)
    row = claim(store, id)
    assert key() != first
