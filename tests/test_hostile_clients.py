"""Clients that want to stop the service for the others.

Requests that are slow to read, that never end or that mean two things, bodies and answers that fill memory
and disk, crowds of connections.
"""

import contextlib
import http.client
import json
import os
import socket
import tempfile
import threading
import time

import pytest

import taskmanager
from helpers import connect, eventually, http as send, is_problem, raw
from taskmanager import MAX_HEADER_BYTES, MAX_IN_MEMORY, Config, Dispatcher, FairQueue, Request

pytestmark = pytest.mark.sqlite

POST = b"POST /tasks HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def first_line(url, request):
    """Send bytes and leave the connection open; the first line that comes back at once, not at a timeout."""
    with connect(url, request) as connection:
        return connection.recv(65536).split(b"\r\n")[0].decode()


def read(request, piece=None):
    """What becomes of the bytes of a request that come in pieces of so many bytes."""
    found = Request()
    while request and not found.completed:
        taken = found.received(request[:piece])
        request = request[taken:]
    return found


# What is slow to read

SLOW = {
    "blanks before a value": lambda n: b"GET /livez HTTP/1.1\r\nHost: x\r\nX:"
    + b" " * n
    + b"a\r\n\r\n",  # once 17 s, with 65,000
    "tabs": lambda n: b"GET /livez HTTP/1.1\r\nHost: x\r\nX:" + b"\t " * (n // 2) + b"\x01\r\n\r\n",
    "folded lines": lambda n: b"GET /livez HTTP/1.1\r\nHost: x\r\nX: a\r\n" + b" \r\n" * (n // 3) + b"\r\n",
    "words": lambda n: b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a " * (n // 2) + b"\x01\r\n\r\n",
    "one field again and again": lambda n: b"GET /livez HTTP/1.1\r\nHost: x\r\n"
    + b"a:\r\n" * (n // 4)
    + b"\r\n",
    "digits in the first line": lambda n: b"GET a://" + b"1" * n + b" X\r\n\r\n",  # once minutes
    "an address": lambda n: b"GET a://" + b"1" * n + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "what is escaped": lambda n: b"GET /" + b"%41" * (n // 3) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a coding": lambda n: POST + b"Transfer-Encoding:" + b"," * n + b"\r\n\r\n",
    "a length": lambda n: POST + b"Content-Length: " + b"1" * n + b"\r\n\r\n",
    "a name": lambda n: b"GET /livez HTTP/1.1\r\nHost: " + b"a:" * (n // 2) + b"/\r\n\r\n",
    "a line of a chunk": lambda n: CHUNKED + b"1;" + b"a=b;" * (n // 4),
    "a quoted one": lambda n: CHUNKED + b'1;a="' + b"\\a" * (n // 2) + b"\x01",
    "a trailer": lambda n: CHUNKED + b"0\r\n" + b"a: b\r\n" * (n // 6),
    "small chunks": lambda n: CHUNKED + b"1\r\n \r\n" * (n // 6),
}


def seconds(request, piece):
    def once():
        begun = time.process_time()
        read(request, piece)
        return time.process_time() - begun

    return min(once() for _ in range(3))


@pytest.mark.parametrize("piece", [4096, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW)
def test_twice_as_long_is_at_most_three_times_as_slow_to_read(make, piece):
    def is_slower():
        short, long = (seconds(make(n), piece) for n in (7_000, 14_000))
        return long >= 3 * short + 0.001
    # The machine itself may be slower for a moment; what grows as the square is four times as slow each time.
    assert not all(is_slower() for _ in range(5))


@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW)
def test_what_is_slow_to_read_keeps_nobody_waiting(serve, store, make):
    api = serve(store)
    with connect(api) as hostile:
        with contextlib.suppress(ConnectionError):      # refused before the end
            hostile.sendall(make(60_000))
        begun = time.monotonic()
        assert send("GET", f"{api}/livez").status == 200
        assert time.monotonic() - begun < 5


def test_a_head_that_is_too_large_is_refused(api):
    assert " 431 " in first_line(api, b"GET /tasks HTTP/1.1\r\nX: " + b"x" * MAX_HEADER_BYTES)
    assert " 431 " in first_line(api, b"GET /tasks HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 100 + b"\r\n")
    assert " 200 " in first_line(api, b"GET /tasks HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 99 + b"\r\n")
    assert " 414 " in first_line(api, b"GET /tasks?status=" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")


# Chunks

BODY = b'{"payload": "' + b"x" * 100 + b'"}'
IN_CHUNKS = (
    CHUNKED
    + b"".join(b"%X;a=b\r\n%s\r\n" % (len(BODY[n : n + 7]), BODY[n : n + 7]) for n in range(0, len(BODY), 7))
    + b"0\r\nX-A: b\r\n\r\n"
)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 11, 13, 64, 100_000])
def test_a_body_in_chunks_may_come_in_any_pieces(piece):
    found = read(IN_CHUNKS + b"GET / HTTP/1.1\r\n", piece)
    assert found.completed
    assert not found.error
    assert found.get_body_stream().read() == BODY
    assert found.headers["CONTENT_LENGTH"] == str(len(BODY))


def test_what_stands_behind_a_body_in_chunks_is_not_taken():
    request = Request()
    rest = IN_CHUNKS + b"GET / HTTP/1.1\r\n"
    while not request.completed:
        rest = rest[request.received(rest) :]
    assert rest == b"GET / HTTP/1.1\r\n"


def test_a_body_of_many_small_chunks_is_taken(api, store):
    text = b'{"payload": "' + b"x" * 5000 + b'"}'
    assert b" 201 " in raw(
        api,
        CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        + b"".join(b"1\r\n%c\r\n" % byte for byte in text)
        + b"0\r\n\r\n",
    )
    assert json.loads(store.read(1).payload) == "x" * 5000


@pytest.mark.parametrize(
    "sent",
    [
        b"5;" + b"a" * 9000,
        b"0\r\n" + b"a: b\r\n" * 2000,
        b"5;a\x00\r\n",
        b"x",
        b"-1\r\n",
        b"0x5\r\n",
        b" 5\r\n",
        b"5 \r\n",
        b"5\n",
        b"\r\n",
        b"1\r\nab",
        b"1\r\na\n1",
        b"1" * 16,
        b"1\r\na\rb",
    ],
    ids=[
        "a line without end",
        "a trailer without end",
        "NUL",
        "no number",
        "a negative one",
        "0x",
        "a blank before",
        "a blank behind",
        "no CR",
        "no size",
        "too much",
        "no CRLF behind",
        "too large",
        "a bare CR",
    ],
)
def test_what_is_no_chunk_is_refused_at_once(api, store, sent):
    assert " 400 " in first_line(api, CHUNKED + sent)
    assert store.list_tasks() == []


# What can be read in two ways

HIDDEN = b"0\r\n\r\nPOST /tasks HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head, status",
    [
        (b"POST /tasks HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n", 400),
        (b"POST /tasks HTTP/1.2\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 505),
        (b"POST /tasks\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n", 400),
        (POST + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: ,chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding:\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
        (POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (POST + b"Content-Length: +5\r\n\r\n", 400),
        (POST + b"Content-Length: 5, 5\r\n\r\n", 400),
        (POST + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n", 400),
        (b" " + POST + b"\r\n", 400),
        (POST.replace(b" HTTP", b"  HTTP") + b"\r\n", 400),
    ],
    ids=[
        "HTTP/1.0",
        "HTTP/1.2",
        "HTTP/0.9",
        "twice",
        "twice in a line",
        "folded",
        "folded behind another",
        "an empty one before",
        "empty",
        "with a parameter",
        "two codings",
        "chunked not last",
        "a control character",
        "a blank before the colon",
        "both",
        "two lengths",
        "a sign",
        "a list",
        "a long number",
        "a blank before",
        "two blanks",
    ],
)
def test_no_request_hides_in_another(api, store, head, status):
    assert f" {status} " in first_line(api, head + HIDDEN)
    assert store.list_tasks() == []


def test_an_underscore_makes_no_other_header(api):
    # "Content_Length" would be CONTENT_LENGTH in the environment of WSGI, and a proxy does not know it.
    assert " 201 " in first_line(api, POST + b"Content_Length: 5\r\nTransfer_Encoding: chunked\r\n\r\n")


# A clear answer at once


@pytest.mark.parametrize(
    "sent, status, detail",
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500), 400, "without TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2.0"),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "CRLF"),
        (b"get / HTTP/1.1\r\n", 400, "METHOD"),
        (b"\x00\x01", 400, "METHOD"),
        (b"*1\r\n$4\r\nPING\r\n", 400, "METHOD"),
        (b"AMQP\x00\x00\x09\x01", 400, "METHOD"),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501, "chunked"),
        (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400, "once"),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "OPTIONS"),
        (POST + b"Expect: 100-continue\r\nContent-Length: 1048577\r\n\r\n", 413, "1048576"),
        (POST + b"Content-Length: 4\r\n\r\n\xef\xbb\xbf1", 400, "byte order mark"),
        (POST + b"Content-Length: 6\r\n\r\n\xff\xfe{\x00}\x00", 400, "not UTF-8"),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 404, "nothing"),
    ],
    ids=[
        "TLS",
        "HTTP/2",
        "LF",
        "small letters",
        "binary",
        "Redis",
        "AMQP",
        "an unknown coding",
        "a repeated one",
        "GET *",
        "a large body that asks first",
        "a byte order mark",
        "UTF-16",
        "a proxy's client",
    ],
)
def test_a_client_of_another_protocol_is_told_so_at_once(api, sent, status, detail):
    with connect(api, sent) as connection:
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert f" {status} ".encode() in head
        assert b"application/problem+json" in head
        assert detail in json.loads(body or connection.recv(65536))["detail"]


def test_options_of_the_whole_service_names_all_methods(api):
    head, _, body = raw(api, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nAllow: GET, HEAD, POST, DELETE, OPTIONS\r\n" in head
    assert body == b""


def test_blank_lines_before_a_request_do_no_harm(api):
    assert " 200 " in first_line(api, b"\r\n\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")


def test_urgent_data_is_data(serve, store, caplog):
    with connect(api := serve(store), b"GET /live") as connection:
        connection.send(b"z", socket.MSG_OOB)
        time.sleep(0.1)
        connection.sendall(b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert send("GET", f"{api}/livez").status == 200
    # waitress warns when a request had to wait for a thread.
    assert [record for record in caplog.records if record.name != "waitress.queue"] == []


# Memory and disk


def kept(server):
    return [channel.kept for channel in list(server.active_channels.values())]


def test_of_a_body_that_is_too_large_nothing_is_stored(server, store):
    large = server(store)
    for head in (POST + b"Content-Length: 9000000\r\n\r\n", CHUNKED + b"895440\r\n"):
        with connect(large.url, head + b" " * 900_000) as connection:
            eventually(lambda: kept(large) == [900_000])
            connection.sendall(b" " * 200_000)
            eventually(lambda: kept(large) == [0])
            connection.sendall(b" " * 7_900_000 + (b"\r\n0\r\n\r\n" if head.startswith(CHUNKED) else b""))
            assert b" 413 " in connection.recv(65536)  # for the client was let to the end of it
        eventually(lambda: kept(large) == [])


def large_task(store):
    store.create([taskmanager.new_task({"payload": "x" * 1_000_000})])
    return b"GET /tasks/1 HTTP/1.1\r\nHost: x\r\n\r\n"


def test_an_answer_waits_on_disk_and_what_was_read_waits_no_longer(server, store):
    asked, slow = large_task(store), server(store)
    with connect(slow.url, asked, buffer=4096) as connection:
        [channel] = eventually(
            lambda: [each for each in slow.active_channels.values() if each.kept > 500_000]
        )
        eventually(lambda: channel.outbufs[0].overflowed)  # into a file
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert len(answer.read()) > 1_000_000
        eventually(lambda: kept(slow) == [0])  # and the connection is still there


def test_head_and_body_of_an_answer_are_sent_together(api, monkeypatch):
    sent, send_some = [], taskmanager.Channel.send
    monkeypatch.setattr(taskmanager.Channel, "send",
                        lambda channel, data, **more: sent.append(data) or send_some(channel, data, **more))
    assert send("GET", f"{api}/livez").json == {"status": "ok"}
    [answer] = sent
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b'{"status": "ok"}')


def test_a_client_that_reads_too_slowly_is_cut_off(server, store):
    asked, slow = large_task(store), server(store)
    slow.adj.channel_timeout = 0.5
    came = 0
    with connect(slow.url, asked, buffer=4096) as connection, contextlib.suppress(ConnectionError):
        while piece := connection.recv(4000):  # five seconds for the whole
            came += len(piece)
            time.sleep(0.02)
    assert 0 < came < 1_000_000
    eventually(lambda: not slow.active_channels)


def test_the_slowest_client_is_cut_off_where_space_runs_short(server, store, monkeypatch):
    monkeypatch.setattr(taskmanager, "MAX_BUFFERED", 2_500_000)
    small = server(store)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(5):
            clients.append(
                stack.enter_context(
                    connect(small.url, POST + b"Content-Length: 1000000\r\n\r\n" + b" " * 999_999)
                )
            )
            eventually(lambda: len(kept(small)) == min(len(clients), 3) or sum(kept(small)) <= 2_500_000)
        eventually(lambda: sum(kept(small)) <= 2_500_000)
        clients[-1].sendall(b" ")
        assert clients[-1].recv(65536).startswith(b"HTTP/1.1 201 ")
        clients[0].settimeout(20)
        with contextlib.suppress(ConnectionError):
            assert clients[0].recv(1) == b""


def test_large_bodies_are_refused_where_too_many_wait(server, store, monkeypatch):
    monkeypatch.setattr(taskmanager, "MAX_BUFFERED", 0)
    full = server(store)
    full.queued = 1
    full.maintenance = lambda now: None
    url = full.url
    answer = send("POST", f"{url}/tasks", {"payload": "x" * 90_000})
    assert "large bodies" in is_problem(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    assert send("POST", f"{url}/tasks", {"payload": 1}).status == 201


def test_a_large_body_takes_no_place_of_those_who_wait(api):
    # There are few threads for large bodies, which nobody may hold for a minute; Prefer is a wish.
    for size, applied in ((10, "wait=1"), (90_000, None)):
        answer = send("POST", f"{api}/tasks", {"payload": "x" * size, "delay": 3600}, Prefer="wait=1")
        assert (answer.status, answer.headers["Preference-Applied"]) == (201, applied)


def test_a_folder_for_temporary_files_that_is_missing_is_told_at_the_start(serve, store, monkeypatch, caplog):
    # A container whose root is read-only, without a /tmp.
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    api = serve(store)
    [record] = caplog.records
    assert "no temporary file" in record.getMessage()
    assert "TMPDIR" in record.getMessage()
    assert f"{MAX_IN_MEMORY // 1024} KiB" in record.getMessage()
    assert send("POST", f"{api}/tasks", {"payload": "x" * 50_000}).status == 201
    assert "can't be stored" in is_problem(send("POST", f"{api}/tasks", {"payload": "x" * 90_000}), 503)
    assert send("GET", f"{api}/livez").status == 200


# Crowds


def test_a_crowd_that_only_connects_keeps_nobody_waiting(server, store, monkeypatch):
    # Once a tenth was let go a second: twenty seconds.
    monkeypatch.setattr(taskmanager, "MAX_CONNECTIONS", 50)
    crowded = server(store)
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(connect(crowded.url))
        begun = time.monotonic()
        assert send("GET", f"{crowded.url}/livez").status == 200
        assert time.monotonic() - begun < 8
        assert len(crowded.active_channels) <= 60


def test_many_requests_at_once_are_answered_one_by_one(server):
    seen = []

    def app(environ, start):
        seen.append(environ["PATH_INFO"])
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    many = server(app, threads=2)
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(200))
    with connect(many.url, requests) as connection:
        [channel] = eventually(lambda: list(many.active_channels.values()))
        most, came = 0, b""
        while came.count(b"\r\n\r\nok") < 200:
            most = max(most, len(channel.requests))
            came += connection.recv(1000)
    assert seen == [f"/{n}" for n in range(200)] and most <= 1


def test_a_client_that_asks_for_much_again_and_again_does_not_keep_the_others_waiting(server):
    done = []

    def app(environ, start):
        if environ["PATH_INFO"] == "/much":
            time.sleep(0.1)
            done.append(1)
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    busy = server(app, threads=2)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(busy.url, b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n"))
        eventually(lambda: done)
        assert send("GET", f"{busy.url}/little").status == 200
        assert len(done) < 30  # of 60 that came before it


def test_a_service_whose_threads_are_all_busy_is_alive(server):
    busy, free = threading.Semaphore(0), threading.Event()

    def app(environ, start):
        if environ["PATH_INFO"] != "/livez":
            busy.release()
            free.wait(20)
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    small = server(app, threads=2)
    with contextlib.ExitStack() as stack:
        for path in (b"/a", b"/b", b"/c"):
            request = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
            stack.enter_context(connect(small.url, request))
        assert busy.acquire(timeout=10) and busy.acquire(timeout=10)
        begun = time.monotonic()
        assert send("GET", f"{small.url}/livez").status == 200
        assert time.monotonic() - begun < 5
        free.set()


def test_a_fair_queue_takes_turns_and_leaves_a_thread_free():
    class Waiting:
        def __init__(self, path):
            self.requests = [Request()]
            self.requests[0].path = path

    line = FairQueue(4)
    for path in ("/a", "/a", "/a", "/a", "/a", "/b", "/c"):
        line.append(Waiting(path))
    order = []
    while line:
        order.append(line.popleft().requests[0].path)
    assert order == ["/a", "/b", "/c", "/a", "/a"]
    assert not line  # two are left, until one of the three is done
    line.served(("", "/a", False))
    assert line.popleft().requests[0].path == "/a" and not line


def test_who_waits_on_a_thread_apart_gives_no_other_a_thread():
    dispatcher, waits, asks = Dispatcher(Config(threads=2), threading.Event()), Request(), Request()
    waits.headers["PREFER"] = "wait=10"
    dispatcher.queue.running[asks.kind] = 2
    dispatcher.served(waits)
    assert dispatcher.queue.running[asks.kind] == 2
    dispatcher.served(asks)
    assert dispatcher.queue.running[asks.kind] == 1
    dispatcher.shutdown()
    assert dispatcher.closing.is_set()
