"""What is broken, one thing at a time. A scenario returns when all that it broke is put right again."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Callable

import pika
import psycopg2

import servers
from chaos.producers import HttpProducer, Ledger, post, publisher
from chaos.stage import DURABLE, FileStage, ServerStage, Stage, StandbyStage, wait_until
from helpers import connect, reset


@dataclasses.dataclass
class Scenario:
    name: str
    group: str
    run: Callable[[Stage, Ledger], Callable[[], None] | None]   # may return what is to be done afterwards
    breaks: set[str]        # no other scenario that breaks one of these runs at the same time

    @property
    def stage(self) -> type[Stage]:
        return {"standby": StandbyStage, "sqlite": FileStage}.get(self.group, ServerStage)


SCENARIOS: dict[str, Scenario] = {}


def scenario(group: str, breaks: str):
    def register(run):
        SCENARIOS[run.__name__] = Scenario(run.__name__, group, run, set(breaks.split()))
        return run
    return register


class Sender(HttpProducer):
    """A client of the scenario itself, which sends a task until it is told that it is kept."""

    def __init__(self, stage, ledger):
        self.stage, self.random = stage, ledger.random

    def send(self, offers) -> None:
        for offer in offers:
            while not post(self, [offer]):
                time.sleep(0.1)
        self.close()


def send(stage: Stage, ledger: Ledger, number: int, **fields) -> None:
    """Create tasks over HTTP."""
    offers = [ledger.offer("http with key", **fields) for _ in range(number)]
    Sender(stage, ledger).send(offers)


# Workers

@scenario("programs", "worker")
def worker_killed(stage, ledger):
    """Workers are killed, one after the other."""
    for _ in range(3):
        time.sleep(0.6)
        stage.kill(stage.random.choice(stage.workers))


@scenario("programs", "worker")
def worker_frozen(stage, ledger):
    """A worker sleeps past its lease, and wakes: what it then reports is refused."""
    # When it wakes, others run these tasks.
    send(stage, ledger, 12, kind="long", payload={"sleep": stage.lease})
    name = holder_of_most(stage, "long") or stage.random.choice(stage.workers)
    stage.freeze(name)
    time.sleep(stage.lease + 1.5)
    stage.thaw(name)


def holder_of_most(stage, kind):
    """Return the name of the worker that runs most tasks of a kind; None when none does."""
    with contextlib.suppress(stage.database_errors):
        for worker, _ in stage.query("select worker, count(*) from tasks where status = 'In Progress' "
                                     f"and kind = '{kind}' group by worker order by 2 desc limit 1"):
            pid = int(worker.split(":")[-2])
            return next((name for name, each in stage.programs.items() if each.process.pid == pid), None)
    return None


@scenario("programs", "worker")
def worker_stopped(stage, ledger):
    """All workers are told to stop while they run tasks that take longer than their grace period."""
    send(stage, ledger, 12, kind="long", payload={"sleep": 2})
    time.sleep(0.3)

    def restart(name):
        if status := stage.stop(name):
            ledger.wrong.append(f"{name} ended with {status} at SIGTERM")
        stage.start(name)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(restart, stage.workers))


@scenario("programs", "worker4")
def out_of_memory(stage, ledger):
    """Handlers take all the memory that their worker may have."""
    stage.wrappers["worker4"] = ("sh", "-c", 'ulimit -v 1500000; exec "$@"', "sh")
    stage.environment["worker4"] = {"KINDS": "default,hungry"}
    stage.start("worker4")
    send(stage, ledger, 4, kind="hungry")
    stage.lost_attempts += 4            # the first attempt of each fails
    all_ended(stage, ledger, "hungry")
    stage.remove("worker4")


@scenario("programs", "worker")
def deadly_handler(stage, ledger):
    """Two tasks kill every worker that runs them; those beside them are completed all the same."""
    send(stage, ledger, 2, kind="deadly", max_attempts=2)
    all_ended(stage, ledger, "deadly")


def all_ended(stage, ledger, kind):
    """Wait until all tasks of a kind have ended."""
    tokens = [offer.token for offer in ledger.offers() if offer.fields.get("kind") == kind]

    def ended():
        with contextlib.suppress(stage.database_errors):
            found = stage.query(f"select cast(payload as text) from tasks where kind = '{kind}' "
                                "and status in ('Completed', 'Failed')")
            return set(tokens) <= {json.loads(payload)["n"] for payload, in found}
    wait_until(ended, 60, f"all tasks of the kind {kind} have ended")


# PostgreSQL

@scenario("database", "postgres")
def postgres_restarted(stage, ledger):
    """A fast restart: sessions are ended, and the server shuts down in order."""
    stage.postgres.stop()
    time.sleep(0.5)
    stage.postgres.start()


@scenario("database", "postgres")
def postgres_restarted_immediately(stage, ledger):
    """An immediate restart: the server ends as it stands, and recovers at its start."""
    stage.postgres.stop_signal = signal.SIGQUIT
    stage.postgres.stop()
    del stage.postgres.stop_signal
    time.sleep(0.5)
    stage.postgres.start()


@scenario("database", "postgres")
def postgres_killed(stage, ledger):
    """The server and all its processes are killed at once, and recover at the start."""
    stage.postgres.kill()
    time.sleep(1)
    stage.postgres.start()


@scenario("database", "postgres")
def backends_terminated(stage, ledger):
    """Sessions are ended by an administrator, again and again."""
    for _ in range(12):
        stage.query("select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'taskmanager' order by random() limit 3")
        time.sleep(0.15)


@scenario("database", "postgres")
def connections_exhausted(stage, ledger):
    """Others take all of max_connections, and the programs lose theirs."""
    with contextlib.ExitStack() as others:
        administrator = others.enter_context(contextlib.closing(psycopg2.connect(stage.url)))
        administrator.autocommit = True
        until = time.monotonic() + (1.5 if stage.is_short else 3)
        while time.monotonic() < until:
            with contextlib.suppress(psycopg2.OperationalError):
                while True:
                    others.enter_context(contextlib.closing(psycopg2.connect(stage.url)))
            administrator.cursor().execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'taskmanager'")
    stage.may_lose_all()


@scenario("database", "postgres")
def table_locked(stage, ledger):
    """Somebody locks the whole table for longer than a lease."""
    with contextlib.closing(psycopg2.connect(stage.url)) as connection:
        connection.cursor().execute("lock table tasks in access exclusive mode")
        time.sleep(stage.lease + 1)
    stage.may_lose_all()


@scenario("database", "postgres")
def disk_full(stage, ledger):
    """The disk is full: every statement that writes fails with the error that PostgreSQL gives then."""
    stage.query("""
        create function chaos_full() returns trigger language plpgsql as $$
        begin
            raise exception 'could not extend file: No space left on device' using errcode = 'disk_full';
        end $$;
        create trigger chaos_full before insert or update or delete on tasks
            for each statement execute function chaos_full()""")
    stage.rest(3)
    stage.query("drop function chaos_full cascade")
    stage.may_lose_all()        # about as long as a lease


@scenario("database", "postgres worker client")
def pgbouncer_restarted(stage, ledger):
    """Everything goes through PgBouncer in transaction mode, which is stopped and killed."""
    bouncer = servers.PgBouncer(stage.postgres)
    bouncer.start()
    stage.pooled_url = bouncer.url_of(stage.url)
    restart_all(stage)
    for end in (bouncer.stop, bouncer.kill):
        stage.rest(1)
        end()
        time.sleep(0.5)
        bouncer.start()

    def afterwards():
        stage.pooled_url = stage.url
        restart_all(stage)
        bouncer.close()
    return afterwards


def restart_all(stage, environ_of=lambda name: {}):
    """Restart all programs, one half after the other, as for an upgrade."""
    for half in (("api1", "worker1", "worker3"), ("api2", "worker2")):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: stage.restart(name, **environ_of(name)), half))


@scenario("database", "postgres")
def connection_cut(stage, ledger):
    """An API process and a worker hear nothing any more from the database, and no reset tells them."""
    stage.proxy.go_silent()
    time.sleep(stage.lease + 1)
    stage.proxy.recover()
    stage.may_lose_all()


# RabbitMQ

@scenario("broker", "broker")
def rabbitmq_restarted(stage, ledger):
    """The broker is restarted: what is durable stays."""
    stage.documented_at_risk = True
    stage.broker.stop()
    stage.broker.start()


@scenario("broker", "broker")
def rabbitmq_killed(stage, ledger):
    """The broker is killed: what it has confirmed stays."""
    stage.documented_at_risk = True
    stage.broker.kill()
    stage.broker.start()


@scenario("broker", "broker")
def queue_deleted(stage, ledger):
    """An administrator deletes the empty queue; a second later there is a new one."""
    with without_messages(stage, ledger) as channel:
        channel.queue_delete(DURABLE)
        time.sleep(1)
        channel.queue_delete(DURABLE)       # the workers have made it again, as the document's producer would
        declare_durable(channel)


@scenario("broker", "broker")
def consumer_cancelled(stage, ledger):
    """The broker ends the subscriptions of the workers, again and again."""
    for _ in range(3):
        with without_messages(stage, ledger) as channel:
            channel.queue_delete(DURABLE)
            # A quorum queue (RabbitMQ 3.10) that is made anew at once does not tell its consumers, and never
            # delivers to them.
            time.sleep(0.1)
            make_durable(stage)
        time.sleep(0.3)


def make_durable(stage):
    """Declare the queue. A worker that has missed it may have made it, as one that is not durable."""
    while True:
        with stage.channel() as channel, contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
            declare_durable(channel)
            return
        with stage.channel() as channel:
            channel.queue_delete(DURABLE)


def declare_durable(channel):
    channel.queue_declare(DURABLE, durable=True, arguments={"x-queue-type": "quorum"})


@contextlib.contextmanager
def without_messages(stage, ledger):
    """Hold the producers of messages back, and begin when all that were sent are tasks."""
    ledger.hold_messages()
    try:
        def all_taken():
            with contextlib.suppress(stage.database_errors):
                there = {json.loads(payload)["n"] for payload, in
                         stage.query("select cast(payload as text) from tasks where payload is not null")}
                return all(offer.token in there for offer in ledger.offers()
                           if offer.told == "accepted" and offer.door.startswith("message"))
        wait_until(all_taken, 60, "all messages are tasks")
        with stage.channel() as channel:
            yield channel
    finally:
        ledger.messages_may_flow.set()


@scenario("broker", "broker")
def memory_alarm(stage, ledger):
    """The broker has no memory left: it takes nothing from those who publish."""
    stage.broker.limit_memory(10**6)

    def is_alarmed():
        return "memory resource limit alarm set" in stage.broker.log.read_text(errors="replace")
    wait_until(is_alarmed, 20, "the alarm")
    stage.rest(4)
    stage.broker.limit_memory(10**9)


BAD_BODIES = (b"\xff\xfe", b"{", b"NaN", b'"no object"', b'{"status": "Failed"}', b'{"priority": "high"}',
              b"[" * 50_000, b'{"payload": "\\u0000"}')
# A header that pika can't decode, though brokers take it: a date before 1970.
UNDECODABLE = b"\1xT" + struct.pack(">q", -86400)


class Encoded(pika.BasicProperties):
    """Properties with a header table that is already encoded."""

    def __init__(self, table, **properties):
        super().__init__(**properties)
        self.table = table

    def encode(self):
        encoded = b"".join(super().encode())
        flags, = struct.unpack(">H", encoded[:2])
        return [struct.pack(">HL", flags | self.FLAG_HEADERS, len(self.table)), self.table, encoded[2:]]


def publish_poison(stage, ledger, number, size=0):
    """Publish messages that are no tasks, each with a token at its beginning."""
    channel = publisher(stage, DURABLE)
    with contextlib.closing(channel.connection):
        for n in range(number):
            offer = ledger.offer("poison")
            bad = BAD_BODIES[n % len(BAD_BODIES)]
            properties = pika.BasicProperties(delivery_mode=2, message_id=b"\xff" if n % 3 == 0 else None)
            body = offer.token.encode() + b" " + bad + b"x" * size
            channel.basic_publish("", DURABLE, body, properties, mandatory=True)
            offer.accept()


@scenario("broker", "broker")
def poison_messages(stage, ledger):
    """A thousand messages that are no tasks, or 300, come among the good ones; all are rejected."""
    publish_poison(stage, ledger, 300 if stage.is_short else 1000)


@scenario("broker", "broker")
def large_messages(stage, ledger):
    """Messages of 16 MB come among the others; all are rejected."""
    publish_poison(stage, ledger, 4, 16 * 2**20)


@scenario("broker", "broker")
def undecodable_messages(stage, ledger):
    """Messages whose headers or ids can't be decoded come among the good ones."""
    channel = publisher(stage, DURABLE)
    with contextlib.closing(channel.connection):
        for n in range(100):
            # Headers are ignored, so this is a task; an id that is no text makes a message invalid.
            offer = ledger.offer("message with message_id" if n % 2 else "poison")
            id = offer.token if n % 2 else b"\xff\xfe"
            body = json.dumps(offer.body).encode() if n % 2 else offer.token.encode() + b" {}"
            properties = Encoded(UNDECODABLE, delivery_mode=2, message_id=id)
            channel.basic_publish("", DURABLE, body, properties, mandatory=True)
            offer.accept()


@scenario("broker", "broker")
def rejected_queue_full(stage, ledger):
    """The queue of rejected messages takes no more, for longer than the broker waits for acknowledgements."""
    queue = f"{DURABLE}.rejected"
    full = {"x-max-length": 5, "x-overflow": "reject-publish"}
    replace_rejected(stage, queue, full)
    publish_poison(stage, ledger, 100 if stage.is_short else 300)
    time.sleep(stage.patience_of_broker + 1)
    replace_rejected(stage, queue, {})


def replace_rejected(stage, queue, arguments):
    """Make the queue of rejected messages anew, with other arguments, and keep what was in it."""
    is_deleted = False
    while not is_deleted:
        stage.collect_rejected()
        with stage.channel() as channel, contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
            channel.queue_delete(queue, if_empty=True)      # or another one has come in
            channel.queue_declare(queue, durable=True, arguments=arguments)
            is_deleted = True


@scenario("broker", "postgres")
def database_away_for_long(stage, ledger):
    """The database is away for longer than the broker waits for acknowledgements."""
    stage.postgres.stop()
    time.sleep(stage.patience_of_broker + 1.5)
    stage.postgres.start()
    stage.may_lose_all()


# Clients

@scenario("programs", "client")
def api_killed(stage, ledger):
    """API processes are killed with requests in flight."""
    for _ in range(4):
        time.sleep(0.5)
        stage.kill(stage.random.choice(stage.apis))


def request(ledger, length=None) -> bytes:
    """Return a request that creates a task, of which its client may never hear."""
    offer = ledger.offer("http", payload={"rude": True})
    body = json.dumps(offer.body).encode()
    head = (f"POST /tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length or len(body)}\r\n\r\n")
    return head.encode() + body


@scenario("programs", "client")
def clients_vanish(stage, ledger):
    """Clients hang up in the midst of a request, or before its answer, politely or with a reset."""
    for n in range(200):
        with contextlib.suppress(OSError):
            whole = request(ledger)
            part = whole if n % 2 else whole[:stage.random.randrange(len(whole))]
            connection = connect(stage.random.choice(stage.urls), part)
            reset(connection) if n % 3 else connection.close()


@scenario("programs", "client")
def slow_clients(stage, ledger):
    """Clients send a byte a second."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        clients = [stack.enter_context(connect(stage.random.choice(stage.urls), b"P")) for _ in range(100)]
        for byte in b"OS" if stage.is_short else b"OST ":
            time.sleep(1)
            for client in clients:
                client.sendall(bytes([byte]))


def raise_limit_of_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000 if hard == resource.RLIM_INFINITY else min(hard, 10_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


@scenario("programs", "client")
def thousand_connections(stage, ledger):
    """Clients open a thousand connections to each API process, and send nothing or half a request."""
    raise_limit_of_files()
    with contextlib.ExitStack() as stack:
        for url in stage.urls:
            for n in range(1000):
                with contextlib.suppress(OSError):      # the connection was closed again
                    stack.enter_context(connect(url, b"POST /tasks HTTP/1.1\r\n" if n % 2 else b""))
        time.sleep(1)


@scenario("programs", "worker client")
def clocks_apart(stage, ledger):
    """The clocks of the machines differ by minutes and hours; leases and delays do not care."""
    folder = os.path.join(os.path.dirname(__file__), "clock")
    shifts = {"worker1": 300, "worker2": -300, "worker3": 3600, "api1": -7200, "api2": 600}
    restart_all(stage, lambda name: {"PYTHONPATH": folder, "CHAOS_CLOCK": shifts[name]})
    send(stage, ledger, 10, delay=1)
    stage.kill("worker1")               # its leases must run out at the right time
    return lambda: restart_all(stage)


# A primary and its standby

@scenario("standby", "postgres")
def primary_killed(stage, ledger):
    """The primary is killed and the standby promoted; it then gets a standby of its own."""
    return fail_over(stage, stage.postgres.kill)


@scenario("standby", "postgres")
def primary_frozen(stage, ledger):
    """The primary stops answering, the standby is promoted, and later the frozen one is killed."""
    return fail_over(stage, stage.postgres.freeze, seconds=stage.lease)


def fail_over(stage, fault, seconds=0.5):
    fault()
    time.sleep(0.5)
    stage.promote()
    time.sleep(seconds)
    stage.standby.kill()        # as operators do: of two primaries one must be certain to be off
    stage.may_lose_all()
    return lambda: stage.follow(stage.postgres, stage.standby)


# SQLite

@scenario("sqlite", "file")
def two_processes_on_a_file(stage, ledger):
    """Three processes write to the file, and a fourth one holds its lock for seconds."""
    with contextlib.closing(sqlite3.connect(stage.file, timeout=20, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        time.sleep(stage.lease)
        connection.execute("rollback")
    stage.may_lose_all()


@scenario("sqlite", "worker client")
def killed_while_writing(stage, ledger):
    """Processes are killed while they write."""
    for _ in range(6):
        time.sleep(0.5)
        stage.kill(stage.random.choice([*stage.apis, *stage.workers]))


@scenario("sqlite", "file")
def file_system_full(stage, ledger):
    """No file may grow any more: the system refuses it to each process, as on a full disk."""
    with contextlib.closing(sqlite3.connect(stage.file, isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from tasks").fetchall()     # so that SQLite's log can't begin anew
        stage.rest(0.5)
        size = max(file.stat().st_size for file in stage.files())
        for name in stage.programs:
            stage.limit_files(name, size)
        stage.rest(3)
    for name in stage.programs:
        stage.limit_files(name)
    stage.may_lose_all()


@scenario("sqlite", "file worker client")
def file_read_only(stage, ledger):
    """The file becomes read-only, and the processes are killed and started on it."""
    if os.getuid() == 0 and not shutil.which("setpriv"):
        raise servers.Missing("setpriv is not installed, and root writes read-only files")
    modes = {file: file.stat().st_mode for file in stage.files()}
    for file in modes:
        file.chmod(0o400)
    for name in stage.programs:
        stage.kill(name)
    stage.rest(3)
    for file, mode in modes.items():
        file.chmod(mode)

