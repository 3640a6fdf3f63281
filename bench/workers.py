"""The measures of workers: tasks that do nothing, from the queue to their status at the end.

Each peer says how its tasks are made, how its worker is run, and how many tasks are done.
"""

import contextlib
import functools
import http.client
import json
import random
import sqlite3
import sys
import threading
import time

import pika
import psycopg2

import servers
import taskmanager
from machine import SCRIPTS, Machine, query, wait_until

PUBLISHED = json.dumps({"status": "New"})       # as the document's producer does


class Peer:
    tasks = 1000        # of a turn; about as many as take two seconds

    def __init__(self, machine: Machine):
        self.machine = machine
        self.url = machine.new_database()

    def prepare(self) -> None:
        """Called once, before the worker is started."""

    def create(self, number: int) -> None:
        raise NotImplementedError

    def worker(self):
        """Return a block in which the worker runs."""
        raise NotImplementedError

    def done(self) -> int:
        raise NotImplementedError


# Task Manager

class OursOnPostgres(Peer):
    name = "Task Manager"
    tasks = 20_000

    def prepare(self):
        self.store = taskmanager.open_store(self.url)

    def create(self, number):
        for first in range(0, number, 1000):
            self.store.create([taskmanager.NewTask()] * min(1000, number - first))

    def worker(self):
        return self.machine.running(sys.executable, "worker.py", DATABASE_URL=self.url, HANDLER="noop:noop",
                                    RABBITMQ_URL=self.machine.rabbitmq.url)

    def done(self):
        return count(self.url, "select count(*) from tasks where status = 'Completed'")


class OursOnSQLite(OursOnPostgres):
    name = "Task Manager on SQLite"
    tasks = 10_000

    def __init__(self, machine):
        self.machine = machine
        machine.databases += 1
        self.file = machine.folder / f"tasks{machine.databases}.db"
        self.url = f"sqlite:///{self.file}"

    def worker(self):
        return self.machine.running(sys.executable, "taskmanager.py", port=servers.free_port(),
                                    DATABASE_URL=self.url, HANDLER="noop:noop")

    def done(self):
        return count_in(self.file, "select count(*) from tasks where status = 'Completed'")


class OursFromRabbitMQ(OursOnPostgres):
    """Its tasks come as messages."""

    def prepare(self):
        super().prepare()
        self.channel = pika.BlockingConnection(pika.URLParameters(self.machine.rabbitmq.url)).channel()
        self.channel.queue_declare("task_queue")
        self.channel.queue_purge("task_queue")

    def create(self, number):
        for _ in range(number):
            self.channel.basic_publish("", "task_queue", PUBLISHED)


class OursFromHttp(OursOnPostgres):
    """Its tasks come as requests of one client that keeps its connection."""

    @contextlib.contextmanager
    def worker(self):
        port = servers.free_port()
        api = self.machine.running(sys.executable, "taskmanager.py", port=port, DATABASE_URL=self.url,
                                   RABBITMQ_URL=self.machine.rabbitmq.url)
        self.client = http.client.HTTPConnection("127.0.0.1", port)
        with api, super().worker():
            yield

    def create(self, number):
        for _ in range(number):
            self.client.request("POST", "/tasks")
            self.client.getresponse().read()


# The others, each with what its own documentation starts with

class Celery(Peer):
    name = "Celery, results in PostgreSQL"
    tasks = 400

    def prepare(self):
        with contextlib.suppress(Exception):
            self.machine.postgres.create_database("celery")
        import celery_app
        self.noop = celery_app.noop
        celery_app.app.control.purge()
        celery_app.app.backend.ResultSession().close()      # makes the tables
        query(self.database, "truncate celery_taskmeta")

    @property
    def database(self):
        return self.machine.postgres.url.removesuffix("postgres") + "celery"

    def create(self, number):
        for _ in range(number):
            self.noop.delay()

    def worker(self):
        return self.machine.running(SCRIPTS / "celery", "-A", "celery_app", "worker")

    def done(self):
        return count(self.database, "select count(*) from celery_taskmeta where status = 'SUCCESS'")


class Dramatiq(Peer):
    name = "Dramatiq, no status kept"
    tasks = 8000

    def prepare(self):
        import dramatiq_app
        self.noop = dramatiq_app.noop
        self.noop.broker.declare_queue("default", ensure=True)
        self.noop.broker.flush("default")
        self.file = self.machine.folder / "dramatiq"
        self.file.write_bytes(b"")

    def create(self, number):
        for _ in range(number):
            self.noop.send()

    def worker(self):
        return self.machine.running(SCRIPTS / "dramatiq", "dramatiq_app")

    def done(self):
        return self.file.stat().st_size


class Procrastinate(Peer):
    name = "Procrastinate"
    tasks = 1000

    def prepare(self):
        import procrastinate_app
        self.app, self.noop = procrastinate_app.app, procrastinate_app.noop
        with contextlib.suppress(Exception):
            self.machine.postgres.create_database("procrastinate")
            with self.app.open():
                self.app.schema_manager.apply_schema()
        query(self.database, "truncate procrastinate_jobs cascade")

    @property
    def database(self):
        return self.machine.postgres.url.removesuffix("postgres") + "procrastinate"

    def create(self, number):
        with self.app.open():
            for _ in range(number):
                self.noop.defer()

    def worker(self):
        return self.machine.running(SCRIPTS / "procrastinate", "--app=procrastinate_app.app", "worker",
                                    "--concurrency=8")

    def done(self):
        return count(self.database, "select count(*) from procrastinate_jobs where status = 'succeeded'")


class Huey(Peer):
    name = "Huey"
    tasks = 3000

    def prepare(self):
        import huey_app
        self.noop = huey_app.noop
        huey_app.huey.flush()

    def create(self, number):
        for _ in range(number):
            self.noop()

    def worker(self):
        return self.machine.running(SCRIPTS / "huey_consumer", "huey_app.huey", "--workers=8")

    def done(self):
        return count_in(self.machine.folder / "huey.db", "select count(*) from kv")


class PlainPika(OursFromRabbitMQ):
    """Consumes in this process, and acknowledges every hundredth message, with all that came before it."""

    name = "ceiling: pika, nothing done"
    tasks = 20_000

    @contextlib.contextmanager
    def worker(self):
        self.consumed = 0
        self.channel.basic_qos(prefetch_count=1000)
        self.channel.basic_consume("task_queue", self.consume)
        consumer = threading.Thread(target=self.channel.start_consuming)
        consumer.start()
        try:
            yield
        finally:
            connection = self.channel.connection
            connection.add_callback_threadsafe(self.channel.stop_consuming)
            consumer.join()
            connection.close()      # so that what is not acknowledged comes back now, and is purged

    def done(self):
        return self.consumed

    def consume(self, channel, method, properties, body):
        self.consumed += 1
        if self.consumed % 100 == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)


@functools.cache
def connection_to(url: str):
    """Keep a connection for all that is counted: to open one takes longer than some of the latencies."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def count(url: str, sql: str) -> int:
    cursor = connection_to(url).cursor()
    cursor.execute(sql)
    return cursor.fetchone()[0]


def count_in(file, sql: str) -> int:
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
        return connection.execute(sql).fetchone()[0]


# Measures

def end_to_end(seconds: int):
    yield from throughputs(seconds, OursOnPostgres, Dramatiq, Procrastinate, Celery)


def sqlite(seconds: int):
    yield from throughputs(seconds, OursOnSQLite, Huey)


def intake(seconds: int):
    yield from throughputs(seconds, OursFromRabbitMQ, PlainPika)


def throughputs(seconds, *peers):
    for peer in peers:
        yield peer.name, functools.partial(throughput, peer, round(peer.tasks * seconds / 2))


def throughput(peer, number: int, machine: Machine) -> float:
    """Create the tasks, then start the worker; return the tasks per second between the first and the last.

    All of them must be done in the end, and no more.
    """
    it = peer(machine)
    it.prepare()
    it.create(number)
    samples = []

    def sample() -> bool:
        samples.append((time.monotonic(), it.done()))
        return samples[-1][1] >= number

    with it.worker():
        wait_until(sample, seconds=120)
        time.sleep(0.2)
        if it.done() != number:
            raise RuntimeError(f"{peer.name}: {it.done()} tasks are done, expected {number}")
    begun = next(at for at, done in enumerate(samples) if done)
    ended = max(begun + 1, len(samples) - 2)        # the last one may have been idle for a while
    ended = min(ended, len(samples) - 1)
    (start, before), (end, after) = samples[begun], samples[ended]
    return (after - before) / (end - start) if end > start else float("nan")


def latency_post(seconds: int):
    yield from latencies(seconds, OursFromHttp, Dramatiq, Procrastinate, Celery, Huey)


def latency_publish(seconds: int):
    yield from latencies(seconds, OursFromRabbitMQ, Dramatiq, Procrastinate, Celery)


def latencies(seconds, *peers):
    for peer in peers:
        yield peer.name, functools.partial(latency, peer, seconds)


def latency(peer, seconds: int, machine: Machine) -> list[float]:
    """Return the milliseconds from before a task is created to its status at the end, one task at a time."""
    it = peer(machine)
    it.prepare()
    found = []
    with it.worker():
        it.create(1)
        wait_until(lambda: it.done() == 1, every=0.001)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(random.uniform(0.02, 0.05))
            before, start = it.done(), time.monotonic()
            it.create(1)
            wait_until(lambda: it.done() > before, every=0.0005)
            found.append((time.monotonic() - start) * 1000)
    return found
