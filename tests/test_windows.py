"""What runs on Windows, as far as it can be seen elsewhere: the programs without what Python lacks there."""

import subprocess
import sys

import pytest

import taskmanager
from helpers import ROOT, eventually, finished, http
from taskmanager import new_task

# The modules and names that are "Availability: Unix" in the documentation of Python. What is imported first
# finds out by itself where it is.
AS_ON_WINDOWS = """
import importlib.abc, logging.handlers, multiprocessing.connection, os, select, selectors, signal, socket
import socketserver, subprocess, sys, tempfile, time

MISSING = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "posix"}

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
for name in MISSING:
    sys.modules.pop(name, None)
KEPT = {"SIGTERM", "SIGINT", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN"}
for module, names in {
    os: ["fork", "forkpty", "killpg", "getuid", "geteuid", "getgid", "getpgid", "setsid", "setpgid",
         "getpgrp", "getsid", "wait", "wait3", "wait4", "waitid", "register_at_fork", "chown", "fchown",
         "fchmod", "mkfifo", "nice", "uname", "statvfs", "pread", "pwrite", "getloadavg"],
    select: ["poll", "epoll", "kqueue"],
    signal: ["alarm", "setitimer", "getitimer", "pause", "siginterrupt", "sigwait", "sigpending",
             "pthread_kill", "pthread_sigmask"]
            + [name for name in dir(signal) if name[:3] == "SIG" and name not in KEPT],
    socket: ["AF_UNIX", "SO_REUSEPORT", "MSG_DONTWAIT", "MSG_NOSIGNAL", "sethostname", "fromfd"],
    time: ["tzset", "clock_gettime", "pthread_getcpuclockid"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

# Its server wakes itself up over a socket there, not over a pipe.
os.name = "nt"
import waitress.trigger
os.name = "posix"
"""

PROGRAM = AS_ON_WINDOWS + """
sys.path.insert(0, os.getcwd())
import taskmanager, worker
sys.argv = [sys.argv[1]]
taskmanager.run({"taskmanager.py": taskmanager.main, "worker.py": worker.main}[sys.argv[0]])
"""


@pytest.fixture
def start_there(start, tmp_path, sqlite_database):
    """start_there("worker.py", …): a program without what Windows lacks."""
    program = tmp_path / "as_on_windows.py"
    program.write_text(PROGRAM)

    def start_there(script, **environ):
        encoding = {"PYTHONUTF8": 0, "PYTHONCOERCECLOCALE": 0, "LC_ALL": "C"}       # not UTF-8 by itself
        environ = {"DATABASE_URL": sqlite_database, "POLL_SECONDS": 0.05, **encoding, **environ}
        return start(program, [sys.executable, program, script], **environ)
    return start_there


def test_the_modules_can_be_imported_where_python_lacks_what_windows_lacks(tmp_path):
    code = AS_ON_WINDOWS + "import taskmanager, worker; print(taskmanager.MAX_CONNECTIONS)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 512      # the limit of select() there


def test_the_api_runs_tasks_with_a_function_there(start_there, sqlite_database):
    program = start_there("taskmanager.py", HANDLER="tests.handlers:obey")
    url = program.url
    id = http("POST", f"{url}/tasks", {"payload": {"return": "größer"}}).json["id"]
    assert http("GET", f"{url}/tasks/{id}", Prefer="wait=10").json["result"] == "größer"
    slow = http("POST", f"{url}/tasks", {"payload": {"sleep": 60}}).json["id"]
    eventually(lambda: http("GET", f"{url}/tasks/{slow}").json["status"] == "In Progress")
    assert http("POST", f"{url}/tasks/{slow}/cancel").status == 202
    assert http("GET", f"{url}/tasks/{slow}", Prefer="wait=10").json["error"] == "canceled"
    for path in ("", "swagger", "openapi.yaml", "readyz", "metrics"):
        assert http("GET", f"{url}/{path}").status == 200
    assert program.stop() == 0 and "Traceback" not in program.log()


def test_a_worker_runs_tasks_with_an_address_there(start_there, serve, sqlite_database):
    store = taskmanager.open_store(sqlite_database)

    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b'"done elsewhere"']

    program = start_there("worker.py", HANDLER=serve(application), METRICS_PORT=0)
    [id] = store.create([new_task({})])
    assert finished(store, id).result == '"done elsewhere"'
    assert program.stop() == 0 and "Traceback" not in program.log()


def test_a_program_as_handler_is_refused_with_the_reason(start_there):
    program = start_there("worker.py", HANDLER="exec:cmd /c echo hello")
    assert program.process.wait(20) == 1
    assert "can't be used: programs are run only where there are process groups" in program.log()
