"""Dramatiq with RabbitMQ: `dramatiq dramatiq_app`.

It keeps no state of a task, so each leaves one byte in a file, by which they are counted.
"""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_RABBITMQ"]))
done = os.open(f"{os.environ['BENCH_FOLDER']}/dramatiq", os.O_CREAT | os.O_APPEND | os.O_WRONLY)


@dramatiq.actor
def noop():
    os.write(done, b".")
