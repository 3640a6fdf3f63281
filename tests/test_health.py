"""What a supervisor asks: whether the process runs (/livez), and whether tasks can be written (/readyz)."""

import contextlib
import os
import pwd
import resource
import sqlite3
import tempfile
import time
import traceback

import pytest

import taskmanager
from helpers import connect, eventually, http, is_problem


def readyz(url):
    return http("GET", f"{url}/readyz")


@contextlib.contextmanager
def locked_table(database):
    """Nobody writes until this ends, as during an ALTER TABLE behind a long report."""
    if database.startswith("sqlite"):
        connection = sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)
        statement = "begin immediate"
    else:
        import psycopg2
        connection = psycopg2.connect(database)
        statement = "lock table tasks in access exclusive mode"
    with contextlib.closing(connection):
        connection.cursor().execute(statement)
        yield
        connection.rollback()


def send_and_leave_open(url, head):
    return connect(url, f"{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_livez_is_answered_at_once_while_all_threads_wait_for_the_database(database, store, serve, method):
    # with the table locked, a supervisor that got no answer would restart a process that is in order
    url = serve(store, threads=2, waiters=2)
    with locked_table(database):
        stuck = [send_and_leave_open(url, "POST /tasks") for _ in range(8)]
        begun = time.monotonic()
        for _ in range(10):
            assert http(method, f"{url}/livez").status == 200
        assert time.monotonic() - begun < 5      # a statement is given 20 s, a lock on SQLite 10
    statuses = []
    for connection in stuck:
        with connection:
            statuses.append(connection.recv(100)[9:12])
    assert set(statuses) <= {b"201", b"503"}        # 503 for those that waited LOCK_SECONDS
    assert len(store.list_tasks()) == statuses.count(b"201")


def test_livez_is_answered_at_once_while_others_wait_for_tasks(store, serve):
    url = serve(store, threads=1, waiters=1)
    store.create([taskmanager.new_task({"delay": 3600})])
    waiting = [send_and_leave_open(url, "GET /tasks/1 HTTP/1.1\r\nPrefer: wait=30\r\nX:") for _ in range(4)]
    begun = time.monotonic()
    assert http("GET", f"{url}/livez").status == 200
    assert time.monotonic() - begun < 15
    for connection in waiting:
        connection.close()


def test_a_worker_answers_livez_at_once_too(database, start):
    worker = start("worker.py", DATABASE_URL=database, METRICS_PORT=0)
    url = worker.metrics_url
    with locked_table(database):
        stuck = [send_and_leave_open(url, "GET /readyz") for _ in range(6)]
        begun = time.monotonic()
        assert http("GET", f"{url}/livez").status == 200
        assert time.monotonic() - begun < 5
    for connection in stuck:
        connection.close()


# Ready: tasks can be written

def test_readyz_leaves_no_row_behind(store, serve):
    url = serve(store)
    for id in (1, 2):
        assert readyz(url).json == {"status": "ok", "database": "ok"}
        store._last_write = float("-inf")
        assert store.list_tasks() == [] if id == 1 else len(store.list_tasks()) == 1
        assert http("POST", f"{url}/tasks").json == {"id": id}


def test_a_row_with_the_last_id_is_no_obstacle(postgres_database, serve):
    store = taskmanager.open_store(postgres_database)
    store._execute("insert into tasks (id) values (9007199254740991)")
    assert readyz(serve(store)).status == 200
    assert store._execute("select id, status from tasks") == [(9007199254740991, "New")]


def test_frequent_calls_of_readyz_write_seldom(store, serve, monkeypatch):
    # /readyz needs no token
    url, tried, real = serve(store), [], store._try_to_write
    monkeypatch.setattr(store, "_try_to_write", lambda: tried.append(1) or real())
    assert [readyz(url).status for _ in range(30)] == [200] * 30
    assert 0 < len(tried) < 15


def test_a_read_only_database_is_not_ready(postgres_database, serve):
    # after a failover that went wrong, or set by a provider when the disk is nearly full
    taskmanager.open_store(postgres_database)
    read_only = postgres_database.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
    url = serve(taskmanager.open_store(read_only))
    assert is_problem(readyz(url), 503) == "no task can be written: the database is read-only"
    assert http("GET", f"{url}/tasks").status == 200


@pytest.mark.parametrize(
    "granted, said",
    [
        ("select on tasks", "insert"),
        ("select, insert on tasks", "update"),
        ("all on tasks", "sequence"),
        ("all on tasks; usage on sequence tasks_id_seq", None),
    ],
    ids=["no insert", "no update", "no sequence", "all"],
)
def test_a_role_that_may_not_write_is_not_ready(postgres_database, serve, granted, said):
    # somebody made the table as another role, and granted too little
    owner = taskmanager.open_store(postgres_database)
    [(schema,)] = owner._execute("select current_schema()")
    role = f"{schema}_role"
    owner._execute(f"create role {role}")
    try:
        owner._execute(f"grant usage on schema {schema} to {role}")
        for what in granted.split("; "):
            owner._execute(f"grant {what} to {role}")
        store = taskmanager.open_store(postgres_database.replace("options=", f"options=-crole%3D{role}%20"))
        answer = readyz(serve(store))
        assert answer.status == 200 if said is None else said in is_problem(answer, 503)
        store.close()
    finally:
        owner._execute(f"drop owned by {role}")
        owner._execute(f"drop role {role}")


def test_a_table_that_takes_no_row_is_not_ready(postgres_database, serve):
    store = taskmanager.open_store(postgres_database)
    store._execute("alter table tasks add column owner text not null")      # for another program
    assert "owner" in is_problem(readyz(serve(store)), 503)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits the files of another process")
def test_a_full_disk_is_not_ready(sqlite_database, tmp_path, start):
    program = start("taskmanager.py", DATABASE_URL=sqlite_database, WORKER="off")
    assert readyz(program.url).status == 200
    http("POST", f"{program.url}/tasks", {"payload": "x" * 100_000})
    pid, limit = program.process.pid, resource.RLIMIT_FSIZE
    with contextlib.closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as backup:
        backup.execute("begin")
        backup.execute("select * from tasks").fetchall()        # so that SQLite's log can't begin anew
        _, most = resource.prlimit(pid, limit)
        size = (tmp_path / "tasks.db-wal").stat().st_size
        resource.prlimit(pid, limit, (size, most))      # no file grows beyond that
        assert http("POST", f"{program.url}/tasks").status == 503
        answer = eventually(lambda: (answer := readyz(program.url)).status == 503 and answer)
        assert "can be written" in answer.json["detail"]
        assert http("GET", f"{program.url}/tasks/1").status == 200
        assert http("GET", f"{program.url}/livez").status == 200
        resource.prlimit(pid, limit, (most, most))
    assert readyz(program.url).status == 200


def test_a_read_only_file_is_not_ready():
    # in a process of its own, for root may write everything
    user = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        if os.getuid() == 0:
            os.chown(folder, user.pw_uid, user.pw_gid)
        if not (pid := os.fork()):
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(user.pw_gid)
                    os.setuid(user.pw_uid)
                store = taskmanager.open_store(f"sqlite:///{folder}/tasks.db")
                store.ready()
                store.close()
                store._last_write = float("-inf")
                os.chmod(f"{folder}/tasks.db", 0o400)
                with pytest.raises(taskmanager.Unavailable, match="no task can be written: .*readonly"):
                    store.ready()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
