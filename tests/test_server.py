"""The threads of the HTTP server: which connections the first one looks at, and the core that all share."""

import os
import threading

import pytest

import taskmanager
from helpers import connect, eventually, http
from taskmanager import Channel

pytestmark = pytest.mark.sqlite

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CORES = os.sched_getaffinity(0)


def cores_of(server):
    """The cores on which each thread of a server may run."""
    threads = {thread.name: thread for thread in threading.enumerate()}
    return [os.sched_getaffinity(threads[name].native_id) for name in threads
            if name.startswith("http-") or name == "first"]


@pytest.fixture
def threads(server, store):
    """A server whose first thread has a name; the names of the others begin with http-."""
    def start():
        found = server(store)
        next(each for each in threading.enumerate() if "run" in each.name).name = "first"
        return found
    return start


def test_the_threads_of_a_server_stay_on_one_core(threads):
    server = threads()
    http("GET", f"{server.url}/livez")
    eventually(lambda: len(cores_of(server)) > 8 and all(len(cores) == 1 for cores in cores_of(server)))
    assert len(set.union(*cores_of(server))) == 1


def test_now_and_then_the_system_may_choose_another_core(threads, monkeypatch):
    calls = []
    monkeypatch.setattr(taskmanager, "CORE_SECONDS", 0.1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {*CORES, 1000})
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: calls.append((thread, len(cores))))
    server = threads()
    for _ in range(2):
        eventually(lambda: http("GET", f"{server.url}/livez").status == 200 and (0, len(CORES) + 1) in calls)
        calls.clear()       # and again
        eventually(lambda: http("GET", f"{server.url}/livez").status == 200 and len(calls) > 8)
        assert {number for thread, number in calls if thread} == {1}


@pytest.mark.parametrize("handler", ["tests.handlers:cores", "exec:nproc"])
def test_what_a_handler_does_may_use_all_cores(start, sqlite_database, handler):
    service = start("taskmanager.py", DATABASE_URL=sqlite_database, HANDLER=handler)
    task = http("POST", f"{service.url}/tasks", Prefer="wait=20").json
    assert int(task["result"]) == len(CORES)


def test_where_the_cores_were_taken_away_the_server_goes_on(threads, monkeypatch):
    def refuse(thread, cores):
        raise OSError(22, "Invalid argument")
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {1000, 1001})
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    server = threads()
    assert {http("GET", f"{server.url}/livez").status for _ in range(3)} == {200}


# Connections

def test_an_idle_connection_is_not_looked_at_when_another_one_is_served(api, monkeypatch):
    asked, readable = [], Channel.readable

    def count(channel):
        asked.append(channel)
        return readable(channel)
    monkeypatch.setattr(Channel, "readable", count)
    idle = [connect(api, GET) for _ in range(200)]
    assert all(b" 200 " in each.recv(1000) for each in idle)
    eventually(lambda: len(set(asked)) == 200)
    asked.clear()
    with connect(api) as connection:
        for _ in range(20):
            connection.sendall(GET)
            assert b" 200 " in connection.recv(1000)
    assert len(set(asked)) < 10     # the last ones were perhaps still asked after their answers
    for each in idle:       # and each of them still works
        each.sendall(GET)
        assert b" 200 " in each.recv(1000)
        each.close()


def test_the_next_request_is_not_read_before_the_answer_is_there(server):
    """Not even when the connection is looked at once too often."""
    entered, open_door = threading.Event(), threading.Event()

    def app(environ, start_response):
        entered.set()
        open_door.wait(20)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    found = server(app)
    with connect(found.url, GET.replace(b"livez", b"a") + GET.replace(b"livez", b"b")) as connection:
        assert entered.wait(20)
        [channel] = found.active_channels.values()
        channel.handle_read()
        assert [request.path for request in channel.requests] == ["/a"]
        open_door.set()
        answers = b""
        while answers.count(b" 200 ") < 2:
            answers += connection.recv(1000)
