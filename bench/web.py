"""The measures over HTTP: one server at a time, 16 connections that are kept alive, made by wrk.

Each peer is a function that runs its server on a port and a database inside a block.
"""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import urllib.request

import psycopg2

import servers
import taskmanager
from machine import APPS, ROOT, SCRIPTS, Machine, query

CONNECTIONS = 16
ROWS = 1000         # in the table that is read
DOCUMENTED = """
create table tasks (
    id         serial primary key,
    status     varchar(20) default 'New',
    created_at timestamp(0) default current_timestamp,
    updated_at timestamp(0) default current_timestamp
)"""


# Peers

def ours(machine: Machine, port: int, url: str, processes: int = 1):
    taskmanager.open_store(url)
    return machine.running(sys.executable, "taskmanager.py", port=port, DATABASE_URL=url,
                           RABBITMQ_URL=machine.rabbitmq.url, PROCESSES=str(processes))


def ours_twice(machine: Machine, port: int, url: str):
    return ours(machine, port, url, processes=2)


def document(machine: Machine, port: int, url: str, **environment):
    query(url, DOCUMENTED)
    return machine.running(sys.executable, APPS / "document.py", port=port, DATABASE_URL=url, **environment)


def document_with_rabbitmq(machine: Machine, port: int, url: str):
    return document(machine, port, url, RABBITMQ_URL=machine.rabbitmq.url)


def fastapi(machine: Machine, port: int, url: str, processes: int = 1):
    query(url, DOCUMENTED)
    return machine.running(SCRIPTS / "uvicorn", "fast:app", "--port", port, "--loop=uvloop",
                           "--http=httptools", "--no-access-log", f"--workers={processes}",
                           port=port, DATABASE_URL=url)


def fastapi_twice(machine: Machine, port: int, url: str):
    return fastapi(machine, port, url, processes=2)


def empty(machine: Machine, port: int, url: str, **environment):
    return machine.running(sys.executable, APPS / "empty.py", port=port, **environment)


def empty_on_one_core(machine: Machine, port: int, url: str):
    return empty(machine, port, url, ONE_CORE="yes")


NAMES = {
    ours: "Task Manager",
    ours_twice: "Task Manager, PROCESSES=2",
    document: "Flask, a connection a request",
    document_with_rabbitmq: "the same, and one to RabbitMQ",
    fastapi: "FastAPI + asyncpg",
    fastapi_twice: "FastAPI + asyncpg, two processes",
    empty: "ceiling: empty Bottle app",
    empty_on_one_core: "ceiling: empty Bottle app on one core",
}


# Measures: each yields what one turn of each peer gives per second

def post(seconds: int):
    yield from turns("POST", "/tasks", seconds,
                     [ours, ours_twice, document, document_with_rabbitmq, fastapi, fastapi_twice, empty,
                      empty_on_one_core],
                     check=lambda answer: answer["id"] > 0)
    yield "ceiling: pgbench, the same statement", functools.partial(
        pgbench, statement=(taskmanager.CREATE, dict.fromkeys(taskmanager.NewTask._fields, "{}") | {
            "position": "{0}", "kind": "{default}", "priority": "{0}"}),
        seconds=seconds)


def get(seconds: int):
    yield from turns("GET", "/tasks/RANDOM", seconds,
                     [ours, ours_twice, document, fastapi, fastapi_twice, empty, empty_on_one_core],
                     check=lambda task: task["id"] > 0 and len(task) == 4)
    yield "ceiling: pgbench, the same statement", functools.partial(
        pgbench, statement=(taskmanager.READ, {"id": "{500}"}), seconds=seconds)


def list_100(seconds: int):
    yield from turns("GET", "/tasks?limit=100", seconds, [ours, document, fastapi],
                     check=lambda tasks: len(tasks) == 100 and tasks[99]["id"] == 100)


def pages(seconds: int):
    yield from turns("GET", "/tasks?limit=100&after=RANDOM", seconds, [ours, document, fastapi],
                     check=lambda tasks: len(tasks) == 100)


def arrays(seconds: int):
    yield from turns("POST", {ours: "/tasks", fastapi: "/tasks/many"}, seconds, [ours, fastapi], tasks=1000,
                     check=lambda created: len(created) == 1000)


def turns(method, path, seconds, peers, check, tasks=0):
    for peer in peers:
        where = path[peer] if isinstance(path, dict) else path
        yield NAMES[peer], functools.partial(turn, peer, method, where, tasks, check, seconds)


def turn(peer, method: str, path: str, tasks: int, check, seconds: int, machine: Machine) -> float:
    """Return the requests (or tasks, where a request has some) per second of one peer, on a new database.

    The rows that are there afterwards must be those that wrk got an answer for.
    """
    port, url = servers.free_port(), machine.new_database()
    address = f"http://127.0.0.1:{port}{path}"
    with peer(machine, port, url):
        if method == "GET" and peer not in (empty, empty_on_one_core):
            fill(url)
        first = send(method, address.replace("RANDOM", "500"), tasks)
        if not check(first):
            raise RuntimeError(f"{peer.__name__} answered {first}")

        warm, _ = wrk(method, address, tasks, 1)
        requests, rate = wrk(method, address, tasks, seconds)

    if method == "POST" and peer not in (empty, empty_on_one_core):
        [(rows,)] = query(url, "select count(*) from tasks")
        expected = (1 + warm + requests) * (tasks or 1)
        unanswered = 2 * CONNECTIONS * (tasks or 1)         # when wrk ended
        if not expected <= rows <= expected + unanswered:
            raise RuntimeError(f"{peer.__name__}: {rows} rows, expected {expected}")
    return rate * (tasks or 1)


def fill(url: str) -> None:
    query(url, f"insert into tasks (status) select 'New' from generate_series(1, {ROWS})")
    query(url, "vacuum analyze tasks")


def send(method: str, address: str, tasks: int):
    body = json.dumps([{}] * tasks).encode() if tasks else None
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"} if tasks else {},
                                     method=method)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def wrk(method: str, address: str, tasks: int, seconds: int) -> tuple[int, float]:
    """Return how many requests were answered, and how many a second; fail when one was refused."""
    done = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", ROOT / "bench/load.lua", address, "--",
         method, str(tasks)], capture_output=True, text=True, check=True).stdout
    if re.search("Non-2xx|Socket errors", done):
        raise RuntimeError(done)
    requests, rate = (re.search(each, done)[1] for each in (r"(\d+) requests in", r"Requests/sec: +([\d.]+)"))
    return int(requests), float(rate)


def pgbench(machine: Machine, statement, seconds: int) -> float:
    """Return how often PostgreSQL runs a statement of ours a second: prepared, on 8 connections."""
    url = machine.new_database()
    taskmanager.open_store(url)
    fill(url)
    with contextlib.closing(psycopg2.connect(url)) as connection:
        text = connection.cursor().mogrify(*statement).decode()
    script = machine.folder / "statement.sql"
    # pgbench takes `:MI` for a variable of its own, even inside a text.
    text = text.replace("'YYYY-MM-DD\"T\"HH24:MI:SS'", "e'YYYY-MM-DD\"T\"HH24\\x3aMI\\x3aSS'")
    script.write_text(f"{text};\n")
    done = subprocess.run(
        [servers.postgres_binaries() / "pgbench", "--no-vacuum", "--client=8", "--jobs=1",
         "--protocol=prepared", f"--time={seconds}", f"--file={script}", url],
        env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"tps = ([\d.]+)", done)[1])
