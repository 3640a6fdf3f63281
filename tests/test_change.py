"""`Prefer: wait=N` with `If-None-Match`: a request that is held until what it asks for has changed."""

import threading
import time

import pytest

from helpers import Waiter, create, eventually, full, http as send, is_problem, sql, waiting
from taskmanager import NewTask, new_task


def tag_of(api, path):
    return send("GET", api + path).headers["ETag"]


def follow(api, path, wait=60, **headers):
    """A request that waits for a change of what is there now."""
    return Waiter(api, path=path, wait=wait, If_None_Match=tag_of(api, path), **headers)


def test_each_change_of_a_task_is_answered(store, serve):
    api = serve(store, waiters=1)
    create(store, payload="a" * 1000)
    seen = []
    for change in (
        lambda: store.claim(1, 60),
        lambda: store.extend([(1, 1, 0.5)], 60),
        lambda: store.retry([(1, 1, "why", 3600)]),
        lambda: store.cancel(1),
    ):
        [waiter] = waiting(api, follow(api, "/tasks/1"))
        change()
        answer = waiter.answer()
        assert (answer.status, answer.headers["Preference-Applied"]) == (200, "wait=60")
        assert answer.headers["ETag"] == tag_of(api, "/tasks/1")
        seen.append((answer.json["status"], answer.json.get("progress"), answer.json.get("error")))
    assert seen == [("In Progress", None, None), ("In Progress", 0.5, None), ("New", None, "why"),
                    ("Failed", None, "canceled")]


def test_what_changes_nothing_that_is_shown_is_not_answered(store, serve):
    api = serve(store, waiters=1)
    create(store)
    store.claim(1, 60)
    waiter = follow(api, "/tasks/1", wait=1)
    store.extend([(1, 1, None)], 600)
    assert waiter.answer().status == 304


@pytest.mark.parametrize("path", ["/tasks/1", "/tasks", "/tasks/1/attempts", "/tasks?status=Failed"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_without_a_change_the_answer_is_304_when_the_time_is_over(store, serve, path, method):
    api = serve(store, waiters=1)
    create(store)
    tag, began = tag_of(api, path), time.monotonic()
    answer = send(method, api + path, If_None_Match=tag, Prefer="wait=1")
    assert 1 <= time.monotonic() - began < 5
    assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", tag)
    assert answer.headers["Preference-Applied"] == "wait=1"


@pytest.mark.parametrize("path", ["/tasks/1", "/tasks", "/tasks/1/attempts"])
def test_what_the_client_does_not_have_is_answered_at_once(store, serve, path):
    api = serve(store, waiters=1)
    create(store)
    answer = send("GET", api + path, If_None_Match='"another"', Prefer="wait=60")
    assert (answer.status, answer.headers["Preference-Applied"]) == (200, "wait=60")
    answer = send("GET", api + path, If_None_Match='"another"')
    assert (answer.status, answer.headers["Preference-Applied"]) == (200, None)
    if path != "/tasks/1":      # that waits for the end
        answer = send("GET", api + path, Prefer="wait=60")
        assert (answer.status, answer.headers["Preference-Applied"]) == (200, None)


def test_a_list_is_answered_when_its_page_is_another(store, serve):
    api = serve(store, waiters=1)
    store.create([NewTask()] * 3)
    [waiter] = waiting(api, follow(api, "/tasks?status=Failed&order=desc&limit=1"))
    store.claim(3, 60)
    store.complete([(2, 1, None)])
    assert waiter.waits()
    store.fail([(3, 1, "why")])
    answer = waiter.answer()
    assert (answer.status, [task["id"] for task in answer.json]) == (200, [3])
    assert 'rel="first"' in answer.headers["Link"]

    [waiter] = waiting(api, follow(api, "/tasks?after=3"))
    store.create()
    assert [task["id"] for task in waiter.answer().json] == [4]
    answer = send("GET", f"{api}/tasks?limit=1", If_None_Match=tag_of(api, "/tasks?limit=1"), Prefer="wait=0")
    assert (answer.status, 'rel="next"' in answer.headers["Link"]) == (304, True)


def test_the_attempts_are_answered_when_one_begins_or_ends(store, serve):
    api = serve(store, waiters=1)
    create(store)
    path, seen = "/tasks/1/attempts", []
    for change in (
        lambda: store.claim(1, 60, "@mailer"),
        lambda: store.retry([(1, 1, "why", 0)]),
        lambda: store.promote() and store.claim(1, 60),
        lambda: store.complete([(1, 2, None)]),
    ):
        [waiter] = waiting(api, follow(api, path))
        change()
        seen.append([(each["attempt"], each.get("outcome")) for each in waiter.answer().json])
    assert seen == [[(1, None)], [(1, "retried")], [(1, "retried"), (2, None)],
                    [(1, "retried"), (2, "completed")]]


def test_several_tags_are_all_known_and_any_is_whatever_there_is(store, serve):
    """RFC 9110, 13.1.2."""
    api = serve(store, waiters=2)
    create(store)
    new = tag_of(api, "/tasks/1")
    store.claim(1, 60)
    running = tag_of(api, "/tasks/1")
    several, weak = f'{new}, {running}', f'"another", W/{running}'
    waiters = waiting(api, *(Waiter(api, If_None_Match=tags) for tags in (several, weak)))
    # It is again as it was, in the second, too.
    sql(store, """update tasks
                  set    status = 'New', uncounted = attempt, lease_until = null, updated_at = created_at
                  where  id = 1""")
    assert [waiters[1].answer().status, waiters[0].waits()] == [200, True]
    store.cancel(1)
    assert waiters[0].answer().json["status"] == "Failed"

    began = time.monotonic()
    assert send("GET", f"{api}/tasks/1", If_None_Match="*", Prefer="wait=1").status == 304
    assert time.monotonic() - began >= 1


def test_the_deletion_of_a_task_is_a_change_too(store, serve):
    api = serve(store, waiters=3)
    create(store)
    waiters = waiting(api, follow(api, "/tasks/1"), follow(api, "/tasks/1/attempts"), follow(api, "/tasks"))
    store.delete(1)
    is_problem(waiters[0].answer(), 404)
    is_problem(waiters[1].answer(), 404)
    assert waiters[2].answer().json == []
    is_problem(send("GET", f"{api}/tasks/1/attempts", If_None_Match="*", Prefer="wait=60"), 404)


def test_only_so_many_wait_and_a_client_that_is_gone_waits_no_more(store, serve):
    api = serve(store, waiters=2)
    create(store)
    waiters = waiting(api, follow(api, "/tasks"), follow(api, "/tasks/1"))
    refused = send("GET", f"{api}/tasks", If_None_Match="*", Prefer="wait=60")
    assert (refused.status, refused.headers["Preference-Applied"]) == (304, None)
    waiters[0].hang_up()
    eventually(lambda: not full(api))
    [waiter] = waiting(api, follow(api, "/tasks/1/attempts"))
    store.claim(1, 60)
    assert (waiter.answer().status, waiters[1].answer().status) == (200, 200)


def test_a_stop_ends_the_waiting(store, server):
    running = server(store, waiters=1)
    create(store)
    [waiter] = waiting(running.url, follow(running.url, "/tasks"))
    threading.Thread(target=running.task_dispatcher.shutdown).start()
    answer = waiter.answer()
    assert (answer.status, answer.headers["Preference-Applied"]) == (304, None)


@pytest.mark.sqlite
def test_what_takes_long_to_read_is_read_rarely(store, serve, monkeypatch):
    api, reads, list_tasks = serve(store, waiters=1), [], store.list_tasks
    store.create([new_task({"payload": "x"})])
    tag = tag_of(api, "/tasks")

    def slow(*args, **kwargs):
        reads.append(time.sleep(0.05))
        return list_tasks(*args, **kwargs)

    monkeypatch.setattr(store, "list_tasks", slow)
    assert send("GET", f"{api}/tasks", If_None_Match=tag, Prefer="wait=2").status == 304
    assert len(reads) <= 4
