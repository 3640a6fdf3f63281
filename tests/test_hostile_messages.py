"""Messages, queues and brokers that mean no good: the good messages become tasks all the same, once each."""

import contextlib

import pika
import pytest

import taskmanager
from conftest import eventually
from taskmanager import BadSetting, Bell, Config, Outage, Unavailable
from test_intake import channel, store      # noqa: F401 (fixtures)


def exists_exchange(channel):
    with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
        return bool(channel.connection.channel().exchange_declare("task_queue.bell", passive=True))


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


def test_a_notification_makes_its_exchange_again(channel, broker):
    """The exchange was deleted where no worker is there to make it."""
    bell = Bell(Config(rabbitmq_url=broker))
    bell.start()
    try:
        eventually(lambda: bell.connected)
        channel.exchange_delete("task_queue.bell")
        bell.ring()
        eventually(lambda: exists_exchange(channel))
    finally:
        bell.stop()


# Connections and settings

def test_an_outage_tells_each_new_cause_once(caplog):
    """The broker is down, comes up, and no longer knows the password."""
    outage = Outage("RabbitMQ host:5672")
    outage.back()
    for error in ("refused", "refused", "ACCESS_REFUSED", "refused", "ACCESS_REFUSED"):
        outage.lost(ConnectionError(error))
    outage.back()
    outage.lost(ConnectionError("refused"))
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" RabbitMQ")[0] for line in said] == ["lost", "still without", "back", "lost"]


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


