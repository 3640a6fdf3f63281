"""Celery with RabbitMQ, and with results in PostgreSQL: `celery -A celery_app worker`."""

import os

import celery

app = celery.Celery(
    broker=os.environ["BENCH_RABBITMQ"],
    backend=f"db+postgresql+psycopg2{os.environ['BENCH_POSTGRES'].removeprefix('postgresql')}/celery")


@app.task
def noop():
    pass
