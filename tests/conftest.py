"""Fixtures: real servers, real programs, a fresh database for every test.

A test that takes `database` or `store` runs on SQLite and on PostgreSQL; where it, or its module, is marked
`sqlite`, on SQLite alone. TEST_DATABASE_URL and TEST_RABBITMQ_URL name servers to use instead of our own; the
tests that kill a server always use their own.
"""

import contextlib
import http.server
import logging
import os
import signal
import threading
import time

import pytest

import servers
import taskmanager
from handlers import obey
from helpers import PRODUCER, QUICK, Program, create, numbers
from taskmanager import Config, Worker

logging.getLogger("pika").setLevel(logging.CRITICAL)


def pytest_configure(config):
    config.addinivalue_line("markers", "sqlite: the test, or the module, needs no other database than SQLite")
    # A shell ignores some of them for what it starts in the background, and nohup one; what we start would
    # inherit that. A signal that is handled, though by doing nothing, does there what it usually does.
    for number in taskmanager.SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Give a test that is marked `sqlite` the database of that kind alone."""
    if metafunc.definition.get_closest_marker("sqlite") and "database" in metafunc.fixturenames:
        metafunc.definition.add_marker(pytest.mark.parametrize("database", ["sqlite"], indirect=True))


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


@pytest.fixture(scope="session")
def pgbouncer(_own_postgres):
    """A PgBouncer in transaction mode, before the PostgreSQL that is our own."""
    server = own(lambda: servers.PgBouncer(_own_postgres))
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
def empty_database(_own_postgres):
    """make(): the address of a database of its own, for settings that hold for a whole database."""
    made = []

    def make(options=""):
        name = f"own_{os.getpid()}_{time.monotonic_ns()}"
        _own_postgres.execute(f"create database {name} {options}")
        made.append(name)
        return _own_postgres.url.removesuffix("postgres") + name

    yield make
    for name in made:
        # `with (force)` would say it in one statement, but not to PostgreSQL 12.
        _own_postgres.execute(f"alter database {name} allow_connections false")
        _own_postgres.execute(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
        _own_postgres.execute(f"drop database {name}")


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


@pytest.fixture
def server():
    """server(app or store, **settings): a running HTTP server, whose address is its `url`.

    With `patience` it closes a connection on which nothing has happened for so many seconds.
    """
    running = []

    def start(app, hosts=(), rabbitmq=None, patience=None, **settings):
        config = Config(port=0, **settings)
        if isinstance(app, taskmanager.Store):
            app = taskmanager.create_app(app, config, hosts, rabbitmq)
        server = taskmanager.make_server(app, config)
        if patience is not None:
            server.adj.channel_timeout, server.adj.cleanup_interval = patience, 0
        server.url = f"http://127.0.0.1:{server.effective_port}"
        threading.Thread(target=server.run, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()
        server.task_dispatcher.shutdown()


@pytest.fixture
def serve(server):
    """serve(app or store, **settings): the address of a running HTTP server."""
    return lambda *args, **settings: server(*args, **settings).url


@pytest.fixture
def api(store, serve):
    return serve(store)


@pytest.fixture
def work(store):
    """work(handler, **settings): a worker that runs in this process, on the store."""
    workers = []

    def work(handler=obey, **settings):
        worker = Worker(store, Config(**QUICK | settings), handler)
        workers.append(worker)
        worker.start()
        return worker

    yield work
    for worker in workers:
        worker.stop(0)


@pytest.fixture
def run(store):
    """run(HANDLER, settings, **fields): the id of a new task, which a worker with that handler runs."""
    workers = []

    def run(handler, settings=None, **fields):
        worker = Worker(store, Config(handler=handler, **QUICK | (settings or {})))
        workers.append(worker)
        worker.start()
        return create(store, **fields)

    yield run
    for worker in workers:
        worker.stop(0)


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers as the test says, and remembers what it was asked."""
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers, body))
        status, headers, answer = (
            self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        )
        if callable(answer):
            answer = answer(self)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def receiver():
    """A server that HANDLER may name: its `url`, the `answers` that it will give, the `requests` so far."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.requests = []
    server.answers = [(200, {}, b"")]
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def channel(broker):
    import pika
    with pika.BlockingConnection(pika.URLParameters(broker)) as connection:
        yield connection.channel()


@pytest.fixture
def intake(store, broker):
    """intake(): a running intake of messages into the store."""
    from worker import Intake
    running = []

    def start():
        it = Intake(store, Config(rabbitmq_url=broker))
        running.append(it)
        it.start()
        return it

    yield start
    for it in running:
        it.stop()
