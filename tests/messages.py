"""What the tests of several files do with RabbitMQ's queues."""

import pika

from helpers import eventually


def publish(channel, body, queue="task_queue", **properties):
    channel.confirm_delivery()
    channel.basic_publish("", queue, body, pika.BasicProperties(**properties), mandatory=True)


def exists(channel, queue):
    try:
        channel.connection.channel().queue_declare(queue, passive=True)
        return True
    except pika.exceptions.ChannelClosedByBroker:
        return False


def ready(channel, queue="task_queue"):
    return channel.queue_declare(queue, passive=True).method.message_count


def rejected(channel):
    """The next message of the queue of rejected ones: (properties, body)."""
    def get():
        method, properties, body = channel.basic_get("task_queue.rejected", auto_ack=True)
        return method and (properties, body)
    eventually(lambda: exists(channel, "task_queue.rejected"))
    return eventually(get)
