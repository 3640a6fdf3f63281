"""README's backup, taken while tasks flow, and restored: what it promises there."""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import threading

import psycopg2
import pytest

from helpers import ROOT, eventually, http
from servers import postgres_binaries

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("\n## Backup and restore\n")[2].partition("\n## ")[0]


def shell(command, folder, **environ):
    """Run a command of README; where sqlite3 is not installed, Python's module does what it would do."""
    if command.startswith("sqlite3 ") and not shutil.which("sqlite3"):
        file, statement = re.fullmatch(r'sqlite3 (\S+) "(.*)"', command).groups()
        with contextlib.closing(sqlite3.connect(folder / file)) as connection:
            connection.execute(statement.replace("into '", f"into '{folder}/"))
        return
    path = os.environ["PATH"]
    if command.startswith(("pg_dump", "psql")):
        path = f"{postgres_binaries()}:{path}"
    subprocess.run(command, shell=True, cwd=folder, check=True, env=os.environ | environ | {"PATH": path})


def query(url, statement):
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(statement).fetchall()
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


class Client(threading.Thread):
    """Creates tasks, one after the other, until it is stopped."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.ids, self.stopped = url, [], threading.Event()

    def run(self):
        while not self.stopped.is_set():
            self.ids.append(http("POST", f"{self.url}/tasks", {"payload": {"sleep": 0.01}}).json["id"])


@pytest.mark.parametrize("database", ["PostgreSQL", "SQLite"])
def test_a_backup_while_tasks_flow_has_all_that_was_accepted_and_can_be_restored(
        start, empty_database, tmp_path, database):
    on_sqlite = database == "SQLite"
    url = f"sqlite:///{tmp_path}/tasks.db" if on_sqlite else empty_database()
    restored = url if on_sqlite else empty_database()
    settings = {"HANDLER": "tests.handlers:obey", "LEASE_SECONDS": 1, "POLL_SECONDS": 0.1, "WORKER": "on"}
    service = start("taskmanager.py", DATABASE_URL=url, **settings)

    with_key = http("POST", f"{service.url}/tasks", {"payload": {}}, Idempotency_Key="once").json["id"]
    long = http("POST", f"{service.url}/tasks", [{"payload": {"sleep": 600}}] * 2).json
    running = f"{service.url}/tasks?status=In+Progress"
    eventually(lambda: {*long} <= {task["id"] for task in http("GET", running).json})
    client = Client(service.url)
    client.start()
    eventually(lambda: len(client.ids) > 50)

    accepted = list(client.ids)
    backup, restore = re.findall(rf"^(.*\S) +# {database}$", SECTION, re.MULTILINE)
    shell(backup, tmp_path, DATABASE_URL=url)
    eventually(lambda: len(client.ids) > len(accepted) + 5)
    client.stopped.set()
    client.join(20)
    service.end()
    shell(restore, tmp_path, NEW_DATABASE_URL=restored)

    found = dict(query(restored, "select id, status from tasks"))
    assert {with_key, *long, *accepted} <= found.keys()
    assert [found[id] for id in long] == ["In Progress", "In Progress"]
    if not on_sqlite:       # there the file was put in the place of the newer one
        assert found.keys() < dict(query(url, "select id, status from tasks")).keys()
    service = start("taskmanager.py", DATABASE_URL=restored, LEASE_SECONDS=1, POLL_SECONDS=0.1, WORKER="on")
    eventually(lambda: query(restored, "select id from tasks where status <> 'Completed'") == [])
    assert query(restored, "select count(*) from tasks") == [(len(found),)]
    assert [http("GET", f"{service.url}/tasks/{id}").json["attempts"] for id in long] == [2, 2]
    again = http("POST", f"{service.url}/tasks", {"payload": {}}, Idempotency_Key="once")
    assert again.json == {"id": with_key}
    assert http("POST", f"{service.url}/tasks").json["id"] > max(found)
