"""Real servers, real programs, a fresh database for every test.

A test that takes `database` or `store` runs on SQLite and on PostgreSQL. TEST_DATABASE_URL and
TEST_RABBITMQ_URL name servers to use instead of our own; the tests that kill a server always use their own.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import servers
import taskmanager

logging.getLogger("pika").setLevel(logging.CRITICAL)
ROOT = Path(__file__).resolve().parent.parent
numbers = itertools.count(1)


def eventually(check, seconds=20.0):
    """The first true value of check(), which is called again and again for so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s; the last value was {value!r}"
        time.sleep(0.02)


def own(kind):
    """A server of our own, running; its absence is a failure where CI is set, and else a reason to skip."""
    try:
        server = kind()
    except servers.Missing as e:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(e))
    server.start()
    return server


@pytest.fixture(scope="session")
def _own_postgres():
    server = own(servers.Postgres)
    yield server
    server.close()


@pytest.fixture(scope="session")
def _own_rabbitmq():
    server = own(servers.RabbitMQ)
    yield server
    server.close()


@pytest.fixture
def postgres(_own_postgres):
    """A PostgreSQL that may be killed."""
    yield _own_postgres
    _own_postgres.start()


@pytest.fixture
def rabbitmq(_own_rabbitmq):
    """A RabbitMQ that may be killed."""
    yield _own_rabbitmq
    _own_rabbitmq.start()


@pytest.fixture
def postgres_database(request):
    """The address of a new, empty PostgreSQL database: in fact a schema, which is made and dropped faster."""
    import psycopg2
    name = f"taskmanager_test_{os.getpid()}_{next(numbers)}"
    server = os.environ.get("TEST_DATABASE_URL") or request.getfixturevalue("_own_postgres").url

    def run(statement):
        with contextlib.closing(psycopg2.connect(server)) as connection:
            connection.autocommit = True
            connection.cursor().execute(statement)

    run(f"create schema {name}")
    yield f"{server}{'&' if '?' in server else '?'}application_name={name}&options=-csearch_path%3D{name}"
    run(f"select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{name}'")
    run(f"drop schema {name} cascade")


@pytest.fixture
def sqlite_database(tmp_path):
    """The address of a new SQLite database."""
    return f"sqlite:///{tmp_path}/tasks.db"


@pytest.fixture(params=["sqlite", "postgres"])
def database(request):
    """The address of a new, empty database, of either kind."""
    return request.getfixturevalue(f"{request.param}_database")


@pytest.fixture
def store(database):
    store = taskmanager.open_store(database)
    yield store
    store.close()


@pytest.fixture
def broker(request):
    """The address of a RabbitMQ, and nothing in its task_queue."""
    import pika
    url = os.environ.get("TEST_RABBITMQ_URL") or request.getfixturevalue("_own_rabbitmq").url
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        for queue in ("task_queue", "task_queue.rejected"):
            connection.channel().queue_delete(queue)
    return url


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


@pytest.fixture
def document_producer(broker, monkeypatch):
    """create_task_via_rabbitmq() of the document, with another host for 'rabbitmq'."""
    import pika
    scope = {}
    exec(PRODUCER, scope)

    def produce(url=broker):
        parameters = pika.URLParameters(url)
        with monkeypatch.context() as patch:
            patch.setattr(pika, "ConnectionParameters", lambda host: {"rabbitmq": parameters}[host])
            scope["create_task_via_rabbitmq"]()
    return produce


class Program:
    """taskmanager.py or worker.py, running; `wrapper` is a command that it is given to."""

    def __init__(self, script, folder, environ, wrapper=()):
        self.log_file = folder / f"{Path(script).name}-{next(numbers)}.log"
        clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        command = [*wrapper, sys.executable, str(ROOT / script)]
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
        return self.logged(r"started api url=(\S+)")[1]

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


SETTINGS = {name for name, _, _ in taskmanager.Config.table()}


@pytest.fixture
def start(tmp_path):
    """start("worker.py", DATABASE_URL=…): a program, ended with the test."""
    programs = []

    def start(script, wrapper=(), **environ):
        environ = {"PORT": "0", **{name: str(value) for name, value in environ.items()}}
        programs.append(Program(script, tmp_path, environ, wrapper))
        return programs[-1]

    yield start
    for program in programs:
        program.end()


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


@pytest.fixture
def serve():
    """serve(app or store, **settings): its address."""
    servers = []

    def serve(app, hosts=(), rabbitmq=None, **settings):
        config = taskmanager.Config(port=0, **settings)
        app = (
            taskmanager.create_app(app, config, hosts, rabbitmq)
            if isinstance(app, taskmanager.Store)
            else app
        )
        server = taskmanager.make_server(app, config)
        threading.Thread(target=server.run, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.effective_port}"

    yield serve
    for server in servers:
        server.close()
        server.task_dispatcher.shutdown()


@pytest.fixture
def api(store, serve):
    return serve(store)


def raw(url, request):
    """Send bytes; what comes back until the server closes."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def is_problem(answer, status):
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["status"] == status and answer.json["title"] and answer.json["detail"]
    assert re.fullmatch("[a-z0-9-]+", answer.json["code"])
    assert all(re.fullmatch("[a-z0-9-]+", each["code"]) for each in answer.json.get("errors", []))
    return answer.json["detail"]
