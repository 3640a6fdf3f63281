"""The programs as processes: signals, threads, forks, logging, stdout and stderr, limits."""

import contextlib
import io
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import taskmanager
from helpers import ROOT, SETTINGS, create, eventually, http, is_alive
from taskmanager import Config, Worker, new_task

pytestmark = pytest.mark.sqlite

SCRIPTS = pytest.mark.parametrize("script", ["taskmanager.py", "worker.py"])
QUICK = dict(POLL_SECONDS=0.05, RETRY_SECONDS=0.01, MAX_ATTEMPTS=1)


@pytest.fixture
def launch(start, store, tmp_path):
    """launch("worker.py", source): a program; its handler is work() of a module with this source."""
    def launch(script, source, wrapper=(), **settings):
        (tmp_path / "own_handlers.py").write_text(source)
        usual = {"DATABASE_URL": store.url, "HANDLER": "own_handlers:work", "PYTHONPATH": tmp_path, **QUICK}
        return start(script, wrapper=wrapper, **usual | settings)
    return launch


def ended(store, id):
    """The result of a task that is Completed, or else its error."""
    row = eventually(lambda: (row := store.read(id)).status in ("Completed", "Failed") and row)
    return row.error or json.loads(row.result or "null")


def run(store, payload=None):
    return ended(store, create(store, payload=payload))


# Signals

def test_a_signal_at_any_moment_of_the_start_ends_the_program(sqlite_database, tmp_path):
    # A supervisor that stops what it has just started, because a deployment is rolled back, for example.
    # Before the program has got so far as to handle signals, Python itself ends by them (1: at Ctrl-C).
    environ = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    programs = []
    for n in range(16):
        log = (tmp_path / f"{n}.log").open("w+")
        script = ("taskmanager.py", "worker.py")[n % 2]
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)[n // 2 % 4]
        process = subprocess.Popen(
            [sys.executable, ROOT / script], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environ | {"PORT": "0", "DATABASE_URL": sqlite_database}, start_new_session=True)
        programs.append((process, number, log))
        time.sleep(random.uniform(0, 0.25))
        process.send_signal(number)
    try:
        for process, number, log in programs:
            status = process.wait(20)
            log.seek(0)
            text = log.read()
            if status == 0:
                assert "Traceback" not in text, text
            else:
                assert status in (-number, 1), text
                assert "INFO" not in text, text
    finally:
        for process, _, log in programs:
            process.kill()
            log.close()


@pytest.mark.parametrize("script, imported", [("taskmanager.py", "argparse"), ("worker.py", "uuid")])
def test_a_signal_waits_while_the_program_is_imported(start, sqlite_database, tmp_path, script, imported):
    # As process 1 of a container, the kernel would ignore it there for good.
    (tmp_path / f"{imported}.py").write_text(f"""
import os, signal, sys
os.kill(os.getpid(), signal.SIGTERM)
sys.path.remove({str(tmp_path)!r})
del sys.modules[__name__]
import {imported}
""")
    program = start(script, DATABASE_URL=sqlite_database, PYTHONPATH=tmp_path)
    assert program.process.wait(20) == 0 and program.log() == ""


@SCRIPTS
def test_a_second_signal_changes_nothing(start, script):
    # Somebody who presses Ctrl-C until the program has ended.
    program = start(script, DATABASE_URL="postgresql://127.0.0.1:1/none")
    program.logged("waiting for database")
    deadline = time.monotonic() + 20
    while program.process.poll() is None and time.monotonic() < deadline:
        program.send(random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]))
        time.sleep(0.001)
    assert program.process.wait(1) == 0 and "Traceback" not in program.log()


def test_a_stop_event_may_be_set_by_a_signal_that_interrupts_it():
    # threading.Event waits for ever for its own lock when the signal comes while wait() holds it.
    event = taskmanager.StopEvent()
    before = signal.signal(signal.SIGALRM, lambda *_: event.set())
    try:
        for _ in range(2000):
            event.__init__()
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-4))
            while not event.wait(0.00001):
                pass
            assert event.is_set() and event.wait(0)
    finally:
        signal.signal(signal.SIGALRM, before)


@SCRIPTS
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT], ids=["the terminal is closed", "Ctrl-\\"])
def test_other_signals_stop_a_program_as_sigterm_does(launch, store, script, number):
    program = launch(script, "import time\nwork = lambda task: time.sleep(0.5) or 'done'")
    id = create(store)
    program.logged(f"claimed task={id}")
    assert program.stop(number) == 0
    assert store.read(id).result == '"done"'
    assert "Traceback" not in program.log()


def test_an_idle_api_stops_at_once(start, sqlite_database):
    program = start("taskmanager.py", DATABASE_URL=sqlite_database)
    assert http("GET", f"{program.url}/livez").status == 200
    begun = time.monotonic()
    assert program.stop() == 0
    assert time.monotonic() - begun < 6     # and not after the 10 s that a stuck request would be given


def test_nohup_keeps_a_program_running_when_the_terminal_is_closed(launch, store):
    program = launch("worker.py", "work = lambda task: 'done'", wrapper=["nohup"])
    program.logged("started worker")
    program.send(signal.SIGHUP)
    assert run(store) == "done"
    assert program.stop() == 0


def test_what_a_handler_leaves_behind_does_not_keep_the_program_from_ending(launch, store):
    # A pool that nobody shuts down; Python would wait for its threads for ever.
    program = launch("worker.py", """
import concurrent.futures, time, taskmanager
taskmanager.STOP_SECONDS = 0.5
pool = concurrent.futures.ThreadPoolExecutor()
def work(task):
    pool.submit(time.sleep, 600)
""")
    run(store)
    assert program.stop() == 0


def test_children_that_a_handler_starts_while_the_worker_stops_can_be_ended(launch, store):
    program = launch("worker.py", """
import subprocess, time
def work(task):
    while not task.canceled:        # as it is when the grace period is over
        time.sleep(0.01)
    child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    print("status", child.wait(4), flush=True)
""", GRACE_SECONDS=0)
    create(store)
    program.logged("claimed")
    assert program.stop() == 0
    assert f"status {-signal.SIGTERM}" in program.log()


@pytest.mark.parametrize("how", ["terminate", "interrupt"])
def test_a_child_process_of_a_handler_is_ended_by_a_signal_as_anywhere_else(launch, store, how):
    # concurrent.futures and others end the processes of their pools so.
    program = launch("worker.py", """
import multiprocessing, os, signal, time
def rest():
    while True:
        time.sleep(60)
def work(task):
    exits = []
    for _ in range(10):     # at once, some in the middle of the fork
        child = multiprocessing.get_context("fork").Process(target=rest)
        child.start()
        os.kill(child.pid, task.payload)
        child.join(5)
        exits.append(child.exitcode)
        child.kill()
    return exits
""")
    number = {"terminate": signal.SIGTERM, "interrupt": signal.SIGQUIT}[how]
    assert run(store, number) == [-number] * 10
    assert program.stop() == 0 and "Traceback" not in program.log()


# Forks

def test_a_handler_that_forks_leaves_no_second_worker_behind(launch, store):
    program = launch("worker.py", """
import os, sys, taskmanager
def work(task):
    child = os.fork()
    if child == 0:
        print("hello from the child")
        exec(task.payload)
        return "of the child"
    return child, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
""", CONCURRENCY=1, PYTHONUNBUFFERED="")
    leaves = {
        "pass": 0, "sys.exit()": 0, "sys.exit(7)": 7, "sys.exit('good-bye')": 1,
        "raise ValueError('no good-bye')": 1, "raise taskmanager.Failed('no good-bye')": 1,
        "os.kill(os.getpid(), 15)": -15}
    for leave, status in leaves.items():
        child, found = run(store, leave)
        assert found == status and not is_alive(child), leave
    assert program.stop() == 0
    log = program.log()
    assert (log.count("hello from the child"), log.count("good-bye\n")) == (len(leaves) - 1, 3)
    assert log.count("claimed") == log.count("completed") == len(leaves)
    assert log.count("stopped worker") == 1


def test_processes_of_multiprocessing_work_and_leave_no_second_worker_behind(launch, store):
    program = launch("worker.py", """
import multiprocessing, os, sys
def double(number):
    return 2 * number
def work(task):
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2) as pool:
        numbers = pool.map(double, range(3))
    child = fork.Process(target=sys.exit, args=[5])
    child.start()
    child.join()
    return numbers, child.exitcode
""")
    assert run(store) == [[0, 2, 4], 5]
    assert program.stop() == 0
    assert program.log().count("started worker") == program.log().count("stopped worker") == 1


# Threads

KILL = """
import ctypes, threading, taskmanager, waitress.task
taskmanager.STOP_SECONDS = 0.5      # less patience than usual
waitress.task.ThreadedTaskDispatcher.shutdown.__defaults__ = (True, 0.5)
def work(task):
    for thread in threading.enumerate():
        if thread.name == task.payload and thread is not threading.current_thread():
            number, error = ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(number, error)
"""


def test_a_thread_that_ends_unexpectedly_ends_the_program_with_an_error(launch, tmp_path):
    # As nobody would notice otherwise: the process is there, its health is "ok", and nothing is done.
    programs = {}
    for script, thread in [
            ("worker.py", "worker"), ("worker.py", "handler"), ("worker.py", "http"),
            ("taskmanager.py", "worker"), ("taskmanager.py", "http"), ("taskmanager.py", "http-0")]:
        store = taskmanager.open_store(f"sqlite:///{tmp_path}/{script}-{thread}.db")
        program = launch(script, KILL, DATABASE_URL=store.url, CONCURRENCY=2, GRACE_SECONDS=0,
                         THREADS=1, WAITERS=0, METRICS_PORT=0)
        programs[script, thread] = store, program
    for (script, thread), (store, program) in programs.items():
        program.logged(f"started {'api' if script == 'taskmanager.py' else 'worker'}")
        create(store, payload=thread)
        program.logged("claimed")

    def stir():     # a thread that waits is only ended when there is something to do for it
        for (script, _), (store, program) in programs.items():
            with contextlib.suppress(OSError, ValueError):
                create(store)
                if script == "taskmanager.py":
                    http("GET", f"{program.url}/livez")
        return all(program.process.poll() is not None for _, program in programs.values())
    eventually(stir, seconds=40)
    for (_, thread), (_, program) in programs.items():
        assert program.process.returncode == 1
        assert f"stopped program thread={thread} reason=" in program.log()


@pytest.mark.parametrize("thread", ["intake", "notifier"])
def test_a_thread_of_rabbitmq_that_ends_unexpectedly_ends_the_program(launch, store, broker, thread):
    program = launch("worker.py", KILL, RABBITMQ_URL=broker)
    program.logged("started intake")
    create(store, payload=thread)
    assert program.process.wait(20) == 1
    assert f"ended unexpectedly thread={thread}" in program.log()


def test_a_slot_is_not_lost_when_no_thread_can_be_started(store, monkeypatch, caplog):
    # A limit of processes (ulimit -u, pids in a container), reached by somebody else.
    start = taskmanager.EssentialThread.start
    allowed = threading.Semaphore(2)        # the worker's own, and one slot

    def limited(thread):
        if thread.name in ("worker", "handler") and not allowed.acquire(blocking=False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(taskmanager.EssentialThread, "start", limited)
    monkeypatch.setattr(taskmanager, "STOP_SECONDS", 0.1)
    gate = threading.Event()
    config = Config(concurrency=2, poll_seconds=0.05, max_attempts=1)
    worker = Worker(store, config, lambda task: gate.wait(20) if task.payload else None)
    worker.start()
    try:
        assert [run(store) for _ in range(3)] == [None] * 3
        [deaf] = store.create([new_task({"payload": "deaf", "timeout": 0.1})])
        assert ended(store, deaf) == "timed out after 0.1 s"    # its thread is given up, without another
        waiting = create(store)
        time.sleep(0.2)
        assert store.read(waiting).status == "New"                  # not taken by a worker that can't run it
        allowed.release()
        assert ended(store, waiting) is None and run(store) is None
        assert caplog.text.count("a thread for each slot error=") == 1
    finally:
        gate.set()
        allowed.release(9)
        worker.stop(0)


# Logging

BREAKS = {
    "stderr": [
        "logging.getLogger().addHandler(logging.StreamHandler(Wrapped())); sys.stderr = Wrapped(); "
        "logging.getLogger('waitress').error('hello')",
        "sys.stderr = open(os.devnull)", "sys.stderr = sys.__stderr__; sys.stderr.detach()",
        "logging.raiseExceptions = True; sys.stderr = open(os.devnull, 'w'); sys.stderr.close()",
        "sys.stderr = None", "os.close(2)", "sys.stderr = Wrapped()"],
    "logging": [
        "logging.shutdown()", "logging.disable(logging.CRITICAL)", "log.addFilter(lambda record: 1 / 0)",
        "log.disabled, log.level, log.handlers[:] = True, 99, [Broken()]",
        "logging.getLogger().addHandler(Broken())"],
    "its configuration": [
        "logging.config.dictConfig({'version': 1, 'root': {'level': 'ERROR'}})",
        "logging.config.dictConfig({'version': 1, 'loggers': {'taskmanager': {'handlers': []}}})",
        "logging.basicConfig(force=True, level=99, filename=os.devnull)"],
}


@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
def test_a_handler_can_neither_silence_the_log_nor_break_it(launch, store, tmp_path, breaks):
    program = launch("worker.py", """
import logging.config, os, sys
log = logging.getLogger("taskmanager")
class Wrapped:
    def __getattr__(self, name):
        raise ValueError("I/O operation on closed file")
class Broken(logging.Handler):
    def handle(self, record):
        raise ValueError("no such place")
def work(task):
    exec(task.payload or "")
""", LOG_FILE=tmp_path / "log")
    for each in breaks:
        ids = [create(store, payload=each), create(store)]
        assert [ended(store, id) for id in ids] == [None, None]
        for log in (program.log_file, tmp_path / "log"):
            for id in ids:
                eventually(lambda: log.read_text().count(f" completed task={id} attempt=1\n") == 1)
    assert program.stop() == 0
    for log in (program.log_file, tmp_path / "log"):
        assert log.read_text().endswith("INFO taskmanager stopped worker\n")


def test_what_a_handlers_module_logs_is_still_logged(launch, store, tmp_path):
    program = launch("worker.py", """
import logging
def work(task):
    logging.getLogger("mine").info("hello")
    logging.getLogger("pika.connection").critical("a whole message")    # as it does when a channel is closed
""", LOG_FILE=tmp_path / "log")
    run(store)
    assert program.stop() == 0
    for text in (program.log(), (tmp_path / "log").read_text()):
        assert text.count(" INFO mine hello\n") == text.count("started worker") == 1
        assert "a whole message" not in text


@pytest.fixture
def program_log(monkeypatch):
    """The logger as in a program, and the text that it has written; one output, so one write a record."""
    output = logging.StreamHandler(io.StringIO())
    output.setFormatter(taskmanager.OneLine("%(levelname)s %(message)s"))
    monkeypatch.setattr(taskmanager.Log, "outputs", [output])
    monkeypatch.setattr(taskmanager.Log, "threshold", logging.INFO)
    return taskmanager.log, output.stream


def test_lines_of_one_kind_are_written_at_once_each_with_its_time_and_level(program_log, monkeypatch):
    log, written = program_log
    writes = []
    monkeypatch.setattr(written, "write", writes.append)
    log.lines(logging.INFO, "claimed task=%s attempt=%s", iter([(1, 1), (2, 3)]))
    assert writes == ["INFO claimed task=1 attempt=1\nINFO claimed task=2 attempt=3\n"]
    log.lines(logging.INFO, "claimed task=%s attempt=%s", [])
    assert len(writes) == 1


def test_a_line_among_others_forges_none_and_hides_what_it_would_alone(program_log):
    log, written = program_log
    texts = ["INFO mine", "a\nINFO forged", "at https://user:pw@host/", "password='one", "two'"]
    log.lines(logging.INFO, "said %s", [(text,) for text in texts])
    together = written.getvalue()
    for text in texts:
        log.info("said %s", text)
    assert written.getvalue() == 2 * together
    assert together.splitlines() == [
        "INFO said INFO mine", r"INFO said a\nINFO forged", "INFO said at https://***@host/",
        "INFO said password=***", "INFO said two'"]


def test_a_line_that_nobody_reads_is_not_made(program_log):
    log, written = program_log
    log.lines(logging.DEBUG, "promoted task=%s", (1 / 0 for _ in range(1)))
    assert written.getvalue() == ""


def test_an_application_gets_a_record_for_each_line_and_where_it_was_logged(caplog):
    caplog.set_level(logging.INFO)
    taskmanager.log.lines(logging.INFO, "claimed task=%s", [(1,), (2,)])
    assert [(record.msg, record.args, record.filename) for record in caplog.records] == [
        ("claimed task=%s", (each,), "test_process.py") for each in (1, 2)]


def test_a_log_file_that_can_not_be_rotated_takes_all_lines(tmp_path):
    (tmp_path / "log.1").mkdir()        # or the folder is another user's
    output = taskmanager.PrivateLogFile(tmp_path / "log", maxBytes=20, backupCount=1, encoding="utf-8")
    for n in range(10):
        output.handle(logging.LogRecord("x", logging.INFO, "", 0, f"line {n}", (), None))
    output.close()
    assert (tmp_path / "log").read_text().splitlines() == [f"line {n}" for n in range(10)]


# stdin, stdout and stderr

OUTPUTS = {
    "a pipe that nobody reads": "{program} | true",
    "a full disk": "{program} >/dev/full",
    "closed": "{program} >&-",
    "stderr on a full disk": "{program} 2>/dev/full",
    "nothing at all": "{program} <&- >&- 2>&-",
    "an encoding without the name of the database": "export PYTHONIOENCODING=ascii; {program} >{shown}",
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_the_api_starts_whatever_its_output_is(tmp_path, output):
    database, log, status = f"sqlite:///{tmp_path}/größe.db", tmp_path / "log", tmp_path / "status"
    shown = tmp_path / "shown"
    program = f"{{ {sys.executable} taskmanager.py & echo $! >{tmp_path}/pid; wait $!; echo $? >{status}; }}"
    environ = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environ |= {"DATABASE_URL": database, "PORT": "0", "LOG_FILE": str(log)}
    nothing = subprocess.DEVNULL
    shell = subprocess.Popen(["sh", "-c", output.format(program=program, shown=shown)], cwd=ROOT, env=environ,
                             stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    try:
        url = eventually(lambda: log.exists() and re.search(r"started api url=(\S+)", log.read_text()))[1]
        assert http("POST", f"{url}/tasks").status == 201
        eventually(lambda: "completed task=1" in log.read_text())
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        eventually(lambda: status.exists() and status.read_text().strip())
        assert status.read_text().strip() == "0"
        if "{shown}" in output:
            assert "gr??e.db" in shown.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def test_the_port_that_was_really_bound_is_shown(start, sqlite_database):
    program = start("taskmanager.py", DATABASE_URL=sqlite_database, PORT=0)
    for line in (r"look at it +{}\n", r"create a task +curl -X POST {}/tasks\n"):
        program.logged(line.format(program.url))
    assert not program.url.endswith(":0") and http("GET", f"{program.url}/livez").status == 200


# Limits

@SCRIPTS
def test_a_program_raises_its_limit_of_open_files(launch, store, script):
    # CONCURRENCY=400 with programs is some 2,000 files; the usual limit is 1,024.
    program = launch(script, """
import resource
work = lambda task: resource.getrlimit(resource.RLIMIT_NOFILE)
""", wrapper=["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh"])
    soft, hard = run(store)
    assert soft == min(taskmanager.MAX_OPEN_FILES, hard)
    assert program.stop() == 0


@pytest.mark.sqlite
def test_all_threads_of_a_program_allocate_from_one_heap(start, sqlite_database):
    service = start("taskmanager.py", DATABASE_URL=sqlite_database, HANDLER="tests.handlers:heaps")
    assert http("POST", f"{service.url}/tasks", Prefer="wait=20").json["status"] == "Completed"
    assert re.findall("Arena ([0-9]+)", service.log()) in (["0"], [])      # none where it is not glibc


def test_without_waitress_no_server_can_be_made():
    code = """
import sys
sys.modules["waitress"] = None
import taskmanager
taskmanager.make_server(None, taskmanager.Config())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("needs waitress: pip install waitress\n")
