"""The connections to PostgreSQL: forks, poolers, frozen servers, sessions' settings, encodings, sequences."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

import taskmanager
from helpers import DOCUMENT_TABLE, eventually, http, sql
from taskmanager import BadSetting, Config, Invalid, NewTask, Unavailable, Worker, new_task


def query(url, *statements):
    """Run statements as an administrator would; the rows of the last."""
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


# A fork

@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_processes_that_were_forked_do_not_share_connections(request, kind):
    """gunicorn --preload, uWSGI: the application is made, and used, before the workers are forked."""
    store = taskmanager.open_store(request.getfixturevalue(f"{kind}_database"))
    ids = store.create([NewTask(payload=str(n)) for n in range(40)])
    ready = os.pipe()
    children = []
    for n in range(4):
        if not (pid := os.fork()):
            status = 1
            try:
                os.read(ready[0], 1)        # all at once
                with store._state.pool.connection() as (_, used):
                    assert not used
                rows = [store.read(id) for id in ids * 5]
                status = (
                    0
                    if [(row.id, row.payload) for row in rows]
                    == [(id, str(n)) for n, id in enumerate(ids)] * 5
                    else 2
                )
            finally:
                os._exit(status)
        children.append(pid)
    os.write(ready[1], b"0123")
    assert [store.read(id).id for id in ids] == ids
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]
    assert store.read(ids[0]).id == ids[0]      # no child has closed this connection
    store.close()


def test_a_forked_child_is_not_stopped_by_the_locks_of_its_parents_threads(store):
    state = store._state
    with state.measuring, state.writing, state.pool._lock:
        if not (pid := os.fork()):
            signal.alarm(20)
            os._exit(store.create() is None or store.count("New") != 1 or store.metrics is state.metrics)
    assert os.waitpid(pid, 0)[1] == 0


# Settings that are not ours

SESSIONS = {
    "a zone ahead": {"PGTZ": "Asia/Tokyo"},
    "a zone behind": {"PGTZ": "America/New_York"},
    "an interval style": {"PGOPTIONS": "-c intervalstyle=iso_8601"},
    "a date style": {"PGDATESTYLE": "German"},
}


@pytest.mark.parametrize("environ", SESSIONS.values(), ids=SESSIONS)
def test_settings_of_the_session_do_not_change_the_time(empty_database, monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    store = taskmanager.open_store(empty_database())
    now, later = store.create([NewTask(), new_task({"delay": 3600})])
    assert store.promote() == store.repeat() == 0
    [row] = store.claim(10, 30)
    assert (row.id, store.reclaim(3)) == (now, 0)
    assert store.extend([(row.id, row.attempt, 0.5)], 30) == {now}
    assert abs(float(store.read(now).started_at) - time.time()) < 20
    assert store.oldest_ready_seconds() < 20
    assert store.retry([(row.id, row.attempt, "why", 1800)]) == {now}
    for id, delay in (now, 1800), (later, 3600):
        row = store.read(id)
        for text, offset in (row.updated_at, 0), (row.run_at, delay):
            moment = taskmanager.datetime.fromisoformat(text + "+00:00").timestamp()
            assert abs(moment - time.time() - offset) < 60
    store.close()


@pytest.mark.parametrize("setting", [
    "timezone = 'Asia/Kathmandu'", "intervalstyle = 'sql_standard'", "datestyle = 'SQL, DMY'",
    "extra_float_digits = -15"])
def test_settings_of_the_database_do_not_change_the_time(empty_database, setting):
    url = empty_database()
    query(url, f"alter database {url.rpartition('/')[2]} set {setting}")
    store = taskmanager.open_store(url)
    [id] = store.create([new_task({"run_at": "2100-02-03T04:05:06Z", "timeout": 12.375})])
    row = store.read(id)
    assert (row.run_at, row.timeout) == ("2100-02-03T04:05:06", 12.375)
    assert store.claim(1, 30) == []
    [id] = store.create()
    assert [row.id for row in store.claim(2, 30)] == [id]
    assert store.reclaim(3) == 0
    store.close()


def test_options_of_the_operator_are_kept(empty_database, monkeypatch, tmp_path):
    url = empty_database()
    query(url, "create schema one", "create schema two")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=one -c statement_timeout=7s")
    monkeypatch.setenv("PGAPPNAME", "mine")
    store = taskmanager.open_store(url)
    assert store._execute(
        "select cast(to_regclass('one.tasks') as text), current_setting('application_name'), "
        "current_setting('statement_timeout')"
    ) == [("tasks", "mine", "7s")]
    store.close()
    monkeypatch.delenv("PGOPTIONS")
    (tmp_path / "services").write_text("[jobs]\noptions=-c search_path=two\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    store = taskmanager.open_store(url + "?service=jobs")
    assert store._execute(
        "select to_regclass('two.tasks') is not null, current_setting('statement_timeout')"
    ) == [(True, "20s")]
    store.close()


# Poolers


def test_the_service_works_through_pgbouncer_in_transaction_mode(pgbouncer, empty_database, serve):
    direct = empty_database()
    url = pgbouncer.url_of(direct)
    with ThreadPoolExecutor(4) as pool:     # processes that start at once, and a table that is not there yet
        stores = list(pool.map(lambda _: taskmanager.open_store(url), range(4)))
    store = stores[0]
    api = serve(store)
    workers = [
        Worker(each, Config(poll_seconds=0.1, lease_seconds=2), handler=lambda task: task.payload)
        for each in stores[1:]
    ]
    for worker in workers:
        worker.start()

    def create(n):
        return http("POST", api + "/tasks", {"payload": n}).json["id"]
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(create, range(300)))
    assert len(set(ids)) == 300
    eventually(lambda: store.count("Completed") == 300 or store._state.figures.clear())
    assert {row.id: json.loads(row.result) for row in store.list_tasks()} == {
        id: n for n, id in enumerate(ids)
    }
    for worker in workers:
        worker.stop()
    for each in stores:
        each.close()


def test_a_session_that_a_pooler_shares_keeps_its_settings(pgbouncer, empty_database):
    url = pgbouncer.url_of(empty_database())
    store = taskmanager.open_store(url)
    store.create()
    limits = query(url, "select current_setting('statement_timeout'), current_setting('lock_timeout'), "
                        "current_setting('jit')")
    assert limits == [("0", "0", "on")]
    store.close()


def test_a_session_of_our_own_compiles_no_statement(empty_database):
    """PostgreSQL takes ten times as long to compile what looks dear in a large table as to run it."""
    store = taskmanager.open_store(empty_database())
    assert store._execute("select current_setting('jit')") == [("off",)]
    store.close()


def test_a_pooler_that_is_restarted_is_found_again(pgbouncer, empty_database):
    store = taskmanager.open_store(pgbouncer.url_of(empty_database()))
    pgbouncer.stop()
    with pytest.raises(Unavailable):
        store.create()
    pgbouncer.start()
    assert store.create()
    store.close()


# Prepared statements

def prepared_by(store):
    """The names of what the connection that is used next has prepared."""
    return {name for name, in store._execute("select name from pg_prepared_statements where from_sql")}


READ = taskmanager.prepared(taskmanager.READ)


def test_a_session_of_our_own_prepares_its_statements_and_one_of_a_pooler_none(pgbouncer, empty_database):
    direct = empty_database()
    for url, names in (direct, {READ.name}), (pgbouncer.url_of(direct), set()):
        store = taskmanager.open_store(url)
        [id] = store.create()
        assert store.read(id) == store.read(id)
        assert prepared_by(store) & {READ.name} == names
        store.close()
    assert query(pgbouncer.url_of(direct), "select name from pg_prepared_statements") == []


@pytest.mark.parametrize("statement", ["discard all", "deallocate all", f"prepare {READ.name} as select 1"])
def test_a_session_that_somebody_shares_after_all_is_used_without_preparing(postgres_database, statement):
    """A pooler that says that its session is ours."""
    store = taskmanager.open_store(postgres_database)
    [id] = store.create()
    if not statement.startswith("prepare"):
        store.read(id)
    store._execute(statement)
    assert store.read(id).id == id
    assert store.complete([(row.id, row.attempt, None) for row in store.claim(1, 30)]) == {id}
    assert store.read(id).status == "Completed"
    assert store.create() == [id + 1]
    store._execute("discard all")
    assert store.read(id).id == id
    assert prepared_by(store) == set()
    store.close()


def test_an_altered_column_is_read_as_it_is_now(postgres_database):
    """By another process's upgrade, or by the operator: "cached plan must not change result type"."""
    store = taskmanager.open_store(postgres_database)
    [id] = store.create()
    store.read(id)
    query(postgres_database, "alter table tasks alter column worker type varchar(99), "
                             "alter column timezone type varchar(99), alter column error type varchar(2000)")
    assert store.read(id).id == id
    assert store.read(id).id == id
    assert READ.name in prepared_by(store)
    store.close()


@pytest.mark.parametrize("seconds, scan", [(3600, "Seq"), (-1, "Index")], ids=["before", "after"])
def test_a_plan_for_a_small_table_does_not_serve_a_large_one_for_long(
    postgres_database, monkeypatch, seconds, scan
):
    monkeypatch.setattr(taskmanager, "PLAN_SECONDS", seconds)
    store = taskmanager.open_store(postgres_database)
    store._execute("alter table tasks set (autovacuum_enabled = off)")
    [id] = store.create()
    store._execute("analyze tasks")

    def plan():
        store.read(id)
        return "\n".join(line for line, in store._execute(f"explain execute {READ.name} ('{{1}}')"))
    assert "Seq Scan" in plan()
    store._execute("insert into tasks (status) select 'New' from generate_series(1, 10000)")
    assert f"{scan} Scan" in plan()
    store.close()


# Encodings

@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1251", "SQL_ASCII", "UTF8"])
def test_what_the_encoding_of_the_database_lacks_is_kept_escaped(empty_database, encoding):
    store = taskmanager.open_store(empty_database(
        f"template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"))
    words = ["größe", "дом", "日本", "\U0001f600", "a\\u00e9", "plain"]
    ids = store.create([new_task({"payload": {word: word}}) for word in words])
    rows = store.claim(10, 30)
    assert [json.loads(row.payload) for row in rows] == [{word: word} for word in words]
    results = [json.dumps(word, ensure_ascii=False) for word in words]
    done = [(row.id, row.attempt, result) for row, result in zip(rows, results, strict=True)]
    assert store.complete(done) == set(ids)
    assert [json.loads(store.read(id).result) for id in ids] == words

    [one, two] = store.create([NewTask(), NewTask()])
    claims = store.claim(2, 30)
    assert store.fail([(claims[0].id, 1, "дом 日本")]) == {one}
    assert store.retry([(claims[1].id, 1, "größe 日本", 60)]) == {two}
    errors = store.read(one).error, store.read(two).error
    unescaped = [re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), error) for error in errors]
    assert unescaped == ["дом 日本", "größe 日本"]
    store.close()


def test_a_key_that_the_encoding_of_the_database_lacks_is_refused_with_the_reason(empty_database):
    store = taskmanager.open_store(empty_database(
        "template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"))
    assert store.create([new_task({}, "größe")]) == store.create([new_task({}, "größe")])
    with pytest.raises(Invalid, match="latin-1, lacks"):
        store.create([new_task({}, "日本")])
    store.close()


def test_a_result_that_the_database_refuses_fails_its_task_at_once_and_alone(postgres_database):
    store = taskmanager.open_store(postgres_database)
    sql(store, "alter table tasks add check (cast(result as text) <> '13') -- ")     # as an operator may
    ids = store.create([NewTask(payload=str(n)) for n in range(10, 16)])
    worker = Worker(store, Config(poll_seconds=0.1), handler=lambda task: task.payload)
    worker.start()
    eventually(lambda: not store.list_tasks("New", "In Progress"))
    rows = store.list_tasks()
    worker.stop()
    assert {row.id: row.status for row in rows} == {
        id: "Failed" if n == 3 else "Completed" for n, id in enumerate(ids)
    }
    assert "database refuses" in rows[3].error and rows[3].attempts == 1
    store.close()


@pytest.mark.parametrize("encoding, text", [("SQL_ASCII", b"\xe9\xff"), ("WIN1251", b"\x98")])
def test_a_row_that_holds_no_text_in_any_encoding_keeps_nobody_from_anything(empty_database, encoding, text):
    """A script of former times has written a task in an encoding of its own, or the half of a character."""
    url = empty_database(f"template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'")
    store = taskmanager.open_store(url)
    [key] = store.create([NewTask(idempotency_key="ключ")])
    with contextlib.closing(psycopg2.connect(url, client_encoding=encoding)) as connection:
        connection.cursor().execute(b"""insert into tasks (payload, error, idempotency_key, worker)
                                        values ('"T"', 'T', 'T', 'T')""".replace(b"T", text))
        connection.commit()
    [last] = store.create([NewTask(payload='"жук"')])
    rows = store.claim(10, 30)
    assert [row.id for row in rows] == [key, key + 1, last]
    assert "\ufffd" in json.loads(rows[1].payload)
    assert json.loads(rows[2].payload) == "жук"
    assert rows[0].idempotency_key == "ключ"
    assert store.list_tasks() == rows
    assert len(store.complete([(row.id, row.attempt, row.payload) for row in rows])) == 3
    store.close()


@pytest.mark.parametrize("how", ["", "using errcode = 'check_violation'", "using errcode = 'OPS42'"])
def test_what_a_trigger_refuses_is_refused_and_no_outage(postgres_database, caplog, how):
    """A rule of the operator's, written as most are: raise exception '…'."""
    store = taskmanager.open_store(postgres_database)
    query(postgres_database, f"""create function refuse() returns trigger language plpgsql as
          $$ begin raise exception 'not this one' {how}; end $$""",
          """create trigger refuse before update on tasks for each row
          when (old.lease_until < new.lease_until or new.status = 'Completed' and new.id = 2)
          execute function refuse()""")
    worker = Worker(store, Config(poll_seconds=0.1, lease_seconds=1), lambda task: time.sleep(0.5))
    store.create([NewTask()] * 3)
    worker.start()
    try:
        expected = ["Completed", "Failed", "Completed"]
        eventually(lambda: [row.status for row in store.list_tasks()] == expected)
        assert "not this one" in store.read(2).error
        assert "lost database" not in caplog.text
    finally:
        worker.stop()
        store.close()


def test_a_row_that_another_transaction_keeps_locked_holds_up_no_other(postgres_database, caplog):
    """Somebody looks at a task in psql, with `begin` and `for update`, and goes to lunch."""
    stores = [taskmanager.open_store(postgres_database) for _ in range(2)]
    ids = stores[0].create([NewTask()] * 12)
    config = Config(poll_seconds=0.1, lease_seconds=8, concurrency=3)
    workers = [Worker(store, config, lambda task: time.sleep(0.2)) for store in stores]
    workers[0].start()
    with contextlib.closing(psycopg2.connect(postgres_database)) as connection:
        eventually(lambda: stores[0].list_tasks("In Progress"))
        connection.cursor().execute("select id from tasks where id = %s for update", (ids[1],))
        workers[1].start()
        eventually(lambda: {row.id for row in stores[0].list_tasks("Completed")} >= {*ids} - {ids[1]})
        eventually(lambda: "lost access to rows that another transaction keeps locked" in caplog.text)
        assert stores[0].read(ids[1]).status == "In Progress"
    eventually(lambda: len(stores[0].list_tasks("Completed")) == 12)
    assert {row.attempt for row in stores[0].list_tasks()} == {1}
    assert "refused" not in caplog.text
    eventually(lambda: "regained access to rows that another transaction keeps locked" in caplog.text)
    for worker, store in zip(workers, stores, strict=True):
        worker.stop()
        store.close()


@pytest.mark.parametrize("lock_at", ["while they run", "when they end"])
def test_many_locked_rows_let_no_lease_of_another_task_end(postgres_database, monkeypatch, lock_at):
    """A statement waits some time for a lock: if it did so for each of them, heartbeats would come late."""
    monkeypatch.setattr(taskmanager, "LOCK_SECONDS", 0.6)       # seven times that is longer than the lease
    store = taskmanager.open_store(postgres_database)
    ids = store.create([NewTask()] * 8)
    their_end, its_end = threading.Event(), threading.Event()

    def handler(task):
        (its_end if task.id == ids[-1] else their_end).wait(20)
    worker = Worker(store, Config(poll_seconds=0.1, lease_seconds=3, concurrency=8), handler)
    worker.start()
    with contextlib.closing(psycopg2.connect(postgres_database)) as connection:
        eventually(lambda: len(store.list_tasks("In Progress")) == 8)
        connection.cursor().execute("select id from tasks where id < %s for update", (ids[-1],))
        if lock_at == "when they end":
            their_end.set()
        left = "select cast(date_part('epoch', lease_until - now()) as float) from tasks where id = 8"
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            assert store._execute(left.replace("now()", taskmanager.NOW))[0][0] > 0
            time.sleep(0.2)
    their_end.set()
    its_end.set()
    eventually(lambda: len(store.list_tasks("Completed")) == 8)
    assert {row.attempt for row in store.list_tasks()} == {1}
    worker.stop()
    store.close()


# Sequences

def test_a_sequence_that_stands_behind_the_ids_is_mended(postgres_database, caplog):
    """A restored dump, a logical replica, rows that were inserted with ids."""
    store = taskmanager.open_store(postgres_database)
    sql(store, "insert into tasks (id) select generate_series(1, 500)")
    # The mended sequence must not begin behind this one, the last id that there is.
    sql(store, "insert into tasks (id) values (9007199254740991)")
    caplog.clear()
    with ThreadPoolExecutor(8) as pool:
        ids = [id for made in pool.map(lambda _: store.create([NewTask()] * 3), range(8)) for id in made]
    assert sorted(ids)[0] > 500 and len(set(ids)) == 24 and max(ids) < 1000
    assert 1 <= sum("advanced id sequence" in record.message for record in caplog.records) <= 8
    store.close()


# How many, and for how long

def backends(url, name):
    return query(url, f"select pid, state from pg_stat_activity where application_name = '{name}'")


def test_a_process_opens_no_more_connections_than_it_may_and_closes_what_is_idle(empty_database, monkeypatch):
    url = empty_database()
    store = taskmanager.open_store(url + "?application_name=few", connections=3)
    [id] = store.create()
    with ThreadPoolExecutor(12) as pool:
        busy = [pool.submit(store._execute, "select pg_sleep(0.1)") for _ in range(12)]
        seen = 0
        while not all(each.done() for each in busy):
            seen = max(seen, len(backends(url, "few")))
    assert seen == 3 and all(each.result() for each in busy)
    monkeypatch.setattr(taskmanager, "IDLE_SECONDS", 0)
    eventually(lambda: not backends(url, "few"))        # although nothing happens any more
    assert store.read(id).status == "New"
    store.close()


def test_a_caller_that_finds_all_connections_busy_is_refused_in_time(store, monkeypatch):
    monkeypatch.setattr(taskmanager, "CONNECT_SECONDS", 0.2)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(store._state.pool.connection())
        with pytest.raises(Unavailable):
            store.read(1)
    assert store.create()


# Servers that do not answer

def test_a_first_host_that_is_frozen_is_passed_over(empty_database, postgres):
    """A primary that hangs: connections are accepted by its kernel, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = frozen.getsockname()[1]
        url = empty_database().replace("127.0.0.1:", f"127.0.0.1:{port},127.0.0.1:")
        store = taskmanager.open_store(f"{url}?target_session_attrs=read-write&connect_timeout=2")
        assert store.create()
        store.close()


def test_a_statement_that_takes_too_long_is_ended_on_the_server(empty_database, monkeypatch):
    monkeypatch.setattr(taskmanager, "STATEMENT_SECONDS", 1)
    url = empty_database()
    store = taskmanager.open_store(url + "?application_name=slow")
    with pytest.raises(Unavailable):
        store._execute("select pg_sleep(600)")
    assert not [pid for pid, state in backends(url, "slow") if state == "active"]
    assert store.create()
    store.close()


def test_a_server_that_freezes_during_a_statement_is_given_up(postgres, monkeypatch):
    store = taskmanager.open_store(postgres.create_database(f"frozen_{time.monotonic_ns()}"))
    [id] = store.create()
    monkeypatch.setattr(taskmanager, "CONNECT_SECONDS", 2)
    postgres.freeze()
    with pytest.raises(Unavailable):
        store._execute("select 1", repeat=False, seconds=0.5)
    postgres.thaw()
    assert eventually(lambda: readable(store, id)).id == id
    store.close()


def readable(store, id):
    with contextlib.suppress(Unavailable):
        return store.read(id)


# The table

def test_an_upgrade_waits_for_a_reader_and_lets_others_read_meanwhile(empty_database, start):
    """A backup reads the documented table for hours while the new version starts."""
    url = empty_database()
    query(
        url,
        DOCUMENT_TABLE,
        "insert into tasks default values",
    )
    reader = psycopg2.connect(url)
    reader.cursor().execute("select * from tasks")
    api = start("taskmanager.py", DATABASE_URL=url)
    api.logged("waiting for the lock of the table tasks")
    for _ in range(20):
        # at most as long as the start waits once
        query(url + "?options=-cstatement_timeout%3D3s", "select * from tasks")
    reader.close()
    assert http("GET", api.url + "/tasks/1").json["status"] == "New"
    assert api.log().count("the lock of the table") == 2        # when it began to wait, and when it was there


FOREIGN = {
    "other columns": "create table tasks (id serial primary key, title text, done boolean)",
    "more columns": "create table tasks"
    " (id serial, status text, created_at timestamp, updated_at timestamp, owner text)",
    "a view": "create view tasks as"
    " select 1 as id, 'New' as status, now() as created_at, now() as updated_at",
}


@pytest.mark.parametrize("statement", FOREIGN.values(), ids=FOREIGN)
def test_a_table_of_somebody_else_is_refused_and_left_alone(empty_database, statement):
    url = empty_database()
    query(url, statement)
    before = query(url, "select attname from pg_attribute where attrelid = 'tasks'::regclass")
    with pytest.raises(BadSetting, match="not this program's"):
        taskmanager.open_store(url)
    assert query(url, "select attname from pg_attribute where attrelid = 'tasks'::regclass") == before


TYPES = {
    "times with a zone": """id serial primary key, status varchar(20) default 'New',
                            created_at timestamptz default now(), updated_at timestamptz default now()""",
    "an identity": """id int generated always as identity, status text default 'New',
                      created_at timestamp default now(), updated_at timestamp""",
    "padded texts": """id smallserial primary key, status char(20) default 'New', created_at timestamp(0),
                       updated_at timestamp, payload jsonb, error varchar(9)""",
}


@pytest.mark.parametrize("columns", TYPES.values(), ids=TYPES)
def test_columns_of_other_types_are_brought_to_ours(empty_database, columns):
    """The documented table, made by another program's idea of it."""
    url = empty_database()
    query(url, f"alter database {url.rpartition('/')[2]} set timezone = 'Asia/Tokyo'")
    query(url, f"create table tasks ({columns})",
          "insert into tasks (created_at) values ('2024-12-17 10:00:00Z')")
    store = taskmanager.open_store(url)
    old = store.read(1)
    assert (old.status, old.created_at) == ("New", "2024-12-17T10:00:00")
    store.ready()
    [id] = store.create([NewTask(payload='{"b": 1, "a": 2}')])
    rows = store.claim(10, 30)
    assert [(row.id, row.status) for row in rows] == [(1, "In Progress"), (id, "In Progress")]
    assert rows[1].payload == '{"b": 1, "a": 2}'
    assert store.fail([(row.id, row.attempt, "a rather long error") for row in rows]) == {1, id}
    assert store.finished_per_second("Failed") == 2 / taskmanager.RATE_SECONDS
    store.close()


@pytest.mark.parametrize("column", ["priority varchar(9)", "payload text", "timeout interval"])
def test_a_column_that_can_not_be_brought_to_our_type_is_refused_at_the_start(empty_database, column):
    url = empty_database()
    query(url, f"create table tasks (id serial, status text, created_at date, updated_at date, {column})")
    with pytest.raises(BadSetting, match=f"schema.sql was refused: .*{column.split()[0]}"):
        taskmanager.open_store(url)


def test_a_view_of_the_operators_does_not_hold_up_an_upgrade_from_an_older_table_of_ours(empty_database):
    url = empty_database()
    taskmanager.open_store(url).close()
    query(url, "create view report as select * from tasks",
          "comment on table tasks is 'Task Manager, schema 2'",
          "alter table tasks drop constraint tasks_size_check")
    taskmanager.open_store(url).close()
    assert query(url, "select conname from pg_constraint where conname = 'tasks_size_check'")


def test_an_upgrade_replaces_a_check_of_each_time_by_one_of_all(empty_database):
    url = empty_database()
    taskmanager.open_store(url).close()
    times = ("created_at", "updated_at", "run_at", "lease_until", "ready_at", "started_at", "planned_at")
    query(url, "alter table tasks drop constraint tasks_times_check",
          *(f"alter table tasks add constraint tasks_{name}_check check ({name} > '0001-01-01')"
            for name in times),
          "insert into tasks (run_at) values ('infinity')",
          "comment on table tasks is 'Task Manager, schema 6'")
    taskmanager.open_store(url).close()
    checks = {name for name, in query(url, "select conname from pg_constraint where contype = 'c'")}
    assert "tasks_times_check" in checks and not checks & {f"tasks_{name}_check" for name in times}
    assert query(url, "select cast(run_at as text) from tasks") == [("9999-12-31 23:59:59",)]
    for name in times:
        for value in ("infinity", "0001-12-31 BC"):
            with pytest.raises(psycopg2.errors.CheckViolation):
                query(url, f"insert into tasks ({name}) values ('{value}')")


# Until schema 6 the outcome of an attempt stood in its error alone.
OLD_ENDS = {
    "'Failed', 'the worker died or was cut off during attempt 3 of 3'": "reclaimed",
    "'Failed', 'timed out after 5 s'": "timed_out",
    "'Failed', 'why'": "failed",
    "'Completed', null": "completed",
}


def test_the_outcomes_of_an_older_table_are_told_as_before(empty_database):
    url = empty_database()
    taskmanager.open_store(url).close()
    query(url, "alter table tasks drop column outcome, drop column earlier",
          "comment on table tasks is 'Task Manager, schema 6'",
          *(f"insert into tasks (status, error, attempt) values ({end}, 3)" for end in OLD_ENDS),
          "insert into tasks (attempt, uncounted, repeat) values (7, 5, '60')")
    with contextlib.closing(taskmanager.open_store(url)) as store:
        assert [store.attempts(id)[0].outcome for id in range(1, 5)] == list(OLD_ENDS.values())
        assert [row.earlier for row in store.list_tasks()] == [0] * 4 + [5]


def test_a_view_that_does_hold_up_an_upgrade_is_named_at_the_start(empty_database):
    url = empty_database()
    query(url, "create table tasks (id serial, status text, created_at timestamp, updated_at timestamp)",
          "create view report as select id from tasks")
    with pytest.raises(BadSetting, match="view report"):
        taskmanager.open_store(url)


def test_a_table_of_somebody_else_in_sqlite_is_refused(tmp_path):
    import sqlite3
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("create table tasks (id integer primary key, title text)")
    with pytest.raises(BadSetting, match="not this program's"):
        taskmanager.open_store(f"sqlite:///{tmp_path}/other.db")


FIRST_SQLITE = """
    create table tasks (
        id integer primary key autoincrement,
        status varchar(20) not null default 'New',
        created_at real not null default 0, updated_at real not null default 0,
        payload text check (payload is null or json_valid(payload)), result text, error text,
        priority int not null default 0, run_at real, max_attempts int, timeout real, lease_until real,
        attempt int not null default 0, uncounted int not null default 0, canceled int not null default 0,
        progress real, idempotency_key text, fingerprint text, ready_at real);
    create index tasks_claim on tasks (priority desc, id) where status = 'New' and run_at is null;
    insert into tasks (payload, priority) values ('{"n": 1}', 4), (null, 0), (null, 0);
    delete from tasks where id = 3;
    create table notes (task int references tasks (id));"""


def test_a_file_of_an_older_version_is_upgraded_in_place(tmp_path):
    """`make run` of last month's checkout, and then of this one: the second start finds the tasks again."""
    import sqlite3
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.executescript(FIRST_SQLITE)
        for end in OLD_ENDS:
            connection.execute(f"insert into tasks (status, error, attempt) values ({end}, 3)")
        connection.commit()
    for _ in range(2):
        with contextlib.closing(taskmanager.open_store(f"sqlite:///{tmp_path}/old.db")) as store:
            assert [(row.id, row.payload, row.priority, row.size) for row in store.list_tasks(limit=2)] == [
                (1, '{"n": 1}', 4, 8), (2, None, 0, 0)]
            [id] = store.create()
            assert id > 3       # whose id is not given again
            assert [store.attempts(id)[0].outcome for id in range(4, 8)] == list(OLD_ENDS.values())
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        texts = [text for text, in connection.execute("select sql from sqlite_master where sql is not null")]
        assert not any("newer" in text for text in texts)
        assert any("references tasks (id)" in text for text in texts)
        assert sum("INDEX" in text for text in texts) == 6


def test_a_user_who_may_not_make_the_table_is_told_so(empty_database):
    url = empty_database()
    name = f"guest_{time.monotonic_ns()}"
    query(url, f"create role {name} login", "revoke create on schema public from public")
    with pytest.raises(BadSetting, match="permission denied"):
        taskmanager.open_store(url.replace("postgres@", f"{name}@"))


def test_a_program_that_waits_for_a_frozen_database_can_be_stopped(start, empty_database):
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        program = start(
            "worker.py", DATABASE_URL=f"postgresql://postgres@127.0.0.1:{frozen.getsockname()[1]}/x"
        )
        frozen.accept()
        begun = time.monotonic()
        program.stop()
        assert time.monotonic() - begun < 8
