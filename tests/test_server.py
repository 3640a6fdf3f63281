"""The threads of the HTTP server: which connections the first one looks at, and the core that all share."""

import errno
import os
import resource
import select
import socket
import threading
import time
import types

import pytest
from waitress import wasyncore

import taskmanager
from helpers import connect, eventually, http
from taskmanager import Channel, Sockets

pytestmark = pytest.mark.sqlite

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CORES = os.sched_getaffinity(0)


@pytest.fixture
def threads(server, store, monkeypatch):
    """A server, and its threads."""
    found = []

    class Noted(taskmanager.OneCore):
        def __init__(self, threads):
            super().__init__(threads)
            found.extend(threads)

    def start():
        monkeypatch.setattr(taskmanager, "OneCore", Noted)
        return server(store), found
    return start


def test_the_threads_of_a_server_stay_on_one_core(threads):
    server, found = threads()
    http("GET", f"{server.url}/livez")

    def are_together():
        cores = {frozenset(os.sched_getaffinity(thread.native_id)) for thread in found}
        return len(cores) == 1 and len(*cores) == 1
    eventually(lambda: http("GET", f"{server.url}/livez").status == 200 and are_together())
    assert len(found) > 8


def test_the_threads_of_an_idle_server_stay_where_the_system_puts_them(threads):
    """It can choose well for busy ones only: of two servers it would put both on one core."""
    server, found = threads()
    for _ in range(3):
        http("GET", f"{server.url}/livez")
    assert {frozenset(os.sched_getaffinity(thread.native_id)) for thread in found} == {frozenset(CORES)}


def test_now_and_then_the_system_may_choose_another_core(threads, monkeypatch):
    calls = []
    monkeypatch.setattr(taskmanager, "CORE_SECONDS", 0.1)
    monkeypatch.setattr(taskmanager, "CORE_CALLS", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {*CORES, 1000})
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: calls.append((thread, len(cores))))
    server, _ = threads()
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
    server, _ = threads()
    assert {http("GET", f"{server.url}/livez").status for _ in range(3)} == {200}


def test_the_thread_that_ran_a_server_may_use_all_cores_afterwards(server, monkeypatch):
    monkeypatch.setattr(taskmanager, "CORE_CALLS", 1)
    cores, found, ended = [], server(lambda environ, start_response: []), threading.Event()

    def run():
        second = taskmanager.make_server(found.application, taskmanager.Config(port=0))
        threading.Timer(0.5, second.begin_stop).start()
        second.run()
        cores.append(os.sched_getaffinity(0))
        second.close()
        ended.set()
    threading.Thread(target=run, daemon=True).start()
    assert ended.wait(20)
    assert cores == [CORES]


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


def test_what_a_thread_has_seen_before_does_not_replace_what_another_one_sees_now():
    """Or an answer would never be sent to its end: the connection would wait for its next request."""
    sockets, seen, answered = Sockets(), threading.Event(), threading.Event()
    ours, clients = socket.socketpair()
    has_answer = False

    def writable():
        found = has_answer
        if not found:
            seen.set()
            answered.wait(0.5)      # a thread may be held up here
        return found

    connection = types.SimpleNamespace(_fileno=ours.fileno(), readable=lambda: not has_answer,
                                       writable=writable)
    sockets[ours.fileno()] = connection
    with ours, clients:
        first = threading.Thread(target=sockets.watch, args=[connection])
        first.start()
        assert seen.wait(20)
        has_answer = True
        sockets.watch(connection)
        answered.set()
        first.join(20)
        assert [events for _, events in sockets.epoll.poll(5)] == [select.EPOLLOUT]


def test_the_next_connection_with_the_number_of_a_closed_one_is_watched_for_what_it_waits_for():
    """Even when a thread still watches the closed one."""
    sockets = Sockets()
    ours, clients = socket.socketpair()
    new = types.SimpleNamespace(_fileno=ours.fileno(), readable=lambda: True, writable=lambda: False)

    def replace():
        if sockets[ours.fileno()] is old:
            del sockets[ours.fileno()]
            sockets[ours.fileno()] = new
        return True

    old = types.SimpleNamespace(_fileno=ours.fileno(), readable=lambda: False, writable=replace)
    with ours, clients:
        sockets[ours.fileno()] = old
        sockets.watch(old)
        assert not sockets.epoll.poll(0)
        clients.sendall(b"x")
        assert [events for _, events in sockets.epoll.poll(5)] == [select.EPOLLIN]


def test_a_socket_that_can_not_be_watched_is_not_kept():
    sockets = Sockets()
    with pytest.raises(OSError):
        sockets[10**6] = types.SimpleNamespace()
    assert not sockets


def test_a_long_answer_of_many_pieces_is_sent_to_a_client_that_reads_slowly(server):
    pieces = [bytes(100_000)] * 50

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(pieces) * len(pieces[0])))])
        return iter(pieces)

    found, length = server(app), 0
    found.adj.outbuf_high_watermark = 1_000_000
    with connect(found.url, GET, buffer=65536) as connection:
        [channel] = eventually(lambda: list(found.active_channels.values()))
        eventually(lambda: channel.total_outbufs_len > 1_000_000)       # now the thread waits
        while length < len(pieces) * len(pieces[0]):
            data = connection.recv(1 << 20)
            assert data
            length += len(data)


def test_a_server_that_has_stopped_keeps_no_connection(server):
    found = server(lambda environ, start_response: [start_response("204 No Content", []) and b""])
    with connect(found.url) as connection:
        eventually(lambda: found.active_channels)
        found.begin_stop()
        assert connection.recv(1000) == b""
        assert not found.active_channels


def test_where_the_files_run_out_idle_clients_make_room_and_the_log_says_so_once(start, sqlite_database):
    service = start("taskmanager.py", DATABASE_URL=sqlite_database)
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (60, 60))
    crowd = [connect(service.url) for _ in range(100)]
    for _ in range(3):
        assert http("GET", f"{service.url}/tasks").status == 200
    assert service.log().count("accepted no connection") == 1
    assert "Traceback" not in service.log()
    for each in crowd:
        each.close()


def test_where_the_files_run_out_and_all_are_busy_the_server_pauses_between_tries(server, monkeypatch):
    tries, entered, open_door = [], threading.Event(), threading.Event()

    def app(environ, start_response):
        entered.set()
        open_door.wait(20)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    def refuse(dispatcher):
        tries.append(dispatcher)
        raise OSError(errno.EMFILE, "Too many open files")

    found = server(app)
    with connect(found.url, GET.replace(b"livez", b"a")) as busy:
        assert entered.wait(20)
        with monkeypatch.context() as context:
            context.setattr(wasyncore.dispatcher, "accept", refuse)
            waiting = connect(found.url, GET)
            eventually(lambda: tries)
            time.sleep(0.5)
            assert len(tries) < 20
        open_door.set()
        assert b" 200 " in busy.recv(1000)
        assert b" 200 " in waiting.recv(1000)
        waiting.close()
