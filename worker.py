"""A worker as a program: takes tasks from RabbitMQ into the table, and runs the tasks of the table.

The two halves share the table and nothing else. `Intake`, here, turns messages into rows, and leaves invalid
ones to the `Rejecter`; `taskmanager.Worker` runs rows. Either goes on when the other's server is away.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":      # as in taskmanager.py
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
from collections.abc import Callable
from typing import Any, NamedTuple

import pika
import pika.data
import pika.exceptions
import pika.frame
import pika.spec

import taskmanager
from taskmanager import (
    Config,
    EssentialThread,
    Invalid,
    NewTask,
    Outage,
    Store,
    TaskError,
    Unavailable,
    Worker,
)

PREFETCH = 200              # messages of one subscription that may be here at the same time
SUBSCRIPTIONS = 50          # at most, of one intake
MAX_WAITING = 32 * 1024**2  # bytes of messages that wait here for the database, and of those for the rejecter
MAX_BATCH = 8 * 1024**2     # bytes of messages that are inserted at once
MAX_REJECTION = 1200        # bytes of the list of errors that a rejected message gets
SUBSCRIBE_SECONDS = 10      # for the broker to answer while we subscribe

log = taskmanager.get_log("taskmanager.worker")


class Message(NamedTuple):
    """A message that was delivered and is not yet acknowledged."""

    tag: int                                    # of its delivery
    properties: pika.BasicProperties | None     # without the headers; None when they can't be decoded
    body: bytes


def decode_properties(encoded: bytes) -> pika.BasicProperties | None:
    """Decode the properties of a message without its headers; return None when that is not possible."""
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


class Connection(pika.SelectConnection):
    """pika's connection, which here skips the headers of messages, since nothing needs them.

    pika closes the connection when it can't decode a header (a date before 1970, 3,000 nested tables). It
    would do so at each delivery, while the broker counts the deliveries of all other messages, too.
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


def attach(connection: pika.BlockingConnection, queue: str, declaration: dict):
    """Return a new channel, and make `queue` as `declaration` says where it does not exist."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker as e:
        if e.reply_code != 404:
            raise
        channel = connection.channel()
        channel.queue_declare(queue, **declaration)
    return channel


def rejection_headers(error: Exception) -> dict[str, Any]:
    """Return the headers that say why a message is rejected: `reason`, `code` and perhaps `errors`.

    With the other properties they fit into a frame of 4,096 bytes, the least that a broker may allow.
    """
    reason, code = taskmanager.describe(error), "internal-error"
    if isinstance(error, TaskError):
        reason, code = str(error).replace("Idempotency-Key:", "message_id:"), error.code
    headers = {"reason": reason.encode("utf-8", "replace")[:taskmanager.MAX_ERROR].decode("utf-8", "ignore"),
               "code": code}

    entries, room = [], MAX_REJECTION
    for each in error.errors[:taskmanager.MAX_ERRORS] if isinstance(error, Invalid) else ():
        if each.where in ("Idempotency-Key", "message_id"):
            entry = {"property": "message_id", "code": each.code}
        else:
            entry = {"pointer": each.where, "code": each.code}
        room -= 1 + pika.data.encode_table([], entry)
        if room < 0:
            break
        entries.append(entry)
    return headers | {"errors": entries} if entries else headers


class Rejecter:
    """Puts invalid messages into TASK_QUEUE + ".rejected", with the reason in their headers.

    It has one connection and a thread of its own. A message that the broker does not take now, because of an
    alarm or a full queue, waits here, and delays neither the tasks nor the other rejected messages.
    """

    def __init__(self, config: Config, metrics: taskmanager.Metrics):
        self.queue, self.metrics = f"{config.task_queue}.rejected", metrics
        self.parameters = taskmanager.amqp_parameters(config.rabbitmq_url or "", "taskmanager rejecter")
        self._waiting: collections.deque[tuple[Message, dict, Callable[[], None]]] = collections.deque()
        self._pending, self._stopped = threading.Event(), threading.Event()
        self._thread = EssentialThread("rejecter", self._loop)

    def start(self) -> None:
        self._thread.start()

    def put(self, message: Message, headers: dict[str, Any], done: Callable[[], None]) -> None:
        """Leave a message to the thread; never block.

        `done` is called, in that thread, when the broker has confirmed the message.
        """
        self._waiting.append((message, headers, done))
        self._pending.set()

    def _loop(self) -> None:
        outage, tries = Outage(f"{self.queue} at {taskmanager.amqp_address(self.parameters)}"), 0
        while self._pending.wait() and not self._stopped.is_set():
            try:
                with pika.BlockingConnection(self.parameters) as connection:
                    channel = attach(connection, self.queue, {"durable": True})
                    channel.confirm_delivery()
                    while not self._stopped.is_set():
                        if self._waiting:
                            self._publish_first(channel)
                        else:
                            self._pending.wait(1)
                            self._pending.clear()
                            connection.process_data_events(0)       # heartbeats
                        outage.back()
                        tries = 0
            except Exception as e:
                outage.lost(e)
                tries += 1
                self._waiting.rotate(-1)        # the others first: this one may be the cause
                self._stopped.wait(taskmanager.backoff(tries, 0.5, 10))
                self._pending.set()

    def _publish_first(self, channel) -> None:
        # During an alarm the broker leaves a message unread, and takes it when the alarm is over, even if it
        # was sent again by then. So an empty one, which reaches no queue, is sent first and waits instead.
        channel.basic_publish("", f"{self.queue}.nowhere", b"")
        try:
            waiting = self._waiting[0]
        except IndexError:
            return      # clear() was called meanwhile
        message, headers, done = waiting
        given = message.properties or pika.BasicProperties()
        # New properties: with the sender's expiration or user id the message would be lost or refused.
        properties = pika.BasicProperties(
            headers=headers, delivery_mode=pika.DeliveryMode.Persistent,
            message_id=given.message_id, content_type=given.content_type,
            content_encoding=given.content_encoding)
        channel.basic_publish("", self.queue, message.body, properties, mandatory=True)
        with contextlib.suppress(ValueError):
            self._waiting.remove(waiting)
        self.metrics.rejected()
        log.warning("rejected message_id=%r bytes=%s code=%s reason=%r",
                    given.message_id, len(message.body), headers["code"], headers["reason"])
        done()

    def clear(self) -> None:
        """Forget the messages that wait: their connection was lost, so the broker delivers them again."""
        self._waiting.clear()

    def stop(self) -> None:
        """Finish with the message at hand; wait up to 2 seconds for that."""
        self._stopped.set()
        self._pending.set()
        if self._thread.ident is not None:
            self._thread.join(2)


class Unacknowledged:
    """Counts messages that wait here, with up to MAX_WAITING bytes together, and are not yet acknowledged.

    Of a message that does not fit in only the tag is kept. When all others are done, it is returned to the
    queue, which delivers it again: one at a time, so that it fits in then.
    """

    def __init__(self):
        self.number, self._bytes = 0, 0
        self._no_room: collections.deque[int] = collections.deque()     # tags
        self._expected_until = 0.0      # for the one that was returned; it may go to another worker

    def __len__(self) -> int:
        """Return how many are not acknowledged, those without room included."""
        return self.number + len(self._no_room)

    def add(self, message: Message) -> bool:
        """Count a message, and return whether there is room for it; a single one always has room."""
        self._expected_until = 0.0
        if self.number and self._bytes + len(message.body) > MAX_WAITING:
            self._no_room.append(message.tag)
            return False
        self.number += 1
        self._bytes += len(message.body)
        return True

    def remove(self, message: Message) -> None:
        self.number -= 1
        self._bytes -= len(message.body)

    def return_next(self, channel) -> None:
        """Return the next message without room to the queue, if all others are done."""
        if self._no_room and not self.number and time.monotonic() >= self._expected_until:
            channel.basic_nack(self._no_room.popleft(), requeue=True)
            self._expected_until = time.monotonic() + 1


class Intake:
    """Inserts the messages that have arrived in one transaction, and only then acknowledges them.

    An invalid message goes to the `Rejecter`, at once and alone. The intake publishes nothing on its
    connection: during a memory or disk alarm the broker no longer reads from a connection that publishes, and
    would not see its acknowledgements either.
    """

    def __init__(self, store: Store, config: Config):
        self.store, self.config = store, config
        self.parameters = taskmanager.amqp_parameters(config.rabbitmq_url or "", "taskmanager intake")
        self.rejecter = Rejecter(config, store.metrics)
        self._transient_refused = False
        self._failures = 0              # since a message was inserted
        self._connection: pika.BlockingConnection | None = None
        self._forget()
        self._stopped = threading.Event()
        self._thread = EssentialThread("intake", self._loop)

    def start(self) -> None:
        self._thread.start()
        self.rejecter.start()

    def _forget(self) -> None:
        """Begin anew: all messages that wait were lost with their connection, and are delivered again."""
        self.rejecter.clear()
        self._tasks: collections.deque[tuple[Message, NewTask]] = collections.deque()
        self._to_insert, self._to_reject = Unacknowledged(), Unacknowledged()
        self._done: list[int] = []      # tags to acknowledge
        self._tries, self._retry_at = 0, 0.0        # of inserting, while the database is away
        self._batch = PREFETCH          # messages that are inserted at once

    def _loop(self) -> None:
        outage = Outage(f"{taskmanager.amqp_address(self.parameters)} for intake")
        while not self._stopped.is_set():
            try:
                self.store.ping()       # while the database is away, messages stay in their queue
                with pika.BlockingConnection(self.parameters, _impl_class=Connection) as connection:
                    with self._no_longer_than(SUBSCRIBE_SECONDS, connection):
                        channel = self._subscribe(connection)
                    outage.back()
                    self._connection = connection
                    self._receive(connection, channel)
            except Exception as e:
                self._forget()
                if not isinstance(e, Unavailable):      # that one the store has logged
                    outage.lost(e)
                self._failures += 1
                self._stopped.wait(taskmanager.backoff(self._failures, 0.5, 10))

    @staticmethod
    @contextlib.contextmanager
    def _no_longer_than(seconds: float, connection: pika.BlockingConnection):
        """Close the connection when the calls inside take longer."""
        # A quorum queue that is just electing its leader may lose a request (seen with RabbitMQ 3.10). pika's
        # calls have no time limit: it would wait for the answer for ever, and could not close the channel.
        impl, error = connection._impl, ConnectionError(f"the broker did not answer within {seconds} s")
        timer = impl.ioloop.call_later(seconds, lambda: impl._terminate_stream(error))
        try:
            yield
        finally:
            impl.ioloop.remove_timeout(timer)

    def _subscribe(self, connection: pika.BlockingConnection):
        """Subscribe to TASK_QUEUE; return the channel."""
        transient = {"durable": False}      # as the documented producer declares it
        quorum = {"durable": True, "arguments": {"x-queue-type": "quorum"}}     # where transient is refused
        queue = self.config.task_queue
        try:
            channel = attach(connection, queue, quorum if self._transient_refused else transient)
        except pika.exceptions.ConnectionClosedByBroker as e:
            self._transient_refused = self._transient_refused or e.reply_code == 541
            raise
        channel = self._refuse_stream(channel)
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):    # the rejecter logs it
            attach(connection, self.rejecter.queue, {"durable": True}).close()
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(queue, self._on_message)
        log.info("started intake queue=%s rejected=%s", queue, self.rejecter.queue)
        return channel

    def _refuse_stream(self, channel):
        """Return the channel, or a new one where the broker has closed it.

        Raise ConnectionError for a stream, which would deliver only what is published from now on.
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
            self._on_message(channel, method, properties, body)
        return channel

    def _receive(self, connection: pika.BlockingConnection, channel) -> None:
        """Receive, insert and acknowledge until begin_stop(); raise when the channel is lost."""
        subscriptions = 1
        while not self._stopped.is_set():
            wait = self._retry_at - time.monotonic() if self._tasks else 1.0
            connection.process_data_events(min(1.0, max(0.0, wait)))
            self._check_open(channel)
            self._insert(connection, channel)
            self._settle(channel)
            if len(channel.consumer_tags) < subscriptions:
                raise ConnectionError("the broker ended the subscription")
            # Messages that can't be rejected now use up a subscription, so valid ones need another.
            if len(self._to_reject) > PREFETCH * (subscriptions - 0.5) and subscriptions < SUBSCRIPTIONS:
                channel.basic_consume(self.config.task_queue, self._on_message)
                subscriptions += 1
        self.rejecter.stop()
        connection.process_data_events(0)       # calls `rejected` for the last one
        self._settle(channel)

    @staticmethod
    def _check_open(channel) -> None:
        """Raise the broker's reason when it has closed the channel: it delivers all messages again."""
        if not channel.is_open:
            raise channel._closing_reason or ConnectionError("the channel was closed")

    def _on_message(self, channel, method, properties, body: bytes) -> None:
        """Check a message that was delivered, and put it where it waits to be inserted or rejected."""
        message = Message(method.delivery_tag, properties, body)
        try:
            task = self._parse(message)
        except Exception as e:
            self._reject(message, e, channel)
            return
        if self._to_insert.add(message):
            self._tasks.append((message, task))

    @staticmethod
    def _parse(message: Message) -> NewTask:
        if message.properties is None:
            raise taskmanager.invalid("malformed-properties", "its properties can't be decoded")
        if isinstance(message.properties.message_id, bytes):
            raise taskmanager.invalid("not-utf8", "expected UTF-8", "message_id")
        return taskmanager.parse_task(message.body, message.properties.message_id)

    def _insert(self, connection: pika.BlockingConnection, channel) -> None:
        """Insert the valid messages. A batch that fails is halved, so that a message is rejected alone."""
        while self._tasks and time.monotonic() >= self._retry_at and not self._stopped.is_set():
            connection.process_data_events(0)
            self._check_open(channel)       # or else each of them would become two tasks
            sizes = itertools.accumulate(len(message.body) for message, _ in self._tasks)
            first = itertools.islice(self._tasks, self._batch)
            batch = [each for each, size in zip(first, sizes, strict=False) if size <= MAX_BATCH]
            try:
                self.store.create([task for _, task in batch], via="rabbitmq")
            except Unavailable:     # they wait here: a quorum queue counts how often one is returned
                self._tries += 1
                self._retry_at = time.monotonic() + taskmanager.backoff(self._tries, 0.2, 5)
                self._batch = max(1, len(batch) // 2)
                if len(batch) == 1:
                    self._tasks.rotate(-1)      # the others first: this one may be the cause
                return
            except Exception as e:
                if len(batch) > 1:
                    self._batch = len(batch) // 2
                    continue
                self._reject(batch[0][0], e, channel)
            else:
                self._tries = self._failures = 0
                self._done += [message.tag for message, _ in batch]
            for message, _ in batch:
                self._tasks.popleft()
                self._to_insert.remove(message)
            self._settle(channel)
            self._batch = min(2 * self._batch, PREFETCH)

    def _reject(self, message: Message, error: Exception, channel) -> None:
        """Leave a message to the rejecter, and acknowledge it when the broker has confirmed its copy."""
        if not isinstance(error, TaskError):
            log.error("failed on a message error=%r", taskmanager.describe(error), exc_info=error)

        def rejected():
            self._to_reject.remove(message)
            self._done.append(message.tag)

        def done():     # in the rejecter's thread
            with contextlib.suppress(pika.exceptions.ConnectionWrongStateError):    # the message comes again
                channel.connection.add_callback_threadsafe(rejected)

        if self._to_reject.add(message):
            self.rejecter.put(message, rejection_headers(error), done)

    def _settle(self, channel) -> None:
        """Acknowledge what is done, but first return what there is room for: so that comes first."""
        self._to_insert.return_next(channel)
        self._to_reject.return_next(channel)
        done, self._done = self._done, []
        if done and not self._to_insert and not self._to_reject:    # all that came before them is done, too
            channel.basic_ack(max(done), multiple=True)
        else:
            for tag in done:
                channel.basic_ack(tag)

    def begin_stop(self) -> None:
        """Take no more messages; those that are not acknowledged go back to the queue."""
        self._stopped.set()
        if connection := self._connection:
            with contextlib.suppress(pika.exceptions.ConnectionWrongStateError):    # it is just closing
                connection.add_callback_threadsafe(lambda: None)                    # wakes its thread

    def stop(self) -> None:
        """Stop, as begin_stop() does, and wait until the batch at hand is finished."""
        self.begin_stop()
        if self._thread.ident is not None:
            self._thread.join(5)
        self.rejecter.stop()


def main() -> None:
    """Run a worker until a signal stops it."""
    config = taskmanager.set_up("Task Manager's worker: takes tasks from RabbitMQ, runs those in the table.")
    handlers = taskmanager.load_handlers(config)
    store = taskmanager.open_store(config.database_url, wait=True)
    worker = Worker(store, config, handlers)
    intake = Intake(store, config) if config.rabbitmq_url else None
    # Other workers may run at once what this one can't.
    notifier = taskmanager.make_notifier(store, config, Connection)

    server = None
    if config.metrics_port is not None:
        aside = dataclasses.replace(config, port=config.metrics_port, threads=2, waiters=0)
        is_connected = (lambda: notifier.connected) if notifier and config.rabbitmq_url else None
        app = taskmanager.create_app(
            store, aside, taskmanager.own_names(config), is_connected, only_health=True)
        server = taskmanager.make_server(app, aside, "METRICS_PORT")
        log.info("started metrics port=%s", server.effective_port)

    log.info("started version=%s database=%s rabbitmq=%s", taskmanager.__version__,
             taskmanager.show_setting("DATABASE_URL", config.database_url),
             f"{intake.parameters.host}:{intake.parameters.port}" if intake else "none")
    taskmanager.serve(server, worker, notifier, intake)


if __name__ == "__main__":
    taskmanager.run(main)
