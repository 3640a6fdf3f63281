#!/usr/bin/env python3
"""chaos/soak.py: very many tasks with nothing broken, and what the processes and the table use meanwhile.

`make soak TASKS=2000000` runs it on PostgreSQL and RabbitMQ, with an API process, two workers and producers
at both doors; DATABASE=sqlite on SQLite, with the worker inside the API process. Finished tasks are deleted
RETENTION=60 seconds after their end, and tasks that were old already at the begin must be gone at the end.

It prints memory, threads, open files, connections and sizes at the begin (after a tenth of the tasks), in the
middle and at the end. The status is 1 where one of them has grown beyond its limit, where a task was lost or
ran twice, or where no task was completed for PAUSE=3 seconds although one was ready.
"""

import contextlib
import itertools
import json
import os
import re
import sqlite3
import sys
import threading
import time

import pika
import psycopg2

import servers
import taskmanager
from chaos.own import Own, Wrong, check_log, require, resources
from helpers import eventually, http

BACKLOG = 3000      # tasks that are ready, or messages in the queue, above which producers pause
OLD = 10_000        # tasks, at most, that ended an hour before the begin

# What a figure may have grown to from the begin to the end.
LIMITS = {
    "MB of memory": lambda begin: begin * 1.25 + 24,
    "threads": lambda begin: begin + 4,
    "open files": lambda begin: begin + 12,
    "connections": lambda begin: begin + 6,
}


class Database:
    """The table, seen from outside of the service. Each thread makes one of its own."""

    def __init__(self, url):
        self.on_sqlite = url.startswith("sqlite")
        if self.on_sqlite:
            self.path = url.removeprefix("sqlite:///")
            self.connection = sqlite3.connect(self.path, 30, isolation_level=None)
            self.now = "((julianday('now') - 2440587.5) * 86400.0)"
        else:
            self.connection = psycopg2.connect(url)
            self.connection.autocommit = True
            self.now = "date_part('epoch', now() at time zone 'utc')"

    def query(self, statement):
        with contextlib.closing(self.connection.cursor()) as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement):
        [(value,)] = self.query(statement)
        return value

    def insert_old(self, number):
        numbers = f"generate_series(1, {number})"
        if self.on_sqlite:
            numbers = f"""(with recursive up (n) as (select 1 union all select n + 1 from up limit {number})
                           select n from up)"""
        self.query(f"""insert into tasks (status, created_at, updated_at)
                       select 'Completed', {self.ago(3600)}, {self.ago(3600)} from {numbers}""")

    def ago(self, seconds):
        if self.on_sqlite:
            return f"{self.now} - {seconds}"
        return f"now() at time zone 'utc' - interval '{seconds} seconds'"

    def pause(self):
        """Seconds since a task was completed; 0 when none is ready."""
        latest = "max(updated_at)" if self.on_sqlite else "date_part('epoch', max(updated_at))"
        seconds = self.value(f"select {self.now} - {latest} from tasks where status = 'Completed'")
        ready = self.query("select 1 from tasks where status = 'New' and run_at is null limit 1")
        return float(seconds or 0) if ready else 0.0

    def figures(self):
        if self.on_sqlite:
            files = [self.path + end for end in ("", "-wal") if os.path.exists(self.path + end)]
            size = sum(os.path.getsize(file) for file in files) / 1e6
            return {"MB of the file": size, "rows": self.value("select count(*) from tasks")}
        clients = "select count(*) from pg_stat_activity where datname = current_database()"
        return {
            "connections": self.value(clients),
            "MB of the table": self.value("select pg_table_size('tasks')") / 1e6,
            "MB of the indexes": self.value("select pg_indexes_size('tasks')") / 1e6,
            "rows": self.value("select count(*) from tasks"),
        }


class Producer(threading.Thread):
    """Creates its share of the tasks, as fast as they are completed."""

    def __init__(self, name, url, number, tasks):
        super().__init__(name=name, daemon=True)
        self.url, self.number, self.tasks, self.created, self.error = url, number, tasks, 0, None

    def run(self):
        try:
            self.database = Database(self.url)
            self.create()
        except Exception as e:
            self.error = e

    def wait_for_room(self):
        while self.database.value("select count(*) from tasks where status = 'New'") > BACKLOG:
            time.sleep(0.05)


class HttpProducer(Producer):
    """Over HTTP, one at a time and in arrays, some with a key; it reads, lists and waits in between."""

    def create(self):
        for turn in itertools.count():
            left = self.number - self.created
            if left <= 0:
                return
            size = min(left, 1 if turn % 4 else 200)
            body = {"payload": turn} if size == 1 else [{"payload": n} for n in range(size)]
            key = {"Idempotency_Key": f"soak-{turn}"} if turn % 3 == 0 else {}
            answer = http("POST", f"{self.tasks}/tasks", body, **key)
            require(answer.status == 201, f"POST was answered {answer.status}: {answer.body[:300]!r}")
            self.created += size
            if turn % 10 == 0:
                self.wait_for_room()
                http("GET", f"{self.tasks}/tasks?order=desc&limit=50")
                http("GET", f"{self.tasks}/summary")
                http("POST", f"{self.tasks}/tasks", {"payload": "waited for"}, Prefer="wait=2")
                self.created += 1


class RabbitProducer(Producer):
    """Over RabbitMQ, as the document's producer does it, but over one connection."""

    def create(self):
        with pika.BlockingConnection(pika.URLParameters(self.tasks)) as connection:
            channel = connection.channel()
            for n in range(self.number):
                channel.basic_publish("", "task_queue", json.dumps({"payload": n}))
                self.created += 1
                if n % 200 == 0:
                    self.wait_for_room()
                    while channel.queue_declare("task_queue", passive=True).method.message_count > BACKLOG:
                        connection.sleep(0.05)


class Pauses(threading.Thread):
    """Measures how long no task was completed although one was ready."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.stopped, self.longest, self.error = url, threading.Event(), 0.0, None

    def run(self):
        try:
            database, began = Database(self.url), time.monotonic()
            while not self.stopped.wait(0.1):
                self.longest = max(self.longest, min(database.pause(), time.monotonic() - began))
        except Exception as e:
            self.error = e


def completed(urls):
    """How many tasks these processes have completed, by their metrics."""
    pattern = r'^taskmanager_task_events_total\{event="completed"\} (\d+)'
    pages = [http("GET", f"{url}/metrics").body.decode() for url in urls]
    return sum(int(re.search(pattern, page, re.MULTILINE)[1]) for page in pages)


def sample(database, programs):
    """{(whose, what): figure}"""
    found = {("database", name): figure for name, figure in database.figures().items()}
    for name, pid in programs.items():
        figures = zip(("MB of memory", "threads", "open files"), resources(pid) or (), strict=False)
        found |= {(name, what): figure for what, figure in figures}
    return found


def start_service(start, url, broker, retention):
    """{name: (program, its address)}: an API process, and two workers where SQLite's is not inside."""
    settings = {"DATABASE_URL": url, "HANDLER": "tests.handlers:echo", "LOG_LEVEL": "WARNING",
                "RETENTION_DAYS": f"{retention / 86400:.9f}"}
    if broker:
        settings["RABBITMQ_URL"] = broker.url
    ports = [servers.free_port() for _ in range(3)]
    service = {"api": start("taskmanager.py", PORT=ports[0], **settings)}
    if broker:
        for n in (1, 2):
            service[f"worker {n}"] = start("worker.py", METRICS_PORT=ports[n], **settings)
    return {name: (program, f"http://127.0.0.1:{port}")
            for (name, program), port in zip(service.items(), ports, strict=False)}


def soak(start, url, broker, tasks, retention=60.0, longest_pause=3.0):
    """Do all of it in an empty database; `broker` is a servers.RabbitMQ, or None on SQLite.

    Print the figures, and return what is wrong with them. Raise Wrong for a task that is lost.
    """
    taskmanager.open_store(url).close()
    database = Database(url)
    database.insert_old(min(OLD, tasks))
    if broker:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            connection.channel().queue_delete("task_queue")
            connection.channel().queue_declare("task_queue")
    service = start_service(start, url, broker, retention)
    api, workers = service["api"][1], [address for _, address in service.values()][-2:]
    programs = {name: program.process.pid for name, (program, _) in service.items()}
    programs |= {"RabbitMQ": broker.pid} if broker else {}
    eventually(lambda: all(is_up(address) for _, address in service.values()))

    over_http = tasks // 2 if broker else tasks
    producers = [HttpProducer("http", url, over_http, api)]
    if broker:
        producers.append(RabbitProducer("rabbitmq", url, tasks - over_http, broker.url))
    pauses = Pauses(url)
    for thread in [*producers, pauses]:
        thread.start()

    samples, done, due = [], 0, [tasks // 10, tasks // 2, tasks * 95 // 100]
    began = progress = time.monotonic()
    while any(each.is_alive() for each in producers) or done < sum(each.created for each in producers):
        time.sleep(min(1.0, tasks / 10_000))
        before, done = done, completed(workers)
        progress = time.monotonic() if done > before else progress
        require(time.monotonic() < progress + 60, f"no task was completed for a minute, after {done}")
        while len(samples) < len(due) and done >= due[len(samples)]:
            samples.append((done, time.monotonic() - began, sample(database, programs)))
    seconds = time.monotonic() - began
    pauses.stopped.set()
    pauses.join()
    for thread in [*producers, pauses]:
        require(thread.error is None, f"{thread.name} failed: {thread.error!r}")
    for program, _ in service.values():
        check_log(program)

    created = sum(producer.created for producer in producers)
    time.sleep(0.5)
    done = completed(workers)
    require(done == created, f"{created} tasks were created, and {done} completed")
    left = database.query("select status, count(*) from tasks where status <> 'Completed' group by 1")
    require(not left, f"not all tasks have run: {left}")
    ago = database.ago(retention + 600)
    kept = database.value(f"select count(*) from tasks where updated_at < {ago}")
    require(kept == 0, f"{kept} old tasks were not deleted")

    wrong = judge(samples, retention)
    if pauses.longest > longest_pause:
        wrong.append(f"no task was completed for {pauses.longest:.1f} s")
    print(f"{created:,} tasks in {seconds:.0f} s, {created / seconds:,.0f} a second; none lost, none twice; "
          f"the longest pause between completions was {pauses.longest:.2f} s", flush=True)
    print_table(samples)
    return wrong


def is_up(address):
    with contextlib.suppress(OSError):
        return http("GET", f"{address}/readyz").status == 200


def judge(samples, retention):
    """What has grown beyond its limit, between the begin and the end."""
    (_, _, begin), (_, half_time, middle), (_, time_at_end, end) = samples
    wrong = []
    for (whose, what), figure in end.items():
        limit = LIMITS[what](begin[whose, what]) if what in LIMITS and whose != "RabbitMQ" else None
        # Twice as long as a task is kept: from then on as many are deleted as come.
        if what[:2] == "MB" and whose == "database" and half_time > 2 * (retention + 60):
            limit = 1.3 * middle[whose, what] + 16
        if limit is not None and figure > limit:
            wrong.append(f"{whose}: {what} have grown to {figure:,.1f}, expected at most {limit:,.1f}")
    return wrong


def print_table(samples):
    print(f"{'':32}" + "".join(f"{name:>12}" for name in ("begin", "middle", "end")))
    print(f"{'tasks completed':32}" + "".join(f"{done:12,}" for done, _, _ in samples))
    print(f"{'seconds':32}" + "".join(f"{seconds:12,.0f}" for _, seconds, _ in samples))
    for whose, what in samples[0][2]:
        figures = "".join(f"{found[whose, what]:12,.0f}" for _, _, found in samples)
        print(f"{whose + ': ' + what:32}{figures}", flush=True)


def main():
    tasks = int(os.environ.get("TASKS") or 2_000_000)
    on_sqlite = os.environ.get("DATABASE") == "sqlite"
    retention, pause = float(os.environ.get("RETENTION") or 60), float(os.environ.get("PAUSE") or 3)
    with Own() as own:
        if on_sqlite:
            url, broker = f"sqlite:///{own.folder}/soak.db", None
        else:
            url, broker = own.new_database(own.server(servers.Postgres))(), own.server(servers.RabbitMQ)
        try:
            wrong = soak(own.start, url, broker, tasks, retention, pause)
        except Wrong as e:
            wrong = [str(e)]
    for each in wrong:
        print(f"WRONG: {each}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
