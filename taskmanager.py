"""Task Manager: runs tasks that it gets over HTTP or RabbitMQ, and keeps their state in one table.

            claim                     complete
      New ─────────▶ In Progress ──────────────────▶ Completed
       ▲                  │
       │  retry, reclaim, │
       │  release         │ fail (no attempts left), cancel
       ├──────────────────┤
       │                  ▼
       └─────────────  Failed ◀── cancel (of a New task)
          retry by hand

A task is one row of the table `tasks`, and nothing else holds its state. Each arrow is one guarded SQL
statement, which changes nothing when the task is no longer in the state where the arrow begins. A task that
repeats goes round: when it has ended and its next time has come, it is New again.

    python taskmanager.py           the HTTP API, on SQLite with a worker inside; --help lists the settings
    python worker.py                a worker that also takes tasks from RabbitMQ

The file reads from top to bottom, and nothing refers to what stands below it:

    Process                 a log that nothing silences, threads that do not end unnoticed
    Configuration           environment variables, and which of them are secret
    Errors                  what callers see, and what happens while a server is away
    Values                  what JSON, numbers and times may be
    Schedules               when a repeating task runs next
    New tasks               the validation that HTTP and RabbitMQ share
    Rows                    a task as it is read, and as clients see it
    SQL                     one statement per transition, in the order of a task's life
    Metrics                 counts of what this process has done
    Store                   the statements as methods, on PostgreSQL and on SQLite
    Handlers                what runs a task: a function, a program, or an address
    Worker                  claims tasks, runs handlers, extends leases, writes outcomes
    Notifications           tell other processes that there are new tasks
    HTTP API                the routes of openapi.yaml
    HTTP server             waitress, with limits so that no client can stop the others
    Programs                logging, signals, the command line, main()

Each section begins with a line of dashes and its name in a comment (`# SQL: `).

Importing this module connects to nothing and starts nothing.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Signals wait until set_up() handles them: an import may swallow the exception of Ctrl-C, and the kernel
    # drops what process 1 of a container does not handle.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    # A handler that imports taskmanager must find the module that runs it, not a second one.
    import taskmanager

    taskmanager.run(taskmanager.main)
    raise SystemExit

import argparse
import atexit
import base64
import bisect
import calendar
import codecs
import collections
import contextlib
import dataclasses
import enum
import errno
import functools
import gzip
import hashlib
import hmac
import http.client
import inspect
import io
import ipaddress
import itertools
import json
import logging
import logging.handlers
import math
import os
import pkgutil
import queue
import random
import re
import select
import selectors
import shlex
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import weakref
import zlib
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import MAXYEAR, datetime, timedelta, timezone, tzinfo
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NewType, NoReturn, get_args, get_origin, get_type_hints
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlencode, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import bottle

try:        # only the HTTP server needs it
    from waitress import wasyncore
    from waitress.buffers import OverflowableBuffer
    from waitress.channel import HTTPChannel
    from waitress.server import TcpWSGIServer
    from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
except ImportError:
    ErrorTask = HTTPChannel = TcpWSGIServer = ThreadedTaskDispatcher = WSGITask = object

__version__ = "0.1.0"

# The names that handlers and embedding applications may use; the others may change at any time.
__all__ = [
    "Task", "StopReason", "Failed", "Retry",
    "Config", "Store", "Row", "Worker", "make_notifier", "open_store", "create_app", "own_names",
    "NewTask", "new_task", "new_tasks", "parse_task",
    "BadSetting", "TaskError", "Invalid", "InputError", "KeyReused", "TooLarge", "NotFound", "TaskNotFound",
    "NotInState", "Changed", "LeaseLost", "Unavailable", "Locked",
]

HERE = Path(__file__).resolve().parent
STATUSES = ("New", "In Progress", "Completed", "Failed")

# What a client may send and get
MAX_BODY = 1024 * 1024              # bytes of the body of a request, of a message, and of a result
MAX_TASKS = 10_000                  # tasks in one request or message
MAX_DEPTH = 100                     # levels of nesting in a JSON value
MAX_ID = 2**63 - 1                  # the largest bigint; PostgreSQL would scan the table for a larger number
MAX_DELAY = 315_360_000             # seconds until a delayed task is due: ten years
MAX_TIMEOUT = 31_536_000            # seconds of an attempt: one year
MAX_WAIT = 60                       # seconds that a request may wait (Prefer: wait)
MAX_ERROR = 2000                    # characters of a task's error; the beginning of a longer one is cut off
MAX_HISTORY = 8000                  # characters that are kept of the attempts before the last one
MAX_PAST_ERROR = 500                # characters of the error of each of these attempts
MAX_ERRORS = 20                     # errors of one input that are listed
MAX_PAGE = 1000                     # tasks in one answer
MAX_PAGE_BYTES = 1_000_000          # bytes of payloads and results, after which an answer ends
MAX_QUERY = 200                     # characters of a text to look for
SEARCH_ROWS = 10_000                # tasks that one page of a search looks at
SEARCH_BYTES = 10_000_000           # bytes of payloads and results of these, after which the page ends
COUNTED_ROWS = 500_000              # finished tasks that are counted for a chart
MAX_FIGURES = 100                   # figures in memory; above, those that are out of date are dropped

# Work
MAX_SLOTS = 1000                    # tasks that a worker runs at the same time
MAX_BACKOFF = 3600                  # seconds between two attempts
STOP_SECONDS = 5                    # seconds between telling a handler to stop and forcing it
RETURN_SECONDS = 10                 # seconds after an outage before other workers' tasks are taken over
HTTP_SECONDS = 300                  # seconds of silence from an http(s) handler, for a task without a timeout
CLAIM_AHEAD_SECONDS = 0.1           # seconds that a claimed task may wait for a slot
CONNECT_SECONDS = 10                # seconds to connect to the database or to an http(s) handler
RELEASE_SECONDS = 10                # seconds between returning free memory to the system

# The database
BATCH_ROWS = 500                    # rows that one statement changes, where nothing else limits them
STATEMENT_SECONDS = 20              # seconds for one statement
LOCK_SECONDS = 1                    # seconds that a statement waits for a lock of another transaction
PLAN_SECONDS = 1                    # seconds after which a session plans its prepared statements anew
SLOW_CLAIM = 0.005                  # seconds that a claim from the front of the queue may take longer
COMPARE_SECONDS = 10                # seconds after which it is compared again
IDLE_SECONDS = 60                   # seconds after which an unused connection to the database is closed
RATE_SECONDS = 10                   # seconds over which the number of finished tasks per second is measured

# The HTTP server
MAX_CONNECTIONS = 1000 if hasattr(select, "poll") else 400  # clients at once; select() takes 512 sockets
CLIENT_SECONDS = 30                 # seconds for a client to send a request, to read an answer, or to be idle
CORE_SECONDS = 10                   # seconds after which the system may choose another core: see OneCore
CORE_CALLS = 100                    # turns of the server's thread before that, so that it is busy
MAX_HEADER_BYTES = 32 * 1024        # bytes of a request before its body
MAX_LINE = 8 * 1024                 # bytes of the first line of a request or a chunk, and of a trailer
MAX_HEADER_FIELDS = 100             # header fields of a request
MAX_DISCARDED = 16 * MAX_BODY       # bytes read of a body that is refused, so that its client sees the answer
MAX_IN_MEMORY = 64 * 1024           # bytes of a body or an answer in memory; a larger one is kept in a file
MAX_BUFFERED = 256 * 1024**2        # bytes of all bodies and answers; above, the slowest clients are cut off
BACKLOG = 4096                      # connections that wait to be accepted
MAX_OPEN_FILES = 10_000             # open files: for 1,000 connections, and 1,000 programs with their pipes


# ----------------------------------------------------------------------------
# Process: a log that nothing silences, an event that a signal sets, and threads that do not end unnoticed. In
# an application that embeds this module they behave as usual.

class Lines(list[str]):
    """Messages of one record, each a line of its own in the log."""

    def __str__(self):
        return "\n".join(self)


class Log(logging.Logger):
    """A logger that always reaches the program's outputs and never raises, whatever a handler has changed."""

    outputs: Sequence[logging.Handler] = ()     # of the program; from the level `threshold` on
    threshold = logging.NOTSET

    def lines(self, level: int, form: str, rows: Iterable[tuple]) -> None:
        """Log one line for each row of values, which are looked at only where somebody reads the level.

        In a program they are one record, which is formatted and written once: for a line of a batch that
        costs 0.8 µs instead of 12. An application gets a record for each.
        """
        if not self.isEnabledFor(level):
            return
        if not self.outputs:
            for row in rows:
                self.log(level, form, *row, stacklevel=2)
        elif lines := Lines(form % row for row in rows):
            self.handle(self.makeRecord(self.name, level, "", 0, lines, (), None))

    def isEnabledFor(self, level):
        return level >= self.threshold if self.outputs else super().isEnabledFor(level)

    def handle(self, record):
        with contextlib.suppress(Exception):
            for output in self.outputs:
                output.handle(record)
            record.written = bool(self.outputs)     # the root logger has the same outputs
            super().handle(record)                  # to whatever else was set up, by others


class StopEvent:
    """An event that a signal handler may set, and only the main thread waits for.

    The set() of threading.Event waits for a lock, which the code that the signal interrupts may hold.
    """

    def __init__(self):
        self._is_set = False
        self._wait = threading.Lock()       # taken until the event is set
        self._wait.acquire()

    def set(self) -> None:
        self._is_set = True
        with contextlib.suppress(RuntimeError):     # it was set before
            self._wait.release()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float) -> bool:
        """Wait up to so many seconds; return whether it is set.

        A signal that comes just before the wait does not end it, and on Windows none does: there its handler
        is called after the wait. So wait for short times.
        """
        return self._is_set or self._wait.acquire(timeout=timeout)


def get_log(name: str) -> Log:
    """Return the logger of a module of this program."""
    logger = logging.getLogger(name)
    logger.__class__ = Log      # whatever class of loggers an application has set
    return logger   # type: ignore[return-value]


log = get_log("taskmanager")
stopping = StopEvent()              # this program was told to stop, by a signal


class EssentialThread(threading.Thread):
    """A thread that the program can't do without: an exception in it ends the program, with status 1."""

    running: set[EssentialThread] = set()       # a dead one in here was ended by an exception

    def __init__(self, name: str, target: Callable, *args: Any):
        super().__init__(target=target, name=name, args=args, daemon=True)

    def run(self) -> None:
        self.running.add(self)
        try:
            super().run()
            self.running.discard(self)
        except BaseException:
            log.critical("ended unexpectedly thread=%s", self.name, exc_info=True)


# ----------------------------------------------------------------------------
# Configuration: environment variables, parsed once. An empty variable counts as not set.

TOKENS = ("API_TOKEN", "READ_TOKEN")
PERCENT_ENCODING = ("user and password percent-encoded "
                    "(@ is %40, / is %2F, % is %25, # is %23, ? is %3F, a space is %20)")

_secrets: set[str] = set()      # the tokens and passwords in this process's settings
_ADDRESS = re.compile(r"://\S*")
_PASSWORD = re.compile(r"(?i)(passw(?:or)?d ?= ?)(?:'[^']*'|\S+)")


def register_secret(name: str, value: str | None) -> None:
    """Have redact() hide this setting where it is a token, and the passwords in it where it is an address."""
    if not value:
        return
    scheme, _, rest = value.partition("://")
    if scheme.startswith("postgres"):
        authority = rest.partition("/")[0]
    else:
        authority = re.split("[/?#]", rest)[0]
    login, _, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")

    if name in TOKENS:
        found = {value}
    else:
        found = {password, *re.findall(r"(?i)[?&]\w*(?:pass|pwd|token|secret|key|sig|code)\w*=([^&]*)", rest)}
    public = f"{hosts} {rest[len(authority):].partition('?')[0]} password"
    if scheme in ("http", "https"):
        found.add(user)         # https://TOKEN@host
    else:
        public += f" {user}"

    found |= {unquote(secret) for secret in found}
    for secret in list(found):      # and the pieces into which a library may split it
        found.update(re.split("[@/?#:&=+% ]", secret))
    # Not a very short piece, nor one that is also a public name: to hide these would only spoil texts.
    _secrets.update(secret for secret in found if len(secret) > 5 and secret not in public)


def _hide_login(address: re.Match) -> str:
    """Return an address, from its :// on, without login and query."""
    login, at, rest = address[0].rpartition("@")
    if "?" in login:            # part of the password, or an @ in the query: it is impossible to tell
        return "://***"
    if login.endswith("://USER:PASSWORD"):
        return address[0]
    rest, question, _ = rest.partition("?")
    return ("://***@" if at else "") + rest + ("?***" if question else "")


def redact(text: str) -> str:
    """Return the text without the logins and queries of addresses, and without the secrets of our settings.

    Each pattern consumes what it has begun to read, up to the end of the word, so that the time that
    this takes is proportional to the length of any text.
    """
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _ADDRESS.sub(_hide_login, text)
    return _PASSWORD.sub(r"\1***", text)


def truncate(text: str, most: int = MAX_ERROR, beginning: bool = False) -> str:
    """Return the last `most` characters of a text (or the first ones), redacted.

    NUL and lone surrogates are replaced, so that both databases take the text.
    """
    window = text[:2 * most] if beginning else text[-2 * most:]
    window = window.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    shown = redact(window)
    if shown != window and len(text) > len(window):     # the cut may have been inside a password
        words = shown.rsplit(maxsplit=1)[:-1] if beginning else shown.split(maxsplit=1)[1:]
        shown = words[0] if words else "***"
    return shown[:most] if beginning else shown[-most:]


def show_setting(name: str, value: Any) -> str:
    """Return the value of a setting without its secrets.

    Of an address it keeps the scheme, hosts, ports and the name of the database; of a command, the program.
    """
    text = str(value)
    if name in TOKENS:
        return "***"
    if text.startswith("sqlite:///"):
        return text
    if name != "HANDLER" and not name.endswith("_URL"):
        return redact(text)
    if re.fullmatch(r"[\w./-]+", text):
        return text
    if command := re.match(r"exec:[\w./-]+(\{kind\})?(?!\S)", text):
        return command[0] + " ***" * (command[0] != text)
    if name == "HANDLER" and re.fullmatch(r"[\w.]+:([\w.]+|\{kind\})", text):
        return text

    parts = re.fullmatch(
        r"(\w+://)([^?]*@)?((?:[\w.%,-]|\[[\w:.%]*\]|:[0-9]{1,5}(?![^,/?]))*)(/[^?#@\s]*)?(\?[^@]*)?", text)
    if not parts:
        return "***"
    scheme, login, hosts, path, query = parts.groups(default="")
    if name == "HANDLER" and len(path) > 1:
        path = "/***"           # it may be the secret of a webhook
    return scheme + ("***@" if login else "") + hosts + path + ("?***" if query else "")


class BadSetting(ValueError):
    """An environment variable can't be used; the message names it, its value and what is expected."""

    def __init__(self, name: str, value: Any, why: str):
        super().__init__(f"{name}={show_setting(name, value)!r} can't be used: {redact(why)}")


class Format(NamedTuple):
    """The form of a setting's text."""

    parse: Callable[[str], Any]     # returns the value; raises ValueError
    expected: str                   # the form in words, for the message of BadSetting


def _number(low: float, high: float, kind: type = float) -> Format:
    def parse(text: str) -> Any:
        if not low <= (value := kind(text)) <= high:
            raise ValueError
        return value
    return Format(parse, f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}")


def _match(pattern: str, expected: str, convert: Callable[[str], Any] = str) -> Format:
    def parse(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return convert(text)
    return Format(parse, expected)


def _comma_separated(parse: Callable[[str], str], expected: str) -> Format:
    """Accept values separated by commas; blanks around them are removed."""
    return Format(lambda text: ",".join(parse(each.strip().lower()) for each in text.split(",")), expected)


def _host(text: str) -> str:
    """Return a host name, a domain (.example.com), an address as in Host, or `*`. Raise ValueError."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(text.strip("[]"))
        return f"[{address}]" if address.version == 6 else str(address)
    if not re.fullmatch(r"\*|\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", text) or re.search(r"(^|\.)[0-9]+$", text):
        raise ValueError
    return text


def _origin(text: str) -> str:
    """Return an origin as browsers write it: without path and default port. Raise ValueError."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|\w[\w.-]*)(:[1-9][0-9]*)?", text)
    if not match or urlsplit(text).port == 0:       # `port` raises ValueError above 65535
        raise ValueError
    scheme, host, port = match.groups(default="")
    return f"{scheme}://{_host(host)}" + port * (scheme + port not in ("http:80", "https:443"))


def _public_url(text: str) -> str:
    """Return an address with a slash at its end. Raise ValueError."""
    match = re.fullmatch(r"(?i)(https?://[^/]+)((/[a-z0-9._~%!$&'()*+,;=:@-]+)*)/?", text)
    if not match:
        raise ValueError
    return _origin(match[1].lower()) + match[2] + "/"


KIND = re.compile("[a-z0-9][a-z0-9_-]{0,62}")       # the name of a kind of task


def parse_kinds(text: str | None) -> dict[str, int | None]:
    """Return the kinds that KINDS names, each with its own number of slots or None. Raise ValueError."""
    kinds: dict[str, int | None] = {}
    for item in text.split(",") if text else ():
        kind, colon, slots = item.strip().partition(":")
        if not KIND.fullmatch(kind) or kind in kinds or colon and not re.fullmatch("[1-9][0-9]{0,3}", slots):
            raise ValueError
        kinds[kind] = int(slots) if colon else None
    return kinds


def show_kinds(kinds: Mapping[str, int | None]) -> str:
    """Return kinds and their own slots in the form of KINDS."""
    return ",".join(f"{kind}:{slots}" if slots else kind for kind, slots in kinds.items())


def _queue_name(text: str) -> str:
    """Check a queue's name: with any suffix of ours it must fit into AMQP's 255 bytes. Raise ValueError."""
    if len(text.encode()) > 200:
        raise ValueError
    return text


def _setting(default: Any, form: Format, meaning: str) -> Any:
    """Declare a setting. `meaning` is shown by --help and in README.md."""
    return dataclasses.field(default=default, metadata={"format": form, "meaning": meaning})


@dataclasses.dataclass(frozen=True, repr=False)     # a repr would show its passwords
class Config:
    """All settings. The environment variable of each is its name in capitals."""

    database_url: str = _setting(
        "sqlite:///tasks.db",
        _match(r"sqlite:///(?!:memory:)[^?]+|postgres(ql)?://.+",
               "sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        "the database: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`")
    rabbitmq_url: str | None = _setting(
        None, _match(r"amqps?://.+", "amqp://USER:PASSWORD@HOST:PORT/VHOST"),
        "RabbitMQ: `amqp://USER:PASSWORD@HOST:PORT/VHOST`; not set: RabbitMQ is not used")
    host: str = _setting("127.0.0.1", _match(r".*", "an address"), "address that the API listens on")
    port: int = _setting(5000, _number(0, 65535, int), "port that the API listens on; 0: any free port")
    threads: int = _setting(16, _number(1, 1000, int), "HTTP requests that are processed at the same time")
    waiters: int = _setting(
        32, _number(0, 1000, int),
        "requests that may wait at the same time (`Prefer: wait`); further ones are answered at once")
    processes: int = _setting(
        1, _number(1, 100, int),
        "API processes that serve the port, each with its own `THREADS` and `WAITERS`; more than 1 only on "
        "PostgreSQL, without a worker inside")
    public_url: str | None = _setting(
        None,
        Format(_public_url, "https://HOST/PATH/ or http://HOST/PATH/, without user, query and fragment"),
        "public address of the service behind a proxy, which strips the path: `https://HOST/PATH/`")
    allowed_hosts: str | None = _setting(
        None,
        _comma_separated(_host, "names such as tasks.example.com, .example.com or *, separated by commas"),
        "when there is no token: host names under which the service answers, separated by commas; "
        "`.example.com` includes all subdomains, `*` is any name; "
        "not set: on a loopback address its own names, else IP addresses and names without a dot")
    allowed_origins: str | None = _setting(
        None, _comma_separated(_origin, "origins separated by commas, such as https://app.example.com"),
        "other origins whose pages may use the API (CORS), separated by commas, "
        "such as `https://app.example.com`")
    api_token: str | None = _setting(
        None, _match(r"[!-~]+", "printable ASCII without spaces"),
        "token that requests must send (`Authorization: Bearer TOKEN`), except for `/livez`, `/readyz` "
        "and static files; not set: none is needed")
    read_token: str | None = _setting(
        None, _match(r"[!-~]+", "printable ASCII without spaces"),
        "a second token beside `API_TOKEN`, which only reads: it is good for GET and HEAD; "
        "not set: there is none")
    metrics_port: int | None = _setting(
        None, _number(0, 65535, int),
        "port on which `worker.py` serves `/metrics`, `/livez` and `/readyz`; not set: none")
    worker: str = _setting(
        "auto", _match(r"on|off|auto", "on, off or auto"),
        "run a worker inside the API process: `on`, `off`, or `auto` (on for SQLite, off for PostgreSQL)")
    handler: str | None = _setting(
        None, _match(r".*", "package.module:function, exec:program args… or https://…"),
        "what runs a task: `package.module:function`, `exec:program args…` or `https://…`; "
        "`{kind}` in place of the function or program, or in the path, is the task's kind; "
        "not set: tasks are completed at once")
    kinds: str | None = _setting(
        None,
        Format(lambda text: show_kinds(parse_kinds(text)),      # without blanks
               "names of kinds, each one once and with :SLOTS where it has slots of its own, "
               "separated by commas, such as default,mail:2"),
        "kinds of tasks that a worker takes, separated by commas, with their own slots where given: "
        "`default,mail:2`; not set: those that `{kind}` of `HANDLER` finds in its module or folder, "
        "else `default`")
    concurrency: int = _setting(
        8, _number(0, MAX_SLOTS, int),
        "tasks that a worker runs at the same time, besides kinds with their own slots; "
        "0: all tasks are left to workers that claim over HTTP")
    max_attempts: int = _setting(3, _number(1, 1000, int), "default number of attempts per task")
    retry_seconds: float = _setting(
        1.0, _number(0, 3600),
        "seconds before the second attempt; doubled for each further attempt, up to an hour")
    task_timeout: float | None = _setting(
        None, _number(0.001, MAX_TIMEOUT), "default timeout of an attempt in seconds; not set: no limit")
    lease_seconds: float = _setting(
        30.0, _number(1, 86400), "seconds without a heartbeat after which another worker may take a task")
    poll_seconds: float = _setting(
        1.0, _number(0.01, 3600), "seconds after which a worker looks for tasks, even without a notification")
    grace_seconds: float = _setting(
        10.0, _number(0, 86400), "seconds that running handlers have to finish when a worker is stopped")
    retention_days: float | None = _setting(
        None, _number(0, 36500), "days after which finished tasks are deleted; not set: never")
    failed_retention_days: float | None = _setting(
        None, _number(0, 36500), "the same for tasks that have failed; not set: as `RETENTION_DAYS`")
    task_queue: str = _setting(
        "task_queue",
        _match(r"(?!amq\.)\S+", "up to 200 bytes without spaces, not beginning with amq.", _queue_name),
        "RabbitMQ queue from which tasks are taken")
    log_level: str = _setting(
        "INFO",
        _match(r"(?i)debug|info|warning|error|critical", "DEBUG, INFO, WARNING, ERROR or CRITICAL",
               str.upper),
        "lowest level that is logged: `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`")
    log_file: str | None = _setting(
        None, _match(r".+", "a file", os.path.expandvars),
        "file to log to as well, rotated at 10 MB; one per program, whatever `PROCESSES` is "
        "(variables such as `$HOSTNAME` are expanded)")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """Read all settings from environment variables. Raise BadSetting for the first that can't be used."""
        values = {}
        for field in dataclasses.fields(cls):
            name = field.name.upper()
            text = environ.get(name, "").strip()
            if not text:
                continue
            try:
                values[field.name] = field.metadata["format"].parse(text)
            except ValueError:
                raise BadSetting(name, text, f"expected {field.metadata['format'].expected}") from None
        return cls(**values)

    def __post_init__(self):
        for name in (*TOKENS, "DATABASE_URL", "RABBITMQ_URL", "HANDLER"):
            register_secret(name, getattr(self, name.lower()))
        if self.read_token and not self.api_token:
            raise BadSetting("READ_TOKEN", self.read_token,
                             "expected API_TOKEN, too: without it no request needs a token, to write neither")
        if self.read_token and self.read_token == self.api_token:
            raise BadSetting("READ_TOKEN", self.read_token,
                             "expected another token than API_TOKEN, which is also good for writing")
        if self.processes > 1:
            why = ("on this system" if not hasattr(os, "fork") else
                   "on SQLite, which has one writer at a time" if self.database_url.startswith("sqlite:") else
                   "with WORKER=on" if self.worker == "on" else None)
            if why:
                raise BadSetting("PROCESSES", self.processes, f"expected 1 {why}")

    @classmethod
    def table(cls) -> Iterable[tuple[str, str, str]]:
        """Yield name, default and meaning of each environment variable."""
        for field in dataclasses.fields(cls):
            default = f"{field.default:g}" if isinstance(field.default, float) else field.default
            yield field.name.upper(), "" if default is None else str(default), field.metadata["meaning"]


# ----------------------------------------------------------------------------
# Errors: what a caller of the store or of the API may see, each with the HTTP status that it becomes.
# An outage is no error: the part that has lost its server logs it once, and retries for ever with backoff.


class TaskError(Exception):
    """The base of the errors below. `status` is the HTTP status, `code` identifies the error for programs."""

    status = 500
    code = "internal-error"

    def __init__(self, detail: str = "", **members: Any):
        """`members`: further values for programs, by name."""
        super().__init__(detail)
        self.members = members


class InputError(NamedTuple):
    """One error in an input."""

    where: str      # a JSON pointer into the body ("" is all of it), "?" and a query parameter, or a header
    code: str       # identifies the error for programs
    detail: str     # what is wrong, or what is expected
    limits: dict[str, Any] = {}     # `minimum` and `maximum`, where there are any


class Invalid(TaskError):
    """The input is invalid. `errors` lists everything that is wrong with it."""

    status, code = 400, "invalid-input"

    def __init__(self, *errors: InputError):
        texts = (f"{e.where.lstrip('?')}: {e.detail}" if e.where else e.detail for e in errors)
        super().__init__("; ".join(texts))
        self.errors = errors


def invalid(code: str, detail: str, where: str = "", **limits: Any) -> Invalid:
    """Make an Invalid with one error."""
    return Invalid(InputError(where, code, detail, limits))


class KeyReused(Invalid):
    """The idempotency key belongs to a task that was created from another request."""

    status, code = 422, "key-reused"

    def __init__(self):
        super().__init__(InputError("Idempotency-Key", self.code, "was used before, with another body"))


class Unauthorized(TaskError):
    """The token is missing or wrong."""
    status, code = 401, "unauthorized"


class ReadOnlyToken(TaskError):
    """The token is READ_TOKEN, which is good for GET and HEAD only."""
    status, code = 403, "read-only-token"


class HostNotAllowed(TaskError):
    """The request names a host that is not this service's."""
    status, code = 403, "host-not-allowed"


class CrossSite(TaskError):
    """A browser sent the request for a page of another site."""
    status, code = 403, "cross-site-request"


class NotFound(TaskError):
    """There is nothing at this address."""
    status, code = 404, "not-found"


class TaskNotFound(NotFound):
    """There is no task with this id."""
    code = "task-not-found"


class NotInState(TaskError):
    """The task has a status that does not allow this; the member `task_status` tells which."""
    status, code = 409, "not-in-state"


class LeaseLost(TaskError):
    """The attempt is over: it has ended, or another one has begun."""
    status, code = 409, "lease-lost"


class Changed(TaskError):
    """The task is no longer as the client has seen it (If-Match)."""
    status, code = 412, "precondition-failed"


class TooLarge(TaskError):
    """The body has more than MAX_BODY bytes."""
    status, code = 413, "too-large"

    def __init__(self, size: int):
        super().__init__(f"{size} bytes are too many: expected at most {MAX_BODY}", maximum=MAX_BODY)


class NotJson(TaskError):
    """The body is not declared as JSON."""
    status, code = 415, "unsupported-media-type"


class Unavailable(TaskError):
    """The database can't be reached. Whether a statement that was under way took effect is not known."""
    status, code = 503, "unavailable"


class Locked(Unavailable):
    """Another transaction keeps the task, or the table, locked."""
    code = "locked"


def backoff(tries: int, first: float, longest: float) -> float:
    """Return the seconds to wait after `tries` failures: `first`, doubled for each further one, with jitter.

    They are at most `longest`. Half of them is random, so that clients that failed together retry apart.
    """
    return min(longest, first * 2 ** min(tries - 1, 40)) * random.uniform(0.5, 1)


def describe(error: BaseException) -> str:
    """Describe an exception in one line, without secrets."""
    try:
        text = " ".join(truncate(str(error) or ", ".join(map(repr, error.args))).split())
    except BaseException:       # raised by the exception's own methods
        text = "it can't be shown"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Outage:
    """Logs once that something can't be reached, once for each new cause, and once that it is back."""

    def __init__(self, what: str):
        self.what = what
        self.since: float | None = None         # time.monotonic() of the loss; None while there is none
        self.was_reached = False
        self.logged_causes: set[str] = set()    # of this outage

    def lost(self, error: BaseException) -> None:
        """Log the loss, or a cause of it that was not yet logged."""
        cause = describe(error)
        if self.since is not None and (cause in self.logged_causes or len(self.logged_causes) >= MAX_ERRORS):
            return
        state = "lost" if self.was_reached else "waiting for"
        if self.since is not None:
            state = "still without" if self.was_reached else "still waiting for"
        self.since = self.since or time.monotonic()
        self.logged_causes.add(cause)
        log.warning("%s %s error=%r: trying again until it answers", state, self.what, cause)

    def back(self) -> None:
        """Log that it is reached, if it was lost."""
        since, self.since = self.since, None
        self.logged_causes.clear()
        if since is not None:
            state = "regained" if self.was_reached else "reached"
            log.warning("%s %s after=%.1fs", state, self.what, time.monotonic() - since)
        self.was_reached = True


# ----------------------------------------------------------------------------
# Values: what a task may hold. HTTP and RabbitMQ check their input with these functions, and with nothing
# else.

Json = NewType("Json", str)     # JSON text


def _too_deep() -> Invalid:
    return invalid("too-deep", f"expected at most {MAX_DEPTH} levels of nesting", maximum=MAX_DEPTH)


def parse_json(data: bytes) -> Any:
    """Parse strict JSON: UTF-8 without a byte order mark, NaN, Infinity and duplicate keys. Raise Invalid."""
    def refuse(constant: str):
        raise invalid("not-json", f"not JSON: {constant}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(fields := dict(pairs)) < len(pairs):
            raise invalid("duplicate-key", "expected an object without duplicate keys")
        return fields

    if data.startswith(codecs.BOM_UTF8):
        raise invalid("not-json", "not JSON: it begins with a byte order mark; expected UTF-8 without one")
    try:
        return json.loads(data.decode(), parse_constant=refuse, object_pairs_hook=unique)
    except UnicodeDecodeError as e:
        raise invalid("not-utf8", f"not UTF-8: {e.reason} at byte {e.start}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as e:
        raise invalid("not-json", f"not JSON: {str(e).split(';')[0]}") from None


def is_json(content_type: str) -> bool:
    """Tell whether a Content-Type means JSON: `application/json`, or one that ends in `+json` (RFC 6839)."""
    return re.match(r"application/([\w.+-]+\+)?json\s*(;|$)", content_type, re.IGNORECASE) is not None


def encode_json(value: Any) -> str:
    """Encode a value as JSON text that both databases take.

    Raise Invalid when JSON can't express it, and for NUL, lone surrogates and deep nesting.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError:
        raise _too_deep() from None
    except UnicodeEncodeError:
        raise invalid("lone-surrogate", "expected text without lone surrogates") from None
    except (TypeError, ValueError) as e:
        raise invalid("not-json", f"can't be written as JSON: {e}") from None

    most = 2 * MAX_BODY         # a number may be longer here than in the body that it came in
    if len(text) > most:
        raise invalid("too-large", f"expected at most {most} characters when written out", maximum=most)
    plain = text.replace(r"\\", "")     # so that each remaining backslash escapes the character after it
    if r"\u0000" in plain:
        raise invalid("nul-character",
                      "expected text without the character NUL (\\u0000), which PostgreSQL can't store")
    if text.count("[") + text.count("{") > MAX_DEPTH:
        outside = plain.replace(r'\"', "").split('"')[::2]       # of strings
        depths = itertools.accumulate((c in "[{") - (c in "]}") for c in "".join(outside))
        if max(depths, default=0) > MAX_DEPTH:
            raise _too_deep()
    return text


Check = Callable[[Any], Any]        # returns the checked value, or raises Invalid


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise invalid("wrong-type", "expected true or false")
    return value


def _error_text(value: Any) -> str:
    expected = "expected a string that is not empty"
    if not isinstance(value, str):
        raise invalid("wrong-type", expected)
    if not value:
        raise invalid("out-of-range", expected, minimum=1)
    return truncate(value)


def _new_status(value: Any) -> None:
    if value != "New":
        raise invalid("unknown-value", 'expected "New": every task begins there')


def _not_with_run_at(value: Any) -> NoReturn:
    raise invalid("conflicting-fields", "expected run_at or delay, not both")


def _not_without_cron(value: Any) -> NoReturn:
    raise invalid("conflicting-fields", "expected a cron expression as repeat: nothing else has a time zone")


def _between(low: float, high: float, whole: bool = False, what: str = "number of seconds") -> Check:
    expected = f"expected a {'whole number' if whole else what} from {low} to {high}"

    def check(value: Any) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not low <= value <= high:
            raise invalid("out-of-range", expected, minimum=low, maximum=high)
        if not is_number or (whole and value != int(value)):
            raise invalid("wrong-type", expected, minimum=low, maximum=high)
        return int(value) if whole else float(value)
    return check


TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:(\.[0-9]{1,6})[0-9]*)?"
    r"([Zz]|[+-][0-9]{2}:[0-5][0-9])?")


def _timestamp(value: Any) -> datetime:
    """Parse a time (RFC 3339, the zone may be left out); return it in UTC, without zone."""
    wrong = invalid("not-a-time", 'expected a time such as "2030-01-31T12:00:00Z" (without a zone it is UTC)')
    match = TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise wrong

    date, clock, fraction, zone = match.groups()
    if zone in (None, "Z", "z"):
        zone = "+00:00"
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{(fraction or '.0').ljust(7, '0')}{zone}")
        return moment.astimezone(timezone.utc).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise wrong from None


def _one(check: Check) -> Check:
    """Accept a query parameter that is given once."""
    def check_one(texts: list[str]) -> Any:
        if len(texts) > 1:
            raise invalid("repeated-parameter", "expected once")
        return check(texts[0])
    return check_one


def _each(check: Check) -> Check:
    """Accept a query parameter however often it is given; its value is a list without duplicates."""
    return lambda texts: list(dict.fromkeys(map(check, texts)))


def _choice(allowed: Sequence[str], expected: str) -> Check:
    def check(text: str) -> str:
        if text not in allowed:
            raise invalid("unknown-value", f"{text!r}: expected {expected}")
        return text
    return check


def _text_to_find(text: str) -> str:
    if not 0 < len(text) <= MAX_QUERY:
        raise invalid("out-of-range", f"expected 1 to {MAX_QUERY} characters", minimum=1, maximum=MAX_QUERY)
    encode_json(text)       # refuses what no task can hold
    return text


def _whole_number(low: int, high: int) -> Check:
    def check(text: str) -> int:
        if not re.fullmatch("[0-9]{1,19}", text) or not low <= int(text) <= high:
            is_number = re.fullmatch("-?[0-9]+", text)
            raise invalid("out-of-range" if is_number else "wrong-type",
                          f"{text!r}: expected a whole number from {low} to {high}",
                          minimum=low, maximum=high)
        return int(text)
    return check


# ----------------------------------------------------------------------------
# Schedules: when a repeating task runs next. `repeat` is a number of seconds or a cron expression. An
# expression matches local times; a run is due when the clock of the time zone first shows such a time or a
# later one. So what the clock skips is due right after the gap, and what it shows twice is due once.

MINUTE = timedelta(minutes=1)
MAX_CRON = 255      # characters of a cron expression; a list of all minutes has 169
CRON_FIELDS = (
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    ("day of the week", 0, 7, "sun mon tue wed thu fri sat"),
)
CRON_ITEM = re.compile("(?:[*]|([0-9a-z]+)(?:-([0-9a-z]+))?)(?:/([0-9]{1,2}))?")
CRON_ALIASES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}
CRON_EXAMPLE = 'cron expression such as "30 3 * * mon-fri"'


def cron_numbers(field: str, what: str, low: int, high: int, names: str) -> list[int]:
    """Return the numbers that a field of a cron expression means, in order. Raise Invalid."""
    known = {text: n for n in range(low, high + 1) for text in (f"{n}", f"{n:02}")}
    known |= {name: low + n for n, name in enumerate(names.split())}
    numbers: set[int] = set()
    for item in field.split(","):
        match = CRON_ITEM.fullmatch(item)
        first, last, step = match.groups() if match else ("", "", "")
        start = low if first is None else known.get(first, -1)
        stop = high if first is None or (step and not last) else known.get(last or first, -1)
        if not low <= start <= stop or not 1 <= int(step or 1) <= high:
            words = f" or {names.replace(' ', ', ')}" if names else ""
            raise invalid("not-a-schedule",
                          f"{item!r} as {what}: expected {low} to {high}{words}; a range such as 1-5, the "
                          f"lower one first; with a step such as */2, up to {high}; or a list of these")
        numbers.update(range(start, stop + 1, int(step or 1)))
    return sorted(numbers)


def parse_cron(text: str) -> tuple[list[list[int]], bool]:
    """Return the numbers that each field of a cron expression means, and how its two fields for days combine.

    Sunday is 0. The second value is true where a date must match both the day of the month and the day of
    the week, and false where one is enough. Raise Invalid, also for an expression that no date can match.
    """
    lower = text.lower() if text.isascii() and len(text) <= MAX_CRON else ""
    fields = CRON_ALIASES.get(lower, lower).split()
    if len(fields) != len(CRON_FIELDS):
        raise invalid("not-a-schedule",
                      f"expected a {CRON_EXAMPLE}, of five fields and up to {MAX_CRON} characters, or "
                      f"{', '.join(CRON_ALIASES)}, or a number of seconds")
    numbers = [cron_numbers(field, *limits) for field, limits in zip(fields, CRON_FIELDS, strict=True)]
    numbers[4] = [day % 7 for day in numbers[4]]

    both = fields[2].startswith("*") or fields[4].startswith("*")       # with a step, too, as in cron
    if both and numbers[2][0] > max(calendar.monthrange(2000, month)[1] for month in numbers[3]):
        raise invalid("not-a-schedule",
                      f"expected a date that exists: no month {fields[3]!r} has a day {fields[2]!r}")
    return numbers, both


def local_times(cron: str, start: datetime) -> Iterator[datetime]:
    """Yield the local times that a cron expression matches, in order, from the minute `start` on."""
    (minutes, hours, days, months, weekdays), both = parse_cron(cron)
    clock = [60 * hour + minute for hour in hours for minute in minutes]
    meets = all if both else any
    for year in range(start.year, MAXYEAR + 1):
        for month in months:
            if (year, month) < (start.year, start.month):
                continue
            eve, length = calendar.monthrange(year, month)      # weekday of day 0, when Sunday is 0
            for day in range(1, length + 1):
                midnight = datetime(year, month, day)
                if midnight.date() >= start.date() and meets((day in days, (eve + day) % 7 in weekdays)):
                    passed = bisect.bisect_left(clock, (start - midnight) // MINUTE)
                    yield from (midnight + minute * MINUTE for minute in clock[passed:])


def first_instant(local: datetime, zone: tzinfo) -> datetime:
    """Return when, in UTC, the clock of a time zone first shows a local time or a later one."""
    while True:
        instant = local.replace(tzinfo=zone).astimezone(timezone.utc)
        if instant.astimezone(zone).replace(tzinfo=None) == local:
            return instant.replace(tzinfo=None)
        local += MINUTE     # the clock skips this one


def check_repeat(value: Any) -> float | str:
    """Return a number of seconds (60, not 60.0), or a cron expression with single spaces. Raise Invalid."""
    if not isinstance(value, str):
        seconds = _between(1, 10 * 365 * 86400, what=f"{CRON_EXAMPLE}, or a number of seconds")(value)
        return int(seconds) if seconds.is_integer() else seconds
    parse_cron(value)
    return " ".join(value.split())


@functools.cache
def time_zones() -> set[str]:
    """Return the names of the time zones that this machine has data for, and UTC, which needs none."""
    return {"UTC"} | zoneinfo.available_timezones() - {"localtime"}


def check_timezone(value: Any) -> str:
    """Return the name of a time zone. Raise Invalid. A client's text is never used as a path."""
    if not isinstance(value, str) or value not in time_zones():
        raise invalid(
            "unknown-time-zone",
            "expected the name of a time zone such as Europe/Berlin" if len(time_zones()) > 1 else
            "expected UTC: this machine has no data of other time zones; the package tzdata holds them")
    return value


def next_time(repeat: float | str, zone: str | None, base: datetime, after: datetime) -> datetime | None:
    """Return the first time later than `after` at which a run is due, None after the year 9999.

    Times are UTC without zone. `repeat` is what check_repeat returns. `zone` names the time zone of a cron
    expression, UTC when None. `base` is a time for which any run was planned. An interval counts from there:
    if it counted from the begin or the end of a run, every later run would be late. So missed runs become
    one, and a run that takes longer than the interval skips what it missed. Raise Invalid for a zone unknown
    to this machine.
    """
    try:
        if not isinstance(repeat, str):
            interval = timedelta(seconds=repeat)
            return base + ((after - base) // interval + 1) * interval

        name = check_timezone(zone or "UTC")
        clock = timezone.utc if name == "UTC" else zoneinfo.ZoneInfo(name)
        now = after.replace(tzinfo=timezone.utc).astimezone(clock)
        minute = now.replace(tzinfo=None, second=0, microsecond=0)
        instants = (first_instant(local, clock) for local in local_times(repeat, minute))
        # This minute's may have passed, and those of an hour that the clock shows for the second time.
        return next((instant for instant in instants if instant > after), None)
    except OverflowError:       # a time that a datetime can't hold
        return None


def encode_repeat(value: Any) -> Json:
    """Return what check_repeat() does as JSON text, which the table holds. Raise Invalid."""
    return Json(json.dumps(check_repeat(value)))


# ----------------------------------------------------------------------------
# New tasks: their fields, and what else clients and workers send, each with its check.

MAX_KINDS = 20                                      # kinds that one claim may name
WORKER_NAME = re.compile("[!-~][ -~]{0,99}")        # of a worker over HTTP; any database can store it


def check_kind(value: Any) -> str:
    """Return the name of a kind of task. Raise Invalid."""
    if not isinstance(value, str) or not KIND.fullmatch(value):
        raise invalid("not-a-kind", "expected up to 63 lower-case letters, digits, _ and -, the first one a "
                                    "letter or digit")
    return value


def check_kinds(value: Any) -> tuple[str, ...]:
    """Return the kinds that an array names, each once. Raise Invalid."""
    expected = f"expected an array of 1 to {MAX_KINDS} kinds"
    if not isinstance(value, list):
        raise invalid("wrong-type", expected)
    if not 0 < len(value) <= MAX_KINDS:
        raise invalid("out-of-range", expected, minimum=1, maximum=MAX_KINDS)
    return tuple(dict.fromkeys(map(check_kind, value)))


def check_worker(value: Any) -> str:
    """Return the name that a worker gives itself. Raise Invalid."""
    expected = "expected up to 100 printable ASCII characters, the first one no space"
    if not isinstance(value, str):
        raise invalid("wrong-type", expected)
    if not WORKER_NAME.fullmatch(value):
        raise invalid("not-a-name", expected)
    return value


Checks = dict[str, Check]       # by the names of the fields of a JSON object, or of the parameters of a query

DELAY = _between(0, MAX_DELAY)

class NewTask(NamedTuple):
    """A task to create. Each field has a type, the check of what a client gives, and a default."""
    kind: Annotated[str, check_kind] = "default"
    payload: Annotated[Json | None, encode_json] = None
    priority: Annotated[int, _between(-32768, 32767, whole=True)] = 0
    run_at: Annotated[datetime | None, _timestamp] = None       # in UTC, without zone
    delay: Annotated[float | None, DELAY] = None                # seconds from now, by the database's clock
    max_attempts: Annotated[int | None, _between(1, 1000, whole=True)] = None
    timeout: Annotated[float | None, _between(0.001, MAX_TIMEOUT)] = None      # seconds
    repeat: Annotated[Json | None, encode_repeat] = None
    timezone: Annotated[str | None, check_timezone] = None
    # These two come from a header, or from the id of a message.
    idempotency_key: str | None = None
    fingerprint: str | None = None      # a hash of the request that came with the key


def annotations_of(fields: type) -> dict[str, Any]:
    """Return what Annotated adds to the types of fields, by the names of the fields that have it."""
    hints = get_type_hints(fields, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


NEW_TASK: Checks = annotations_of(NewTask) | {"status": _new_status}

# The fields that a worker over HTTP sends, to claim tasks and then about each of them.
LEASE = _between(1, 86400)
ATTEMPT = _between(1, 2**31 - 1, whole=True)
CLAIM_TASKS: Checks = {"limit": _between(1, MAX_PAGE, whole=True), "lease": LEASE,
                       "kinds": check_kinds, "worker": check_worker}
EXTEND_TASK: Checks = {"attempt": ATTEMPT, "lease": LEASE}
REPORT_PROGRESS: Checks = {"attempt": ATTEMPT, "progress": _between(0, 1, what="number")}
COMPLETE_TASK: Checks = {"attempt": ATTEMPT, "result": encode_json}
FAIL_TASK: Checks = {"attempt": ATTEMPT, "error": _error_text, "final": _boolean, "delay": DELAY}
RELEASE_TASK: Checks = {"attempt": ATTEMPT}

# The parameters of a query may be given several times, so each value is a list of texts.
AFTER = _one(_whole_number(0, MAX_ID))
FILTERS: Checks = {
    "status": _each(_choice(STATUSES, f"one of {', '.join(STATUSES)}")),
    "kind": _each(check_kind),
    "q": _one(_text_to_find),
    "created_after": _one(_timestamp),
    "created_before": _one(_timestamp),
}
LIST_TASKS: Checks = {
    "order": _one(_choice(("asc", "desc"), "asc or desc")),
    "limit": _one(_whole_number(1, MAX_PAGE)),
    "after": AFTER,
} | FILTERS
CHANGE_TASKS: Checks = FILTERS | {"after": AFTER}
FINISHED_TASKS: Checks = {"seconds": _one(_whole_number(60, 86400)), "bins": _one(_whole_number(1, 144))}


class Filters(NamedTuple):
    """Conditions on tasks. Those that meet all of them are meant; each may be left out."""
    statuses: Sequence[str] = ()        # any of these
    kinds: Sequence[str] = ()           # any of these
    q: str | None = None                # a text that payload or error contains, in lower or upper case
    created_after: datetime | None = None       # created at this time or later; in UTC, without zone
    created_before: datetime | None = None      # created before this time

    @classmethod
    def of_query(cls, query: dict[str, Any]) -> Filters:
        """Return the filters that a checked query holds."""
        return cls(query.get("status", ()), query.get("kind", ()), *map(query.get, cls._fields[2:]))


def pattern_of(text: str, stored: Callable[[str], str]) -> str:
    """Return a regular expression of PostgreSQL for a text in lower and upper case.

    It spells out both cases of each character, because the database's locale may know the case of ASCII
    characters only. `stored` returns a text as the database holds it.
    """
    spellings = (dict.fromkeys((letter, letter.lower(), letter.upper())) for letter in text)
    return "".join(f"(?:{'|'.join(re.escape(stored(each)) for each in every)})" for every in spellings)


def check_fields(fields: Any, checks: Checks, required: Iterable[str] = (), at: str = "/") -> dict[str, Any]:
    """Check the fields of a JSON object, or the parameters of a query (`at` is "?"); return their values.

    Raise Invalid with everything that is wrong, up to MAX_ERRORS errors; `at` is put before the names.
    """
    if not isinstance(fields, dict):
        example = json.dumps(next(iter(checks)))
        raise invalid("wrong-type", f"expected an object, such as {{{example}: ...}}", at[:-1])

    values: dict[str, Any] = {}
    errors = [InputError(at + name, "missing-field", "expected this field, which is required")
              for name in required if name not in fields]
    for name, value in fields.items():
        try:
            if name not in checks:
                raise invalid("unknown-parameter" if at == "?" else "unknown-field",
                              f"unknown; expected {' or '.join(checks) or 'none'}")
            values[name] = checks[name](value)
        except Invalid as e:
            token = name if at == "?" else name.replace("~", "~0").replace("/", "~1")      # RFC 6901
            where = at + token[:100].encode("utf-8", "replace").decode()
            errors.append(e.errors[0]._replace(where=where))
        if len(errors) >= MAX_ERRORS:
            break
    if errors:
        raise Invalid(*errors)
    return values


def parse_body(body: bytes) -> Any:
    """Parse a body as JSON; an empty one is {}. Raise Invalid or TooLarge."""
    if len(body) > MAX_BODY:
        raise TooLarge(len(body))
    return parse_json(body) if body.strip() else {}


def fingerprint(value: Any) -> str:
    """Return a hash that is the same for JSON texts that differ only in white space and the order of keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_key(idempotency_key: str | None) -> str | None:
    """Check an idempotency key, and return None for an empty one. Raise Invalid."""
    if idempotency_key and (len(idempotency_key) > 255 or not idempotency_key.isprintable()):
        raise invalid("invalid-key", "expected 1 to 255 printable characters", "Idempotency-Key")
    return idempotency_key or None


def new_task(fields: dict[str, Any], idempotency_key: str | None = None, at: str = "/") -> NewTask:
    """Check a task given as a JSON object with any of the fields of NEW_TASK.

    Raise Invalid with everything that is wrong, up to MAX_ERRORS errors; `at` is put before the names.
    """
    key = check_key(idempotency_key)
    checks = NEW_TASK
    if isinstance(fields, dict) and "run_at" in fields:
        checks = NEW_TASK | {"delay": _not_with_run_at}
    if isinstance(fields, dict) and "timezone" in fields and not isinstance(fields.get("repeat"), str):
        checks = checks | {"timezone": _not_without_cron}
    values = check_fields(fields, checks, at=at)
    values.pop("status", None)
    return NewTask(**values, idempotency_key=key, fingerprint=fingerprint(fields) if key else None)


def parse_task(body: bytes, idempotency_key: str | None = None) -> NewTask:
    """Parse a body that describes one task. Raise Invalid or TooLarge."""
    return new_task(parse_body(body), idempotency_key)


def new_tasks(items: list[Any], idempotency_key: str | None = None) -> list[NewTask]:
    """Check an array of tasks. Raise Invalid.

    The key is for all of them: the first task gets it as it is, the others with their number appended.
    """
    if not 0 < len(items) <= MAX_TASKS:
        raise invalid("out-of-range", f"expected 1 to {MAX_TASKS} tasks, not {len(items)}",
                      minimum=1, maximum=MAX_TASKS)

    key, tasks = check_key(idempotency_key), []
    errors: list[InputError] = []
    for n, item in enumerate(items):
        try:
            tasks.append(new_task(item, at=f"/{n}/"))
        except Invalid as e:
            errors += e.errors
            if len(errors) >= MAX_ERRORS:
                break
    if errors:
        raise Invalid(*errors[:MAX_ERRORS])

    if key:
        same = fingerprint(items)
        tasks = [task._replace(idempotency_key=f"{key}[{n}]" if n else key, fingerprint=same)
                 for n, task in enumerate(tasks)]
    return tasks


# ----------------------------------------------------------------------------
# Rows: a task as the statements return it. Row and NewTask have a line for each field; the lists of columns
# and the JSON are derived from them, once, at import.

Time = NewType("Time", str)     # ISO 8601 without a zone, in UTC, to the second


class TaskFields(NamedTuple):
    """A task as it is stored. Annotated adds the SQL expression of a field that is not a column.

    A new field of a task is added in these places:
    1. schema.sql, and its number in the last line: the column in PostgreSQL;
    2. SQLiteStore.TABLE: the column in SQLite;
    3. here: how it is read, and shown to clients in this order (fields after `attempt` are not shown);
    4. NewTask: its check and default, if a client may give it;
    5. openapi.yaml: Task, and NewTask;
    6. README.md and its translation, if a client may give it.

    A column that no client sees needs the first two, and the statements that use it.
    """
    id: int
    status: str
    created_at: Time
    updated_at: Time            # when the status last changed
    kind: Annotated[str | None, "nullif(kind, 'default')"]
    payload: Json | None
    result: Json | None
    error: str | None
    attempts: Annotated[int, "attempt - uncounted"]     # those that count towards max_attempts
    max_attempts: int | None
    priority: int
    run_at: Time | None
    timeout: float | None       # seconds
    repeat: Json | None         # a number of seconds, or a cron expression
    timezone: str | None        # of the cron expression; None: UTC
    progress: float | None
    idempotency_key: str | None
    canceled: bool              # cancellation was requested
    attempt: int                # the fencing token: grows with each claim
    size: int                   # bytes of payload and result
    alone: bool                 # nothing runs, or may run, beside it: see schema.sql
    # when the first run of a repeating task was due, from which its interval counts, in seconds since 1970
    planned_at: Annotated[float | None, """case
        when repeat is not null then date_part('epoch', coalesce(planned_at, created_at))
        end"""]
    earlier: int                # attempts before this run of a repeating task
    # when the last attempt began, in seconds since 1970; None where it is in the history
    started_at: Annotated[float | None, "date_part('epoch', started_at)"]


# How a value of each type is read from its column, the type in which it is written, and how it is shown as
# JSON. A type that is not named needs no conversion.
READ_AS: dict[Any, str] = {
    Json: "cast({} as text)",
    Time: """to_char({}, 'YYYY-MM-DD"T"HH24:MI:SS')""",
    float: "cast({} as numeric)",   # as a float it has as many digits as a setting of the session says
}
WRITTEN_AS: dict[Any, str] = {Json: "json", datetime: "timestamp", int: "int", float: "float", str: "text"}
SHOWN_AS: dict[Any, Callable[[Any], str]] = {
    Json: str,
    Time: '"{}"'.format,
    int: str,
    bool: lambda value: "true",         # false is not shown
}


def field_types(fields: type) -> dict[str, Any]:
    """Return the type of each field of a NamedTuple, T for `T | None`."""
    return {name: (get_args(hint) or [hint])[0] for name, hint in get_type_hints(fields).items()}


EXPRESSIONS = {name: name for name in TaskFields._fields} | annotations_of(TaskFields)
COLUMNS = ", ".join(READ_AS.get(kind, "{}").format(EXPRESSIONS[name])
                    for name, kind in field_types(TaskFields).items())
SHOWN = [(f'"{name}": ', SHOWN_AS.get(kind, json.dumps))
         for name, kind in field_types(TaskFields).items()][4:TaskFields._fields.index("attempt")]

# A list is written as JSON by the database: so 100 tasks take half of the CPU time, 0.36 ms of both instead
# of 0.73, where the statement is prepared. For each type, when a value is shown, and how it is written; {} is
# the column as it is read.
LISTED_AS: dict[Any, tuple[str, str]] = {
    Time: ("{} <> ''", """'"' || {} || '"'"""),
    str: ("{} <> ''", "cast(to_json({}) as text)"),
    Json: ("{} <> ''", "{}"),
    bool: ("{}", "'true'"),
    int: ("{} <> 0", "{}"),
    float: ("{} <> 0", "cast(to_json({}) as text)"),
}


def listed(names: Sequence[str]) -> str:
    """Return the SQL expression of what Row.to_json() returns, which shows the first four names always."""
    types, always, others = field_types(TaskFields), [], []
    for name in names:
        column = READ_AS.get(types[name], "{}").format(f"({EXPRESSIONS[name]})")
        condition, written = (each.format(column) for each in LISTED_AS[types[name]])
        always.append(f"""'"{name}": ' || {written}""")
        others.append(f"""case when {condition} then ', "{name}": ' || {written} else '' end""")
    return (f"""'{{' || {" || ', ' || ".join(always[:4])}
       || coalesce(nullif({" || ".join(others[4:])}, ', "attempts": 1'), '') || '}}'""")


LISTED = "id, size, " + listed(TaskFields._fields[:TaskFields._fields.index("attempt")])

# Of CREATE: the values that it is given, the arrays that they come in, and those that it stores as they are.
GIVEN_COLUMNS = ", ".join(NewTask._fields)
GIVEN_ARRAYS = ", ".join(f"%({name})s::{WRITTEN_AS[kind]}[]" for name, kind in field_types(NewTask).items())
NEW_COLUMNS = ", ".join(name for name in NewTask._fields if name not in ("run_at", "delay"))


class Row(TaskFields):
    """A task as a statement returned it."""

    __slots__ = ()

    def to_json(self, claimed: bool = False) -> str:
        """Return what a client sees: the documented four fields, and of the others those that the task has.

        A task with no other field does not show its first attempt, so that a bare task keeps the documented
        four fields after it was run. `claimed`: show `attempt`, too.
        """
        values = zip(SHOWN, self[4:], strict=False)     # the last fields are not shown
        others = [name + encode(value) for (name, encode), value in values if value]
        if self.attempts == 1 and len(others) == 1:
            others.clear()
        if claimed:
            others.append(f'"attempt": {self.attempt}')

        first = (f'{{"id": {self.id}, "status": {json.dumps(self.status)}, '
                 f'"created_at": "{self.created_at}", "updated_at": "{self.updated_at}"')
        return ", ".join([first, *others]) + "}"


class Listed(NamedTuple):
    """A task of a list."""

    id: int
    size: int                   # bytes of payload and result
    text: str                   # what Row.to_json() returns


class Unscheduled(NamedTuple):
    """A repeating task that has ended, and what its next time depends on; as in Row."""

    id: int
    attempt: int
    repeat: Json
    timezone: str | None
    planned_at: float


class Attempt(NamedTuple):
    """One attempt of a task."""

    attempt: int                # its number, the fencing token
    worker: str | None          # host and process id, or the name that a claim over HTTP gave
    started_at: Time | None
    ended_at: Time | None       # None while it runs
    # completed, failed, retried, released, reclaimed, canceled or timed_out; None while it runs
    outcome: str | None
    error: str | None           # its last MAX_PAST_ERROR characters


def read_attempt(line: str) -> Attempt | None:
    """Return the attempt that a line of the history describes.

    Return None for any other line: the first one may be the rest of a line whose beginning was cut off.
    """
    try:
        attempt = Attempt(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    worker = attempt.worker
    if isinstance(worker, str):
        # "@" and a name, or host:pid:random, which no other worker has
        worker = worker[1:] if worker.startswith("@") else re.sub(":[0-9a-f]{8}$", "", worker)
    return attempt._replace(worker=worker)


def may_have_more(rows: Sequence[Row] | Sequence[Listed], limit: int) -> bool:
    """Tell whether there may be more tasks: these are as many as were asked for, or they are large."""
    return len(rows) >= limit or sum(row.size for row in rows) >= MAX_PAGE_BYTES


# ----------------------------------------------------------------------------
# SQL: one statement per transition, in the order of a task's life. It is written once, for PostgreSQL; SQLite
# runs the same text, with its own words for some of PostgreSQL's (SQLiteStore.WORDS). `unnest(…)` makes rows
# of an array for each column, so that the text is the same for any number of rows. To return no row is an
# ordinary answer. Spans of time go in and come out as numbers of seconds, and each statement names UTC
# itself: so no setting of session, role, database or environment (TimeZone, DateStyle, IntervalStyle,
# extra_float_digits) changes what it means.

NOW = "timezone('utc', now())"

# How the error of an attempt begins that was reclaimed.
CUT_OFF = "the worker died or was cut off"

# How long a task has been ready. Plain SQL may have written any time: one that is to come counts as now, and
# none counts as longer ago than a year. Numbers are subtracted, because PostgreSQL can't subtract an infinite
# time.
READY_SECONDS = f"""least(31536000, greatest(0,
           date_part('epoch', {NOW}) - date_part('epoch', coalesce(ready_at, created_at))))"""

# Whether a task must still run alone after an attempt that did not kill its worker: only if it must because a
# worker died, not because one with a single slot ran it.
STILL_ALONE = "alone and coalesce(outcome, '') = 'reclaimed'"

# How the last attempt of a task that has ended went. An older version of this program stored no outcome.
OUTCOME = """coalesce(outcome, case
       when status = 'Completed' then 'completed'
       when canceled then 'canceled'
       else 'failed'
       end)"""


def past_attempt(outcome: str, ended_at: str, error: str) -> str:
    """Return the SQL expression that makes a task's last attempt a line of its history: a JSON object.

    The arguments are SQL expressions, too.
    """
    return f"""cast(json_build_object(
           'attempt',    tasks.attempt,
           'worker',     worker,
           'started_at', to_char(started_at, 'YYYY-MM-DD"T"HH24:MI:SS'),
           'ended_at',   to_char({ended_at}, 'YYYY-MM-DD"T"HH24:MI:SS'),
           'outcome',    {outcome},
           'error',      right({error}, +{MAX_PAST_ERROR})) as text)"""


def history_with(attempt: str) -> str:
    """Return the expression of a task's history with one more line; what is too long loses its beginning.

    A task that was never claimed, whatever status plain SQL gave it, has no attempt to tell of.
    """
    return f"""case
           when tasks.attempt = 0 then history
           else right(coalesce(history || '\n', '') || {attempt}, +{MAX_HISTORY})
           end"""


# What CANCEL and CANCEL_ALL set: nothing runs any more until the task is retried by hand. A New task ends at
# once. One In Progress is marked, and its worker ends it. A repeating task between two runs stays as the last
# one has left it.
CANCELED = f"""
       canceled   = true,
       status     = case when status = 'New' then 'Failed'   else status     end,
       error      = case when status = 'New' then 'canceled' else error      end,
       updated_at = case when status = 'New' then {NOW}      else updated_at end,
       run_at     = null"""

# What REPEAT sets, and with more RETRY_BY_HAND and RETRY_ALL: the task is New, with all its attempts left.
# The numbers of the old ones are not used again.
NEW_RUN = f"""
       status     = 'New',
       result     = null,
       error      = null,
       run_at     = null,
       uncounted  = attempt,
       earlier    = attempt,
       started_at = null,
       history    = case
                    when started_at is null then history    -- canceled while New: the attempt is in it
                    else {history_with(past_attempt(OUTCOME, "updated_at", "error"))}
                    end,
       updated_at = {NOW}"""

RUN_BY_HAND = f"""{NEW_RUN},
       outcome    = null,
       alone      = false,
       canceled   = false,
       ready_at   = {NOW}"""

# An idempotency key makes one task: a second one with the key is not inserted, and the first one's id is
# returned.
CREATE = f"""
with new (position, {GIVEN_COLUMNS}) as (
    select * from unnest(%(position)s::int[], {GIVEN_ARRAYS})
)
insert into tasks (created_at, updated_at, run_at, planned_at, {NEW_COLUMNS})
select {NOW},
       {NOW},
       case
       when run_at > {NOW} then run_at
       when delay > 0 then {NOW} + delay * interval '1 second'
       end,                             -- null: ready now
       case
       when repeat is not null
       then coalesce(run_at, {NOW} + coalesce(delay, 0) * interval '1 second')
       end,
       {NEW_COLUMNS}
from   new
order by position                       -- so that the ids are in the order of the values
on conflict (idempotency_key) where idempotency_key is not null
do update set
       -- The same task: nothing changes. Another task with its key: an attempt can't be null, so the whole
       -- statement fails (KeyReused). A row without a fingerprint, as plain SQL may insert it, counts as the
       -- same task whatever the request says.
       attempt = case
                 when tasks.fingerprint <> excluded.fingerprint then null
                 else tasks.attempt
                 end
-- The last value tells whether the row is new: an earlier one was created at another time.
returning id, idempotency_key, created_at = {NOW}"""

READ = f"""
select {COLUMNS}
from   tasks
where  id = any(%(id)s::bigint[])"""

# A page begins after the last id seen, never at an offset: the millionth page costs what the first does.
LIST = f"""
select {LISTED}
from   (select *, sum(size) over (order by id rows unbounded preceding) - size as size_before
        from   tasks
        where  id > %(after)s
        order by id
        limit  %(limit)s) as page
where  size_before < %(size)s           -- at least one task; the values of others are not even unpacked
order by id"""

# One SELECT for each status: only then do all rows come from the index (status, id), in order.
LIST_STATUS = f"""
with found as (
    select * from (
        select id, size from tasks where status = 'New' and %(new)s and id > %(after)s
        order by id limit %(limit)s) as new
    union all
    select * from (
        select id, size from tasks where status = 'In Progress' and %(in_progress)s and id > %(after)s
        order by id limit %(limit)s) as in_progress
    union all
    select * from (
        select id, size from tasks where status = 'Completed' and %(completed)s and id > %(after)s
        order by id limit %(limit)s) as completed
    union all
    select * from (
        select id, size from tasks where status = 'Failed' and %(failed)s and id > %(after)s
        order by id limit %(limit)s) as failed
    order by id
    limit  %(limit)s
),
page (id, size_before) as materialized (
    select id, sum(size) over (order by id) - size
    from   found
)
select {LISTED}
from   page
join   tasks using (id)
where  size_before < %(size)s           -- as in LIST
order by id"""


MEETS_FILTERS = """(%(kinds)s is null or kind ~ %(kinds)s)
       and (%(created_after)s is null or created_at >= %(created_after)s)
       and (%(created_before)s is null or created_at < %(created_before)s)
       and (%(pattern)s is null
            or cast(payload as text) ~ %(pattern)s
            or error ~ %(pattern)s)"""

# With other filters a page looks at a limited number of tasks that have one of the wanted statuses, however
# few of them it finds. Each row begins with how many tasks there were to look at (at most one more than the
# limit), how many it has looked at, and the lowest and the highest id of these. When it finds none, there is
# one row, with nulls after these four numbers.
SEARCH = f"""
with ahead as materialized (            -- as in LIST_STATUS
    select * from (
        select id, size from tasks where status = 'New' and %(new)s and id > %(after)s
        order by id limit %(rows)s + 1) as new
    union all
    select * from (
        select id, size from tasks where status = 'In Progress' and %(in_progress)s and id > %(after)s
        order by id limit %(rows)s + 1) as in_progress
    union all
    select * from (
        select id, size from tasks where status = 'Completed' and %(completed)s and id > %(after)s
        order by id limit %(rows)s + 1) as completed
    union all
    select * from (
        select id, size from tasks where status = 'Failed' and %(failed)s and id > %(after)s
        order by id limit %(rows)s + 1) as failed
    union all
    select * from (
        select id, size from tasks where %(any)s and id > %(after)s
        order by id limit %(rows)s + 1) as of_any_status
    order by id
    limit  %(rows)s + 1
),
measured (id, size, size_before) as (
    select id, size, sum(size) over (order by id) - size
    from   ahead
),
looked_at as materialized (
    select id, size
    from   measured
    where  size_before < %(bytes)s      -- at least one task
    order by id
    limit  %(rows)s
),
found as (
    select id, size
    from   looked_at
    where  id = (       -- in a subquery of its own: PostgreSQL might scan the whole table for a join
               select id
               from   tasks
               where  tasks.id = looked_at.id
                      and {MEETS_FILTERS})
    order by id
    limit  %(limit)s
),
page (id, size_before) as materialized (
    select id, sum(size) over (order by id) - size
    from   found
),
search (there, seen, lowest, highest) as (
    select (select count(*) from ahead), count(*), min(id), max(id)
    from   looked_at
)
select there, seen, lowest, highest, {LISTED}
from   search
left join page on size_before < %(size)s        -- as in LIST
left join tasks using (id)
order by id"""

SEARCH_IDS = SEARCH.replace(LISTED, "id")      # without reading the rest of the tasks

# The tasks between two runs, which are few among all that have ended.
SEARCH_REPEATING = f"""
with found as materialized (    -- apart, or PostgreSQL might scan the whole table in the order of the ids
    select id
    from   tasks
    where  repeat is not null and not canceled and status in ('Completed', 'Failed')
           and case status when 'Completed' then %(completed)s else %(failed)s end
           and id > %(after)s and id <= %(last)s
           and {MEETS_FILTERS}
)
select id
from   found
order by id
limit  %(limit)s"""

# CANCEL_ALL, RETRY_ALL and DELETE_ALL do to many tasks, which SEARCH_IDS and SEARCH_REPEATING have found,
# what CANCEL, RETRY_BY_HAND and DELETE do to one. They lock the tasks in the order of their ids, and leave
# out those that another transaction has locked, so that they never wait. They also leave out a task that has
# changed since it was found, unless it still has one of the statuses that were asked for. The CASE keeps
# PostgreSQL from using the index on status.

CANCEL_ALL = f"""
with chosen as materialized (
    select id
    from   tasks
    where  id = any(%(id)s::bigint[])
           and case status
               when 'New'         then %(new)s
               when 'In Progress' then %(in_progress)s and not canceled     -- those were counted before
               when 'Completed'   then %(completed)s and repeat is not null and not canceled
               when 'Failed'      then %(failed)s and repeat is not null and not canceled
               end
    order by id
    for update skip locked
)
update tasks
set {CANCELED}
from   chosen
where  tasks.id = chosen.id
returning tasks.id, status"""

RETRY_ALL = f"""
with chosen as materialized (
    select id
    from   tasks
    where  id = any(%(id)s::bigint[])
           and case status
               when 'Completed' then %(completed)s and repeat is not null
               when 'Failed'    then %(failed)s
               end
    order by id
    for update skip locked
)
update tasks
set {RUN_BY_HAND}
from   chosen
where  tasks.id = chosen.id
returning tasks.id, status"""

DELETE_ALL = """
with chosen as materialized (
    select id
    from   tasks
    where  id = any(%(id)s::bigint[])
           and case status
               when 'New'       then %(new)s
               when 'Completed' then %(completed)s
               when 'Failed'    then %(failed)s
               end
    order by id
    for update skip locked
)
delete from tasks
where  id in (select id from chosen)
returning id, status"""


@functools.cache
def backwards(sql: str) -> str:
    """Return LIST, LIST_STATUS or SEARCH in the opposite order."""
    return sql.replace("order by id", "order by id desc").replace("id > %(after)s", "id < %(after)s")


# Tasks that are due become ready. So the index that CLAIM uses holds ready tasks only.
PROMOTE = f"""
with due as materialized (
    select id
    from   tasks
    where  status = 'New' and run_at <= {NOW}
    order by run_at
    limit  %(limit)s
    for update skip locked
)
update tasks
set    run_at   = null,
       ready_at = run_at
from   due
where  tasks.id = due.id
returning tasks.id"""

# A finished task whose next time has come is New again, with all its attempts left.
REPEAT = f"""
with due as materialized (
    select id
    from   tasks
    where  repeat is not null and not canceled and status in ('Completed', 'Failed')
           and run_at <= {NOW}
    order by run_at
    limit  %(limit)s
    for update skip locked
)
update tasks
set {NEW_RUN},
       alone      = {STILL_ALONE},
       ready_at   = run_at
from   due
where  tasks.id = due.id
returning tasks.id"""

# No task is handed out twice, and no claim waits for a row that another worker is just claiming.
CLAIM = f"""
with ready as materialized (
    select id, priority, alone,
           -- A task that must run alone counts as a full page, so that nothing is claimed beside it. With
           -- `+ 1` size_before is 0 for the first task only, even where no task has a payload.
           case when alone then %(size)s else size + 1 end as size
    from   tasks
    where  kind = %(kind)s and status = 'New' and run_at is null
           -- From the front of the queue, or where Store.claim() says. The condition also makes PostgreSQL
           -- use the index, and sort nothing.
           and (0 - priority, id) >= (%(urgency)s, %(first)s)
           -- The highest number: a task that has had this attempt gets no further one.
           and attempt < 2147483647
           -- A worker runs a task that must run alone only when it has nothing else to do. Until then it
           -- claims nothing that comes after that task, unless it still runs an attempt that began before
           -- the task was ready.
           and (not alone or {READY_SECONDS} >= %(busy)s)
    order by (0 - priority), id
    limit  %(limit)s
    for update skip locked
),
fitting (task_id, size_before, runs_alone) as materialized (
    select id,
           sum(size) over (order by (0 - priority), id) - size,        -- of all that come before it
           alone
    from   ready
)
update tasks
set    status      = 'In Progress',
       attempt     = attempt + 1,
       -- In a worker with one slot every task runs alone: if its worker dies, RECLAIM may blame it.
       alone       = alone or %(single)s,
       worker      = %(worker)s,
       started_at  = {NOW},
       lease_until = {NOW} + %(lease)s * interval '1 second',
       updated_at  = {NOW}
from   fitting
where  id = task_id
       and size_before < %(size)s       -- no more than a page, but at least one task
       -- A task that must run alone comes first, and the worker runs nothing else.
       and (not runs_alone or size_before = 0 and %(busy)s = 0)
returning {COLUMNS}, {READY_SECONDS}"""

# Which of some kinds have a ready task: of each whether the first one must run alone, and for how many
# seconds it has been ready, and where it stands. One look at the index for each kind, however many tasks
# there are of it.
READY_KINDS = f"""
with asked (kind, urgency, first) as (
    select * from unnest(%(kind)s::text[], %(urgency)s::int[], %(first)s::bigint[])
),
found (kind, id) as materialized (
    select kind,
           (select id
            from   tasks
            where  tasks.kind = asked.kind and status = 'New' and run_at is null
                   and (0 - priority, id) >= (asked.urgency, asked.first)       -- as in CLAIM
                   and attempt < 2147483647
            order by (0 - priority), id
            limit  1)
    from   asked
)
select found.kind, 0 - priority, tasks.id, alone, {READY_SECONDS}
from   found
join   tasks on tasks.id = found.id"""

# The tasks that a worker holds. It gives back (RELEASE) those that it does not know of, because the answer to
# their claim was lost.
HELD_BY = """
select id, attempt
from   tasks
where  status = 'In Progress' and worker = %(worker)s"""

# EXTEND, COMPLETE, RETRY, FAIL and RELEASE are for the holder of an attempt alone, even after the end of its
# lease: that only allows others to take the task over, and until one does, the attempt is the current one.
# They find a task by its id. The CASE keeps PostgreSQL from using the index on status, with which it may
# compare all tasks that are In Progress with each of the batch.

HELD = """tasks.id = given.id
       and tasks.attempt = given.attempt
       and tasks.status = case when given.id > 0 then 'In Progress' end"""

# A lease never gets shorter. The progress that a handler has reported is stored with it.
EXTEND = f"""
with given (id, attempt, progress) as (
    select * from unnest(%(id)s::bigint[], %(attempt)s::int[], %(progress)s::float[])
)
update tasks
set    lease_until = greatest(coalesce(lease_until, {NOW}), {NOW} + %(lease)s * interval '1 second'),
       progress    = coalesce(given.progress, tasks.progress)
from   given
where  {HELD}
returning tasks.id"""

# A task whose cancellation was requested meanwhile ends as canceled, whatever its handler did. RETRY, FAIL
# and RELEASE see to that as well.
COMPLETE = f"""
with given (id, attempt, result, next_run) as (
    select * from unnest(%(id)s::bigint[], %(attempt)s::int[], %(result)s::json[], %(next_run)s::timestamp[])
)
update tasks
set    status      = case when canceled then 'Failed' else 'Completed' end,
       result      = case when not canceled then given.result end,
       error       = case when canceled then 'canceled' end,
       outcome     = case when canceled then 'canceled' else 'completed' end,
       run_at      = case when repeat is not null and not canceled then given.next_run end,
       progress    = null,
       lease_until = null,
       updated_at  = {NOW}
from   given
where  {HELD}
returning tasks.id, tasks.canceled"""

RETRY = f"""
with given (id, attempt, error, delay, outcome) as (
    select * from unnest(%(id)s::bigint[], %(attempt)s::int[], %(error)s::text[], %(delay)s::float[],
                         %(outcome)s::text[])
)
update tasks
set    status      = case when canceled then 'Failed' else 'New' end,
       error       = case when canceled then 'canceled' else given.error end,
       outcome     = case when canceled then 'canceled' else given.outcome end,
       run_at      = case when not canceled then {NOW} + given.delay * interval '1 second' end,
       alone       = false,             -- its worker has survived it
       started_at  = case when canceled then started_at end,
       history     = case
                     when canceled then history
                     else {history_with(past_attempt("given.outcome", NOW, "given.error"))}
                     end,
       progress    = null,
       lease_until = null,
       updated_at  = {NOW}
from   given
where  {HELD}
returning tasks.id, tasks.canceled"""

FAIL = f"""
with given (id, attempt, error, next_run, outcome) as (
    select * from unnest(%(id)s::bigint[], %(attempt)s::int[], %(error)s::text[], %(next_run)s::timestamp[],
                         %(outcome)s::text[])
)
update tasks
set    status      = 'Failed',
       error       = case when canceled then 'canceled' else given.error end,
       outcome     = case when canceled then 'canceled' else given.outcome end,
       run_at      = case when repeat is not null and not canceled then given.next_run end,
       progress    = null,
       lease_until = null,
       updated_at  = {NOW}
from   given
where  {HELD}
returning tasks.id, tasks.canceled"""

# A worker that stops gives a task back unfinished: the attempt does not count.
RELEASE = f"""
with given (id, attempt) as (
    select * from unnest(%(id)s::bigint[], %(attempt)s::int[])
)
update tasks
set    status      = case when canceled then 'Failed' else 'New' end,
       error       = case when canceled then 'canceled' else error end,
       outcome     = case when canceled then 'canceled' else outcome end,
       uncounted   = least(uncounted + 1, tasks.attempt),
       alone       = {STILL_ALONE},
       ready_at    = {NOW},
       started_at  = case when canceled then started_at end,
       history     = case
                     when canceled then history
                     else {history_with(past_attempt("'released'", NOW, "null"))}
                     end,
       progress    = null,
       lease_until = null,
       updated_at  = {NOW}
from   given
where  {HELD}
returning tasks.id, tasks.canceled"""

# Tasks whose lease has ended become New again, because their worker is dead. Any of the tasks that ran in it
# may have killed it, so a task fails because of that only when it ran alone.
RECLAIM = f"""
with lost as materialized (
    select id,
           attempt - uncounted as counted,
           coalesce(max_attempts, %(max_attempts)s) as most,
           canceled or alone and attempt - uncounted >= coalesce(max_attempts, %(max_attempts)s) as ends,
           '{CUT_OFF} during attempt ' || (attempt - uncounted)
           || ' of ' || coalesce(max_attempts, %(max_attempts)s) as reason
    from   tasks
    where  status = 'In Progress'
           -- Without a lease, as plain SQL may write it, a task has no worker either.
           and (lease_until is null or lease_until <= {NOW})
           -- A worker knows which tasks it holds, and gives back others of its own (HELD_BY).
           and (worker is null or worker <> %(worker)s)
    order by id
    limit  %(limit)s
    for update skip locked
)
update tasks
set    status      = case when ends then 'Failed' else 'New' end,
       error       = case when canceled then 'canceled' else reason end,
       outcome     = case when canceled then 'canceled' else 'reclaimed' end,
       started_at  = case when ends then started_at end,
       history     = case
                     when ends then history
                     else {history_with(past_attempt("'reclaimed'", NOW, "reason"))}
                     end,
       -- A last attempt that was lost beside others does not count, so there is one more;
       uncounted   = case when not alone and counted >= most then uncounted + 1 else uncounted end,
       -- and the last attempt after a lost one must run alone.
       alone       = alone or counted >= most - 1,
       ready_at    = {NOW},
       progress    = null,
       lease_until = null,
       updated_at  = {NOW}
from   lost
where  tasks.id = lost.id
returning tasks.id, attempt, status"""

# CANCEL, RETRY_BY_HAND and DELETE do what a client asks for. Where it names the status and the attempt that
# it has seen, they do so only as long as the task has both.

CANCEL = f"""
update tasks
set {CANCELED}
where  id = %(id)s
       and (status in ('New', 'In Progress') or repeat is not null and not canceled)
       and (status, attempt) = (coalesce(%(status)s, status), coalesce(%(attempt)s, attempt))
returning {COLUMNS}"""

# Of the tasks that a worker holds.
CANCEL_REQUESTED = f"""
with given (id, attempt) as (
    select * from unnest(%(id)s::bigint[], %(attempt)s::int[])
)
select tasks.id, tasks.attempt
from   given
join   tasks on {HELD}
where  canceled"""

# A repeating task runs now, however its last run has ended, and then at its next time.
RETRY_BY_HAND = f"""
update tasks
set {RUN_BY_HAND}
where  id = %(id)s
       and (status = 'Failed' or status = 'Completed' and repeat is not null)
       and (status, attempt) = (coalesce(%(status)s, status), coalesce(%(attempt)s, attempt))
returning {COLUMNS}"""

DELETE = f"""
delete from tasks
where  id = %(id)s
       and status <> 'In Progress'      -- a worker holds it
       and (status, attempt) = (coalesce(%(status)s, status), coalesce(%(attempt)s, attempt))
returning {COLUMNS}"""

# Repeating tasks that were not ended by their worker, which would have planned their next run.
UNSCHEDULED = """
select id, attempt, cast(repeat as text), timezone,
       date_part('epoch', coalesce(planned_at, created_at))
from   tasks
where  repeat is not null and not canceled and status in ('Completed', 'Failed')
       and run_at is null and id > %(after)s
order by run_at, id                     -- as the index has them
limit  %(limit)s"""

SCHEDULE = """
with planned (id, attempt, next_run) as (
    select * from unnest(%(id)s::bigint[], %(attempt)s::int[], %(next_run)s::timestamp[])
)
update tasks
set    run_at = planned.next_run
from   planned
where  tasks.id = planned.id
       and tasks.attempt = planned.attempt
       and repeat is not null and not canceled and status in ('Completed', 'Failed')
       and run_at is null
returning tasks.id"""

CLOCK = f"""
select date_part('epoch', {NOW})"""

# The history, and as one more line the attempt that is not in it: the one that runs, or the last one of a
# task that has ended. The last attempt of a task that was canceled while New is in the history.
ATTEMPTS = f"""
select history,
       case
       when attempt > 0
            and (status = 'In Progress' or status <> 'New' and (started_at is not null or history is null))
       then {past_attempt(f"case when status <> 'In Progress' then {OUTCOME} end",
                          "case when status <> 'In Progress' then updated_at end",
                          "case when status in ('Completed', 'Failed') then error end")}
       end
from   tasks
where  id = %(id)s"""

DELETE_OLD = f"""
with old as materialized (
    select id
    from   tasks
    where  status = %(status)s and updated_at < {NOW} - %(age)s * interval '1 second'
           and (repeat is null or canceled)     -- never one that still repeats
    order by updated_at
    limit  %(limit)s offset %(kept)s    -- the oldest are those that could not be deleted
    for update skip locked
)
delete from tasks
where  id in (select id from old)
returning id"""

COUNT = """
select count(*)
from   tasks
where  status = %(status)s"""

FINISHED = f"""
select count(*)
from   tasks
where  status = %(status)s and updated_at > {NOW} - %(age)s * interval '1 second'"""

# How many tasks ended in each part of a span of time, for a chart. The latest are counted, up to a limit.
# Each row begins with when the span began. When no task has ended, there is one row, with nulls and 0 after
# that.
FINISHED_BINS = f"""
with span as (
    select {NOW} - %(seconds)s * interval '1 second' as since
),
latest as materialized (
    select * from (
        select status, updated_at
        from   tasks
        where  status = 'Completed'
               and updated_at > {NOW} - %(seconds)s * interval '1 second'
               and updated_at <= {NOW}
        order by updated_at desc
        limit  %(limit)s) as completed
    union all
    select * from (
        select status, updated_at
        from   tasks
        where  status = 'Failed'
               and updated_at > {NOW} - %(seconds)s * interval '1 second'
               and updated_at <= {NOW}
        order by updated_at desc
        limit  %(limit)s) as failed
),
placed (status, bin) as (
    select status, cast(floor(date_part('epoch', updated_at - since) * %(bins)s / %(seconds)s) as int)
    from   latest
    cross join span
)
select to_char(since, 'YYYY-MM-DD"T"HH24:MI:SS'), status, bin, count(status)
from   span
left join placed on true
group by since, status, bin"""

# For how long the oldest ready task has been ready, of the first 1,000 of each kind and priority in the
# order in which they are claimed: all of 300,000 took 220 ms. The oldest is not always the first, because a
# task that was delayed or tried before became ready later than its id tells.
OLDEST_READY = f"""
with recursive first (id) as (
    select (select id
            from   tasks
            where  status = 'New' and run_at is null
            order by kind, (0 - priority), id
            limit 1)
    union all
    select coalesce(
               (select id                                       -- of the next priority
                from   tasks
                where  status = 'New' and run_at is null
                       and kind = last.kind and (0 - priority) > 0 - last.priority
                order by (0 - priority), id
                limit 1),
               (select id                                       -- of the next kind
                from   tasks
                where  status = 'New' and run_at is null
                       and kind > last.kind
                order by kind, (0 - priority), id
                limit 1))
    from   first
    join   tasks as last on last.id = first.id
)
select coalesce(max((
           select max(seconds)
           from   (select {READY_SECONDS} as seconds
                   from   tasks
                   where  status = 'New' and run_at is null
                          and kind = head.kind and (0 - priority) = 0 - head.priority
                   order by id
                   limit 1000) as longest)), 0)
from   first
join   tasks as head on head.id = first.id"""

READY = """
select count(*)
from   tasks
where  kind = %(kind)s and status = 'New' and run_at is null"""

# Whether tasks can be written, on PostgreSQL: first what its catalog says, without waiting for a lock of the
# table.
WRITABLE = """
select case
       when pg_is_in_recovery()
       then 'the database is a standby'
       when current_setting('transaction_read_only') = 'on'
       then 'the database is read-only'
       when not (has_table_privilege('tasks', 'insert') and has_table_privilege('tasks', 'update'))
       then 'the role may not insert into the table tasks, or not update it'
       when not has_sequence_privilege(pg_get_serial_sequence('tasks', 'id'), 'usage, update')
       then 'the role may not use the sequence of the ids'
       end"""

# Then whether the disk has room: a bare task is inserted, with the last id of all, and taken back. That uses
# up no id, and gives the server no error to log.
TRY_TO_WRITE = """
do $$ begin
    insert into tasks (id) overriding system value values (9007199254740991) on conflict do nothing;
    raise sqlstate 'TM000';
exception when sqlstate 'TM000' then null;
end $$"""


# ----------------------------------------------------------------------------
# Metrics: counts of what this program has done, in all of its processes, which /metrics shows. No label holds
# an id or anything else that a client chooses, because the number of series must have a limit.

# The type and the help text of each metric, in the order of /metrics. A metric is added here, and where it is
# counted (class Metrics) or measured (Store.gauges).
METRICS = {
    "taskmanager_info": ("gauge", "The program"),
    "taskmanager_tasks": ("gauge", "Tasks in the table"),
    "taskmanager_finished_per_second":
        ("gauge", f"Tasks that ended in the last {RATE_SECONDS} seconds, per second"),
    "taskmanager_oldest_ready_seconds": ("gauge", "For how long the oldest ready task has been ready"),
    "taskmanager_ready_tasks": ("gauge", "Tasks that could be claimed, of each kind that KINDS names"),
    "taskmanager_database_up": ("gauge", "Whether the database answers"),
    "taskmanager_rabbitmq_up": ("gauge", "Whether RabbitMQ is connected"),
    "taskmanager_task_events_total": ("counter", "What happened to tasks, as far as this program did it"),
    "taskmanager_messages_rejected_total": ("counter", "Messages that were rejected"),
    "taskmanager_http_requests_total": ("counter", "HTTP requests that were answered"),
    "taskmanager_wait_seconds": ("histogram", "How long tasks that were claimed had been ready"),
    "taskmanager_run_seconds": ("histogram", "How long attempts took"),
}

EVENTS = (
    "created", "claimed", "completed", "failed", "retried", "released", "reclaimed", "canceled", "deleted")


# Values by the name of the metric and the series: its labels, as in `{event="created"}`, or "" without any.
# None is a value that is not known.
Samples = dict[str, dict[str, float | None]]


class Metrics:
    """Counters and histograms in the text form of Prometheus (version 0.0.4). Safe to use from any thread."""

    BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)     # seconds
    SERIES = tuple(f'_bucket{{le="{le}"}}' for le in (*BUCKETS, "+Inf"))        # of a histogram

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Path | None = None          # for the other processes of this service, where there are any
        self._saving = threading.Lock()
        self._samples: dict[str, dict[str, float]] = {}     # by name and series
        for name, (kind, _) in METRICS.items():
            if kind == "counter":
                self._samples[name] = {}
            elif kind == "histogram":       # each bucket without those before it, which text() adds
                self._samples[name] = dict.fromkeys(self.SERIES, 0.0) | {"_sum": 0.0}
        for event in EVENTS:
            self.count(event, 0)
        self._add("taskmanager_messages_rejected_total", "", 0)

    def count(self, event: str, number: int = 1) -> None:
        """Count what happened to so many tasks."""
        self._add("taskmanager_task_events_total", f'{{event="{event}"}}', number)

    def rejected(self) -> None:
        """Count a message that was rejected."""
        self._add("taskmanager_messages_rejected_total", "", 1)

    def answered(self, route: str, method: str, status: str) -> None:
        """Count an HTTP request that was answered."""
        self._add("taskmanager_http_requests_total", self._series(route, method, status), 1)

    @staticmethod
    @functools.cache
    def _series(route: str, method: str, status: str) -> str:
        return f'{{route="{route}",method="{method}",status="{status}"}}'

    def _add(self, name: str, series: str, number: float) -> None:
        samples = self._samples[name]
        with self._lock:
            samples[series] = samples.get(series, 0) + number

    def observe(self, name: str, spans: Iterable[float]) -> None:
        """Count for how many seconds each of some tasks waited ("wait"), or of some attempts ran ("run")."""
        samples = self._samples[f"taskmanager_{name}_seconds"]
        with self._lock:
            for span in spans:
                samples[self.SERIES[bisect.bisect_left(self.BUCKETS, span)]] += 1
                samples["_sum"] += max(span, 0.0)

    def share(self, file: Path) -> None:
        """Go on where this file ends, and show the sums of all processes, each with a file in the folder.

        To be called before anything is counted.
        """
        with contextlib.suppress(OSError, ValueError):      # it is the first one, or the disk was full
            self._samples = json.loads(file.read_text())
        self._file = file
        with contextlib.suppress(OSError):
            self.save()

    def save(self) -> None:
        """Write the file, if any."""
        if self._file:
            with self._saving:
                new = self._file.with_suffix(".new")
                new.write_text(json.dumps(self._copy()))
                new.replace(self._file)

    def _copy(self) -> Samples:
        with self._lock:
            return {name: dict(each) for name, each in self._samples.items()}

    def _sums(self) -> Samples:
        """Return the sums of all processes, from their files: so no crash takes back what was shown once."""
        assert self._file
        self.save()
        sums: Samples = {name: {} for name in self._samples}
        for file in sorted(self._file.parent.glob("*.json")):
            for name, values in json.loads(file.read_text()).items():
                for series, value in values.items():
                    sums[name][series] = (sums[name].get(series) or 0) + value
        return sums

    def text(self, gauges: Samples) -> str:
        """Return all metrics, with these gauges, in the text form."""
        samples = self._sums() if self._file else self._copy()
        lines = []
        for name, (kind, meaning) in METRICS.items():
            values = gauges.get(name, samples.get(name))
            if values is None:
                continue
            if kind == "histogram":
                counts = itertools.accumulate(values[series] or 0 for series in self.SERIES)
                values.update(zip(self.SERIES, counts, strict=True))
                values["_count"] = values[self.SERIES[-1]]
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{series} {value:.15g}" for series, value in values.items() if value is not None]
        return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------
# Store: one method per statement, in the order of a task's life. The methods are the same on both databases,
# and may be called from any thread. A method that makes tasks ready also notifies: it calls every callable in
# `store.listeners`, after the commit.

class Pool:
    """The connections of a process to the database: at most `size`, none idle for long or busy for ever."""

    def __init__(self, store: Store, size: int):
        self._store = store
        self._size = size
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()      # a tenth of the time of a semaphore
        for _ in range(size):
            self._slots.put(None)
        self._lock = threading.Lock()                       # of what follows
        self._idle: list[tuple[float, Any]] = []            # since when; the last one is used next
        self._busy: dict[Any, float] = {}                   # when to break it off; inf: it was broken off
        self._guard: threading.Thread | None = None         # runs as long as there are connections
        self._closing = threading.Event()

    @contextlib.contextmanager
    def connection(self) -> Iterator[tuple[Any, bool]]:
        """Give a thread a connection for itself, and tell whether it was used before. Raise TimeoutError."""
        try:
            self._slots.get(timeout=CONNECT_SECONDS)
        except queue.Empty:
            raise TimeoutError(f"all {self._size} connections to the database are busy") from None
        try:
            while (connection := self._take()) and not self._store._is_usable(connection):
                connection.close()
            used = connection is not None
            connection = connection or self._store._connect()
            try:
                yield connection, used
            finally:
                if not self._store._is_in_transaction(connection):
                    with self._lock:
                        self._idle.append((time.monotonic(), connection))
                        self._start_guard()
                else:
                    connection.close()
        finally:
            self._slots.put(None)

    def _take(self) -> Any:
        with self._lock:
            return self._idle.pop()[1] if self._idle else None

    @contextlib.contextmanager
    def limit(self, connection: Any, seconds: float) -> Iterator[None]:
        """Break off what the block does with a connection after so many seconds: raise TimeoutError."""
        with self._lock:
            self._busy[connection] = time.monotonic() + seconds
            self._start_guard()
        try:
            yield
        finally:
            with self._lock:
                was_broken_off = self._busy.pop(connection) == math.inf
            if was_broken_off:
                raise TimeoutError(f"no answer within {seconds:g} s")

    def _start_guard(self) -> None:
        if not self._guard:
            guard = EssentialThread("connections", self._watch)
            with contextlib.suppress(RuntimeError, MemoryError):    # no more threads: try later
                guard.start()
                self._guard = guard

    def _watch(self) -> None:
        is_needed = True
        while is_needed:
            self._closing.wait(1)
            now = time.monotonic()
            with self._lock:
                for connection, deadline in self._busy.items():
                    if now >= deadline:
                        self._busy[connection] = math.inf
                        self._store._break_off(connection)

                old = [connection for since, connection in self._idle if since <= now - IDLE_SECONDS]
                self._idle = [each for each in self._idle if each[0] > now - IDLE_SECONDS]

                is_needed = bool(self._idle or self._busy)
                if not is_needed:
                    self._guard = None
            for connection in old:
                connection.close()

    def close(self) -> None:
        """Close the connections that are not in use. More can be opened afterwards."""
        while connection := self._take():
            connection.close()
        if (guard := self._guard) and not self._busy:
            self._closing.set()
            guard.join(1)
            self._closing.clear()


Params = dict[str, Any]      # of a statement, by name


def status_params(statuses: Collection[str]) -> Params:
    """Return the parameter of each status, such as `in_progress`: whether it is one of these."""
    return {status.lower().replace(" ", "_"): status in statuses for status in STATUSES}


class BatchMember:
    """What one thread wants of a batch, and what it gets."""

    def __init__(self, wanted: Any):
        self.wanted = wanted
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.since = time.monotonic()       # of one that leads
        self.turn = threading.Lock()        # taken until it is done, or until this thread is to lead
        self.turn.acquire()


class Batcher:
    """Does with one statement what several threads want at the same moment (natural batching).

    A thread does at once what it wants, unless another one is at work. Those that come meanwhile wait, and
    then one of them does what all of them want: never with a statement that has begun before they came. With
    16 clients that create tasks, PostgreSQL needs 0.26 ms of CPU for each instead of 0.60 as long as one
    works at a time, and 0.54 where SLOW lets more do so. Of 16 that read tasks, 4,900 are answered a second
    instead of 3,700.
    """

    # Seconds of a statement. A database that is so distant gets LEADERS of them at a time, because it would
    # be idle for half of the time.
    SLOW = 0.005
    LEADERS = 4
    PATIENCE = 1.0      # seconds that a thread waits for another's statement, which may hang

    def __init__(self, execute: Callable[[list[Any]], Iterable[Any]], repeats: bool = False):
        """Take what does all that it is given or nothing, and returns the result of each.

        `repeats`: what is wanted may be done a second time, while the first still goes on.
        """
        self._execute = execute
        self._repeats = repeats
        self._lock = threading.Lock()           # of what follows
        self._waiting: list[BatchMember] = []
        self._leaders: list[BatchMember] = []
        self._seconds = 0.0                     # that the last statement took

    def do(self, wanted: Any) -> Any:
        """Return the result of what this thread wants, or raise its error."""
        member = BatchMember(wanted)
        with self._lock:
            is_slow = self._seconds > self.SLOW or any(
                member.since - leader.since > self.SLOW for leader in self._leaders)
            leads = len(self._leaders) < (self.LEADERS if is_slow else 1)
            (self._leaders if leads else self._waiting).append(member)
        if not leads and not member.turn.acquire(timeout=self.PATIENCE):
            member = self._stop_waiting(member)
        if not member.is_done:
            self._lead(member)

        if member.error:
            raise member.error.with_traceback(None)     # another thread may have raised it, too
        return member.result

    def _stop_waiting(self, member: BatchMember) -> BatchMember:
        """Return one that may lead in place of this one, unless its own turn has come or must come."""
        with self._lock:
            is_waiting = member in self._waiting
            if is_waiting:
                self._waiting.remove(member)
            if is_waiting or self._repeats and member not in self._leaders:
                member = BatchMember(member.wanted)
                self._leaders.append(member)
                return member
        member.turn.acquire()
        return member

    def _lead(self, member: BatchMember) -> None:
        with self._lock:
            batch, self._waiting = [member, *self._waiting], []
        try:
            self._do_all(batch)
        finally:
            now = time.monotonic()
            with self._lock:
                self._seconds = now - member.since
                self._leaders.remove(member)
                next_leader = self._waiting.pop(0) if self._waiting else None
                if next_leader:
                    next_leader.since = now
                    self._leaders.append(next_leader)
            if next_leader:
                next_leader.turn.release()
            for each in batch:
                each.is_done = True
                each.turn.release()

    def _do_all(self, batch: list[BatchMember]) -> None:
        try:
            results = self._execute([each.wanted for each in batch])
            for each, result in zip(batch, results, strict=True):
                each.result = result
        except Invalid as e:
            if len(batch) == 1:
                batch[0].error = e
            else:       # one of them is wrong, and nothing was done: only that one gets the error
                for each in batch:
                    self._do_all([each])
        except BaseException as e:
            for each in batch:
                each.error = e


class ClaimStart:
    """Where the claims of a kind begin: at the front of the queue, or where the last one has ended.

    A transaction that somebody keeps open (a backup, a report) keeps in PostgreSQL's index all that was
    claimed since. After 400,000 tasks a claim from the front walks over them for 28 ms, where others take
    0.8. While the front is slow in comparison, claims begin where the last one has ended, and those from the
    front take 5% of the time. Where every claim takes long, because the database is far away, or because of
    large batches, all begin at the front, but for one in COMPARE_SECONDS, for comparison.
    """

    FRONT = -32767, 0       # before every task: (0 - priority, id)

    def __init__(self) -> None:
        self.last = self.FRONT      # the last task that was claimed
        self._from_front = collections.deque([0.0] * 3, 3)      # seconds that the last three took from there
        self._from_last = 0.0       # seconds that the last one from the last task took
        self._compare_at = 0.0      # until when that counts
        self._return_at = 0.0       # when a claim begins at the front again, if that is slow

    @property
    def is_slow(self) -> bool:
        """Whether the front is slow; also where nothing was compared with it for long."""
        from_last = self._from_last if time.monotonic() < self._compare_at else 0.0
        return min(self._from_front) > from_last + SLOW_CLAIM

    def start(self) -> tuple[int, int]:
        """Return where the next claim begins."""
        return self.last if self.is_slow and time.monotonic() < self._return_at else self.FRONT

    def measured(self, start: tuple[int, int], seconds: float) -> None:
        """Note how long a claim took that began there."""
        now = time.monotonic()
        if start == self.FRONT:
            self._from_front.append(seconds)
            self._return_at = now + min(1.0, 20 * seconds)
        else:
            self._from_last = seconds
            self._compare_at = now + COMPARE_SECONDS


class ProcessState:
    """The part of a store that each process has for itself.

    After a fork two processes would otherwise read each other's answers from one connection, and wait for
    locks of threads that exist in one of them only.
    """

    def __init__(self, store: Store):
        self.pool = Pool(store, store._connections)
        self.creating = Batcher(store._insert)
        self.reading = Batcher(store._read, repeats=True)
        self.metrics = Metrics()
        self.figures: dict[Any, tuple[float, Any]] = {}     # when each is measured again, and its value
        self.clock = -math.inf, datetime.min                # when the database was asked its time; its answer
        self.claim_starts: dict[str, ClaimStart] = {}       # by kind
        self.swept = 0                                      # the id after which unscheduled() goes on
        self.measuring = threading.Lock()                   # held while a figure is measured
        self.unconfirmed: set[tuple[int, int]] = set()      # attempts whose end was sent, but not answered
        self.writing = threading.Lock()                     # SQLite has one writer at a time


@functools.cache
def array_names(sql: str) -> list[str]:
    """Return the names of the arrays of a statement with `unnest(…)`, in the order of its columns."""
    return re.findall(r"%\((\w+)\)s::\w+\[\]", sql)


def array_literal(values: tuple) -> str:
    """Return values as the text of an array. Nulls alone are an empty one, which unnest() fills up."""
    def element(value: Any) -> str:
        if isinstance(value, str):
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return "NULL" if value is None else str(value)

    return "{" + ",".join(map(element, values)) + "}" if values.count(None) < len(values) else "{}"


class Store:
    """The table of tasks. Every method may raise Unavailable, and then may be called again later.

    May be used after a fork, by both processes: what the other one opened is neither used nor closed.
    """

    ascii = False       # whether the database's encoding lacks characters: then all but ASCII is escaped
    waited = False      # whether open_store() had to wait for the database

    def __init__(self, url: str, connections: int = 8):
        """`connections`: how many each process opens at most; a thread that needs one more waits for it."""
        self.url = url
        self.listeners: list[Callable[[], None]] = []
        self._outage = Outage("database")
        self._connections = connections
        self._last_write = -math.inf            # when _try_to_write() last succeeded
        self._processes: dict[int, ProcessState] = {}

    @property
    def _state(self) -> ProcessState:
        # By the process id, and not by os.register_at_fork: a server in C (uWSGI) forks without a word to
        # Python.
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, ProcessState(self))

    @property
    def metrics(self) -> Metrics:
        """What this process has counted."""
        return self._state.metrics

    # Each database defines these.

    def _connect(self) -> Any:
        raise NotImplementedError

    def _is_in_transaction(self, connection: Any) -> bool:
        """Tell whether a statement has left something undone: to close the connection ends that."""
        raise NotImplementedError

    def _is_usable(self, connection: Any) -> bool:
        """Tell whether a connection that was idle is good for another statement."""
        return True

    def _break_off(self, connection: Any) -> None:
        """End what another thread does with a connection that does not answer."""

    def _execute(self, sql: str, params: Params | None = None, repeat: bool = True) -> list[Any]:
        """Run one statement as one transaction; return its rows.

        `repeat`: it may be sent again when its answer was lost.
        """
        raise NotImplementedError

    def _batch(self, sql: str, rows: Sequence[Sequence[Any]], params: Params | None = None,
               repeat: bool = True) -> list[Any]:
        """Run a statement with `unnest(…)` for these rows, unless there are none."""
        return self._execute(sql, {**(params or {}), **self._rows(sql, rows)}, repeat) if rows else []

    def _rows(self, sql: str, rows: Sequence[Sequence[Any]]) -> Params:
        """Return the parameters of a statement with `unnest(…)` that stand for these rows."""
        raise NotImplementedError

    def apply_schema(self) -> None:
        """Create the table, or bring an older one up to date. Any number of processes may do so at once."""
        raise NotImplementedError

    def _try_to_write(self) -> str | None:
        """Write something that leaves no trace; return, or raise, what is wrong."""
        raise NotImplementedError

    # The store as a whole.

    def close(self) -> None:
        """Close the connections that are not in use. The store can still be used: it opens new ones."""
        self._state.pool.close()

    def ping(self) -> None:
        """Raise Unavailable when the database does not answer, or the table is not there."""
        self._batch(READ, [(0,)])

    def ready(self) -> None:
        """Raise Unavailable, with the reason, when no task can be written. Tries at most once a second."""
        self.ping()
        if time.monotonic() < self._last_write + 1:
            return
        try:
            wrong = self._try_to_write()
        except Exception as e:
            wrong = describe(e.__cause__ or e)
        if wrong:
            raise Unavailable(f"no task can be written: {wrong}")
        self._last_write = time.monotonic()

    def notify(self) -> None:
        """Tell the listeners that there is work. Their errors are logged: what there is to do was stored."""
        for listener in self.listeners:
            try:
                listener()
            except Exception:
                log.exception("could not notify")

    # A task's life.

    def create(self, tasks: Sequence[NewTask] = (NewTask(),), via: str = "call") -> list[int]:
        """Create all of the tasks or none; return their ids in the same order.

        A task whose idempotency key is known is not created again, and the id is that of the first one. Raise
        Invalid when the database refuses what a task holds, KeyReused when a key was used for another task.
        """
        unique: dict[str | int, NewTask] = {}
        for n, task in enumerate(tasks):
            first = unique.setdefault(task.idempotency_key or n, task)
            if first.fingerprint != task.fingerprint:
                raise KeyReused

        rows = self._insert([(self._stored(task), via) for task in unique.values()])
        by_key = {key: id for id, key, _ in rows if key}
        without_key = (id for id, key, _ in rows if not key)
        return [by_key[task.idempotency_key] if task.idempotency_key else next(without_key) for task in tasks]

    def create_one(self, task: NewTask, via: str = "call") -> int:
        """Create a task as create() does; return its id.

        It may be created by one statement with those that other threads create at this moment. A task that
        may have to wait for another transaction (for its key), or that is large, is created alone.
        """
        if task.idempotency_key or len(task.payload or "") > MAX_LINE:
            return self.create([task], via)[0]
        id, *_ = self._state.creating.do((self._stored(task), via))
        return id

    def _insert(self, given: Sequence[tuple[NewTask, str]]) -> list[tuple[int, str | None, bool]]:
        """Insert tasks, each with how it came; return id, key, and whether it is new, in the same order."""
        has_keys = all(task.idempotency_key for task, _ in given)
        values = [(position, *task) for position, (task, _) in enumerate(given)]
        rows = sorted(self._batch(CREATE, values, repeat=has_keys))
        log.lines(logging.INFO, "%s task=%s via=%s",
                  (("created" if is_new else "deduplicated", id, via)
                   for (id, _, is_new), (_, via) in zip(rows, given, strict=False)))
        number = sum(is_new for *_, is_new in rows)
        self.metrics.count("created", number)
        if number:
            self.notify()
        return rows

    def _stored(self, task: NewTask) -> NewTask:
        """Return a task as it is inserted. Raise Invalid."""
        if self.ascii and task.payload:
            task = task._replace(payload=self._text(task.payload))
        if task.repeat and task.run_at is None and task.delay is None:
            repeat, now = json.loads(task.repeat), self.now()
            if isinstance(repeat, str):     # an interval begins at once
                task = task._replace(run_at=next_time(repeat, task.timezone, now, now))
        return task

    def now(self) -> datetime:
        """Return the database's time, in UTC, which is asked for at most once a second."""
        state = self._state
        asked, moment = state.clock
        if time.monotonic() > asked + 1:
            # Counted from before the question, so that this clock is never behind the database's: a run that
            # the database has found due is never planned again.
            asked = time.monotonic()
            [(seconds,)] = self._execute(CLOCK)
            moment = datetime(1970, 1, 1) + timedelta(seconds=float(seconds))
            state.clock = asked, moment
        return moment + timedelta(seconds=time.monotonic() - asked)

    def _to_find(self, text: str) -> str:
        """Return what SEARCH compares payloads and errors with, to find a text in lower or upper case."""
        return pattern_of(text, self._text)

    def _text(self, text: Any) -> Any:
        """Return JSON, or an error, in characters that the database has; as JSON it is the same value."""
        if not self.ascii or text is None:
            return text
        return re.sub(r"[^\x00-\x7f]+", lambda match: json.dumps(match[0])[1:-1], text)

    def read(self, id: int) -> Row:
        """Return a task. Raise TaskNotFound."""
        row = self._state.reading.do(id) if 0 < id <= MAX_ID else None
        if not row:
            raise TaskNotFound(f"there is no task {id}")
        return row

    def _read(self, ids: Sequence[int]) -> list[Row | None]:
        found = {row[0]: Row(*row) for row in self._batch(READ, [(id,) for id in ids])}
        return [found.get(id) for id in ids]

    def list_tasks(self, *statuses: str, after: int | None = None, limit: int = MAX_PAGE,
                   order: str = "asc") -> list[Row]:
        """Return up to `limit` tasks in the order of their ids ("asc" or "desc"), those after the id `after`.

        Where statuses are given, only tasks with one of them. Fewer, but at least one, when they are large:
        see MAX_PAGE_BYTES.
        """
        return [Row(*row) for row in self._list(statuses, after, limit, order, COLUMNS)]

    def _list(self, statuses: Sequence[str], after: int | None, limit: int, order: str,
              columns: str = LISTED) -> list[tuple]:
        sql = (LIST_STATUS if statuses else LIST).replace(LISTED, columns)
        params = status_params(statuses) | {"limit": limit, "size": MAX_PAGE_BYTES}
        return self._page(sql, params, after, order)

    def _page(self, sql: str, params: Params, after: int | None, order: str) -> list[tuple]:
        """Run LIST, LIST_STATUS, SEARCH or SEARCH_IDS in one order or the other."""
        if after is None:
            after = MAX_ID if order == "desc" else 0
        return self._execute(backwards(sql) if order == "desc" else sql, params | {"after": after})

    def find_tasks(self, filters: Filters, after: int | None = None, limit: int = MAX_PAGE,
                   order: str = "asc") -> tuple[list[Listed], int | None]:
        """Return a page of the tasks that meet the filters, and the id after which the next page begins.

        The arguments are those of list_tasks(); the id is None when there is no further page. A page looks at
        a limited number of tasks (SEARCH_ROWS, SEARCH_BYTES): it may be short, or empty, and still have a
        next one.
        """
        if filters == Filters(filters.statuses):
            found, next_after = self._list(filters.statuses, after, limit + 1, order), None
        else:
            found, next_after = self._search(SEARCH, filters, after, limit + 1, MAX_PAGE_BYTES, order)
        rows = [Listed(*row) for row in found]
        if may_have_more(rows, limit + 1):
            del rows[limit:]
            next_after = rows[-1].id
        return rows, next_after

    def _search(self, sql: str, filters: Filters, after: int | None, limit: int, size: int,
                order: str = "asc") -> tuple[list[tuple], int | None]:
        """Return what SEARCH or SEARCH_IDS finds, and the last id that it has looked at; None at the end."""
        params = self._filter_params(filters) | {
            "any": not filters.statuses, "limit": limit, "size": size,
            "rows": SEARCH_ROWS, "bytes": SEARCH_BYTES}
        found = self._page(sql, params, after, order)
        there, seen, lowest, highest = found[0][:4]
        last = lowest if order == "desc" else highest
        return [row[4:] for row in found if row[4] is not None], last if there > seen else None

    def _filter_params(self, filters: Filters) -> Params:
        """Return the parameters of MEETS_FILTERS, and for each status whether the filters name it."""
        return status_params(filters.statuses) | {
            "kinds": f"^({'|'.join(map(re.escape, filters.kinds))})$" if filters.kinds else None,
            "pattern": self._to_find(filters.q) if filters.q else None,
            "created_after": filters.created_after, "created_before": filters.created_before}

    def promote(self) -> int:
        """Make up to BATCH_ROWS New tasks ready whose time has come; return how many."""
        rows = self._execute(PROMOTE, {"limit": BATCH_ROWS})
        log.lines(logging.DEBUG, "promoted task=%s", sorted(rows))
        return len(rows)

    def repeat(self) -> int:
        """Make up to BATCH_ROWS tasks New that repeat and whose next time has come; return how many."""
        rows = self._execute(REPEAT, {"limit": BATCH_ROWS})
        log.lines(logging.DEBUG, "repeated task=%s", sorted(rows))
        return len(rows)

    # A repeating task gets its next time when it ends, from its worker or from this sweep.

    def next_run(self, row: Row | Unscheduled) -> datetime | None:
        """Return when a repeating task that ends now runs next, in UTC.

        Return None for a task that does not repeat. Also return None, with a line in the log, where this
        machine can't compute the time: then the task waits for a worker that can.
        """
        if row.repeat is None:
            return None
        try:
            planned = datetime(1970, 1, 1) + timedelta(seconds=float(row.planned_at or 0))
            repeat = check_repeat(parse_json(row.repeat.encode("utf-8", "replace")))
            found = next_time(repeat, row.timezone, planned, self.now())
        except Invalid as e:
            level = logging.DEBUG if isinstance(row, Unscheduled) else logging.WARNING      # once a run
            log.log(level, "could not schedule task=%s repeat=%s timezone=%r error=%r",
                    row.id, row.repeat, row.timezone, str(e))
            return None
        return found or datetime.max.replace(microsecond=0)     # a time that never comes

    def unscheduled(self, limit: int = BATCH_ROWS) -> list[Unscheduled]:
        """Return up to `limit` repeating tasks that have ended and have no next time.

        The next call goes on after the last one of these, or from the beginning when there were no more. So
        those that can't be scheduled do not hold up the others.
        """
        state = self._state
        rows = self._execute(UNSCHEDULED, {"after": state.swept, "limit": limit})
        found = [Unscheduled(*row) for row in rows]
        state.swept = found[-1].id if len(found) == limit else 0
        return found

    def schedule(self, planned: Sequence[tuple[int, int, datetime | None]]) -> set[int]:
        """Give repeating tasks that have ended their next time; `planned`: (id, attempt, time).

        Return the ids of those that had none. Those whose time is None still have none.
        """
        rows = [each for each in planned if each[2] is not None]
        return {id for id, in self._batch(SCHEDULE, rows)}

    def claim(self, limit: int, lease: float, worker: str | None = None, busy: float = 0.0,
              single: bool = False, kind: str = "default") -> list[Row]:
        """Take up to `limit` ready tasks of a kind for `lease` seconds, the most urgent first; return them.

        Fewer, but at least one, when they are large. A task that must run alone is claimed alone.

        `worker`: a name that no other worker has. `busy`: for how many seconds the oldest attempt of this
        worker has been running, 0 for none. `single`: it never runs one task beside another.
        """
        params = {"limit": limit, "lease": lease, "size": MAX_PAGE_BYTES,
                  "worker": worker, "busy": busy, "single": single, "kind": kind}
        claim_start = self._claim_start(kind)
        for start in dict.fromkeys((claim_start.start(), ClaimStart.FRONT)):
            urgency, first = start
            began = time.monotonic()
            # Not sent again: when the answer is lost, the worker gives back what it does not know, or the
            # lease ends.
            found = self._execute(CLAIM, params | {"urgency": urgency, "first": first}, repeat=False)
            claim_start.measured(start, time.monotonic() - began)
            if found:
                break

        rows = sorted((Row(*row) for *row, _ in found), key=lambda row: (-row.priority, row.id))
        log.lines(logging.INFO, "claimed task=%s attempt=%s", ((row.id, row.attempt) for row in rows))
        if rows:
            claim_start.last = -rows[-1].priority, rows[-1].id
        self.metrics.count("claimed", len(rows))
        self.metrics.observe("wait", [ready_seconds for *_, ready_seconds in found])
        return rows

    def _claim_start(self, kind: str) -> ClaimStart:
        starts = self._state.claim_starts
        if len(starts) >= MAX_FIGURES and kind not in starts:       # claims over HTTP may name any kind
            starts.clear()
        return starts.setdefault(kind, ClaimStart())

    def ready_kinds(self, kinds: Iterable[str]) -> dict[str, tuple[bool, float]]:
        """Return those of some kinds that have ready tasks.

        Of each: whether its first task must run alone, and for how many seconds that has been ready.
        """
        claim_starts = {kind: self._claim_start(kind) for kind in kinds}
        starts = {kind: each.start() for kind, each in claim_starts.items()}
        from_front = {kind for kind, start in starts.items() if start == ClaimStart.FRONT}
        began = time.monotonic()
        rows = self._batch(READY_KINDS, [(kind, *start) for kind, start in starts.items()])
        for kind in from_front:     # the claims after this need not look at the front again
            if claim_starts[kind].is_slow:
                claim_starts[kind].measured(ClaimStart.FRONT, time.monotonic() - began)
        for kind, urgency, id, *_ in rows:
            claim_starts[kind].last = urgency, id

        found = {kind: (bool(alone), seconds) for kind, _, _, alone, seconds in rows}
        # Where nobody has looked at the front, a claim finds out.
        return found or {kind: (False, 0.0) for kind in starts if kind not in from_front}

    def held_by(self, worker: str) -> set[tuple[int, int]]:
        """Return id and attempt of the tasks that this worker holds according to the table."""
        return set(self._execute(HELD_BY, {"worker": worker}))

    # In extend(), complete(), retry(), fail() and release(), `attempts` are tuples that begin with a task's
    # id and the number of the attempt. They return the ids of the tasks that these attempts still held; the
    # other tasks are unchanged.

    def extend(self, attempts: Sequence[tuple[int, int, float | None]], lease: float) -> set[int]:
        """Hold tasks for `lease` seconds from now; `attempts`: (id, attempt, progress of 0 to 1 or None)."""
        return {id for id, in self._batch(EXTEND, attempts, {"lease": lease})}

    def complete(self, attempts: Sequence[tuple]) -> set[int]:
        """End tasks as Completed; `attempts`: (id, attempt, result as JSON text or None, next run).

        The next run of a task that repeats is what next_run() returns. It may be left out.
        """
        rows = [(id, attempt, self._text(result), *(next_run or [None]))
                for id, attempt, result, *next_run in attempts]
        return self._end_attempts("completed", COMPLETE, rows)

    def retry(self, attempts: Sequence[tuple]) -> set[int]:
        """Give tasks back, to be tried again; `attempts`: (id, attempt, error, seconds from now, outcome).

        The outcome of the attempt is "retried", and may be left out, or "timed_out".
        """
        rows = [(id, attempt, self._text(error), delay, *(outcome or ["retried"]))
                for id, attempt, error, delay, *outcome in attempts]
        return self._end_attempts("retried", RETRY, rows)

    def fail(self, attempts: Sequence[tuple]) -> set[int]:
        """End tasks as Failed; `attempts`: (id, attempt, error, next run, outcome).

        The next run is as in complete(), the outcome "failed" or "timed_out". Both may be left out.
        """
        rows = [(id, attempt, self._text(error), *rest, *(None, "failed")[len(rest):])
                for id, attempt, error, *rest in attempts]
        return self._end_attempts("failed", FAIL, rows)

    def release(self, attempts: Sequence[tuple[int, int]]) -> set[int]:
        """Give tasks back unfinished, the attempt not counted; `attempts`: (id, attempt)."""
        held = self._end_attempts("released", RELEASE, attempts)
        if held:
            self.notify()
        return held

    def _end_attempts(self, verb: str, sql: str, attempts: Sequence[Sequence[Any]]) -> set[int]:
        """Run a statement that ends attempts; return the ids of those that still held their tasks.

        When its answer is lost, it may have taken effect all the same: the caller is told so (Unavailable),
        and calls again. An attempt that has then ended as it should is logged and counted.
        """
        unconfirmed = self._state.unconfirmed
        keys = {(id, attempt) for id, attempt, *_ in attempts}
        try:
            canceled: dict[int, bool] = dict(self._batch(sql, attempts, repeat=False))
            earlier = {}
            for id, attempt in keys & unconfirmed:
                outcome = self.outcome(id, attempt)[0] if id not in canceled else None
                if outcome in (verb, "timed_out", "canceled"):
                    earlier[id] = outcome == "canceled"
        except Unavailable:
            unconfirmed |= keys
            raise
        unconfirmed -= keys

        self._log_ends(verb, attempts, canceled | earlier)
        return set(canceled)

    def outcome(self, id: int, attempt: int) -> tuple[str | None, str | None]:
        """Return how an attempt has ended, and its error; None and None where the table does not tell."""
        with contextlib.suppress(NotFound):
            for each in self.attempts(id):
                if each.attempt == attempt:
                    return each.outcome, each.error
        return None, None

    def _log_ends(self, verb: str, attempts: Sequence[Sequence[Any]], canceled: dict[int, bool]) -> None:
        log.lines(logging.WARNING, "refused task=%s attempt=%s outcome=%s reason=%r",
                  ((id, attempt, verb, "it had ended, or another attempt has begun")
                   for id, attempt, *_ in attempts if id not in canceled))
        log.lines(logging.INFO, "canceled task=%s attempt=%s",
                  ((id, attempt) for id, attempt, *_ in attempts if canceled.get(id)))

        ended = (each for each in attempts if not canceled.get(each[0], True))
        if verb == "failed":
            log.lines(logging.ERROR, "failed task=%s attempt=%s error=%r",
                      ((id, attempt, error) for id, attempt, error, *_ in ended))
        elif verb == "retried":
            log.lines(logging.WARNING, "retried task=%s attempt=%s in=%.1fs error=%r",
                      ((id, attempt, delay, error) for id, attempt, error, delay, *_ in ended))
        else:
            log.lines(logging.INFO, f"{verb} task=%s attempt=%s",
                      ((id, attempt) for id, attempt, *_ in ended))

        number_canceled = sum(map(bool, canceled.values()))
        self.metrics.count("canceled", number_canceled)
        self.metrics.count(verb, len(canceled) - number_canceled)

    def reclaim(self, max_attempts: int, worker: str = "") -> int:
        """Take up to BATCH_ROWS tasks back whose lease has ended; return how many.

        `max_attempts`: for tasks without a number of their own. `worker`: the one that asks; its tasks stay.
        """
        rows = self._execute(RECLAIM, {"max_attempts": max_attempts, "limit": BATCH_ROWS, "worker": worker})
        log.lines(logging.WARNING, "reclaimed task=%s attempt=%s status=%r reason=%r",
                  ((*row, CUT_OFF) for row in sorted(rows)))
        self.metrics.count("reclaimed", len(rows))
        return len(rows)

    # In cancel(), retry_by_hand() and delete(), `seen` is the task as the client knows it: nothing is done
    # unless it still has that status and attempt. They return the task, and raise TaskNotFound, NotInState or
    # Changed.

    def cancel(self, id: int, seen: Row | None = None) -> Row:
        """End a New task as Failed, or ask the worker of one In Progress to end it.

        A repeating task between two runs stays as it is, and runs no more. To cancel twice does no harm.
        """
        try:
            return self._change(CANCEL, "canceled", id, seen, "New", "In Progress", repeat=True)
        except NotInState:
            row = self.read(id)
            if row.canceled:        # it already was
                return row
            raise

    def unlocked(self, ids: Collection[int]) -> set[int]:
        """Return those of some tasks that no other transaction keeps locked at this moment."""
        return set(ids)         # PostgreSQL alone locks rows

    def cancel_requests(self, held: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return those attempts, (id, attempt), of which the cancellation was requested."""
        return set(self._batch(CANCEL_REQUESTED, held))

    def retry_by_hand(self, id: int, seen: Row | None = None) -> Row:
        """Make a Failed task, or a repeating one that has ended, New again with all its attempts."""
        row = self._change(RETRY_BY_HAND, "retried", id, seen, "Failed")
        self.notify()
        return row

    def delete(self, id: int, seen: Row | None = None) -> Row:
        """Delete a task that no worker holds; return it as it was."""
        return self._change(DELETE, "deleted", id, seen, "New", "Completed", "Failed")

    # cancel_all(), retry_all() and delete_all() do the same to the tasks that meet the filters, up to `limit`
    # of those after the id `after`. They return how many tasks they have changed, how many the database has
    # refused to change (a row that another table refers to, a trigger), and the id after which to go on, or
    # None when there are no more. A task that another transaction changes at this moment is left out.

    def cancel_all(self, filters: Filters, after: int | None = None,
                   limit: int = MAX_PAGE) -> tuple[int, int, int | None]:
        """End New tasks as Failed, ask the workers of those In Progress, and stop those that repeat."""
        return self._change_all(CANCEL_ALL, "canceled", filters, after, limit, STATUSES,
                                between_runs=("Completed", "Failed"))

    def retry_all(self, filters: Filters, after: int | None = None,
                  limit: int = MAX_PAGE) -> tuple[int, int, int | None]:
        """Make Failed tasks New again; where the filters name Completed, also the repeating ones of these."""
        filters = filters._replace(statuses=filters.statuses or ("Failed",))
        found = self._change_all(RETRY_ALL, "retried", filters, after, limit, ("Completed", "Failed"))
        if found[0]:
            self.notify()
        return found

    def delete_all(self, filters: Filters, after: int | None = None,
                   limit: int = MAX_PAGE) -> tuple[int, int, int | None]:
        """Delete tasks that no worker holds."""
        return self._change_all(DELETE_ALL, "deleted", filters, after, limit, ("New", "Completed", "Failed"))

    def _change_all(self, sql: str, verb: str, filters: Filters, after: int | None, limit: int,
                    possible: Sequence[str], between_runs: Sequence[str] = ()) -> tuple[int, int, int | None]:
        """Run a statement that changes many tasks: those with a `possible` status that meet the filters.

        Of those with a status in `between_runs` only the ones that still repeat.
        """
        statuses = [status for status in possible if status in (filters.statuses or possible)]
        found, next_after = self._ids(
            filters, [status for status in statuses if status not in between_runs],
            [status for status in statuses if status in between_runs], after, limit)
        rows, refused = self._batch_in_parts(sql, found, status_params(statuses))
        running = [id for id, status in rows if status == "In Progress"]        # their workers will end them
        changed = [id for id, status in rows if status != "In Progress"]
        for what, ids in (("requested cancellation", running), (verb, changed)):
            if ids:
                log.info("%s tasks=%s by=client ids=%s", what, len(ids), ",".join(map(str, sorted(ids))))
        self.metrics.count(verb, len(changed))
        return len(rows), refused, next_after

    def _ids(self, filters: Filters, statuses: Sequence[str], between_runs: Sequence[str], after: int | None,
             limit: int) -> tuple[list[tuple[int]], int | None]:
        """Return the ids of tasks that meet the filters, and the id after which to go on.

        They have one of the statuses; or one of those in `between_runs`, and still repeat.
        """
        found: list[tuple[int]] = []
        next_after = None
        if statuses:
            found, next_after = self._search(
                SEARCH_IDS, filters._replace(statuses=statuses), after, limit, MAX_ID)
        if between_runs:
            params = self._filter_params(filters._replace(statuses=between_runs))
            params |= {"after": after or 0, "last": next_after or MAX_ID, "limit": limit}
            found = sorted(found + self._execute(SEARCH_REPEATING, params))[:limit]
        return found, found[-1][0] if len(found) >= limit else next_after

    def _batch_in_parts(self, sql: str, ids: list[tuple[int]], params: Params) -> tuple[list[Any], int]:
        """Run a statement on many tasks; return its rows, and how many tasks the database refuses to change.

        Where it refuses to change one of them, it changes none: then the halves are tried.
        """
        try:
            return self._batch(sql, ids, params, repeat=False), 0
        except Invalid as e:
            if len(ids) == 1:
                log.warning("refused task=%s by=database reason=%r", ids[0][0], str(e))
                return [], 1
            middle = len(ids) // 2
            parts = [self._batch_in_parts(sql, part, params) for part in (ids[:middle], ids[middle:])]
            return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]

    def _change(self, sql: str, verb: str, id: int, seen: Row | None, *statuses: str,
                repeat: bool = False) -> Row:
        """Run a statement that changes one task, which must have one of these statuses."""
        params = {"id": id, "status": seen and seen.status, "attempt": seen and seen.attempt}
        while True:
            rows = self._execute(sql, params, repeat) if 0 < id <= MAX_ID else []
            if rows:
                break
            row = self.read(id)
            if seen and (row.status, row.attempt) != (seen.status, seen.attempt):
                raise Changed(f"task {id} has changed since you have read it: it is {row.status}")
            if row.status not in statuses:
                needed = " or ".join(statuses)
                raise NotInState(f"task {id} is {row.status}: only one that is {needed} can be {verb}",
                                 task_status=row.status)

        row = Row(*rows[0])
        if row.status == "In Progress":         # its worker will end it
            log.info("requested cancellation task=%s attempt=%s", id, row.attempt)
        else:
            log.info("%s task=%s by=client", verb, id)
            self.metrics.count(verb)
        return row

    def attempts(self, id: int) -> list[Attempt]:
        """Return the attempts of a task, the oldest first, as far back as its history goes.

        Raise TaskNotFound.
        """
        rows = self._execute(ATTEMPTS, {"id": id}) if 0 < id <= MAX_ID else []
        if not rows:
            raise TaskNotFound(f"there is no task {id}")
        [(history, last)] = rows
        lines = [*(history or "").split("\n"), last or ""]
        return [attempt for line in lines if (attempt := read_attempt(line))]

    def delete_old(self, status: str, days: float, limit: int = BATCH_ROWS, kept: int = 0) -> int:
        """Delete up to `limit` of the tasks that ended so more than `days` ago; return how many.

        Those that still repeat stay. `kept`: how many of the oldest to pass over. Raise Invalid when the
        database refuses to, as for a row that another table refers to.
        """
        params = {"status": status, "age": 86400 * days, "limit": limit, "kept": kept}
        rows = self._execute(DELETE_OLD, params)
        log.lines(logging.INFO, "deleted task=%s by=retention days=%g", ((id, days) for id, in sorted(rows)))
        self.metrics.count("deleted", len(rows))
        return len(rows)

    # Figures. Each is None when it is not known: measuring it takes too long, or is just being done for the
    # first time. They are exact (but see OLDEST_READY), though not always of this moment.

    def count(self, status: str) -> int | None:
        """Return how many tasks have this status."""
        return self._figure(COUNT, {"status": status})

    def finished_per_second(self, status: str) -> float | None:
        """Return how many tasks a second ended with this status, over the last RATE_SECONDS."""
        number = self._figure(FINISHED, {"status": status, "age": RATE_SECONDS})
        return None if number is None else number / RATE_SECONDS

    def finished_bins(self, seconds: int, bins: int) -> dict[str, Any]:
        """Return how many tasks ended in each of `bins` parts of the last `seconds`, the oldest first.

        `since` is when these began. A number is None where counting would take too long: only the latest
        COUNTED_ROWS of each status are counted.
        """
        self.ping()
        rows = self._measure(FINISHED_BINS, {"seconds": seconds, "bins": bins, "limit": COUNTED_ROWS}) or []
        result: dict[str, Any] = {"since": rows[0][0] if rows else None, "seconds": seconds}
        for ended in ("Completed", "Failed"):
            numbers = {int(bin): number for _, status, bin, number in rows if status == ended}
            is_complete = rows and sum(numbers.values()) < COUNTED_ROWS
            # The first part that was counted as a whole.
            first = 0 if is_complete else 1 + min(numbers, default=bins)
            result[ended.lower()] = [numbers.get(bin, 0) if bin >= first else None for bin in range(bins)]
        return result

    def oldest_ready_seconds(self) -> float | None:
        """Return for how many seconds the oldest task has been ready that could be claimed; 0 without any."""
        return self._figure(OLDEST_READY, {})

    def ready_tasks(self, kind: str) -> int | None:
        """Return how many tasks of this kind could be claimed."""
        return self._figure(READY, {"kind": kind})

    def _figure(self, sql: str, params: Params) -> Any:
        """Return the one value that a statement measures."""
        rows = self._measure(sql, params)
        return rows[0][0] if rows else None

    def _measure(self, sql: str, params: Params) -> list[Any] | None:
        """Return the rows of a statement that measures; it takes at most 1% of the database's time.

        So it runs again only after a hundred times as long as it took.
        """
        state = self._state
        key = sql, *params.values()
        due, rows = state.figures.get(key, (0.0, None))
        if not state.measuring.acquire(blocking=False):
            return rows     # the last ones: another thread measures, and nobody waits for a slow count
        try:
            if (now := time.monotonic()) >= due:
                try:
                    rows = self._execute(sql, params)
                except Unavailable:
                    rows = None
                if len(state.figures) >= MAX_FIGURES:       # clients may ask for any number of spans
                    state.figures = {old: value for old, value in state.figures.items() if value[0] > now}
                state.figures[key] = (now + 100 * (time.monotonic() - now), rows)
            return rows
        finally:
            state.measuring.release()

    def gauges(self, kinds: Collection[str] = ()) -> Samples:
        """Return the gauges of METRICS that the store can measure, by name and series.

        `kinds`: those of which ready tasks are counted.
        """
        gauges: Samples = {"taskmanager_info": {f'{{version="{__version__}"}}': 1}}
        try:
            self.ping()
            gauges["taskmanager_tasks"] = {
                f'{{status="{status}"}}': self.count(status) for status in STATUSES}
            gauges["taskmanager_finished_per_second"] = {
                f'{{status="{status}"}}': self.finished_per_second(status)
                for status in ("Completed", "Failed")}
            gauges["taskmanager_oldest_ready_seconds"] = {"": self.oldest_ready_seconds()}
            if kinds:
                gauges["taskmanager_ready_tasks"] = {
                    f'{{kind="{kind}"}}': self.ready_tasks(kind) for kind in kinds}
            gauges["taskmanager_database_up"] = {"": 1}
        except Unavailable:
            gauges["taskmanager_database_up"] = {"": 0}
        return gauges


# The columns of the document's own table, which schema.sql brings up to date.
DOCUMENTED = {"id", "status", "created_at", "updated_at"}

# What the name `tasks` stands for: no row, or its comment, whether it is a table, and its columns.
FOUND_TABLE = """
select obj_description(oid, 'pg_class'),
       relkind in ('r', 'p'),
       array(select cast(attname as text)
             from   pg_attribute
             where  attrelid = pg_class.oid and attnum > 0 and not attisdropped)
from   pg_class
where  oid = to_regclass('tasks')"""

# Whether the session is ours alone: behind a pooler the server's process has another id. Only then are
# settings made, or else other clients would get them. The server, too, ends a statement that takes too long,
# and it plans a prepared statement for all parameters alike, and compiles none: with a million ready tasks
# that took 70 ms for OLDEST_READY, which takes 7. Unless the operator has set something else.
SET_UP_SESSION = f"""
select pg_backend_pid() = %(pid)s,
       (select count(set_config(name, value, false))
        from   (values ('statement_timeout', %(limit)s, '0'),
                       ('lock_timeout', '{LOCK_SECONDS}s', '0'),
                       ('plan_cache_mode', 'force_generic_plan', 'auto'),
                       ('jit', 'off', 'on')) as settings (name, value, unset)
        where  pg_backend_pid() = %(pid)s and current_setting(name) = unset)"""

# The statements that a session of our own prepares: those that may run many times a second. To read and plan
# them is half of what they cost in PostgreSQL. Each takes the same plan whatever its parameters are. One that
# compares the status with a parameter would not: it could use no partial index.
PREPARED = {
    CREATE, READ, LIST, LIST_STATUS, backwards(LIST), backwards(LIST_STATUS), PROMOTE, REPEAT, CLAIM, EXTEND,
    COMPLETE, RETRY, FAIL, RELEASE, RECLAIM, CANCEL, CANCEL_REQUESTED, DELETE, ATTEMPTS}


class Prepared(NamedTuple):
    """A statement that is prepared."""

    name: str
    prepare: str
    execute: str        # with parameters for psycopg2


@functools.cache
def prepared(sql: str) -> Prepared:
    """Return how a statement is prepared. Its name stands for its text, whoever else has prepared it."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
    text = re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", sql)
    name = "taskmanager_" + hashlib.blake2b(sql.encode(), digest_size=16).hexdigest()
    values = f" ({', '.join(f'%({each})s' for each in names)})" if names else ""
    return Prepared(name, f"prepare {name} as {text}", f"execute {name}{values}")


# SQLSTATEs, or their beginnings, with which a server says that it can't do such a thing at the moment. With
# all others, except those of a wrong statement, it refuses this one request, because of a value, a
# constraint, a trigger of the operator's or a limit.
OUTAGES = ("08", "2200H", "25", "28", "40", "53", "55", "57", "58", "F0", "XX")

# Which tasks can be updated without waiting for another transaction.
UNLOCKED = """
select id
from   tasks
where  id = any(%(id)s::bigint[])
for no key update skip locked"""

# In a restored dump or a logical replica the sequence may have fallen behind the ids.
ADVANCE_SEQUENCE = """
select setval(pg_get_serial_sequence('tasks', 'id'), highest)
from   (select max(id) as highest from tasks where id < 4503599627370496) as tasks
where  highest > coalesce(
           pg_sequence_last_value(cast(pg_get_serial_sequence('tasks', 'id') as regclass)), 0)"""


class PostgresStore(Store):
    """PostgreSQL 12 or newer, also through a pooler in transaction mode.

    Every statement is a transaction of its own, and nothing that it needs is kept in the session, except for
    the statements that a session of our own has prepared.
    """

    def __init__(self, url: str, connections: int = 8):
        try:
            import psycopg2
            import psycopg2.extensions
        except ImportError as e:
            raise BadSetting("DATABASE_URL", url, f"{e}: pip install psycopg2-binary") from None
        super().__init__(url, connections)
        self.psycopg2 = psycopg2
        self._table_lock = Outage("the lock of the table tasks, which another transaction uses")
        register_secret("DATABASE_URL", url)

        parts = None
        with contextlib.suppress(psycopg2.ProgrammingError):        # whose text may be a part of the password
            parts = psycopg2.extensions.parse_dsn(url)
        # libpq takes what precedes the first @ as the login, and shows the rest when it finds no such host.
        if (parts is None or not re.fullmatch("[0-9,]*", parts.get("port", ""))
                or not re.fullmatch(r"\w+://([^@/]*@)?[^@?]*(\?.*)?", url)):
            raise BadSetting("DATABASE_URL", url,
                             f"expected postgresql://USER:PASSWORD@HOST:PORT/NAME, {PERCENT_ENCODING}, "
                             "the port a number, and behind a ? only parameters that libpq knows")

        # What the operator has set takes precedence. `options` are not set here: they would replace the
        # operator's, and poolers refuse them.
        self.parameters = {
            "fallback_application_name": "taskmanager",
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
            "connect_timeout": os.environ.get("PGCONNECT_TIMEOUT") or str(CONNECT_SECONDS),
            **parts,
            "client_encoding": "UTF8",
        }
        types = psycopg2.extensions
        self._session = type("Session", (types.connection,), {})     # one with attributes, see _connect()
        self._prepares = True
        types.encodings["SQLASCII"] = "utf_8"       # such a server stores bytes as they come
        self._numeric = types.new_type(types.DECIMAL.values, "FLOAT", types.FLOAT)      # see READ_AS

    def _connect(self) -> Any:
        connection = self.psycopg2.connect(**self.parameters, connection_factory=self._session)
        try:
            connection.autocommit = True
            connection.prepared = set()     # the names of what it has prepared
            connection.plan_at = -math.inf  # when to plan that anew
            connection.incoming = select.poll()
            connection.incoming.register(connection, select.POLLIN)
            types = self.psycopg2.extensions
            types.register_type(self._numeric, connection)

            encoding = connection.info.parameter_status("server_encoding")
            self.ascii = encoding not in ("UTF8", "SQL_ASCII")
            if encoding != "UTF8" and encoding in types.encodings:
                # It may hold bytes that are no text, which it would refuse to send as UTF-8: so _run()
                # decodes.
                connection.set_client_encoding(encoding)
                types.register_type(types.BYTES, connection)

            [(connection.is_own, _)] = self._run(
                connection, SET_UP_SESSION,
                {"limit": f"{STATEMENT_SECONDS}s", "pid": connection.info.backend_pid})
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_in_transaction(self, connection: Any) -> bool:
        return connection.get_transaction_status() != self.psycopg2.extensions.TRANSACTION_STATUS_IDLE

    def _is_usable(self, connection: Any) -> bool:
        # Nothing comes from an idle connection, unless the server closed it: then no statement must be risked
        # on it.
        return not connection.closed and not connection.incoming.poll(0)

    def _break_off(self, connection: Any) -> None:
        # Not by connection.cancel(), which asks the server and holds the interpreter's lock until that
        # answers.
        with contextlib.suppress(OSError, self.psycopg2.Error):
            with socket.socket(fileno=os.dup(connection.fileno())) as sock:
                sock.shutdown(socket.SHUT_RDWR)

    def _run(self, connection: Any, sql: str, params: Params | None = None,
             seconds: float | None = None) -> list[Any]:
        limit = self._state.pool.limit(connection, seconds or STATEMENT_SECONDS + 5)
        with limit, connection.cursor() as cursor:
            if sql in PREPARED and connection.is_own and self._prepares:
                self._execute_prepared(cursor, sql, params)
            else:
                cursor.execute(sql, params)
            rows = cursor.fetchall() if cursor.description else []
        if connection.encoding != "UTF8":
            codec = self.psycopg2.extensions.encodings[connection.encoding]
            rows = [tuple(each.decode(codec, "replace") if isinstance(each, bytes) else each for each in row)
                    for row in rows]
        return rows

    def _execute_prepared(self, cursor: Any, sql: str, params: Params | None) -> None:
        """Run one of PREPARED.

        A plan that was made for a small table must not serve a large one. PostgreSQL itself plans anew only
        when it has analyzed the table, which may be a minute after a million tasks have come.
        """
        errors, session = self.psycopg2.errors, cursor.connection
        name, prepare, execute = prepared(sql)
        try:
            if time.monotonic() > session.plan_at:
                cursor.execute("discard plans")
                session.plan_at = time.monotonic() + PLAN_SECONDS
            if name not in session.prepared:
                cursor.execute(prepare)
                session.prepared.add(name)
            cursor.execute(execute, params)
            return
        except errors.FeatureNotSupported:
            # Somebody has altered the type of a column ("cached plan must not change result type"): prepare
            # all of them again.
            session.prepared.clear()
            cursor.execute("deallocate all")
        except (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement) as e:
            # A pooler that passes its sessions off as ours, or somebody's DISCARD ALL.
            self._prepares = False
            log.info("no longer preparing statements: error=%r", describe(e))
        cursor.execute(sql, params)     # nothing of it was done

    def _execute(self, sql: str, params: Params | None = None, repeat: bool = True,
                 seconds: float | None = None) -> list[Any]:
        errors, used = self.psycopg2.errors, False
        for tries in itertools.count(1):
            try:
                with self._state.pool.connection() as (connection, used):
                    rows = self._run(connection, sql, params, seconds)
                break
            except (errors.DeadlockDetected, errors.SerializationFailure):      # nothing of it was done
                time.sleep(backoff(tries, 0.1, 2))
            except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName) as e:
                raise self._lost(e, "the table is not there, or not as it should be: "
                                    "a start of this program would create it") from e
            except errors.InsufficientPrivilege as e:
                raise self._lost(e, "the database's user may not do this") from e
            except errors.LockNotAvailable as e:        # the database is there
                raise Locked("the table, or this task, is in use by another transaction") from e
            except self.psycopg2.ProgrammingError:      # a fault of the statement
                raise
            except UnicodeEncodeError as e:
                lacking = f"the database's encoding, {e.encoding}, lacks {e.object[e.start]!r}"
                raise invalid("refused-by-database", lacking) from e
            except (self.psycopg2.Error, TimeoutError) as e:
                code = getattr(e, "pgcode", None) or OUTAGES[0]
                if isinstance(e, errors.UniqueViolation) and "(id)=(" in (e.diag.message_detail or ""):
                    if tries > 3:
                        raise self._lost(e, "the next id is taken") from e
                    self._advance_sequence()
                elif isinstance(e, errors.NotNullViolation) and e.diag.column_name == "attempt":
                    raise KeyReused from None           # see CREATE
                elif not code.startswith(OUTAGES):
                    raise invalid("refused-by-database", f"the database refuses it: {describe(e)}") from e
                elif not (repeat and used) or isinstance(e, (TimeoutError, errors.QueryCanceled)):
                    raise self._lost(e, "the database can't be reached") from e
                else:
                    repeat = False
        self._outage.back()
        return rows

    def _rows(self, sql: str, rows: Sequence[Sequence[Any]]) -> Params:
        columns = zip(*rows, strict=True)
        return dict(zip(array_names(sql), map(array_literal, columns), strict=True))

    def _lost(self, error: Exception, what: str) -> Unavailable:
        """Log an outage; return what is to be raised."""
        self._outage.lost(error)
        return Unavailable(what)

    def unlocked(self, ids: Collection[int]) -> set[int]:
        return {id for id, in self._batch(UNLOCKED, [(id,) for id in ids])}

    def _advance_sequence(self) -> None:
        for highest, in self._execute(ADVANCE_SEQUENCE):
            log.warning("advanced id sequence highest=%s", highest)

    def apply_schema(self) -> None:
        try:
            schema = (HERE / "schema.sql").read_text()
        except OSError as e:
            why = f"PostgreSQL needs {e.filename}: {e.strerror}"
            raise BadSetting("DATABASE_URL", self.url, why) from None
        [version] = map(int, re.findall(r"comment on table tasks is '.* (\d+)'", schema))
        for comment, is_table, columns in self._execute(FOUND_TABLE):
            applied = re.fullmatch(r"Task Manager, schema (\d+)", comment or "")
            if applied and int(applied[1]) >= version:
                return
            known = DOCUMENTED | set(re.findall(r"add column if not exists (\w+)", schema))
            if not (is_table and DOCUMENTED <= set(columns) <= known):
                raise BadSetting("DATABASE_URL", self.url,
                                 "there is a table tasks that is not this program's, with the columns "
                                 f"{', '.join(sorted(columns))}; "
                                 "expected a database or a schema (search_path) of its own")

        # As one text it is one transaction, and the lock (any number, the same in every process) ends with
        # it. While it waits to alter a table, all later statements wait behind it: so it waits only for a
        # moment, and then tries again.
        text = ("set local statement_timeout = 0; "
                "set local lock_timeout = '1s'; "
                "set local client_min_messages = warning; "
                f"select pg_advisory_xact_lock(1952543595); {schema}")
        try:
            self._execute(text, repeat=False, seconds=86400)
            self._table_lock.back()
        except (Unavailable, Invalid, self.psycopg2.ProgrammingError) as e:
            cause = e.__cause__ or e
            if isinstance(e, Locked):
                self._table_lock.lost(cause)
            if isinstance(e, Unavailable) and not isinstance(cause, self.psycopg2.ProgrammingError):
                raise
            raise BadSetting("DATABASE_URL", self.url, f"schema.sql was refused: {describe(cause)}") from e
        log.info("applied schema.sql version=%s", version)

    def _try_to_write(self) -> str | None:
        [(wrong,)] = self._execute(WRITABLE)
        if wrong:
            return str(wrong)
        self._execute(TRY_TO_WRITE)
        return None


class SQLiteStore(Store):
    """SQLite 3.35 or newer, for one machine: one writer at a time, and the file on a local disk.

    Times are stored as seconds since 1970 (`datetime(created_at, 'unixepoch')` shows them).
    """

    # The columns are those of schema.sql. SQLite stores any value in any column, unless a check refuses it.
    TABLE = """
        create table if not exists tasks (
            id              integer primary key autoincrement,
            status          varchar(20) not null default 'New'
                            check (status in ('New', 'In Progress', 'Completed', 'Failed')),
            created_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            updated_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            -- stands before what it measures, or else SQLite would read that to reach it
            size            int generated always as (coalesce(length(cast(payload as blob)), 0)
                                                     + coalesce(length(cast(result as blob)), 0)) stored,
            payload         text check (payload is null or typeof(payload) = 'text' and json_valid(payload)),
            result          text check (result is null or typeof(result) = 'text' and json_valid(result)),
            error           text check (typeof(error) <> 'blob' and length(cast(error as blob)) <= 1048576),
            priority        int not null default 0
                            check (typeof(priority) = 'integer' and priority between -32768 and 32767),
            run_at          real,
            attempt         int not null default 0
                            check (typeof(attempt) = 'integer' and attempt <= 2147483647),
            uncounted       int not null default 0
                            check (typeof(uncounted) = 'integer' and uncounted between 0 and attempt),
            max_attempts    int
                            check (typeof(max_attempts) <> 'real' and max_attempts between 1 and 2147483647),
            timeout         real check (timeout > 0 and timeout < 1e99),
            lease_until     real,
            canceled        int not null default 0 check (canceled in (0, 1)),
            progress        real check (progress between 0 and 1),
            idempotency_key text check (typeof(idempotency_key) <> 'blob'
                                        and length(cast(idempotency_key as blob)) <= 2000),
            fingerprint     text check (typeof(fingerprint) <> 'blob'),
            ready_at        real,
            worker          text check (typeof(worker) <> 'blob'),
            alone           int not null default 0 check (alone in (0, 1)),
            kind            text not null default 'default'
                            check (length(kind) between 1 and 63 and length(kind) = length(cast(kind as blob))
                                   and not kind glob '*[^a-z0-9_-]*'
                                   and not kind glob '[_-]*'),
            repeat          text check (repeat is null or typeof(repeat) = 'text' and json_valid(repeat)
                                        and length(cast(repeat as blob)) <= 1000),
            timezone        text check (typeof(timezone) <> 'blob'),
            started_at      real,
            history         text check (typeof(history) <> 'blob'
                                        and length(cast(history as blob)) <= 1048576),
            planned_at      real,
            outcome         text check (typeof(outcome) <> 'blob'),
            earlier         int not null default 0
                            check (typeof(earlier) = 'integer' and abs(earlier) <= 2147483647),

            -- an id is a number that JSON holds exactly, a time is in the years 1 to 9999
            check (id between 1 and 9007199254740991),
            check (created_at between -62135596800 and 253402300799.999
                   and updated_at between -62135596800 and 253402300799.999
                   and coalesce(run_at, 0) between -62135596800 and 253402300799.999
                   and coalesce(lease_until, 0) between -62135596800 and 253402300799.999
                   and coalesce(ready_at, 0) between -62135596800 and 253402300799.999
                   and coalesce(started_at, 0) between -62135596800 and 253402300799.999
                   and coalesce(planned_at, 0) between -62135596800 and 253402300799.999),
            -- 32 MiB, and a result
            check (size <= case status when 'Completed' then 67108864 else 33554432 end))"""

    INDEXES = """
        create index        if not exists tasks_claim_kind  on tasks (kind, (0 - priority), id)
            where status = 'New' and run_at is null;
        drop index          if exists tasks_run_alone;
        create index        if not exists tasks_promote     on tasks (run_at)
            where status = 'New' and run_at is not null;
        create index        if not exists tasks_repeat      on tasks (run_at, id)
            where repeat is not null and not canceled and status in ('Completed', 'Failed');
        create index        if not exists tasks_list_status on tasks (status, id);
        -- of all tasks: SQLite does not see that a parameter is the status of a finished one
        create index        if not exists tasks_finished    on tasks (status, updated_at);
        create unique index if not exists tasks_create      on tasks (idempotency_key)
            where idempotency_key is not null;

        -- Statistics that are made up: a status has many tasks. Without them SQLite would look for ready
        -- tasks among all that are New.
        analyze sqlite_schema;
        delete from sqlite_stat1 where tbl = 'tasks';
        insert into sqlite_stat1 values ('tasks', 'tasks_list_status', '1000000 250000 1'),
                                        ('tasks', 'tasks_finished', '1000000 250000 2');
        analyze sqlite_schema"""

    # PostgreSQL's words, and what SQLite has instead.
    WORDS = {
        "for update skip locked": "",
        "= any(%(id)s::bigint[])": "in (select * from unnest(%(id)s::bigint[]))",
        "* interval '1 second'": "",
        NOW: ":now",
        "date_part('epoch', ": "(",
        "greatest(": "max(",
        "least(": "min(",
        "json_build_object(": "json_object(",
        "to_json((": "json_quote((",     # of a text; a number has more digits in Python
        "right(": "substr(",
        ", +": ", -",       # so many characters from the end
        "floor(": "(",
        " ~ %(pattern)s": " match %(pattern)s",
        " ~ ": " regexp ",
    }

    def __init__(self, url: str, connections: int = 8):
        super().__init__(url, connections)
        self.path = Path(url.removeprefix("sqlite:///")).absolute()     # a handler may change the folder
        self.inode: int | None = None       # of the file, once it is there
        if sqlite3.sqlite_version_info < (3, 35):
            raise BadSetting("DATABASE_URL", url,
                             f"SQLite is {sqlite3.sqlite_version}, expected 3.35 or newer")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute("pragma synchronous = full")     # a commit is on the disk before it is answered
        # SQLite stores as text whatever bytes it is given.
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        connection.create_function("to_char", 2, self._to_char, deterministic=True)
        connection.create_function("to_json", 1, json.dumps, deterministic=True)
        connection.create_function("regexp", 2, self._regexp, deterministic=True)
        connection.create_function("match", 2, self._match, deterministic=True)
        return connection

    @staticmethod
    def _to_char(seconds: float | None, form: str) -> str | None:
        """Stand in for PostgreSQL's function of this name."""
        if seconds is None:
            return None
        return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat(timespec="seconds")

    @staticmethod
    def _regexp(pattern: str | None, text: str | None) -> bool | None:
        """Do what PostgreSQL's operator ~ does."""
        return None if pattern is None or text is None else re.search(pattern, text) is not None

    def _to_find(self, text: str) -> str:
        return text.casefold()

    @staticmethod
    def _match(folded: str, text: str | None) -> bool:
        """Tell whether a text contains another, in lower or upper case.

        Not by a regular expression: for "aaa…b" among many "a" Python's would take 200 times as long, and
        keep all other threads from going on.
        """
        return text is not None and folded in text.casefold()

    @staticmethod
    def _to_sqlite(value: Any) -> Any:
        """Return a parameter as SQLite takes it: a time as a number of seconds."""
        if isinstance(value, datetime):
            return (value - datetime(1970, 1, 1)) // timedelta(milliseconds=1) / 1000
        return value

    def _is_in_transaction(self, connection: Any) -> bool:
        return bool(connection.in_transaction)

    @staticmethod
    @functools.lru_cache(256)
    def _translate(sql: str) -> tuple[str, bool]:
        """Return a statement as SQLite takes it, and whether it writes."""
        writes = re.search(r"^\s*(insert|update|delete)\b", sql, re.MULTILINE) is not None
        for word, translation in SQLiteStore.WORDS.items():
            sql = sql.replace(word, translation)
        sql = re.sub(r"(?s)select \* from unnest\((.*?\[\])\)", SQLiteStore._from_json, sql)
        return re.sub(r"%\((\w+)\)s", r":\1", sql), writes

    @staticmethod
    def _from_json(unnest: re.Match) -> str:
        """Return what stands for unnest(). One JSON text takes a third of the time of a parameter a value."""
        columns = (f"json_extract(value, '$[{n}]')" for n in range(unnest[1].count("[]")))
        return f"select {', '.join(columns)} from json_each(:rows)"

    def _rows(self, sql: str, rows: Sequence[Sequence[Any]]) -> Params:
        return {"rows": json.dumps(rows, ensure_ascii=False, default=self._to_sqlite)}

    def _execute(self, sql: str, params: Params | None = None, repeat: bool = True) -> list[Any]:
        return self._transaction([(sql, params or {})])

    def _transaction(self, statements: list[tuple[str, Params]]) -> list[Any]:
        _, writes = self._translate(statements[0][0])
        state, rows = self._state, []
        try:
            if self.path.stat().st_ino != self.inode:
                raise FileNotFoundError(f"{self.path} is no longer the file that it was")
            # Within the process writers queue up here, which is fairer and quicker than SQLite's own waiting.
            turn = state.writing if writes else contextlib.nullcontext()
            with turn, state.pool.connection() as (connection, _):
                if len(statements) > 1:
                    connection.execute("begin immediate")
                now = time.time()
                for sql, params in statements:
                    values = {name: self._to_sqlite(value) for name, value in params.items()}
                    values["now"] = now
                    rows += connection.execute(self._translate(sql)[0], values).fetchall()
                if connection.in_transaction:
                    connection.commit()
        except sqlite3.IntegrityError as e:
            if "tasks.attempt" in str(e):       # see CREATE
                raise KeyReused from None
            raise invalid("refused-by-database", f"the database refuses it: {e}") from e
        except (sqlite3.DatabaseError, OSError) as e:
            self._outage.lost(e)
            raise Unavailable("the database can't be used") from e
        self._outage.back()
        return rows

    def _claim_start(self, kind: str) -> ClaimStart:
        return ClaimStart()     # here an index holds nothing that was claimed: each claim begins there

    def _try_to_write(self) -> None:
        # Into a table that is always there and holds no task. SQLite writes only what changes, so a row is
        # inserted and deleted.
        self._transaction([("insert into sqlite_stat1 (tbl) values ('try')", {}),
                           ("delete from sqlite_stat1 where tbl = 'try'", {})])

    def apply_schema(self) -> None:
        for tries in itertools.count(1):
            try:
                with contextlib.suppress(OSError):
                    self.path.touch(0o600)      # nobody else may read it; its -wal and -shm follow it
                with self._state.writing, contextlib.closing(self._connect()) as connection:
                    # SQLite does not wait for another process that is just doing the same.
                    connection.execute("pragma journal_mode = wal")
                    connection.execute("begin immediate")
                    self._update_table(connection)
                    for statement in self.INDEXES.split(";\n"):
                        connection.execute(statement)
                    connection.commit()
                self.inode = self.path.stat().st_ino
                return
            except sqlite3.Error as e:
                if "locked" not in str(e) or tries == 100:
                    raise BadSetting("DATABASE_URL", self.url, str(e)) from e
                time.sleep(0.1)

    def _update_table(self, connection: sqlite3.Connection) -> None:
        """Create the table, or bring that of an older version up to date. Raise BadSetting for any other."""
        with contextlib.closing(sqlite3.connect(":memory:")) as empty:
            empty.execute(self.TABLE)
            wanted = self._columns(empty)
        found = self._columns(connection)
        if found and not DOCUMENTED | {"attempt", "lease_until"} <= found.keys() <= wanted.keys():
            raise BadSetting("DATABASE_URL", self.url,
                             "there is a table tasks that is not this program's, with the columns "
                             f"{', '.join(sorted(found))}; expected another file")

        if found and found.keys() != wanted.keys():
            names = ", ".join(name for name, is_generated in found.items() if not is_generated)
            connection.execute(self.TABLE.replace("exists tasks (", "exists newer_tasks ("))
            connection.execute(f"insert into newer_tasks ({names}) select {names} from tasks")
            if "outcome" not in found:      # as in schema.sql
                connection.execute("""
                    update newer_tasks
                    set    earlier = case when repeat is null then 0 else uncounted end,
                           outcome = case
                                     when error like 'the worker died or was cut off%' then 'reclaimed'
                                     when error like 'timed out after %' then 'timed_out'
                                     when status = 'Failed' and not canceled then 'failed'
                                     end
                    where  repeat is not null or error is not null""")
            # No id is given again, not even that of a task that was deleted.
            connection.execute("delete from sqlite_sequence where name = 'newer_tasks'")
            connection.execute("update sqlite_sequence set name = 'newer_tasks' where name = 'tasks'")
            connection.execute("drop table tasks")      # and its indexes
            connection.execute("alter table newer_tasks rename to tasks")
            log.info("upgraded table columns=%r", ", ".join(sorted(wanted.keys() - found.keys())))
        connection.execute(self.TABLE)

    @staticmethod
    def _columns(connection: sqlite3.Connection) -> dict[str, bool]:
        """Return the columns of the table, and of each whether it is generated."""
        return dict(connection.execute("select name, hidden > 0 from pragma_table_xinfo('tasks')"))


def _in_thread(function: Callable[[], None]) -> None:
    """Call a function that may block in C in a thread of its own, so that this one still handles signals."""
    errors = []

    def call() -> None:
        try:
            function()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=call, name="open_store", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        if stopping.is_set():
            raise KeyboardInterrupt
    if errors:
        raise errors[0]


def open_store(url: str, wait: bool = False, connections: int = 8) -> Store:
    """Return the store at `url` (sqlite:///FILE or postgresql://…), its table ready.

    Raise BadSetting; and Unavailable, unless it is to `wait` until the database is there. `connections`: how
    many each process opens at most.
    """
    store = (SQLiteStore if url.startswith("sqlite:") else PostgresStore)(url, connections)
    for tries in itertools.count(1):
        try:
            _in_thread(store.apply_schema)
            store.waited = tries > 1
            break
        except Unavailable:
            if not wait:
                raise
            if stopping.wait(backoff(tries, 0.2, 5)):
                raise KeyboardInterrupt from None
    return store


# ----------------------------------------------------------------------------
# Handlers: what runs a task. The operator chooses them with HANDLER, a client never can: by the kind of its
# task it names one of those that a worker has found at its start. A handler is a callable that takes a Task;
# what it returns becomes the result, an exception the error of the attempt.

class Failed(Exception):
    """Raised by a handler: the task has failed for good, without a further attempt."""


class Retry(Exception):
    """Raised by a handler: the attempt has failed; try again after `delay` seconds, or the usual backoff."""

    delay: float | None = None

    def __init__(self, message: str = "", delay: float | None = None):
        super().__init__(message)
        if delay is not None and not 0 <= delay <= MAX_DELAY:
            raise ValueError(f"expected a delay from 0 to {MAX_DELAY} seconds, not {delay!r}")
        self.delay = delay


class StopReason(enum.Enum):
    """Why a handler is told to stop; the text is for the log and for the task's error."""

    CANCELED = "canceled"
    TIMED_OUT = "timed out"
    LEASE_LOST = "another attempt has begun"
    SHUTDOWN = "the worker stops"


class Task:
    """A task as its handler sees it.

    id:       the task's id
    kind:     "default" for a task that says none
    attempt:  1 for the first attempt; grows with each one
    timeout:  seconds that this attempt may take, or None
    deadline: the time.monotonic() at which they are over, or None
    idempotency_key: the same for every attempt of this task, and for no other task; each run of a repeating
              task has its own
    json:     the payload as JSON text ("null" when the task has none)
    stop_reason: why the handler was told to stop, or None
    """

    def __init__(self, row: Row, default_timeout: float | None):
        self.id, self.attempt, self.json = row.id, row.attempt, row.payload or "null"
        self.kind = row.kind or "default"
        self.timeout = row.timeout or default_timeout
        self.deadline: float | None = None
        self.stop_reason: StopReason | None = None

        # For the worker:
        self.row = row
        self.claimed_at = self.started_at = time.monotonic()
        self.leased_until = math.inf                    # by time.monotonic(), maybe longer by the table
        self.unsaved_progress: float | None = None      # reported, but not yet in the table
        self.stopped_at = 0.0                           # the time.monotonic() of the last stop()
        self.was_forced = False                         # a further stop() could do no more
        self._lock = threading.Lock()
        self._hook: Callable[[bool], None] | None = None

    def begin(self) -> None:
        """Note that the handler begins; from now on the timeout counts."""
        self.started_at = time.monotonic()
        self.deadline = self.started_at + self.timeout if self.timeout else None

    @property
    def idempotency_key(self) -> str:
        """What every attempt of this task has in common, and no other task has: see above."""
        key = f"task-{self.row.id}-{self.row.created_at}"
        if self.row.repeat:     # the attempts before this run tell one run from the others
            key += f"-{self.row.earlier}"
        return key

    @functools.cached_property
    def payload(self) -> Any:
        """The payload, parsed; None when the task has none."""
        return json.loads(self.json)

    def progress(self, fraction: float) -> None:
        """Report how much is done, from 0 to 1. Cheap: it is written about once per POLL_SECONDS."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"expected a progress from 0 to 1, not {fraction!r}")
        self.unsaved_progress = float(fraction)

    @property
    def canceled(self) -> bool:
        """Whether the handler is to stop.

        True for every reason, not only after a cancellation was requested: `stop_reason` tells which one.
        """
        return self.stop_reason is not None

    def on_stop(self, hook: Callable[[bool], None] | None) -> None:
        """Have `hook(force)` called, from another thread, when the handler is to stop.

        It is called with False first, and with True when the handler has not ended STOP_SECONDS later.
        """
        with self._lock:
            self._hook = hook
            if hook and self.stop_reason:
                hook(False)

    def stop(self, reason: StopReason, force: bool = False) -> None:
        """Tell the handler to stop. The first reason stands."""
        with self._lock:
            self.stop_reason = self.stop_reason or reason
            self.stopped_at = time.monotonic()
            self.was_forced = force or not self._hook
            if self._hook:
                self._hook(force)


Handler = Callable[[Task], Any]


def gunzip(data: bytes) -> bytes:
    """Decompress the output of a program or a server, if it is gzip, to at most MAX_BODY + 1 bytes."""
    if data[:2] == b"\x1f\x8b":
        with contextlib.suppress(OSError, EOFError, zlib.error):
            return gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BODY + 1)
    return data


def decode_text(data: bytes) -> str:
    """Decode UTF-8 or UTF-16, without a byte order mark; replace NUL and what can't be decoded."""
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return data.decode(encoding, "replace").replace("\0", "\ufffd")


def parse_output(data: bytes) -> Any:
    """Return the result that the output of finished work is: JSON, else text; None for blanks.

    Raise Failed for more than MAX_BODY bytes.
    """
    data = gunzip(data)
    if len(data) > MAX_BODY:
        raise Failed(f"more than {MAX_BODY} bytes")
    text = decode_text(data)
    if not text.strip():
        return None
    try:
        value = parse_json(text.encode())
        encode_json(value)
        return value
    except Invalid:
        return text.rstrip("\n")


class ExecHandler:
    """Runs a program, without a shell: payload on stdin, result on stdout, in a process group of its own."""

    def __init__(self, command: str):
        self.args = shlex.split(command)
        if not self.args or not shutil.which(self.args[0]):
            raise ValueError("expected a program that can be run after exec:")

    def __call__(self, task: Task) -> Any:
        """Return the result. Raise Retry for another exit status than 0, and Failed for too much output."""
        environ = {name: value for name, value in os.environ.items() if name not in TOKENS}
        environ |= {"TASK_ID": str(task.id), "TASK_ATTEMPT": str(task.attempt), "TASK_KIND": task.kind}
        with tempfile.TemporaryFile() as stdin:     # a pipe would block until the program reads it
            stdin.write(task.json.encode())
            stdin.seek(0)
            process = subprocess.Popen(self.args, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       env=environ, start_new_session=True)

        def end_group(force: bool) -> None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)

        with process:
            try:
                task.on_stop(end_group)
                stdout, stderr = self._read_output(process)
                process.wait()
            except BaseException:
                end_group(force=True)
                raise
            finally:
                task.on_stop(None)

        if task.canceled:
            end_group(force=True)       # what is left of it
        if status := process.returncode:
            error = f"exit status {status}"
            if status < 0:
                error = f"ended by signal {-status} ({signal.strsignal(-status)})"
            tail = truncate(stderr.decode("utf-8", "replace").strip(), MAX_ERROR - 100)
            raise Retry(f"{error}: {tail}" if tail else error)
        try:
            return parse_output(stdout)
        except Failed as e:
            raise Failed(f"printed {e}") from None

    @staticmethod
    def _read_output(process: subprocess.Popen) -> tuple[bytes, bytes]:
        """Read what a program prints until it ends; return the beginning of stdout and the end of stderr.

        Both are pipes, since a program that opens /dev/stdout would empty a file. The attempt ends with the
        program itself, even when a child that it leaves behind has the output still open.
        """
        assert process.stdout and process.stderr
        stdout, stderr = bytearray(), bytearray()
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            for pipe, buffer in (process.stdout, stdout), (process.stderr, stderr):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, buffer)

            check_seconds: float | None = 0.1   # where the system does not tell that a process has ended
            with contextlib.suppress(AttributeError, OSError):
                pidfd = os.pidfd_open(process.pid)
                stack.callback(os.close, pidfd)
                selector.register(pidfd, selectors.EVENT_READ)
                check_seconds = None

            ended = False
            while not ended and any(key.data is not None for key in selector.get_map().values()):
                readable = [key for key, _ in selector.select(check_seconds)]
                ended = process.poll() is not None
                for key in list(selector.get_map().values()) if ended else readable:
                    if key.data is None:        # the pidfd
                        continue
                    with contextlib.suppress(BlockingIOError):
                        data = os.read(key.fd, 1 << 20)     # all that a pipe can hold
                        key.data.extend(data)
                        if not data:
                            selector.unregister(key.fileobj)
                del stdout[MAX_BODY + 1:], stderr[:-12 * MAX_ERROR]
        return bytes(stdout), bytes(stderr)


class FinalResponse(http.client.HTTPResponse):
    """The response itself, not an interim one before it (102 Processing, 103 Early Hints)."""

    def begin(self):
        super().begin()
        while 100 <= self.status < 200 and self.status != 101:
            self.headers = None         # type: ignore[assignment]  # or begin() would do nothing
            super().begin()


def retry_after(value: str | None) -> float | None:
    """Parse a Retry-After header (RFC 9110): the seconds of its number or until its date, up to a day.

    Return None for a missing or wrong one.
    """
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds()
        return min(max(seconds, 0), 86400)
    except Exception:       # the parser of dates raises many kinds, such as for the year 99999999999
        return None


class HttpHandler:
    """Posts the task as JSON to an address. Redirects are not followed."""

    def __init__(self, url: str):
        parts = self._split(url, "the address")
        self.is_tls = parts.scheme == "https"
        self.host, self.port = parts.hostname or "", parts.port or (443 if self.is_tls else 80)
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.headers = {"Content-Type": "application/json", "User-Agent": f"taskmanager/{__version__}"}
        self.headers |= self._basic("Authorization", parts)

        self.proxy: SplitResult | None = None
        self.proxy_headers: dict[str, str] = {}
        proxy = getproxies_environment().get(parts.scheme)
        if not proxy or re.fullmatch(r"localhost|127\.[0-9.]+|::1", self.host):
            return
        if any(map(proxy_bypass_environment, (self.host, f"{self.host}:{self.port}"))):
            return
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        self.proxy = self._split(proxy, f"{parts.scheme.upper()}_PROXY", ("http",))
        self.proxy_headers = self._basic("Proxy-Authorization", self.proxy)
        if not self.is_tls:
            self.target = f"http://{parts.netloc.rpartition('@')[2]}{self.target}"
            self.headers |= self.proxy_headers

    @staticmethod
    def _split(url: str, name: str, schemes: Sequence[str] = ("http", "https")) -> SplitResult:
        """Split an address. Raise ValueError with `name`."""
        # Checked before urlsplit() sees it, whose errors may quote a part of the password.
        match = re.fullmatch(
            r"(\w+)://(?:[^/?#\[\]]*@)?(?:[^/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?(?:[/?#].*)?",
            url if re.fullmatch("[!-~]+", url) else "")
        if not match or match[1].lower() not in schemes or int(match[2] or 0) > 65535:
            raise ValueError(f"{name}: expected {' or '.join(schemes)}://USER:PASSWORD@HOST:PORT, "
                             f"in ASCII and without spaces, {PERCENT_ENCODING}")
        register_secret("HANDLER", url)
        return urlsplit(url)

    @staticmethod
    def _basic(header: str, parts: SplitResult) -> dict[str, str]:
        """Return the header that sends the login of an address, if it has one."""
        if parts.username is None:
            return {}
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = base64.b64encode(login.encode()).decode()
        _secrets.add(login)
        return {header: f"Basic {login}"}

    def __call__(self, task: Task) -> Any:
        """Return the result. Raise Retry for no answer or one that allows another attempt, else Failed."""
        seconds: float = CONNECT_SECONDS
        if task.deadline:
            seconds = max(min(seconds, task.deadline - time.monotonic()), 0.001)
        host, port = self.host, self.port
        if self.proxy:
            host, port = self.proxy.hostname or "", self.proxy.port or 80
        connection_class = http.client.HTTPSConnection if self.is_tls else http.client.HTTPConnection
        connection = connection_class(host, port, timeout=seconds)
        connection.response_class = FinalResponse
        if self.proxy and self.is_tls:
            connection.set_tunnel(self.host, self.port, self.proxy_headers)

        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)

            def connect(*args: Any) -> socket.socket:
                sock = socket.create_connection(*args)
                # A handle of our own: http.client and the TLS handshake pass theirs on, or forget it.
                handle = stack.enter_context(sock.dup())

                def interrupt(force: bool) -> None:
                    with contextlib.suppress(OSError):
                        handle.shutdown(socket.SHUT_RDWR)

                stack.callback(task.on_stop, None)
                task.on_stop(interrupt)     # at once if the task was stopped meanwhile: then nothing is sent
                return sock

            # http.client calls this to connect, before it speaks to a proxy and starts TLS.
            connection._create_connection = connect     # type: ignore[attr-defined]
            try:
                connection.connect()
                connection.sock.settimeout(task.timeout or HTTP_SECONDS)
                request = (f'{{"id": {task.id}, "attempt": {task.attempt}, "kind": "{task.kind}", '
                           f'"payload": {task.json}}}')
                key = {"Idempotency-Key": f'"{task.idempotency_key}"'}
                connection.request("POST", self.target, request.encode(), self.headers | key)
                with connection.getresponse() as response:
                    body = bytearray(MAX_BODY + 1)      # read() has no limit after a chunk of -1 bytes
                    del body[response.readinto(body):]
                    if response.length and len(body) <= MAX_BODY:
                        raise http.client.IncompleteRead(bytes(body), response.length)
                    return self.result(response.status, response.headers, bytes(body))
            except (OSError, http.client.HTTPException) as e:
                raise Retry(f"no answer: {describe(e)}") from e

    @staticmethod
    def result(status: int, headers: Message, body: bytes) -> Any:
        """Return the result that an answer holds. Raise Retry or Failed for an answer other than 2xx."""
        if 200 <= status < 300:
            if not is_json(headers.get("Content-Type", "")):
                return None
            try:
                return parse_output(body)
            except Failed as e:
                raise Failed(f"answered {status} with {e}") from None

        text = headers.get("Location", "") if 300 <= status < 400 else decode_text(gunzip(body))
        error = f"answered {status}: {truncate(text.strip(), MAX_ERROR - 100, beginning=True)}"
        if status < 200 or status in (408, 425, 429) or status >= 500:
            raise Retry(error, delay=retry_after(headers.get("Retry-After")))
        raise Failed(error)


FORMS = ("expected package.module:function, exec:program args… or https://…; {kind} stands only for the "
         "function, for the program after its folder, or after the host")


def find_functions(module: Any) -> dict[str, Handler]:
    """Return the functions that `{kind}` names in a module. Raise ValueError.

    These are the public ones that are defined in that very module: of those in its __all__, where it has
    one, and none that it imports. Only a name that is also one of a kind counts (no capitals).
    """
    found: dict[str, Handler]
    found = {name: value for name, value in vars(module).items()
             if KIND.fullmatch(name) and name in getattr(module, "__all__", [name])
             and inspect.isfunction(value) and value.__module__ == module.__name__
             and not inspect.iscoroutinefunction(value)}
    if not found:
        raise ValueError(f"expected public functions, and no async ones, defined in {module.__name__}")
    return found


def find_programs(command: str) -> dict[str, Handler]:
    """Return the programs that `folder/{kind} args…` names. Raise ValueError or OSError.

    These are the executable files in that very folder whose names are those of kinds (no dots, no capitals).
    A symbolic link counts when what it leads to is in the folder, too.
    """
    program, *args = shlex.split(command)
    path = program.removesuffix("{kind}")
    if not path.endswith("/") or any("{kind}" in part for part in (path, *args)):
        raise ValueError(FORMS)

    folder = Path(path).resolve()       # a handler may change the current folder
    found: dict[str, Handler] = {}
    for file in sorted(folder.iterdir()):
        if KIND.fullmatch(file.name) and file.is_file() and os.access(file, os.X_OK):
            if folder in file.resolve().parents:
                found[file.name] = ExecHandler(shlex.join([str(file), *args]))
    if not found:
        raise ValueError(f"expected executable files in {folder} whose names are those of kinds")
    return found


def load_handler(text: str | None, kinds: Iterable[str] = ()) -> Handler | dict[str, Handler] | None:
    """Return the handler that HANDLER names, or None; those of each kind where it holds `{kind}`.

    `kinds`: those whose address is wanted. Raise BadSetting.
    """
    if not text:
        return None
    try:
        by_kind = "{kind}" in text
        if text.startswith("exec:"):
            if not hasattr(os, "killpg"):       # Windows: what a program has started could not be stopped
                raise ValueError("programs are run only where there are process groups (Linux, macOS, BSD)")
            command = text.removeprefix("exec:")
            return find_programs(command) if by_kind else ExecHandler(command)
        if re.match(r"https?://", text, re.IGNORECASE):
            if not by_kind:
                return HttpHandler(text)
            if "{kind}" in re.split("[/?#]", text, maxsplit=3)[2]:
                raise ValueError(FORMS)
            return {kind: HttpHandler(text.replace("{kind}", kind)) for kind in kinds or ["default"]}
        if not re.fullmatch(r"[\w.]+:(\{kind\}|[\w.]+)", text):
            raise ValueError(FORMS)

        sleep = time.sleep
        found = pkgutil.resolve_name(text.removesuffix("{kind}"))
        if time.sleep is not sleep:
            raise ValueError("its module replaces the standard library's threads, in which a worker runs its "
                             "tasks (as monkey.patch_all() of gevent does): expected one that does not")
        if by_kind:
            return find_functions(found)
        if not callable(found) or inspect.iscoroutinefunction(found):
            raise ValueError(f"expected a function, and no async one: {text}")
        return found
    except (Exception, SystemExit) as e:
        raise BadSetting("HANDLER", text, str(e) if type(e) is ValueError else describe(e)) from e


def load_handlers(config: Config, handler: Handler | Mapping[str, Handler | None] | None = None
                  ) -> dict[str, Handler | None]:
    """Return the kinds of tasks that a worker takes, each with its handler. Raise BadSetting.

    `handler`: one for all kinds, or one for each; None for what config.handler names. Where there is none, a
    task of that kind is completed at once.
    """
    kinds = parse_kinds(config.kinds)
    slots = config.concurrency + sum(own or 0 for own in kinds.values())
    if slots > MAX_SLOTS:
        raise BadSetting("KINDS", config.kinds, f"with CONCURRENCY={config.concurrency} that makes {slots} "
                                                f"slots; expected at most {MAX_SLOTS}")
    there = load_handler(config.handler, kinds) if handler is None else handler
    if not isinstance(there, Mapping):
        return dict.fromkeys(kinds or ["default"], there)
    if unknown := sorted(kinds.keys() - there.keys()):
        raise BadSetting("KINDS", config.kinds, f"HANDLER has nothing for {', '.join(unknown)}; expected "
                                                f"kinds among {', '.join(there)}")
    return {kind: there[kind] for kind in kinds or there}


def _end_child(error: BaseException | None) -> NoReturn:
    """End a forked process as Python ends a program, but without the atexit functions of its parent."""
    code: Any = 1
    try:
        code = error.code if isinstance(error, SystemExit) else 1 if error else 0
        if error and not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif not isinstance(code, (int, type(None))):
            print(code, file=sys.stderr)
            code = 1
        sys.stdout.flush()
    finally:
        os._exit(code or 0)


def call_handler(handler: Handler, task: Task) -> Any:
    """Return or raise what the handler does.

    A process that the handler forked and that returns from it ends here: it must not become a second worker.
    """
    process = os.getpid()
    try:
        return handler(task)
    finally:
        if os.getpid() != process:
            _end_child(sys.exc_info()[1])


# ----------------------------------------------------------------------------
# Worker: one thread talks to the database. It writes outcomes, extends leases and claims tasks for free
# slots, and ahead, where they are quick. Handlers run in threads of their own, one per slot. It knows nothing
# of RabbitMQ.

class Outcome(NamedTuple):
    """How an attempt has ended: the transition of its task that is to be written."""

    transition: str                 # complete, retry, fail or release, as the methods of Store
    values: tuple[Any, ...] = ()    # what that method takes after the task's id and the number of the attempt


def retry_delay(row: Row, config: Config, delay: float | None = None) -> float | None:
    """Return the seconds until the next attempt after a failed one: `delay`, or the backoff.

    Return None when it was the last.
    """
    if row.attempts >= (row.max_attempts or config.max_attempts):
        return None
    return backoff(row.attempts, config.retry_seconds, MAX_BACKOFF) if delay is None else delay


def _outcome_of_failure(task: Task, config: Config, error: str, final: bool = False,
                        delay: float | None = None, outcome: str | None = None) -> Outcome:
    seconds = None if final else retry_delay(task.row, config, delay)
    if seconds is None:
        return Outcome("fail", (truncate(error), outcome or "failed"))
    return Outcome("retry", (truncate(error), seconds, outcome or "retried"))


def _outcome_of_result(result: Any) -> Outcome:
    """Return the outcome of a handler that has returned. Raise Failed for what can't be a result."""
    try:
        text = None if result is None else encode_json(result)
    except Invalid as e:
        raise Failed(f"its result: {e}") from None
    if text and len(text.encode()) > MAX_BODY:
        raise Failed(f"its result has more than {MAX_BODY} bytes")
    return Outcome("complete", (text,))


def _outcome_of_exception(task: Task, config: Config, error: BaseException) -> Outcome:
    """Return the outcome of a handler that has raised an exception."""
    if isinstance(error, (Failed, Retry)):
        text, delay = truncate(str(error)) or describe(error), getattr(error, "delay", None)
        return _outcome_of_failure(task, config, text, isinstance(error, Failed), delay and DELAY(delay))
    log.debug("traceback task=%s attempt=%s", task.id, task.attempt, exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if "/lib/python" not in frame.filename), frames[-1])
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return _outcome_of_failure(task, config, f"{describe(error)} ({place})")


def _outcome_of_stop(task: Task, config: Config, reason: StopReason) -> Outcome:
    """Return the outcome of a handler that was told to stop; what it returned or raised does not count."""
    if reason is StopReason.SHUTDOWN:
        return Outcome("release")
    if reason is StopReason.TIMED_OUT:
        return _outcome_of_failure(task, config, f"timed out after {task.timeout:g} s", outcome="timed_out")
    return _outcome_of_failure(task, config, reason.value, final=reason is StopReason.CANCELED)


class Slots:
    """Slots that some kinds share: so many of their tasks run at the same time, each in a thread of its own.

    The others that were claimed wait here, in the order of their claims.
    """

    def __init__(self, number: int):
        self.number = number
        self.missing_threads = 0        # slots without a thread
        self.waiting: dict[tuple[int, int], Task] = {}      # by id and attempt
        self.running: dict[tuple[int, int], Task] = {}
        self.queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()    # what waits; None ends a thread

    def free(self) -> int:
        """Return how many slots run nothing."""
        return max(0, self.number - self.missing_threads - len(self.running))


class Worker:
    """Runs the tasks of a store until it is stopped. Any number of workers may share a store."""

    def __init__(self, store: Store, config: Config = Config(),
                 handler: Handler | Mapping[str, Handler | None] | None = None):
        """`handler`: a callable that takes a Task, or one for each kind; None for what config.handler names.

        Raise BadSetting.
        """
        self.store, self.config = store, config
        self.handlers = load_handlers(config, handler)
        self.runs = any(self.handlers.values())     # or else each task is completed at once

        # The slots of each kind: its own, or those that it shares with others.
        own = parse_kinds(config.kinds)
        self._own_slots = {kind: own.get(kind) for kind in self.handlers}
        shared = Slots(config.concurrency)
        self._slots_of = {kind: Slots(number) if number else shared
                          for kind, number in self._own_slots.items()}
        self._all_slots = list(dict.fromkeys(self._slots_of.values()))
        self.slots = sum(slots.number for slots in self._all_slots)

        # Shared by all threads. The lock is held to change them, and to loop over their entries; to look at
        # one entry needs no lock. The tasks in each Slots belong to these, too.
        self._lock = threading.Lock()
        self._outcomes: dict[str, list[tuple]] = {  # still to be written, by transition; the Row stands last
            "complete": [], "retry": [], "fail": [], "release": []}
        # How many tasks of a kind may wait here for a slot: one more after each that has ended within
        # CLAIM_AHEAD_SECONDS of its claim, half as many after one that has not, none after one that was given
        # back. (TCP finds out in this way how much may be under way.)
        self._ahead = dict.fromkeys(self.handlers, 0)

        # Signals between the threads.
        self._woken = threading.Event()         # the database thread has something to do
        self._should_look = True                # which kinds have ready tasks is to be asked
        self._stop_at: float | None = None      # when running handlers are told to stop; set by begin_stop()

        # The database thread's own. Times are those of time.monotonic().
        self._next_poll = self._next_heartbeat = self._next_delete = 0.0
        self._next_sweeps: dict[str, float] = {}        # when each sweep is made again
        self._failing: set[str] = set()                 # sweeps, and kinds whose claims, have just failed
        # When the last sweeps ended. A store that had to wait for the database counts as not swept for long,
        # so that the first ones give other workers time to come back; any other as swept just now.
        self._swept_at = -math.inf if store.waited else math.inf
        self._turns = list(self.handlers)       # kinds, the one that was claimed last at the end
        # The kinds that may have ready tasks; of each whether the first one must run alone, and since when it
        # has been ready.
        self._ready: dict[str, tuple[bool, float]] = {}
        self._undeletable_logged = False
        self._threads = Outage("a thread for each slot")
        self._locked_rows = Outage("access to rows that another transaction keeps locked")
        self._thread = EssentialThread("worker", self._loop)

    # On the caller's thread

    def start(self) -> None:
        """Begin to take tasks, in threads of its own."""
        for slots in self._all_slots:
            slots.missing_threads = slots.number if self.runs else 0
        self._thread.start()
        self.store.listeners.append(self.wake)
        name = "none"
        if self.config.handler:
            name = show_setting("HANDLER", self.config.handler)
        elif self.runs:
            names = [getattr(each, "__qualname__", type(each).__name__) for each in self.handlers.values()]
            name = ",".join(dict.fromkeys(names))
        does_nothing = self.slots and not self.runs
        what = ", so each task is completed at once" if does_nothing else f" slots={self.slots}"
        log.info("started worker handler=%r kinds=%s%s", name, show_kinds(self._own_slots), what)

    def wake(self) -> None:
        """Look for tasks now, because there may be new ones."""
        self._should_look = True
        self._woken.set()

    def begin_stop(self, grace: float | None = None) -> None:
        """Claim no more tasks; tell handlers to stop that still run after `grace` seconds (GRACE_SECONDS)."""
        grace = self.config.grace_seconds if grace is None else grace
        if self._stop_at is None:
            self._stop_at = time.monotonic() + grace
            if running := sum(len(slots.running) for slots in self._all_slots):
                log.info("stopping worker running=%s grace=%gs", running, grace)
        self._woken.set()

    def stop(self, grace: float | None = None) -> None:
        """Stop, as begin_stop() does, and wait until all tasks have ended or are given back."""
        self.begin_stop(grace)
        assert self._stop_at is not None
        if self.wake in self.store.listeners:
            self.store.listeners.remove(self.wake)
        if self._thread.ident is None:          # it was never started
            return
        self._thread.join(max(0, self._stop_at - time.monotonic()) + self._give_up_seconds() + 1)
        held = self._held_tasks()
        for slots in self._all_slots:
            with self._lock:
                slots.waiting.clear()       # what could not be given back is not run either
            for _ in range(slots.number):
                slots.queue.put(None)
        # The database does not answer, or the thread failed.
        if self._thread.is_alive() or held:
            for task in self._running_tasks():
                task.stop(StopReason.SHUTDOWN, force=True)
            log.warning("stopped worker; what it could not give back will be reclaimed")
        else:
            log.info("stopped worker")

    # On the database thread, in the order of its loop

    def _loop(self) -> None:
        """Do in turn what is to be done, whenever something happens or is due. Go on after an error."""
        failures = 0
        while not self._is_done():
            try:
                self._woken.wait(self._seconds_to_wait())
                self._woken.clear()
                self._stop_handlers()
                self._give_back()
                all_written = self._write_outcomes()
                was_due = self._poll()
                self._start_threads()
                self._claim()
                if was_due:
                    self._sweep()
                failures = 0
                if all_written:
                    self._locked_rows.back()
            except Exception as e:
                failures += 1
                if isinstance(e, Locked):
                    self._locked_rows.lost(e)
                if failures == 1 and not isinstance(e, Unavailable):    # the store has logged that one
                    log.exception("worker goes on after an error")
                time.sleep(backoff(failures, 0.1, 5 if self._stop_at is None else 1))
                self.wake()

    def _is_done(self) -> bool:
        """Tell whether the worker was stopped, and has ended all its tasks or has no more time for them."""
        if self._stop_at is None:
            return False
        has_tasks = self._held_tasks() or any(self._outcomes.values())
        return not has_tasks or time.monotonic() >= self._stop_at + self._give_up_seconds()

    def _seconds_to_wait(self) -> float:
        """Return the seconds until something is due: a poll, or to stop a handler, or to give tasks back."""
        times = [self._next_poll]
        with self._lock:
            for slots in self._all_slots:
                for task in itertools.islice(slots.waiting.values(), slots.free(), slots.free() + 1):
                    times.append(task.claimed_at + CLAIM_AHEAD_SECONDS)
        for task in self._running_tasks():
            times.append(task.stopped_at + STOP_SECONDS if task.stop_reason else task.deadline or math.inf)
        if self._stop_at is not None and time.monotonic() < self._stop_at:
            times.append(self._stop_at)
        return max(0, min(times) - time.monotonic())

    def _stop_handlers(self) -> None:
        """Tell handlers to stop whose time is over, then use force, and at last go on without them."""
        now = time.monotonic()
        for task in self._running_tasks():
            if not task.stop_reason:
                if task.deadline and now >= task.deadline:
                    task.stop(StopReason.TIMED_OUT)
                elif self._stop_at is not None and now >= self._stop_at:
                    task.stop(StopReason.SHUTDOWN)
            elif now >= task.stopped_at + STOP_SECONDS:
                if not task.was_forced:
                    task.stop(task.stop_reason, force=True)
                elif self._record(task, _outcome_of_stop(task, self.config, task.stop_reason)):
                    # Python can't end a thread. This one keeps what it holds; a new one takes its slot.
                    self._slots_of[task.kind].missing_threads += 1
                    log.error("gave up on the handler of task=%s attempt=%s: "
                              "it was told to stop (%s) and did not",
                              task.id, task.attempt, task.stop_reason.value)

    def _give_back(self) -> None:
        """Give back what has waited for a slot for too long, behind slow tasks; all of it at a stop.

        Those that a free slot is just about to take are not among these.
        """
        before = math.inf if self._stop_at is not None else time.monotonic() - CLAIM_AHEAD_SECONDS
        with self._lock:
            for slots in self._all_slots:
                behind = itertools.islice(slots.waiting.values(), slots.free(), None)
                late = [task for task in behind if task.claimed_at <= before]
                for task in late:
                    del slots.waiting[task.id, task.attempt]
                    self._outcomes["release"].append((task.id, task.attempt, task.row))
                self._ahead.update((task.kind, 0) for task in late)

    def _write_outcomes(self) -> bool:
        """Write how attempts have ended. Return whether that was all: outcomes of locked tasks are kept."""
        for transition, outcomes in self._outcomes.items():
            if batch := outcomes[:]:
                locked = self._write(transition, batch)
                with self._lock:
                    outcomes[:len(batch)] = locked      # not before: all stay when the database is away
        return not any(self._outcomes.values())

    def _write(self, transition: str, batch: list[tuple]) -> list[tuple]:
        """Write outcomes; return those of locked tasks. Raise Unavailable when the database is away."""
        try:
            if transition in ("complete", "fail"):      # a task that repeats gets its next time
                rows = [(id, attempt, value, self.store.next_run(row), *outcome)
                        for id, attempt, value, *outcome, row in batch]
            else:
                rows = [each[:-1] for each in batch]
            getattr(self.store, transition)(rows)
        except Exception as e:
            if isinstance(e, Locked):
                self._locked_rows.lost(e)
            elif isinstance(e, Unavailable):
                raise
            if len(batch) > 1:          # so that one does not hold up the others
                parts, locked = self._split(batch, e)
                return locked + [kept for part in parts for kept in self._write(transition, part)]
            if isinstance(e, Locked):
                return batch
            if transition == "complete":        # the database would refuse the next attempt's result as well
                id, attempt, _, row = batch[0]
                error = truncate(f"its result can't be stored: {describe(e)}")
                if self._write("fail", [(id, attempt, error, row)]):
                    return batch
            else:
                log.exception("could not write an outcome task=%s: it will be reclaimed", batch[0][0])
        return []

    def _poll(self) -> bool:
        """Keep what this worker holds, if that is due: heartbeats, cancellations. Return whether it was."""
        now, config = time.monotonic(), self.config
        if now < self._next_poll:
            return False
        self._next_poll = now + min(config.poll_seconds, config.lease_seconds / 3)
        self._send_heartbeats(now)      # first: after a freeze, keep what nobody has taken over
        held = {(task.id, task.attempt): task for task in self._held_tasks() if not task.stop_reason}
        with self._going_on("look for cancellations"):
            for attempt in self.store.cancel_requests(list(held)):
                self._stop_task(held[attempt], StopReason.CANCELED)
        self._should_look = True
        return True

    def _stop_task(self, task: Task, reason: StopReason) -> None:
        """Tell a task's handler to stop; end a task at once that still waits."""
        with self._lock:
            waiting = self._slots_of[task.kind].waiting.pop((task.id, task.attempt), None)
        if not waiting:
            task.stop(reason)
        elif reason is not StopReason.LEASE_LOST:
            outcome = _outcome_of_stop(task, self.config, reason)
            with self._lock:
                self._outcomes[outcome.transition].append((task.id, task.attempt, *outcome.values, task.row))

    def _sweep(self) -> None:
        """Do for all tasks what is due: promote and reclaim, plan the next runs, delete old tasks.

        Nothing of this keeps the rest, or a claim, from going on: what fails is tried again, and what has
        slowly found nothing pauses, so that it takes 5% of the time. But nobody waits for long because of
        that, however slow it is.
        """
        if self._stop_at is not None:
            return
        if time.monotonic() > self._swept_at + self.config.lease_seconds:
            # The database was away, maybe for all workers: let them come back, and keep their tasks.
            self._next_sweeps["reclaim"] = time.monotonic() + RETURN_SECONDS
        sweeps: dict[str, Callable[[], int]] = {
            "promote": self.store.promote,
            "repeat": self.store.repeat,
            "reclaim": lambda: self.store.reclaim(self.config.max_attempts, self.name),
            "schedule": self._schedule}
        for name, sweep in sweeps.items():
            began = time.monotonic()
            if began < self._next_sweeps.get(name, 0.0):
                continue
            number = 0
            with self._going_on(name):
                number = sweep()
            ended = time.monotonic()
            is_timely = name in ("promote", "repeat")
            longest = self.config.poll_seconds if is_timely else self.config.lease_seconds / 3
            self._next_sweeps[name] = 0.0 if number else ended + min(longest, 20 * (ended - began))
            if number >= BATCH_ROWS:
                self._next_poll = 0.0       # there is more
            if number and name != "schedule":
                self.store.notify()
        self._start_retention()
        self._swept_at = time.monotonic()

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Log an error of the block, once; raise only Unavailable, when the database is away."""
        try:
            yield
            self._failing.discard(what)
        except Exception as e:
            if isinstance(e, Unavailable):
                self.store.ping()       # raises when it is not about these tasks
            if what not in self._failing:
                log.warning("could not %s error=%r: trying again", what, describe(e.__cause__ or e))
            self._failing.add(what)

    def _schedule(self) -> int:
        """Give a next time to repeating tasks that ended without their worker: in a reclaim, by plain SQL."""
        ended = self.store.unscheduled()
        return len(self.store.schedule([(row.id, row.attempt, self.store.next_run(row)) for row in ended]))

    def _start_retention(self) -> None:
        """Begin to delete old tasks, when that is due."""
        config, now = self.config, time.monotonic()
        failed_days = config.failed_retention_days
        ages = {"Completed": config.retention_days,
                "Failed": config.retention_days if failed_days is None else failed_days}
        ages = {status: days for status, days in ages.items() if days is not None}
        if ages and now >= self._next_delete:
            self._next_delete = now + 86400     # _delete_old() sets an earlier time when it ends
            threading.Thread(target=self._delete_old, args=[ages], name="retention", daemon=True).start()

    @functools.cached_property
    def name(self) -> str:
        """The name of this worker in the table. No other worker has it, on any machine, nor after a fork."""
        return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"

    def _send_heartbeats(self, now: float) -> None:
        """Extend the leases of the tasks held here, when that is due, or of those with progress to write.

        Tell handlers to stop whose leases are lost. Give back tasks that this worker holds without knowing.
        """
        tasks = self._held_tasks()      # before the outcomes: what ends in between is in both
        with self._lock:
            known = {(id, attempt) for outcomes in self._outcomes.values() for id, attempt, *_ in outcomes}
        known.update((task.id, task.attempt) for task in tasks)
        held = [task for task in tasks if task.stop_reason is not StopReason.LEASE_LOST]
        progress = {task: task.unsaved_progress for task in held if task.unsaved_progress is not None}
        is_due = now >= self._next_heartbeat

        newest = {task.id: task.attempt for task in held}       # two attempts of a task may run here
        if extending := held if is_due else list(progress):
            extended = self._extend([(task.id, task.attempt, progress.get(task)) for task in extending])
            for task in extending:
                if task.unsaved_progress == progress.get(task):
                    task.unsaved_progress = None
                if task.id in extended and newest[task.id] == task.attempt:
                    self._renew(task, now)
                elif not task.stop_reason:
                    log.warning("lost task=%s attempt=%s: another attempt has begun, or it was ended",
                                task.id, task.attempt)
                    self._stop_task(task, StopReason.LEASE_LOST)

        if is_due:
            # The answer to a claim may be lost, and the claim may take effect later.
            with self._going_on("give back what was claimed without an answer"):
                if unknown := self.store.held_by(self.name) - known:
                    self.store.release(sorted(unknown))
            self._next_heartbeat = now + self.config.lease_seconds / 3

    def _renew(self, task: Task, asked: float) -> None:
        """Note that a lease was extended. A task that has not begun because it was over begins now."""
        slots = self._slots_of[task.kind]
        with self._lock:
            was_over = time.monotonic() >= task.leased_until
            task.leased_until = asked + self.config.lease_seconds
            if was_over and (task.id, task.attempt) in slots.waiting:
                slots.queue.put(task)

    def _extend(self, held: list[tuple[int, int, float | None]]) -> set[int]:
        """Extend leases; return the ids of tasks that are still ours, or whose rows can't be written now."""
        try:
            return self.store.extend(held, self.config.lease_seconds)
        except (Invalid, Locked) as e:
            if len(held) == 1:
                return {held[0][0]}
            parts, locked = self._split(held, e)
            return {id for id, *_ in locked}.union(*map(self._extend, parts))

    def _split(self, batch: list[tuple], error: Exception) -> tuple[list[list[tuple]], list[tuple]]:
        """Split a batch that was refused: return the parts that are to be tried, and what is of locked tasks.

        A statement waits for a lock for LOCK_SECONDS. If each of many locked tasks were tried, the leases of
        the others would be extended too late.
        """
        if isinstance(error, Locked):
            free = self.store.unlocked({id for id, *_ in batch})
            locked = [each for each in batch if each[0] not in free]
            if locked:
                rest = [each for each in batch if each[0] in free]
                return [rest] if rest else [], locked
        return [[each] for each in batch], []

    def _start_threads(self) -> None:
        """Start a thread for each slot that has none; when the system has no more threads, later."""
        for slots in self._all_slots:
            while slots.missing_threads:
                try:
                    EssentialThread("handler", self._run_tasks, slots).start()
                except (RuntimeError, MemoryError) as e:
                    self._threads.lost(e)
                    return
                slots.missing_threads -= 1
        self._threads.back()

    def _claim(self) -> None:
        """Claim tasks, of one kind after the other, unless a task runs alone.

        The kind whose last turn is the longest ago goes first, and those with the same slots wait until there
        is room for it. So no backlog keeps another kind waiting.
        """
        now = time.monotonic()
        with self._lock:
            running = [task for slots in self._all_slots for task in slots.running.values()]
            # The first one of each queue will do: a task that runs alone waits alone.
            waiting = [next(iter(slots.waiting.values())) for slots in self._all_slots if slots.waiting]
            room = {kind: self._room(kind) for kind in self._turns}
        if self._stop_at is not None or not any(room.values()) or any(
                task.row.alone for task in running + waiting):
            return
        # For how long the oldest attempt has been running. More than 0 even for one that begins only now: 0
        # means that nothing runs.
        busy = max([now - task.started_at + 0.001 for task in running] + [0.001] * len(waiting), default=0.0)
        if self._should_look:
            self._look()

        taken: dict[Slots, float] = dict.fromkeys(self._all_slots, 0)
        for kind in self._turns[:]:
            if kind not in self._ready:
                continue
            is_alone, ready_at = self._ready[kind]
            if is_alone and busy and now - ready_at >= busy:
                break       # it is the turn of a task that must run alone, when the others have ended
            slots = self._slots_of[kind]
            left = room[kind] - taken[slots]
            if left <= 0:
                taken[slots] = math.inf     # it is the turn of this kind
                continue
            rows = self._claim_kind(kind, int(left), busy)
            if any(row.alone for row in rows):
                break
            if rows and self.runs:
                taken[slots] += len(rows)
                busy = busy or 0.001

    def _look(self) -> None:
        """Find out which kinds have ready tasks; a single one is simply claimed, or all if that fails."""
        self._should_look = False
        found = dict.fromkeys(self.handlers, (False, 0.0))
        if len(found) > 1:
            with self._going_on("find the kinds with ready tasks"):
                found = self.store.ready_kinds(found)
        now = time.monotonic()
        self._ready = {kind: (alone, now - seconds) for kind, (alone, seconds) in found.items()}

    def _room(self, kind: str) -> int:
        """Return how many tasks of a kind may be claimed now."""
        slots = self._slots_of[kind]
        if not self.runs:
            return BATCH_ROWS if slots.number else 0        # a whole batch is completed at once
        most = max(slots.free(), self._ahead[kind])
        room = most - len(slots.waiting)
        has_idle_slot = len(slots.waiting) < slots.free()
        return room if has_idle_slot or 2 * room >= most else 0     # so that batches are not small

    def _claim_kind(self, kind: str, limit: int, busy: float) -> list[Row]:
        """Claim tasks of a kind and have them run; return them."""
        self._turns.remove(kind)
        self._turns.append(kind)
        del self._ready[kind]
        single = self.runs and self.slots == limit == 1     # then it runs alone
        rows: list[Row] = []
        asked = time.monotonic()
        with self._going_on(f"claim kind={kind}"):
            try:
                rows = self.store.claim(limit, self.config.lease_seconds, self.name, busy, single, kind)
            except Exception:
                self._next_heartbeat = 0.0      # to give back what may have been claimed
                if not self._failing:
                    self._next_poll = 0.0
                raise

        tasks = [Task(row, self.config.task_timeout) for row in rows] if self.runs else []
        for task in tasks:
            task.leased_until = asked + self.config.lease_seconds
        slots = self._slots_of[kind]
        with self._lock:
            slots.waiting.update(((task.id, task.attempt), task) for task in tasks)
            if not self.runs:
                self._outcomes["complete"] += [(row.id, row.attempt, None, row) for row in rows]
        for task in tasks:
            slots.queue.put(task)
        if may_have_more(rows, limit) or any(row.alone for row in rows):
            # For the next free slot; going round at once makes batches small.
            self._ready[kind] = rows[0].alone and not single, time.monotonic()
        if rows and not self.runs:
            self._woken.set()
        return rows

    # On handler threads

    def _run_tasks(self, slots: Slots) -> None:
        """Run claimed tasks, one after the other."""
        while task := slots.queue.get():
            key = task.id, task.attempt
            with self._lock:
                if key not in slots.waiting:
                    continue        # it was given back, or has ended
                if time.monotonic() >= task.leased_until:
                    continue        # after a freeze: others may run it, as the next heartbeat finds out
                del slots.waiting[key]
                task.begin()
                slots.running[key] = task
            if not self._record(task, self._run(task)):
                if self._stop_at is None:
                    log.warning("refused task=%s attempt=%s: its handler returned after it had been given up",
                                task.id, task.attempt)
                return      # another thread has this one's slot

    def _run(self, task: Task) -> Outcome:
        """Run the handler; return how the attempt has ended."""
        handler = self.handlers[task.kind]
        assert handler
        try:
            outcome = _outcome_of_result(call_handler(handler, task))
        except BaseException as error:      # a handler's sys.exit() must not end the thread,
            try:
                outcome = _outcome_of_exception(task, self.config, error)
            except BaseException:           # nor must a method of the exception itself
                outcome = _outcome_of_failure(task, self.config, describe(error), isinstance(error, Failed))
        self.store.metrics.observe("run", [time.monotonic() - task.started_at])
        return _outcome_of_stop(task, self.config, task.stop_reason) if task.stop_reason else outcome

    # On a thread of its own, started by _start_retention()

    def _delete_old(self, ages: dict[str, float]) -> None:
        """Delete finished tasks; `ages`: by their status, the days after which."""
        began = time.monotonic()
        try:
            for status, days in ages.items():
                self._delete_with_status(status, days)
        except Unavailable:
            pass        # the store has logged it
        except Exception:
            log.exception("could not delete old tasks")
        finally:
            self._next_delete = time.monotonic() + max(60, 10 * (time.monotonic() - began))

    def _delete_with_status(self, status: str, days: float) -> None:
        """Delete finished tasks with a status, in batches that grow as long as they are quick.

        Raise Unavailable.
        """
        limit, kept = 1, 0
        while self._stop_at is None:
            asked = time.monotonic()
            try:
                if self.store.delete_old(status, days, limit, kept) < limit:
                    break
                is_quick = time.monotonic() - asked < 0.2
                limit = min(2 * limit, BATCH_ROWS) if is_quick else max(limit // 2, 1)
            except (Invalid, Unavailable) as e:
                self.store.ping()       # raises when it is not about these tasks
                if limit == 1:
                    kept += 1           # passed over from now on
                    if not self._undeletable_logged:
                        self._undeletable_logged = True
                        log.warning("kept an old task that can't be deleted, and maybe others: %s", e)
                limit = max(limit // 2, 1)

    # On any of these threads

    @staticmethod
    def _give_up_seconds() -> float:
        """Return the seconds that handlers have to end after `_stop_at`: told to stop, and then forced."""
        return 2 * STOP_SECONDS

    def _running_tasks(self) -> list[Task]:
        with self._lock:
            return [task for slots in self._all_slots for task in slots.running.values()]

    def _held_tasks(self) -> list[Task]:
        """Return the tasks that run, and those that wait for a slot."""
        with self._lock:
            return [task for slots in self._all_slots
                    for task in (*slots.running.values(), *slots.waiting.values())]

    def _record(self, task: Task, outcome: Outcome) -> bool:
        """Have an outcome written. Return False when the task had one before, which stands."""
        is_late = time.monotonic() > task.claimed_at + CLAIM_AHEAD_SECONDS
        with self._lock:
            is_first = self._slots_of[task.kind].running.pop((task.id, task.attempt), None) is task
            if is_first:
                self._outcomes[outcome.transition].append((task.id, task.attempt, *outcome.values, task.row))
                ahead = self._ahead[task.kind]
                self._ahead[task.kind] = ahead // 2 if is_late else min(ahead + 1, BATCH_ROWS)
        if not self._woken.is_set():
            self._woken.set()
        return is_first


# ----------------------------------------------------------------------------
# Notifications: messages that tell other processes that there are new tasks. With RabbitMQ each is a small
# transient message to a fanout exchange; without it PostgreSQL carries them, by LISTEN and NOTIFY. Every
# process receives them, for its worker and for the claims that wait in it. A lost one delays a task by
# POLL_SECONDS at most, so nothing ever waits until one is sent.

AMQP_LIMITS = {"frame_max": (8192, 131072), "channel_max": (16, 65535), "heartbeat": (0, 65535)}


def amqp_parameters(url: str, name: str) -> Any:
    """Return pika's parameters for an address. Raise BadSetting.

    `name`: the name of the connection that the broker shows.
    """
    try:
        import pika
    except ImportError as e:
        raise BadSetting("RABBITMQ_URL", url, f"{e}: pip install pika") from None

    parameters = None
    with contextlib.suppress(Exception):        # its text may be a part of the password
        parameters = pika.URLParameters(url)
    if not parameters or not re.fullmatch(r"\w+://[^/?#]*(/[^@#]*)?(\?[^@#]*)?", url):
        raise BadSetting("RABBITMQ_URL", url,
                         f"expected amqp://USER:PASSWORD@HOST:PORT/VHOST, {PERCENT_ENCODING}, "
                         "with a number as port, and after a ? only parameters that pika knows")

    parts = urlsplit(url)
    wrong = None
    if not re.fullmatch(r"[\w.:-]+", parts.hostname or "localhost"):
        wrong = f"the host {parts.hostname!r}: expected one name or address"
    elif parts.port == 0:
        wrong = "the port 0: expected one from 1 to 65535"
    elif parts.username is not None and parts.password is None:
        wrong = "a user without a password: expected USER:PASSWORD@HOST"
    elif parts.path.count("/") > 1:
        wrong = "expected one / after the host; in a vhost it is %2F"
    elif len(parameters.virtual_host.encode()) > 255:
        wrong = "the vhost: expected up to 255 bytes"
    for limited, (low, high) in AMQP_LIMITS.items():
        value = getattr(parameters, limited)
        if value is not None and not low <= value <= high:
            wrong = f"{limited}={value}: expected {low} to {high}"
    if wrong:
        raise BadSetting("RABBITMQ_URL", url, wrong)
    parameters.client_properties = {"connection_name": name}
    return parameters


def amqp_address(parameters: Any) -> str:
    """Return the server of a connection, for the log."""
    return f"RabbitMQ {parameters.host}:{parameters.port}"


class Notifier:
    """Sends notifications, and calls the store's listeners at those that other processes send.

    It has a thread of its own, which reconnects for ever.
    """

    connected = False

    def __init__(self, server: str, store: Store):
        """`server`: what the thread connects to, for the log."""
        self._outage = Outage(f"{server} for notifications")
        self._store = store
        self._pending, self._stopped = threading.Event(), threading.Event()
        self._thread = EssentialThread("notifier", self._loop)

    def start(self) -> None:
        """Begin to connect, and then to send."""
        self._thread.start()

    def notify(self) -> None:
        """Have a notification sent soon; return at once. Several in quick succession become one."""
        if not self._pending.is_set():
            self._pending.set()
            self._wake()

    def _call_listeners(self) -> None:
        for listener in self._store.listeners:
            if listener != self.notify:         # other processes have got it from its sender
                listener()

    def begin_stop(self) -> None:
        """Send no more."""
        self._stopped.set()
        self._wake()

    def stop(self) -> None:
        """Stop, and wait for the thread, up to 2 seconds."""
        self.begin_stop()
        if self._thread.ident is not None:
            self._thread.join(2)

    def _loop(self) -> None:
        tries = 0
        while not self._stopped.is_set():
            try:
                with self._connect() as connection:
                    self._outage.back()
                    self.connected = True
                    while not self._stopped.is_set():
                        self._send_pending(connection)
                        tries = 0
            except Exception as e:
                self.connected = False
                self._outage.lost(e)
                tries += 1
                self._stopped.wait(backoff(tries, 0.5, 10))
                self.notify()       # the last notification may be lost

    # Each kind of server defines these.

    def _wake(self) -> None:
        """Let _send_pending() return."""
        raise NotImplementedError

    def _connect(self) -> contextlib.AbstractContextManager[Any]:
        """Connect, and close the connection in the end."""
        raise NotImplementedError

    def _send_pending(self, connection: Any) -> None:
        """Wait a moment for something that is to be sent, and send one notification for all of it.

        Receive meanwhile.
        """
        raise NotImplementedError


class RabbitNotifier(Notifier):
    """Sends notifications through RabbitMQ, and receives all of them, its own, too."""

    BIND_SECONDS = 5        # until the exchange is made again, if somebody deleted it

    def __init__(self, config: Config, store: Store, connection_class: Any = None):
        """`connection_class`: the one that pika is to use, if not its own."""
        assert config.rabbitmq_url
        self.parameters = amqp_parameters(config.rabbitmq_url, "taskmanager notifier")
        self.exchange = f"{config.task_queue}.notifications"
        self._connection_class = connection_class
        self._connection: Any = None
        super().__init__(amqp_address(self.parameters), store)

    def _wake(self) -> None:
        if connection := self._connection:
            with contextlib.suppress(Exception):        # it is just closing: the next one will send
                connection.add_callback_threadsafe(lambda: None)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Any]:
        import pika
        with pika.BlockingConnection(self.parameters, _impl_class=self._connection_class) as connection:
            channel = connection.channel()
            channel.confirm_delivery()      # or a deleted exchange would go unnoticed
            self._queue = f"{self.exchange}.{os.urandom(16).hex()}"     # ours, and of this connection only
            channel.queue_declare(self._queue, exclusive=True, arguments={"x-max-length": 1})
            self._bind(channel)
            channel.basic_consume(self._queue, lambda *_: self._call_listeners(), auto_ack=True)
            self._connection = connection
            self._call_listeners()      # because what was sent before is lost
            yield channel

    def _bind(self, channel: Any) -> None:
        """Make the exchange, and our queue's binding to it, where they are missing."""
        channel.exchange_declare(self.exchange, "fanout", durable=True)
        channel.queue_bind(self._queue, self.exchange)
        self._bind_at = time.monotonic() + self.BIND_SECONDS

    def _send_pending(self, channel: Any) -> None:
        if self._pending.is_set():
            self._pending.clear()
            channel.basic_publish(self.exchange, "", b"")
            self._stopped.wait(0.01)        # meanwhile notifications add up
        channel.connection.process_data_events(0 if self._stopped.is_set() else 1)
        if not channel.consumer_tags:
            raise ConnectionError("the broker ended the subscription")
        if time.monotonic() >= self._bind_at:       # the broker does not tell when the exchange is deleted
            self._bind(channel)


# A channel belongs to a database. Each schema has a channel of its own, because each may have a table of
# tasks. The channel is named after the schema's number, because the schema's name may be too long.
CHANNEL = """
select 'taskmanager_' || relnamespace, pg_backend_pid()
from   pg_class
where  oid = cast('tasks' as regclass)"""

# A transaction that does nothing else waits neither for the disk nor for a standby when it is committed.
NOTIFY = """
select pg_notify('taskmanager_' || relnamespace, '')
from   pg_class
where  oid = cast('tasks' as regclass)"""


class PostgresNotifier(Notifier):
    """Sends notifications through PostgreSQL, and calls the store's listeners at those of other processes.

    Both go over one connection, which is none of the store's: a NOTIFY in the transaction that creates a task
    would let no two of them commit at the same time. Through a pooler it only sends. There LISTEN would
    succeed, and some later client of the same session would get the notifications.
    """

    KEEPALIVE_SECONDS = 30          # of silence, after which the connection is used, so that nobody closes it

    def __init__(self, store: PostgresStore):
        super().__init__("PostgreSQL", store)
        self._database = store
        self._wakeups, self._waker = socket.socketpair()        # a byte: something is pending

    def _wake(self) -> None:
        self._waker.send(b"\0")

    def _run(self, connection: Any, sql: str) -> list[Any]:
        return self._database._run(connection, sql, seconds=CONNECT_SECONDS)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Any]:
        with contextlib.closing(self._database._connect()) as connection:
            [(channel, pid)] = self._run(connection, CHANNEL)
            if pid == connection.info.backend_pid:
                self._run(connection, f"listen {channel}")
            else:
                log.info("not listening for notifications: the database is behind a pooler")
            self._run(connection, NOTIFY)       # fails here, if at all, before the connection counts as back
            self._call_listeners()      # because what was sent before is lost
            yield connection

    def _send_pending(self, connection: Any) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(self._wakeups, select.POLLIN)
        ready = {file for file, _ in poll.poll(self.KEEPALIVE_SECONDS * 1000)}
        if self._stopped.is_set():      # send no last one: the server may not answer
            return
        if not ready:
            self._run(connection, "select 1")
        if connection.fileno() in ready:
            connection.poll()       # reads what has come
        is_pending = self._wakeups.fileno() in ready
        if is_pending:
            self._wakeups.recv(4096)
            self._pending.clear()   # before it is sent, so that what becomes pending from now on is sent, too
            self._run(connection, NOTIFY)

        own = connection.info.backend_pid
        if any(each.pid != own for each in connection.notifies):
            self._call_listeners()
        connection.notifies.clear()
        if is_pending:
            self._stopped.wait(0.01)        # meanwhile notifications add up


def make_notifier(store: Store, config: Config, connection_class: Any = None) -> Notifier | None:
    """Return what tells other processes of the tasks that become ready here, and this one of theirs.

    None: they have to poll. `connection_class`: as for RabbitNotifier.
    """
    notifier: Notifier | None = None
    if config.rabbitmq_url:
        notifier = RabbitNotifier(config, store, connection_class)
    elif isinstance(store, PostgresStore):
        notifier = PostgresNotifier(store)
    if notifier:
        store.listeners.append(notifier.notify)
    return notifier


# ----------------------------------------------------------------------------
# HTTP API: a route is a method of `Api` that declares what it takes. Unless it says otherwise it takes no
# query and no body, and needs the token. What is the same for all routes is checked in one place, before the
# method is called: so the method gets checked values, calls the store and returns an answer. Every error
# becomes an answer in one place, too. The routes stand in the order of openapi.yaml, after what needs no
# store.

# The headers of every answer, and the policy of an answer that a browser shows as a page.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")

# The system's own table is not used: where it has another type for `.js`, no script would run.
FILE_TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml", ".png": "image/png",
    ".yaml": "application/yaml"}

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# Names that no page of another site can have: the owner of a domain can point its names at this machine, but
# owns no addresses and no names without a dot.
LOCAL_NAME = re.compile(r"[0-9.]+|\[[0-9a-f:.]+\]|[a-z0-9_-]+|([a-z0-9_-]+\.)+localhost")
# The headers that pages of ALLOWED_ORIGINS may read of an answer, and may send (CORS). Never cookies.
EXPOSED = ("Allow, Date, ETag, Link, Location, Preference-Applied, Retry-After, WWW-Authenticate, "
           "X-Request-Id")
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
    "Access-Control-Max-Age": "600",
    "Access-Control-Allow-Headers":
        "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Prefer, X-Request-Id"}
TITLES = http.client.responses | {      # RFC 9110; older Pythons have older names
    413: "Content Too Large", 422: "Unprocessable Content"}
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
# The `code` of an error that has no exception of its own, by its HTTP status.
CODES = {
    400: "malformed-request", 404: "not-found", 405: "method-not-allowed", 413: "too-large",
    414: "uri-too-long", 431: "headers-too-large", 500: "internal-error",
    501: "unsupported-transfer-encoding", 503: "overloaded", 505: "http-version-not-supported"}
# Further headers of the answer to an error, by its HTTP status.
ERROR_HEADERS = {401: {"WWW-Authenticate": 'Bearer realm="Task Manager"'}, 503: {"Retry-After": "1"}}
REQUEST_ID = re.compile("[A-Za-z0-9._:+/=@~-]{1,128}")
PORT_OF_HOST = re.compile(r":\d*$")
TASK_ID = re.compile("[1-9][0-9]{0,18}")
WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*(?:"([0-9]{1,99})"|([0-9]{1,99}))\s*(?:[,;]|$)', re.IGNORECASE)


def describe_input_error(error: InputError) -> dict[str, Any]:
    """Return an entry of `errors` in a problem document."""
    kind = "parameter" if error.where[:1] == "?" else "header" if error.where[:1].isalpha() else "pointer"
    return {kind: error.where.lstrip("?"), "code": error.code, "detail": error.detail} | error.limits


def problem(status: int, detail: str, instance: str, error: BaseException | None = None) -> str:
    """Return the body of an error (RFC 9457), with what a TaskError knows besides."""
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status,
            "code": CODES.get(status, CODES[500]), "detail": detail, "instance": instance}
    if isinstance(error, TaskError):
        body |= {"code": error.code, **error.members}
    if isinstance(error, Invalid):
        body["errors"] = [describe_input_error(each) for each in error.errors]
    return json.dumps(body)


def request_id(given: str) -> str:
    """Return the id that a request brought along, when it is fit for a log, or else a new one."""
    if given and REQUEST_ID.fullmatch(given):
        return given
    # Not a secret. The process id, because a server in C may fork without a word to the generator.
    return f"{random.getrandbits(64) ^ os.getpid():016x}"


# What a request says. `header()` and the functions after it read the request that this thread answers.

def header(name: str) -> str:
    """Return a header by its name in WSGI, as it came, in latin-1; "" where there is none."""
    return bottle.request.environ.get(name, "")


def header_list(name: str) -> list[str]:
    return [each.strip() for each in header(name).split(",")]


def idempotency_key() -> str | None:
    """Return the Idempotency-Key, bare or a quoted string (draft-ietf-httpapi-idempotency-key-header)."""
    if "HTTP_IDEMPOTENCY_KEY" not in bottle.request.environ:
        return None
    text = header("HTTP_IDEMPOTENCY_KEY").strip(" \t").encode("latin-1").decode("utf-8", "replace")
    quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', text)
    is_broken = "\ufffd" in text or text[:1] == '"' and not quoted
    if text in ("", '""') or is_broken:
        raise invalid("invalid-key", "expected 1 to 255 printable characters, bare or in double quotes",
                      "Idempotency-Key")
    return check_key(re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text)


def preferred_wait() -> int | None:
    """Return the seconds of the header `Prefer: wait=N` (RFC 7240), at most MAX_WAIT; None without it."""
    wait = WAIT.search(header("HTTP_PREFER"))
    return min(int(wait[1] or wait[2]), MAX_WAIT) if wait else None


def is_client_gone() -> bool:
    """Tell whether a client that is ready to wait has hung up, as far as the server knows."""
    if preferred_wait() is None:
        return False
    disconnected = bottle.request.environ.get("waitress.client_disconnected")
    try:
        return disconnected is not None and not disconnected.__self__.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):       # the server has closed it
        return True


def read_body(size: int) -> bytes:
    """Read the first `size` bytes of the body. Of a chunked body nothing after these is read or stored."""
    request = bottle.request
    if request.content_length > MAX_BODY:
        raise TooLarge(request.content_length)
    stream, taken = request.environ["wsgi.input"], bytearray()
    pieces = iter(lambda: stream.read(MAX_IN_MEMORY), b"")
    if not request.environ.get("wsgi.input_terminated"):
        if not request.chunked:
            return request.body.read(size)
        # Some servers decode a chunked body and some do not, and WSGI does not tell which. A chunk begins
        # with its length in hexadecimal, and no task begins with such a digit.
        if not (first := stream.read(1)):
            raise invalid("missing-header", "expected this header: the server around the application "
                          "hands over no chunks", "Content-Length")
        if first in b"0123456789ABCDEFabcdef":
            begin = iter([first])
            pieces = request._iter_chunked(lambda n: next(begin, b"") or stream.read(n), MAX_IN_MEMORY)
        else:
            taken += first
    while len(taken) < size and (piece := next(pieces, b"")):
        taken += piece
    return bytes(taken[:size])


def read_json() -> Any:
    """Read and parse the body; {} when there is none. Raise Invalid, NotJson, TooLarge."""
    encoding, content_type = header("HTTP_CONTENT_ENCODING"), header("CONTENT_TYPE")
    if encoding.lower() not in ("", "identity"):
        raise NotJson(f"expected a body without Content-Encoding, not one in {encoding}")
    data = read_body(MAX_BODY + 1)
    if content_type and data.strip() and not is_json(content_type):
        raise NotJson(f"expected a body in JSON and Content-Type: application/json, not {content_type}")
    return parse_body(data)


def check_query(checks: Checks) -> dict[str, Any]:
    """Check the parameters of the query; return their values. Raise Invalid, also for one without a check."""
    if not bottle.request.query_string:
        return {}
    try:
        query = bottle.request.query.decode()
    except UnicodeError:
        raise invalid("not-utf8", "expected UTF-8", "?") from None
    return check_fields({name: query.getall(name) for name in query}, checks, at="?")


def check_id(text: str) -> int:
    if not TASK_ID.fullmatch(text) or int(text) > MAX_ID:
        raise TaskNotFound(f"there is no task {text!r}: an id is a whole number from 1 on")
    return int(text)


# Answers

def encode_answer(text: str) -> bytes:
    """Encode JSON in UTF-8. A lone surrogate, which only plain SQL can have written, is escaped."""
    return text.encode("utf-8", "backslashreplace")


def etag(data: bytes) -> str:
    return f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'


def encode_with_etag(text: str) -> tuple[bytes, str]:
    """Return an answer in JSON as it is sent, and its ETag."""
    data = encode_answer(text)
    return data, etag(data)


def is_known(tag: str) -> bool:
    """Tell whether the client has what this ETag stands for (If-None-Match)."""
    known = [each.removeprefix("W/") for each in header_list("HTTP_IF_NONE_MATCH")]
    return tag in known or "*" in known


def encode_attempts(attempts: Iterable[Attempt]) -> str:
    """Encode the attempts of a task as JSON, each without what is not known of it."""
    return json.dumps([{name: value for name, value in attempt._asdict().items() if value is not None}
                       for attempt in attempts])


def answer(data: str | bytes, status: int = 200, **headers: str) -> bottle.HTTPResponse:
    """Return an answer in JSON. The names of headers have _ for -."""
    data = encode_answer(data) if isinstance(data, str) else data
    return bottle.HTTPResponse(data, status, Content_Type="application/json", **headers)


def answer_with_etag(encoded: tuple[bytes, str], **headers: str) -> bottle.HTTPResponse:
    """Return what encode_with_etag() has encoded, or 304 when the client has it."""
    data, tag = encoded
    if is_known(tag):
        return bottle.HTTPResponse(status=304, ETag=tag, **headers)
    return answer(data, 200, ETag=tag, **headers)


def answer_with_file(name: str, folder: str = "") -> bottle.HTTPResponse:
    """Return a file of this very folder, or 304 when the client has it. Raise NotFound.

    Its ETag is made of its content, because its time says little: after a rollback the file is older than the
    copy in a browser.
    """
    path = HERE / folder / name
    if path not in (HERE / folder).glob("*") or not path.is_file():      # no name leads out of the folder
        raise NotFound("there is nothing at this address")
    file = path.open("rb")
    headers = {"ETag": etag(file.read()), "Content-Security-Policy": PAGE_POLICY}
    if is_known(headers["ETag"]):
        file.close()
        return bottle.HTTPResponse(status=304, headers=headers)
    headers["Content-Type"] = FILE_TYPES.get(path.suffix, "text/plain; charset=utf-8")
    headers["Content-Length"] = str(file.tell())
    file.seek(0)
    return bottle.HTTPResponse(file, headers=headers)


class Route(NamedTuple):
    """Declares what a route takes, and how it answers when all is well. All other input is refused."""

    method: str
    path: str                           # as in openapi.yaml: /tasks/{id}
    name: str                           # of the method of Api, which gets `id`, `query` and `body`, checked
    statuses: tuple[int, ...] = (200,)
    query: Checks | None = {}           # its parameters; None: whatever the query says is ignored
    body: Checks | None = None          # the fields of its body; None: it has no body
    required: tuple[str, ...] = ()      # those of them that must be there; none: there may be no body at all
    array: bool = False         # the body may be an array of such objects; the method itself checks it
    public: bool = False        # needs no token
    health: bool = False        # is also served on METRICS_PORT of a worker
    any_host: bool = False      # is answered by whatever name the service is called


ROUTES: list[Route] = []


def route(method: str, *paths: str, **declared: Any) -> Callable:
    """Declare a method of Api as the route at these paths; `declared` are further fields of Route."""
    def declare(function: Callable) -> Callable:
        ROUTES.extend(Route(method, path, function.__name__, **declared) for path in paths)
        return function
    return declare


def check_input(route: Route, values: dict[str, str]) -> dict[str, Any]:
    """Check what a request says, by what its route declares; return the arguments of the route's method.

    `values` are those that the path holds, by name. Raise NotFound, Invalid, NotJson, TooLarge.
    """
    environ = bottle.request.environ
    arguments: dict[str, Any] = dict(values)
    # Bottle drops what is not UTF-8 from PATH_INFO.
    raw = environ["bottle.raw_path"]
    if not raw.isascii() and environ["PATH_INFO"].encode() != raw.encode("latin-1"):
        raise NotFound("there is nothing at an address that is not UTF-8")

    if route.query is not None:
        query = check_query(route.query)
        if route.query:
            arguments["query"] = query

    if route.body is not None:
        body = read_json()
        arguments["body"] = body if route.array else check_fields(body, route.body, route.required)
    elif route.method != "GET" and b"".join(read_body(100).split()) not in (b"", b"{}"):
        raise invalid("unexpected-body", "expected no body")

    if "id" in values:
        arguments["id"] = check_id(values["id"])
    return arguments


class Api:
    """The WSGI application on a store. It may be mounted under any prefix.

    The server around it (make_server) sets `closing` when it stops, so that no request waits any longer.
    Where it answers in place of the application, it calls count_answer() and adds the headers of cors().
    """

    def __init__(self, store: Store, config: Config, hosts: Iterable[str] = (),
                 rabbitmq: Callable[[], bool] | None = None, only_health: bool = False):
        """Take the arguments of create_app()."""
        self.store, self.config, self.rabbitmq = store, config, rabbitmq
        self.routes = [route for route in ROUTES if route.health or not only_health]
        self.closing = threading.Event()
        self._waiting = threading.Semaphore(config.waiters)     # requests that may still begin to wait
        # The pages of the list that are being read, by the address.
        self._pages: weakref.WeakValueDictionary[tuple[str, str], Batcher] = weakref.WeakValueDictionary()
        # There may be tasks for a claim that waits: one for each set of kinds that are waited for.
        self._wakeups: weakref.WeakValueDictionary[frozenset[str], queue.Queue[None]] = (
            weakref.WeakValueDictionary())
        self._token = (config.api_token or "").encode()
        self._read_token = (config.read_token or "").encode()
        # How often each of the latest 1,000 lists of kinds was claimed: see _claim().
        self._turns = functools.lru_cache(1000)(lambda kinds: itertools.count(random.randrange(len(kinds))))

        public = urlsplit(config.public_url or "")
        self._prefix = public.path.rstrip("/") + "/" if config.public_url else None
        self._public_host = PORT_OF_HOST.sub("", public.netloc)
        self._hosts = {*(config.allowed_hosts.split(",") if config.allowed_hosts else hosts)}
        self._origins = {*(config.allowed_origins or "").split(",")} - {""}
        self._trusted = set(self._origins)      # origins whose pages may change tasks
        if config.public_url:
            self._trusted.add(f"{public.scheme}://{public.netloc}")

        self._bottle = bottle.Bottle()
        self._bottle.default_error_handler = self._answer_error
        words = [each.path.rpartition("/")[2] for each in ROUTES if re.fullmatch("/tasks/[a-z]+", each.path)]
        no_word = f"(?!(?:{'|'.join(words)})$)"         # /tasks/claim is no task
        self._bottle.router.default_pattern = f"{no_word}[^/]+"
        for each in self.routes:
            rule = each.path.replace("{", "<").replace("}", ">")
            self._bottle.route(rule, each.method, self._make_callback(each), skip=[True])    # no plugins
        store.listeners.append(self._wake_claims)

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        """Answer a request. Whatever becomes of it, it gets an id and the common headers, and is counted."""
        environ["taskmanager.id"] = request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        environ["taskmanager.route"] = "other"
        if "bottle.raw_path" in environ:
            # A Bottle app that this one is mounted in has decoded what WSGI hands over encoded,
            for name in ("PATH_INFO", "SCRIPT_NAME"):
                environ[name] = environ[name].encode().decode("latin-1")
            if environ["PATH_INFO"] == "/" and not environ["bottle.raw_path"].endswith("/"):
                environ["PATH_INFO"] = ""       # and has said "/" for this, too.

        def start(status, headers, exc_info=None):
            self.count_answer(environ["REQUEST_METHOD"], status[:3], environ["taskmanager.route"])
            common = {**HEADERS, "X-Request-Id": environ["taskmanager.id"], **self.cors(environ)}
            common.update(headers)
            return start_response(status, list(common.items()), exc_info)

        return self._bottle.wsgi(environ, start)

    def cors(self, environ: dict[str, Any]) -> dict[str, str]:
        """Return the headers that let pages of ALLOWED_ORIGINS read an answer; each origin gets its own."""
        if not self._origins:
            return {}
        headers, origin = {"Vary": "Origin"}, environ.get("HTTP_ORIGIN", "")
        if origin.lower() in self._origins:
            headers |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED}
            headers |= PREFLIGHT if environ["REQUEST_METHOD"] == "OPTIONS" else {}
        return headers

    def count_answer(self, method: str, status: str, path: str = "other") -> None:
        """Count an answer: the application's, or one that the server gave in its place."""
        self.store.metrics.answered(path, method if method in METHODS else "other", status)

    # What is the same for all routes

    def _make_callback(self, route: Route) -> Callable[..., bottle.HTTPResponse]:
        """Put the checks that all routes have in common before the method of one."""
        method = getattr(self, route.name)

        def callback(**values: str) -> bottle.HTTPResponse:
            environ = bottle.request.environ
            environ["taskmanager.route"] = route.path
            try:
                self._check_sender(route)
                return method(**check_input(route, values))
            except TaskError as e:
                return bottle.HTTPError(e.status, str(e), e, **ERROR_HEADERS.get(e.status, {}))
            except bottle.HTTPResponse as e:        # of Bottle's own functions
                return e
            except Exception:
                log.exception("could not answer %s %r request_id=%s", bottle.request.method,
                              bottle.request.path, environ["taskmanager.id"])
                detail = "something went wrong here; the log says what, under the request's id"
                return bottle.HTTPError(500, detail)
        return callback

    def _check_sender(self, route: Route) -> None:
        """Check that a request means this service (host), and that its user sent it (origin) and may (token).

        Raise HostNotAllowed, CrossSite, Unauthorized, ReadOnlyToken.
        """
        host = header("HTTP_HOST").lower()
        if not (self._token or route.any_host):
            self._check_host(PORT_OF_HOST.sub("", host))
        if route.method != "GET":
            self._check_origin(host)
        if not (route.public or self._may_write() or route.method == "GET"):
            raise ReadOnlyToken("READ_TOKEN is good for GET and HEAD only: expected the value of API_TOKEN")

    def _check_host(self, name: str) -> None:
        """Raise HostNotAllowed for a name that is not this service's.

        Otherwise a page of another site, whose name leads here (DNS rebinding), could read the answer. It
        does not know the token, so where there is one, any name will do.
        """
        if not name or name == self._public_host or not self._hosts and LOCAL_NAME.fullmatch(name):
            return
        if any(own in ("*", name) or own[0] == "." and f".{name}".endswith(own) for own in self._hosts):
            return
        own = ", ".join(sorted(self._hosts)) or "localhost, an address or a name without a dot"
        raise HostNotAllowed(f"{name!r} is not a name of this service: expected {own}, "
                             "or what PUBLIC_URL or ALLOWED_HOSTS names; with an API_TOKEN any")

    def _check_origin(self, host: str) -> None:
        """Raise CrossSite for what a browser sends for a page of another site (CSRF)."""
        site, origin = header("HTTP_SEC_FETCH_SITE").lower(), header("HTTP_ORIGIN").lower()
        if origin in self._trusted:
            return
        own = ("", f"http://{host}", f"https://{host}")
        if not (site in ("same-origin", "none") if site else origin in own):
            raise CrossSite("a browser sent this for a page of another site; "
                            "only pages of this service may do so")

    def _may_write(self) -> bool:
        """Tell whether the request's token is good for all methods. Raise Unauthorized for a wrong one."""
        if not self._token:
            return True
        scheme, _, text = header("HTTP_AUTHORIZATION").partition(" ")
        token = text.strip().encode() if scheme.lower() == "bearer" else b""
        if hmac.compare_digest(token, self._token):
            return True
        if self._read_token and hmac.compare_digest(token, self._read_token):
            return False
        raise Unauthorized("expected the header Authorization: Bearer, with the token of this service")

    def _answer_error(self, error: bottle.HTTPError) -> str:
        """Return the body of the answer to an error, ours or Bottle's own."""
        request, response = bottle.request, bottle.response
        status, detail, cause = error.status_code, str(error.body), error.exception
        if status == 405:
            allowed = {"OPTIONS", *response.headers["Allow"].split(",")}
            allowed |= {"HEAD"} if "GET" in allowed else set()
            response.set_header("Allow", ", ".join(sorted(allowed)))
            if request.method == "OPTIONS":
                response.status = 204
                return ""
            detail = f"{request.method} is not possible here; expected {', '.join(sorted(allowed))}"
        elif status == 404 and not cause:
            detail = "there is nothing at this address"
        response.content_type = "application/problem+json"
        path = request.environ["bottle.raw_path"].lstrip("/")
        instance = self._address(quote(path[:500], encoding="latin-1", errors="replace"))
        return problem(status, detail, instance, cause)

    def _address(self, rest: str) -> str:
        """Return the path of something here, as clients know it."""
        prefix = self._prefix or quote(bottle.request.script_name, encoding="latin-1")
        return prefix + rest

    # What several routes do

    def _wake_claims(self) -> None:
        """Let claims that wait look again: one of those for the same kinds."""
        for reference in self._wakeups.valuerefs():     # a list of its own: claims come and go meanwhile
            if wakeups := reference():
                with contextlib.suppress(queue.Full):
                    wakeups.put_nowait(None)

    def _wait_for(self, read: Callable[[], Any], is_done: Callable[[Any], bool],
                  pause: Callable[[float], Any], longest: float, share: float = 1.0
                  ) -> tuple[Any, dict[str, str]]:
        """Call read() until what it returns is done, or the client waits no longer (Prefer: wait).

        Return what it has returned last, and the header which says that the server has waited. Between two
        calls it calls pause(seconds), which may return earlier. The pauses grow up to `longest`; they are
        longer only where read() is slow, so that reading takes no more than this share of the time.
        """
        found, seconds = read(), preferred_wait()
        if seconds is None:
            return found, {}
        applied = {"Preference_Applied": f"wait={seconds}"}
        if is_done(found):
            return found, applied
        if not self._waiting.acquire(blocking=False):
            return found, {}
        try:
            # The pauses double: so an answer is late by no more than what was waited already, and a long wait
            # is cheap.
            deadline, gap = time.monotonic() + seconds, 0.01
            while not is_done(found) and not self.closing.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                pause(min(gap, left))
                if is_client_gone():
                    return found, {}
                began = time.monotonic()
                found = read()
                gap = max(min(2 * gap, longest), (time.monotonic() - began) / share)
            return found, {} if self.closing.is_set() else applied
        finally:
            self._waiting.release()

    def _claim(self, kinds: tuple[str, ...], limit: int, lease: float, worker: str | None) -> list[Row]:
        """Claim up to `limit` tasks of these kinds.

        Each claim of the same kinds begins with the next one of them, so that no kind has to wait until
        there are no tasks of the others.
        """
        if len(kinds) > 1:
            first = next(self._turns(kinds)) % len(kinds)
            ready = self.store.ready_kinds(kinds)
            kinds = tuple(kind for kind in kinds[first:] + kinds[:first] if kind in ready)
        rows: list[Row] = []
        for kind in kinds:
            try:
                # With a `busy` that is not 0, no task that must run alone is claimed beside the others.
                rows += self.store.claim(limit - len(rows), lease, worker, 0.001 if rows else 0.0, kind=kind)
            except Unavailable:
                if not rows:
                    raise
                break       # return those that were claimed before
            if may_have_more(rows, limit) or any(row.alone for row in rows):
                break
        return rows

    def _wait_until_ended(self, id: int) -> tuple[Row, dict[str, str]]:
        def has_ended(row: Row) -> bool:
            return row.status in ("Completed", "Failed")
        return self._wait_for(lambda: self.store.read(id), has_ended, self.closing.wait, 0.5)

    def _wait_for_change(self, read: Callable[[], bottle.HTTPResponse]) -> bottle.HTTPResponse:
        """Call read() until it returns what the client does not have (If-None-Match); return that.

        Return its 304 when the client waits no longer (Prefer: wait). A client that has nothing is answered
        at once.
        """
        if not header("HTTP_IF_NONE_MATCH"):
            return read()
        found, applied = self._wait_for(read, lambda found: found.status_code != 304, self.closing.wait, 0.5,
                                        share=0.02)
        for name, value in applied.items():
            found.set_header(name, value)
        return found

    def _read_if_match(self, id: int) -> Row | None:
        """Return the task that If-Match means; None without one, or for `*`. Raise TaskNotFound, Changed."""
        if "HTTP_IF_MATCH" not in bottle.request.environ:
            return None
        row, known = self.store.read(id), header_list("HTTP_IF_MATCH")
        if "*" in known:
            return None
        if etag(encode_answer(row.to_json())) not in known:
            raise Changed(f"task {id} is not what If-Match says: it has changed, or was never so")
        return row

    def _answer_holder(self, row: Row, attempt: int, done: set[int],
                       *ends: tuple[str, str | None]) -> bottle.HTTPResponse:
        """Answer the holder of this attempt with the task as it is now, if what it asked for was `done`.

        Do the same for a request that was done before and is sent again: `ends` are the outcome and the error
        that the attempt then has. Raise LeaseLost otherwise.
        """
        if not done and not (ends and self.store.outcome(row.id, attempt) in ends):
            raise LeaseLost(f"attempt {attempt} of task {row.id} is over: the task is {row.status}, "
                            f"and its last attempt was number {row.attempt}", task_status=row.status)
        return answer(row.to_json())

    def _note_run(self, row: Row) -> None:
        """Note for the metrics how long an attempt ran that has just ended."""
        if row.started_at is not None:
            with contextlib.suppress(Unavailable):      # what the request asked for is done
                ran = self.store.now() - datetime(1970, 1, 1) - timedelta(seconds=float(row.started_at))
                self.store.metrics.observe("run", [ran.total_seconds()])

    def _link(self, relation: str, path: str, query: dict[str, Any], after: int | None = None) -> str:
        """Return the value of a header Link: with the parameters of a query, but from the id `after` on."""
        said = {name: query[name] for name in (*FILTERS, "order", "limit") if name in query}
        if after is not None:
            said["after"] = after
        texts = {name: value.isoformat() if isinstance(value, datetime) else value
                 for name, value in said.items()}
        address = self._address(path) + (f"?{urlencode(texts, doseq=True)}" if texts else "")
        return f'<{address}>; rel="{relation}"'

    def _change_all(self, change: Callable[[Filters, int | None], tuple[int, int, int | None]], path: str,
                    query: dict[str, Any]) -> bottle.HTTPResponse:
        """Change the tasks that meet the filters; answer how many. Raise Invalid where there is no filter."""
        filters = Filters.of_query(query)
        if filters == Filters():
            raise invalid("missing-parameter",
                          f"expected at least one of {', '.join(FILTERS)}; every status is every task",
                          "?status")
        count, refused, next_after = change(filters, query.get("after"))
        counts = {"count": count, "refused": refused} if refused else {"count": count}
        link = {} if next_after is None else {"Link": self._link("next", path, query, next_after)}
        return answer(json.dumps(counts), 200, **link)

    # The routes: tasks

    @route("POST", "/tasks", statuses=(201,), body=NEW_TASK, array=True)
    def create_task(self, body: Any) -> bottle.HTTPResponse:
        key = idempotency_key()
        if isinstance(body, list):
            return answer(json.dumps(self.store.create(new_tasks(body, key), via="http")), 201)

        id = self.store.create_one(new_task(body, key), via="http")
        location = self._address(f"tasks/{id}")
        if preferred_wait() is not None:
            with contextlib.suppress(NotFound, Unavailable):        # it was created, whatever comes then
                row, applied = self._wait_until_ended(id)
                return answer(row.to_json(), 201, Location=location, **applied)
        return answer(f'{{"id": {id}}}', 201, Location=location)

    @route("GET", "/tasks", statuses=(200, 304), query=LIST_TASKS)
    def list_tasks(self, query: dict[str, Any]) -> bottle.HTTPResponse:
        return self._wait_for_change(lambda: self._read_page(query))

    def _read_page(self, query: dict[str, Any]) -> bottle.HTTPResponse:
        """Answer with a page of the list, which is read once for all that ask for it at this moment."""
        key = bottle.request.script_name, bottle.request.query_string
        page = self._pages.setdefault(
            key, Batcher(lambda batch: [self._make_page(query)] * len(batch), repeats=True))
        encoded, links = page.do(None)
        return answer_with_etag(encoded, Link=links)

    def _make_page(self, query: dict[str, Any]) -> tuple[tuple[bytes, str], str]:
        """Return a page of the list, encoded, and the header Link."""
        filters = Filters.of_query(query)
        rows, next_after = self.store.find_tasks(filters, query.get("after"), query.get("limit", MAX_PAGE),
                                                 query.get("order", "asc"))
        links = [self._link("first", "tasks", query)]
        if next_after is not None:
            links.append(self._link("next", "tasks", query, next_after))
        tasks = ", ".join(row.text for row in rows)
        return encode_with_etag(f"[{tasks}]"), ", ".join(links)

    @route("DELETE", "/tasks", query=CHANGE_TASKS)
    def delete_tasks(self, query: dict[str, Any]) -> bottle.HTTPResponse:
        return self._change_all(self.store.delete_all, "tasks", query)

    @route("POST", "/tasks/cancel", query=CHANGE_TASKS)
    def cancel_tasks(self, query: dict[str, Any]) -> bottle.HTTPResponse:
        return self._change_all(self.store.cancel_all, "tasks/cancel", query)

    @route("POST", "/tasks/retry", query=CHANGE_TASKS)
    def retry_tasks(self, query: dict[str, Any]) -> bottle.HTTPResponse:
        return self._change_all(self.store.retry_all, "tasks/retry", query)

    @route("POST", "/tasks/claim", body=CLAIM_TASKS)
    def claim_tasks(self, body: dict[str, Any]) -> bottle.HTTPResponse:
        limit, lease = body.get("limit", 1), body.get("lease", self.config.lease_seconds)
        kinds = body.get("kinds", ("default",))
        # The names of workers that do not claim over HTTP do not begin with @.
        worker = f"@{body['worker']}" if "worker" in body else None

        wakeups = self._wakeups.setdefault(frozenset(kinds), queue.Queue(1))

        def claim() -> list[Row]:
            return [] if is_client_gone() else self._claim(kinds, limit, lease, worker)

        def pause(seconds: float) -> None:
            with contextlib.suppress(queue.Empty):
                wakeups.get(timeout=seconds)

        rows, applied = self._wait_for(claim, bool, pause, min(self.config.poll_seconds, 1))
        if is_client_gone():
            self.store.release([(row.id, row.attempt) for row in rows])
        elif rows:
            with contextlib.suppress(queue.Full):       # there may be more, for another claim that waits
                wakeups.put_nowait(None)
        tasks = ", ".join(row.to_json(claimed=True) for row in rows)
        return answer(f"[{tasks}]", 200, **applied)

    @route("GET", "/tasks/{id}", statuses=(200, 304))
    def read_task(self, id: int) -> bottle.HTTPResponse:
        if header("HTTP_IF_NONE_MATCH"):
            return self._wait_for_change(
                lambda: answer_with_etag(encode_with_etag(self.store.read(id).to_json())))
        row, applied = self._wait_until_ended(id)
        return answer_with_etag(encode_with_etag(row.to_json()), **applied)

    @route("DELETE", "/tasks/{id}", statuses=(204,))
    def delete_task(self, id: int) -> bottle.HTTPResponse:
        self.store.delete(id, self._read_if_match(id))
        return bottle.HTTPResponse(status=204)

    @route("GET", "/tasks/{id}/attempts", statuses=(200, 304))
    def read_attempts(self, id: int) -> bottle.HTTPResponse:
        return self._wait_for_change(
            lambda: answer_with_etag(encode_with_etag(encode_attempts(self.store.attempts(id)))))

    @route("POST", "/tasks/{id}/cancel", statuses=(200, 202))
    def cancel_task(self, id: int) -> bottle.HTTPResponse:
        row = self.store.cancel(id, self._read_if_match(id))
        return answer(row.to_json(), 202 if row.status == "In Progress" else 200)

    @route("POST", "/tasks/{id}/retry")
    def retry_task(self, id: int) -> bottle.HTTPResponse:
        return answer(self.store.retry_by_hand(id, self._read_if_match(id)).to_json())

    # The routes: work, for the holder of an attempt

    @route("POST", "/tasks/{id}/extend", body=EXTEND_TASK, required=("attempt",))
    def extend_task(self, id: int, body: dict[str, Any]) -> bottle.HTTPResponse:
        attempt, lease = body["attempt"], body.get("lease", self.config.lease_seconds)
        done = self.store.extend([(id, attempt, None)], lease)
        return self._answer_holder(self.store.read(id), attempt, done)

    @route("POST", "/tasks/{id}/progress", body=REPORT_PROGRESS, required=("attempt", "progress"))
    def report_progress(self, id: int, body: dict[str, Any]) -> bottle.HTTPResponse:
        attempt, progress = body["attempt"], body["progress"]
        done = self.store.extend([(id, attempt, progress)], self.config.lease_seconds)
        return self._answer_holder(self.store.read(id), attempt, done)

    @route("POST", "/tasks/{id}/complete", body=COMPLETE_TASK, required=("attempt",))
    def complete_task(self, id: int, body: dict[str, Any]) -> bottle.HTTPResponse:
        attempt, result = body["attempt"], body.get("result")
        done = self.store.complete([(id, attempt, result)])
        row = self.store.read(id)
        if done:
            self._note_run(row)
            if row.repeat:
                self.store.schedule([(id, attempt, self.store.next_run(row))])
                row = self.store.read(id)       # a worker may have planned the next run, too
        elif (row.status, row.attempt) == ("Completed", attempt) and row.result != result:
            return self._answer_holder(row, attempt, done)      # not what was done before
        return self._answer_holder(row, attempt, done, ("completed", None), ("canceled", "canceled"))

    @route("POST", "/tasks/{id}/fail", body=FAIL_TASK, required=("attempt", "error"))
    def fail_task(self, id: int, body: dict[str, Any]) -> bottle.HTTPResponse:
        attempt, error, is_final = body["attempt"], body["error"], body.get("final", False)
        row = self.store.read(id)
        delay = None if is_final else retry_delay(row, self.config, body.get("delay"))
        if delay is None:
            done = self.store.fail([(id, attempt, error, self.store.next_run(row))])
        else:
            done = self.store.retry([(id, attempt, error, delay)])
        if done:
            self._note_run(row)

        ends = [("failed", error[-MAX_PAST_ERROR:]), ("canceled", "canceled")]
        if not is_final:
            ends.append(("retried", error[-MAX_PAST_ERROR:]))
        return self._answer_holder(self.store.read(id), attempt, done, *ends)

    @route("POST", "/tasks/{id}/release", body=RELEASE_TASK, required=("attempt",))
    def release_task(self, id: int, body: dict[str, Any]) -> bottle.HTTPResponse:
        attempt = body["attempt"]
        done = self.store.release([(id, attempt)])
        return self._answer_holder(self.store.read(id), attempt, done)

    @route("GET", "/finished", query=FINISHED_TASKS)
    def count_finished(self, query: dict[str, Any]) -> bottle.HTTPResponse:
        return answer(json.dumps(self.store.finished_bins(query.get("seconds", 3600), query.get("bins", 60))))

    # The routes: the token

    @route("GET", "/token")
    def check_token(self) -> bottle.HTTPResponse:
        return answer(json.dumps({"write": self._may_write()}))

    # The routes: health. A probe calls the service by any name, may add any query, and learns nothing else.

    @route("GET", "/livez", query=None, public=True, health=True, any_host=True)
    def livez(self) -> bottle.HTTPResponse:
        return answer('{"status": "ok"}')

    @route("GET", "/readyz", query=None, public=True, health=True, any_host=True)
    def readyz(self) -> bottle.HTTPResponse:
        self.store.ready()
        state = {"status": "ok", "database": "ok"}
        if self.rabbitmq:
            state |= {"rabbitmq": "ok"} if self.rabbitmq() else {"status": "degraded", "rabbitmq": "away"}
        return answer(json.dumps(state))

    @route("GET", "/metrics", query=None, health=True)
    def metrics(self) -> bottle.HTTPResponse:
        gauges = self.store.gauges(parse_kinds(self.config.kinds))
        if self.rabbitmq:
            gauges["taskmanager_rabbitmq_up"] = {"": int(self.rabbitmq())}
        return bottle.HTTPResponse(self.store.metrics.text(gauges),
                                   Content_Type="text/plain; version=0.0.4; charset=utf-8")

    # The routes: documents and pages, which are not in openapi.yaml. The page reads its query itself.

    @route("GET", "/openapi.yaml", "/asyncapi.yaml", statuses=(200, 304), query=None, public=True)
    def description(self) -> bottle.HTTPResponse:
        return answer_with_file(bottle.request.path[1:])

    @route("GET", "/", statuses=(200, 302, 304), query=None, public=True)
    def page(self) -> bottle.HTTPResponse:
        if bottle.request.environ["bottle.raw_path"]:
            return answer_with_file("index.html", "static")
        # The page's links would not work at the address of a prefix without its slash.
        query = bottle.request.query_string
        return bottle.HTTPResponse(status=302, Location=self._address(f"?{query}" if query else ""))

    @route("GET", "/static/{name}", statuses=(200, 304), query=None, public=True)
    def page_file(self, name: str) -> bottle.HTTPResponse:
        return answer_with_file(name, "static")

    @route("GET", "/swagger", statuses=(200, 304), query=None, public=True)
    def swagger(self) -> bottle.HTTPResponse:
        return answer_with_file("index.html", "static/swagger")

    @route("GET", "/swagger/", "/swagger/index.html", statuses=(302,), query=None, public=True)
    def swagger_redirect(self) -> bottle.HTTPResponse:
        """Lead to /swagger, for which the links of the page are made."""
        return bottle.HTTPResponse(status=302, Location=self._address("swagger"))

    @route("GET", "/swagger/{name}", statuses=(200, 304), query=None, public=True)
    def swagger_file(self, name: str) -> bottle.HTTPResponse:
        return answer_with_file(name, "static/swagger")


def create_app(store: Store, config: Config = Config(waiters=0), hosts: Iterable[str] = (),
               rabbitmq: Callable[[], bool] | None = None, only_health: bool = False) -> Api:
    """Return the WSGI application on a store. It may be mounted under any prefix.

    config:       of which it reads what concerns the API; `waiters` should be no more than the server has
                  threads to spare
    hosts:        the names by which it may be called where there is neither a token nor config.allowed_hosts;
                  none: addresses and names without a dot
    rabbitmq:     tells whether RabbitMQ is connected, where there should be one
    only_health:  just /livez, /readyz and /metrics
    """
    return Api(store, config, hosts, rabbitmq, only_health)


# ----------------------------------------------------------------------------
# HTTP server: waitress, with limits so that no client can stop the service for the others. One thread
# reads and writes all connections in turn. What it does in one turn takes less than a millisecond, whatever
# was sent, and grows with its length alone: a head is read by patterns that never go back, a body is stored
# or counted, and further requests wait in the system's buffers.

class Refused(Exception):
    """An answer of the server in place of the application; waitress's errors have the same attributes."""

    def __init__(self, code: int, body: str):
        super().__init__(body)
        self.code, self.body = code, body


def require(condition: Any, code: int, body: str) -> None:
    """Raise Refused unless a condition is true."""
    if not condition:
        raise Refused(code, body)


_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Z-]{1,1000}(?: |\Z)")
_FIRST_LINE = re.compile(rb"(\S+) ([!-~\x80-\xff]+) HTTP/([0-9]\.[0-9])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
_BARE = re.compile(rb"\n(?<!\r\n)|\r(?!\n|\Z)")       # written like this, it is searched three times as fast
# The line before a chunk, as far as it has come: the end of the chunk before, the size, an extension.
_CHUNK = re.compile(rb"\r(?:\n(?:([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?(?:\r(\n)?)?)?)?")


class Request:
    """Reads one request, and gives its parts the names that waitress uses.

    Otherwise a client could keep waitress's own parser busy for minutes with a line of 60 KB, fill memory and
    disk with a body, or hide a second request from a proxy by what can be read in two ways.
    """

    completed = empty = headers_finished = expect_continue = is_chunked = False
    command, path, query, request_uri, version = "", "/", "", "", "1.0"     # until they are known
    url_scheme, error = "http", None
    buffered = b""      # what has come of the head, or of the line before a chunk
    size = left = 0     # bytes of the body that have come, and that are known to be still to come

    def __init__(self, adjustments: Any = None):
        self.headers: dict[str, str] = {}
        self.body: Any = io.BytesIO()

    def received(self, data: bytes) -> int:
        """Take what comes next; return how many bytes of it belong to this request."""
        try:
            if not self.headers_finished:
                taken = self._read_head(data)
            elif self.is_chunked:
                taken = self._read_chunk(data)
            else:
                taken = self._read_body(data)
            # A body that is too large is still read: a client that is cut off while it sends sees no answer.
            most = MAX_BODY if self.completed or self.expect_continue else MAX_DISCARDED
            length = self.size + self.left
            require(length <= most, 413, f"{length} bytes are too many: expected at most {MAX_BODY}")
            if self.completed:
                self._finish()
            return taken
        except OSError as e:
            self.error = Refused(503, f"the body can't be stored: {e.strerror}")
        except Refused as e:
            self.error = e
        self.completed, self.buffered = True, b""
        return len(data)

    def _read_head(self, data: bytes) -> int:
        before = len(self.buffered)
        blank = 0 if before else len(data) - len(data.lstrip(b"\r\n"))      # is ignored (RFC 9112, 2.2)
        self.buffered += data[blank:]
        self.empty = self.completed = not self.buffered
        if self.empty:
            return blank

        end = self.buffered.find(b"\r\n\r\n", max(before - 3, 0))
        length = end if end >= 0 else len(self.buffered)
        is_tls = self.buffered[0] == 0x16
        require(not is_tls, 400, "this port speaks HTTP without TLS: expected http://, not https://")
        is_http = _METHOD.match(self.buffered) and not _BARE.search(self.buffered, max(before - 1, 0), length)
        require(is_http, 400, "expected METHOD ADDRESS HTTP/1.1, and each line ended by CRLF")
        require(length <= MAX_HEADER_BYTES, 431, f"expected at most {MAX_HEADER_BYTES} bytes before the body")
        if end < 0:
            return len(data)

        line, *fields = self.buffered[:end].split(b"\r\n")
        self.headers_finished, self.buffered = True, b"\r\n"     # as if it stood behind a chunk
        host = self._parse_first_line(line)
        self._parse_fields(fields)
        self._parse_framing()
        self._check_host(host)
        self.completed = not (self.left or self.is_chunked)
        return blank + end + 4 - before

    def _parse_first_line(self, line: bytes) -> str:
        """Return the host of an address that is given whole, or ""."""
        request = _FIRST_LINE.fullmatch(line)
        if not request:
            raise Refused(400, "expected METHOD ADDRESS HTTP/1.1 as the first line")
        self.command, self.request_uri, version = (each.decode("latin-1") for each in request.groups())
        require(version in ("1.0", "1.1"), 505, f"expected HTTP/1.1 or HTTP/1.0, not HTTP/{version}")
        self.version = version
        require(len(line) <= MAX_LINE, 414, f"expected at most {MAX_LINE} bytes in the first line")
        try:
            uri = request[2]
            parts = urlsplit(b"/" + uri if uri[:2] == b"//" else uri)       # // begins no host here
        except ValueError:      # such as http://[, or what is not ASCII
            raise Refused(400, "expected an address such as /tasks") from None
        self.path, self.query = unquote_to_bytes(parts.path).decode("latin-1"), parts.query.decode("latin-1")
        return parts.netloc.decode("latin-1")

    def _parse_fields(self, fields: list[bytes]) -> None:
        require(len(fields) <= MAX_HEADER_FIELDS, 431, f"expected at most {MAX_HEADER_FIELDS} header fields")
        headers = self.headers
        for each in fields:
            field = _FIELD.fullmatch(each)
            if not field:
                raise Refused(400, f"expected NAME: VALUE in one line, not {each[:50].decode('latin-1')!r}")
            name, value = field[1].decode(), field[2].strip(b" \t").decode("latin-1")
            if "_" not in name:         # or it would look like another one in the environment of WSGI
                name = name.upper().replace("-", "_")
                headers[name] = f"{headers[name]}, {value}" if name in headers else value

    def _parse_framing(self) -> None:
        """Find out how the body comes (RFC 9112, 6)."""
        headers = self.headers
        coding, length = headers.pop("TRANSFER_ENCODING", None), headers.get("CONTENT_LENGTH", "0")
        if coding is not None:
            self.is_chunked = True
            is_repeated = not coding.lower().replace("chunked", "").strip(", \t")
            require(coding.lower() == "chunked", 400 if is_repeated else 501,
                    "expected Transfer-Encoding: chunked, once, or none")
            require(self.version == "1.1", 400, "expected no Transfer-Encoding in HTTP/1.0")
            require("CONTENT_LENGTH" not in headers, 400,
                    "expected Content-Length or Transfer-Encoding, not both")
        is_number = re.fullmatch("[0-9]{1,18}", length)
        require(is_number, 400, "expected one Content-Length, a whole number of bytes")
        self.left = int(length)
        if self.left or self.is_chunked:
            self.body = tempfile.SpooledTemporaryFile(MAX_IN_MEMORY)
        self.expect_continue = self.version == "1.1" and headers.get("EXPECT", "").lower() == "100-continue"

    def _check_host(self, host: str) -> None:
        is_name = re.fullmatch(r"[^\s,/?#@]+", self.headers.get("HOST", ""))     # RFC 9112, 3.2
        require(is_name or self.version == "1.0", 400, "expected one header Host, with a name")
        if host:
            self.headers["HOST"] = host
        if self.request_uri == "*":
            raise Refused(204 if self.command == "OPTIONS" else 400, "only OPTIONS may ask for *")

    def _read_body(self, data: bytes) -> int:
        data = data[:self.left]
        self.size, self.left = self.size + len(data), self.left - len(data)
        if self.size <= MAX_BODY:
            self.body.write(data)
        else:
            self.body.close()
        self.completed = not (self.left or self.is_chunked)
        return len(data)

    def _read_chunk(self, data: bytes) -> int:
        """Take no more than one chunk: thousands of small ones would keep the others waiting for a turn."""
        if self.left:
            return self._read_body(data)

        before, data = len(self.buffered), self.buffered + data
        line = _CHUNK.match(data)
        if not line or not line[2] and line.end() < len(data):
            raise Refused(400, "expected a chunk: its size in hexadecimal, CRLF, so many bytes, CRLF")
        at, self.left = line.end(), int(line[1], 16) if line[2] else 0
        if self.left:
            self.buffered = b""
            return at - before + self._read_body(data[at:])

        end = data.find(b"\r\n\r\n", at - 2) if line[2] else -1        # of the trailer
        self.completed, self.buffered = end >= 0, data
        require(self.completed or len(data) <= MAX_LINE, 400,
                f"expected at most {MAX_LINE} bytes of a chunk's line or of the trailer")
        return (end + 4 if self.completed else len(data)) - before

    def _finish(self) -> None:
        self.buffered = b""
        self.body.seek(0)
        if self.is_chunked:
            self.headers["CONTENT_LENGTH"] = str(self.size)
        if self.size > MAX_IN_MEMORY:
            self.headers.pop("PREFER", None)    # may be ignored; and there are few threads for large bodies

    @property
    def kind(self) -> tuple[str, str, bool]:
        """What the requests of one line have in common: they ask for the same, at about the same cost."""
        if self.error:
            return "", "", False
        is_large = self.size > MAX_LINE         # 8 KiB may hold thousands of tasks
        return self.command, self.path[:100], is_large

    @property
    def kept(self) -> int:
        """Bytes that are stored."""
        return 0 if self.body.closed else self.size

    def get_body_stream(self) -> Any:
        return self.body

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.body.close()


class FairQueue:
    """The requests that wait for a thread, in a line for each kind, and the lines are served in turn.

    Otherwise a client could keep the others waiting, by asking for much again and again: no kind gets all
    threads. Waitress takes it for a deque, and holds a lock around it.
    """

    def __init__(self, threads: int):
        self.lines: dict[tuple, collections.deque] = {}
        self.running: collections.Counter[tuple] = collections.Counter()
        self.most_large = max(1, threads // 8)      # these keep the interpreter busy for long
        self.most = max(1, threads - self.most_large)

    def _next(self) -> tuple | None:
        for kind in self.lines:
            *_, is_large = kind
            if self.running[kind] < (self.most_large if is_large else self.most):
                return kind
        return None

    def __len__(self):
        return self._next() is not None

    def append(self, channel: Any) -> None:
        self.lines.setdefault(channel.requests[0].kind, collections.deque()).append(channel)

    def popleft(self) -> Any:
        kind = self._next()
        if kind is None:
            raise IndexError("no request may have a thread now")
        self.running[kind] += 1
        line = self.lines.pop(kind)
        channel = line.popleft()
        if line:
            self.lines[kind] = line     # again, behind the others
        return channel

    def served(self, kind: tuple) -> None:
        """Count the end of a request that popleft() has returned."""
        self.running[kind] -= 1
        if self.running[kind] <= 0:
            del self.running[kind]


class Threads(ThreadedTaskDispatcher):
    """Threads that answer requests, and that the program can't do without."""

    def __init__(self, count: int, queue: Any):
        super().__init__()
        self.queue = queue
        self.started: list[threading.Thread] = []
        self.set_thread_count(count)

    def start_new_thread(self, target, thread_no):
        self.started.append(EssentialThread(f"http-{thread_no}", target, thread_no))
        self.started[-1].start()


class Dispatcher:
    """Chooses the threads that answer a request. /livez and those that wait (`Prefer`) have their own.

    Otherwise a client could occupy every thread by waiting, or make a service that works look dead.
    """

    def __init__(self, config: Config, closing: threading.Event):
        self.closing = closing
        self.queue = FairQueue(config.threads)
        self.usual = Threads(config.threads, self.queue)
        self.for_health = Threads(1, collections.deque())
        self.for_waiters = Threads(config.waiters + 1, collections.deque())     # one may be told not to wait
        self.all = (self.usual, self.for_health, self.for_waiters)

    def _threads_for(self, request: Request) -> Threads:
        if request.path == "/livez":
            return self.for_health
        return self.for_waiters if "PREFER" in request.headers else self.usual

    def add_task(self, channel):
        self._threads_for(channel.requests[0]).add_task(channel)

    def all_threads(self) -> list[threading.Thread]:
        return [thread for threads in self.all for thread in threads.started]

    def served(self, request: Request) -> None:
        """Let the next request of its kind have the thread."""
        if self._threads_for(request) is self.usual:
            with self.usual.lock:
                self.queue.served(request.kind)

    def shutdown(self):
        self.closing.set()      # so that no request waits any longer
        for threads in self.all:
            threads.shutdown()


class Answer(WSGITask):
    """The answer of the application. Its head and its body are sent together."""

    def finish(self):
        super().finish()
        self.channel.flush()


class Refusal(ErrorTask):
    """The answer to a request that the server refuses, in the form of the application's errors.

    Otherwise a client would get plain text, or wait for an answer.
    """

    def execute(self):
        server, request, code = self.channel.server, self.request, self.request.error.code
        server.count_answer(request.command, str(code))
        instance = server.prefix + quote(request.path[:500], encoding="latin-1")
        body = b"" if code == 204 else problem(code, request.error.body, instance).encode()

        headers = HEADERS | ERROR_HEADERS.get(code, {})
        headers["X-Request-Id"] = request_id(request.headers.get("X_REQUEST_ID", ""))
        if code == 204:
            headers["Allow"] = ", ".join(METHODS)
        origin = request.headers.get("ORIGIN", "")
        headers |= server.cors({"HTTP_ORIGIN": origin, "REQUEST_METHOD": request.command})
        if body:
            headers["Content-Type"], self.content_length = "application/problem+json", len(body)

        self.status = f"{code} {TITLES[code]}"
        self.response_headers.extend(headers.items())
        self.set_close_on_finish()
        self.write(b"" if request.command == "HEAD" else body)


class Channel(HTTPChannel):
    """A connection, on which one request is read and answered after the other.

    Otherwise a client could send hundreds of requests at once, send one for ever, or never read its answer.
    `last_activity` is when a request began, when an answer was complete, or when it was read to its end.
    """

    task_class, error_task_class, parser_class = Answer, Refusal, Request
    request: Request | None
    requests: Any = ()      # until __init__() has come to its end
    outbufs: list[Any]
    sent_continue: bool
    answer = 0      # bytes of an answer that is not yet read to its end

    @property
    def kept(self) -> int:
        """Bytes that are stored for this client."""
        return self.answer + sum(each.kept for each in (*self.requests, self.request) if each)

    def handle_read(self):
        """Read one request. What comes behind it stays with the system until that one is answered."""
        with self.requests_lock:
            if self.will_close or self.close_when_flushed or self.requests:
                return
            request = self.request or Request()
            try:
                data = self.socket.recv(MAX_IN_MEMORY if request.left else 4096, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.handle_close()
                return

            if not self.request:
                self.request, self.last_activity = request, time.time()
            self.socket.recv(request.received(data))
            if not request.completed:
                if request.expect_continue and not self.sent_continue:
                    self.send_continue()
                return

            self.request, self.sent_continue = None, False
            if request.kept > MAX_IN_MEMORY and self.server.queued > MAX_BUFFERED:
                request.error = Refused(503, "too many large bodies wait already: try again later")
            if request.error:
                request.close()
            if not request.empty:
                self.requests.append(request)
                self.server.add_task(self)

    def service(self):
        request = self.requests[0]
        try:
            super().service()
        finally:
            self.server.task_dispatcher.served(request)
            self.server.sockets.watch(self)

    def write_soon(self, data):
        self.answer += len(data)
        return super().write_soon(data)

    def _flush_outbufs_below_high_watermark(self):
        """Wait while too much of an answer waits to be sent. The server's thread sends it meanwhile."""
        if self.total_outbufs_len > self.adj.outbuf_high_watermark:
            self.server.sockets.watch(self)
        super()._flush_outbufs_below_high_watermark()

    def flush(self) -> None:
        """Send what there is of the answer; the server's thread sends what the client does not take now."""
        with self.outbuf_lock:
            if self.connected:
                self._flush_exception(self._flush_some, do_close=False)

    def _flush_some(self, do_close=True):
        """Send what the client takes. A byte now and then is no activity, and what was read is dropped."""
        begun = self.last_activity
        sent = super()._flush_some(do_close)
        if self.total_outbufs_len:
            self.last_activity = begun
        elif sent:
            self.outbufs[-1].close()
            self.outbufs = [OverflowableBuffer(MAX_IN_MEMORY)]
            self.answer = self.current_outbuf_count = 0
        return sent

    def handle_expt(self):
        """Take urgent data for data; waitress would log each piece."""

    def handle_close(self):
        for _ in range(16):     # what came in and was not read would make the system drop the answer
            with contextlib.suppress(OSError):
                if self.socket and self.socket.recv(65536):
                    continue
            break
        super().handle_close()

    def cut_off(self) -> None:
        """End it, whatever waits. It is only shut: the present round may know the socket's number."""
        self.will_close = True
        with contextlib.suppress(OSError):
            if self.total_outbufs_len:      # or the system would go on offering them
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.shutdown(socket.SHUT_RDWR)


class Sockets(dict[int, Any]):
    """The sockets of a server, by their numbers, in the form that asyncore calls a map.

    Asyncore itself asks each connection in each turn what it waits for. With 16 of them that took a fifth of
    a request's time, and with 1,000 a turn took 1.5 ms. Here each tells the system when that has changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoll = select.epoll()

    def __setitem__(self, number, dispatcher):
        self.epoll.register(number, select.EPOLLIN | select.EPOLLPRI | select.EPOLLONESHOT)
        super().__setitem__(number, dispatcher)

    def __delitem__(self, number):
        super().__delitem__(number)
        self.epoll.unregister(number)

    def watch(self, dispatcher: Any) -> None:
        """Have one event of a connection handled, of those that it waits for now. From any thread.

        Another thread may do the same, having seen something older or newer; or it may have closed the
        connection, whose number is then the next one's. So each looks again at what it has set.
        """
        number, watched = dispatcher._fileno, 0
        while there := self.get(number):
            events = 0
            if there.readable():
                events |= select.EPOLLIN | select.EPOLLPRI
            if there.writable():
                events |= select.EPOLLOUT
            if events in (0, watched):
                break
            with contextlib.suppress(OSError):      # it has just been closed
                self.epoll.modify(number, events | select.EPOLLONESHOT)
            watched = events

    def handle_events(self, server: Server, seconds: float) -> None:
        """Handle what has happened, or happens within so many seconds."""
        self.watch(server)      # which calls maintenance(), too
        for number, events in self.epoll.poll(seconds):
            if dispatcher := self.get(number):
                wasyncore.readwrite(dispatcher, events)
                self.watch(dispatcher)


class PolledSockets(dict[int, Any]):
    """The same where the system has no epoll: all connections are asked in each turn."""

    def watch(self, dispatcher: Any) -> None:
        dispatcher.server.wake()

    def handle_events(self, server: Server, seconds: float) -> None:
        wasyncore.loop(seconds, use_poll=True, map=self, count=1)


class OneCore:
    """Keeps threads on one core of the machine, the one where the system runs the first of them.

    Only one of them at a time can run Python code. On several cores each of them that has waited wakes up
    another core, only to wait there for the interpreter's lock: on two cores a GET took 880 µs of CPU time
    instead of 390, and there were half as many a second. Now and then the system may choose again, because
    something else may keep that core busy.
    """

    def __init__(self, threads: Sequence[threading.Thread]):
        self.threads = threads
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._is_free = True        # the system may move the first thread
        self._choose_at = 0.0
        self._calls = 0             # since that has changed

    def keep(self, now: float) -> None:
        """Bring the threads together where the calling one runs, which is the first of them.

        It is called in each turn, and does so only when there are many: of idle threads the system may keep
        any number on one core, those of other processes, too.
        """
        self._calls += 1
        if now < self._choose_at or self._calls < CORE_CALLS or len(self.cores) < 2:
            return
        self._calls = 0
        with contextlib.suppress(OSError):      # the operator has taken these cores away
            if self._is_free:
                stat = Path("/proc/thread-self/stat").read_text()
                core = int(stat.rpartition(")")[2].split()[36])
                for thread in self.threads:
                    if thread.native_id:        # it has begun
                        os.sched_setaffinity(thread.native_id, {core})
            else:
                os.sched_setaffinity(0, self.cores)
        self._choose_at = now + (CORE_SECONDS if self._is_free else 0.1)
        self._is_free = not self._is_free

    def end(self) -> None:
        """Let the calling thread, the first of them, use all cores again: it may be the program's own."""
        with contextlib.suppress(OSError):
            if len(self.cores) > 1:
                os.sched_setaffinity(0, self.cores)


class Server(TcpWSGIServer):
    """All connections to an application.

    Otherwise clients could take every connection, or all memory and disk, by being many and slow.
    """

    channel_class = Channel

    def __init__(self, app: Callable, config: Config, listener: socket.socket):
        self.thread = EssentialThread("http", self.run)
        self.stopped = self._lacks_files = False
        self._accept_at = 0.0       # by time.monotonic()
        self.queued = 0     # bytes of bodies that have come whole; their clients are not cut off
        self.count_answer = getattr(app, "count_answer", lambda method, status: None)
        self.cors: Callable[[dict[str, str]], dict[str, str]] = getattr(app, "cors", lambda environ: {})
        self.prefix = urlsplit(config.public_url or "").path.rstrip("/")
        self.sockets = Sockets() if hasattr(select, "epoll") else PolledSockets()

        dispatcher = Dispatcher(config, getattr(app, "closing", None) or threading.Event())
        super().__init__(
            app, self.sockets, _sock=listener, dispatcher=dispatcher, bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            ident=None, backlog=BACKLOG, connection_limit=MAX_CONNECTIONS + MAX_CONNECTIONS // 5,
            channel_timeout=CLIENT_SECONDS, outbuf_overflow=MAX_IN_MEMORY)
        self.adj.cleanup_interval = 0.1             # seconds; as a keyword it takes whole ones alone
        self.adj.send_bytes = MAX_IN_MEMORY         # before an answer is complete; see Answer

    def start(self) -> None:
        """Serve, in a thread of its own."""
        self.thread.start()

    def run(self) -> None:
        """Serve until begin_stop() or close(); finish the requests under way, for up to 5 seconds.

        Then close the connections: otherwise they would last, and their clients wait, as long as the process.
        """
        one_core = OneCore([threading.current_thread(), *self.task_dispatcher.all_threads()])
        try:
            while self.sockets and not self.stopped:
                self.sockets.handle_events(self, 1)
                one_core.keep(time.monotonic())
        finally:
            one_core.end()
            self.task_dispatcher.shutdown()
            for channel in list(self.active_channels.values()):
                channel.handle_close()

    def pull_trigger(self) -> None:
        """Do nothing: a connection itself tells self.sockets what it waits for."""

    def wake(self) -> None:
        """Have the thread end its turn."""
        super().pull_trigger()

    def begin_stop(self) -> None:
        """Accept nothing more."""
        self.stopped = True
        self.wake()

    def stop(self) -> None:
        """Stop, as begin_stop() does, and wait until it is done."""
        self.begin_stop()
        if self.thread.ident is not None:
            self.thread.join(2 * STOP_SECONDS)      # longer than run() takes to finish
        self.close()

    def handle_error(self):
        """Log an error with a new connection; waitress would stop listening."""
        log.exception("failed to accept a connection")

    def readable(self):
        return super().readable() and time.monotonic() >= self._accept_at

    def accept(self):
        """Accept a connection. Where the process has no more files, cut off idle clients for the next ones.

        Waitress would try again at once, for as long as there is none, and log each time.
        """
        try:
            return super().accept()
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if not self._lacks_files:
                log.warning("accepted no connection error=%r: idle clients are cut off from now on; expected "
                            "a limit of %s open files (ulimit -n)", e.strerror, MAX_OPEN_FILES)
            self._lacks_files = True
            self.maintenance(time.time(), is_full=True)
            if not any(channel.will_close for channel in self.active_channels.values()):
                self._accept_at = time.monotonic() + 0.1
            return None

    def handle_accept(self):
        """Let in all clients that wait; waitress lets in one a round, and a large round takes long."""
        for _ in range(MAX_CONNECTIONS // 10):
            before = len(self.active_channels)
            super().handle_accept()
            if len(self.active_channels) == before:
                break
        if len(self.active_channels) > MAX_CONNECTIONS - MAX_CONNECTIONS // 50:
            self.maintenance(time.time())

    def maintenance(self, now, is_full=False):
        """Cut off clients that have been idle or slow for too long.

        Where connections or space run short, cut off those that have been so for the longest time. With
        `is_full` there can't be more connections than now.
        """
        there = [channel for channel in self.active_channels.values() if not channel.will_close]
        most = len(there) if is_full else MAX_CONNECTIONS
        spare, kept = most - len(there), sum(channel.kept for channel in there)
        there.sort(key=lambda channel: (channel.kept > 0, channel.last_activity))   # the idle ones go first
        self.queued = sum(channel.kept for channel in there if channel.requests)
        for channel in there:
            is_late = channel.last_activity < now - self.adj.channel_timeout
            is_in_the_way = spare < max(1, most // 50) or kept > MAX_BUFFERED and channel.kept
            if not channel.requests and (is_late or is_in_the_way):
                spare, kept = spare + 1, kept - channel.kept
                channel.cut_off()


def listen(config: Config, setting: str, beside: socket.socket | None = None) -> socket.socket:
    """Listen on the address and the port that HOST and PORT name. Raise BadSetting; `setting` is PORT's name.

    beside: a listener, on whose address and port the new one takes its share of the connections
    """
    try:
        address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM,
                                     flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(*address[:2])
        # On Windows SO_REUSEADDR would let a second server take the same port.
        listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
        # Each connection inherits these: what the system stores for it, and that urgent data is data.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_IN_MEMORY)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_IN_MEMORY)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if beside:
            # Set only now, so that another program with the same PORT was refused.
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(beside.getsockname() if beside else address[4])
        listener.listen(BACKLOG)
    except OSError as e:
        if isinstance(e, socket.gaierror) or e.errno == errno.EADDRNOTAVAIL:
            raise BadSetting("HOST", config.host, f"{e.strerror}; expected an address of this machine, "
                                                  "such as 127.0.0.1, 0.0.0.0 or ::1") from None
        raise BadSetting(setting, config.port, f"{e.strerror}; expected a free one, such as "
                                               f"{setting}={config.port % 65535 + 1}") from None
    return listener


def make_server(app: Callable, config: Config, setting: str = "PORT",
                listener: socket.socket | None = None) -> Server:
    """Make the server of an application on HOST and PORT; its `effective_port` is the one that it got.

    Its start() serves in a thread, its run() in the caller's. `setting` names the port in errors; `listener`
    is what already listens there. Raise BadSetting, or ImportError where waitress is missing.
    """
    if TcpWSGIServer is object:
        raise ImportError("the HTTP server needs waitress: pip install waitress")
    server = Server(app, config, listener or listen(config, setting))
    try:
        tempfile.TemporaryFile().close()
    except OSError as e:
        log.warning("made no temporary file error=%r: requests and answers of more than %s KiB will fail; "
                    "expected a folder that can be written, /tmp or the one that TMPDIR names",
                    e.strerror, MAX_IN_MEMORY // 1024)
    sys.setswitchinterval(0.0005)       # or the thread that reads waits 5 ms for each one that computes
    return server


# ----------------------------------------------------------------------------
# Programs: first what both have in common: logging, signals, the command line, starting and stopping
# their parts. Then the HTTP API's main(); worker.py has the other one.

class OneLine(logging.Formatter):
    """Writes UTC, and a message in one line, whatever a client has put into it. The message stands last."""
    converter = staticmethod(time.gmtime)
    CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

    def formatMessage(self, record):
        lines, text = [record.message], record.message
        if isinstance(record.msg, Lines):
            lines = record.msg
        # Together they are looked at as one text. Where there is anything to hide, each is by itself.
        if redact(text) != text or len(self.CONTROL.findall(text)) >= len(lines):
            lines = [self.CONTROL.sub(lambda match: repr(match[0])[1:-1], redact(line)) for line in lines]
        record.message = ""
        prefix = super().formatMessage(record)
        return "\n".join([prefix + line for line in lines])

    def format(self, record):
        record.exc_text = None      # that of another formatter
        return super().format(record)

    def formatException(self, ei):
        """Return the end of a traceback, redacted and indented, so that no line looks like one of the log."""
        lines = truncate(super().formatException(ei), 10 * MAX_ERROR).split("\n")
        return "\n".join("  " + self.CONTROL.sub("?", line) for line in lines)


class PrivateLogFile(logging.handlers.RotatingFileHandler):
    """A file that nobody else may read, the next ones too.

    Of several processes that write to it, the parent alone rotates it; the others notice, and follow.
    """

    rotates = True

    def _open(self):
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors,
                    opener=functools.partial(os.open, mode=0o600))

    def shouldRollover(self, record):
        if self.rotates:
            # Whatever the record is: logging formats it a second time to see how long it will be.
            return self.stream is not None and os.fstat(self.stream.fileno()).st_size >= self.maxBytes
        with contextlib.suppress(OSError):
            if self.stream and os.path.samestat(os.fstat(self.stream.fileno()), os.stat(self.baseFilename)):
                return False
        self.close()        # emit() opens it again
        return False

    def doRollover(self):
        with contextlib.suppress(OSError):      # where it can't be rotated, it grows
            super().doRollover()

    def rotate_if_full(self) -> None:
        """Rotate it, if it has grown by what others have written. For a program without threads."""
        with contextlib.suppress(OSError):
            if os.stat(self.baseFilename).st_size >= self.maxBytes:
                self.doRollover()


def set_up_logging(config: Config) -> None:
    """Log to stderr and LOG_FILE, from LOG_LEVEL on. Raise BadSetting where the file can't be opened."""
    handlers: list[logging.Handler] = []
    with contextlib.suppress(OSError):      # there may be no stderr
        # A descriptor of our own, which no handler's module closes, wraps or replaces.
        encoding = getattr(sys.stderr, "encoding", None)
        stderr = open(os.dup(2), "w", encoding=encoding, errors="backslashreplace")
        handlers.append(logging.StreamHandler(stderr))
    if config.log_file:
        try:
            handlers.append(PrivateLogFile(config.log_file, "a", 10_000_000, 5, "utf-8"))
        except OSError as e:
            raise BadSetting("LOG_FILE", config.log_file, e.strerror or str(e)) from None

    one_line = OneLine("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    for each in handlers:
        each.setFormatter(one_line)
        each.addFilter(lambda record: not getattr(record, "written", False))
    logging.basicConfig(level=config.log_level, handlers=handlers)
    logging.raiseExceptions = False         # a full disk, for example, must not end a thread
    Log.outputs, Log.threshold = handlers, logging.getLogger().level
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)        # a lost connection is in our own log
    logging.getLogger("waitress").setLevel(logging.WARNING)         # below that it quotes paths as they came
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


# Those that tell a program to stop, as far as the system has them.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGBREAK")
           if hasattr(signal, name)]


def stop_signal(number: int, frame: Any) -> None:
    """Handle a signal: the program is to stop."""
    stopping.set()


def early_signal(number: int, frame: Any) -> None:
    """Handle a signal while the program starts: break off what the main thread is doing, too."""
    first = not stopping.is_set()
    stopping.set()      # because the exception alone may be lost, where it meets an import
    if first:
        raise KeyboardInterrupt


def handle_signals(handler: Callable[[int, Any], None] | signal.Handlers) -> None:
    """Set the handler of SIGNALS; but a SIGHUP that is ignored (nohup) stays ignored."""
    for number in SIGNALS:
        if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def restore_signals_in_forks() -> None:
    """Let signals do in the processes that a handler forks what they do in any program of Python."""
    usual: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    usual[signal.SIGINT] = signal.default_int_handler
    mask = threading.local()

    def before():       # a signal that comes in the middle of a fork waits until the child is ready for it
        mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def after():
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    def after_in_child():
        try:
            for number, disposition in usual.items():
                if signal.getsignal(number) in (stop_signal, early_signal):
                    signal.signal(number, disposition)
        finally:
            after()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after_in_child)


def parse_arguments(description: str) -> None:
    """Read the command line: --help, which lists the settings, and --version. Both end the program."""
    width = shutil.get_terminal_size().columns
    settings = [textwrap.fill(f"  {name:15} {default or '-':19} {meaning.replace('`', '')}", width,
                              subsequent_indent=" " * 38) for name, default, meaning in Config.table()]
    epilog = "\n".join(["environment variables, their defaults and meaning:", *settings])
    parser = argparse.ArgumentParser(description=description, epilog=epilog,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    if isinstance(sys.stdout, io.TextIOWrapper):    # there may be no stdout
        sys.stdout.reconfigure(errors="replace")    # or --help would fail where it is ASCII
    parser.parse_args()


def raise_file_limit() -> None:
    """Allow as many open files as all connections and slots need, as far as the system permits."""
    with contextlib.suppress(ImportError, ValueError, OSError):     # Windows has no such limit
        import resource
        few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most)
        if 0 <= few < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def call_glibc(function: str, *arguments: int) -> None:
    """Call a function of the C library, where it is glibc."""
    with contextlib.suppress(ImportError, OSError, TypeError, AttributeError):      # another library
        import ctypes
        ctypes.CDLL(None)[function](*arguments)


def set_up(description: str) -> Config:
    """Prepare the process, and return its configuration. Raise BadSetting.

    From now on, until serve(), a signal breaks off what the program is doing.
    """
    restore_signals_in_forks()
    handle_signals(early_signal)
    # One heap for all threads, where glibc gives each its own: what one has freed, all can use. After ten
    # arrays of 10,000 tasks a service on SQLite keeps 11 MB more than after its start, instead of 26.
    call_glibc("mallopt", -8, 1)        # M_ARENA_MAX
    parse_arguments(description)
    config = Config.from_env()
    if config.rabbitmq_url:
        amqp_parameters(config.rabbitmq_url, "")    # raises now, and not after a long wait for the database
    set_up_logging(config)
    sys.path.insert(0, os.getcwd())                 # where HANDLER's module may be
    raise_file_limit()
    return config


def serve(*parts: Any, each_second: Callable[[], None] = lambda: None) -> None:
    """Start the parts of a program, and stop them, in reverse order, when it is told to. A part may be None.

    When an essential thread ends before that, the program ends with status 1: its supervisor starts it again.
    `each_second` is called once a second, and when all parts have stopped.
    """
    there = [part for part in parts if part is not None]
    handle_signals(stop_signal)     # from here on nothing is broken off that must come to its end
    if stopping.is_set():
        return
    try:
        for part in there:
            part.start()
        for seconds in itertools.count():
            if seconds % RELEASE_SECONDS == 0:
                # Return free memory to the system. By itself glibc does so only at the end of its heap: after
                # ten arrays of 10,000 tasks it kept 15 MB.
                call_glibc("malloc_trim", 0)
            each_second()
            if stopping.wait(1):
                break
            if dead := [thread.name for thread in list(EssentialThread.running) if not thread.is_alive()]:
                log.critical("stopped program thread=%s reason=%r", dead[0],
                             "this thread, which the program can't do without, has ended")
                sys.exit(1)
    finally:
        for part in reversed(there):
            part.begin_stop()
        for part in reversed(there):
            part.stop()
        each_second()


def run(program: Callable[[], None]) -> None:
    """Run a program's main(); a setting that can't be used and Ctrl-C end it without a traceback."""
    status = 1
    atexit.register(handle_signals, signal.SIG_IGN)     # a second signal must not change the status
    try:
        with contextlib.suppress(KeyboardInterrupt):
            program()
        status = 0
    except BadSetting as e:
        sys.exit(f"{Path(sys.argv[0]).name}: {e}")
    finally:
        # Python would wait for ever for the threads and processes that a handler has left behind.
        end = threading.Timer(STOP_SECONDS, os._exit, [status])
        end.daemon = True
        with contextlib.suppress(RuntimeError):
            end.start()
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except Exception:
                setattr(sys, name, None)        # Python would flush it again, fail, and change the status


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine reach what listens there."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host, None, flags=socket.AI_PASSIVE)
        return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)
    return False


def own_names(config: Config) -> Iterable[str]:
    """Return the names of the service where ALLOWED_HOSTS is not set.

    Return none where it may be called by any address, and by any name without a dot.
    """
    return {*LOOPBACK, config.host.lower()} if is_loopback(config.host) else ()


def announce(text: str) -> None:
    """Print a text where that is possible: stdout may be closed, a pipe that nobody reads, or a full disk."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # Past the buffer, or what could not be written would be tried again, and fail, at the exit.
        os.write(sys.stdout.fileno(), text.encode(sys.stdout.encoding, "replace"))


class Processes:
    """The parent of several processes, which it starts, starts again when one has ended, and stops.

    It has neither a thread nor a connection that a fork could break.
    """

    PAUSE = 0.2         # seconds between two looks at what has ended
    STABLE = 60         # seconds after which a process counts as well started

    def __init__(self, count: int, serve: Callable[[int], None]):
        """`serve` is called in each process, with its number."""
        self._serve = serve
        self._numbers: dict[int, int] = {}                              # by the id of the process
        self._begin = dict.fromkeys(range(1, count + 1), 0.0)           # when each was, or is to be, started
        self._failures = dict.fromkeys(self._begin, 0)
        self._has_failed = False        # one of them did not end as it was told to
        self._log_files = [output for output in Log.outputs if isinstance(output, PrivateLogFile)]

    def run(self) -> None:
        """Serve until a signal comes; raise SystemExit when something was wrong with the end."""
        handle_signals(stop_signal)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)       # ignored, it would take the exit statuses
        try:
            while not stopping.is_set():
                for number in self._begin.keys() - self._numbers.values():
                    if time.monotonic() >= self._begin[number]:
                        self._start(number)
                stopping.wait(self.PAUSE)
                self._collect(os.WNOHANG)
                for file in self._log_files:
                    file.rotate_if_full()
        finally:
            for id in self._numbers:
                os.kill(id, signal.SIGTERM)
            self._collect(0)
        if self._has_failed:
            sys.exit(1)

    def _start(self, number: int) -> None:
        self._begin[number] = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)       # a signal waits until the child handles it
        try:
            id = os.fork()
        except OSError as e:
            self._plan(number, e.strerror)
        else:
            if id == 0:
                self._become(number)
            self._numbers[id] = number
            log.info("started process number=%s pid=%s", number, id)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _become(self, number: int) -> NoReturn:
        """Be the child."""
        def program():
            handle_signals(early_signal)
            for file in self._log_files:
                file.rotates = False
            self._serve(number)
        try:
            run(program)
        finally:
            _end_child(sys.exc_info()[1])

    def _collect(self, flags: int) -> None:
        """Note which processes have ended; with the flags 0, wait for all of them."""
        while self._numbers:
            id, state = os.waitpid(-1, flags)
            if not id:
                return
            number, status = self._numbers.pop(id, None), os.waitstatus_to_exitcode(state)
            if number and not stopping.is_set():
                self._plan(number, f"it ended with status {status}")
            elif number and status:
                self._has_failed = True
                log.error("lost process number=%s status=%s", number, status)

    def _plan(self, number: int, reason: str | None) -> None:
        """Have a process started again."""
        now = time.monotonic()
        is_stable = now - self._begin[number] > self.STABLE
        self._failures[number] = 1 if is_stable else self._failures[number] + 1
        delay = backoff(self._failures[number], 0.2, 10)
        self._begin[number] = now + delay
        log.critical("lost process number=%s reason=%r: starting it again in=%.1fs", number, reason, delay)


def main() -> None:
    """Run the HTTP API until a signal stops it."""
    config = set_up("Task Manager's HTTP API, and on SQLite a worker inside it.")
    if TcpWSGIServer is object:     # found out now, before a table is made
        sys.exit(f"{Path(sys.argv[0]).name}: No module named 'waitress': pip install waitress")
    # Without a worker its module is not imported, because it may start threads, which no fork takes along.
    handlers = load_handlers(config) if config.processes == 1 else None
    store = open_store(config.database_url, wait=True, connections=config.threads)
    inside = config.worker == "on" or config.worker == "auto" and isinstance(store, SQLiteStore)
    worker = Worker(store, config, handlers) if inside else None

    listener = listen(config, "PORT")
    port = listener.getsockname()[1]
    host = "localhost" if config.host in ("127.0.0.1", "0.0.0.0", "::1", "::") else config.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    database = show_setting("DATABASE_URL", config.database_url)
    if not (config.api_token or is_loopback(config.host)):
        log.warning("opened without API_TOKEN host=%s port=%s: every client that reaches it can read, create "
                    "and delete tasks", config.host, port)
    log.info("started api url=%s version=%s database=%s", url, __version__, database)

    shown = (config.public_url or url).rstrip("/")
    workers = "with a worker inside" if worker else "its workers elsewhere (worker.py)"
    # This file also runs without the pages.
    pages = (("look at it", shown, "static/index.html"),
             ("Swagger UI", f"{shown}/swagger", "static/swagger/index.html"))
    present = "".join(f"    {purpose:16}{page}\n" for purpose, page, file in pages if (HERE / file).is_file())
    announce(f"""
  Task Manager {__version__}, tasks in {database}, {workers}

{present}    create a task   curl -X POST {shown}/tasks
    read it         curl {shown}/tasks/1
    stop            Ctrl-C

""")

    def make_parts(listener: socket.socket) -> Iterable[Any]:
        notifier = make_notifier(store, config)
        is_connected = (lambda: notifier.connected) if notifier and config.rabbitmq_url else None
        app = create_app(store, config, own_names(config), is_connected)
        return notifier, worker, make_server(app, config, listener=listener)

    if config.processes == 1:
        serve(*make_parts(listener))
    else:
        store.close()       # with its connections and its thread; see Processes
        # One listener each, kept open here: so the system spreads the connections, and those that a process
        # leaves behind when it dies are its successor's. Only Linux spreads them; elsewhere all have one.
        listeners = [listener] * config.processes
        if sys.platform == "linux":
            listeners[1:] = [listen(config, "PORT", beside=listener) for _ in listeners[1:]]
        parent = os.getpid()
        try:
            folder = Path(tempfile.mkdtemp(prefix="taskmanager-"))
        except OSError as e:
            why = f"{e.strerror}; expected a folder that can be written, /tmp or the one that TMPDIR names"
            raise BadSetting("PROCESSES", config.processes, why) from None

        def each_second() -> None:
            with contextlib.suppress(OSError):      # which the answer of /metrics tells
                store.metrics.save()
            if os.getppid() != parent and not stopping.is_set():
                log.critical("stopped process reason=%r", "its parent has ended")
                stopping.set()

        def serve_one(number: int) -> None:
            store.metrics.share(folder / f"{number}.json")
            try:
                serve(*make_parts(listeners[number - 1]), each_second=each_second)
            finally:
                if os.getppid() != parent:
                    shutil.rmtree(folder, ignore_errors=True)

        try:
            Processes(config.processes, serve_one).run()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    log.info("stopped api")
