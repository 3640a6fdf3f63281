"""Servers and programs for the long forms: our own, as in the tests, and ended with them."""

import contextlib
import os
import re
import tempfile
import time
from pathlib import Path

from helpers import Program


class Wrong(Exception):
    """A promise was broken; the message says which."""


def require(condition, what):
    if not condition:
        raise Wrong(what)


class Own(contextlib.ExitStack):
    """A temporary folder, and what was started in it; all of it ends with the block."""

    def __init__(self):
        super().__init__()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.programs = []

    def server(self, kind):
        """A running server, Postgres or RabbitMQ of servers.py."""
        server = kind()
        self.callback(server.close)
        server.start()
        return server

    def start(self, script, **environ):
        """A running program of the service; environ are its settings."""
        environ = {"PORT": "0", **{name: str(value) for name, value in environ.items()}}
        program = Program(script, self.folder, environ)
        self.callback(program.end)
        self.programs.append(program)
        return program

    def new_database(self, postgres):
        return lambda: postgres.create_database(f"own_{time.monotonic_ns()}")


def resources(pid):
    """(MB of memory, threads, open files) of a process; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    memory, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1])
                       for name in ("VmRSS", "Threads"))
    return memory // 1024, threads, files


def check_log(program, begin=0):
    """Raise Wrong for an error, a traceback or a lost connection in the log; return how far it was read."""
    require(program.process.poll() is None, "a program has ended")
    with program.log_file.open("rb") as log:
        log.seek(begin)
        text = log.read()
    text = text[:text.rfind(b"\n") + 1]
    bad = rb"^\S+ (?:ERROR|CRITICAL) .*|^.*Traceback.*|^\S+ WARNING \S+ lost (?!task=).*"
    wrong = re.search(bad, text, re.MULTILINE)
    if wrong:
        raise Wrong("the log says: " + wrong[0].decode(errors="replace")[:500])
    return begin + len(text)
