"""Notifications through PostgreSQL: who gets them, and what happens while they can't be sent or received."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

import taskmanager
from helpers import eventually, http, numbers
from taskmanager import Config, PostgresNotifier, RabbitNotifier, Worker, make_notifier, new_task

LONG = 3600     # seconds: what happens in a test does not happen for a poll


def query(url, statement):
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def process():
    """process(url): what a process has, a store and a notifier that runs; `woken` is set when it is woken."""
    made = []

    def make(url):
        store = taskmanager.open_store(url)
        store.woken = threading.Event()
        store.listeners.append(store.woken.set)
        store.notifier = make_notifier(store, Config())
        made.append(store)
        store.notifier.start()
        return store

    yield make
    for store in made:
        store.notifier.stop()
        store.close()


@pytest.fixture
def own_database(postgres):
    """The address of a database on the server that may be killed."""
    return postgres.create_database(f"notifications_{next(numbers)}_{time.monotonic_ns()}")


def is_woken_by(receiver, sender):
    """Whether a task that is created in one process wakes the other."""
    receiver.woken.clear()
    sender.create()
    return receiver.woken.wait(2)


def notifiers(url):
    """The sessions of the notifiers that are connected, and when each was last used."""
    return query(url, """select pid, state_change
                         from   pg_stat_activity
                         where  query like '%pg_notify(%' and pid <> pg_backend_pid()
                                and application_name = current_setting('application_name')""")


def connected(*stores):
    """Wait until all are connected, and what they have sent at that has come."""
    eventually(lambda: all(store.notifier.connected for store in stores))
    time.sleep(0.1)
    return stores


# Who gets them

def test_a_task_is_run_at_once_by_a_worker_in_another_process(start, postgres_database):
    settings = dict(DATABASE_URL=postgres_database, POLL_SECONDS=LONG, LEASE_SECONDS=86400)
    api, worker = start("taskmanager.py", **settings), start("worker.py", METRICS_PORT=0, **settings)
    for address in api.url, worker.metrics_url:
        ready = http("GET", f"{address}/readyz")
        assert ready.status == 200 and "rabbitmq" not in ready.json
        assert "taskmanager_rabbitmq_up" not in http("GET", f"{address}/metrics").body.decode()
    eventually(lambda: len(notifiers(postgres_database)) == 2)
    for _ in range(3):
        id = http("POST", f"{api.url}/tasks").json["id"]
        eventually(lambda: http("GET", f"{api.url}/tasks/{id}").json["status"] == "Completed", seconds=5)
    assert [program.stop() for program in (api, worker)] == [0, 0]




def test_a_claim_that_waits_gets_at_once_what_another_process_creates(process, postgres_database, serve):
    sender, receiver = connected(process(postgres_database), process(postgres_database))
    api = serve(receiver, waiters=4)

    def seconds():
        claim = pool.submit(http, "POST", f"{api}/tasks/claim", {}, Prefer="wait=20")
        time.sleep(2.5)     # amid a whole second between two polls
        begun = time.monotonic()
        sender.create()
        assert len(claim.result().json) == 1
        return time.monotonic() - begun
    with ThreadPoolExecutor(1) as pool:
        assert max(seconds() for _ in range(2)) < 0.4


def test_a_task_that_a_worker_puts_back_wakes_the_others(process, postgres_database):
    first, second = connected(process(postgres_database), process(postgres_database))
    first.create()
    [row] = first.claim(1, 30)
    time.sleep(0.1)
    second.woken.clear()
    assert first.release([(row.id, row.attempt)])
    assert second.woken.wait(5)


def test_a_process_is_not_woken_by_itself(process, postgres_database):
    first, second = connected(process(postgres_database), process(postgres_database))
    first.woken.clear()
    second.woken.clear()
    first.notifier.notify()
    assert second.woken.wait(5)
    assert not first.woken.wait(0.2)


def test_task_managers_in_two_schemas_of_a_database_do_not_wake_each_other(process, own_database):
    """Even where the names of the schemas differ only after what the name of a channel has room for."""
    names = ["s" * 60 + end for end in ("one", "two")]
    stores = []
    for name in names:
        query(own_database, f"create schema {name}")
        stores.append(process(f"{own_database}?options=-csearch_path%3D{name}"))
    third = process(f"{own_database}?options=-csearch_path%3D{names[0]}")
    one, two, third = connected(*stores, third)
    two.woken.clear()
    assert is_woken_by(third, one)
    assert not two.woken.wait(0.2)


def test_a_notifier_is_for_rabbitmq_where_that_is_set_and_for_postgresql_where_not(
    sqlite_database, postgres_database
):
    broker = Config(rabbitmq_url="amqp://127.0.0.1:1")
    expected = {
        (sqlite_database, None): type(None),
        (sqlite_database, broker): RabbitNotifier,
        (postgres_database, None): PostgresNotifier,
        (postgres_database, broker): RabbitNotifier,
    }
    for (url, config), kind in expected.items():
        store = taskmanager.open_store(url)
        notifier = make_notifier(store, config or Config())
        assert type(notifier) is kind
        assert store.listeners == ([notifier.notify] if notifier else [])
        store.close()


# How many

def test_notifications_in_quick_succession_become_one(process, postgres_database, monkeypatch):
    sender, receiver = connected(process(postgres_database), process(postgres_database))
    sent, run = [], sender.notifier._run
    monkeypatch.setattr(sender.notifier, "_run", lambda *args: (sent.append(args[1]), run(*args))[1])
    begun = time.monotonic()
    for _ in range(300):
        sender.notifier.notify()
        time.sleep(0.001)
    assert 1 <= len(sent) <= 2 + (time.monotonic() - begun) / 0.01
    eventually(lambda: not sender.notifier._pending.is_set())
    assert set(sent) == {taskmanager.NOTIFY}

    with ThreadPoolExecutor(8) as pool:     # none is lost in a race: the last one is sent, too
        for _ in range(30):
            receiver.woken.clear()
            list(pool.map(lambda _: sender.notifier.notify(), range(8)))
            assert receiver.woken.wait(5)


def test_a_process_has_one_connection_for_its_notifications_and_keeps_it_in_use(
    process, postgres_database, monkeypatch
):
    """A server, a proxy or a router may close what is silent, and it would be lost again and again."""
    monkeypatch.setattr(PostgresNotifier, "KEEPALIVE_SECONDS", 0.1)
    store, = connected(process(postgres_database))
    store.close()

    def sessions():
        return dict(query(postgres_database, """select pid, state_change from pg_stat_activity
                                                where  application_name = current_setting('application_name')
                                                       and pid <> pg_backend_pid()"""))
    [(pid, used)] = eventually(lambda: len(found := sessions()) == 1 and found.items())
    eventually(lambda: sessions()[pid] > used)


# While it does not work

def test_a_server_that_was_restarted_is_found_again(process, postgres, own_database, caplog):
    sender, receiver = connected(process(own_database), process(own_database))
    assert is_woken_by(receiver, sender)
    postgres.kill()
    eventually(lambda: not (sender.notifier.connected or receiver.notifier.connected))
    time.sleep(2)       # several tries
    postgres.start()
    connected(sender, receiver)
    assert is_woken_by(receiver, sender)
    lines = [line for line in caplog.messages if "PostgreSQL for notifications" in line]
    assert len([line for line in lines if line.startswith("lost ")]) == 2       # of two notifiers
    assert len([line for line in lines if line.startswith("regained ")]) == 2


def test_what_became_ready_while_the_connection_was_away_is_looked_for(process, postgres_database, caplog):
    store, = connected(process(postgres_database))
    store.woken.clear()
    query(postgres_database, "select pg_terminate_backend(pid) from pg_stat_activity"
                             " where pid <> pg_backend_pid()"
                             " and application_name = current_setting('application_name')")
    assert store.woken.wait(5)
    eventually(lambda: "regained PostgreSQL for notifications" in caplog.text)


def test_a_frozen_server_stops_neither_the_worker_nor_its_end(process, postgres, own_database, monkeypatch,
                                                              caplog):
    monkeypatch.setattr(taskmanager, "CONNECT_SECONDS", 2)
    sender, receiver = connected(process(own_database), process(own_database))
    worker = Worker(receiver, Config(poll_seconds=LONG), lambda task: None)
    worker.start()
    time.sleep(0.2)
    postgres.freeze()
    begun = time.monotonic()
    for _ in range(1000):
        sender.notifier.notify()
    assert time.monotonic() - begun < 0.5
    eventually(lambda: not sender.notifier.connected)       # given up, and not waited for
    assert "no answer within 2 s" in caplog.text
    begun = time.monotonic()
    receiver.notifier.stop()        # it waits for what would come
    assert time.monotonic() - begun < 1
    postgres.thaw()
    connected(sender)
    worker.stop()


def test_a_program_ends_while_the_server_is_frozen(start, postgres, own_database):
    own_database += "?application_name=program"
    program = start("worker.py", DATABASE_URL=own_database, POLL_SECONDS=LONG, LEASE_SECONDS=86400)
    eventually(lambda: notifiers(own_database))
    time.sleep(0.2)
    postgres.freeze()
    begun = time.monotonic()
    assert program.stop() == 0
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("how", ["a standby", "a user who may not"])
def test_what_the_server_does_not_do_is_logged_once_and_waits_for_better_times(
    process, postgres, own_database, caplog, how
):
    taskmanager.open_store(own_database).close()
    if how == "a standby":
        postgres.stop()
        (postgres.data / "standby.signal").touch()
        postgres.start()
    else:
        guest = f"guest_{next(numbers)}_{time.monotonic_ns()}"
        query(own_database, f"""create role {guest} login;
                                grant all on tasks, tasks_id_seq to {guest};
                                revoke execute on function pg_notify from public""")
        own_database = own_database.replace("postgres@", f"{guest}@")

    store = process(own_database)
    eventually(lambda: store.notifier._outage.since)
    store.notifier.notify()
    time.sleep(3)
    [line] = [line for line in caplog.messages if "notifications" in line]
    assert line.startswith("waiting for PostgreSQL for notifications error=")
    assert ("during recovery" if how == "a standby" else "permission denied for function pg_notify") in line
    assert store.list_tasks() == []

    if how == "a standby":
        query(own_database, "select pg_promote()")
    else:
        query(own_database.replace(f"{guest}@", "postgres@"), "grant execute on function pg_notify to public")
    eventually(lambda: store.notifier.connected)
    assert [line for line in caplog.messages if "notifications" in line][1:] == [
        line for line in caplog.messages if line.startswith("reached PostgreSQL for notifications")]


def test_a_notification_does_not_wait_for_a_standby_that_is_away(process, postgres, own_database):
    sender, receiver = connected(process(own_database), process(own_database))
    query(own_database, "alter system set synchronous_standby_names = 'gone'")
    query(own_database, "select pg_reload_conf()")
    try:
        time.sleep(0.5)
        receiver.woken.clear()
        sender.notifier.notify()
        assert receiver.woken.wait(5)
    finally:
        query(own_database + "?options=-csynchronous_commit%3Doff",
              "alter system reset synchronous_standby_names")
        query(own_database, "select pg_reload_conf()")


# Poolers

def test_through_a_pooler_notifications_are_sent_and_nothing_listens(
    process, pgbouncer, own_database, caplog
):
    """More notifiers than the pooler has connections to the server: none keeps one for itself."""
    direct = process(own_database)
    with caplog.at_level("INFO"):
        pooled = [process(pgbouncer.url_of(own_database)) for _ in range(25)]
        connected(direct, *pooled)
    assert caplog.text.count("not listening for notifications: the database is behind a pooler") == 25
    assert is_woken_by(direct, pooled[0])
    for _ in range(3):
        assert direct.create() and pooled[1].list_tasks()
    time.sleep(0.5)
    channels = [query(pgbouncer.url_of(own_database), "select pg_listening_channels()") for _ in range(40)]
    assert channels == [[]] * 40
    assert "got packet 'A'" not in pgbouncer.log.read_text()    # a notification that no client waits for
    assert "lost" not in caplog.text


def test_programs_behind_a_pooler_run_tasks_by_the_poll(start, pgbouncer, own_database):
    settings = dict(DATABASE_URL=pgbouncer.url_of(own_database), POLL_SECONDS=0.2)
    api, worker = start("taskmanager.py", **settings), start("worker.py", **settings)
    ids = [http("POST", f"{api.url}/tasks").json["id"] for _ in range(5)]
    for id in ids:
        eventually(lambda id=id: http("GET", f"{api.url}/tasks/{id}").json["status"] == "Completed")
    for program in api, worker:
        program.logged("not listening for notifications: the database is behind a pooler")
        assert program.stop() == 0
        assert " WARNING " not in program.log()


def test_what_makes_no_task_ready_notifies_nobody(store):
    heard = []
    store.listeners.append(lambda: heard.append(1))
    store.create([new_task({}, "key")])
    assert len(heard) == 1
    store.create([new_task({}, "key")])
    store.retry_all(taskmanager.Filters())
    store.release([(1, 7)])
    assert len(heard) == 1
