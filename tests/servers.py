"""PostgreSQL, PgBouncer and RabbitMQ for the tests: our own, from the installed binaries.

Each lives in a temporary folder, listens on a free port of 127.0.0.1 and has nothing to do with the machine's
own services, so a test may stop, kill, freeze and restart it.
"""

import atexit
import contextlib
import ctypes
import itertools
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEADLINE = 60  # seconds that a server may take to start or to stop


class Missing(Exception):
    """The binaries are not installed; the message says what to install."""

    def __init__(self, what):
        how = ("brew install postgresql@17 pgbouncer rabbitmq" if sys.platform == "darwin" else
               "sudo apt-get install postgresql pgbouncer rabbitmq-server, or what your system calls them")
        super().__init__(f"{what}: {how}")


# Below the ports that the system gives to clients (32768 and up). Among those, a client that keeps dialling a
# stopped server is one day given that very port, and connects to itself.
ports = itertools.count(random.SystemRandom().randrange(20000, 30000))


def free_port() -> int:
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def living() -> dict[int, int]:
    """The parent of every process. A zombie does not count: in a container there may be nobody to reap it."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in table.splitlines()]
    return {int(pid): int(parent) for pid, parent, state, *_ in rows if not state.startswith("Z")}


class Server:
    """A process with a folder of its own; the same port and the same data at each start, until close()."""

    stop_signal = signal.SIGTERM
    account = {}  # Popen's arguments for another user

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="taskmanager-test-", dir="/tmp"))
        self.log = self.folder / "log"
        self.port = free_port()
        self.process = None
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        """Returns when the server answers. One that runs already, or is frozen, is none the worse for it."""
        if self.process:
            self.thaw()
            return
        with self.log.open("a") as log:
            # A session of its own: Ctrl-C is meant for pytest, which needs the server to finish its test.
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.account,
            )
        # When pytest is gone without a goodbye (SIGKILL), this one's stdin ends, and so do server and folder.
        self.guard = subprocess.Popen(
            [
                "sh",
                "-c",
                'read _; kill -s "$2" "$1"; kill -s CONT "$1"; sleep 5; rm -rf "$3"',
                "guard",
                str(self.pid),
                self.stop_signal.name.removeprefix("SIG"),
                self.folder,
            ],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + DEADLINE
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{type(self).__name__} did not start:\n{tail}")
            time.sleep(0.05)

    def family(self) -> set[int]:
        """The ids of the process and its descendants; none once it has ended: its id may be another's."""
        found = {self.pid} if self.process.poll() is None else set()
        parents = living()
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def stop(self) -> None:
        """An orderly end, waited for."""
        if self.process:
            members = self.family()
            self.process.send_signal(self.stop_signal)
            self.thaw()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(DEADLINE)
            self.end(members)

    def kill(self) -> None:
        """Like a power cut: neither the server nor any of its children does one more thing."""
        if self.process:
            self.freeze()  # so that it starts no child while we look for them
            self.end(self.family())

    def end(self, members: set[int]) -> None:
        for pid in members & living().keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with self.guard:
            self.guard.kill()
        self.process.wait()
        self.process = None
        while members & living().keys():
            time.sleep(0.01)

    def freeze(self) -> None:
        """Not dead but silent: connections stay open, and nothing answers."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.family() if self.process else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """The end of process, folder and all: not an orderly one, as nothing of it is used any more."""
        self.kill()
        atexit.unregister(self.close)
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(Server):
    stop_signal = signal.SIGINT  # the fast shutdown: it does not wait for clients to leave

    def __init__(self):
        binaries = postgres_binaries()
        super().__init__()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.data = self.folder / "data"
        self.environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        if os.getuid() == 0:  # for root PostgreSQL refuses to run
            users = {user.pw_name: user for user in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            self.account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        made = subprocess.run(
            [
                binaries / "initdb",
                "--pgdata",
                self.data,
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **self.account,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}")
        self.command = [
            binaries / "postgres",
            "-D",
            self.data,
            "-p",
            str(self.port),
            "--listen_addresses=127.0.0.1",
            "--unix_socket_directories=",
            "--max_connections=200",
            "--shared_buffers=16MB",
            # Only processes are killed here, never the machine: what they wrote, the kernel has.
            "--fsync=off",
            # In our folder: /dev/shm is small in containers, and not ours to tidy.
            "--dynamic_shared_memory_type=mmap",
        ]

    def answers(self) -> bool:
        import psycopg2  # not above: the tests on SQLite do without
        try:
            self.execute("select 1")
            return True
        except psycopg2.OperationalError:
            return False

    def execute(self, statement: str) -> None:
        import psycopg2
        with contextlib.closing(psycopg2.connect(self.url, connect_timeout=5)) as connection:
            connection.autocommit = True
            connection.cursor().execute(statement)

    def create_database(self, name: str) -> str:
        """The address of a new, empty database."""
        self.execute(f'create database "{name}"')
        return self.url.removesuffix("postgres") + name

    def kill(self) -> None:
        super().kill()
        # A power cut would empty the shared memory too. Its id is in line 7 of the lock file; 0 is IPC_RMID.
        lock = self.data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, IndexError):
            shared_memory = int(lock.read_text().splitlines()[6].split()[1])
            lock.unlink()
            ctypes.CDLL(None).shmctl(shared_memory, 0, None)


def postgres_binaries() -> Path:
    """The folder of initdb and postgres: POSTGRES_BIN, else the one on the PATH, else the newest one."""
    if chosen := os.environ.get("POSTGRES_BIN"):
        if (Path(chosen) / "initdb").exists() and (Path(chosen) / "postgres").exists():
            return Path(chosen).resolve()
        raise RuntimeError(f"POSTGRES_BIN={chosen}: expected a folder with the programs initdb and postgres")
    found = [Path(name).resolve().parent for name in [shutil.which("initdb")] if name]
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql*/bin",
                    "usr/local/opt/postgresql*/bin", "Applications/Postgres.app/Contents/Versions/*/bin"):
        found += sorted(Path("/").glob(pattern), reverse=True,
                        key=lambda folder: [int(number) for number in re.findall(r"\d+", str(folder))])
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise Missing("PostgreSQL is not installed")


class PgBouncer(Server):
    """In transaction mode, with its own defaults, before a PostgreSQL."""

    stop_signal = signal.SIGTERM

    def __init__(self, postgres):
        program = pgbouncer_program()
        super().__init__()
        self.environment = {"PATH": os.environ["PATH"]}
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n")
        # auth_type any knows no user, so the database's line names it.
        settings.write_text(
            settings.read_text().replace(f"port={postgres.port}", f"port={postgres.port} user=postgres")
        )
        if os.getuid() == 0:  # PgBouncer refuses to run as root
            user = pwd.getpwnam("nobody")
            self.account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.command = [program, str(settings)]

    def url_of(self, database: str) -> str:
        """The address of a database of that PostgreSQL, through this pooler."""
        return re.sub(r"@127\.0\.0\.1:\d+/", f"@127.0.0.1:{self.port}/", database)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False


def pgbouncer_program() -> str:
    for program in (shutil.which("pgbouncer"), "/usr/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"):
        if program and Path(program).exists():
            return program
    raise Missing("PgBouncer is not installed")


class RabbitMQ(Server):
    def __init__(self):
        program = rabbitmq_program()
        super().__init__()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}"
        # In Erlang's own form, which starts half a second sooner than rabbitmq.conf. The limits are such that
        # no alarm stops the publishers on a small machine.
        (self.folder / "rabbitmq.config").write_text(
            f'[{{rabbit, [{{tcp_listeners, [{{"127.0.0.1", {self.port}}}]}}, {{disk_free_limit, 1000000}},'
            ' {vm_memory_high_watermark, {absolute, 1000000000}}]}].')
        (self.folder / "enabled_plugins").write_text("[].")
        none = str(self.folder / "none")
        erlang = [str(path) for homebrew in (Path("/opt/homebrew"), Path("/usr/local"))
                  for path in homebrew.glob("opt/erlang*/bin")]
        self.environment = {
            "PATH": os.pathsep.join([os.environ["PATH"], "/opt/homebrew/bin", "/usr/local/bin", *erlang]),
            "HOME": str(self.folder),  # for Erlang's cookie
            "LANG": "C.UTF-8",
            # The start script then becomes the server instead of waiting for it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": "tmtest@localhost",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            # What would be read from /etc/rabbitmq.
            "RABBITMQ_CONF_ENV_FILE": none,
            "RABBITMQ_CONFIG_FILES": none,
            "RABBITMQ_ADVANCED_CONFIG_FILE": none,
            # One node needs no other: it has a name, but listens for no node and is registered nowhere. That
            # saves a second at each start, and epmd, a daemon that would outlive us. Port 1 is nobody's.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-sname tmtest@localhost -eval {self.evaluating()}",
            # With one scheduler its threads need not wake each other.
            "ERL_FLAGS": "-start_epmd false -dist_listen false -erl_epmd_port 1 +S 1:1",
            "ERL_EPMD_PORT": "1",
        }
        self.environment |= self.shorter_paths(program)
        # macOS allows 256 open files, too few; some containers a billion, which Erlang closes one by one.
        self.command = ["sh", "-c", 'ulimit -n 4096; exec "$0"', program]

    def shorter_paths(self, program: str) -> dict[str, str]:
        """Make a folder with links to all compiled modules; return the variables that name it.

        Otherwise Erlang looks for each of 900 modules in the folders of 60 plugins, one after the other, and
        that is most of the work of a start.
        """
        plugins = Path(program).resolve().parent.parent / "plugins"
        erl = shutil.which("erl", path=self.environment["PATH"])
        found = sorted(plugins.glob("rabbit-*"))
        if not (found and erl):
            return {}
        modules, server = self.folder / "modules", self.folder / "plugins"
        modules.mkdir()
        libraries = [*plugins.glob("*/ebin"), *(Path(erl).resolve().parent.parent / "lib").glob("*/ebin")]
        for library in libraries:
            # The modules of these two are protected by where they are.
            if not library.parent.name.startswith(("kernel-", "stdlib-")):
                for module in library.glob("*.beam"):
                    with contextlib.suppress(FileExistsError):
                        (modules / module.name).symlink_to(module)
        # The server itself is looked for among the plugins, and no other is enabled.
        server.mkdir()
        (server / found[-1].name).symlink_to(found[-1])
        return {"RABBITMQ_SERVER_CODE_PATH": str(modules), "RABBITMQ_PLUGINS_DIR": str(server)}

    def evaluating(self) -> str:
        """Return an Erlang expression without a space: a process that evaluates what evaluate() writes."""
        file = f'"{self.folder}/evaluate"'
        look = f"(case(file:script({file}))of({{error,enoent}})->ok;(_)->file:delete({file})end)"
        return f"(fun(F)->spawn(fun()->F(F)end)end)(fun(F)->timer:sleep(50),{look},F(F)end)."

    def evaluate(self, expression: str) -> None:
        """Let the server evaluate an Erlang expression; rabbitmqctl can't reach a node without a listener."""
        file = self.folder / "evaluate"
        written = self.folder / "written"
        written.write_text(expression + ".")
        written.rename(file)
        deadline = time.monotonic() + DEADLINE
        while file.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not evaluate {expression}")
            time.sleep(0.02)

    def answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as client,
        ):
            client.sendall(b"AMQP\0\0\x09\x01")
            return client.recv(1) == b"\x01"  # a method frame: the server's connection.start
        return False


def rabbitmq_program() -> str:
    """The server itself; what Debian and others put on the PATH first changes the user, so it comes last."""
    folders = ["usr/lib/rabbitmq/bin", "usr/lib/rabbitmq/lib/*/sbin", "opt/homebrew/sbin", "usr/local/sbin"]
    found = [str(path) for folder in folders for path in Path("/").glob(f"{folder}/rabbitmq-server")]
    for program in [*found, shutil.which("rabbitmq-server")]:
        if program:
            return program
    raise Missing("RabbitMQ is not installed")


def install() -> None:
    """Installs what is missing, on Debian and Ubuntu as root; raises Missing elsewhere."""
    with contextlib.suppress(Missing):
        postgres_binaries()
        pgbouncer_program()
        rabbitmq_program()
        return
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise Missing("PostgreSQL, PgBouncer or RabbitMQ is not installed")
    print("PostgreSQL, PgBouncer or RabbitMQ is not installed; "
          "installing: apt-get install postgresql pgbouncer rabbitmq-server", flush=True)
    # What Debian installs it also starts, unless this program says no (101).
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for arguments in (
            "update",
            "install -y --no-install-recommends --no-upgrade postgresql pgbouncer rabbitmq-server",
        ):
            done = subprocess.run(
                ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", *arguments.split()],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode:
                raise Missing(
                    f"apt-get {arguments.split()[0]} failed ({' '.join(done.stdout.split())[-300:]})"
                )
    finally:
        if ours:
            policy.unlink()


# `make test` begins with this, so that what is installed, or missing, is said in the open
if __name__ == "__main__":
    try:
        install()
    except Missing as missing:
        print(missing)
