"""Tasks from RabbitMQ: what arrives becomes a row and is then acknowledged, or is kept with the reason."""

import json
import re
import time

import pika
import pytest

import taskmanager
import worker
from helpers import PRODUCER, ROOT, eventually, http, raising
from messages import exists, publish, ready, rejected
from taskmanager import InputError, Invalid, KeyReused, TooLarge, Unavailable, new_task

pytestmark = pytest.mark.sqlite


def test_the_readme_shows_the_documents_producer():
    assert PRODUCER.strip() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("first", ["producer", "intake"])
def test_the_documents_producer_creates_tasks(document_producer, intake, store, channel, first):
    if first == "producer":
        document_producer()
    intake()
    eventually(lambda: exists(channel, "task_queue"))
    for _ in range(3):
        document_producer()
    eventually(lambda: len(store.list_tasks("New")) == 3 + (first == "producer"))
    assert ready(channel) == 0


@pytest.mark.parametrize(
    "declaration",
    [
        {},
        {"durable": True},
        {"durable": True, "arguments": {"x-queue-type": "quorum"}},
        {"arguments": {"x-max-length": 9}},
    ],
    ids=["transient", "durable", "quorum", "with arguments"],
)
def test_intake_attaches_to_the_queue_as_it_finds_it(intake, store, channel, declaration):
    channel.queue_declare("task_queue", **declaration)
    publish(channel, b"")
    intake()
    eventually(lambda: len(store.list_tasks()) == 1)


def test_a_message_says_what_a_request_may_say(intake, store, channel):
    channel.queue_declare("task_queue")
    publish(channel, json.dumps({"payload": {"имя": "☃"}, "priority": 5, "run_at": "2999-01-01T00:00:00Z"}))
    intake()
    [row] = eventually(store.list_tasks)
    assert (json.loads(row.payload), row.priority, row.run_at) == ({"имя": "☃"}, 5, "2999-01-01T00:00:00")


def test_many_messages_are_taken_in_batches_and_all_acknowledged(intake, store, channel, monkeypatch):
    sizes, create = [], store.create
    monkeypatch.setattr(store, "create", lambda tasks, via: sizes.append(len(tasks)) or create(tasks, via))
    channel.queue_declare("task_queue")
    for n in range(3000):
        channel.basic_publish("", "task_queue", b'{"payload": %d}' % n)
    intake()
    eventually(lambda: len(store.list_tasks()) == 1000 and len(store.list_tasks(after=2000)) == 1000)
    assert [int(row.payload) for row in store.list_tasks(after=1000)] == list(range(1000, 2000))
    assert sum(sizes) == 3000 and max(sizes) > 50
    eventually(lambda: ready(channel) == 0)


def test_a_message_id_is_an_idempotency_key(intake, store, channel):
    channel.queue_declare("task_queue")
    for message_id in ("a", "b", "a", None, None, ""):
        publish(channel, b"", message_id=message_id)
    intake()
    eventually(lambda: len(store.list_tasks()) == 5)
    publish(channel, b"", message_id="b")
    publish(channel, b"", message_id="c")
    eventually(lambda: len(store.list_tasks()) == 6)
    assert [row.idempotency_key for row in store.list_tasks()] == ["a", "b", None, None, None, "c"]
    assert store.create([new_task({}, "a")]) == [1]        # the same keys as over HTTP


def test_a_message_id_of_another_task_is_rejected(intake, store, channel):
    channel.queue_declare("task_queue")
    for message_id, body in (("a", b'{"payload": 1}'), ("b", b""), ("a", b'{"payload": 2}'), ("c", b"")):
        publish(channel, body, message_id=message_id)
    intake()
    properties, kept = rejected(channel)
    assert (kept, properties.message_id, properties.headers["reason"]) == (
        b'{"payload": 2}',
        "a",
        "message_id: was used before, with another body",
    )
    eventually(lambda: [row.idempotency_key for row in store.list_tasks()] == ["a", "b", "c"])
    publish(channel, b'{"payload":  1}', message_id="a")
    publish(channel, b'[]', message_id="a")
    assert rejected(channel)[1] == b"[]"
    eventually(lambda: ready(channel) == 0)
    assert len(store.list_tasks()) == 3


@pytest.mark.parametrize(
    "body, reason",
    [
        (b"nonsense", "not JSON"),
        (b'{"status": "Completed"}', '/status: expected "New"'),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "levels of nesting"),
        (b'{"payload": "\\u0000"}', "NUL"),
        (b'{"handler": "exec:reboot"}', "/handler: unknown"),
        (b" " * 1_048_577, "expected at most 1048576"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_task_is_kept_with_the_reason(intake, store, channel, body, reason):
    channel.queue_declare("task_queue")
    publish(channel, body, message_id="m1", content_type="text/x")
    publish(channel, b"")
    intake()
    properties, kept = rejected(channel)
    assert kept == body and reason in properties.headers["reason"]
    assert (properties.message_id, properties.content_type, properties.delivery_mode) == ("m1", "text/x", 2)
    eventually(lambda: len(store.list_tasks()) == 1)
    eventually(lambda: ready(channel) == 0)


def test_a_program_can_tell_what_is_wrong_with_a_rejected_message(intake, store, channel):
    whole = {"pointer": ""}
    expected = {
        b"nonsense": ("invalid-input", [whole | {"code": "not-json"}]),
        b'{"priority": "high", "x/y": 1}':
            ("invalid-input", [{"pointer": "/priority", "code": "wrong-type"},
                               {"pointer": "/x~1y", "code": "unknown-field"}]),
        b" " * 1_048_577: ("too-large", None),
        b'{"payload": 2}': ("key-reused", [{"property": "message_id", "code": "key-reused"}])}
    channel.queue_declare("task_queue")
    publish(channel, b'{"payload": 1}', message_id="a")
    for body in expected:
        publish(channel, body, message_id="a")
    intake()
    found = {body: properties.headers for properties, body in (rejected(channel) for _ in expected)}
    assert {body: (headers["code"], headers.get("errors")) for body, headers in found.items()} == expected


def test_the_headers_of_a_rejected_message_are_as_documented():
    text = (ROOT / "asyncapi.yaml").read_text()
    with pytest.raises(Invalid) as caught:
        taskmanager.parse_task(b'{"priority": "high"}')
    headers = worker.rejection_headers(caught.value)
    [error] = headers["errors"]
    assert f"reason: '{headers['reason']}'\n            code: {headers['code']}\n" in text
    assert f"errors: [{{pointer: {error['pointer']}, code: {error['code']}}}]" in text
    [codes] = re.findall(r"enum: \[(invalid-input, .*)\]", text)
    errors = (caught.value, TooLarge(1), KeyReused(), ZeroDivisionError())
    assert codes.split(", ") == [worker.rejection_headers(each)["code"] for each in errors]
    for name, limit in (("maxLength", taskmanager.MAX_ERROR), ("maxItems", taskmanager.MAX_ERRORS)):
        assert f"{name}: {limit}\n" in text
    assert f"{worker.MAX_REJECTION:,} bytes" in text


@pytest.mark.parametrize("where", ["/", "/x", "/" + "☃" * 100], ids=["short", "usual", "long"])
def test_a_rejected_message_fits_into_the_smallest_frame(where):
    """A broker may be set to frames of 4,096 bytes; it ends the connection at a larger one."""
    errors = [InputError(where + str(n), "out-of-range", "☃" * 400) for n in range(30)]
    headers = worker.rejection_headers(Invalid(*errors))
    assert 0 < len(headers["errors"]) <= 20 and len(headers["reason"].encode()) <= 2000
    longest = "x" * 255
    properties = pika.BasicProperties(
        headers=headers, delivery_mode=2, message_id=longest, content_type=longest, content_encoding=longest)
    assert len(pika.frame.Header(1, 2**20, properties).marshal()) <= 4096


def test_a_message_id_that_is_too_long_is_rejected(intake, store, channel):
    channel.queue_declare("task_queue")
    publish(channel, b"", message_id="a\nb")
    intake()
    assert "message_id: expected" in rejected(channel)[0].headers["reason"]


def test_what_a_sender_set_does_not_lose_a_rejected_message(intake, store, channel):
    channel.queue_declare("task_queue")
    channel.queue_declare("copy", exclusive=True)
    publish(
        channel, b"nonsense", expiration="60000", user_id="guest", reply_to="x", headers={"CC": [], "own": 1}
    )
    intake()
    properties, _ = rejected(channel)
    assert list(properties.headers) == ["reason", "code", "errors"]
    assert properties.expiration is properties.user_id is None


def test_what_the_database_refuses_is_rejected_alone(intake, store, channel, monkeypatch):
    create = store.create

    def picky(tasks, via):
        if any(task.payload == "2" for task in tasks):
            raise taskmanager.invalid("refused-by-database", "the database refuses it")
        return create(tasks, via)
    monkeypatch.setattr(store, "create", picky)
    channel.queue_declare("task_queue")
    for n in range(5):
        publish(channel, b'{"payload": %d}' % n)
    intake()
    assert rejected(channel)[1] == b'{"payload": 2}'
    eventually(lambda: [row.payload for row in store.list_tasks()] == ["0", "1", "3", "4"])


def test_what_came_is_held_and_not_returned_while_the_database_is_away(intake, store, channel, monkeypatch):
    create, tries = store.create, []

    def away_for_a_while(tasks, via):
        tries.append(ready(channel))
        if len(tries) < 4:
            raise Unavailable("the database can't be reached")
        return create(tasks, via)
    monkeypatch.setattr(store, "create", away_for_a_while)
    channel.queue_declare(
        "task_queue", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 1}
    )
    publish(channel, b'{"payload": 1}')
    intake()
    eventually(lambda: len(store.list_tasks()) == 1)
    eventually(lambda: ready(channel) == 0)
    assert len(tries) == 4


def test_a_message_is_acknowledged_only_after_the_commit(intake, store, channel, monkeypatch):
    channel.queue_declare("task_queue")
    publish(channel, b'{"payload": 1}')
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", raising(Unavailable("the database can't be reached")))
        first = intake()
        eventually(lambda: ready(channel) == 0)     # it is with the intake,
        first.stop()
    eventually(lambda: ready(channel) == 1)         # and goes back when that ends
    intake()
    eventually(lambda: len(store.list_tasks()) == 1)


def test_a_message_with_a_monstrous_name_does_not_stop_the_intake(intake, store, channel):
    channel.queue_declare("task_queue")
    publish(channel, json.dumps({"x" * 200_000: 1}).encode())
    publish(channel, b"")
    intake()
    assert len(rejected(channel)[0].headers["reason"]) < 5000
    eventually(lambda: len(store.list_tasks()) == 1)


def test_intake_comes_back_when_its_queue_is_deleted(intake, store, channel, caplog):
    channel.queue_declare("task_queue")
    intake()
    publish(channel, b"")
    eventually(lambda: len(store.list_tasks()) == 1)
    channel.queue_delete("task_queue")
    eventually(lambda: exists(channel, "task_queue"))
    publish(channel, b"")
    eventually(lambda: len(store.list_tasks()) == 2)
    assert caplog.text.count("lost RabbitMQ") == caplog.text.count("regained RabbitMQ") == 1


def test_two_intakes_share_a_queue(intake, store, channel):
    intake()
    intake()
    eventually(lambda: exists(channel, "task_queue"))
    for n in range(200):
        publish(channel, b'{"payload": %d}' % n)
    eventually(lambda: sorted(int(row.payload) for row in store.list_tasks()) == list(range(200)))


def test_a_notification_wakes_a_worker_in_another_process(start, postgres_database, broker):
    settings = dict(
        DATABASE_URL=postgres_database, RABBITMQ_URL=broker, POLL_SECONDS=3600, LEASE_SECONDS=86400
    )
    api, worker = start("taskmanager.py", **settings), start("worker.py", **settings)
    worker.logged("started intake")
    time.sleep(0.3)     # the notifier's connection
    for _ in range(3):
        id = http("POST", f"{api.url}/tasks").json["id"]
        eventually(lambda: http("GET", f"{api.url}/tasks/{id}").json["status"] == "Completed", seconds=5)


def test_the_log_shows_the_life_of_a_task_and_no_password(
    start, postgres_database, broker, document_producer, tmp_path
):
    log_file = tmp_path / "worker.log"
    url = re.sub(r"//(guest:guest@)?", "//guest:guest@", broker)
    worker = start(
        "worker.py",
        DATABASE_URL=postgres_database.replace("postgres@", "postgres:s3cret@"),
        RABBITMQ_URL=url,
        LOG_FILE=log_file,
    )
    worker.logged("started intake")
    document_producer()
    worker.logged(r"completed task=1 attempt=1")
    assert worker.stop() == 0
    lines = [line.split(" ", 3)[3] for line in worker.log().splitlines() if "task=1" in line]
    assert lines == ["created task=1 via=rabbitmq", "claimed task=1 attempt=1", "completed task=1 attempt=1"]
    address = url.rpartition("@")[2]
    worker.logged(rf" started version={taskmanager.__version__} database=\S+/\S+ rabbitmq={address}\n")
    assert log_file.read_text() == worker.log()
    assert "s3cret" not in worker.log() and "guest:guest" not in worker.log()
