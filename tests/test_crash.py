"""The promises, kept while real processes are killed, frozen and restarted."""

import random
import re
import signal
import threading
import time
from http.client import HTTPException

import pytest

import taskmanager
from helpers import eventually, finished, http, order

OBEY = dict(HANDLER="tests.handlers:obey", LEASE_SECONDS=1, POLL_SECONDS=0.1, RETRY_SECONDS=0.05)
IMPATIENT = OBEY | {"HANDLER": "tests.impatient:obey"}


# Workers

def test_a_killed_worker_gives_its_tasks_back(start, store, database, tmp_path):
    trace = tmp_path / "trace"
    first = start("worker.py", DATABASE_URL=database, **OBEY)
    id = order(store, file=str(trace), sleep=1, **{"return": "done"})
    eventually(lambda: trace.exists() and trace.read_text())
    first.stop(signal.SIGKILL)
    began = time.monotonic()
    start("worker.py", DATABASE_URL=database, **OBEY)
    row = finished(store, id, 30)
    assert (row.status, row.result, row.attempts) == ("Completed", '"done"', 2)
    assert time.monotonic() - began < 10
    assert [line.split()[1] for line in trace.read_text().splitlines()] == ["1", "2"]


def test_a_task_that_kills_every_worker_ends_as_failed(start, store, database):
    id, innocent = order(store, die=9), order(store)
    for _ in range(3):
        worker = start("worker.py", DATABASE_URL=database, **OBEY | {"CONCURRENCY": 1})
        assert worker.process.wait(30) == 9
    start("worker.py", DATABASE_URL=database, **OBEY)
    row = finished(store, id, 30)
    assert row.status == "Failed"
    assert row.error == "the worker died or was cut off during attempt 3 of 3"
    assert finished(store, innocent, 30).status == "Completed"


def test_a_frozen_worker_finds_its_result_refused_and_goes_on(start, store, database, tmp_path):
    trace = tmp_path / "trace"
    frozen = start("worker.py", DATABASE_URL=database, **OBEY)
    id = order(store, file=str(trace), deaf=1.5, **{"return": "done"})
    eventually(trace.exists)
    frozen.send(signal.SIGSTOP)
    other = start("worker.py", DATABASE_URL=database, **OBEY)
    assert finished(store, id, 30).status == "Completed"
    assert other.stop() == 0
    before = store.read(id)
    frozen.send(signal.SIGCONT)
    frozen.logged(rf"lost task={id} attempt=1|refused task={id} attempt=1")
    frozen.logged(rf"refused task={id} attempt=1")
    assert store.read(id) == before and before.attempts == 2
    assert finished(store, order(store), 30).status == "Completed"     # and it goes on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_worker_that_is_told_to_stop_finishes_what_it_can(start, store, database, tmp_path, number):
    trace = tmp_path / "trace"
    worker = start("worker.py", DATABASE_URL=database, **IMPATIENT, GRACE_SECONDS=1.5)
    quick = order(store, file=str(trace), deaf=0.7, **{"return": "done"})
    slow = order(store, file=str(trace), max_attempts=1, deaf=60)
    eventually(lambda: trace.exists() and len(trace.read_text().splitlines()) == 2)
    assert worker.stop(number) == 0
    assert "Traceback" not in worker.log()
    assert (store.read(quick).status, store.read(quick).result) == ("Completed", '"done"')
    assert (store.read(slow).status, store.read(slow).attempts) == ("New", 0)
    assert f"released task={slow} attempt=1" in worker.log()


def test_an_idle_worker_stops_at_once(start, postgres_database, broker):
    worker = start("worker.py", DATABASE_URL=postgres_database, RABBITMQ_URL=broker, GRACE_SECONDS=60)
    worker.logged("started intake")
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 3


# The API

@pytest.mark.parametrize("script", ["taskmanager.py", "worker.py"])
@pytest.mark.parametrize("database", ["there", "away"])
def test_a_signal_that_an_import_swallows_still_stops_the_program(start, tmp_path, script, database):
    (tmp_path / "swallows.py").write_text("""
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
except KeyboardInterrupt:       # as importing a module written in C may do
    print("swallowed it", flush=True)
work = print
""")
    url = f"sqlite:///{tmp_path}/tasks.db" if database == "there" else "postgresql://127.0.0.1:1/away"
    program = start(script, DATABASE_URL=url, HANDLER="swallows:work", PYTHONPATH=tmp_path)
    assert program.process.wait(20) == 0
    assert "swallowed it" in program.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_the_api_stops_cleanly_and_a_second_start_finds_the_tasks(start, database, number):
    api = start("taskmanager.py", DATABASE_URL=database, WORKER="on")
    for _ in range(3):
        http("POST", f"{api.url}/tasks")
    api.logged("completed task=3")
    assert api.stop(number) == 0
    assert "Traceback" not in api.log()
    assert api.log().rstrip().endswith("stopped api")
    again = start("taskmanager.py", DATABASE_URL=database)
    assert [task["status"] for task in http("GET", f"{again.url}/tasks").json] == ["Completed"] * 3


def test_every_task_that_a_killed_api_accepted_is_there(start, store, database):
    api = start("taskmanager.py", DATABASE_URL=database, WORKER="off")
    url, accepted = api.url, []

    def post():
        while True:
            try:
                accepted.append(http("POST", f"{url}/tasks").json["id"])
            except (OSError, ValueError, KeyError, HTTPException):
                return

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(accepted) > 50)
    api.stop(signal.SIGKILL)
    for thread in threads:
        thread.join()
    kept = [row.id for row in store.list_tasks()]
    assert set(accepted) <= set(kept) and len(kept) - len(accepted) <= 4     # four were under way


# The database

def test_a_database_that_is_killed_loses_nothing_and_everything_comes_back(
    start, postgres, rabbitmq, tmp_path
):
    database, broker = postgres.create_database("killed"), rabbitmq.url
    settings = OBEY | dict(DATABASE_URL=database, RABBITMQ_URL=broker, LEASE_SECONDS=30)
    api, worker = start("taskmanager.py", **settings), start("worker.py", **settings)
    worker.logged("started intake")
    ids = [http("POST", f"{api.url}/tasks").json["id"] for _ in range(20)]
    running = http(
        "POST",
        f"{api.url}/tasks",
        {"payload": {"sleep": 3, "return": "done", "file": str(tmp_path / "trace")}},
    ).json["id"]
    eventually((tmp_path / "trace").exists)
    postgres.kill()
    answer = http("POST", f"{api.url}/tasks")
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    assert answer.json["status"] == 503
    assert http("GET", f"{api.url}/readyz").status == 503
    assert http("GET", f"{api.url}/livez").status == 200
    worker.logged("lost database")
    postgres.start()
    # no connection of the old time is used
    answers = [http("POST", f"{api.url}/tasks") for _ in range(20)]
    assert [answer.status for answer in answers] == [201] * 20
    store = taskmanager.open_store(database)
    for id in ids + [answer.json["id"] for answer in answers] + [running]:
        assert finished(store, id, 30).status == "Completed"
    assert store.read(running).result == '"done"'
    assert store.read(running).attempts == 1
    for program in (api, worker):
        program.logged("regained database")
        assert program.log().count("lost database") == program.log().count("regained database") == 1
        assert "Traceback" not in program.log()


def test_a_frozen_database_holds_nobody_without_end(start, postgres, monkeypatch):
    store = taskmanager.open_store(postgres.create_database("frozen"))
    worker = start("worker.py", DATABASE_URL=store.url, **IMPATIENT, GRACE_SECONDS=0)
    worker.logged("started worker")
    began = time.monotonic()
    postgres.freeze()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(taskmanager, "STATEMENT_SECONDS", -4)     # 5 more are added for the way
            with pytest.raises(taskmanager.Unavailable):
                store.create()
        assert time.monotonic() - began < 10
        assert worker.stop() == 0
    finally:
        postgres.thaw()
    eventually(store.create)


def test_the_programs_wait_for_a_database_that_is_not_there_yet(start, postgres):
    database = postgres.create_database("late")
    postgres.stop()
    api, worker = start("taskmanager.py", DATABASE_URL=database), start("worker.py", DATABASE_URL=database)
    for program in (api, worker):
        program.logged("waiting for database")
    postgres.start()
    id = http("POST", f"{api.url}/tasks").json["id"]
    worker.logged(f"completed task={id}")


def test_a_program_that_waits_for_its_database_can_be_stopped(start, postgres):
    database = postgres.create_database("never")
    postgres.stop()
    api = start("taskmanager.py", DATABASE_URL=database)
    api.logged("waiting for database")
    assert api.stop() == 0 and "Traceback" not in api.log()


# RabbitMQ

def test_rabbitmq_away_neither_fails_nor_slows_a_request_and_loses_no_task(
    start, postgres_database, rabbitmq, document_producer
):
    settings = OBEY | dict(DATABASE_URL=postgres_database, RABBITMQ_URL=rabbitmq.url)
    api, worker = start("taskmanager.py", **settings), start("worker.py", **settings)
    worker.logged("started intake")
    store = taskmanager.open_store(postgres_database)
    try:
        for away, back in ((rabbitmq.kill, rabbitmq.start), (rabbitmq.freeze, rabbitmq.thaw)):
            away()
            for _ in range(10):
                began = time.monotonic()
                answer = http("POST", f"{api.url}/tasks")
                assert answer.status == 201 and time.monotonic() - began < 2
                assert finished(store, answer.json["id"], 30).status == "Completed"
            back()
    finally:
        rabbitmq.thaw()
    eventually(lambda: worker.log().count("started intake") >= 2, seconds=40)
    many = len(store.list_tasks())
    document_producer(rabbitmq.url)
    eventually(lambda: len(store.list_tasks()) == many + 1, seconds=40)
    for program in (api, worker):
        assert re.search("(lost|waiting for) RabbitMQ", program.log())
        assert "Traceback" not in program.log()


def test_messages_in_a_durable_queue_outlive_the_broker_and_killed_workers(
    start, postgres_database, rabbitmq, broker
):
    import pika
    many = 1500
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        channel = connection.channel()
        channel.queue_delete("task_queue")
        channel.queue_declare("task_queue", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        for n in range(many):
            channel.basic_publish(
                "",
                "task_queue",
                b'{"payload": %d}' % n,
                pika.BasicProperties(delivery_mode=2, message_id=f"m{n}"),
            )
    # a quorum queue of RabbitMQ 3.10 that is killed sooner after it was made finds no leader any more
    time.sleep(1)
    rabbitmq.kill()
    rabbitmq.start()
    settings = dict(DATABASE_URL=postgres_database, RABBITMQ_URL=rabbitmq.url)
    store = taskmanager.open_store(postgres_database)
    for _ in range(4):
        worker = start("worker.py", **settings)
        worker.logged("started intake")
        time.sleep(random.uniform(0, 0.1))
        worker.stop(signal.SIGKILL)
    start("worker.py", **settings)
    rows = "select cast(cast(payload as text) as int) from tasks order by 1"
    eventually(lambda: len(store._execute(rows)) >= many)
    assert [payload for payload, in store._execute(rows)] == list(range(many))


# Everything at once

def test_nothing_is_lost_or_done_twice_at_the_same_time_while_everything_is_killed(
    start, postgres, rabbitmq, tmp_path
):
    database, trace = postgres.create_database("chaos"), tmp_path / "trace"
    settings = OBEY | dict(DATABASE_URL=database, RABBITMQ_URL=rabbitmq.url, MAX_ATTEMPTS=1000)
    api, workers = start("taskmanager.py", **settings), [start("worker.py", **settings) for _ in range(3)]
    accepted, stop = [], threading.Event()

    def post():
        while not stop.is_set():
            try:
                answer = http(
                    "POST",
                    f"{api.url}/tasks",
                    {"payload": {"file": str(trace), "sleep": random.random() / 5}},
                )
                if answer.status == 201:
                    accepted.append(answer.json["id"])
                assert answer.status in (201, 503), answer.body
            except OSError:
                pass
            time.sleep(0.01)

    thread = threading.Thread(target=post)
    thread.start()
    api_url = api.url
    for kind in ("worker", "freeze", "postgres", "worker", "rabbitmq", "freeze", "postgres", "worker"):
        time.sleep(random.uniform(0.3, 0.8))
        if kind == "worker":
            workers.pop(0).stop(signal.SIGKILL)
            workers.append(start("worker.py", **settings))
        elif kind == "freeze":
            workers[0].send(signal.SIGSTOP)
            time.sleep(1.5)
            workers[0].send(signal.SIGCONT)
        elif kind == "postgres":
            postgres.kill()
            time.sleep(0.5)
            postgres.start()
        else:
            rabbitmq.kill()
            rabbitmq.start()
    assert http("GET", f"{api_url}/livez").status == 200
    stop.set()
    thread.join()
    store = taskmanager.open_store(database)
    eventually(lambda: not store.list_tasks("New", "In Progress", limit=1), seconds=60)
    rows = {row.id: row for after in range(0, 10000, 1000) for row in store.list_tasks(after=after)}
    assert len(accepted) > 100 and set(accepted) <= set(rows)
    assert {row.status for row in rows.values()} == {"Completed"}
    assert {int(line.split()[0]) for line in trace.read_text().splitlines()} == set(rows)
    for program in (api, *workers):
        assert "Traceback" not in program.log(), program.log()
