"""`Prefer: wait=N`: a request that is held until its task is finished, or until there is one to claim."""

import queue
import threading
import time

import pytest

import taskmanager
from helpers import Waiter, create, eventually, full, http as send, is_problem, raising, raw, waiting
from taskmanager import NewTask, Unavailable, new_task


def claimer(url, **said):
    return Waiter(url, "POST", "/tasks/claim", said)


def fill(url, places):
    return waiting(url, *(Waiter(url) for _ in range(places)))


def finish(store, id):
    [claim] = [claim for claim in store.claim(1000, 60) if claim.id == id]
    store.complete([(id, claim.attempt, '"done"')])


# Until a task is finished

def test_get_is_answered_when_the_task_is_finished(store, serve, work):
    api, go = serve(store, waiters=1), threading.Event()
    store.create([new_task({"payload": "ping"})])
    [waiter] = fill(api, 1)
    work(lambda task: go.wait(20) and "pong")
    eventually(lambda: store.read(1).status == "In Progress")
    assert waiter.waits()
    go.set()
    answer = waiter.answer()
    assert (answer.status, answer.json["status"], answer.json["result"]) == (200, "Completed", "pong")
    assert answer.headers["Preference-Applied"] == "wait=60"
    assert answer.headers["ETag"] == send("GET", f"{api}/tasks/1").headers["ETag"]


def test_post_is_answered_with_the_finished_task(store, serve, work):
    api = serve(store, waiters=1)
    work(lambda task: task.payload * 2)
    answer = send("POST", f"{api}/tasks", {"payload": 21}, Prefer="wait=20")
    assert (answer.status, answer.json["status"], answer.json["result"]) == (201, "Completed", 42)
    assert next(iter(answer.json)) == "id"
    assert answer.headers["Location"] == "/tasks/1"
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert answer.headers["Content-Type"] == "application/json"


def test_a_failure_and_a_cancellation_end_the_waiting_too(store, serve, work):
    api = serve(store, waiters=2)
    store.create([new_task({"delay": 3600}), new_task({"max_attempts": 1})])
    waiters = waiting(api, Waiter(api), Waiter(api, path="/tasks/2"))
    work(lambda task: 1 / 0)
    send("POST", f"{api}/tasks/1/cancel")
    assert waiters[0].answer().json["error"] == "canceled"
    assert "ZeroDivisionError" in waiters[1].answer().json["error"]


def test_a_request_that_waited_long_enough_is_answered_with_the_task_as_it_is(store, serve):
    api, began = serve(store, waiters=2), time.monotonic()
    store.create([new_task({"delay": 3600})])
    waiters = Waiter(api, wait=1), Waiter(api, "POST", "/tasks", {"delay": 3600}, wait=1)
    read, create = waiters[0].answer(), waiters[1].answer()
    assert time.monotonic() - began >= 1
    assert [
        (answer.status, answer.json["id"], answer.json["status"], answer.headers["Preference-Applied"])
        for answer in (read, create)
    ] == [(200, 1, "New", "wait=1"), (201, 2, "New", "wait=1")]
    answer = send("POST", f"{api}/tasks/claim", Prefer="wait=1")
    assert (answer.status, answer.json, answer.headers["Preference-Applied"]) == (200, [], "wait=1")


def test_the_deletion_of_a_task_ends_the_waiting_for_it(store, serve):
    api = serve(store, waiters=2)
    create = Waiter(api, "POST", "/tasks", Idempotency_Key="key")
    eventually(store.list_tasks)
    create, read = waiting(api, create, Waiter(api))
    assert send("DELETE", f"{api}/tasks/1").status == 204
    answer = create.answer()
    assert (answer.status, answer.body, answer.headers["Location"]) == (201, b'{"id": 1}', "/tasks/1")
    is_problem(read.answer(), 404)


def test_an_outage_of_the_database_ends_the_waiting(store, serve, monkeypatch):
    api = serve(store, waiters=2)
    create = Waiter(api, "POST", "/tasks", Idempotency_Key="key")
    eventually(store.list_tasks)
    create, read = waiting(api, create, Waiter(api))

    monkeypatch.setattr(store, "_execute", raising(Unavailable("the database can't be reached")))
    answer = create.answer()
    # it was created, and a second try would create another
    assert (answer.status, answer.body) == (201, b'{"id": 1}')
    answer = read.answer()
    is_problem(answer, 503)
    assert answer.headers["Retry-After"]


@pytest.mark.sqlite
class TestTheHeader:
    @pytest.mark.parametrize(
        "header, seconds",
        [
            ("wait=60", 60),
            ("wait=61", 60),
            ("wait=3600", 60),
            ("wait=999999999", 60),
            ("wait=" + "9" * 30, 60),
            ("wait=5", 5),
            ("wait=0", 0),
            ("wait=007", 7),
            ("WAIT=5", 5),
            ('wait="5"', 5),
            ("wait = 5", 5),
            ("respond-async, wait=5", 5),
            ("wait=5, handling=lenient", 5),
            ("wait=5; foo=bar", 5),
            ("return=minimal,wait=5", 5),
            ("wait=5, wait=6", 5),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_what_was_understood_is_said_even_of_a_finished_task(self, store, serve, header, seconds):
        api = serve(store)
        store.create()
        finish(store, 1)
        answer = send("GET", f"{api}/tasks/1", Prefer=header)
        assert (answer.status, answer.headers["Preference-Applied"]) == (200, f"wait={seconds}")

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "wait",
            "wait=",
            "wait=abc",
            "wait=-1",
            "wait=1.5",
            "wait=5s",
            "wait=5 6",
            "await=5",
            "x-wait=5",
            "wait:5",
            "wait=\xe9",
            "wait=\u0665".encode().decode("latin-1"),
            'wait="5',
            "respond-async",
            ", ,;=",
        ],
        ids=ascii,
    )
    def test_what_is_malformed_is_ignored(self, store, serve, header):
        api = serve(store, waiters=1)
        answer = send("POST", f"{api}/tasks", {"delay": 3600}, Prefer=header)
        assert (answer.status, answer.body, answer.headers["Preference-Applied"]) == (201, b'{"id": 1}', None)
        answers = [
            send("GET", f"{api}/tasks/1", Prefer=header),
            send("POST", f"{api}/tasks/claim", Prefer=header),
        ]
        assert [(answer.status, answer.headers["Preference-Applied"]) for answer in answers] == [
            (200, None),
            (200, None),
        ]

    def test_an_array_is_not_waited_for(self, store, serve):
        answer = send("POST", f"{serve(store, waiters=1)}/tasks", [{}, {}], Prefer="wait=60")
        assert (answer.status, answer.json, answer.headers["Preference-Applied"]) == (201, [1, 2], None)

    def test_errors_are_not_waited_for(self, store, serve):
        api = serve(store, waiters=1)
        is_problem(send("GET", f"{api}/tasks/7", Prefer="wait=60"), 404)
        is_problem(send("POST", f"{api}/tasks", {"priority": "high"}, Prefer="wait=60"), 400)
        is_problem(send("POST", f"{api}/tasks/claim", {"limit": 0}, Prefer="wait=60"), 400)

    def test_a_replay_waits_for_the_same_task(self, store, serve, work):
        api = serve(store, waiters=2)
        waiters = [Waiter(api, "POST", "/tasks", {"payload": 1}, Idempotency_Key="key") for _ in range(2)]
        eventually(store.list_tasks)
        waiters = waiting(api, *waiters)
        work(lambda task: "done")
        assert {
            (answer.status, answer.json["id"], answer.json["result"])
            for answer in (waiter.answer() for waiter in waiters)
        } == {(201, 1, "done")}

    def test_a_client_that_knows_the_task_waits_for_the_next_version(self, store, serve):
        api = serve(store, waiters=1)
        store.create()
        store.claim(1, 60)
        tag = send("GET", f"{api}/tasks/1").headers["ETag"]
        answer = send("GET", f"{api}/tasks/1", If_None_Match=tag, Prefer="wait=0")
        assert (answer.status, answer.headers["Preference-Applied"], answer.body) == (304, "wait=0", b"")
        [waiter] = waiting(api, Waiter(api, If_None_Match=tag))
        store.complete([(1, 1, '"done"')])
        assert waiter.answer().json["status"] == "Completed"

    def test_head_waits_as_get_does(self, store, serve):
        api = serve(store, waiters=1)
        store.create()
        [waiter] = waiting(api, Waiter(api, "HEAD"))
        finish(store, 1)
        answer = waiter.answer()
        assert (answer.status, answer.body, answer.headers["Preference-Applied"]) == (200, b"", "wait=60")


# Only so many wait

@pytest.mark.parametrize("threads", [1, 4])
def test_others_are_served_while_ten_times_as_many_want_to_wait_as_may(store, serve, threads):
    api = serve(store, threads=threads, waiters=4)
    store.create([new_task({"delay": 3600}), NewTask()])
    finish(store, 2)
    waiters = fill(api, 4)
    others = [claimer(api) if n % 2 else Waiter(api) for n in range(36)]
    for other in others:        # at once, for their wish can't be granted
        answer = other.answer()
        assert (answer.status, answer.headers["Preference-Applied"]) == (200, None)
    assert [
        send(method, api + path).status
        for method, path in (
            ("GET", "/livez"),
            ("GET", "/tasks"),
            ("POST", "/tasks"),
            ("POST", "/tasks/claim"),
            ("DELETE", "/tasks/2"),
            ("GET", "/tasks/1"),
        )
    ] == [200, 200, 201, 200, 204, 200]
    answer = send("POST", f"{api}/tasks", Prefer="wait=60")
    assert (
        answer.status,
        answer.json["id"],
        answer.json["status"],
        answer.headers["Preference-Applied"],
        answer.headers["Location"],
    ) == (201, 4, "New", None, "/tasks/4")
    assert all(waiter.waits() for waiter in waiters)
    send("POST", f"{api}/tasks/1/cancel")
    assert {waiter.answer().json["status"] for waiter in waiters} == {"Failed"}
    assert not full(api, 4)


def test_what_is_finished_needs_no_place(store, serve):
    api = serve(store, waiters=1)
    store.create([new_task({"delay": 3600}), NewTask()])
    finish(store, 2)
    fill(api, 1)
    assert send("GET", f"{api}/tasks/2", Prefer="wait=60").headers["Preference-Applied"] == "wait=60"
    store.create()
    answer = send("POST", f"{api}/tasks/claim", Prefer="wait=60")
    assert (answer.json[0]["id"], answer.headers["Preference-Applied"]) == (3, "wait=60")


def test_nobody_waits_where_there_are_no_places(store, serve):
    api = serve(store, waiters=0)
    assert send("POST", f"{api}/tasks", Prefer="wait=60").json["status"] == "New"
    assert full(api)
    assert [task["id"] for task in send("POST", f"{api}/tasks/claim", Prefer="wait=60").json] == [1]
    answer = send("POST", f"{api}/tasks/claim", Prefer="wait=60")
    assert (answer.json, answer.headers["Preference-Applied"]) == ([], None)


@pytest.mark.parametrize("rudely", [False, True], ids=["politely", "rudely"])
def test_a_waiter_that_hangs_up_frees_its_place(store, serve, rudely):
    api = serve(store, waiters=3)
    store.create([new_task({"delay": 3600})])
    read, claim, create = waiting(
        api, Waiter(api), claimer(api), Waiter(api, "POST", "/tasks", {"delay": 3600}, Idempotency_Key="key")
    )
    others = []
    for waiter in (read, claim, create):
        assert create.waits() and all(other.waits() for other in others)
        waiter.hang_up(rudely)
        eventually(lambda: not full(api))
        others += fill(api, 1)
    assert len(store.list_tasks()) == 2       # what was created stays


def test_a_client_that_sends_no_more_is_answered_at_once(store, serve):
    api = serve(store, waiters=1)
    store.create()
    assert raw(api, b"GET /tasks/1 HTTP/1.0\r\nPrefer: wait=60\r\n\r\n").startswith(b"HTTP/1.0 200 OK\r\n")
    assert not full(api)


# Until there is a task to claim

def test_a_claim_that_waits_gets_a_task_that_is_created_later(store, serve):
    api = serve(store, waiters=1)
    store.create([new_task({"delay": 3600})])
    [waiter] = waiting(api, claimer(api, limit=5))
    send("POST", f"{api}/tasks", {"payload": "late"})
    answer = waiter.answer()
    assert [(task["id"], task["payload"], task["attempt"]) for task in answer.json] == [(2, "late", 1)]
    assert answer.headers["Preference-Applied"] == "wait=60"


def test_a_claim_that_waits_gets_a_task_of_any_of_its_kinds(store, serve):
    api = serve(store, waiters=1, poll_seconds=3600)
    [waiter] = waiting(api, claimer(api, kinds=["mail", "report"]))
    store.create()
    store.create([new_task({"kind": "report"})])
    assert [task["kind"] for task in waiter.answer().json] == ["report"]


def test_a_claim_that_waits_gets_what_another_process_created(store, serve, database):
    api = serve(store, waiters=1, poll_seconds=0.05)
    store.create([new_task({"delay": 3600})])
    [waiter] = waiting(api, claimer(api))
    taskmanager.open_store(database).create()
    assert waiter.answer().json[0]["id"] == 2


def test_a_claim_that_waits_gets_what_has_become_due_failed_or_was_given_back(store, serve, work):
    api = serve(store, waiters=1)
    work(concurrency=0)
    store.create([new_task({"delay": 3600})])
    schedule = "update tasks set run_at = created_at where id = 1 returning id"
    for n, move in enumerate(
        [
            lambda: store._execute(schedule),
            lambda: send("POST", f"{api}/tasks/1/fail", {"attempt": 1, "error": "why", "delay": 0}),
            lambda: send("POST", f"{api}/tasks/1/release", {"attempt": 2}),
            lambda: store._execute("update tasks set lease_until = null where id = 1 returning id"),
        ],
        1,
    ):
        [waiter] = waiting(api, claimer(api))
        move()
        assert [(task["id"], task["attempt"]) for task in waiter.answer().json] == [(1, n)]


def test_each_claim_that_waits_gets_one_of_many_tasks(store, serve):
    api = serve(store, waiters=5, poll_seconds=3600)
    store.create([new_task({"delay": 3600})])
    waiters = waiting(api, *(claimer(api) for _ in range(5)))
    send("POST", f"{api}/tasks", [{}] * 5)
    assert sorted(task["id"] for waiter in waiters for task in waiter.answer().json) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("rudely", [False, True], ids=["politely", "rudely"])
def test_a_client_that_has_hung_up_takes_no_task_from_the_others(store, serve, rudely):
    api = serve(store, waiters=2, poll_seconds=3600)
    store.create([new_task({"delay": 3600})])
    gone, waiter = waiting(api, claimer(api), claimer(api))
    gone.hang_up(rudely)
    send("POST", f"{api}/tasks")
    assert [(task["id"], task["attempt"]) for task in waiter.answer().json] == [(2, 1)]
    eventually(lambda: not full(api))
    send("POST", f"{api}/tasks")
    assert store.read(3).attempt == 0


def test_a_claim_is_not_made_for_a_client_that_hung_up_before_it_was_its_turn(store, serve, monkeypatch):
    api, entered, go = serve(store, threads=1, waiters=0), threading.Event(), threading.Event()
    monkeypatch.setattr(store, "ping", lambda: entered.set() or go.wait(20))
    busy = Waiter(api, path="/readyz")      # with which the only thread is busy
    assert entered.wait(20)
    claimer(api).hang_up()
    store.create()
    go.set()
    # the latter behind the claim
    assert busy.answer().status == send("GET", f"{api}/tasks").status == 200
    assert store.read(1).attempt == 0


# The end

def test_a_stop_answers_all_requests_that_wait(start, database):
    program = start("taskmanager.py", DATABASE_URL=database, WORKER="off", WAITERS=6)
    api = program.url
    send("POST", f"{api}/tasks", {"delay": 3600})
    waiters = waiting(
        api,
        Waiter(api),
        claimer(api),
        Waiter(api, "POST", "/tasks", {"delay": 3600}, Idempotency_Key="key"),
        claimer(api),
        Waiter(api, "HEAD"),
        Waiter(api),
    )
    assert program.stop() == 0
    assert [waiter.answer().status for waiter in waiters] == [200, 200, 201, 200, 200, 200]
    assert "Traceback" not in program.log()
    assert "still running" not in program.log()


def test_a_new_task_wakes_a_claim_for_each_set_of_kinds_that_is_waited_for(store):
    """One that waits for another kind would find nothing, and the one for this kind would go on waiting."""
    api = taskmanager.create_app(store)
    wakeups = [api._wakeups.setdefault(frozenset(kinds), queue.Queue(1)) for kinds in ("a", "b", "ab")]
    create(store, kind="b")
    for each in wakeups:
        each.get_nowait()
    del wakeups, each
    assert not api._wakeups
