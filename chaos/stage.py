"""What a scenario plays on: servers, two API processes and three workers, and who restarts what has died."""

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pika
import pika.exceptions
import psycopg2

import servers
from chaos.proxy import Proxy
from helpers import Program

SLOTS = 8               # of a worker
HELD = 100              # tasks that a worker may hold at once: it claims short ones ahead
OVERLOAD = 3            # processes that wait for a core; above, a program may not get its turn for a lease
SETTINGS = {
    "CONCURRENCY": SLOTS,
    "POLL_SECONDS": 0.2,
    "RETRY_SECONDS": 0.1,
    "GRACE_SECONDS": 1,
    "MAX_ATTEMPTS": 100,        # those that are killed by chance must not fail for it
    "KINDS": "default,long,deadly",
    "HANDLER": "chaos.handlers:{kind}",
}
# In the short form a worker waits 7 seconds, and not 25, for a database that has gone silent, and tries at
# least once a second to reach a server that was away.
SHORT = {"CHAOS_STATEMENT_SECONDS": 2, "CHAOS_BACKOFF_SECONDS": 1}
DURABLE = "orders"              # the queue of producers that want to know; the document's is not durable
DOCUMENTED = "task_queue"

# A witness in the database: every change of a status, whoever makes it.
WITNESS = """
create table chaos_transitions (
    n       bigserial primary key,
    task    bigint,
    attempt int,
    was     text,
    became  text,
    at      double precision default extract(epoch from clock_timestamp())
);
create function chaos_witness() returns trigger language plpgsql as $$
begin
    insert into chaos_transitions (task, attempt, was, became)
    values (new.id, new.attempt, old.status, new.status);
    return null;
end $$;
create trigger chaos_witness after update of status on tasks
    for each row when (old.status is distinct from new.status) execute function chaos_witness();
"""
WITNESS_SQLITE = """
create table chaos_transitions (
    n       integer primary key,
    task    integer,
    attempt integer,
    was     text,
    became  text,
    at      real default ((julianday('now') - 2440587.5) * 86400.0)
);
create trigger chaos_witness after update of status on tasks when old.status is not new.status begin
    insert into chaos_transitions (task, attempt, was, became)
    values (new.id, new.attempt, old.status, new.status);
end;
"""


def wait_until(condition, seconds: float, what: str):
    """Return the first true value of condition(). Raise TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return value


class Stage:
    """The programs, and what all stages do with them; subclasses have the servers.

    Every way to stop a program says how many attempts may be lost with it, so that the accounting can tell
    whether runs of handlers beyond the first are explained.
    """

    apis = ("api1", "api2")
    workers = ("worker1", "worker2", "worker3")
    epoch_of_creation = "extract(epoch from created_at)"
    database_errors = psycopg2.Error

    def __init__(self, seed, is_short=True):
        self.random = random.Random(seed)
        self.is_short = is_short
        self.lease = 2 if is_short else 3                       # seconds
        self.patience_of_broker = 1.5 if is_short else 3        # seconds that it waits for acknowledgements
        self.settings = SETTINGS | {"LEASE_SECONDS": self.lease} | (SHORT if is_short else {})
        self.folder = Path(tempfile.mkdtemp(prefix="taskmanager-chaos-", dir="/tmp"))
        self.handlers_log = self.folder / "handlers.log"
        self.handlers_log.touch()
        self.programs: dict[str, Program] = {}
        self.ports = {name: servers.free_port() for name in self.apis}
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports.values()]
        self.environment: dict[str, dict] = {}      # of single programs, besides what all have
        self.wrappers: dict[str, tuple] = {}
        self.lock = threading.RLock()
        self.kept_down: set[str] = set()            # programs that the supervisor does not start again
        self.lost_attempts = 0                      # at most, since the scenario began
        self.kept: set[int] = set()                 # tasks that had ended when a scenario was over
        self.rejected: dict[str, int] = {}          # tokens of messages that were found rejected
        self.documented = 0                         # messages that the document's producer has sent
        self.documented_at_risk = False             # the queue of the document's producer was lost
        self.notes: list[str] = []
        self._closed = threading.Event()

    def settings_of(self, name: str) -> dict:
        raise NotImplementedError

    def query(self, sql: str, params=()) -> list[tuple]:
        """Run plain SQL, on a connection of its own; raise OperationalError of the database's module."""
        raise NotImplementedError

    def open(self):
        """Start everything. The programs come up together, as they would after a power cut."""
        self.start_servers()
        first, *others = [*self.apis, *self.workers]
        self.start(first)
        wait_until(self.has_table, 60, "the table")
        self.create_witness()
        for name in others:
            self.start(name)
        for name in self.programs:
            self.wait_for(name)
        threading.Thread(target=self._supervise, name="supervisor", daemon=True).start()

    def has_table(self) -> bool:
        with contextlib.suppress(psycopg2.Error, sqlite3.Error):
            self.query("select id from tasks where id = 0")
            return self.programs[self.apis[0]].log().count("started api") > 0
        return False

    def start_servers(self):
        pass

    def rest(self, seconds: float) -> None:
        """Sleep, in the short form half as long."""
        time.sleep(seconds / 2 if self.is_short else seconds)

    def create_witness(self):
        raise NotImplementedError

    def close(self):
        self._closed.set()
        with self.lock:
            for program in self.programs.values():
                program.end()
        self.close_servers()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close_servers(self):
        pass

    # Programs

    def start(self, name: str) -> None:
        script = "taskmanager.py" if name.startswith("api") else "worker.py"
        environ = self.settings | {"CHAOS_LOG": self.handlers_log} | self.settings_of(name)
        if name in self.ports:
            environ["PORT"] = self.ports[name]
        environ |= self.environment.get(name, {})
        environ = {key: str(value) for key, value in environ.items()}
        with self.lock:
            if not self._closed.is_set():
                if name in self.programs:
                    self.programs[name].end()
                self.programs[name] = Program(script, self.folder, environ, self.wrappers.get(name, ()))
                self.kept_down.discard(name)

    def wait_for(self, name: str) -> None:
        self.programs[name].logged("started api" if name in self.ports else "started worker")

    def kill(self, name: str) -> None:
        """End a program like a power cut; the supervisor starts it again."""
        with self.lock, contextlib.suppress(ProcessLookupError):
            self.programs[name].send(signal.SIGKILL)

    def stop(self, name: str) -> int:
        """Ask a program to end, and keep it down; its exit status."""
        with self.lock:
            self.kept_down.add(name)
            self._may_lose(name)        # those that do not end in time are released and run again
        return self.programs[name].stop(seconds=30)

    def restart(self, name: str, **environ) -> None:
        """Stop a program and start it with other settings."""
        self.stop(name)
        self.environment[name] = environ
        self.start(name)
        self.wait_for(name)

    def freeze(self, name: str) -> None:
        with self.lock:
            self.kept_down.add(name)
            self._may_lose(name, SLOTS)     # what it has claimed ahead does not begin when it wakes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.programs[name].process.pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.programs[name].process.pid, signal.SIGCONT)
        self.kept_down.discard(name)

    def remove(self, name: str) -> None:
        """End a program for good."""
        self.stop(name)
        with self.lock:
            self.programs.pop(name).end()

    def may_lose_all(self) -> None:
        """Say that all workers may have lost their leases, as when the database was away for long."""
        for name in self.workers:
            self._may_lose(name)

    @staticmethod
    def overload() -> float:
        """Return the load of each core where that is so much that leases run out without any fault."""
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        return load if load > OVERLOAD else 0

    def _may_lose(self, name, attempts=HELD):
        if name not in self.ports or self.settings_of(name).get("WORKER") == "on":
            self.lost_attempts += attempts

    def _supervise(self):
        """Start again what has died, as Docker and systemd do."""
        while not self._closed.wait(0.1):
            with self.lock:
                for name, program in list(self.programs.items()):
                    if name not in self.kept_down and program.process.poll() is not None:
                        if program.process.returncode != -signal.SIGKILL:
                            self.notes.append(f"{name} ended with {program.process.returncode}")
                        self._may_lose(name)
                        self.start(name)

    def tracebacks(self) -> list[str]:
        """Return the name of each log that has a traceback."""
        return [file.name for file in sorted(self.folder.glob("*.log")) if "Traceback" in file.read_text()]

    # The handlers' own log

    def runs(self) -> list[tuple[str, int, int, int, float]]:
        """Return its lines: begin or end, task, attempt, process, time."""
        lines = [line.split() for line in self.handlers_log.read_text().splitlines()]
        return [(word, int(task), int(attempt), int(pid), float(at))
                for word, task, attempt, pid, at in lines]


class Broker(servers.RabbitMQ):
    """It waits so few seconds for acknowledgements that a database which is away for longer exceeds them."""

    def __init__(self, patience: float):
        super().__init__()
        file = self.folder / "rabbitmq.config"
        patient = f"{{consumer_timeout, {patience * 1000:.0f}}}, {{channel_tick_interval, 250}}"
        file.write_text(file.read_text().replace("{disk_free_limit", f"{patient}, {{disk_free_limit"))

    def limit_memory(self, bytes: int) -> None:
        """Set the number of bytes above which the broker has no memory left."""
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({{absolute, {bytes}}})")


class ServerStage(Stage):
    """On PostgreSQL and RabbitMQ. One program of each sort reaches PostgreSQL through a proxy."""

    proxy: Proxy | None = None

    def start_servers(self):
        self.broker = Broker(self.patience_of_broker)
        broker = threading.Thread(target=self.broker.start)
        broker.start()
        self.start_postgres()
        broker.join()
        with self.channel() as channel:
            channel.queue_declare(DURABLE, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_declare(f"{DURABLE}.rejected", durable=True)
        self.declared = time.monotonic()

    def open(self):
        super().open()
        # A quorum queue whose broker is killed sooner may never find a leader.
        time.sleep(max(0, self.declared + 1 - time.monotonic()))

    def start_postgres(self):
        self.postgres = servers.Postgres()
        self.postgres.start()
        self.url = self.pooled_url = self.postgres.create_database("chaos")
        self.proxy = Proxy(servers.free_port(), self.postgres.port)

    def close_servers(self):
        self.broker.close()
        self.postgres.close()
        if self.proxy:
            self.proxy.close()

    def settings_of(self, name):
        url = self.pooled_url
        if self.proxy and name in ("api2", "worker2") and url == self.url:
            url = self.url.replace(f":{self.postgres.port}/", f":{self.proxy.port}/")
        queue = DOCUMENTED if name in ("api2", "worker3") else DURABLE
        return {"DATABASE_URL": url, "RABBITMQ_URL": self.broker.url, "TASK_QUEUE": queue}

    def create_witness(self):
        self.query(WITNESS)

    def query(self, sql, params=()):
        with contextlib.closing(psycopg2.connect(self.url, connect_timeout=5)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def channel(self):
        with pika.BlockingConnection(pika.URLParameters(self.broker.url)) as connection:
            yield connection.channel()

    def collect_rejected(self) -> None:
        """Take the messages out of the queue of rejected ones."""
        with self.channel() as channel:
            while (found := channel.basic_get(f"{DURABLE}.rejected", auto_ack=True))[0]:
                self.found_rejected(found[2])

    def found_rejected(self, body: bytes) -> None:
        """Note a rejected message: its body begins with its token."""
        token = body[:100].partition(b" ")[0].decode(errors="replace")
        self.rejected[token] = self.rejected.get(token, 0) + 1


class StandbyStage(ServerStage):
    """With a standby, and both servers in DATABASE_URL.

    The standby is synchronous: a commit is answered when both have it. Without that, rows that were
    acknowledged in the last moments of a primary may be missing on the standby.
    """

    def start_postgres(self):
        self.postgres = servers.Postgres()
        self.postgres.start()
        self.postgres.execute("create database chaos")
        self.standby = servers.Postgres()
        self.follow(self.postgres, self.standby)
        ports = f"{self.postgres.port},127.0.0.1:{self.standby.port}"
        self.url = self.pooled_url = (
            f"postgresql://postgres@127.0.0.1:{ports}/chaos?target_session_attrs=read-write")

    def follow(self, primary, standby) -> None:
        """Make a server the synchronous standby of another one, whatever it was before."""
        shutil.rmtree(standby.data)
        subprocess.run(
            [standby.command[0].parent / "pg_basebackup", "-D", standby.data, "-R", "-X", "stream",
             "-c", "fast", "-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres", "--no-sync"],
            check=True, env=standby.environment, cwd=standby.folder, **standby.account)
        standby.start()
        primary.execute("alter system set synchronous_standby_names = '*'")
        primary.execute("select pg_reload_conf()")

        def follows():
            with contextlib.closing(psycopg2.connect(primary.url)) as connection:
                cursor = connection.cursor()
                cursor.execute("select count(*) from pg_stat_replication where sync_state = 'sync'")
                return cursor.fetchone()[0]
        wait_until(follows, 30, "the standby follows")

    def promote(self) -> None:
        """Make the standby the primary, which waits for no other; the old one must be gone, or is frozen."""
        self.standby.execute("alter system reset synchronous_standby_names")
        self.standby.execute("select pg_reload_conf()")
        self.standby.execute("select pg_promote()")
        self.postgres, self.standby = self.standby, self.postgres

    def close_servers(self):
        self.standby.close()
        super().close_servers()


class FileStage(Stage):
    """On SQLite: two API processes with a worker inside, and a worker, on one file."""

    workers = ("worker1",)
    epoch_of_creation = "created_at"
    database_errors = sqlite3.Error

    def __init__(self, seed, is_short=True):
        super().__init__(seed, is_short)
        self.file = self.folder / "tasks.db"
        if os.getuid() == 0 and shutil.which("setpriv"):    # or else root may write a read-only file
            wrapper = ("setpriv", "--bounding-set", "-dac_override")
            self.wrappers = dict.fromkeys((*self.apis, *self.workers), wrapper)

    def settings_of(self, name):
        return {"DATABASE_URL": f"sqlite:///{self.file}", "WORKER": "on"}

    def create_witness(self):
        with contextlib.closing(sqlite3.connect(self.file)) as connection:
            connection.executescript(WITNESS_SQLITE)

    def query(self, sql, params=()):
        with contextlib.closing(sqlite3.connect(self.file, timeout=20)) as connection:
            return connection.execute(sql, params).fetchall()

    def files(self) -> list[Path]:
        """Return the database and SQLite's files beside it."""
        return list(self.folder.glob("tasks.db*"))

    def limit_files(self, name: str, size: int = resource.RLIM_INFINITY) -> None:
        """Let no file of a program grow beyond so many bytes."""
        pid = self.programs[name].process.pid
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
