"""What programs and servers say to a worker in the field, and what must become of it."""

import contextlib
import gzip
import json
import os
import resource
import socket
import threading
import time

import pytest

import taskmanager
from helpers import JSON, QUICK, eventually, finished, is_alive
from taskmanager import MAX_BODY, Config, Worker, new_task

pytestmark = pytest.mark.sqlite

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def outcome(store):
    """outcome(HANDLER, task's fields): the task when a worker with that handler has ended it."""

    def outcome(handler, **fields):
        worker = Worker(store, Config(handler=handler, **QUICK))
        worker.start()
        try:
            [id] = store.create([new_task(fields)])
            return finished(store, id)
        finally:
            worker.stop(0)

    return outcome


# A program


def shell(script):
    return f'exec:sh -c "{script}"'


def test_a_program_may_open_its_output_once_more(outcome):
    """As scripts do with `> /dev/stdout` and `> /dev/stderr`: the second opening would empty a file."""
    row = outcome(shell("echo one; echo two > /dev/stdout; echo three"))
    assert row.result == '"one\\ntwo\\nthree"'
    row = outcome(shell("echo one >&2; echo two > /dev/stderr; echo three >&2; exit 3"), max_attempts=1)
    assert row.error == "exit status 3: one\ntwo\nthree"


@pytest.fixture(params=["told", "looking"])
def system(request, monkeypatch):
    """A system that tells when a process has ended (Linux), and one where it has to be looked for (macOS)."""
    if request.param == "looking":
        monkeypatch.delattr(os, "pidfd_open", raising=False)


@pytest.mark.parametrize("child", ["sleep 60", "yes"], ids=["silent", "loud"])
def test_a_child_that_keeps_the_output_open_holds_nobody_up(outcome, system, tmp_path, child):
    """A script that starts a daemon: its own end counts, and all that it printed until then."""
    began = time.monotonic()
    code = f"printf %060000d 7; echo 8; {child} >> /dev/stderr & echo $! > {tmp_path}/pid"
    row = outcome(shell(code))
    assert json.loads(row.result) == "7".zfill(60_000) + "8"
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "pid").read_text())
    if child == "yes":
        eventually(lambda: not is_alive(pid))  # nobody reads it any more
    else:
        os.kill(pid, 9)


def test_100_mb_of_output_cost_no_memory(outcome, system):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = "head -c 100000000 /dev/zero; head -c 30000000 /dev/zero >&2; echo the end >&2; exit {}"
    row = outcome(shell(code.format(0)))
    assert (row.status, row.attempts, row.error) == ("Failed", 1, f"printed more than {MAX_BODY} bytes")
    row = outcome(shell(code.format(1)), max_attempts=1)
    assert row.error.startswith("exit status 1: ")
    assert row.error.endswith("the end")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


def test_a_program_that_can_not_be_listened_to_is_ended(outcome, tmp_path, monkeypatch):
    """Too many open files between its start and the first look at it: it must not run on unseen."""

    def full():
        eventually(lambda: pid.exists() and pid.read_text().strip())
        raise OSError(24, "Too many open files")

    pid = tmp_path / "pid"
    monkeypatch.setattr(taskmanager.selectors, "DefaultSelector", full)
    row = outcome(shell(f"echo $$ > {pid}; sleep 60"), max_attempts=1)
    assert "Too many open files" in row.error
    assert not is_alive(int(pid.read_text()))


# What is no error in the output of work that is done

PACKED = gzip.compress(b'{"sent": 1}')
OUTPUTS = {
    "a byte order mark": (BOM + b'{"a": 1}', {"a": 1}),
    "a mark alone": (BOM, None),
    "a mark and text": (BOM + b"fine\n", "fine"),
    "UTF-16": ('{"a": "ж"}'.encode("utf-16"), {"a": "ж"}),
    "OK": (b"OK", "OK"),
    "NaN": (b'{"a": NaN}', '{"a": NaN}'),
    "too large a number": (b"[1e999]", "[1e999]"),
    "a whole number too long": (b"1" * 5000, "1" * 5000),
    "too deep": (b"[" * 200 + b"]" * 200, "[" * 200 + "]" * 200),
    "far too deep": (b"[" * 50_000, "[" * 50_000),
    "NUL": (b'"\\u0000"', '"\\u0000"'),
    "half a character": (b'"\\ud83d"', '"\\ud83d"'),
    "a name twice": (b'{"a":1,"a":2}', '{"a":1,"a":2}'),
    "Latin-1": (b'"Gr\xfc\xdfe"', "Gr\ufffd\ufffde"),
    "cut": (b'{"a": ', '{"a": '),
    "gzip": (PACKED, {"sent": 1}),
    "two members": (gzip.compress(b"[1,") + gzip.compress(b"2]"), [1, 2]),
    "packed text": (gzip.compress(BOM + b"fine"), "fine"),
    "gzip, cut": (PACKED[:-9], PACKED[:-9].decode("utf-8", "replace").replace("\0", "\ufffd")),
}


@pytest.mark.parametrize("said, result", OUTPUTS.values(), ids=OUTPUTS)
def test_work_that_is_done_is_completed_whatever_it_says(outcome, receiver, tmp_path, said, result):
    receiver.answers = [(200, JSON, said)]
    (tmp_path / "said").write_bytes(said)
    for handler in receiver.url, f"exec:cat {tmp_path}/said":
        row = outcome(handler)
        assert (row.status, row.attempts, row.error) == ("Completed", 1, None)
        assert (None if row.result is None else json.loads(row.result)) == result


def test_a_bomb_is_not_unpacked(outcome, receiver):
    """100 MB of blanks in 100 KB."""
    receiver.answers = [(200, JSON, gzip.compress(b" " * 100_000_000, 1))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcome(receiver.url).error == f"answered 200 with more than {MAX_BODY} bytes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


def test_an_answer_that_nobody_keeps_may_be_of_any_size(outcome, receiver):
    """A page of HTML that thanks for the order."""
    receiver.answers = [(200, {"Content-Type": "text/html"}, b"x" * 2 * MAX_BODY)]
    assert outcome(receiver.url).status == "Completed"


def test_the_words_of_a_refusal_are_readable(outcome, receiver):
    receiver.answers = [
        (400, JSON | {"Content-Encoding": "gzip"}, gzip.compress(BOM + '{"why": "größe"}'.encode()))
    ]
    assert outcome(receiver.url).error == 'answered 400: {"why": "größe"}'


# An address

INTERIM = [
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" * 20,
]


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept open", "closed"])
@pytest.mark.parametrize("interim", INTERIM, ids=["102", "103", "many"])
def test_what_comes_before_the_answer_is_not_the_answer(outcome, receiver, interim, headers):
    receiver.answers = [(200, JSON | headers, lambda request: request.wfile.write(interim) and b"[7]")]
    row = outcome(receiver.url)
    assert (row.status, row.attempts, row.result) == ("Completed", 1, "[7]")


DATES = [
    "Fri, 31 Dec 99999999999 23:59:59 GMT",
    "Fri, 31 Dec 99999 23:59:59 GMT",
    "Fri, 99 Foo 2030 99:99:99 GMT",
    "Fri, 31 Dec 2030",
    "1" * 400,
    "9" * 5000 + " Dec",
    "²",
    "-1",
    "nan",
    "inf",
    "1e5",
    "",
    " ",
    ",",
    "Fri, 31 Dec 2030 23:59:59 +99999999999",
]


@pytest.mark.parametrize("date", DATES, ids=lambda date: date[:20])
def test_a_retry_after_that_says_nothing_does_no_harm(date):
    assert taskmanager.retry_after(date) in (None, 0, 86400)


def test_a_retry_after_with_an_impossible_year_is_ignored(outcome, receiver):
    receiver.answers = [(503, {"Retry-After": DATES[0]}, b"busy"), (200, {}, b"")]
    row = outcome(receiver.url)
    assert (row.status, row.attempts) == ("Completed", 2)


@pytest.fixture
def listener():
    """listener(talk): the port of a server that talks with each connection so, in a thread."""
    sockets = []

    def listen(talk):
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    sockets.append(connection)
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return server.getsockname()[1]

    yield listen
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


def silent(connection):
    """Takes what comes and says nothing."""


def dripping(connection):
    """Begins the greeting of TLS and never ends it: no single read takes long."""
    with contextlib.suppress(OSError):
        for byte in b"\x16\x03\x03\x3f\x00\x02\x00\x3e\xfc\x03\x03" + bytes(1000):
            connection.sendall(bytes([byte]))
            time.sleep(0.1)


def tunnel(asked):
    """A proxy that lets through, to a server that says nothing."""

    def talk(connection):
        with contextlib.suppress(OSError):
            asked.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

    return talk


def test_a_chunk_of_negative_length_costs_no_memory(outcome, listener):
    """A server with a fault says -1, and what comes behind it has no end."""

    def talk(connection):
        connection.recv(65536)
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n-1\r\n")
            for _ in range(5000):
                connection.sendall(bytes(65536))
        connection.close()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = outcome(f"http://127.0.0.1:{listener(talk)}", max_attempts=1)
    assert row.error.startswith("no answer: ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


@pytest.mark.parametrize(
    "talk",
    [silent, dripping, "tunnel", "mute proxy"],
    ids=["silent", "dripping", "behind a proxy", "the proxy"],
)
@pytest.mark.parametrize(
    "end, error", [("timeout", "timed out after 2 s"), ("cancel", "canceled")], ids=["timeout", "canceled"]
)
def test_a_stalled_handshake_ends_with_the_task(run, store, listener, monkeypatch, caplog, talk, end, error):
    """A load balancer whose backend is gone accepts the connection, and then nothing comes."""
    asked = []
    port = listener(tunnel(asked) if talk == "tunnel" else silent if talk == "mute proxy" else talk)
    if isinstance(talk, str):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    address = "https://tasks.example/hook" if isinstance(talk, str) else f"https://127.0.0.1:{port}/hook"
    id = run(address, max_attempts=1, **({"timeout": 2} if end == "timeout" else {}))
    if end == "cancel":
        eventually(lambda: store.read(id).status == "In Progress")
        eventually(lambda: asked or talk != "tunnel")
        time.sleep(0.2)
        store.cancel(id)
    assert finished(store, id).error == error
    assert "gave up on the handler" not in caplog.text  # it came back by itself, and its slot is free
    connects = [each.partition(b" HTTP/1.")[0] for each in asked]
    assert connects == [b"CONNECT tasks.example:443"] * (talk == "tunnel")


# Proxies


@pytest.fixture
def proxies(monkeypatch):
    """proxies(HTTP_PROXY=…): the only ones in the environment."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return lambda **names: [monkeypatch.setenv(name, value) for name, value in names.items()]


def test_a_proxy_of_the_environment_is_used(outcome, receiver, proxies):
    """A network in which only the proxy reaches other hosts."""
    proxies(HTTP_PROXY=receiver.url.replace("//", "//ann:pass%3Aword@"))
    receiver.answers = [(200, JSON, b"[1]")]
    assert outcome("http://bob:secret@tasks.example/hook?a=1").result == "[1]"
    [(path, headers, _)] = receiver.requests
    assert path == "http://tasks.example/hook?a=1"
    assert headers["Host"] == "tasks.example"
    assert headers["Proxy-Authorization"] == "Basic YW5uOnBhc3M6d29yZA=="
    assert headers["Authorization"] == "Basic Ym9iOnNlY3JldA=="


def test_a_proxy_for_https_gets_the_name_and_its_own_login_only(outcome, listener, proxies):
    asked = []

    def refuse(connection):
        asked.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        connection.close()

    proxies(HTTPS_PROXY=f"http://ann:word@127.0.0.1:{listener(refuse)}")
    row = outcome("https://bob:secret@tasks.example:8443/hook", max_attempts=1)
    assert row.error.startswith("no answer: OSError: Tunnel connection failed: 407")
    assert asked[0].startswith(b"CONNECT tasks.example:8443 HTTP/1.")
    assert b"Proxy-Authorization: Basic YW5uOndvcmQ=" in asked[0]
    assert b"Ym9iOnNlY3JldA==" not in asked[0]


@pytest.mark.parametrize(
    "address, no_proxy, proxy",
    [
        ("http://tasks.example/", "", True),
        ("http://tasks.example/", "example", False),
        ("http://a.tasks.example/", ".tasks.example", False),
        ("http://tasks.example/", "other.example, tasks.example", False),
        ("http://tasks.example:81/", "tasks.example:82", True),
        ("http://tasks.example/", "*", False),
        ("http://127.0.0.1:8000/", "", False),
        ("http://localhost/", "", False),
        ("http://[::1]/", "", False),
        ("http://127.example/", "", True),
        ("https://tasks.example/", "", False),
    ],
    ids=lambda value: str(value) or "none",
)
def test_a_proxy_is_used_for_the_addresses_that_it_is_for(proxies, address, no_proxy, proxy):
    proxies(http_proxy="proxy.example:3128", no_proxy=no_proxy)
    handler = taskmanager.HttpHandler(address)
    found = handler.proxy and (handler.proxy.hostname, handler.proxy.port)
    assert found == (("proxy.example", 3128) if proxy else None)


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://proxy:1080",
        "https://proxy",
        "http://ann:s3cret/word@proxy:3128",
        "http://proxy:port",
        "http://",
    ],
)
def test_a_proxy_that_can_not_be_used_is_named(proxies, proxy):
    proxies(HTTPS_PROXY=proxy)
    with pytest.raises(taskmanager.BadSetting, match="HTTPS_PROXY: expected http://") as error:
        taskmanager.load_handler("https://tasks.example/")
    assert "s3cret" not in str(error.value)
