"""A worker as a program: takes tasks from RabbitMQ into the table, and runs what the table holds.

The two halves share the table and nothing else. `Intake`, here, turns messages into rows; `taskmanager.Worker` runs
rows. Either goes on when the other's server is away.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":      # the exception that Python would raise may be lost in an import below
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import dataclasses
import itertools
import threading
from typing import NamedTuple

import pika
import pika.exceptions

import taskmanager
from taskmanager import (
    Bell, Config, EssentialThread, Invalid, NewTask, Outage, Store, TooLarge, Unavailable, Worker)

PREFETCH = 200              # messages that may wait here for the commit of those before them
SUBSCRIBE_SECONDS = 10      # what the broker may take to let us begin

log = taskmanager.get_log("taskmanager.worker")


class Message(NamedTuple):
    tag: int
    properties: pika.BasicProperties
    body: bytes


class Intake:
    """Takes what has arrived as a batch, inserts it in one transaction, and only then acknowledges it.

    What is no task goes to the queue of rejected messages (TASK_QUEUE + ".rejected") with the reason in its header
    `reason`. Also hears the doorbell. On this connection nothing is published: under a memory or disk alarm the broker
    no longer reads from a connection that publishes, and would not see its acknowledgements either.
    """

    def __init__(self, store: Store, config: Config, wake):
        self.store, self.config, self.wake = store, config, wake
        self.parameters = taskmanager.amqp_parameters(config.rabbitmq_url, "taskmanager intake")
        self.rejected = f"{config.task_queue}.rejected"
        self._arrived: list[Message] = []
        self._transient_refused = False
        self._stopped = threading.Event()
        self._thread = EssentialThread("intake", self._loop)

    def start(self) -> None:
        self._thread.start()

    def begin_stop(self) -> None:
        """Take no more; what was not acknowledged goes back to the queue."""
        self._stopped.set()

    def stop(self) -> None:
        """begin_stop(), and wait until the batch at hand is finished."""
        self.begin_stop()
        if self._thread.ident is not None:
            self._thread.join(5)

    def _loop(self) -> None:
        outage, tries = Outage("RabbitMQ"), 0
        while not self._stopped.is_set():
            try:
                with pika.BlockingConnection(self.parameters) as connection:
                    with self._no_longer_than(SUBSCRIBE_SECONDS, connection):
                        channel, subscription = self._subscribe(connection)
                    outage.back()
                    while not self._stopped.is_set():
                        connection.process_data_events(time_limit=1)
                        if self._arrived:
                            batch, self._arrived = self._arrived, []
                            self._take(batch, channel)
                            tries = 0
                        if subscription not in channel.consumer_tags:
                            raise ConnectionError("the broker ended the subscription")
            except Exception as e:
                if not isinstance(e, Unavailable):      # the store has told of that one
                    outage.lost(e)
                self._arrived = []
                tries += 1
                self._stopped.wait(taskmanager.backoff(tries, 0.5, 10))

    @staticmethod
    @contextlib.contextmanager
    def _no_longer_than(seconds: float, connection: pika.BlockingConnection):
        # A quorum queue that is just choosing its leader may swallow a request (seen with RabbitMQ 3.10), and pika,
        # whose calls have no time limit, would wait for the answer for ever. Nor would the channel close any more.
        impl, error = connection._impl, ConnectionError(f"the broker did not answer within {seconds} s")
        timer = threading.Timer(seconds, lambda: impl.ioloop.add_callback_threadsafe(lambda: impl._terminate_stream(error)))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _subscribe(self, connection: pika.BlockingConnection):
        transient = {"durable": False}                                              # as the documented producer declares it
        quorum = {"durable": True, "arguments": {"x-queue-type": "quorum"}}         # where the broker refuses transient queues
        channel = self._attach(connection, self.config.task_queue, quorum if self._transient_refused else transient)
        self._attach(connection, self.rejected, {"durable": True})

        bell = taskmanager.bell_exchange(self.config)
        channel.exchange_declare(bell, "fanout", durable=True)
        ears = channel.queue_declare("", exclusive=True, arguments={"x-max-length": 1}).method.queue
        channel.queue_bind(ears, bell)
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(ears, lambda *_: self.wake(), auto_ack=True)
        subscription = channel.basic_consume(self.config.task_queue, lambda _, method, properties, body:
                                             self._arrived.append(Message(method.delivery_tag, properties, body)))
        log.info("started intake queue=%s rejected=%s", self.config.task_queue, self.rejected)
        return channel, subscription

    def _attach(self, connection: pika.BlockingConnection, queue: str, declaration: dict):
        """A channel on a connection where `queue` exists: as it is found, or else as `declaration` says."""
        channel = connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker as e:
            if e.reply_code != 404:
                raise
            channel = connection.channel()
            try:
                channel.queue_declare(queue, **declaration)
            except pika.exceptions.ConnectionClosedByBroker as e:
                self._transient_refused = self._transient_refused or e.reply_code == 541
                raise
        return channel

    def _take(self, batch: list[Message], channel) -> None:
        valid, rejects = [], []
        for message in batch:
            try:
                valid.append((message, taskmanager.parse_task(message.body, message.properties.message_id)))
            except (Invalid, TooLarge) as e:
                rejects.append((message, self._reason(e)))
        if valid:
            rejects += self._insert(valid, channel.connection)
        if not rejects:
            channel.basic_ack(batch[-1].tag, multiple=True)
            return
        refused = {message.tag for message, _ in rejects}
        for message in batch:
            if message.tag not in refused:
                channel.basic_ack(message.tag)
        self._reject(rejects)
        for tag in refused:
            channel.basic_ack(tag)

    def _insert(self, valid: list[tuple[Message, NewTask]], connection: pika.BlockingConnection) -> list[tuple[Message, str]]:
        """Insert them, however long the database is away; those that it refuses, with the reason."""
        for tries in itertools.count(1):
            try:
                self.store.create([task for _, task in valid], via="rabbitmq")
                return []
            except Invalid as e:        # it found fault with one of them
                if len(valid) == 1:
                    return [(valid[0][0], self._reason(e))]
                return [refused for one in valid for refused in self._insert([one], connection)]
            except Unavailable:         # they are held, not returned: a quorum queue counts how often it delivers
                if self._stopped.is_set():
                    raise
                connection.sleep(taskmanager.backoff(tries, 0.2, 5))

    @staticmethod
    def _reason(error: taskmanager.TaskError) -> str:
        return str(error).replace("Idempotency-Key:", "message_id:")

    def _reject(self, rejects: list[tuple[Message, str]]) -> None:
        with pika.BlockingConnection(self.parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for message, reason in rejects:
                given = message.properties
                # Fresh properties: an expiration, a user id or a CC header of the sender's would lose it, refuse it or copy it.
                properties = pika.BasicProperties(
                    headers={"reason": reason[:taskmanager.MAX_ERROR]}, delivery_mode=pika.DeliveryMode.Persistent,
                    message_id=given.message_id, content_type=given.content_type, content_encoding=given.content_encoding)
                channel.basic_publish("", self.rejected, message.body, properties, mandatory=True)
                self.store.metrics.rejected()
                log.warning("rejected message_id=%r bytes=%s reason=%r", given.message_id, len(message.body), reason[:taskmanager.MAX_ERROR])


def main() -> None:
    config = taskmanager.begin("Task Manager's worker: takes tasks from RabbitMQ, runs what the table holds.")
    handler = taskmanager.load_handler(config.handler)
    store = taskmanager.open_store(config.database_url, wait=True)
    worker = Worker(store, config, handler)
    intake = Intake(store, config, worker.wake) if config.rabbitmq_url else None
    bell = Bell(config) if config.rabbitmq_url else None
    server = None
    if config.metrics_port is not None:
        aside = dataclasses.replace(config, port=config.metrics_port, threads=2, waiters=0)
        server = taskmanager.listen(taskmanager.create_app(store, aside, taskmanager.own_names(config), bell and (lambda: bell.connected), only_health=True), aside, "METRICS_PORT")
        log.info("started metrics port=%s", server.effective_port)
    if bell:
        store.bells.append(bell.ring)       # for the other workers, when this one takes more than it can run
    taskmanager.serve(server, worker, bell, intake)


if __name__ == "__main__":
    taskmanager.run(main)
