"""Task Manager: hand it a task over HTTP or RabbitMQ; it runs it, keeps its state in a table, and never loses it.

            claim                     complete
      New ─────────▶ In Progress ──────────────────▶ Completed
       ▲                  │
       │  retry, reclaim, │
       │  release         │ fail (no attempts left), cancel
       ├──────────────────┤
       │                  ▼
       └─────────────  Failed ◀── cancel (of a New task)
          retry by hand

A task is one row of the table `tasks`, and the row is the truth. Each arrow is one guarded SQL statement.

    python taskmanager.py           the HTTP API; on SQLite with a worker inside (see --help)
    python worker.py                a worker that also takes tasks from RabbitMQ

The file reads from top to bottom, and nothing refers to what stands below it: configuration, errors and
outages, what a task may be (the validation that both doors share), the SQL in the order of a task's life,
the store on PostgreSQL and SQLite, the handlers, the worker, the doorbell, the HTTP API, main().
Importing this module connects to nothing and starts nothing.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import errno
import functools
import hmac
import http.client
import importlib
import inspect
import itertools
import json
import logging
import logging.handlers
import os
import queue
import random
import re
import select
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlencode, urlsplit

import bottle

__version__ = "0.1.0"

HERE = Path(__file__).resolve().parent
STATUSES = ("New", "In Progress", "Completed", "Failed")
MAX_BODY = 1024 * 1024      # bytes of a request, a message or a result
MAX_DEPTH = 100             # levels of nesting in a JSON value
MAX_ERROR = 2000            # characters of an error that are kept
MAX_ERRORS = 20             # things that are named as wrong at once
MAX_BACKOFF = 3600          # seconds between two attempts
MAX_PAGE = 1000             # tasks in an answer
MAX_ID = 2**63 - 1          # a bigint; a larger number would make PostgreSQL scan the table
MANY = 500                  # rows of a batch that nothing else bounds
STATEMENT_SECONDS = 20      # what the database may take to answer
STOP_SECONDS = 5            # what a handler that was told to stop is given to do so
CONNECT_SECONDS = 10        # what a connection to the database or to an http(s) handler may take,
HTTP_SECONDS = 300          # and how long the latter may keep silent when the task has no timeout

log = logging.getLogger("taskmanager")


# ----------------------------------------------------------------------------
# Configuration: environment variables, parsed once. An empty one counts as not set.

def redact(text: str) -> str:
    """The text without the passwords and the queries of addresses in it, fit for a log."""
    text = re.sub(r"(//[^/@:\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(://[^?\s]*\?)[^\s']+", r"\1***", text)


class BadSetting(ValueError):
    """An environment variable that can't be used; the message names it, its value and why or what is expected."""

    def __init__(self, name: str, value: Any, why: str):
        super().__init__(f"{name}={redact(str(value))!r} can't be used: {redact(why)}")


def _number(low: float, high: float, kind: type = float) -> tuple[Callable[[str], Any], str]:
    def parse(text: str):
        if not low <= (value := kind(text)) <= high:
            raise ValueError
        return value
    return parse, f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"


def _match(pattern: str, expected: str | None = None, convert: Callable[[str], Any] = str) -> tuple[Callable[[str], Any], str | None]:
    def parse(text: str):
        if not re.fullmatch(pattern, text):
            raise ValueError
        return convert(text)
    return parse, expected


def _setting(default, parse: tuple[Callable[[str], Any], str | None], meaning: str):
    """`parse`: what makes the value of the text, and what it expects (by default: the meaning)."""
    return dataclasses.field(default=default, metadata={"parse": parse[0], "expected": parse[1] or meaning.replace("`", ""), "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting; the environment variable of each is its name in capitals."""

    database_url: str = _setting("sqlite:///tasks.db", _match(r"sqlite:///(?!:memory:)[^?]+|postgres(ql)?://.+"),
                                 "`sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`")
    rabbitmq_url: str | None = _setting(None, _match(r"amqps?://.+"), "`amqp://USER:PASSWORD@HOST:PORT/VHOST`; without it no tasks come from RabbitMQ")
    host: str = _setting("127.0.0.1", _match(r".*"), "address that the API listens on")
    port: int = _setting(5000, _number(0, 65535, int), "port that the API listens on; 0 takes a free one")
    threads: int = _setting(8, _number(1, 1000, int), "HTTP threads, each with a database connection of its own")
    api_token: str | None = _setting(None, _match(r"[!-~]+", "printable ASCII without spaces"),
                                     "when set, requests need `Authorization: Bearer …`, but for health and the static pages")
    worker: str = _setting("auto", _match(r"on|off|auto"), "run a worker inside the API process: `on`, `off`, or `auto`: on for SQLite, off for PostgreSQL")
    handler: str | None = _setting(None, _match(r".*"), "what a task does: `package.module:function`, `exec:program args…` or `https://…`; not set: nothing")
    concurrency: int = _setting(8, _number(1, 1000, int), "tasks that a worker runs at the same time")
    max_attempts: int = _setting(3, _number(1, 1000, int), "attempts of a task that does not say")
    retry_seconds: float = _setting(1.0, _number(0, 3600), "wait before the second attempt; doubles with each further one, up to an hour")
    task_timeout: float | None = _setting(None, _number(0.001, 31536000), "seconds that one attempt may take, for a task that does not say; not set: no limit")
    lease_seconds: float = _setting(30.0, _number(1, 86400), "how long a task stays with a worker that is not heard of")
    poll_seconds: float = _setting(1.0, _number(0.01, 3600), "how often a worker looks at the table when nothing wakes it")
    grace_seconds: float = _setting(10.0, _number(0, 86400), "what running handlers are given to finish at a stop")
    retention_days: float | None = _setting(None, _number(0, 36500), "finished tasks older than this are deleted; not set: kept for ever")
    task_queue: str = _setting("task_queue", _match(r"(?!amq\.)\S{1,200}", "up to 200 characters without spaces, not beginning with amq."),
                               "RabbitMQ queue that tasks are taken from")
    log_level: str = _setting("INFO", _match(r"(?i)debug|info|warning|error|critical", convert=str.upper), "`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`")
    log_file: str | None = _setting(None, _match(r".+", convert=os.path.expandvars),
                                    "also log to this file, rotating at 10 MB; one process a file (`$HOSTNAME` and the like are expanded)")

    @classmethod
    def from_env(cls, environ=os.environ) -> Config:
        """Raise BadSetting for the first variable that can't be used."""
        values = {}
        for field in dataclasses.fields(cls):
            name, text = field.name.upper(), environ.get(field.name.upper(), "").strip()
            if not text:
                continue
            try:
                values[field.name] = field.metadata["parse"](text)
            except ValueError:
                raise BadSetting(name, "***" if name == "API_TOKEN" else text, f"expected {field.metadata['expected']}") from None
        return cls(**values)

    @classmethod
    def table(cls) -> Iterable[tuple[str, str, str]]:
        """Name, default and meaning of each variable."""
        for field in dataclasses.fields(cls):
            default = "" if field.default is None else f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            yield field.name.upper(), default, field.metadata["meaning"]


# ----------------------------------------------------------------------------
# Errors: what a caller of the store or the API may see, each with the HTTP status that it becomes.
# An outage is no error: whoever loses a server says so once, waits longer each time, and goes on for ever.

class TaskError(Exception):
    """The root of the errors below. `status` is the HTTP status."""
    status = 500


class Invalid(TaskError):
    """The input is wrong. `errors` holds a JSON pointer (or the parameter's name) and a sentence for each thing wrong."""
    status = 400

    def __init__(self, *errors: tuple[str, str]):
        super().__init__("; ".join(f"{where}: {what}" if where else what for where, what in errors))
        self.errors = errors


class Unauthorized(TaskError):
    """The token is missing or wrong."""
    status = 401


class NotFound(TaskError):
    """There is no such task."""
    status = 404


class Conflict(TaskError):
    """The task is not in a state that allows this."""
    status = 409


class TooLarge(TaskError):
    """The body has more than MAX_BODY bytes."""
    status = 413


class Unavailable(TaskError):
    """The database can't be reached. Whether a statement that was under way took effect is not known."""
    status = 503


def backoff(tries: int, first: float, most: float) -> float:
    """Seconds to wait after so many tries: `first`, doubled by each further one up to `most`, with jitter."""
    return min(most, first * 2 ** min(tries - 1, 40)) * random.uniform(0.5, 1)


def describe(error: BaseException) -> str:
    """An exception in one line, without passwords."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "it can't be shown"
    return redact(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class Outage:
    """Says once that something is lost, or not there yet, and once that it is back."""

    def __init__(self, what: str):
        self.what, self.since, self.met = what, None, False

    def lost(self, error: BaseException) -> None:
        if self.since is None:
            self.since = time.monotonic()
            log.warning("%s %s error=%r: trying again until it answers", "lost" if self.met else "waiting for", self.what, describe(error))

    def back(self) -> None:
        since, self.since = self.since, None
        if since is not None:
            log.warning("%s %s after=%.1fs", "back" if self.met else "reached", self.what, time.monotonic() - since)
        self.met = True


# ----------------------------------------------------------------------------
# What a task may be. Both doors hand the bytes that came in to `parse_task`, and nothing else decides.

class NewTask(NamedTuple):
    """A task to create, in the order of CREATE's columns. `payload` is JSON text; times are UTC without zone."""
    payload: str | None = None
    priority: int = 0
    run_at: datetime | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    idempotency_key: str | None = None


def parse_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN or Infinity, no name twice in an object. Raise Invalid."""
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs):
        if len(names := dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice in an object")
        return names
    try:
        return json.loads(data.decode(), parse_constant=refuse, object_pairs_hook=unique)
    except UnicodeDecodeError as e:
        raise Invalid(("", f"not UTF-8: {e.reason} at byte {e.start}")) from None
    except RecursionError:
        raise Invalid(("", f"nested deeper than {MAX_DEPTH} levels")) from None
    except ValueError as e:
        raise Invalid(("", f"not JSON: {str(e).split(';')[0]}")) from None


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def encode_json(value: Any) -> str:
    """JSON text that both databases take. Raise Invalid for what JSON can't say, NUL, lone surrogates, and deep nesting."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError:
        raise Invalid(("", f"nested deeper than {MAX_DEPTH} levels")) from None
    except UnicodeEncodeError:
        raise Invalid(("", "holds a lone surrogate, which is not text")) from None
    except (TypeError, ValueError) as e:
        raise Invalid(("", f"can't be said in JSON: {e}")) from None
    if "\\u0000" in text and _NUL.search(text):
        raise Invalid(("", "holds the character NUL (\\u0000), which PostgreSQL can't keep"))
    if text.count("[") + text.count("{") > MAX_DEPTH:
        depths = itertools.accumulate((c in "[{") - (c in "]}") for c in _STRING.sub("", text))
        if max(depths, default=0) > MAX_DEPTH:
            raise Invalid(("", f"nested deeper than {MAX_DEPTH} levels"))
    return text


def _between(low: float, high: float, whole: bool = False) -> Callable[[Any], float]:
    def check(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or whole and value != int(value):
            raise ValueError(f"expected a {'whole number' if whole else 'number of seconds'} from {low} to {high}")
        return int(value) if whole else float(value)
    return check


def _timestamp(value: Any) -> datetime:
    expected = "expected a time such as \"2030-01-31T12:00:00Z\" (without a zone it is UTC)"
    match = isinstance(value, str) and re.fullmatch(
        r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:(\.[0-9]{1,6})[0-9]*)?([Zz]|[+-][0-9]{2}:[0-5][0-9])?", value)
    if not match:
        raise ValueError(expected)
    date, clock, fraction, zone = match.groups()
    try:
        zone = "+00:00" if zone in (None, "Z", "z") else zone
        moment = datetime.fromisoformat(f"{date}T{clock}{(fraction or '.0').ljust(7, '0')}{zone}")
        return moment.astimezone(timezone.utc).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise ValueError(expected) from None


def _new(value: Any) -> None:
    if value != "New":
        raise ValueError('expected "New": every task begins there')


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "payload": encode_json,
    "priority": _between(-32768, 32767, whole=True),
    "run_at": _timestamp,
    "delay": _between(0, 315360000),
    "max_attempts": _between(1, 1000, whole=True),
    "timeout": _between(0.001, 31536000),
    "status": _new,
}


def new_task(fields: dict[str, Any], idempotency_key: str | None = None) -> NewTask:
    """Check a task given as a JSON object: `payload`, `priority`, `run_at` or `delay`, `max_attempts`, `timeout`, `status`.

    Raise Invalid with every field that is wrong, up to MAX_ERRORS of them.
    """
    values, errors = {}, []
    for name, value in fields.items():
        check = _FIELDS.get(name)
        pointer = "/" + name[:100].replace("~", "~0").replace("/", "~1").encode("utf-8", "replace").decode()
        try:
            if check is None:
                raise ValueError(f"unknown field; expected any of {', '.join(_FIELDS)}")
            values[name] = check(value)
        except (Invalid, ValueError) as e:
            errors.append((pointer, str(e)))
        if len(errors) >= MAX_ERRORS:
            break
    if "run_at" in fields and "delay" in fields:
        errors.append(("/delay", "expected run_at or delay, not both"))
    if idempotency_key and (len(idempotency_key) > 255 or not idempotency_key.isprintable()):
        errors.append(("idempotency_key", "expected up to 255 printable characters"))
    if errors:
        raise Invalid(*errors)
    values.pop("status", None)
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    if "delay" in values:
        values["run_at"] = now + timedelta(seconds=values.pop("delay"))
    if "run_at" in values and values["run_at"] <= now:
        del values["run_at"]
    return NewTask(**values, idempotency_key=idempotency_key or None)


def parse_task(body: bytes, idempotency_key: str | None = None) -> NewTask:
    """The task that a request's body or a message's says: nothing at all, or a JSON object. Raise Invalid or TooLarge."""
    if len(body) > MAX_BODY:
        raise TooLarge(f"{len(body)} bytes are too many: expected at most {MAX_BODY}")
    fields = parse_json(body) if body.strip() else {}
    if not isinstance(fields, dict):
        raise Invalid(("", 'expected no body, or a JSON object such as {"payload": …}'))
    return new_task(fields, idempotency_key)


# ----------------------------------------------------------------------------
# The SQL, in the order of a task's life: one statement a transition. It is written once, for PostgreSQL; SQLite
# runs the same text with `%(x)s` as `:x` and without `for update skip locked`, and has PostgreSQL's functions
# registered on its connections. `values %(rows)s` takes any number of rows. Zero rows back is an ordinary answer.

ISO = """'YYYY-MM-DD"T"HH24:MI:SS'"""

# In the order of the fields of `Row`.
COLUMNS = f"""
    id, status, to_char(created_at, {ISO}), to_char(updated_at, {ISO}), payload, result, error,
    attempt - uncounted, max_attempts, priority, to_char(run_at, {ISO}), timeout, progress, idempotency_key, canceled"""

# Only the holder of this attempt, and only while its lease lasts. `is true` keeps PostgreSQL from the index on
# status, in which the tasks that have just ended are still to be passed over; it takes the primary key.
HELD = "tasks.id = held.id and tasks.attempt = held.attempt and (tasks.status = 'In Progress') is true and tasks.lease_until > now()"

# A task whose idempotency key is already there is not made again.
CREATE = """
with new (payload, priority, run_at, max_attempts, timeout, idempotency_key) as (values %(rows)s)
insert into tasks (payload, priority, run_at, max_attempts, timeout, idempotency_key)
select json(payload), priority, cast(run_at as timestamp), cast(max_attempts as int), cast(timeout as double precision), idempotency_key
from   new
where  true
on conflict (idempotency_key) where idempotency_key is not null do nothing
returning id, idempotency_key"""

READ = f"select {COLUMNS} from tasks where id = %(id)s"

# Pages by the last id seen, never by an offset: the millionth page costs what the first does.
LIST = f"select {COLUMNS} from tasks where id > %(after)s order by id limit %(limit)s"

LIST_STATUS = f"select {COLUMNS} from tasks where status = %(status)s and id > %(after)s order by id limit %(limit)s"

# No task is handed out twice, and nobody waits for a row that another worker is just taking.
CLAIM = f"""
with ready as materialized (
    select id from tasks
    where  status = 'New' and run_at is null
    order  by priority desc, id
    limit  %(limit)s
    for update skip locked)
update tasks
set    status = 'In Progress', attempt = attempt + 1, lease_until = now() + %(lease)s, updated_at = now()
from   ready
where  tasks.id = ready.id
returning tasks.id, attempt, payload, attempt - uncounted, max_attempts, timeout, priority, to_char(created_at, {ISO})"""

# Also carries the progress that the handler reported.
EXTEND = f"""
with held (id, attempt, progress) as (values %(rows)s)
update tasks
set    lease_until = now() + %(lease)s, progress = coalesce(cast(held.progress as double precision), tasks.progress)
from   held
where  {HELD}
returning tasks.id"""

# A task that was canceled meanwhile ends as canceled, whatever its handler says; so do the next three.
COMPLETE = f"""
with held (id, attempt, result) as (values %(rows)s)
update tasks
set    status = case when canceled then 'Failed' else 'Completed' end,
       result = case when canceled then null else json(held.result) end,
       error  = case when canceled then 'canceled' end,
       lease_until = null, progress = null, updated_at = now()
from   held
where  {HELD}
returning tasks.id, tasks.canceled"""

RETRY = f"""
with held (id, attempt, error, delay) as (values %(rows)s)
update tasks
set    status = case when canceled then 'Failed'   else 'New' end,
       error  = case when canceled then 'canceled' else held.error end,
       run_at = case when canceled then null       else now() + held.delay end,
       lease_until = null, progress = null, updated_at = now()
from   held
where  {HELD}
returning tasks.id, tasks.canceled"""

FAIL = f"""
with held (id, attempt, error) as (values %(rows)s)
update tasks
set    status = 'Failed',
       error  = case when canceled then 'canceled' else held.error end,
       lease_until = null, progress = null, updated_at = now()
from   held
where  {HELD}
returning tasks.id, tasks.canceled"""

# Given back unfinished by a worker that stops: the attempt does not count.
RELEASE = f"""
with held (id, attempt) as (values %(rows)s)
update tasks
set    status = case when canceled then 'Failed'   else 'New' end,
       error  = case when canceled then 'canceled' else error end,
       uncounted = uncounted + 1, lease_until = null, progress = null, updated_at = now()
from   held
where  {HELD}
returning tasks.id, tasks.canceled"""

# What a dead worker held goes back, or fails when it has had its attempts. A task that says
# In Progress and has no lease (somebody wrote it so) is nobody's either.
RECLAIM = """
with lost as materialized (
    select id from tasks
    where  status = 'In Progress' and (lease_until is null or lease_until <= now())
    order  by id
    limit  %(limit)s
    for update skip locked)
update tasks
set    status = case when canceled or attempt - uncounted >= coalesce(max_attempts, %(max_attempts)s) then 'Failed' else 'New' end,
       error  = case when canceled then 'canceled'
                else 'the worker died or was cut off during attempt ' || (attempt - uncounted) || ' of ' || coalesce(max_attempts, %(max_attempts)s) end,
       lease_until = null, progress = null, updated_at = now()
from   lost
where  tasks.id = lost.id
returning tasks.id, attempt, status"""

# A New task ends at once; one In Progress is marked, and its worker ends it.
CANCEL = """
update tasks
set    canceled   = true,
       error      = case when status = 'New' then 'canceled' else error      end,
       run_at     = case when status = 'New' then null       else run_at     end,
       updated_at = case when status = 'New' then now()      else updated_at end,
       status     = case when status = 'New' then 'Failed'   else status     end
where  id = %(id)s and status in ('New', 'In Progress')
returning id, status"""

CANCELED = "select id, attempt from tasks where status = 'In Progress' and canceled order by id limit %(limit)s"

# A failed task begins anew, with all its attempts before it; the numbers of the old ones are not used again.
RETRY_BY_HAND = """
update tasks
set    status = 'New', error = null, canceled = false, uncounted = attempt, run_at = null, updated_at = now()
where  id = %(id)s and status = 'Failed'
returning id"""

# What is due joins the tasks that are ready, so that CLAIM's index holds nothing else.
PROMOTE = """
with due as materialized (
    select id from tasks
    where  status = 'New' and run_at <= now()
    order  by run_at
    limit  %(limit)s
    for update skip locked)
update tasks set run_at = null from due where tasks.id = due.id
returning tasks.id"""

DELETE_OLD = """
with old as materialized (
    select id from tasks
    where  status in ('Completed', 'Failed') and updated_at < now() - %(age)s
    order  by updated_at
    limit  %(limit)s
    for update skip locked)
delete from tasks where id in (select id from old)
returning id"""


# ----------------------------------------------------------------------------
# The store: a method a statement, the same on both databases, safe to call from any thread. Who creates
# a task also rings: every callable in `store.bells` is called after the commit.

class Row(NamedTuple):
    """A task as it is kept. `payload` and `result` are JSON text; times are ISO 8601 in UTC, to the second."""
    id: int
    status: str
    created_at: str
    updated_at: str
    payload: str | None
    result: str | None
    error: str | None
    attempts: int
    max_attempts: int | None
    priority: int
    run_at: str | None
    timeout: float | None
    progress: float | None
    idempotency_key: str | None
    canceled: bool

    def to_json(self) -> str:
        """What a client sees: the documented four fields, then those that the task has."""
        text = f'{{"id": {self.id}, "status": {json.dumps(self.status)}, "created_at": "{self.created_at}", "updated_at": "{self.updated_at}"'
        if self.payload is not None:
            text += f', "payload": {self.payload}'
        if self.result is not None:
            text += f', "result": {self.result}'
        for name, value in zip(self._fields[6:-1], self[6:-1]):
            if value and (name, value) != ("attempts", 1):
                text += f', "{name}": {json.dumps(value)}'
        return text + (', "canceled": true}' if self.canceled else "}")


class Claim(NamedTuple):
    """A task handed to a worker, in the order of CLAIM's columns. `attempt` is the fencing token, `attempts` those that count."""
    id: int
    attempt: int
    payload: str | None
    attempts: int
    max_attempts: int | None
    timeout: float | None
    priority: int
    created_at: str


class Store:
    """The table of tasks. Every method may raise Unavailable, and then may be called again later."""

    def __init__(self, url: str):
        self.url = url
        self.bells: list[Callable[[], None]] = []
        self._outage = Outage("database")
        self._local = threading.local()     # .connection: every thread has its own

    def _execute(self, sql: str, params: dict[str, Any] | None = None, repeat: bool = True) -> list[tuple]:
        """Run one statement as one transaction. `repeat`: it may be sent again when its answer was lost."""
        raise NotImplementedError

    def _batch(self, sql: str, rows: Sequence[Sequence[Any]], params: dict[str, Any] | None = None, repeat: bool = True) -> list[tuple]:
        """Run a statement with `values %(rows)s`."""
        params = dict(params or {})
        lines = []
        for r, row in enumerate(rows):
            lines.append("(" + ", ".join(f"%(r{r}c{c})s" for c in range(len(row))) + ")")
            params.update((f"r{r}c{c}", value) for c, value in enumerate(row))
        return self._execute(sql.replace("%(rows)s", ", ".join(lines)), params, repeat)

    def apply_schema(self) -> None:
        """Make the table, or bring an older one up to date. Any number of processes may do so at once."""
        raise NotImplementedError

    def ping(self) -> None:
        """Raise Unavailable when the database does not answer."""
        self._execute("select 1")

    def create(self, tasks: Sequence[NewTask] = (NewTask(),), via: str = "call") -> list[int | None]:
        """Create all of the tasks or none; their ids in the same order, None for a known idempotency key.

        Raise Invalid when the database refuses what a task holds.
        """
        rows = self._batch(CREATE, tasks, repeat=all(task.idempotency_key for task in tasks))
        made, keys, ids = iter(sorted(id for id, _ in rows)), {key for _, key in rows if key}, []
        for task in tasks:
            fresh = task.idempotency_key is None or task.idempotency_key in keys
            keys.discard(task.idempotency_key)
            ids.append(next(made) if fresh else None)
            if fresh:
                log.info("created task=%s via=%s", ids[-1], via)
            else:
                log.info("known idempotency_key=%r via=%s: no new task", task.idempotency_key, via)
        for ring in self.bells:
            ring()
        return ids

    def read(self, id: int) -> Row:
        """Raise NotFound."""
        rows = self._execute(READ, {"id": id}) if 0 < id <= MAX_ID else []
        if not rows:
            raise NotFound(f"there is no task {id}")
        return Row(*rows[0])

    def list(self, status: str | None = None, after: int = 0, limit: int = MAX_PAGE) -> list[Row]:
        """Up to `limit` tasks in the order of their ids, beginning behind the id `after`."""
        sql = LIST if status is None else LIST_STATUS
        return [Row(*row) for row in self._execute(sql, {"status": status, "after": after, "limit": limit})]

    def claim(self, limit: int, lease: float) -> list[Claim]:
        """Take up to `limit` ready tasks for `lease` seconds, the most urgent first."""
        # Not sent again when the answer was lost: what was taken comes back when its lease runs out.
        claims = [Claim(*row) for row in self._execute(CLAIM, {"limit": limit, "lease": timedelta(seconds=lease)}, repeat=False)]
        claims.sort(key=lambda claim: (-claim.priority, claim.id))
        for claim in claims:
            log.info("claimed task=%s attempt=%s", claim.id, claim.attempt)
        return claims

    def extend(self, held: Sequence[tuple[int, int, float | None]], lease: float) -> set[int]:
        """Hold tasks (id, attempt, progress from 0 to 1 or None) for another `lease` seconds; the ids that are still ours."""
        return {id for id, in self._batch(EXTEND, held, {"lease": timedelta(seconds=lease)})}

    def complete(self, held: Sequence[tuple[int, int, str | None]]) -> set[int]:
        """End tasks (id, attempt, result as JSON text or None) as Completed; the ids that were still ours."""
        return self._log("completed", held, self._batch(COMPLETE, held))

    def retry(self, held: Sequence[tuple[int, int, str, float]]) -> set[int]:
        """Give tasks (id, attempt, error, seconds) back, to be tried again after so many seconds; the ids that were still ours."""
        rows = [(id, attempt, error, timedelta(seconds=delay)) for id, attempt, error, delay in held]
        return self._log("retried", rows, self._batch(RETRY, rows))

    def fail(self, held: Sequence[tuple[int, int, str]]) -> set[int]:
        """End tasks (id, attempt, error) as Failed; the ids that were still ours."""
        return self._log("failed", held, self._batch(FAIL, held))

    def release(self, held: Sequence[tuple[int, int]]) -> set[int]:
        """Give tasks (id, attempt) back unfinished, the attempt not counted; the ids that were still ours."""
        return self._log("released", held, self._batch(RELEASE, held))

    def _log(self, verb: str, held: Sequence[Sequence[Any]], rows: list[tuple]) -> set[int]:
        canceled = dict(rows)
        for id, attempt, *rest in held:
            if id not in canceled:
                log.warning("refused task=%s attempt=%s: it was not %s, for it had ended or its lease was lost", id, attempt, verb)
            elif canceled[id]:
                log.info("canceled task=%s attempt=%s", id, attempt)
            elif verb == "failed":
                log.error("failed task=%s attempt=%s error=%r", id, attempt, rest[0])
            elif verb == "retried":
                log.warning("retried task=%s attempt=%s in=%.1fs error=%r", id, attempt, rest[1].total_seconds(), rest[0])
            else:
                log.info("%s task=%s attempt=%s", verb, id, attempt)
        return set(canceled)

    def reclaim(self, max_attempts: int) -> int:
        """Take tasks back whose lease ran out; how many. `max_attempts` is for those that do not say."""
        rows = self._execute(RECLAIM, {"max_attempts": max_attempts, "limit": MANY})
        for id, attempt, status in sorted(rows):
            log.warning("reclaimed task=%s attempt=%s status=%r: its worker died or was cut off", id, attempt, status)
        return len(rows)

    def cancel(self, id: int) -> str:
        """End a New task as Failed, or ask the worker of one In Progress to; its status now. Raise NotFound, Conflict."""
        rows = self._execute(CANCEL, {"id": id}) if 0 < id <= MAX_ID else []
        if rows:
            log.info("canceled task=%s" if rows[0][1] == "Failed" else "asked to cancel task=%s", id)
            return rows[0][1]
        row = self.read(id)
        if row.status == "Failed" and row.canceled:
            return row.status
        raise Conflict(f"task {id} is {row.status}: only one that is New or In Progress can be canceled")

    def canceled(self) -> dict[int, int]:
        """Id and attempt of the tasks In Progress whose cancellation was asked for."""
        return dict(self._execute(CANCELED, {"limit": MANY}))

    def retry_by_hand(self, id: int) -> None:
        """Make a Failed task New again, with all its attempts before it. Raise NotFound, Conflict."""
        if not (0 < id <= MAX_ID and self._execute(RETRY_BY_HAND, {"id": id}, repeat=False)):
            raise Conflict(f"task {id} is {self.read(id).status}: only one that is Failed can be tried again")
        log.info("retried task=%s by hand", id)
        for ring in self.bells:
            ring()

    def promote(self) -> int:
        """Make tasks ready whose time has come; how many."""
        rows = self._execute(PROMOTE, {"limit": MANY})
        for id, in sorted(rows):
            log.debug("promoted task=%s", id)
        return len(rows)

    def delete_old(self, days: float) -> int:
        """Delete some of the tasks that were finished more than `days` ago; how many."""
        rows = self._execute(DELETE_OLD, {"age": timedelta(days=days), "limit": MANY})
        for id, in sorted(rows):
            log.info("deleted task=%s: finished more than %g days ago", id, days)
        return len(rows)


class PostgresStore(Store):
    """PostgreSQL 12 or newer, with a connection a thread."""

    def __init__(self, url: str):
        try:
            import psycopg2
            import psycopg2.extensions
            import psycopg2.extras
        except ImportError as e:
            raise BadSetting("DATABASE_URL", url, f"{e}: pip install psycopg2-binary") from None
        super().__init__(url)
        self.psycopg2 = psycopg2
        try:
            parts = psycopg2.extensions.parse_dsn(url)
            if not re.fullmatch("[0-9,]*", parts.get("port", "")):
                raise psycopg2.ProgrammingError("the port is not a number")
        except psycopg2.ProgrammingError as e:
            raise BadSetting("DATABASE_URL", url, " ".join(str(e).split())) from None
        self.parameters = {
            "application_name": "taskmanager", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", **parts,
            "options": f"-c TimeZone=UTC -c statement_timeout={STATEMENT_SECONDS}s {parts.get('options', '')}"}

    def _connection(self):
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.closed or self._has_news(connection):
            self._disconnect()
            # An asynchronous connection, so that a server that is frozen, and neither answers nor closes, is not waited
            # for without end. Every statement on it is a transaction of its own.
            connection = self.psycopg2.connect(**self.parameters, async_=True)
            self._wait(connection, CONNECT_SECONDS)
            self.psycopg2.extras.register_default_json(connection, loads=lambda text: text)
            self._local.connection = connection
        return connection

    @staticmethod
    def _has_news(connection) -> bool:
        """An idle connection has nothing to say, unless the server closed it: then no statement must be risked on it."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))

    def _wait(self, connection, seconds: float) -> None:
        """Until what was sent is answered. Raise TimeoutError."""
        deadline = time.monotonic() + seconds
        while (state := connection.poll()) != self.psycopg2.extensions.POLL_OK:
            poll = select.poll()
            poll.register(connection, select.POLLIN if state == self.psycopg2.extensions.POLL_READ else select.POLLOUT)
            if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"no answer within {seconds} s")

    def _disconnect(self) -> None:
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _run(self, sql, params=None, seconds=None) -> list[tuple]:
        connection = self._connection()
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            self._wait(connection, seconds or STATEMENT_SECONDS + 5)
            return cursor.fetchall() if cursor.description else []

    def _execute(self, sql, params=None, repeat=True):
        errors = self.psycopg2.errors
        try:
            rows = self._run(sql, params)
        except (errors.DeadlockDetected, errors.SerializationFailure):
            return self._execute(sql, params, repeat)       # nothing of it was done
        except (self.psycopg2.OperationalError, self.psycopg2.InterfaceError, self.psycopg2.InternalError, TimeoutError) as e:
            connected = hasattr(self._local, "connection")
            self._disconnect()
            if repeat and connected and not isinstance(e, (TimeoutError, errors.QueryCanceled)):
                return self._execute(sql, params, repeat=False)
            self._outage.lost(e)
            raise Unavailable("the database can't be reached") from e
        except (self.psycopg2.DataError, self.psycopg2.IntegrityError) as e:
            if e.diag.constraint_name == "tasks_pkey":      # somebody chose an id himself; the next one may be free
                raise Unavailable("the next id is taken") from e
            raise Invalid(("", f"the database refuses it: {describe(e)}")) from e
        self._outage.back()
        return rows

    def apply_schema(self):
        schema = (HERE / "schema.sql").read_text()
        version = int(re.search(r"comment on table tasks is '.* (\d+)'", schema)[1])
        if self._version() >= version:
            return      # altering takes a lock that a long backup would make everybody wait for
        lock = 1952543595       # any number, the same in every process
        try:
            self._execute("select pg_advisory_lock(%(lock)s)", {"lock": lock})
            if self._version() < version:
                # As one text it is one transaction.
                self._run("set local statement_timeout = 0; set local client_min_messages = warning;" + schema, seconds=86400)
                log.info("applied schema.sql version=%s", version)
            self._execute("select pg_advisory_unlock(%(lock)s)", {"lock": lock})
        except self.psycopg2.OperationalError as e:
            self._disconnect()
            self._outage.lost(e)
            raise Unavailable("the database can't be reached") from e
        except self.psycopg2.Error as e:
            raise BadSetting("DATABASE_URL", self.url, f"schema.sql was refused: {describe(e)}") from e

    def _version(self) -> int:
        """The version of the schema that the comment on the table names; 0 for none."""
        [(comment,)] = self._execute("select obj_description(to_regclass('tasks'), 'pg_class')")
        return int(comment.rpartition(" ")[2]) if re.fullmatch(r"Task Manager, schema \d+", comment or "") else 0


class SQLiteStore(Store):
    """SQLite 3.35 or newer, for one machine: one writer at a time, and the file on a local disk.

    Times are kept as seconds since 1970 (`datetime(created_at, 'unixepoch')` shows them).
    """

    SCHEMA = """
        create table if not exists tasks (
            id              integer primary key autoincrement,
            status          varchar(20) not null default 'New' check (status in ('New', 'In Progress', 'Completed', 'Failed')),
            created_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            updated_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            payload         text check (payload is null or json_valid(payload)),
            result          text check (result is null or json_valid(result)),
            error           text,
            priority        int not null default 0,
            run_at          real,
            attempt         int not null default 0,
            uncounted       int not null default 0,
            max_attempts    int check (max_attempts > 0),
            timeout         real check (timeout > 0 and timeout < 1e99),
            lease_until     real,
            canceled        int not null default 0,
            progress        real check (progress between 0 and 1),
            idempotency_key text);
        create index        if not exists tasks_claim       on tasks (priority desc, id) where status = 'New' and run_at is null;
        create index        if not exists tasks_promote     on tasks (run_at)            where status = 'New' and run_at is not null;
        create index        if not exists tasks_list_status on tasks (status, id);
        create index        if not exists tasks_delete_old  on tasks (updated_at)        where status in ('Completed', 'Failed');
        create unique index if not exists tasks_create      on tasks (idempotency_key)   where idempotency_key is not null;"""

    def __init__(self, url: str):
        super().__init__(url)
        self.path = Path(url.removeprefix("sqlite:///")).absolute()     # a handler may change the folder
        self.file: int | None = None        # its number, once it is there
        self._writing = threading.Lock()
        if sqlite3.sqlite_version_info < (3, 35):
            raise BadSetting("DATABASE_URL", url, f"SQLite is {sqlite3.sqlite_version}, expected 3.35 or newer")

    @staticmethod
    def _plain(value):
        """A time or a span as a number of seconds."""
        if isinstance(value, datetime):
            return (value - datetime(1970, 1, 1)) // timedelta(milliseconds=1) / 1000
        return value.total_seconds() if isinstance(value, timedelta) else value

    def _connection(self):
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            connection.execute("pragma synchronous = full")     # a commit is on the disk before it is answered
            connection.create_function("now", 0, time.time)
            connection.create_function("json", 1, lambda text: text, deterministic=True)     # the table's checks see to it
            connection.create_function("to_char", 2, lambda seconds, form: seconds if seconds is None else
                                       time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)), deterministic=True)
            self._local.connection = connection
        return connection

    @staticmethod
    @functools.lru_cache(256)
    def _translate(sql: str) -> str:
        return re.sub(r"%\((\w+)\)s", r":\1", sql.replace("for update skip locked", ""))

    def _execute(self, sql, params=None, repeat=True):
        params = {name: self._plain(value) for name, value in (params or {}).items()}
        # Within the process writers queue up here, which is fairer and quicker than SQLite's own waiting.
        reading = sql.lstrip().startswith("select")
        try:
            if self.path.stat().st_ino != self.file:
                raise FileNotFoundError(f"{self.path} is no longer the file that it was")
            with contextlib.nullcontext() if reading else self._writing:
                rows = self._connection().execute(self._translate(sql), params).fetchall()
        except sqlite3.IntegrityError as e:
            raise Invalid(("", f"the database refuses it: {e}")) from e
        except (sqlite3.DatabaseError, OSError) as e:
            self._outage.lost(e)
            raise Unavailable("the database can't be used") from e
        self._outage.back()
        return rows

    def apply_schema(self):
        for tries in itertools.count(1):
            try:
                with self._writing:
                    connection = self._connection()
                    connection.execute("pragma journal_mode = wal")     # does not wait for another process that is just doing it
                    connection.executescript("begin immediate;" + self.SCHEMA + "commit;")
                self.file = self.path.stat().st_ino
                return
            except sqlite3.Error as e:
                if "locked" not in str(e) or tries == 100:
                    raise BadSetting("DATABASE_URL", self.url, str(e)) from e
                time.sleep(0.1)


def open_store(url: str, wait: bool = False) -> Store:
    """The store at `url` (sqlite:///FILE or postgresql://…), its table ready. Raise Unavailable, or `wait` until it is not."""
    store = SQLiteStore(url) if url.startswith("sqlite:") else PostgresStore(url)
    for tries in itertools.count(1):
        try:
            store.apply_schema()
            return store
        except Unavailable:
            if not wait:
                raise
            time.sleep(backoff(tries, 0.2, 5))


# ----------------------------------------------------------------------------
# Handlers: what a task does. The operator names one with HANDLER, a client never can. A handler is a callable
# that takes a Task; what it returns becomes the result, and an exception is the error of this attempt.

class Failed(Exception):
    """Raised by a handler: the task has failed for good and is not to be tried again."""


class Retry(Exception):
    """Raised by a handler: try the task again, after `delay` seconds if given, as long as it has attempts left."""

    delay: float | None = None

    def __init__(self, message: str = "", delay: float | None = None):
        super().__init__(message)
        if delay is not None and not 0 <= delay <= 315360000:
            raise ValueError(f"a delay is from 0 to 315360000 seconds, not {delay!r}")
        self.delay = delay


class Task:
    """A task as its handler sees it.

    id:       the task's id
    attempt:  1 for the first attempt; grows with each one
    timeout:  seconds that this attempt may take, or None
    idempotency_key: the same for every attempt of this task, and for no other task
    json:     the payload as JSON text ("null" when the task has none)
    """

    def __init__(self, claim: Claim, timeout: float | None):
        self.id, self.attempt, self.json = claim.id, claim.attempt, claim.payload or "null"
        self.idempotency_key = f"task-{claim.id}-{claim.created_at}"
        self.timeout = claim.timeout or timeout
        self.deadline = time.monotonic() + self.timeout if self.timeout else None
        self.claim = claim
        self.held_until = 0.0                   # when the lease runs out, if it is not extended
        self.fraction: float | None = None      # progress that was reported and is not yet in the table
        self.stopped: str | None = None         # why the handler was told to stop,
        self.stopped_at, self.forced = 0.0, False   # when, and whether it was by force
        self._lock, self._hook = threading.Lock(), None

    @functools.cached_property
    def payload(self) -> Any:
        """The payload, parsed; None when the task has none."""
        return json.loads(self.json)

    def progress(self, fraction: float) -> None:
        """Report how much is done, from 0 to 1. Cheap: it is written about once per POLL_SECONDS."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is from 0 to 1, not {fraction!r}")
        self.fraction = float(fraction)

    @property
    def canceled(self) -> bool:
        """Whether to stop: the task was canceled, timed out or was lost to another worker, or this worker stops."""
        return self.stopped is not None

    def on_stop(self, hook: Callable[[bool], None] | None) -> None:
        """Have `hook(force)` called, from another thread, when the handler is to stop; a second time, with
        True, when it has not done so within seconds."""
        with self._lock:
            self._hook = hook
            if hook and self.stopped:
                hook(False)

    def stop(self, reason: str, force: bool = False) -> None:
        """Tell the handler to stop."""
        with self._lock:
            self.stopped, self.stopped_at, self.forced = self.stopped or reason, time.monotonic(), force or not self._hook
            if self._hook:
                self._hook(force)


class ExecHandler:
    """Runs a program, without a shell: payload on stdin, result on stdout, in a process group of its own."""

    def __init__(self, command: str):
        self.args = shlex.split(command)
        if not self.args or not shutil.which(self.args[0]):
            raise ValueError(f"no program {' '.join(self.args[:1])!r} that can be run")

    def __call__(self, task: Task) -> Any:
        # Files instead of pipes: nobody has to read while the program runs, and a child that it
        # leaves behind with its stdout open holds nobody up.
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(task.json.encode())
            stdin.seek(0)
            environ = os.environ | {"TASK_ID": str(task.id), "TASK_ATTEMPT": str(task.attempt)}
            process = subprocess.Popen(self.args, stdin=stdin, stdout=stdout, stderr=stderr, env=environ, start_new_session=True)

            def end(force: bool) -> None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)

            task.on_stop(end)
            process.wait()
            task.on_stop(None)
            if task.stopped:
                end(force=True)     # what is left of its group
            if process.returncode:
                size = stderr.seek(0, os.SEEK_END)
                stderr.seek(max(0, size - MAX_ERROR + 100))
                tail = stderr.read().decode("utf-8", "replace").strip()
                code = process.returncode
                how = f"exit status {code}" if code > 0 else f"ended by signal {-code} ({signal.strsignal(-code)})"
                raise Retry(f"{how}: {tail}" if tail else how)
            stdout.seek(0)
            return self.result(stdout.read(MAX_BODY + 1))

    @staticmethod
    def result(output: bytes) -> Any:
        """What was printed: JSON, or else text."""
        if len(output) > MAX_BODY:
            raise Failed(f"printed more than {MAX_BODY} bytes")
        try:
            return parse_json(output) if output.strip() else None
        except Invalid:
            return output.decode("utf-8", "replace").replace("\0", "\ufffd").rstrip("\n")


class HttpHandler:
    """Posts the task as JSON to an address. Redirects are not followed."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        if not parts.hostname or not re.fullmatch("[!-~]+", url):
            raise ValueError("expected an address with a host, in ASCII and without spaces")
        self.connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.host, self.port = parts.hostname, parts.port or self.connect.default_port
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.headers = {"Content-Type": "application/json", "User-Agent": f"taskmanager/{__version__}"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()

    def __call__(self, task: Task) -> Any:
        connection = self.connect(self.host, self.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            sock = connection.sock      # which http.client forgets when the answer is to end with the connection
            sock.settimeout(task.timeout or HTTP_SECONDS)

            def interrupt(force: bool) -> None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

            task.on_stop(interrupt)     # at once, if it was told to stop meanwhile: then nothing is sent
            body = f'{{"id": {task.id}, "attempt": {task.attempt}, "payload": {task.json}}}'
            connection.request("POST", self.target, body.encode(), self.headers | {"Idempotency-Key": f'"{task.idempotency_key}"'})
            with connection.getresponse() as response:
                body = response.read(MAX_BODY + 1)
                if response.length and len(body) <= MAX_BODY:
                    raise http.client.IncompleteRead(body, response.length)
                return self.result(response.status, response.headers, body)
        except (OSError, http.client.HTTPException) as e:
            raise Retry(f"no answer: {describe(e)}") from e
        finally:
            task.on_stop(None)
            connection.close()

    @staticmethod
    def result(status: int, headers, body: bytes) -> Any:
        """What an answer means."""
        if 200 <= status < 300:
            if len(body) > MAX_BODY:
                raise Failed(f"answered {status} with more than {MAX_BODY} bytes")
            if not body.strip() or not re.match(r"application/([\w.-]+\+)?json\b", headers.get("Content-Type", ""), re.IGNORECASE):
                return None
            try:
                return parse_json(body)
            except Invalid as e:
                raise Failed(f"answered {status} with a body that is {e}") from None
        text = headers.get("Location") if 300 <= status < 400 else body.decode("utf-8", "replace")
        error = f"answered {status}: {(text or '').strip()[:MAX_ERROR - 100]}"
        if status < 200 or status in (408, 425, 429) or status >= 500:
            raise Retry(error, delay=retry_after(headers.get("Retry-After")))
        raise Failed(error)


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110: a number or a date), up to a day; None for none."""
    try:
        seconds = float(value) if value.strip().isdigit() else (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds()
        return min(max(seconds, 0), 86400)
    except (AttributeError, TypeError, ValueError):
        return None


def load_handler(text: str | None) -> Callable[[Task], Any] | None:
    """The handler that HANDLER names. Raise BadSetting."""
    if not text:
        return None
    try:
        if text.startswith("exec:"):
            return ExecHandler(text.removeprefix("exec:"))
        if re.match(r"https?://", text, re.IGNORECASE):
            return HttpHandler(text)
        module, colon, name = text.partition(":")
        if not (module and colon and name):
            raise ValueError("expected package.module:function, exec:program args… or https://…")
        function = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise ValueError(f"{name} is not a function (an async one would have to run an event loop of its own)")
        return function
    except (Exception, SystemExit) as e:
        raise BadSetting("HANDLER", text, str(e) if type(e) is ValueError else describe(e)) from e


# ----------------------------------------------------------------------------
# The worker: one thread talks to the database (claims what there are free slots for, writes all outcomes that
# have come in since it last did, extends leases), and a thread a slot runs handlers. No RabbitMQ in it.

LOST, STOPS = "its lease was lost", "the worker stops"     # why a handler is told to stop, besides a timeout and "canceled"


class Outcome(NamedTuple):
    """How an attempt ended: the verb that writes it, and what that takes behind id and attempt."""
    task: Task
    verb: str
    values: tuple


class Worker:
    """Runs the tasks of a store until it is stopped. Any number of workers may share a store."""

    def __init__(self, store: Store, config: Config = Config(), handler: Callable[[Task], Any] | None = None):
        """`handler`: a callable that takes a Task; None for the one that config.handler names."""
        self.store, self.config = store, config
        self.handler = handler or load_handler(config.handler)
        # Where a task does nothing there is nothing to run side by side, and a whole batch is done at once.
        self.slots = config.concurrency if self.handler else MANY
        self._running: dict[tuple[int, int], Task] = {}
        self._outcomes: list[Outcome] = []
        self._lock = threading.Lock()           # of the two above
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._event = threading.Event()         # something happened
        self._look = True                       # there may be ready tasks in the table
        self._deadline: float | None = None     # set by stop()
        self._next_tick = self._next_extend = self._next_delete = 0.0
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to take tasks, in threads of its own."""
        self._thread.start()
        for _ in range(self.slots if self.handler else 0):
            self._start_slot()
        self.store.bells.append(self.wake)
        name = self.config.handler or getattr(self.handler, "__qualname__", type(self.handler).__name__) if self.handler else "none"
        log.info("started worker handler=%r slots=%s", redact(name), self.slots)

    def wake(self) -> None:
        """There may be work."""
        self._look = True
        self._event.set()

    def begin_stop(self, grace: float | None = None) -> None:
        """Take no more tasks; let handlers finish for `grace` seconds (config.grace_seconds), then tell them to stop."""
        grace = self.config.grace_seconds if grace is None else grace
        if self._deadline is None:
            self._deadline = time.monotonic() + grace
            if self._running:
                log.info("stopping worker running=%s grace=%gs", len(self._running), grace)
        self._event.set()

    def stop(self, grace: float | None = None) -> None:
        """begin_stop(), and wait until all is finished or given back."""
        self.begin_stop(grace)
        if self.wake in self.store.bells:
            self.store.bells.remove(self.wake)
        if self._thread.ident is None:
            return
        self._thread.join(max(0, self._deadline - time.monotonic()) + 2 * STOP_SECONDS + 1)
        for _ in range(self.slots):
            self._inbox.put(None)
        if self._thread.is_alive():     # which it is only while the database does not answer
            for task in self._tasks():
                task.stop(STOPS, force=True)
            log.warning("stopped worker; what it could not give back will be reclaimed")
        else:
            log.info("stopped worker")

    def _start_slot(self) -> None:
        threading.Thread(target=self._slot, name="handler", daemon=True).start()

    def _loop(self) -> None:
        tries = 0
        while not self._finished():
            try:
                self._event.wait(self._idle_seconds())
                self._event.clear()
                self._mind_handlers()
                self._write_outcomes()
                self._tick()
                self._claim()
                tries = 0
            except Exception as e:
                tries += 1
                if tries == 1 and not isinstance(e, Unavailable):   # the store has told of that one
                    log.exception("worker goes on after an error")
                time.sleep(backoff(tries, 0.1, 1 if self._deadline else 5))
                self.wake()

    def _tasks(self) -> list[Task]:
        with self._lock:
            return list(self._running.values())

    def _finished(self) -> bool:
        if self._deadline is None:
            return False
        with self._lock:
            return not (self._running or self._outcomes) or time.monotonic() >= self._deadline + 2 * STOP_SECONDS

    def _idle_seconds(self) -> float:
        times = [self._next_tick]
        for task in self._tasks():
            times.append(task.stopped_at + STOP_SECONDS if task.stopped else min(task.held_until, task.deadline or task.held_until))
        if self._deadline is not None and time.monotonic() < self._deadline:
            times.append(self._deadline)
        return max(0, min(times) - time.monotonic())

    def _claim(self) -> None:
        free = self.slots - len(self._running)
        if self._deadline is not None or not self._look or free <= 0:
            return
        self._look = False
        held_until = time.monotonic() + self.config.lease_seconds
        claims = self.store.claim(free, self.config.lease_seconds)
        for claim in claims:
            task = Task(claim, self.config.task_timeout)
            task.held_until = held_until
            if self.handler:
                with self._lock:
                    self._running[claim.id, claim.attempt] = task
                self._inbox.put(task)
            else:
                self._outcomes.append(Outcome(task, "complete", (None,)))
        if len(claims) == free:
            self._look = True       # when a slot is free again; to go round at once would only make the batches smaller
        if claims and not self.handler:
            self._event.set()

    def _slot(self) -> None:
        while task := self._inbox.get():
            if not self._end(task, self._run(task)):
                if self._deadline is None:
                    log.warning("refused task=%s attempt=%s: its handler came back after it had been given up", task.id, task.attempt)
                return      # another thread has this one's slot

    def _end(self, task: Task, outcome: Outcome) -> bool:
        """A task has ended so; False when it had ended before."""
        with self._lock:
            ours = self._running.pop((task.id, task.attempt), None) is task
            if ours:
                self._outcomes.append(outcome)
        self._event.set()
        return ours

    def _run(self, task: Task) -> Outcome:
        try:
            result = self.handler(task)
            outcome = Outcome(task, "complete", (self._encode(result),))
        except Failed as e:
            outcome = self._failure(task, self._words(e), final=True)
        except Retry as e:
            outcome = self._failure(task, self._words(e), delay=e.delay)
        except BaseException as e:      # a handler's sys.exit() must not end the slot
            log.debug("traceback task=%s attempt=%s", task.id, task.attempt, exc_info=True)
            frames = traceback.extract_tb(e.__traceback__)
            frame = next((frame for frame in reversed(frames) if "/lib/python" not in frame.filename), frames[-1])
            outcome = self._failure(task, f"{describe(e)} ({Path(frame.filename).name}:{frame.lineno} in {frame.name})")
        # One that was told to stop may have returned early: what it says does not count.
        return self._stopped(task) if task.stopped else outcome

    @staticmethod
    def _words(error: Exception) -> str:
        """What the handler said, or what can be said of it."""
        try:
            return str(error) or describe(error)
        except Exception:
            return describe(error)

    @staticmethod
    def _encode(result: Any) -> str | None:
        try:
            text = None if result is None else encode_json(result)
        except Invalid as e:
            raise Failed(f"its result {e}") from None
        if text and len(text.encode()) > MAX_BODY:
            raise Failed(f"its result has more than {MAX_BODY} bytes")
        return text

    def _stopped(self, task: Task) -> Outcome:
        if task.stopped == STOPS:
            return Outcome(task, "release", ())
        return self._failure(task, task.stopped, final=task.stopped == "canceled")

    def _failure(self, task: Task, error: str, final: bool = False, delay: float | None = None) -> Outcome:
        error = error.replace("\0", "\ufffd").encode("utf-8", "replace").decode()[-MAX_ERROR:]
        tries = task.claim.attempts
        if final or tries >= (task.claim.max_attempts or self.config.max_attempts):
            return Outcome(task, "fail", (error,))
        if delay is None:
            delay = backoff(tries, self.config.retry_seconds, MAX_BACKOFF)
        return Outcome(task, "retry", (error, delay))

    def _mind_handlers(self) -> None:
        """Tell handlers to stop whose time is up, then use force, and at last go on without them."""
        now = time.monotonic()
        for task in self._tasks():
            if not task.stopped:
                if task.deadline and now >= task.deadline:
                    task.stop(f"timed out after {task.timeout:g} s")
                elif now >= task.held_until:
                    log.warning("lost task=%s attempt=%s: its lease ran out before it could be extended", task.id, task.attempt)
                    task.stop(LOST)
                elif self._deadline is not None and now >= self._deadline:
                    task.stop(STOPS)
            elif now >= task.stopped_at + STOP_SECONDS:
                if not task.forced:
                    task.stop(task.stopped, force=True)
                elif self._end(task, self._stopped(task)):
                    # Python can't end a thread. This one keeps what it holds; a new one takes its slot.
                    self._start_slot()
                    log.error("gave up on the handler of task=%s attempt=%s: it was told to stop (%s) and did not", task.id, task.attempt, task.stopped)

    def _write_outcomes(self) -> None:
        with self._lock:
            outcomes = sorted(self._outcomes, key=lambda outcome: outcome.verb)
        for verb, batch in itertools.groupby(outcomes, key=lambda outcome: outcome.verb):
            self._write(verb, list(batch))

    def _write(self, verb: str, batch: list[Outcome]) -> None:
        try:
            getattr(self.store, verb)([(outcome.task.id, outcome.task.attempt, *outcome.values) for outcome in batch])
        except Unavailable:
            raise       # they stay, and are written when the database is back
        except Exception:
            if len(batch) > 1:
                for outcome in batch:
                    self._write(verb, [outcome])
                return
            log.exception("could not write an outcome task=%s: it will be reclaimed", batch[0].task.id)
        with self._lock:
            written = set(map(id, batch))
            self._outcomes = [outcome for outcome in self._outcomes if id(outcome) not in written]

    def _tick(self) -> None:
        """Everything that goes by the clock."""
        now, config = time.monotonic(), self.config
        if now < self._next_tick:
            return
        self._next_tick = now + min(config.poll_seconds, config.lease_seconds / 3)
        self._extend(now)
        for id, attempt in self.store.canceled().items():
            task = self._running.get((id, attempt))
            if task and not task.stopped:
                task.stop("canceled")
        if self._deadline is not None:
            return
        if self.store.reclaim(config.max_attempts) + self.store.promote() >= MANY:
            self._next_tick = now       # there is more
        if config.retention_days is not None and now >= self._next_delete:
            if self.store.delete_old(config.retention_days) < MANY:
                self._next_delete = now + 60
        self._look = True

    def _extend(self, now: float) -> None:
        held = [task for task in self._tasks() if task.stopped != LOST]
        reported = {task: task.fraction for task in held if task.fraction is not None}
        if not held or not reported and now < self._next_extend:
            return
        ours = self.store.extend([(task.id, task.attempt, reported.get(task)) for task in held], self.config.lease_seconds)
        self._next_extend = now + self.config.lease_seconds / 3
        for task in held:
            if task.fraction == reported.get(task):
                task.fraction = None
            task.held_until = now + self.config.lease_seconds if task.id in ours else 0.0


# ----------------------------------------------------------------------------
# The doorbell: "there is work", said to the workers of other processes. A ring is a small transient message
# to a fanout exchange; losing one costs POLL_SECONDS at most, so nobody ever waits for it.

def amqp_parameters(url: str, name: str):
    """pika's parameters for `url`, with a name for the connection that the broker shows."""
    try:
        import pika
        parameters = pika.URLParameters(url)
    except ImportError as e:
        raise BadSetting("RABBITMQ_URL", url, f"{e}: pip install pika") from None
    except Exception as e:
        raise BadSetting("RABBITMQ_URL", url, describe(e)) from None
    parameters.client_properties = {"connection_name": name}
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30
    return parameters


def bell_exchange(config: Config) -> str:
    """The exchange to which a worker binds a queue of its own."""
    return f"{config.task_queue}.bell"


class Bell:
    """Rings from a thread of its own, which reconnects for ever."""

    def __init__(self, config: Config):
        self.config, self.parameters = config, amqp_parameters(config.rabbitmq_url, "taskmanager bell")
        self._rung, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="bell", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        """Never blocks; rings that come close together are one."""
        self._rung.set()

    def stop(self) -> None:
        self._stopped.set()
        self._rung.set()
        if self._thread.ident is not None:
            self._thread.join(2)

    def _loop(self) -> None:
        import pika
        outage, tries = Outage("RabbitMQ"), 0
        while not self._stopped.is_set():
            try:
                with pika.BlockingConnection(self.parameters) as connection:
                    channel = connection.channel()
                    channel.exchange_declare(bell_exchange(self.config), "fanout", durable=True)
                    outage.back()
                    tries = 0
                    while not self._stopped.is_set():
                        if self._rung.wait(1):
                            self._rung.clear()
                            channel.basic_publish(bell_exchange(self.config), "", b"")
                        connection.process_data_events(0.01)    # heartbeats; also lets rings come together
            except Exception as e:
                outage.lost(e)
                tries += 1
                self._stopped.wait(backoff(tries, 0.5, 10))


# ----------------------------------------------------------------------------
# The HTTP API, in the order of openapi.yaml. A route reads the request, calls the store and returns; every
# error becomes an answer in one place.

def json_answer(text: str, status: int = 200, **headers: str) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(text.encode("utf-8", "backslashreplace"), status, Content_Type="application/json", **headers)


def problem(status: int, detail: str, errors: Iterable[tuple[str, str]] = ()) -> str:
    """The body of every error (RFC 9457)."""
    body: dict[str, Any] = {"type": "about:blank", "title": http.client.responses.get(status, "Error"), "status": status, "detail": detail}
    if errors:
        body["errors"] = [{"pointer": where, "detail": what} for where, what in errors]
    return json.dumps(body)


def create_app(store: Store, config: Config = Config()) -> Callable:
    """The WSGI application on a store. It may be mounted under any prefix; of `config` it reads `api_token`."""
    app = bottle.Bottle()
    request = bottle.request

    def error_answer(error: bottle.HTTPError) -> str:
        cause = error.exception
        errors = cause.errors if isinstance(cause, Invalid) else ()
        bottle.response.content_type = "application/problem+json"
        return problem(error.status_code, str(error.body), errors)

    app.default_error_handler = error_answer

    def is_text(raw: str) -> bool:
        """Whether a path, as WSGI hands it over, is UTF-8: Bottle would just drop what is not."""
        try:
            return raw.isascii() or bool(raw.encode("latin-1").decode())
        except UnicodeError:
            return False

    def guard(callback):
        def guarded(*args, **kwargs):
            try:
                if config.api_token and not request.route.config.get("public"):
                    check_token()
                if not is_text(request.environ.get("bottle.raw_path", "")):
                    raise NotFound("there is nothing at an address that is not UTF-8")
                return callback(*args, **kwargs)
            except TaskError as e:
                headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(e.status, {})
                raise bottle.HTTPError(e.status, str(e), e, **headers) from None
            except (bottle.HTTPResponse, MemoryError, KeyboardInterrupt, SystemExit):
                raise
            except Exception:
                log.exception("could not answer %s %s", request.method, request.path)
                raise bottle.HTTPError(500, "something went wrong here; the log says what") from None
        return guarded

    app.install(guard)

    def check_token() -> None:
        scheme, _, token = request.get_header("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), config.api_token.encode()):
            raise Unauthorized("expected the header Authorization: Bearer, with the token of this service")

    def body() -> bytes:
        if request.content_length > MAX_BODY:
            raise TooLarge(f"{request.content_length} bytes are too many: expected at most {MAX_BODY}")
        return request.body.read(MAX_BODY + 1)

    def task_id(text: str) -> int:
        if not re.fullmatch("[1-9][0-9]{0,18}", text):
            raise NotFound(f"there is no task {text!r}: an id is a whole number from 1 on")
        return int(text)

    def parameters(*names: str) -> dict[str, str]:
        """The query's parameters. What is not known, not text, or said twice is refused."""
        errors = [(name.encode("latin-1").decode("utf-8", "replace"), f"unknown parameter; expected {' or '.join(names) or 'none'}")
                  for name in request.query if name not in names]
        errors += [(name, "expected once") for name in names if len(request.query.getall(name)) > 1]
        values = {name: request.query.getunicode(name) for name in names if name in request.query}
        errors += [(name, "expected UTF-8") for name, value in values.items() if value is None]
        if errors:
            raise Invalid(*errors)
        return values

    def integer(values: dict[str, str], name: str, default: int, low: int, high: int) -> int:
        text = values.get(name)
        if text is None:
            return default
        if not re.fullmatch("[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise Invalid((name, f"{text!r}: expected a whole number from {low} to {high}"))
        return int(text)

    @app.post("/tasks")
    def create_task():
        parameters()
        [id] = store.create([parse_task(body())], via="http")
        return json_answer(f'{{"id": {id}}}', 201, Location=f"{request.script_name}tasks/{id}")

    @app.get("/tasks")
    def list_tasks():
        values = parameters("status", "limit", "after")
        status, limit = values.get("status"), integer(values, "limit", MAX_PAGE, 1, MAX_PAGE)
        if status is not None and status not in STATUSES:
            raise Invalid(("status", f"{status!r}: expected one of {', '.join(STATUSES)}"))
        rows = store.list(status, integer(values, "after", 0, 0, MAX_ID), limit + 1)
        headers = {}
        if len(rows) > limit:
            del rows[limit:]
            query = urlencode({**values, "limit": limit, "after": rows[-1].id})
            headers["Link"] = f'<{request.script_name}tasks?{query}>; rel="next"'
        return json_answer("[" + ", ".join(row.to_json() for row in rows) + "]", **headers)

    @app.get("/tasks/<id>")
    def read_task(id):
        return json_answer(store.read(task_id(id)).to_json())

    @app.post("/tasks/<id>/cancel")
    def cancel_task(id):
        status = store.cancel(task_id(id))
        return json_answer(store.read(int(id)).to_json(), 200 if status == "Failed" else 202)

    @app.post("/tasks/<id>/retry")
    def retry_task(id):
        store.retry_by_hand(task_id(id))
        return json_answer(store.read(int(id)).to_json())

    @app.get("/livez", public=True)
    def livez():
        return json_answer('{"status": "ok"}')

    @app.get("/readyz", public=True)
    def readyz():
        store.ping()
        return json_answer('{"status": "ok"}')

    @app.get("/", public=True)
    def index():
        return bottle.HTTPResponse(status=302, Location=f"{request.script_name}swagger")

    @app.get("/openapi.yaml", public=True)
    def openapi():
        return static("openapi.yaml", HERE, "application/yaml")

    @app.get("/swagger", public=True)
    def swagger():
        return static("index.html", HERE / "static" / "swagger")

    @app.get("/swagger/", public=True)
    def swagger_slash():
        return bottle.HTTPResponse(status=302, Location=f"{request.script_name}swagger")

    @app.get("/swagger/<name>", public=True)
    def swagger_file(name):
        if name == "index.html":        # its addresses are for /swagger
            return swagger_slash()
        return static(name, HERE / "static" / "swagger", True if "." in name else "text/plain")

    def static(name: str, root: Path, mimetype: bool | str = True):
        answer = bottle.static_file(name, root=str(root), mimetype=mimetype, etag=False)
        answer.set_header("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        answer.set_header("X-Content-Type-Options", "nosniff")
        answer.set_header("Cache-Control", "no-cache")
        return answer

    return app.wsgi     # a plain WSGI callable: a Bottle app, mounted in another, would lose its error answers

# ----------------------------------------------------------------------------
# main(): the API as a program. worker.py begins with the same `begin`.

def begin(description: str) -> Config:
    """The command line (there is only --help), the configuration and the logging of a program; SIGTERM ends it as Ctrl-C does."""
    table = "\n".join(textwrap.fill(f"  {name:16}{default or '-':20}{meaning.replace('`', '')}", shutil.get_terminal_size().columns,
                                    subsequent_indent=" " * 38) for name, default, meaning in Config.table())
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=f"environment variables, their defaults and meaning:\n{table}")
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args()
    config = Config.from_env()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if config.log_file:
        try:
            handlers.append(logging.handlers.RotatingFileHandler(config.log_file, maxBytes=10_000_000, backupCount=5, encoding="utf-8"))
        except OSError as e:
            raise BadSetting("LOG_FILE", config.log_file, e.strerror) from None
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=config.log_level, handlers=handlers, format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    logging.getLogger("pika").setLevel(logging.CRITICAL)            # what they say of a lost connection, we say ourselves
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    sys.path.insert(0, os.getcwd())                                 # where HANDLER's module may be

    def terminate(number, frame):
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)     # once is enough: a second one must not break off what the first began
        raise KeyboardInterrupt
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, terminate)
    return config


def listen(app: Callable, config: Config):
    """A waitress server for `app` that listens on HOST and PORT; its run() serves. Its port: server.effective_port."""
    import waitress.channel
    import waitress.server
    import waitress.task

    class ErrorTask(waitress.task.ErrorTask):
        """What waitress refuses before the application sees it, in the form of the application's errors."""

        def execute(self):
            error = self.request.error
            detail = f"expected a body of at most {MAX_BODY} bytes" if error.code == 413 else str(error.body)
            body = problem(error.code, detail).encode()
            self.status = f"{error.code} {error.reason}"
            self.response_headers.append(("Content-Type", "application/problem+json"))
            self.set_close_on_finish()
            self.content_length = len(body)
            self.write(body)

    class Channel(waitress.channel.HTTPChannel):
        error_task_class = ErrorTask

    waitress.server.BaseWSGIServer.channel_class = Channel
    try:
        address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(*address[:2])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[4])
    except OSError as e:
        if isinstance(e, socket.gaierror) or e.errno == errno.EADDRNOTAVAIL:
            raise BadSetting("HOST", config.host, f"{e.strerror}; expected an address of this machine, such as 127.0.0.1, 0.0.0.0 or ::1") from None
        raise BadSetting("PORT", config.port, f"{e.strerror}; expected a free one, such as PORT={config.port % 65535 + 1}") from None
    return waitress.server.create_server(
        app, sockets=[listener], threads=config.threads, ident=None, connection_limit=1000, asyncore_use_poll=True,
        max_request_body_size=MAX_BODY + 1)


def main() -> None:
    config = begin("Task Manager's HTTP API, and on SQLite a worker inside it.")
    handler = load_handler(config.handler)
    store = open_store(config.database_url, wait=True)
    inside = config.worker == "on" or config.worker == "auto" and isinstance(store, SQLiteStore)
    worker = Worker(store, config, handler) if inside else None
    bell = Bell(config) if config.rabbitmq_url else None

    server = listen(create_app(store, config), config)
    try:
        if bell:
            store.bells.append(bell.ring)
            bell.start()
        if worker:
            worker.start()
        host = "localhost" if config.host in ("127.0.0.1", "0.0.0.0", "::1", "::") else config.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{server.effective_port}"
        log.info("started api url=%s database=%s", url, redact(config.database_url))
        print(f"""
  Task Manager {__version__}, tasks in {redact(config.database_url)}, {'with a worker inside' if worker else 'its workers elsewhere (worker.py)'}

    look at it      {url}
    Swagger UI      {url}/swagger
    create a task   curl -X POST {url}/tasks
    read it         curl {url}/tasks/1
    stop            Ctrl-C
""", flush=True)
        server.run()        # until SIGTERM or Ctrl-C; requests under way are finished
    finally:
        server.close()
        if worker:
            worker.stop()
        if bell:
            bell.stop()
        log.info("stopped api")


def run(program: Callable[[], None]) -> None:
    """Run a program's main(); a setting that can't be used and Ctrl-C end it without a traceback."""
    try:
        program()
    except BadSetting as e:
        sys.exit(f"{Path(sys.argv[0]).name}: {e}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    import taskmanager      # a handler that imports taskmanager must find the module that runs it, not a second one

    taskmanager.run(taskmanager.main)
