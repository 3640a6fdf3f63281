"""What the tests of several files use: waiting, tasks, programs and HTTP."""

import concurrent.futures
import contextlib
import io
import itertools
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import wsgiref.util
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import servers
import taskmanager
from taskmanager import new_task

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {name for name, _, _ in taskmanager.Config.table()}
QUICK = {"poll_seconds": 0.05, "retry_seconds": 0.01, "grace_seconds": 5}    # for a worker in a test
LEASE = 30      # seconds
JSON = {"Content-Type": "application/json; charset=utf-8"}

# The table and the producer as they stand in the document.
DOCUMENT_TABLE = """
CREATE TABLE tasks (
    id SERIAL PRIMARY KEY,
    status VARCHAR(20) DEFAULT 'New',
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
"""

PRODUCER = """
import pika
import json

def create_task_via_rabbitmq():
    connection = pika.BlockingConnection(pika.ConnectionParameters('rabbitmq'))
    channel = connection.channel()
    channel.queue_declare(queue='task_queue')

    task = {
        'status': 'New'
    }

    channel.basic_publish(
        exchange='',
        routing_key='task_queue',
        body=json.dumps(task)
    )

    connection.close()
"""


numbers = itertools.count(1)


# Waiting, and doing things at the same moment

def eventually(check, seconds=20.0):
    """The first true value of check(), which is called again and again for so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s; the last value was {value!r}"
        time.sleep(0.02)


def at_once(*calls):
    """What they return, in their order, when all begin at the same moment."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait(20)
        return call()
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def raising(error):
    """A function that raises this error, whatever it is called with."""
    def call(*args, **kwargs):
        raise error
    return call


# Tasks

def sql(store, statement, **params):
    """Run plain SQL, as an operator or another program would write it; the ids of the rows.

    now() is the time in UTC, on both databases.
    """
    return store._execute(statement.replace("now()", taskmanager.NOW) + " returning id", params)


def set_time(store, id, column, seconds):
    """Move the clock: set a time of a task to so many seconds from now; a negative number is the past."""
    assignment = f"{column} = now() + %(seconds)s * interval '1 second'"
    sql(store, f"update tasks set {assignment} where id = %(id)s", id=id, seconds=float(seconds))


def expire(store, id):
    """Move the clock: the lease of a task has run out."""
    set_time(store, id, "lease_until", -3600)


def create(store, **fields):
    [id] = store.create([new_task(fields)])
    return id


def order(store, max_attempts=3, timeout=None, **payload):
    """Create a task that tells tests.handlers:obey what to do; its id."""
    limit = {"timeout": timeout} if timeout else {}
    return create(store, payload=payload, max_attempts=max_attempts, **limit)


def finished(store, id, seconds=20.0):
    """The task as soon as it is Completed or Failed."""
    return eventually(lambda: (row := store.read(id)).status in ("Completed", "Failed") and row, seconds)


def plan_of(store, statement, params):
    """How PostgreSQL runs a statement: EXPLAIN ANALYZE."""
    import psycopg2
    with contextlib.closing(psycopg2.connect(store.url)) as connection, connection.cursor() as cursor:
        cursor.execute("explain (analyze) " + statement, params)
        plan = "\n".join(line for line, in cursor)
    return re.sub(r"(rows=\d+)\.00\b", r"\1", plan)     # PostgreSQL 18 writes two decimals


# Programs

class Program:
    """taskmanager.py or worker.py, running; `wrapper` is a command that gets the program's as arguments.

    Both are started as modules, as in a container: so Python need not compile them at each start.
    """

    def __init__(self, script, folder, environ, wrapper=()):
        self.log_file = folder / f"{Path(script).name}-{next(numbers)}.log"
        unwanted = SETTINGS | {"PYTHONDONTWRITEBYTECODE"}
        clean = {name: value for name, value in os.environ.items() if name not in unwanted}
        is_module = script in ("taskmanager.py", "worker.py")
        arguments = ["-m", script.removesuffix(".py")] if is_module else [str(ROOT / script)]
        command = [*wrapper, sys.executable, *arguments]
        with self.log_file.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=clean | environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # When pytest is gone without a goodbye, this one's stdin ends, and so does the program.
        self.guard = subprocess.Popen(
            ["sh", "-c", 'read _; kill -s KILL -- "-$1"', "guard", str(self.process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def log(self):
        return self.log_file.read_text()

    def logged(self, pattern):
        """Wait for a log line; the match."""
        def look():
            found = re.search(pattern, self.log())
            assert found or self.process.poll() is None, "it ended"
            return found
        try:
            return eventually(look)
        except AssertionError as e:
            raise AssertionError(f"no {pattern!r} ({e}) in:\n{self.log()}") from None

    @property
    def url(self):
        """Where its API listens."""
        return self.logged(r"started api url=(\S+)")[1]

    @property
    def metrics_url(self):
        """Where a worker with METRICS_PORT listens."""
        return f"http://127.0.0.1:{self.logged(r'started metrics port=([0-9]+)')[1]}"

    def send(self, number):
        os.kill(self.process.pid, number)

    def stop(self, number=signal.SIGTERM, seconds=20):
        """Send a signal; the exit status."""
        if self.process.poll() is None:
            self.send(number)
        return self.process.wait(seconds)

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with self.guard:
            self.guard.kill()


def is_alive(pid):
    """Whether a process runs; a zombie does not."""
    return pid in servers.living()


# HTTP

class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


def http(method, url, body=None, **headers):
    """One request; an Answer, whatever its status."""
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    headers = ({"Content-Type": "application/json"} if body else {}) | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({})).open(
            request, timeout=30
        ) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as e:
        return Answer(e.code, e.headers, e.read())


def connect(url, sent=b"", buffer=None):
    """A connection to the server at this address, over which some bytes were sent.

    `buffer` is the size of its receive buffer in bytes; what exceeds it waits in the server until it is read.
    """
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    address = urlsplit(url)
    connection.connect((address.hostname, address.port))
    connection.sendall(sent)
    return connection


def reset(connection):
    """Close a connection with a RST, as when its client has crashed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def raw(url, request):
    """Send bytes; what comes back until the server closes."""
    with connect(url, request) as connection:
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


class Waiter:
    """A request that was sent, and whose answer is not waited for."""

    def __init__(self, url, method="GET", path="/tasks/1", body=None, wait=60, **headers):
        self.again = lambda: Waiter(url, method, path, body, wait, **headers)
        self.method = method
        data = b"" if body is None else json.dumps(body).encode()
        lines = {
            "Host": urlsplit(url).netloc,
            "Prefer": f"wait={wait}",
            "Content-Type": "application/json",
            "Content-Length": len(data),
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "", ""]
        self.socket = connect(url, "\r\n".join(head).encode() + data)

    def waits(self):
        """Nothing has come back so far."""
        return not select.select([self.socket], [], [], 0)[0]

    def answer(self):
        with self.socket, HTTPResponse(self.socket, method=self.method) as response:
            response.begin()
            return Answer(response.status, response.headers, response.read())

    def hang_up(self, rudely=False):
        (reset if rudely else socket.socket.close)(self.socket)


def full(url, id=1):
    """Whether all the places are taken, as somebody sees who would wait for an unfinished task."""
    return http("GET", f"{url}/tasks/{id}", Prefer="wait=0").headers["Preference-Applied"] is None


def waiting(url, *waiters):
    """These, all waiting, and no place left. One that found no place while full() had it is sent again."""
    waiters = list(waiters)

    def look():
        waiters[:] = [waiter if waiter.waits() else waiter.again() for waiter in waiters]
        return full(url)
    eventually(look)
    return waiters


def is_problem(answer, status):
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["status"] == status and answer.json["title"] and answer.json["detail"]
    assert re.fullmatch("[a-z0-9-]+", answer.json["code"])
    assert all(re.fullmatch("[a-z0-9-]+", each["code"]) for each in answer.json.get("errors", []))
    return answer.json["detail"]


def call_app(app, method, path, stream=None, **environ):
    """Call a WSGI application without a server; the status, the headers and the body of its answer."""
    path, _, query = path.partition("?")
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "wsgi.input": stream or io.BytesIO(),
        **environ,
    }
    wsgiref.util.setup_testing_defaults(environ)
    said = []

    def start(status, headers, exc_info=None):
        said.extend((int(status[:3]), dict(headers)))

    body = b"".join(app(environ, start))
    return (*said, body)
