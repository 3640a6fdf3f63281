"""The kinds of handlers that HANDLER names: a function, a program, an address."""

import contextlib
import json
import shlex
import sys
import time
from email.utils import formatdate

import pytest

import taskmanager
from helpers import JSON, QUICK, eventually, finished, is_alive
from taskmanager import Config, Worker

pytestmark = pytest.mark.sqlite


def test_a_function_is_found_by_its_name(run, store):
    id = run("tests.handlers:echo", payload=[1, {"a": None}])
    assert json.loads(finished(store, id).result) == {"id": id, "attempt": 1, "payload": [1, {"a": None}]}


def test_an_error_says_where_it_was_raised(run, store):
    row = finished(store, run("tests.handlers:obey", payload={"raise": "ValueError"}, max_attempts=1))
    assert row.error.startswith("ValueError: as told (handlers.py:")
    assert row.error.endswith(" in obey)")


# A program

def python(code):
    return f"exec:{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def test_a_program_gets_the_payload_on_stdin_and_its_output_is_the_result(run, store):
    code = """
import json, os, sys
print(json.dumps([json.load(sys.stdin), os.environ["TASK_ID"], os.environ["TASK_ATTEMPT"], sys.argv[1:]]))
"""
    id = run(python(code) + " 'two words' $HOME ';' '*'", payload={"имя": "☃"})
    # no shell
    assert json.loads(finished(store, id).result) == [
        {"имя": "☃"},
        str(id),
        "1",
        ["two words", "$HOME", ";", "*"],
    ]


@pytest.mark.parametrize(
    "printed, result",
    [
        ("b'done\\n'", '"done"'),
        ("b''", None),
        ("b' \\n'", None),
        ("b'null'", None),
        ("b'[1, 2]\\n'", "[1, 2]"),
        ("b'NaN'", '"NaN"'),
        ("b'\\xff\\0'", '"\ufffd\ufffd"'),
        ("b'x' * 3_000_000", "fails"),
    ],
    ids=["text", "nothing", "blank", "null", "JSON", "not quite JSON", "bytes", "too much"],
)
def test_what_a_program_prints_is_the_result(run, store, printed, result):
    row = finished(store, run(python(f"import sys; sys.stdout.buffer.write({printed})")))
    if result == "fails":
        assert (row.status, row.attempts, row.error) == ("Failed", 1, "printed more than 1048576 bytes")
    else:
        assert (row.status, row.result) == ("Completed", result)


def test_a_program_without_a_payload_reads_null(run, store):
    assert finished(store, run("exec:wc -c")).result == "4"


def test_a_program_that_never_reads_does_not_mind_a_large_payload(run, store):
    assert finished(store, run("exec:true", payload="x" * 1_000_000)).status == "Completed"


def test_the_end_of_stderr_is_the_error(run, store):
    row = finished(
        store,
        run(
            python("import sys; print('x' * 5000, 'no such file', file=sys.stderr); sys.exit(7)"),
            max_attempts=2,
        ),
    )
    assert (row.status, row.attempts) == ("Failed", 2)
    assert row.error.startswith("exit status 7: xxx")
    assert row.error.endswith("no such file")
    assert len(row.error) <= taskmanager.MAX_ERROR


def test_a_program_that_was_killed_says_so(run, store):
    row = finished(store, run(python("import os; os.kill(os.getpid(), 9)"), max_attempts=1))
    assert row.error == "ended by signal 9 (Killed)"


def group(tmp_path, listens):
    """A program that starts a child and waits; both write their ids to a file.

    They end at SIGTERM, or only at SIGKILL where `listens` is false.
    """
    code = f"""
import os, signal, time
{'' if listens else 'signal.signal(signal.SIGTERM, signal.SIG_IGN)'}
os.fork()
with open({str(tmp_path / 'pids')!r}, 'a') as file: file.write(f'{{os.getpid()}}\\n')
time.sleep(60)"""
    return python(code)


def pids(tmp_path):
    return eventually(
        lambda: (
            (tmp_path / "pids").exists()
            and len(lines := (tmp_path / "pids").read_text().split()) == 2
            and list(map(int, lines))
        )
    )


@pytest.mark.parametrize("listens", [True, False], ids=["at SIGTERM", "by force"])
def test_a_timeout_ends_the_whole_process_group(run, store, tmp_path, monkeypatch, listens):
    monkeypatch.setattr(taskmanager, "STOP_SECONDS", 0.3)
    id = run(group(tmp_path, listens), timeout=0.7, max_attempts=1)
    assert finished(store, id).error == "timed out after 0.7 s"
    for pid in pids(tmp_path):
        eventually(lambda: not is_alive(pid))


def test_cancel_ends_the_whole_process_group(run, store, tmp_path):
    id = run(group(tmp_path, True))
    both = pids(tmp_path)
    store.cancel(id)
    assert finished(store, id).error == "canceled"
    for pid in both:
        eventually(lambda: not is_alive(pid))


def test_stop_ends_the_whole_process_group_and_gives_the_task_back(store, tmp_path, monkeypatch):
    monkeypatch.setattr(taskmanager, "STOP_SECONDS", 0.3)
    worker = Worker(store, Config(handler=group(tmp_path, False), **QUICK))
    worker.start()
    [id] = store.create()
    both = pids(tmp_path)
    worker.stop(0.1)
    assert store.read(id).status == "New"
    for pid in both:
        eventually(lambda: not is_alive(pid))


def test_a_child_that_a_program_leaves_behind_holds_nothing_up(run, store):
    began = time.monotonic()
    row = finished(store, run(python("import os, time\nif os.fork(): print('parent')\nelse: time.sleep(5)")))
    assert row.result == '"parent"' and time.monotonic() - began < 4


# An address


def test_the_task_is_posted_as_json(run, store, receiver):
    receiver.answers = [(200, JSON, b'{"sent": true}')]
    id = run(f"{receiver.url}/hook?a=1", payload={"имя": "☃"})
    assert finished(store, id).result == '{"sent": true}'
    [(path, headers, body)] = receiver.requests
    assert path == "/hook?a=1"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "id": id, "attempt": 1, "kind": "default", "payload": {"имя": "☃"}}


def test_a_login_in_the_address_is_sent_as_a_header(run, store, receiver):
    finished(store, run(receiver.url.replace("//", "//us%20er:pass%3Aword@")))
    assert receiver.requests[0][1]["Authorization"] == "Basic dXMgZXI6cGFzczp3b3Jk"


@pytest.mark.parametrize(
    "status, headers, body, result",
    [
        (200, {}, b"", None),
        (204, {}, b"", None),
        (202, {"Content-Type": "text/plain"}, b"fine", None),
        (200, JSON, b"[1]", "[1]"),
        (200, {"Content-Type": "application/problem+json"}, b"{}", "{}"),
        (200, {"Content-Type": "Application/JSON"}, b"7", "7"),
    ],
    ids=["empty", "no content", "text", "JSON", "+json", "capitals"],
)
def test_a_2xx_answer_completes_the_task(run, store, receiver, status, headers, body, result):
    receiver.answers = [(status, headers, body)]
    row = finished(store, run(receiver.url))
    assert (row.status, row.result) == ("Completed", result)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_fault_is_tried_again_with_the_same_idempotency_key(run, store, receiver, status):
    receiver.answers = [(status, {}, b"busy"), (200, {}, b"")]
    row = finished(store, run(receiver.url))
    assert (row.status, row.attempts) == ("Completed", 2)
    keys = {headers["Idempotency-Key"] for _, headers, _ in receiver.requests}
    assert len(keys) == 1 and keys.pop().startswith(f'"task-{row.id}-')
    assert [json.loads(body)["attempt"] for _, _, body in receiver.requests] == [1, 2]


@pytest.mark.parametrize(
    "status, headers, body",
    [
        (400, {}, b"no such customer"),
        (404, {}, b""),
        (302, {"Location": "/elsewhere"}, b""),
        (200, JSON, b" " * 1_100_000),
    ],
    ids=["bad request", "not found", "redirect", "too large"],
)
def test_an_answer_that_would_not_change_is_final(run, store, receiver, status, headers, body):
    receiver.answers = [(status, headers, body)]
    row = finished(store, run(receiver.url))
    assert (row.status, row.attempts, len(receiver.requests)) == ("Failed", 1, 1)
    assert row.error.startswith(f"answered {status}")
    if len(body) < 100:
        assert body.decode() in row.error


@pytest.mark.parametrize(
    "value, low, high",
    [("7200", 7200, 7200), (None, 1, 2), ("soon", 1, 2), ("99999999", 86400, 86400), ("date", 3500, 3600)],
)
def test_retry_after_is_honoured(run, store, receiver, value, low, high):
    value = formatdate(time.time() + 3600, usegmt=True) if value == "date" else value
    receiver.answers = [(503, {"Retry-After": value} if value else {}, b"")]
    id = run(receiver.url, settings={"retry_seconds": 2})
    row = eventually(lambda: (row := store.read(id)).run_at and row)
    wait = (
        taskmanager.datetime.fromisoformat(row.run_at) - taskmanager.datetime.fromisoformat(row.updated_at)
    ).total_seconds()
    assert low - 1 <= wait <= high + 1


def test_no_answer_is_tried_again(run, store, receiver):
    receiver.server_close()
    row = finished(store, run(receiver.url, max_attempts=2))
    assert row.attempts == 2
    assert row.error.startswith("no answer: ConnectionRefusedError")


def cut(request):
    """An answer that ends before its length."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n1234")
    request.connection.close()
    raise ConnectionAbortedError


def test_an_answer_that_was_cut_short_is_no_answer(run, store, receiver):
    receiver.answers = [(200, {}, cut), (200, JSON, b"12345678")]
    receiver.handle_error = lambda *_: None
    row = finished(store, run(receiver.url))
    assert (row.result, row.attempts) == ("12345678", 2)


def drip(request):
    """An answer that never ends, a byte at a time: no single read of it times out."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n")
    with contextlib.suppress(OSError):
        for _ in range(100):
            request.wfile.write(b" ")
            time.sleep(0.1)
    return b""


@pytest.mark.parametrize("answer", [drip, lambda request: time.sleep(8) or b""], ids=["dripping", "silent"])
def test_a_timeout_is_of_the_whole_exchange(run, store, receiver, answer):
    receiver.answers = [(200, {}, answer)]
    began = time.monotonic()
    row = finished(store, run(receiver.url, timeout=0.5, max_attempts=1))
    assert row.status == "Failed" and "timed out" in row.error
    assert time.monotonic() - began < 4


def hints(request):
    request.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    request.close_connection = True
    raise ConnectionAbortedError


def test_an_answer_that_is_not_the_last_word_is_tried_again(run, store, receiver):
    receiver.answers = [(200, {}, hints), (200, {}, b"")]
    receiver.handle_error = lambda *_: None
    assert finished(store, run(receiver.url)).attempts == 2


def test_an_address_of_ipv6_has_the_port_of_its_scheme():
    assert taskmanager.HttpHandler("http://[::1]/x").port == 80
    assert taskmanager.HttpHandler("https://[::1]/x").port == 443


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept open", "closed"])
def test_cancel_closes_the_connection(run, store, receiver, headers):
    receiver.answers = [(200, headers, drip if headers else lambda request: time.sleep(8) or b"")]
    id = run(receiver.url)
    eventually(lambda: receiver.requests)
    store.cancel(id)
    began = time.monotonic()
    assert finished(store, id).error == "canceled"
    assert time.monotonic() - began < 4


def test_a_module_that_replaces_threads_is_refused(tmp_path, monkeypatch):
    """gevent's monkey.patch_all(), as workers of other systems have it: here the worker would stand still."""
    (tmp_path / "patches.py").write_text("import time\ntime.sleep = lambda span: None\ndef work(task): pass")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(time, "sleep", time.sleep)      # to be put back
    with pytest.raises(taskmanager.BadSetting, match="replaces the standard library's threads"):
        taskmanager.load_handler("patches:work")
