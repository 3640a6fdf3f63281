"""PROCESSES: several API processes on one port, which share nothing but the database."""

import collections
import contextlib
import http.client
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

import servers
import taskmanager
from helpers import connect, eventually, is_alive
from taskmanager import BadSetting, Config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# The API, where a claim that waits never looks for itself: it has to be woken.
NO_POLL = f"""
import queue, sys
sys.path.insert(0, {str(Path(taskmanager.__file__).parent)!r})
import taskmanager
get = queue.Queue.get
queue.Queue.get = lambda self, block=True, timeout=None: get(self, block, timeout and 60)
taskmanager.run(taskmanager.main)
"""


@pytest.fixture
def launch(start, postgres_database, tmp_path):
    """launch(**settings): the API in two processes."""
    def launch(script="taskmanager.py", **settings):
        usual = {"DATABASE_URL": postgres_database, "PROCESSES": 2, "TMPDIR": tmp_path}
        return start(script, **usual | settings)
    return launch


def children(program):
    """The ids of its processes, as soon as there are two that run."""
    def look():
        return [pid for pid, parent in servers.living().items() if parent == program.process.pid]
    return eventually(lambda: len(found := look()) == 2 and sorted(found))


def port_of(line):
    return int(line.split(":")[1], 16)


def process_of(connection, pids):
    """The id of the process that has accepted a connection."""
    here, there = connection.getsockname()[1], connection.getpeername()[1]

    def look():
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *fields = line.split()
            if (port_of(local), port_of(remote)) == (there, here):
                for pid in pids:
                    for file in Path(f"/proc/{pid}/fd").iterdir():
                        with contextlib.suppress(OSError):
                            if os.readlink(file) == f"socket:[{fields[6]}]":
                                return pid
        return None
    return eventually(look)


class Connection(http.client.HTTPConnection):
    """A connection that stays open; `process` is the id of the one that serves it."""

    def __init__(self, program):
        super().__init__(urlsplit(program.url).netloc, timeout=20)
        self.connect()
        self.process = process_of(self.sock, children(program))

    def send_request(self, method, path, body=None, **headers):
        headers = {"Content-Type": "application/json"} | headers
        self.request(method, path, None if body is None else json.dumps(body), headers)

    def ask(self, method, path, body=None, **headers):
        """The status and the body of the answer."""
        self.send_request(method, path, body, **headers)
        return self.answer()

    def answer(self):
        with self.getresponse() as response:
            return response.status, response.read().decode()


def one_each(program):
    """A connection to each process."""
    found = {}

    def look():
        connection = Connection(program)
        found.setdefault(connection.process, connection)
        return set(children(program)) <= found.keys()
    eventually(look)
    return [found[pid] for pid in children(program)]


def counted(connection, event="created"):
    text = connection.ask("GET", "/metrics")[1]
    return int(re.search(f'task_events_total{{event="{event}"}} ([0-9]+)', text)[1])


def number_of_lock_waits(url):
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("""select count(*) from pg_stat_activity
                          where  wait_event_type = 'Lock'
                                 and application_name = current_setting('application_name')""")
        return cursor.fetchone()[0]


# What they share

@pytest.mark.parametrize("carrier", ["PostgreSQL", "RabbitMQ"])
def test_a_claim_that_waits_in_one_process_is_woken_by_a_task_of_another(
    launch, tmp_path, carrier, request
):
    script = tmp_path / "no_poll.py"
    script.write_text(NO_POLL)
    settings = {"RABBITMQ_URL": request.getfixturevalue("broker")} if carrier == "RabbitMQ" else {}
    program = launch(script, **settings)
    first, second = one_each(program)
    for claiming, creating in (first, second), (second, first):
        claiming.send_request("POST", "/tasks/claim", {}, Prefer="wait=60")
        time.sleep(0.3)
        status, created = creating.ask("POST", "/tasks", {})
        assert status == 201
        status, [claimed] = (answer := claiming.answer())[0], json.loads(answer[1])
        assert (status, claimed["id"]) == (200, json.loads(created)["id"])
    assert program.stop() == 0


def test_all_processes_show_the_same_counters_also_after_one_has_died(launch):
    program = launch()
    connections = one_each(program)
    for connection in connections:
        for _ in range(3):
            assert connection.ask("POST", "/tasks")[0] == 201
        assert connection.ask("POST", "/tasks", [{}] * 4)[0] == 201
    eventually(lambda: [counted(connection) for connection in connections] == [14, 14])
    for number in signal.SIGKILL, signal.SIGTERM:
        before = children(program)
        os.kill(before[0], number)
        eventually(lambda before=before: not is_alive(before[0]))
        connections = one_each(program)
        assert [counted(connection) for connection in connections] == [14, 14]
    connections[0].ask("POST", "/tasks")
    eventually(lambda: [counted(connection) for connection in connections] == [15, 15])
    text = connections[0].ask("GET", "/metrics")[1]
    assert text.count("# TYPE taskmanager_wait_seconds histogram") == 1
    assert 'taskmanager_http_requests_total{route="/tasks",method="POST",status="201"} 9' in text


def test_each_process_takes_its_share_of_the_connections(launch):
    program = launch()
    pids = children(program)
    one_each(program)       # both listen
    with contextlib.ExitStack() as stack:
        burst = [stack.enter_context(connect(program.url)) for _ in range(60)]
        shares = collections.Counter(process_of(each, pids) for each in burst)
    assert min(shares[pid] for pid in pids) >= 10      # fewer by chance: one in a hundred million runs


# What ends

def test_a_process_that_dies_is_started_again_and_the_others_go_on(launch):
    program = launch()
    first, second = one_each(program)
    os.kill(first.process, signal.SIGKILL)
    assert second.ask("GET", "/livez")[0] == 200
    program.logged(r"CRITICAL .*lost process number=\d reason='it ended with status -9': starting it again")
    assert first.process not in {each.process for each in one_each(program)}
    assert second.ask("GET", "/livez")[0] == 200
    assert program.stop() == 0


def test_at_sigterm_requests_under_way_are_finished_and_no_process_stays(launch, postgres_database):
    program = launch(DATABASE_URL=f"{postgres_database}%20-clock_timeout%3D20s")
    connections, pids = one_each(program), children(program)
    with contextlib.closing(psycopg2.connect(postgres_database)) as other, other.cursor() as cursor:
        cursor.execute("lock table tasks in share mode")
        for connection in connections:
            connection.send_request("POST", "/tasks", {})
        eventually(lambda: number_of_lock_waits(postgres_database) == 2)
        program.send(signal.SIGTERM)
        time.sleep(0.2)
        other.rollback()
    assert [connection.answer()[0] for connection in connections] == [201, 201]
    assert program.process.wait(20) == 0
    assert not any(is_alive(pid) for pid in pids)
    assert "Traceback" not in program.log() and program.log().endswith("stopped api\n")


def test_no_process_outlives_its_parent(launch, tmp_path):
    program = launch()
    one_each(program)
    pids = children(program)
    assert len(list(tmp_path.glob("taskmanager-*/*.json"))) == 2
    program.stop(signal.SIGKILL)
    eventually(lambda: not any(is_alive(pid) for pid in pids))
    assert list(tmp_path.glob("taskmanager-*")) == []
    assert program.log().count("stopped process reason='its parent has ended'") == 2


def test_a_signal_at_any_moment_leaves_no_process_behind(launch):
    for seconds in 0.4, 0.6, 0.8:
        program = launch()
        time.sleep(seconds)
        assert program.stop() in (0, -signal.SIGTERM)
        assert "Traceback" not in program.log()
        assert not [pid for pid, parent in servers.living().items() if parent == program.process.pid]


# Settings

def test_a_setting_that_can_not_be_used_is_told_once(launch, tmp_path):
    port = urlsplit(launch().url).port
    programs = [(launch(**{name: value}), expected) for name, value, expected in [
        ("PORT", port, f"PORT='{port}' can't be used: Address already in use"),
        ("HOST", "192.0.2.1", "HOST='192.0.2.1' can't be used: "),
        ("WORKER", "on", "PROCESSES='2' can't be used: expected 1 with WORKER=on"),
        ("LOG_FILE", "/no/such/folder/log", "LOG_FILE='/no/such/folder/log' can't be used: "),
        ("DATABASE_URL", f"sqlite:///{tmp_path}/db", "PROCESSES='2' can't be used: expected 1 on SQLite"),
    ]]
    for program, expected in programs:
        assert program.process.wait(20) == 1
        [line] = [line for line in program.log().splitlines() if line.startswith("taskmanager.py: ")]
        assert line.startswith(f"taskmanager.py: {expected}")


def test_where_nothing_can_fork_there_is_one_process(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(BadSetting, match="expected 1 on this system"):
        Config(processes=2, database_url="postgresql://host/name")


# The log

def test_of_several_processes_that_log_to_a_file_one_rotates_it_and_the_others_follow(tmp_path):
    file = tmp_path / "log"
    outputs = [taskmanager.PrivateLogFile(str(file), "a", 2000, 5, "utf-8") for _ in range(3)]
    for each in outputs[1:]:
        each.rotates = False

    def write(output):
        for n in range(60):
            text = f"line {n} of {id(output)}"
            output.handle(logging.LogRecord("test", logging.INFO, "", 0, text, None, None))
            time.sleep(0.001)

    threads = [threading.Thread(target=write, args=[each]) for each in outputs[1:]]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        outputs[0].rotate_if_full()
        time.sleep(0.002)
    lines = [line for each in tmp_path.iterdir() for line in each.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 120
    assert len(list(tmp_path.iterdir())) >= 2
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}


def test_all_processes_log_to_the_same_file(launch, tmp_path):
    program = launch(LOG_FILE=tmp_path / "api.log")
    for connection in one_each(program):
        connection.ask("POST", "/tasks")
    assert program.stop() == 0
    text = (tmp_path / "api.log").read_text()
    assert text.count("created task=") == 2 and text.count("stopped api") == 1
    assert [each.name for each in tmp_path.glob("api*")] == ["api.log"]
