"""The worker in this process, on both databases: slots, outcomes, retries, timeouts, cancellation, stop."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest

import taskmanager
from handlers import obey
from helpers import QUICK, create, eventually, expire, finished, order, set_time, sql
from taskmanager import BadSetting, Config, NewTask, Unavailable, Worker


def test_without_a_handler_a_task_is_completed_at_once(store):
    ids = store.create([NewTask()] * 1200)
    worker = Worker(store, Config(**QUICK))
    worker.start()
    eventually(lambda: len(store.list_tasks("Completed", limit=2000)) == len(ids))
    worker.stop()


def test_what_the_handler_returns_is_the_result(store, work):
    work()
    row = finished(store, order(store, **{"return": {"sum": 6, "names": ["ж"]}}))
    assert (row.status, row.result, row.error) == ("Completed", '{"sum": 6, "names": ["ж"]}', None)
    assert finished(store, order(store)).result is None


def test_a_new_task_wakes_the_worker(store, work):
    work(poll_seconds=3600, lease_seconds=86400)
    time.sleep(0.2)
    assert finished(store, order(store)).status == "Completed"


def test_an_error_is_tried_again_until_it_works(store, work):
    work()
    row = finished(store, order(store, until=3, **{"return": "at last"}))
    assert (row.status, row.result, row.attempts, row.error) == ("Completed", '"at last"', 3, None)


def test_an_error_is_final_when_the_attempts_are_used_up(store, work):
    work()
    row = finished(store, order(store, max_attempts=2, **{"raise": "ValueError", "say": "no\nsuch\tplace"}))
    assert (row.status, row.attempts) == ("Failed", 2)
    assert row.error.startswith("ValueError: no such place")


def test_backoff_doubles_with_jitter_up_to_an_hour():
    for tries in (1, 2, 3, 50, 10000):
        most = min(3600, 2 * 2 ** min(tries - 1, 40))
        waits = [taskmanager.backoff(tries, 2, taskmanager.MAX_BACKOFF) for _ in range(200)]
        assert most / 2 <= min(waits) < max(waits) <= most


def test_failed_is_final_at_once(store, work):
    work()
    row = finished(store, order(store, **{"raise": "Failed", "say": "no such customer"}))
    assert (row.status, row.error, row.attempts) == ("Failed", "no such customer", 1)


def test_retry_says_when(store, work):
    def later(task):
        raise taskmanager.Retry("not yet", delay=3000)
    work(later)
    id = order(store)
    row = eventually(lambda: (row := store.read(id)).run_at and row)
    assert (row.status, row.error) == ("New", "not yet")


@pytest.mark.parametrize("delay", [-1, float("inf"), float("nan"), 4e11])
def test_retry_refuses_a_delay_that_is_none(delay):
    with pytest.raises(ValueError, match="delay"):
        taskmanager.Retry("not yet", delay=delay)


def test_invalid_input_inside_a_handler_is_an_error_like_any_other(store, work):
    work(lambda task: taskmanager.parse_task(b"nonsense"))
    row = finished(store, order(store, max_attempts=2))
    assert row.attempts == 2 and row.error.startswith("Invalid: not JSON")


def test_a_final_failure_without_words_still_has_an_error(store, work):
    def fail(task):
        raise taskmanager.Failed
    work(fail)
    assert finished(store, order(store)).error == "Failed"


def test_an_exception_that_can_not_be_shown_does_not_cost_the_slot(store, work):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    class Bare(taskmanager.Retry):
        def __init__(self):
            pass

    def fail(task):
        raise {1: Mute, 2: Bare, 3: type("MuteFailed", (Mute, taskmanager.Failed), {})}[task.payload]
    work(fail, concurrency=1)
    errors = [finished(store, create(store, payload=payload, max_attempts=1)).error for payload in (1, 2, 3)]
    assert errors[0].startswith("Mute: it can't be shown")
    assert errors[1] == "Bare"
    assert errors[2] == "MuteFailed: it can't be shown"


def test_an_exception_that_does_harm_costs_no_other_task(store, work):
    """A class of errors in a handler's module has a fault, which shows when an error is looked at."""
    class Exits(Exception):
        def __str__(self):
            raise SystemExit

    class Faulty(taskmanager.Retry):
        delay = property(lambda self: 1 / 0)

        def __init__(self):
            pass

    class Never(taskmanager.Retry):
        delay = float("inf")

    classes = [Exits, type("ExitsForGood", (Exits, taskmanager.Failed), {}), Faulty, Never]

    def fail(task):
        raise classes[task.payload]
    work(fail, concurrency=1)
    rows = [finished(store, create(store, payload=n, max_attempts=2)) for n in range(len(classes))]
    names = ["Exits", "ExitsForGood", "Faulty", "Never"]
    assert [row.error.split(":")[0] for row in rows] == names
    assert [row.attempts for row in rows] == [2, 1, 2, 2]


def test_a_handler_that_exits_does_not_end_its_slot(store, work):
    work(concurrency=1)
    ids = [order(store, max_attempts=1, **{"raise": "exit"}) for _ in range(3)]
    assert [finished(store, id).error[:10] for id in ids] == ["SystemExit"] * 3


@pytest.mark.parametrize(
    "result, said",
    [
        ({1, 2}, "its result: can't be written as JSON"),
        ("a\0b", "its result: expected text without the character NUL"),
        ("x" * 1_100_000, "its result has more than 1048576 bytes"),
        ("é" * 600_000, "more than"),
    ],
    ids=["set", "NUL", "too large", "too large in UTF-8"],
)
def test_a_result_that_can_not_be_kept_fails_the_task(store, work, result, said):
    work(lambda task: result)
    row = finished(store, order(store))
    assert (row.status, row.attempts) == ("Failed", 1) and said in row.error


def test_an_error_that_is_not_quite_text_is_kept_as_well_as_can_be(store, work):
    def spill(task):
        raise ValueError("\0 \ud800 " + "x" * 9999 + " the end")
    work(spill)
    row = finished(store, order(store, max_attempts=1))
    assert len(row.error) == taskmanager.MAX_ERROR and "the end" in row.error


def test_slots_bound_what_runs_at_the_same_time(store, work):
    running, most, lock = 0, 0, threading.Lock()

    def count(task):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    ids = store.create([NewTask()] * 30)
    work(count, concurrency=3)
    for id in ids:
        finished(store, id)
    assert most == 3


def test_a_scheduled_task_runs_when_it_is_due(store, work):
    work()
    id = create(store, delay=0.5)
    time.sleep(0.2)
    assert store.read(id).status == "New"
    assert finished(store, id).status == "Completed"


@pytest.mark.parametrize("sweep, takes, finds, pause", [
    ("promote", 0.08, 400, 0), ("reclaim", 5, 1, 0),                # useful work is no slowness
    ("promote", 0.03, 0, 0.6), ("unscheduled", 0.03, 0, 0.6),       # 5% of the time
    ("repeat", 0.1, 0, 1), ("reclaim", 2, 0, 10),                   # POLL_SECONDS, LEASE_SECONDS / 3
])
def test_a_sweep_pauses_only_when_it_has_slowly_found_nothing_and_not_for_long(
        sqlite_database, monkeypatch, sweep, takes, finds, pause):
    clock = SimpleNamespace(now=1000.0, time=time.time, sleep=time.sleep)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(taskmanager, "time", clock)
    store, made = taskmanager.open_store(sqlite_database), []
    worker = Worker(store, Config(poll_seconds=1, lease_seconds=30), lambda task: None)

    def slow(*args):
        made.append(clock.now)
        clock.now += takes
        return finds if sweep != "unscheduled" else []

    monkeypatch.setattr(store, sweep, slow)
    worker._sweep()
    first = clock.now
    while len(made) < 2:
        worker._sweep()
        clock.now += 0.01
    assert made[1] - first == pytest.approx(pause, abs=0.015)
    store.close()


def test_progress_is_seen_while_it_runs(store, work):
    work()
    id = order(store, progress=0.75)
    eventually(lambda: store.read(id).progress == 0.75)
    assert finished(store, id).progress is None


def test_a_lease_is_extended_for_as_long_as_the_handler_runs(store, work):
    work(lease_seconds=1, poll_seconds=3600)
    id = order(store, max_attempts=1, sleep=1.4, **{"return": "still ours"})
    # another worker, which takes over whatever it may

    def ended():
        taken, row = store.reclaim(3, "another"), store.read(id)
        return taken or row.status == "Completed" and row
    row = eventually(ended)
    assert (row.result, row.attempts) == ('"still ours"', 1)


@pytest.mark.parametrize("poll_seconds", [0.5, 20, 3600])
def test_half_of_a_lease_is_left_when_it_is_extended(sqlite_database, monkeypatch, poll_seconds):
    # or a pause of the database, which is an ordinary thing, would let others take the task over
    clock = SimpleNamespace(now=1000.0, time=time.time, sleep=time.sleep)
    clock.monotonic = lambda: clock.now
    store = taskmanager.open_store(sqlite_database)
    monkeypatch.setattr(taskmanager, "time", clock)
    worker = Worker(store, Config(lease_seconds=30, poll_seconds=poll_seconds), handler=print)
    store.create()
    [row] = store.claim(1, 30, worker.name)
    [slots] = worker._all_slots
    slots.running[row.id, row.attempt] = taskmanager.Task(row, None)
    extended = []
    monkeypatch.setattr(store, "extend", lambda held, lease: extended.append((clock.now, lease)) or {row.id})
    while clock.now < 1300:
        clock.now += worker._seconds_to_wait() + 0.01      # as _loop() does
        worker._poll()
    moments = [1000.0, *(moment for moment, _ in extended)]
    assert max(later - earlier for earlier, later in itertools.pairwise(moments)) < 15
    assert len(moments) < 60 and {lease for _, lease in extended} == {30}


def test_an_outcome_is_kept_while_the_database_is_away_and_nothing_is_run_again(store, work, monkeypatch):
    complete, ran, away = store.complete, [], [True] * 3

    def complete_unless_away(held):
        if away:
            away.pop()
            raise Unavailable("the database can't be reached")
        return complete(held)
    monkeypatch.setattr(store, "complete", complete_unless_away)
    work(lambda task: ran.append(task.id), lease_seconds=1)     # what nobody remembers is given back soon
    id = order(store)
    row = finished(store, id)
    assert (row.status, row.attempt, ran, away) == ("Completed", 1, [id], [])


def test_a_backoff_doubles_has_an_end_and_is_not_the_same_for_all():
    # many that fail together, as their server went away, should not all come back together
    for tries, longest in (1, 2), (2, 4), (3, 8), (4, 10), (1000, 10):
        waits = [taskmanager.backoff(tries, 2, 10) for _ in range(200)]
        assert longest / 2 <= min(waits) < 0.6 * longest
        assert 0.9 * longest < max(waits) <= longest


def test_a_worker_that_lost_its_lease_finds_its_result_refused_and_goes_on(store, work, caplog):
    began, go_on = threading.Event(), threading.Event()

    def freeze(task):
        began.set()
        go_on.wait(20)
        return "mine"

    work(freeze, concurrency=1, poll_seconds=3600, lease_seconds=86400)
    id = order(store)
    assert began.wait(20)
    expire(store, id)
    store.reclaim(3)
    [claim] = store.claim(1, 30)
    go_on.set()
    eventually(lambda: f"refused task={id} attempt=1" in caplog.text)
    assert store.complete([(id, claim.attempt, '"theirs"')]) == {id}
    assert store.read(id).result == '"theirs"'
    assert finished(store, order(store)).result == '"mine"'


def test_a_handler_whose_lease_was_lost_is_told_to_stop(store, work):
    work(poll_seconds=0.05, lease_seconds=1)
    id = order(store, sleep=60)
    eventually(lambda: store.read(id).status == "In Progress")
    sql(
        store,
        "update tasks set lease_until = now(), attempt = attempt + 1, max_attempts = 1, worker = null,"
        " alone = true where id = %(id)s",
        id=id,
    )
    assert finished(store, id).error.startswith("the worker died")
    eventually(lambda: finished(store, order(store)).status == "Completed")


def test_a_timeout_ends_a_handler_that_listens(store, work):
    work()
    row = finished(store, order(store, max_attempts=1, timeout=0.3, sleep=60))
    assert (row.status, row.error) == ("Failed", "timed out after 0.3 s")


def test_task_timeout_is_for_tasks_that_do_not_say(store, work):
    work(task_timeout=0.3, max_attempts=1)
    assert finished(store, create(store, payload={"sleep": 60})).error == "timed out after 0.3 s"
    assert finished(store, create(store, payload={"sleep": 0.5}, timeout=30)).status == "Completed"


def test_a_timeout_is_tried_again(store, work):
    work()
    row = finished(store, order(store, max_attempts=2, timeout=0.2, sleep=60))
    assert (row.status, row.attempts) == ("Failed", 2)


def test_a_handler_that_does_not_stop_is_given_up_and_its_slot_is_not_lost(store, work, monkeypatch, caplog):
    monkeypatch.setattr(taskmanager, "STOP_SECONDS", 0.2)
    work(concurrency=1)
    row = finished(store, order(store, max_attempts=1, timeout=0.2, deaf=3))
    assert row.error == "timed out after 0.2 s"
    assert f"gave up on the handler of task={row.id}" in caplog.text
    for _ in range(3):
        assert finished(store, order(store)).status == "Completed"
    eventually(lambda: f"refused task={row.id} attempt=1: its handler returned" in caplog.text)
    assert finished(store, order(store)).status == "Completed"


def test_cancel_ends_a_task_in_progress(store, work):
    work()
    id = order(store, sleep=60)
    eventually(lambda: store.read(id).status == "In Progress")
    store.cancel(id)
    row = finished(store, id)
    assert (row.status, row.error, row.attempts) == ("Failed", "canceled", 1)


def test_the_first_reason_to_stop_stands(store):
    store.create()
    [row] = store.claim(1, 30)
    task, asked = taskmanager.Task(row, None), []
    task.on_stop(asked.append)
    task.stop(taskmanager.StopReason.CANCELED)
    task.stop(taskmanager.StopReason.SHUTDOWN, force=True)
    assert (task.stop_reason, asked) == (taskmanager.StopReason.CANCELED, [False, True])


def test_stop_lets_handlers_finish(store, work):
    worker = work()
    id = order(store, sleep=0.5, **{"return": "done"})
    eventually(lambda: store.read(id).status == "In Progress")
    worker.stop()
    assert store.read(id).result == '"done"'


def test_stop_waits_for_a_handler_that_tidies_up(store, work):
    def tidy(task):
        while not task.canceled:
            time.sleep(0.01)
        time.sleep(0.5)
        ended.append(store.read(task.id).status)
    ended = []
    worker = work(tidy)
    id = order(store)
    eventually(lambda: store.read(id).status == "In Progress")
    worker.stop(grace=0.1)
    # not given back while it still ran here
    assert ended == ["In Progress"] and store.read(id).status == "New"


def test_a_task_can_be_canceled_while_the_worker_stops(store, work):
    worker = work()
    id = order(store, sleep=60)
    eventually(lambda: store.read(id).status == "In Progress")
    worker.begin_stop(grace=20)
    store.cancel(id)
    assert finished(store, id).error == "canceled"
    worker.stop()


def test_stop_before_start_and_again_is_no_harm(store):
    worker = Worker(store, Config(**QUICK), obey)
    worker.stop()
    worker = Worker(store, Config(**QUICK), obey)
    worker.start()
    with pytest.raises(RuntimeError):
        worker.start()
    worker.stop()
    worker.stop()
    assert store.listeners == []


def test_stop_takes_no_more_work(store, work):
    worker = work()
    worker.stop()
    id = order(store)
    time.sleep(0.3)
    assert store.read(id).status == "New"


def test_stop_gives_back_what_does_not_finish_in_time(store, work, monkeypatch):
    monkeypatch.setattr(taskmanager, "STOP_SECONDS", 0.3)
    worker = work()
    id, deaf = order(store, sleep=60), order(store, deaf=4)
    eventually(lambda: all(store.read(each).status == "In Progress" for each in (id, deaf)))
    began = time.monotonic()
    worker.stop(grace=0.2)
    assert time.monotonic() - began < 3
    for each in (id, deaf):
        assert (store.read(each).status, store.read(each).attempts) == ("New", 0)


def test_two_workers_share_a_store(store, work):
    work()
    work()
    ids = [order(store, **{"return": n}) for n in range(60)]
    assert [finished(store, id).result for id in ids] == [str(n) for n in range(60)]
    assert {store.read(id).attempts for id in ids} == {1}


@pytest.mark.parametrize(
    "handler",
    [
        "nonsense",
        "no_such_module:f",
        "json:no_such",
        "json:__doc__",
        "exec:",
        "exec:/no/such/program x",
        "exec:'unclosed",
        "http://",
        "https:///path",
        "http://host/a b",
        "http://host/é",
        "http://host:port/",
        "tests.handlers:never",
        "json:",
    ],
)
def test_a_handler_that_can_not_be_used_is_named(handler):
    with pytest.raises(BadSetting, match="HANDLER=") as error:
        taskmanager.load_handler(handler)
    assert "\n" not in str(error.value)


def test_a_password_in_a_handlers_address_is_not_said():
    with pytest.raises(BadSetting) as error:
        taskmanager.load_handler("http://user:secret@[::bad/path")
    assert "secret" not in str(error.value)


def test_old_tasks_are_deleted(store, work):
    id = create(store)
    [claim] = store.claim(1, 30)
    store.complete([(id, claim.attempt, None)])
    work(retention_days=0)
    eventually(lambda: store.list_tasks() == [])


def test_delete_old_is_off_by_default(store, work):
    id = order(store)
    work()
    finished(store, id)
    set_time(store, id, "updated_at", -3000 * 86400)
    time.sleep(0.3)
    assert store.read(id).status == "Completed"
