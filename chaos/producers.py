"""Clients at both doors, as the documentation tells them to be, which write down what they were told."""

import contextlib
import dataclasses
import http.client
import json
import random
import threading
import time
import types
from urllib.parse import urlsplit

import pika
import pika.exceptions

from chaos.stage import DOCUMENTED, DURABLE, Stage
from helpers import PRODUCER

ANSWER_SECONDS = 5      # that a client waits for an answer
ARRAY = 5               # tasks in an array
DOORS = ("http", "http with key", "array", "array with key", "message", "message with message_id")


@dataclasses.dataclass
class Offer:
    """A task that a client has sent, and what it was told."""

    token: str              # in the payload: finds the task in the table
    door: str
    payload: dict
    fields: dict
    told: str = "nothing"   # then "accepted" or "refused"
    id: int | None = None   # when it was accepted over HTTP
    why: str = ""           # it was refused
    at: float = 0.0         # time.monotonic() of the answer, or of sending

    @property
    def keyed(self) -> bool:
        """Whether it may be sent again without becoming two tasks."""
        return "with" in self.door

    @property
    def body(self) -> dict:
        return {"payload": self.payload, **self.fields}

    def accept(self, id=None):
        self.told, self.id, self.at = "accepted", id, time.monotonic()


class Ledger:
    """The offers of one scenario."""

    def __init__(self, name: str, seed):
        self.name = name
        self.random = random.Random(f"{seed} {name}")
        self._offers: list[Offer] = []
        self.wrong: list[str] = []                  # what the scenario itself has found
        self._lock = threading.Lock()
        self.stopped = threading.Event()            # the producers end
        self.messages_may_flow = threading.Event()
        self.messages_may_flow.set()
        self._publishing = 0                        # producers that are just publishing a message

    def offer(self, door: str, **fields) -> Offer:
        with self._lock:
            token = f"{self.name.partition(':')[0]}.{len(self._offers)}"
            payload = {"n": token}
            if self.random.random() < 0.3:
                payload["sleep"] = round(self.random.uniform(0, 0.1), 3)
            payload |= fields.pop("payload", {})
            if "kind" not in fields and self.random.random() < 0.1:
                fields |= self.random.choice([{"priority": 5}, {"delay": 0.3}])
            self._offers.append(Offer(token, door, payload, fields, at=time.monotonic()))
            return self._offers[-1]

    @contextlib.contextmanager
    def publishing(self):
        """Yield whether messages may be published now."""
        with self._lock:
            may_publish = self.messages_may_flow.is_set()
            self._publishing += may_publish
        try:
            yield may_publish
        finally:
            with self._lock:
                self._publishing -= may_publish

    def hold_messages(self) -> None:
        """Return when no producer publishes a message any more; messages_may_flow lets them go on."""
        with self._lock:
            self.messages_may_flow.clear()
        while self._publishing:
            time.sleep(0.01)

    def offers(self) -> list[Offer]:
        with self._lock:
            return list(self._offers)


class Producer(threading.Thread):
    """Offers tasks until the ledger is stopped."""

    rest = 0.15     # seconds between two offers, at most

    def __init__(self, stage: Stage, ledger: Ledger, door: str):
        super().__init__(name=door, daemon=True)
        self.stage, self.ledger, self.door = stage, ledger, door
        self.random = random.Random(f"{ledger.name} {door}")
        self.turn = self.random.randrange(10)
        self.start()

    def run(self):
        with contextlib.closing(self):
            rest = 3 * self.rest if self.door.startswith("array") else self.rest
            while not self.ledger.stopped.wait(self.random.uniform(0, rest)):
                self.produce()

    def produce(self):
        raise NotImplementedError

    def close(self):
        pass


class HttpProducer(Producer):
    """Sends requests to one API process, over a connection that it keeps; to another after a failure."""

    connection = None
    turn = 0        # the API process that it talks to; another one when that does not answer

    def produce(self):
        number = ARRAY if self.door.startswith("array") else 1
        offers = [self.ledger.offer(self.door) for _ in range(number)]
        while True:
            told = post(self, offers)
            # With a key it may be sent again; without, nobody knows whether there is a task.
            if told or not offers[0].keyed or self.ledger.stopped.wait(0.2):
                return

    def give_up(self):
        """Turn to another API process."""
        self.turn += 1
        self.close()

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None


def post(client: HttpProducer, offers: list[Offer]) -> bool:
    """Send one request with these tasks; return whether it was answered with 201 or a refusal."""
    body = [offer.body for offer in offers] if len(offers) > 1 else offers[0].body
    headers = {"Content-Type": "application/json"}
    if offers[0].keyed:
        headers["Idempotency-Key"] = f'"{offers[0].token}"'
    try:
        if client.connection is None:
            urls = client.stage.urls
            address = urlsplit(urls[client.turn % len(urls)]).netloc
            client.connection = http.client.HTTPConnection(address, timeout=ANSWER_SECONDS)
        client.connection.request("POST", "/tasks", json.dumps(body), headers)
        answer = client.connection.getresponse()
        status, told = answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        client.give_up()
        return False
    if status == 201:
        ids = told if isinstance(told, list) else [told]
        for offer, id in zip(offers, ids, strict=True):
            offer.accept(id if isinstance(id, int) else id["id"])
        return True
    if status == 503:
        client.give_up()
        return False
    for offer in offers:
        offer.told, offer.why = "refused", f"{status} {told}"
    return True


def publisher(stage, queue: str):
    """Return a channel on a new connection, which confirms what it takes."""
    parameters = pika.URLParameters(stage.broker.url)
    parameters.blocked_connection_timeout = parameters.socket_timeout = ANSWER_SECONDS
    parameters.stack_timeout = ANSWER_SECONDS
    channel = pika.BlockingConnection(parameters).channel()
    channel.queue_declare(queue, passive=True)
    channel.confirm_delivery()
    return channel


class MessageProducer(Producer):
    """Publishes persistent messages to a durable queue, and waits until the broker confirms each."""

    channel = None

    def produce(self):
        with self.ledger.publishing() as may_publish:
            if may_publish:
                self.offer()

    def offer(self):
        offer = self.ledger.offer(self.door)
        properties = pika.BasicProperties(delivery_mode=2)
        if offer.keyed:
            properties.message_id = offer.token
        while not self.publish(offer, properties):
            if not offer.keyed or self.ledger.stopped.wait(0.2):
                return

    def publish(self, offer, properties) -> bool:
        try:
            self.channel = self.channel or publisher(self.stage, DURABLE)
            self.channel.basic_publish("", DURABLE, json.dumps(offer.body), properties, mandatory=True)
        except (pika.exceptions.AMQPError, OSError):
            self.close()
            return False
        offer.accept()
        return True

    def close(self):
        with contextlib.suppress(pika.exceptions.AMQPError, OSError):
            if self.channel:
                self.channel.connection.close()
        self.channel = None


class DocumentProducer(Producer):
    """Runs the document's own program, with another host for 'rabbitmq'."""

    rest = 0.3

    def produce(self):
        parameters = pika.URLParameters(self.stage.broker.url)
        scope = {}
        exec(PRODUCER, scope)
        scope["pika"] = types.SimpleNamespace(
            BlockingConnection=pika.BlockingConnection,
            ConnectionParameters=lambda host: {"rabbitmq": parameters}[host])
        try:
            with self.ledger.publishing() as may_publish:
                if may_publish:
                    scope["create_task_via_rabbitmq"]()
                    self.stage.documented += 1
        except (pika.exceptions.AMQPError, OSError):
            time.sleep(0.2)


def start_producers(stage: Stage, ledger: Ledger) -> list[Producer]:
    """Start a client at each door of the stage."""
    producers: list[Producer] = [HttpProducer(stage, ledger, door) for door in DOORS[:4]]
    if hasattr(stage, "broker"):
        producers += [MessageProducer(stage, ledger, door) for door in DOORS[4:]]
        producers.append(DocumentProducer(stage, ledger, "document"))
    return producers


__all__ = ["ANSWER_SECONDS", "DOCUMENTED", "DOORS", "Ledger", "Offer", "publisher", "start_producers"]
