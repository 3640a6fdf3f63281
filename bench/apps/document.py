"""The document's service as one writes it first: Flask, and for each request connections of its own."""

import contextlib
import json
import os

import flask
import pika
import psycopg2
import psycopg2.extras
import waitress

app = flask.Flask(__name__)
app.json.sort_keys = False


@contextlib.contextmanager
def cursor():
    connection = psycopg2.connect(os.environ["DATABASE_URL"], cursor_factory=psycopg2.extras.RealDictCursor)
    with contextlib.closing(connection), connection, connection.cursor() as found:
        yield found


def shown(task):
    times = {name: task[name].isoformat() for name in ("created_at", "updated_at")}
    return {**task, **times}


def publish(task):
    with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
        channel = connection.channel()
        channel.queue_declare(queue="new_tasks", arguments={"x-max-length": 1})
        channel.basic_publish(exchange="", routing_key="new_tasks", body=json.dumps(task))


@app.post("/tasks")
def create():
    with cursor() as found:
        found.execute("insert into tasks default values returning id")
        task = found.fetchone()
    if "RABBITMQ_URL" in os.environ:
        publish(task)
    return task, 201


@app.get("/tasks/<int:id>")
def read(id):
    with cursor() as found:
        found.execute("select id, status, created_at, updated_at from tasks where id = %s", [id])
        task = found.fetchone()
    return shown(task) if task else ({"error": "not found"}, 404)


@app.get("/tasks")
def list_tasks():
    after, limit = flask.request.args.get("after", 0, int), flask.request.args.get("limit", 100, int)
    with cursor() as found:
        found.execute("""select id, status, created_at, updated_at from tasks
                         where id > %s order by id limit %s""", [after, limit])
        return [shown(task) for task in found.fetchall()]


waitress.serve(app, host="127.0.0.1", port=int(os.environ["PORT"]), threads=8)
