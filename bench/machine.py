"""What the measures run on: a PostgreSQL and a RabbitMQ of their own, and how programs run."""

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pika
import psycopg2

import servers

ROOT = Path(__file__).resolve().parent.parent
APPS = ROOT / "bench/apps"
SCRIPTS = Path(sys.executable).parent       # celery, dramatiq and others, as commands
PACKAGES = ("bottle", "waitress", "psycopg2-binary", "pika", "flask", "fastapi", "uvicorn", "uvloop",
            "httptools", "asyncpg", "celery", "dramatiq", "procrastinate", "huey")


class DurablePostgres(servers.Postgres):
    """As a new installation sets it up. The tests' one does not wait for the disk."""

    def __init__(self):
        super().__init__()
        self.command = [*self.command, "--fsync=on", "--shared_buffers=128MB"]


class Machine:
    """The servers, a folder for files, and the environment of every program."""

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="taskmanager-bench-"))
        self.postgres, self.rabbitmq = DurablePostgres(), servers.RabbitMQ()
        self.postgres.start()
        self.rabbitmq.start()
        self.databases = 0
        os.environ |= {         # the peers' modules read it, here and in their own processes
            "BENCH_FOLDER": str(self.folder),
            "BENCH_POSTGRES": self.postgres.url.removesuffix("/postgres"),
            "BENCH_RABBITMQ": self.rabbitmq.url,
        }
        return self

    def __exit__(self, *_):
        self.rabbitmq.close()
        self.postgres.close()
        shutil.rmtree(self.folder)

    def new_database(self) -> str:
        self.databases += 1
        return self.postgres.create_database(f"bench{self.databases}")

    @contextlib.contextmanager
    def running(self, *command, port: int | None = None, **environment):
        """Run a program inside the block, which begins when it listens on the port.

        Raise RuntimeError, with the end of its log, when it ends by itself.
        """
        kept = {name: os.environ[name] for name in os.environ
                if name in ("PATH", "HOME", "LANG") or name.startswith("BENCH_")}
        kept |= {"PYTHONPATH": str(APPS)} | environment | ({"PORT": str(port)} if port else {})
        log = self.folder / "log"
        with log.open("w") as output:
            process = subprocess.Popen([str(part) for part in command], env=kept, cwd=ROOT, stdout=output,
                                       stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            if port:
                wait_until(lambda: process.poll() is not None or is_listening(port))
            yield process
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(map(str, command))} ended:\n{log.read_text()[-3000:]}")
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)      # and its children
            process.wait()

    def describe(self) -> str:
        """Return two lines: the machine, and the versions of all that took part."""
        cpu, memory = platform.processor() or platform.machine(), ""
        with contextlib.suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
            kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
            memory = f", {kilobytes / 2**20:.0f} GiB"
        postgres = query(self.postgres.url, "show server_version")[0][0].split()[0]
        rabbitmq = rabbitmq_version(self.rabbitmq.url)
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        return (f"{os.cpu_count()} cores of {cpu}{memory}; {platform.system()} {platform.release()}.\n"
                f"Python {platform.python_version()}, PostgreSQL {postgres} (defaults), RabbitMQ {rabbitmq}, "
                f"{packages}.")


def rabbitmq_version(url: str) -> str:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return connection._impl.server_properties["version"]


def query(url: str, sql: str, params=None) -> list[tuple]:
    """Run one statement on a connection of its own, and return its rows."""
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_until(condition, seconds: float = 60, every: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come true in time")
        time.sleep(every)
