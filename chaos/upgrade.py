#!/usr/bin/env python3
"""chaos/upgrade.py: start the new version on a table of an old one, in which an old program goes on writing.

`make upgrade` runs it: on the document's own table, on each table that an earlier version of ours made, and
on SQLite files of theirs, with ROWS=100000 rows in every status; ONLY=document,sqlite-7 chooses tables. Two
API processes and a worker start at the same time, while a writer inserts by plain SQL. Then all rows must be
there under their ids, those that had ended as they were, and all others must have run, the writer's too.
"""

import contextlib
import os
import sqlite3
import sys
import threading
import time

import psycopg2

import servers
from chaos.own import Own, Wrong, check_log, require
from helpers import DOCUMENT_TABLE, ROOT, eventually

SCHEMAS = {"document": DOCUMENT_TABLE}
for path in sorted((ROOT / "tests" / "schemas").glob("*.sql")):
    SCHEMAS[path.stem] = path.read_text(encoding="utf-8")


def connect(url):
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        return sqlite3.connect(path, 30, isolation_level=None, check_same_thread=False)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def query(connection, statement):
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def make_table(connection, schema, rows):
    """The old table, with so many rows, a quarter of them in each status."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("pragma journal_mode = wal")
        connection.executescript(schema)
        numbers = f"""(with recursive up (n) as (select 1 union all select n + 1 from up limit {rows})
                       select n from up)"""
        ended, past = "strftime('%s', 'now') - 3600", "strftime('%s', 'now') - 60"
    else:
        query(connection, schema)
        numbers = f"generate_series(1, {rows}) as n"
        ended, past = "now() - interval '1 hour'", "now() - interval '1 minute'"
    status = """case n % 4 when 0 then 'New' when 1 then 'In Progress' when 2 then 'Completed'
                           else 'Failed' end"""
    names, values = "status, created_at, updated_at", f"{status}, {ended}, {ended}"
    if "attempt " in schema:        # of ours: some run, in a worker that is gone
        names += ", attempt, lease_until, payload, error"
        values += (f", case n % 4 when 0 then 0 else 1 end, case n % 4 when 1 then {past} end, '[1]',"
                   " case n % 4 when 3 then 'as told' end")
    query(connection, f"insert into tasks ({names}) select {values} from {numbers}")


class Writer(threading.Thread):
    """The old application: it inserts tasks, by plain SQL, until it is stopped."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.connection, self.stopped = connect(url), threading.Event()
        self.ids, self.longest, self.error = [], 0.0, None

    def run(self):
        try:
            while not self.stopped.wait(0.002):
                began = time.monotonic()
                self.ids += [id for id, in query(
                    self.connection, "insert into tasks (status) values ('New') returning id")]
                self.longest = max(self.longest, time.monotonic() - began)
        except Exception as e:
            self.error = e


ROWS_OF = "select id, status, created_at, updated_at from tasks order by id"


def upgrade(start, url, schema, rows):
    """Do all of it in an empty database; return what is to be told. Raise Wrong."""
    connection = connect(url)
    make_table(connection, schema, rows)
    before = {id: row for id, *row in query(connection, ROWS_OF)}
    writer = Writer(url)
    writer.start()
    eventually(lambda: len(writer.ids) > 20 or writer.error)

    began = time.monotonic()
    settings = {"DATABASE_URL": url, "POLL_SECONDS": 0.1}
    programs = [start(script, **settings) for script in ("taskmanager.py", "taskmanager.py", "worker.py")]
    eventually(lambda: all("started api" in program.log() for program in programs[:2]), 600)
    up, so_far = time.monotonic() - began, len(writer.ids)
    eventually(lambda: len(writer.ids) > so_far + 50 or writer.error, 60)
    writer.stopped.set()
    writer.join(60)
    require(writer.error is None, f"the writer failed: {writer.error!r}")
    unfinished = "select count(*) from tasks where status in ('New', 'In Progress')"
    eventually(lambda: query(connection, unfinished) == [(0,)], 600)
    done = time.monotonic() - began

    after = {id: row for id, *row in query(connection, ROWS_OF)}
    lost = (before.keys() | set(writer.ids)) ^ after.keys()
    require(not lost, f"{len(lost)} ids are lost, or new")
    for id, (status, created, updated) in before.items():
        if status in ("Completed", "Failed"):
            require(after[id] == [status, created, updated], f"task {id} had ended, and is now {after[id]}")
        else:
            require(after[id][:2] == ["Completed", created], f"task {id} was {status}, is now {after[id]}")
    require(all(after[id][0] == "Completed" for id in writer.ids), "not all tasks of the writer have run")
    for program in programs:
        check_log(program)
        program.end()
    connection.close()
    writer.connection.close()
    return (f"{len(before):,} rows and {len(writer.ids):,} written meanwhile: up after {up:.1f} s, "
            f"all done after {done:.1f} s, the writer waited {writer.longest:.2f} s at most")


def main():
    rows, failed = int(os.environ.get("ROWS") or 100_000), False
    chosen = (os.environ.get("ONLY") or ",".join(SCHEMAS)).split(",")
    with Own() as own:
        new_database = own.new_database(own.server(servers.Postgres))
        for name in chosen:
            schema = SCHEMAS[name]
            url = f"sqlite:///{own.folder}/{name}.db" if name.startswith("sqlite") else new_database()
            try:
                told = upgrade(own.start, url, schema, rows)
            except (Wrong, AssertionError) as e:
                told, failed = f"WRONG: {e}", True
            print(f"{name}: {told}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
