"""Messages, queues and brokers that mean no good: the good messages become tasks all the same, once each."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import struct
import threading
import time

import pika
import pytest

import taskmanager
import worker
from helpers import ROOT, eventually, raising
from messages import exists, publish, ready, rejected
from taskmanager import BadSetting, Config, Outage, RabbitNotifier, Unavailable
from worker import Intake

pytestmark = pytest.mark.sqlite

QUEUES = {
    "transient": {},
    "durable": {"durable": True},
    # A message that is delivered a second time is gone.
    "quorum": {"durable": True, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 0}},
}
FULL = {"durable": True, "arguments": {"x-max-length": 0, "x-overflow": "reject-publish"}}


def field(kind, value):
    return b"\1x" + kind + value


def nested(levels):
    value = b""
    for _ in range(levels):
        value = field(b"F", struct.pack(">L", len(value)) + value)
    return value


# Fields of a header table that the broker takes, and pika can't decode.
HEADERS = {
    "milliseconds": field(b"T", struct.pack(">Q", 1772000000000)),
    "before 1970": field(b"T", struct.pack(">q", -86400)),
    "nested tables": nested(3000),
    "too late for Python": field(b"T", struct.pack(">Q", 2**62)),
}


class Raw(pika.BasicProperties):
    """Properties with a header table that is already encoded. It stands before all others that are given."""

    def __init__(self, table, **properties):
        super().__init__(**properties)
        self.table = table

    def encode(self):
        encoded = b"".join(super().encode())
        flags, = struct.unpack(">H", encoded[:2])
        return [struct.pack(">HL", flags | self.FLAG_HEADERS, len(self.table)), self.table, encoded[2:]]


def payloads(store):
    return sorted(int(row.payload) for row in store.list_tasks())


def exists_exchange(channel):
    with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
        return bool(channel.connection.channel().exchange_declare("task_queue.notifications", passive=True))


def number_of(channel, queue):
    """Messages in a queue, which is emptied."""
    found = iter(lambda: channel.basic_get(queue, auto_ack=True)[0], None)
    return sum(1 for _ in found)


@pytest.mark.parametrize("queue", QUEUES)
def test_what_pika_can_not_decode_is_taken_and_all_are_delivered_once(intake, store, channel, queue):
    """A client in Java or Go puts a time in milliseconds into a header."""
    channel.queue_declare("task_queue", **QUEUES[queue])
    for n in range(20):
        publish(channel, b'{"payload": %d}' % n)
    for n, table in enumerate(HEADERS.values(), 20):
        properties = Raw(table, message_id=f"m{n}", delivery_mode=2)
        channel.basic_publish("", "task_queue", b'{"payload": %d}' % n, properties)
    for n in range(24, 40):
        publish(channel, b'{"payload": %d}' % n)
    it = intake()
    eventually(lambda: payloads(store) == list(range(40)))
    keys = [row.idempotency_key for row in store.list_tasks() if row.idempotency_key]
    assert keys == ["m20", "m21", "m22", "m23"]
    eventually(lambda: ready(channel) == 0)
    assert it._failures == 0


def test_a_message_id_in_another_encoding_is_rejected_alone(intake, store, channel):
    """A producer on an old system sends Latin-1."""
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    latin = "größe".encode("latin-1")
    publish(channel, b'{"payload": 0}')
    publish(channel, b'{"payload": 1}', message_id=latin, content_type=latin, content_encoding=latin)
    publish(channel, b'{"payload": 2}')
    intake()
    properties, body = rejected(channel)
    assert (properties.message_id, body) == (latin, b'{"payload": 1}')
    assert properties.headers["reason"] == "message_id: expected UTF-8"
    assert properties.headers["errors"] == [{"property": "message_id", "code": "not-utf8"}]
    eventually(lambda: payloads(store) == [0, 2])


@pytest.mark.parametrize(
    "encoded, decoded",
    [
        (b"", None),
        (b"\x20\x00", None),
        (b"\xff\xfe", None),
        (b"\x80", None),
        (b"\x20\x00\x00\x00\xff\xff", pika.BasicProperties()),
        (b"\x80\x00\x09abc", pika.BasicProperties("abc")),
    ],
    ids=repr,
)
def test_of_properties_that_are_cut_off_at_most_the_beginning_is_known(encoded, decoded):
    assert worker.decode_properties(encoded) == decoded


def test_a_message_without_properties_is_invalid():
    with pytest.raises(taskmanager.Invalid, match="its properties can't be decoded"):
        Intake._parse(worker.Message(1, None, b""))


@pytest.mark.parametrize("step", ["check", "insert"])
def test_an_unexpected_fault_with_one_message_is_its_own(intake, store, channel, monkeypatch, step):
    """An error of ours, or of a library, that one message brings to light."""
    parse, create, tries = taskmanager.parse_task, store.create, []

    def parse_task(body, key):
        if step == "check" and b"13" in body:
            raise ZeroDivisionError("what nobody thought of")
        return parse(body, key)

    def picky(tasks, via):
        tries.append(len(tasks))
        if step == "insert" and any(task.payload == "13" for task in tasks):
            raise ZeroDivisionError("what nobody thought of")
        return create(tasks, via)
    monkeypatch.setattr(taskmanager, "parse_task", parse_task)
    monkeypatch.setattr(store, "create", picky)
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    channel.confirm_delivery()
    for n in range(100):
        channel.basic_publish("", "task_queue", b'{"payload": %d}' % n)
    it = intake()
    assert rejected(channel)[0].headers["reason"] == "ZeroDivisionError: what nobody thought of"
    eventually(lambda: payloads(store) == [n for n in range(100) if n != 13])
    assert it._failures == 0 and len(tries) < 50        # it was looked for by halves


def test_a_message_that_the_database_fails_at_holds_up_no_other(intake, store, channel, monkeypatch):
    """One row that the server needs too long for, or falls over."""
    create, well = store.create, threading.Event()

    def stumble(tasks, via):
        if any(task.payload == "0" for task in tasks) and not well.is_set():
            raise Unavailable("the database can't be reached")
        return create(tasks, via)
    monkeypatch.setattr(store, "create", stumble)
    monkeypatch.setattr(taskmanager, "backoff", lambda *_: 0.01)
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    for n in range(20):
        publish(channel, b'{"payload": %d}' % n)
    intake()
    eventually(lambda: payloads(store) == list(range(1, 20)))
    well.set()
    eventually(lambda: payloads(store) == list(range(20)))


def test_a_right_that_the_database_does_not_give_is_no_fault_of_the_messages(postgres_database):
    """Somebody has taken the right to insert from the role: an outage, not a thousand rejected messages."""
    taskmanager.open_store(postgres_database).close()
    with contextlib.closing(taskmanager.PostgresStore(postgres_database)) as store:
        schema = store._execute("select current_schema()")[0][0]
        store._execute(f"grant usage on schema {schema} to pg_monitor; grant select on tasks to pg_monitor")
    with contextlib.closing(taskmanager.PostgresStore(postgres_database + "%20-crole%3Dpg_monitor")) as store:
        store.ping()
        with pytest.raises(Unavailable):
            store.create()


def test_what_can_not_be_rejected_waits_aside_and_is_kept_once(intake, store, channel):
    """The queue of rejected messages is full, and more invalid messages come than a subscription may hold."""
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    channel.queue_declare("task_queue.rejected", **FULL)
    for n in range(1000):
        channel.basic_publish("", "task_queue", b"nonsense %d" % n if n % 2 else b'{"payload": %d}' % n)
    it = intake()
    eventually(lambda: payloads(store) == list(range(0, 1000, 2)))
    assert len(it._to_reject) == 500 and it._failures == 0
    channel.queue_delete("task_queue.rejected")     # the operator makes another one in its place
    bodies = [rejected(channel)[1] for _ in range(500)]
    assert sorted(bodies) == sorted(b"nonsense %d" % n for n in range(1, 1000, 2))
    eventually(lambda: len(it._to_reject) == 0)
    assert number_of(channel, "task_queue.rejected") == 0
    assert len(store.list_tasks()) == 500


def test_what_reaches_no_queue_is_not_lost(intake, channel):
    """Somebody deletes the queue of rejected messages; the broker confirms what it drops then."""
    channel.queue_declare("task_queue")
    intake()
    for body in (b"nonsense 1", b"nonsense 2"):
        publish(channel, body)
        assert rejected(channel)[1] == body
        channel.queue_delete("task_queue.rejected")


def test_where_the_rejected_queue_can_not_be_used_the_good_ones_go_on(intake, store, channel, broker):
    """Somebody else's program has declared it for itself alone."""
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    publish(channel, b"nonsense")
    publish(channel, b'{"payload": 1}')
    with pika.BlockingConnection(pika.URLParameters(broker)) as other:
        other.channel().queue_declare("task_queue.rejected", exclusive=True)
        it = intake()
        eventually(lambda: payloads(store) == [1])
        assert it._failures == 0
    assert rejected(channel)[1] == b"nonsense"


def test_the_intake_goes_on_when_no_thread_can_be_started(intake, store, channel, monkeypatch):
    """The handlers have taken all that the system has."""
    def no_more(thread):
        raise RuntimeError("can't start new thread")
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    it = intake()
    eventually(lambda: it._connection)
    monkeypatch.setattr(threading.Thread, "start", no_more)
    for n in range(10):
        publish(channel, b'{"payload": %d}' % n)
        time.sleep(0.05)
    eventually(lambda: payloads(store) == list(range(10)))
    assert it._failures == 0


def test_what_waits_aside_is_forgotten_with_its_connection(intake, store, channel, monkeypatch):
    """The broker takes back what was not acknowledged, and delivers it again: to be put once, not twice."""
    channel.queue_declare("task_queue")
    channel.queue_declare("task_queue.rejected", **FULL)
    for _ in range(3):
        publish(channel, b"nonsense")
    it = intake()
    eventually(lambda: len(it._to_reject) == 3)
    it._connection.add_callback_threadsafe(it._connection.close)
    eventually(lambda: it._failures)
    assert not it.rejecter._waiting
    channel.queue_delete("task_queue.rejected")
    for _ in range(3):
        rejected(channel)
    eventually(lambda: len(it._to_reject) == ready(channel) == ready(channel, "task_queue.rejected") == 0)


def test_one_connection_serves_all_rejected_messages(intake, channel, monkeypatch):
    """A producer with a fault sends nothing but nonsense."""
    opened, connect = [], pika.BlockingConnection
    channel.queue_declare("task_queue")
    for _ in range(200):
        channel.basic_publish("", "task_queue", b"nonsense")

    def count(*args, **more):
        opened.append(args)
        return connect(*args, **more)
    monkeypatch.setattr(pika, "BlockingConnection", count)
    intake()
    for _ in range(200):
        rejected(channel)
    assert len(opened) == 2     # and the intake's own


@pytest.mark.parametrize("kind", ["valid", "invalid"])
def test_what_is_held_has_a_bound_in_bytes(intake, store, channel, monkeypatch, kind):
    """Large messages come while the database is away, or while the queue of rejected ones is full."""
    monkeypatch.setattr(worker, "MAX_WAITING", 1_000_000)
    create, away = store.create, threading.Event()
    away.set()

    def create_unless_away(tasks, via):
        if kind == "valid" and away.is_set():
            raise Unavailable("the database can't be reached")
        return create(tasks, via)
    monkeypatch.setattr(store, "create", create_unless_away)
    channel.queue_declare("task_queue", durable=True,
                          arguments={"x-queue-type": "quorum", "x-delivery-limit": 1})
    channel.queue_declare("task_queue.rejected", **FULL)
    for n in range(40):
        body = (b'{"payload": %d}' % n).ljust(300_000) + (b"x" if kind == "invalid" else b"")
        channel.basic_publish("", "task_queue", body)
    it = intake()
    eventually(lambda: len(it._to_insert if kind == "valid" else it._to_reject) == 40)
    held = it._to_insert if kind == "valid" else it._to_reject
    assert held.number == 3 and held._bytes <= 1_000_000
    publish(channel, b'{"payload": 99}')
    if kind == "invalid":
        eventually(lambda: payloads(store) == [99])     # it is taken as if nothing were
    away.clear()
    channel.queue_delete("task_queue.rejected")
    if kind == "valid":
        eventually(lambda: payloads(store) == [*range(40), 99])
    else:
        assert {len(rejected(channel)[1]) for _ in range(40)} == {300_001}
    eventually(lambda: len(held) == 0 and ready(channel) == 0)


def test_nothing_is_taken_while_the_database_is_away(intake, store, channel, monkeypatch):
    """The worker starts before the database does: other workers may take the messages."""
    ping = store.ping
    monkeypatch.setattr(store, "ping", raising(Unavailable("away")))
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    publish(channel, b'{"payload": 1}')
    it = intake()
    eventually(lambda: it._failures)
    assert ready(channel) == 1
    monkeypatch.setattr(store, "ping", ping)
    eventually(lambda: payloads(store) == [1])


def test_a_stream_is_refused(intake, store, channel, caplog):
    """A stream would deliver only what is published while the worker runs."""
    channel.queue_declare("task_queue", durable=True, arguments={"x-queue-type": "stream"})
    publish(channel, b'{"payload": 1}')
    intake()
    said = "task_queue is a stream, which can't be used: expected a classic or quorum queue"
    eventually(lambda: said in caplog.text)
    channel.queue_delete("task_queue")
    channel.queue_declare("task_queue")
    publish(channel, b'{"payload": 2}')
    eventually(lambda: payloads(store) == [2])


@pytest.mark.parametrize("arguments", [{}, {"x-single-active-consumer": True}], ids=["shared", "single"])
def test_looking_for_a_stream_costs_no_message(intake, store, channel, arguments):
    """A worker that starts meets what was published before, and a message that is returned may be gone."""
    quorum = QUEUES["quorum"]["arguments"]
    channel.queue_declare("task_queue", durable=True, arguments=quorum | arguments)
    for body in (b"no JSON", b'{"payload": 1}', b'{"payload": 2}'):
        publish(channel, body)
    intake()
    eventually(lambda: payloads(store) == [1, 2])
    eventually(lambda: ready(channel, "task_queue.rejected") == 1)


def test_the_start_is_no_error_to_the_broker(intake, store, channel, caplog):
    """Whoever reads the broker's log would look for the cause. pika logs a channel that was closed."""
    channel.queue_declare("task_queue", **QUEUES["quorum"])
    channel.queue_declare("task_queue.rejected", durable=True)
    with caplog.at_level("WARNING", "pika"):
        intake()
        publish(channel, b'{"payload": 1}')
        eventually(lambda: payloads(store) == [1])
    assert [record for record in caplog.records if record.name.startswith("pika")] == []


@pytest.fixture
def notifier(store, broker):
    """One that runs; `woken` is set at each notification."""
    it = RabbitNotifier(Config(rabbitmq_url=broker), store)
    it.woken = threading.Event()
    store.listeners.append(it.woken.set)
    it.start()
    eventually(lambda: it.connected)
    yield it
    it.stop()


def test_the_notification_exchange_comes_back_when_it_is_deleted(notifier, channel, monkeypatch):
    """Somebody tidies up the broker, while nobody here sends a notification."""
    monkeypatch.setattr(RabbitNotifier, "BIND_SECONDS", 0.2)
    notifier._bind_at = 0

    def wakes():
        notifier.woken.clear()
        channel.basic_publish("task_queue.notifications", "", b"")
        return notifier.woken.wait(0.5)
    assert wakes()
    channel.exchange_delete("task_queue.notifications")
    eventually(lambda: exists_exchange(channel))
    eventually(wakes)


def test_a_notification_makes_its_exchange_again(notifier, channel):
    """The exchange was just deleted."""
    channel.exchange_delete("task_queue.notifications")
    notifier.notify()
    eventually(lambda: exists_exchange(channel))


def test_a_notification_that_pika_can_not_decode_wakes_a_worker(start, postgres_database, broker, channel):
    """Whoever inserts tasks with SQL may send one."""
    program = start("worker.py", DATABASE_URL=postgres_database, RABBITMQ_URL=broker, POLL_SECONDS=3600,
                    LEASE_SECONDS=86400)
    program.logged("started intake")
    eventually(lambda: exists_exchange(channel))
    with contextlib.closing(taskmanager.open_store(postgres_database)) as store:
        for table in HEADERS.values():
            [id] = store.create()
            channel.basic_publish("task_queue.notifications", "", b"", Raw(table))
            eventually(lambda id=id: store.read(id).status == "Completed", seconds=5)
    assert "lost RabbitMQ" not in program.log()


@contextlib.contextmanager
def alarm(rabbitmq, **settings):
    """Let the broker find its disk full, and give it these settings; in the end it is killed."""
    for name, value in settings.items():
        rabbitmq.evaluate(f"application:set_env(rabbit, {name}, {value})")
    rabbitmq.evaluate("rabbit_disk_monitor:set_disk_free_limit(1000000000000000)")
    try:
        eventually(lambda: "disk resource limit alarm set" in rabbitmq.log.read_text(errors="replace"))
        yield
    finally:
        rabbitmq.kill()     # with what it has not read from those that it blocks


@contextlib.contextmanager
def restarted(rabbitmq, *settings):
    """Restart the broker with these settings, and put its configuration back, for the next start."""
    file = rabbitmq.folder / "rabbitmq.config"
    plain = file.read_text()
    file.write_text(plain.replace("{disk_free_limit, 1000000}", ", ".join(settings)))
    rabbitmq.kill()
    rabbitmq.start()
    try:
        yield
    finally:
        file.write_text(plain)


def test_under_an_alarm_and_beyond_the_consumer_timeout_nothing_is_lost_or_doubled(
        store, rabbitmq, monkeypatch, caplog, tmp_path):
    """The broker's disk is full, and the database is away for longer than the broker's consumer_timeout."""
    durable = pika.BasicProperties(delivery_mode=2)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        channel = connection.channel()
        channel.queue_delete("task_queue.rejected")
        channel.queue_delete("task_queue")
        channel.queue_declare("task_queue", durable=True)
        channel.confirm_delivery()
        for n in range(500):
            body = b"nonsense" if n % 100 == 50 else b'{"payload": %d}' % n
            channel.basic_publish("", "task_queue", body, durable)
    good = [n for n in range(500) if n % 100 != 50]
    create, calls = store.create, []

    def away_for_too_long(tasks, via):
        calls.append(len(tasks))
        if len(calls) == 1:
            time.sleep(2)       # longer than consumer_timeout: what was delivered is no longer ours
            raise Unavailable("the database can't be reached")
        return create(tasks, via)
    monkeypatch.setattr(store, "create", away_for_too_long)

    with alarm(rabbitmq, consumer_timeout=1000, channel_tick_interval=200):
        it = Intake(store, Config(rabbitmq_url=rabbitmq.url))
        notifier = RabbitNotifier(Config(rabbitmq_url=rabbitmq.url), store)
        notifier.start()
        it.start()
        try:
            notifier.notify()
            eventually(lambda: "PRECONDITION_FAILED - delivery acknowledgement on channel" in caplog.text)
            eventually(lambda: payloads(store) == good)
            assert notifier.connected and "nonsense" not in caplog.text
            assert len([line for line in caplog.messages if "lost RabbitMQ" in line]) < 10
        finally:
            it.stop()
            notifier.stop()
    assert caplog.text.count("rejected message_id") == 0

    # A user who may do what asyncapi.yaml says, and nothing else, finishes it.
    salt, password = b"salt", b"pw"
    hashed = base64.b64encode(salt + hashlib.sha256(salt + password).digest()).decode()
    definitions = tmp_path / "definitions.json"
    definitions.write_text(json.dumps({
        "users": [{"name": "narrow", "password_hash": hashed, "tags": [],
                   "hashing_algorithm": "rabbit_password_hashing_sha256"}],
        "permissions": [{"user": "narrow", "vhost": "/", **permissions()}]}))
    with restarted(rabbitmq, "{disk_free_limit, 1000000}", f'{{load_definitions, "{definitions}"}}'):
        url = rabbitmq.url.replace("guest:guest", "narrow:pw")
        it = Intake(store, Config(rabbitmq_url=url))
        notifier = RabbitNotifier(Config(rabbitmq_url=url), store)
        woken = threading.Event()
        store.listeners.append(woken.set)
        it.start()
        notifier.start()
        try:
            with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
                channel = connection.channel()
                assert [rejected(channel)[1] for _ in range(5)] == [b"nonsense"] * 5
                eventually(lambda: len(it._to_reject) == 0)
                assert number_of(channel, "task_queue.rejected") == 0
                assert payloads(store) == good
                eventually(lambda: notifier.connected)
                woken.clear()
                eventually(lambda: notifier.notify() or woken.wait(0.5))
                assert it._failures == 0
                channel.queue_delete("task_queue")      # and makes what is missing
                channel.queue_delete("task_queue.rejected")
                channel.exchange_delete("task_queue.notifications")
                eventually(lambda: exists(channel, "task_queue") and exists(channel, "task_queue.rejected"))
                channel.queue_delete("task_queue")
        finally:
            it.stop()
            notifier.stop()


def permissions():
    """Those that asyncapi.yaml documents."""
    text = (ROOT / "asyncapi.yaml").read_text()
    return {name: re.search(rf"{name}: +`(.+)`", text)[1] for name in ("configure", "write", "read")}


# Connections and settings

@pytest.mark.parametrize("url, cause", [
    ("amqp://127.0.0.1:1", "Connection refused"),
    ("amqp://no.such.host.invalid:5671", "gaierror"),
    ("amqp://nobody:s3cret@{broker}", "ACCESS_REFUSED"),
    ("amqp://guest:guest@{broker}/none", "vhost none not found"),
])
def test_an_error_of_the_connection_names_host_port_and_cause(broker, store, caplog, url, cause):
    address = broker.rpartition("@")[2]
    intake = Intake(store, Config(rabbitmq_url=url.format(broker=address)))
    intake.start()
    try:
        eventually(lambda: cause in caplog.text)
    finally:
        intake.stop()
    assert f"RabbitMQ {intake.parameters.host}:{intake.parameters.port} for intake error=" in caplog.text
    assert "s3cret" not in caplog.text


def test_an_outage_tells_each_new_cause_once(caplog):
    """The broker is down, comes up, and no longer knows the password."""
    outage = Outage("RabbitMQ host:5672")
    outage.back()
    for error in ("refused", "refused", "ACCESS_REFUSED", "refused", "ACCESS_REFUSED"):
        outage.lost(ConnectionError(error))
    outage.back()
    outage.lost(ConnectionError("refused"))
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" RabbitMQ")[0] for line in said] == ["lost", "still without", "regained", "lost"]


@pytest.mark.parametrize("url", [
    "amqp://a,b", "amqp://a;b", "amqp://a b", "amqp://host/a/b", "amqp://host//", "amqp://host/#x",
    "amqp://user@host", "amqp://host:0", "amqp://host:70000", "amqp://[::1", "amqp://host/" + "ü" * 128,
    "amqp://host?frame_max=4096", "amqp://host?channel_max=1", "amqp://host?heartbeat=70000",
    "amqp://host?heartbeat=x",
])
def test_an_address_that_can_not_be_used_is_refused_at_once(url):
    with pytest.raises(BadSetting, match=r"^RABBITMQ_URL='.*' can't be used: .") as caught:
        taskmanager.amqp_parameters(url, "test")
    assert "Error:" not in str(caught.value)        # said in words


@pytest.mark.parametrize("url, host, vhost", [
    ("amqp://rabbitmq", "rabbitmq", "/"),
    ("amqp://my_host.example:1/%2F", "my_host.example", "/"),
    ("amqp://[::1]:5672/a%2Fb", "::1", "a/b"),
    ("amqps://u:p%23@h/v?heartbeat=30", "h", "v"),
])
def test_an_address_that_can_be_used_is_taken(url, host, vhost):
    parameters = taskmanager.amqp_parameters(url, "test")
    assert (parameters.host, parameters.virtual_host) == (host, vhost)


def test_a_bad_address_of_the_broker_ends_the_worker_although_the_database_is_away(start):
    program = start("worker.py", DATABASE_URL="postgresql://127.0.0.1:1/none", RABBITMQ_URL="amqp://a,b")
    assert program.process.wait(20) == 1
    said = "worker.py: RABBITMQ_URL='amqp://a,b' can't be used: the host 'a,b'"
    assert program.log().splitlines()[-1].startswith(said)


def test_the_longest_name_of_a_queue_is_counted_in_bytes(broker, store):
    with pytest.raises(BadSetting, match="up to 200 bytes"):
        Config.from_env({"TASK_QUEUE": "ü" * 101})
    config = dataclasses.replace(Config.from_env({"TASK_QUEUE": "ü" * 100}), rabbitmq_url=broker)
    it, notifier = Intake(store, config), RabbitNotifier(config, store)
    with pika.BlockingConnection(pika.URLParameters(broker)) as connection:
        channel = connection.channel()
        channel.queue_declare(config.task_queue)
        publish(channel, b'{"payload": 1}', config.task_queue)
        it.start()
        notifier.start()
        try:
            eventually(lambda: payloads(store) == [1] and notifier.connected)
        finally:
            it.stop()
            notifier.stop()
            for queue in (config.task_queue, f"{config.task_queue}.rejected"):
                channel.queue_delete(queue)
            channel.exchange_delete(f"{config.task_queue}.notifications")
