"""A worker as a program: takes tasks from RabbitMQ into the table, and runs what the table holds.

The two halves share the table and nothing else. `Intake`, here, turns messages into rows;
`taskmanager.Worker` runs rows. Either goes on when the other's server is away.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":      # signals wait for set_up(): an import may lose its exception, process 1 all
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import collections
import contextlib
import dataclasses
import itertools
import struct
import threading
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import pika
import pika.exceptions
import pika.frame
import pika.spec

import taskmanager
from taskmanager import (
    Config,
    EssentialThread,
    NewTask,
    Notifier,
    Outage,
    Store,
    TaskError,
    Unavailable,
    Worker,
)

PREFETCH = 200              # messages of one subscription that may be here at the same time
SUBSCRIPTIONS = 50          # at most, of one intake
MAX_HELD = 32 * 1024**2     # bytes of messages that wait here for the database, and for the rejected queue
MAX_BATCH = 8 * 1024**2     # bytes of messages that are inserted at once
SUBSCRIBE_SECONDS = 10      # what the broker may take to let us begin
LISTEN_SECONDS = 5          # after which the notification exchange is made again if somebody deleted it

log = taskmanager.get_log("taskmanager.worker")


class Message(NamedTuple):
    tag: int
    properties: pika.BasicProperties | None     # None: they can't be decoded
    body: bytes


class Connection(pika.SelectConnection):
    """pika's connection, but it passes over the headers of messages, which nothing here needs.

    pika ends the connection when it can't decode a header (a date before 1970, 3,000 nested tables). It would
    do so at each delivery, while the broker counts up the deliveries of all other messages.
    """

    def _read_frame(self):
        buffer, start = self._frame_buffer, pika.spec.FRAME_HEADER_SIZE
        if buffer[:1] != bytes([pika.spec.FRAME_HEADER]) or len(buffer) < start:
            return super()._read_frame()
        _, channel, size = struct.unpack_from(">BHL", buffer)
        end = start + size
        if len(buffer) <= end:
            return 0, None      # the rest is still to come
        _, _, body_size = struct.unpack_from(">HHQ", buffer, start)
        properties = decode_properties(buffer[start + 12:end])
        return end + pika.spec.FRAME_END_SIZE, pika.frame.Header(channel, body_size, properties)


def decode_properties(encoded: bytes) -> pika.BasicProperties | None:
    """The properties of a message without its headers; None when they can't be decoded."""
    known = pika.BasicProperties
    try:
        flags, = struct.unpack_from(">H", encoded)
        at = 2
        for flag in (known.FLAG_CONTENT_TYPE, known.FLAG_CONTENT_ENCODING):     # stand before the headers
            if flags & flag:
                at += 1 + encoded[at]
        if flags & known.FLAG_HEADERS:
            size, = struct.unpack_from(">L", encoded, at)
            encoded = struct.pack(">H", flags & ~known.FLAG_HEADERS) + encoded[2:at] + encoded[at + 4 + size:]
        return known().decode(encoded)
    except (struct.error, IndexError):
        return None


def attach(connection: pika.BlockingConnection, queue: str, declaration: dict):
    """Open a channel on a connection where `queue` exists: as it is found, or else as `declaration` says."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker as e:
        if e.reply_code != 404:
            raise
        channel = connection.channel()
        channel.queue_declare(queue, **declaration)
    return channel


class Rejecter:
    """Puts messages into TASK_QUEUE + ".rejected", with the reason in the header `reason`.

    It has one connection and a thread of its own. What the broker does not take now, because of an alarm or a
    full queue, waits here, and holds up neither the tasks nor the others that wait.
    """

    def __init__(self, config: Config, metrics: taskmanager.Metrics):
        self.queue, self.metrics = f"{config.task_queue}.rejected", metrics
        self.parameters = taskmanager.amqp_parameters(config.rabbitmq_url, "taskmanager rejecter")
        self._waiting: collections.deque[tuple[Message, str, Callable[[], None]]] = collections.deque()
        self._news, self._stopped = threading.Event(), threading.Event()
        self._thread = EssentialThread("rejecter", self._loop)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what is just being put; wait up to 2 seconds for it."""
        self._stopped.set()
        self._news.set()
        if self._thread.ident is not None:
            self._thread.join(2)

    def put(self, message: Message, reason: str, done: Callable[[], None]) -> None:
        """Never blocks. `done` is called, in another thread, when the broker has confirmed the message."""
        self._waiting.append((message, reason, done))
        self._news.set()

    def clear(self) -> None:
        """Forget what waits: the connection that it came over was lost, so it comes again."""
        self._waiting.clear()

    def _loop(self) -> None:
        outage, tries = Outage(f"{self.queue} at {taskmanager.amqp_address(self.parameters)}"), 0
        while not self._stopped.is_set():
            if not self._news.wait(1):
                continue
            try:
                with pika.BlockingConnection(self.parameters) as connection:
                    channel = attach(connection, self.queue, {"durable": True})
                    channel.confirm_delivery()
                    while not self._stopped.is_set():
                        if self._waiting:
                            self._publish_first(channel)
                        else:
                            self._news.wait(1)
                            self._news.clear()
                            connection.process_data_events(0)       # heartbeats
                        outage.back()
                        tries = 0
            except Exception as e:
                outage.lost(e)
                tries += 1
                self._waiting.rotate(-1)        # the others first: it may be the fault of this one
                self._stopped.wait(taskmanager.backoff(tries, 0.5, 10))
                self._news.set()

    def _publish_first(self, channel) -> None:
        # Under an alarm the broker leaves a message unread, and takes it when the alarm is over, even if it
        # was sent again by then. So an empty one, which reaches no queue, is sent before and waits instead.
        channel.basic_publish("", f"{self.queue}.nowhere", b"")
        try:
            waiting = self._waiting[0]
        except IndexError:
            return      # forgotten meanwhile
        message, reason, done = waiting
        given = message.properties or pika.BasicProperties()
        # Fresh properties: an expiration or a user id of the sender's would lose it or refuse it.
        properties = pika.BasicProperties(
            headers={"reason": reason}, delivery_mode=pika.DeliveryMode.Persistent,
            message_id=given.message_id, content_type=given.content_type,
            content_encoding=given.content_encoding)
        channel.basic_publish("", self.queue, message.body, properties, mandatory=True)
        with contextlib.suppress(ValueError):
            self._waiting.remove(waiting)
        self.metrics.rejected()
        log.warning("rejected message_id=%r bytes=%s reason=%r", given.message_id, len(message.body), reason)
        done()


class Held:
    """Messages that wait here, not acknowledged, with up to MAX_HELD bytes together.

    Of a message for which there is no room only the tag is kept. When all others are gone, it is given back
    to the queue, which delivers it again: one at a time, so that there is room for it then.
    """

    def __init__(self):
        self.number, self._bytes = 0, 0
        self._no_room: collections.deque[int] = collections.deque()
        self._expected_until = 0.0      # the one that was given back; it may go to another worker

    def __len__(self) -> int:
        """How many are not acknowledged."""
        return self.number + len(self._no_room)

    def add(self, message: Message) -> bool:
        """Whether there is room for it; a single message always has room."""
        self._expected_until = 0.0
        if self.number and self._bytes + len(message.body) > MAX_HELD:
            self._no_room.append(message.tag)
            return False
        self.number += 1
        self._bytes += len(message.body)
        return True

    def remove(self, message: Message) -> None:
        self.number -= 1
        self._bytes -= len(message.body)

    def give_back(self, channel) -> None:
        """Give the next one back to the queue, if it is time to."""
        if self._no_room and not self.number and time.monotonic() >= self._expected_until:
            channel.basic_nack(self._no_room.popleft(), requeue=True)
            self._expected_until = time.monotonic() + 1


class Intake:
    """Takes what has arrived as a batch, inserts it in one transaction, and only then acknowledges it.

    What is no task goes to the `Rejecter`, at once and alone. Also hears the notifications. Nothing is
    published on this connection: under a memory or disk alarm the broker no longer reads from a connection
    that publishes, and would not see its acknowledgements either.
    """

    def __init__(self, store: Store, config: Config, wake):
        self.store, self.config, self.wake = store, config, wake
        self.parameters = taskmanager.amqp_parameters(config.rabbitmq_url, "taskmanager intake")
        self.rejecter = Rejecter(config, store.metrics)
        self.exchange = taskmanager.notification_exchange(config)
        self._deaf = Outage(f"exchange {self.exchange}")
        self._transient_refused = False
        self._failures = 0              # since something was inserted
        self._connection: pika.BlockingConnection | None = None
        self._forget()
        self._stopped = threading.Event()
        self._thread = EssentialThread("intake", self._loop)

    def start(self) -> None:
        self._thread.start()
        self.rejecter.start()

    def begin_stop(self) -> None:
        """Take no more; what was not acknowledged goes back to the queue."""
        self._stopped.set()
        if connection := self._connection:
            with contextlib.suppress(pika.exceptions.ConnectionWrongStateError):    # it was just closed
                connection.add_callback_threadsafe(lambda: None)                    # wakes its thread

    def stop(self) -> None:
        """begin_stop(), and wait until the batch at hand is finished."""
        self.begin_stop()
        if self._thread.ident is not None:
            self._thread.join(5)
        self.rejecter.stop()

    def _forget(self) -> None:
        """All that is held was lost with its connection, and comes again."""
        self.rejecter.clear()
        self._tasks: collections.deque[tuple[Message, NewTask]] = collections.deque()
        self._held, self._rejects = Held(), Held()      # what waits for the database, and for the rejecter
        self._done: list[int] = []      # tags to acknowledge
        self._tries, self._retry_at = 0, 0.0        # of the database
        self._number = PREFETCH         # messages that are inserted at once

    def _loop(self) -> None:
        outage = Outage(f"{taskmanager.amqp_address(self.parameters)} for intake")
        while not self._stopped.is_set():
            try:
                self.store.ping()       # while the database is away, messages stay in their queue
                with pika.BlockingConnection(self.parameters, _impl_class=Connection) as connection:
                    with self._no_longer_than(SUBSCRIBE_SECONDS, connection):
                        channels = self._subscribe(connection)
                    outage.back()
                    self._connection = connection
                    self._receive(connection, *channels)
            except Exception as e:
                self._forget()
                if not isinstance(e, Unavailable):      # the store has told of that one
                    outage.lost(e)
                self._failures += 1
                self._stopped.wait(taskmanager.backoff(self._failures, 0.5, 10))

    @staticmethod
    @contextlib.contextmanager
    def _no_longer_than(seconds: float, connection: pika.BlockingConnection):
        # A quorum queue that is just choosing its leader may swallow a request (seen with RabbitMQ 3.10), and
        # pika, whose calls have no time limit, would wait for the answer for ever. Nor would the channel
        # close any more.
        impl, error = connection._impl, ConnectionError(f"the broker did not answer within {seconds} s")
        timer = impl.ioloop.call_later(seconds, lambda: impl._terminate_stream(error))
        try:
            yield
        finally:
            impl.ioloop.remove_timeout(timer)

    def _subscribe(self, connection: pika.BlockingConnection):
        """The channel of the tasks, and the one of the notifications."""
        transient = {"durable": False}      # as the documented producer declares it
        quorum = {"durable": True, "arguments": {"x-queue-type": "quorum"}}     # where transient is refused
        queue = self.config.task_queue
        try:
            channel = attach(connection, queue, quorum if self._transient_refused else transient)
        except pika.exceptions.ConnectionClosedByBroker as e:
            self._transient_refused = self._transient_refused or e.reply_code == 541
            raise
        channel = self._refuse_stream(channel)
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):    # the rejecter will tell
            attach(connection, self.rejecter.queue, {"durable": True}).close()
        self._notifications = f"{self.exchange}.{uuid.uuid4().hex}"     # our queue, of this connection only
        notifications = self._listen(connection, None)
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(queue, self._arrived)
        log.info("started intake queue=%s rejected=%s", queue, self.rejecter.queue)
        return channel, notifications

    def _refuse_stream(self, channel):
        """Raise ConnectionError for a stream: it delivers only what is published from now on.

        Return the channel, or a new one where the broker closed it.
        """
        queue = self.config.task_queue
        try:
            method, properties, body = channel.basic_get(queue)
        except pika.exceptions.ConnectionClosedByBroker as e:
            if e.reply_code != 540:     # "not implemented"
                raise
            raise ConnectionError(
                f"{queue} is a stream, which can't be used: expected a classic or quorum queue") from e
        except pika.exceptions.ChannelClosedByBroker as e:
            if e.reply_code != 405:     # a queue with a single active consumer gives nothing in this way
                raise
            return channel.connection.channel()
        if method:
            self._arrived(channel, method, properties, body)
        return channel

    def _listen(self, connection: pika.BlockingConnection, channel):
        """Bind our queue to the notification exchange, and make what is missing. Return the channel.

        After a fault, return None: the worker looks at the table every POLL_SECONDS all the same.
        """
        try:
            channel = channel or connection.channel()
            channel.exchange_declare(self.exchange, "fanout", durable=True)
            channel.queue_declare(self._notifications, exclusive=True, arguments={"x-max-length": 1})
            channel.queue_bind(self._notifications, self.exchange)
            if not channel.consumer_tags:
                channel.basic_consume(self._notifications, lambda *_: self.wake(), auto_ack=True)
        except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ChannelWrongStateError) as e:
            self._deaf.lost(e)
            return None
        self._deaf.back()
        return channel

    def _receive(self, connection: pika.BlockingConnection, channel, notifications) -> None:
        subscriptions, listen_at = 1, time.monotonic() + LISTEN_SECONDS
        while not self._stopped.is_set():
            wait = self._retry_at - time.monotonic() if self._tasks else 1.0
            connection.process_data_events(min(1.0, max(0.0, wait)))
            self._check_open(channel)
            self._insert(connection, channel)
            self._settle(channel)
            if len(channel.consumer_tags) < subscriptions:
                raise ConnectionError("the broker ended the subscription")
            # What can't be rejected now must not take the place of what can be inserted.
            if len(self._rejects) > PREFETCH * (subscriptions - 0.5) and subscriptions < SUBSCRIPTIONS:
                channel.basic_consume(self.config.task_queue, self._arrived)
                subscriptions += 1
            if time.monotonic() >= listen_at:       # for nobody tells us when the exchange is deleted
                with self._no_longer_than(SUBSCRIBE_SECONDS, connection):
                    notifications = self._listen(connection, notifications)
                listen_at = time.monotonic() + LISTEN_SECONDS
        self.rejecter.stop()
        connection.process_data_events(0)       # what it has just put is acknowledged
        self._settle(channel)

    @staticmethod
    def _check_open(channel) -> None:
        """Raise the broker's reason when it has closed the channel: what is held comes again."""
        if not channel.is_open:
            raise channel._closing_reason or ConnectionError("the channel was closed")

    def _arrived(self, channel, method, properties, body: bytes) -> None:
        message = Message(method.delivery_tag, properties, body)
        try:
            task = self._parse(message)
        except Exception as e:
            self._reject(message, e, channel)
            return
        if self._held.add(message):
            self._tasks.append((message, task))

    @staticmethod
    def _parse(message: Message) -> NewTask:
        if message.properties is None:
            raise taskmanager.invalid("malformed-properties", "its properties can't be decoded")
        if isinstance(message.properties.message_id, bytes):
            raise taskmanager.invalid("not-utf8", "expected UTF-8", "message_id")
        return taskmanager.parse_task(message.body, message.properties.message_id)

    def _insert(self, connection: pika.BlockingConnection, channel) -> None:
        """Insert what has arrived. A batch that fails is halved, so that a message is rejected alone."""
        while self._tasks and time.monotonic() >= self._retry_at and not self._stopped.is_set():
            connection.process_data_events(0)
            self._check_open(channel)       # or else each of them would become two tasks
            sizes = itertools.accumulate(len(message.body) for message, _ in self._tasks)
            first = itertools.islice(self._tasks, self._number)
            batch = [each for each, size in zip(first, sizes, strict=False) if size <= MAX_BATCH]
            try:
                self.store.create([task for _, task in batch], via="rabbitmq")
            except Unavailable:     # they are held, not returned: a quorum queue counts how often it delivers
                self._tries += 1
                self._retry_at = time.monotonic() + taskmanager.backoff(self._tries, 0.2, 5)
                self._number = max(1, len(batch) // 2)
                if len(batch) == 1:
                    self._tasks.rotate(-1)      # the others first: it may be the fault of this one
                return
            except Exception as e:
                if len(batch) > 1:
                    self._number = len(batch) // 2
                    continue
                self._reject(batch[0][0], e, channel)
            else:
                self._tries = self._failures = 0
                self._done += [message.tag for message, _ in batch]
            for message, _ in batch:
                self._tasks.popleft()
                self._held.remove(message)
            self._settle(channel)
            self._number = min(2 * self._number, PREFETCH)

    def _reject(self, message: Message, error: Exception, channel) -> None:
        if isinstance(error, TaskError):
            reason = str(error).replace("Idempotency-Key:", "message_id:")
        else:
            reason = taskmanager.describe(error)
            log.error("unexpected error=%r with a message", reason, exc_info=error)
        # As many bytes, so that they always fit into the frame with the properties.
        reason = reason.encode("utf-8", "replace")[:taskmanager.MAX_ERROR].decode("utf-8", "ignore")

        def done():
            with contextlib.suppress(pika.exceptions.ConnectionWrongStateError):    # lost: it comes again
                channel.connection.add_callback_threadsafe(rejected)

        def rejected():
            self._rejects.remove(message)
            self._done.append(message.tag)
        if self._rejects.add(message):
            self.rejecter.put(message, reason, done)

    def _settle(self, channel) -> None:
        """Acknowledge what is done. Before that, give back what there is room for: it then comes first."""
        self._held.give_back(channel)
        self._rejects.give_back(channel)
        done, self._done = self._done, []
        if done and not self._held and not self._rejects:       # nothing that came before them is still here
            channel.basic_ack(max(done), multiple=True)
        else:
            for tag in done:
                channel.basic_ack(tag)


def main() -> None:
    config = taskmanager.set_up(
        "Task Manager's worker: takes tasks from RabbitMQ, runs what the table holds.")
    handler = taskmanager.load_handler(config.handler)
    store = taskmanager.open_store(config.database_url, wait=True)
    worker = Worker(store, config, handler)
    intake = Intake(store, config, worker.wake) if config.rabbitmq_url else None
    notifier = Notifier(config) if config.rabbitmq_url else None
    server = None
    if config.metrics_port is not None:
        aside = dataclasses.replace(config, port=config.metrics_port, threads=2, waiters=0)
        rabbitmq = notifier and (lambda: notifier.connected)
        app = taskmanager.create_app(
            store, aside, taskmanager.own_names(config), rabbitmq, only_health=True)
        server = taskmanager.make_server(app, aside, "METRICS_PORT")
        log.info("started metrics port=%s", server.effective_port)
    if notifier:
        # For the other workers, when this one takes more than it can run.
        store.listeners.append(notifier.notify)
    taskmanager.serve(server, worker, notifier, intake)


if __name__ == "__main__":
    taskmanager.run(main)
