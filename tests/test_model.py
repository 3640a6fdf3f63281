"""A model of the tasks, in plain Python, against the store: random operations must do the same to both.

The model says what README.md and openapi.yaml promise, and shares no code with the store. After each
operation its answer, all rows and the attempts of the tasks that it changed are compared; at the end of a
sequence, all attempts. A sequence that shows a difference is made as short as can be, and printed so that it
can be added to FOUND. More of them, or one again:

    MODEL_SEQUENCES=5000 MODEL_SEED=17 .venv/bin/python -m pytest -q -s tests/test_model.py
"""

import dataclasses
import json
import math
import os
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

import taskmanager
from helpers import sql
from taskmanager import Filters, TaskError, new_task, new_tasks

SEQUENCES = int(os.environ.get("MODEL_SEQUENCES", "100"))
SEED = int(os.environ.get("MODEL_SEED", "1"))       # another one tries other sequences
LENGTH = 40         # operations of a sequence

# No two times that are compared are ever less than 15 seconds apart, unless one is set before the other: the
# clock moves by whole minutes, spans that are waited for are half a minute longer, and the seconds for which
# a worker has been busy a quarter of a minute. So nothing depends on how long a test takes.
MINUTE = 60
TOLERANCE = 12      # seconds
TIMES = {       # as they are compared, and their expressions
    "created_at": "created_at",
    "updated_at": "updated_at",
    "run_at": "run_at",
    "lease_until": "lease_until",
    "ready since": "case when status = 'New' and run_at is null then coalesce(ready_at, created_at) end",
}
MOVED = "created_at", "updated_at", "run_at", "lease_until", "ready_at", "started_at", "planned_at"

# Its next time is half a year from now. What the model says of it is math.inf: later than anything else.
YEARLY = f"0 0 1 {(datetime.now().month + 5) % 12 + 1} *"
FAR = 86400 * 90


# The model

@dataclass
class Attempt:
    """One attempt, as GET /tasks/{id}/attempts shows it, without its times."""
    number: int
    worker: str | None
    outcome: str | None = None      # None while it runs
    error: str | None = None


@dataclass
class Task:
    """A task. Times are seconds of the model's clock; payload and result are JSON texts."""
    id: int
    created_at: float
    updated_at: float
    ready_at: float
    status: str = "New"
    kind: str = "default"
    payload: str | None = None
    result: str | None = None
    error: str | None = None
    priority: int = 0
    max_attempts: int | None = None
    timeout: float | None = None
    run_at: float | None = None         # None: ready, or no next time
    repeat: float | str | None = None
    timezone: str | None = None
    planned_at: float | None = None     # for when the first run was planned: an interval counts from it
    key: str | None = None
    body: str | None = None             # what came with the key
    attempt: int = 0                    # the fencing token
    uncounted: int = 0                  # how many attempts do not count towards max_attempts
    alone: bool = False                 # it runs with nothing beside it
    canceled: bool = False
    progress: float | None = None
    lease_until: float | None = None
    holder: str | None = None           # the worker of the last attempt
    died: bool = False                  # its worker, in the last attempt that was not released
    earlier: int = 0                    # attempts before this run
    last: Attempt | None = None         # the attempt that runs, or with which the task has ended
    history: list = field(default_factory=list)     # the attempts before it

    @property
    def attempts(self):
        return [*self.history, self.last] if self.last else list(self.history)

    @property
    def is_ready(self):
        return self.status == "New" and self.run_at is None

    @property
    def still_repeats(self):
        """It has ended, and will run again."""
        return self.status in ("Completed", "Failed") and self.repeat is not None and not self.canceled

    def still_alone(self):
        """It must still run alone, because a worker died during the attempt before."""
        return self.alone and self.died

    def become_new(self, now, ready_at=None):
        """Put its attempt into the history, if there is one that is not in it."""
        if self.last:
            self.history.append(self.last)
        self.last, self.progress, self.lease_until = None, None, None
        self.status, self.updated_at = "New", now
        self.ready_at = now if ready_at is None else ready_at

    def begin_anew(self, now, ready_at=None):
        """Become New with all attempts before it."""
        self.become_new(now, ready_at)
        self.result = self.error = self.run_at = None
        self.uncounted = self.earlier = self.attempt

    def end(self, now, status, outcome, error=None, result=None):
        if self.canceled:
            status, outcome, error, result = "Failed", "canceled", "canceled", None
        if self.last:
            self.last.outcome, self.last.error = outcome, error
            self.died = outcome == "reclaimed" or outcome == "released" and self.died
        self.status, self.updated_at, self.error, self.result = status, now, error, result
        self.progress = self.lease_until = None

    def shown(self):
        """What a client sees of it, without times and id."""
        fields = {
            "kind": self.kind if self.kind != "default" else None,
            "payload": self.payload and json.loads(self.payload),
            "result": self.result and json.loads(self.result),
            "error": self.error,
            "attempts": self.attempt - self.uncounted or None,
            "max_attempts": self.max_attempts,
            "priority": self.priority or None,
            "run_at": None if self.run_at is None else "a time",
            "timeout": self.timeout,
            "repeat": self.repeat,
            "timezone": self.timezone,
            "progress": self.progress or None,
            "idempotency_key": self.key,
            "canceled": self.canceled or None,
        }
        has = {"payload": self.payload, "result": self.result}
        fields = {name: value for name, value in fields.items() if has.get(name, value) is not None}
        if fields == {"attempts": 1}:
            fields = {}
        return {"status": self.status} | fields


class Model:
    """The table. Each operation returns what the store's method does, or the name of the error."""

    def __init__(self):
        self.now = 0.0
        self.tasks = {}
        self.deleted = []

    def in_order(self):
        return [self.tasks[id] for id in sorted(self.tasks)]

    # The life of a task, in its order

    def create(self, tasks, ids):
        """Create tasks, given as (fields, key, body), with these ids; those of known keys have theirs."""
        known = {task.key: task.body for task in self.tasks.values() if task.key}
        for _, key, body in tasks:
            if key and known.setdefault(key, body) != body:
                return "KeyReused"
        found = []
        for fields, key, body in tasks:
            same = [task.id for task in self.tasks.values() if key and task.key == key]
            if not same:
                same = [next(ids)]
                self.tasks[same[0]] = self.new(same[0], fields, key, body)
            found += same
        return found

    def new(self, id, fields, key=None, body=None):
        fields = dict(fields)
        first = None
        if "run_at" in fields or "delay" in fields:
            first = self.now + fields.pop("run_at", 0) + fields.pop("delay", 0)
        elif isinstance(fields.get("repeat"), str):
            first = math.inf
        if "payload" in fields:
            fields["payload"] = json.dumps(fields["payload"], ensure_ascii=False)
        return Task(
            id, self.now, self.now, self.now, key=key, body=body,
            run_at=first if first is not None and first > self.now else None,
            planned_at=self.now if first is None else first,
            **fields,
        )

    def promote(self):
        due = [task for task in self.tasks.values() if task.run_at is not None and task.run_at <= self.now]
        due = [task for task in due if task.status == "New" or task.still_repeats]
        for task in due:
            if task.status == "New":
                task.ready_at, task.run_at = task.run_at, None
            else:
                task.alone = task.still_alone()
                task.begin_anew(self.now, ready_at=task.run_at)
        return len(due)

    def ready(self, kind):
        tasks = [task for task in self.tasks.values() if task.is_ready and task.kind == kind]
        return sorted(tasks, key=lambda task: (-task.priority, task.id))

    def claim(self, limit, lease, worker, busy, single, kind):
        taken = []
        for task in self.ready(kind):
            if len(taken) == limit:
                break
            if task.alone:
                if self.now - task.ready_at < busy:
                    continue        # what the worker runs began before this one was ready: go on
                if not taken and not busy:
                    taken = [task]
                break
            taken.append(task)
        for task in taken:
            task.attempt += 1
            task.status, task.updated_at, task.lease_until = "In Progress", self.now, self.now + lease
            task.alone = task.alone or single
            task.holder = worker
            shown = worker and (worker[1:] if worker.startswith("@") else worker[:-9])
            task.last = Attempt(task.attempt, shown)
        return [(task.id, task.attempt) for task in taken]

    def ready_kinds(self):
        return {kind: ready[0].alone for kind in KINDS if (ready := self.ready(kind))}

    def held_by(self, worker):
        return {(task.id, task.attempt) for task in self.tasks.values()
                if task.status == "In Progress" and task.holder == worker}

    def requested(self):
        return {(task.id, task.attempt) for task in self.tasks.values()
                if task.status == "In Progress" and task.canceled}

    def held(self, attempts):
        """The tasks that these attempts, (id, attempt), still hold."""
        tasks = [self.tasks[id] for id, attempt in attempts
                 if id in self.tasks and self.tasks[id].attempt == attempt]
        return [task for task in tasks if task.status == "In Progress"]

    def extend(self, attempts, lease, progress):
        held = self.held(attempts)
        for task in held:
            task.lease_until = max(task.lease_until, self.now + lease)
            task.progress = task.progress if progress is None else progress
        return {task.id for task in held}

    def next_run(self, task):
        """The first time after now, counted from the first one that was planned."""
        if isinstance(task.repeat, str):
            return math.inf
        return task.planned_at + ((self.now - task.planned_at) // task.repeat + 1) * task.repeat

    def plan(self, task):
        if task.still_repeats:
            task.run_at = self.next_run(task)

    def complete(self, attempts, result, planned):
        held = self.held(attempts)
        for task in held:
            task.end(self.now, "Completed", "completed", result=result)
            if planned:
                self.plan(task)
        return {task.id for task in held}

    def fail(self, attempts, error, planned, timed_out):
        held = self.held(attempts)
        for task in held:
            task.end(self.now, "Failed", "timed_out" if timed_out else "failed", error)
            if planned:
                self.plan(task)
        return {task.id for task in held}

    def retry(self, attempts, error, delay, timed_out):
        held = self.held(attempts)
        for task in held:
            task.alone = False      # its worker has survived it
            task.end(self.now, "Failed", "timed_out" if timed_out else "retried", error)
            if not task.canceled:
                task.become_new(self.now)
                task.run_at = self.now + delay
        return {task.id for task in held}

    def release(self, attempts):
        held = self.held(attempts)
        for task in held:
            task.uncounted += 1
            before = task.error
            task.alone = task.still_alone()
            task.end(self.now, "Failed", "released")
            if not task.canceled:
                task.become_new(self.now)
                task.error = before
        return {task.id for task in held}

    def reclaim(self, max_attempts, worker):
        lost = [task for task in self.tasks.values() if task.status == "In Progress"
                and (task.lease_until is None or task.lease_until <= self.now)
                and (task.holder is None or task.holder != worker)]
        for task in lost:
            most = task.max_attempts or max_attempts
            counted = task.attempt - task.uncounted
            reason = f"the worker died or was cut off during attempt {counted} of {most}"
            task.end(self.now, "Failed", "reclaimed", reason)
            if not task.canceled and not (task.alone and counted >= most):
                task.become_new(self.now)
            if counted >= most and not task.alone:
                task.uncounted += 1
            task.alone = task.alone or counted >= most - 1      # its last attempt
        return len(lost)

    # What clients do

    def refusal(self, id, seen, allowed):
        """The name of the error; None when the task may be changed. `seen`: its status and attempt."""
        if id not in self.tasks:
            return "TaskNotFound"
        task = self.tasks[id]
        if seen and seen != (task.status, task.attempt):
            return "Changed"
        return None if allowed(task) else "NotInState"

    @staticmethod
    def may_be_canceled(task):
        return task.status in ("New", "In Progress") or task.still_repeats

    @staticmethod
    def may_be_retried(task):
        return task.status == "Failed" or task.status == "Completed" and task.repeat is not None

    @staticmethod
    def may_be_deleted(task):
        return task.status != "In Progress"

    def cancel_task(self, task):
        if task.status == "New":
            task.canceled = True
            task.last = None
            task.end(self.now, "Failed", "canceled")
        task.canceled, task.run_at = True, None

    def retry_task(self, task):
        task.canceled = task.alone = task.died = False
        task.begin_anew(self.now)

    def delete_task(self, task):
        self.deleted.append(task.id)
        del self.tasks[task.id]

    def cancel(self, id, seen):
        task = self.tasks.get(id)
        refusal = self.refusal(id, seen, self.may_be_canceled)
        if refusal == "NotInState" and task.canceled:
            return id       # it already was
        if not refusal:
            self.cancel_task(task)
        return refusal or id

    def retry_by_hand(self, id, seen):
        refusal = self.refusal(id, seen, self.may_be_retried)
        if not refusal:
            self.retry_task(self.tasks[id])
        return refusal or id

    def delete(self, id, seen):
        refusal = self.refusal(id, seen, self.may_be_deleted)
        if not refusal:
            self.delete_task(self.tasks[id])
        return refusal or id

    def find(self, statuses, kinds, q, created_after, created_before):
        def meets(task):
            texts = (task.payload or "").lower(), (task.error or "").lower()
            return ((not statuses or task.status in statuses)
                    and (not kinds or task.kind in kinds)
                    and (q is None or any(q.lower() in text for text in texts))
                    and (created_after is None or task.created_at >= self.now + created_after)
                    and (created_before is None or task.created_at < self.now + created_before))
        return [task for task in self.in_order() if meets(task)]

    def change_all(self, what, filters):
        """Cancel, retry or delete all; how many."""
        change, may_be, usual = {
            "cancel": (self.cancel_task, self.may_be_canceled, STATUSES),
            "retry": (self.retry_task, self.may_be_retried, ("Failed",)),
            "delete": (self.delete_task, self.may_be_deleted, ("New", "Completed", "Failed")),
        }[what]
        found = [task for task in self.find(**filters)
                 if task.status in (filters["statuses"] or usual) and may_be(task)
                 # one that runs and is canceled already counts no second time
                 and not (what == "cancel" and task.status == "In Progress" and task.canceled)]
        for task in found:
            change(task)
        return len(found)

    def sweep(self, difference):
        """Plan the next run of those that have ended without one; those that have none, and now have one.

        `difference`: to the attempt. A number that is not the current one plans nothing.
        """
        tasks = [task for task in self.tasks.values() if task.still_repeats and task.run_at is None]
        planned = tasks if difference == 0 else []
        for task in planned:
            self.plan(task)
        return {task.id for task in tasks}, {task.id for task in planned}

    def schedule(self, attempts):
        tasks = [self.tasks[id] for id, attempt in attempts
                 if id in self.tasks and self.tasks[id].attempt == attempt]
        planned = [task for task in tasks if task.still_repeats and task.run_at is None]
        for task in planned:
            self.plan(task)
        return {task.id for task in planned}

    def delete_old(self, status, age):
        old = [task for task in self.tasks.values() if task.status == status
               and task.updated_at < self.now - age and not task.still_repeats]
        for task in old:
            self.delete_task(task)
        return len(old)


# Random operations. A task is named by a status (or one of SELECTED) and a number, and chosen from those with
# this status when the operation is done, or where there are none from all, deleted ones included: so a
# sequence can be shortened. Mostly it is the oldest of them, so that one task lives through much.

STATUSES = "New", "In Progress", "Completed", "Failed"
SELECTED = {
    "waiting": lambda task: task.run_at is not None,
    "between runs": lambda task: task.still_repeats,
    "repeating": lambda task: task.status == "In Progress" and task.repeat is not None,
    "requested": lambda task: task.status == "In Progress" and task.canceled,
    "alone": lambda task: task.status == "In Progress" and task.alone,
    "suspect": lambda task: task.status == "In Progress" and task.still_alone(),
    "canceled": lambda task: task.status in ("Completed", "Failed") and task.canceled,
}
KINDS = "default", "default", "mail"
WORKERS = "host:1:00000001", "host:2:00000002", "@ann", None
ERRORS = "broken", "Größe", "timed out after 5 s", "canceled", "the worker died or was cut off, it says"
PAYLOADS = {"to": "Ann"}, "größe", [1.5, None], None, 0
TEXTS = ["ann", "GRÖ", "Größe", "worker died", "timed%", "timed", "null", "_"]


def random_span(r):
    return MINUTE * r.choice([0, 0, 0, 1, 5]) + 30


def random_fields(r):
    fields = {}
    for name, choices in {
        "kind": KINDS,
        "payload": PAYLOADS,
        "priority": (-1, 0, 2),
        "max_attempts": (1, 2, 3),
        "timeout": (5, 0.5),
    }.items():
        if r.random() < 0.3:
            fields[name] = r.choice(choices)
    when = r.random()
    if when < 0.1:
        fields["delay"] = r.choice([0, random_span(r)])
    elif when < 0.2:
        fields["run_at"] = r.choice([-1, 1]) * random_span(r)       # seconds from now
    if r.random() < 0.4:
        fields["repeat"] = r.choice([60, 90, 300, YEARLY])
        if fields["repeat"] == YEARLY and r.random() < 0.7:
            fields["timezone"] = "Europe/Berlin"
    return fields


def random_ref(r, *statuses):
    return r.choice(statuses or STATUSES), r.choice([0, 0, r.randrange(100)])


def random_reports(r, *more):
    """Attempts on which a worker reports: most are current ones; some belong to the past, or to nobody."""
    statuses = ["In Progress"] * 6 + ["requested", "requested", "repeating", "alone", *STATUSES, *more]
    return [(*random_ref(r, *statuses), r.choice([0] * 8 + [-1, 1])) for _ in range(r.choice([1, 1, 2, 3]))]


def random_filters(r):
    return {
        "statuses": tuple(r.sample(STATUSES, r.choice([0, 1, 2, 3]))),
        "kinds": tuple(r.sample(("default", "mail", "report"), r.choice([0, 0, 0, 0, 1, 2]))),
        "q": r.choice([None] * 24 + TEXTS),
        "created_after": r.choice([None] * 5 + [-random_span(r)]),
        "created_before": r.choice([None] * 5 + [-random_span(r)]),
    }


def random_seen(r):
    """Nothing, or a status and the difference to the task's attempt; None as a status is the right one."""
    return r.choice([None] * 5 + [(None, 0), (None, -1), (r.choice(STATUSES), 0)])


OPERATIONS = {      # name: how often, and its arguments
    "create": (6, lambda r: (
        [(random_fields(r), r.choice([None] * 9 + ["a", "b", "c"])) for _ in range(r.choice([1, 1, 3]))],)),
    "create_same": (2, lambda r: (r.choice("abc"), r.randrange(2), r.choice([0, 0, 2, 3]))),
    "insert": (1, lambda r: (r.choice(["New", *STATUSES]), r.choice([None, 60, 90]))),
    "move": (7, lambda r: (MINUTE * r.choice([1, 1, 2, 10]),)),
    "arrive": (2, lambda r: random_ref(r, "waiting")),
    "promote": (6, lambda r: ()),
    "claim": (14, lambda r: (
        r.choice([1, 2, 5]), random_span(r), r.choice(WORKERS), r.choice([0, 0, 0, 0, 15, 105]),
        r.random() < 0.2, r.choice(KINDS))),
    "look": (1, lambda r: (r.choice(WORKERS[:3]),)),
    "find": (2, lambda r: (random_filters(r), r.choice([1, 2, 100]), r.choice(["asc", "desc"]))),
    "extend": (3, lambda r: (random_reports(r), random_span(r), r.choice([None, 0, 0.5, 1]))),
    "complete": (5, lambda r: (random_reports(r), r.choice([None, '"done"', "null"]), r.random() < 0.6)),
    "fail": (3, lambda r: (random_reports(r), r.choice(ERRORS), r.random() < 0.6, r.random() < 0.2)),
    "retry": (4, lambda r: (
        random_reports(r), r.choice(ERRORS), r.choice([0, random_span(r)]), r.random() < 0.2)),
    "release": (3, lambda r: (random_reports(r, *["alone", "suspect", "requested"] * 4),)),
    "reclaim": (6, lambda r: (r.choice([1, 2, 3]), r.choice(WORKERS[:2]))),
    "sweep": (2, lambda r: (r.choice([0, 0, -1]),)),
    "schedule": (1, lambda r: (random_reports(r, "between runs", "waiting", "canceled"),)),
    "cancel": (4, lambda r: (
        random_ref(r, "between runs", "repeating", "alone", "canceled", *STATUSES), random_seen(r))),
    "retry_by_hand": (3, lambda r: (
        random_ref(r, "between runs", "canceled", "canceled", "Failed", *STATUSES), random_seen(r))),
    "delete": (1, lambda r: (random_ref(r), random_seen(r))),
    "change_all": (5, lambda r: (
        r.choice(["cancel"] * 3 + ["retry"] * 2 + ["delete"]), random_filters(r), r.choice([1, 2, 100]))),
    "delete_old": (1, lambda r: (r.choice(["Completed", "Failed"]), random_span(r))),
}


# What would hardly come about by operations that are independent of each other.
def dies(r):
    """A worker takes tasks and is never seen again."""
    kind = r.choice(KINDS)
    return [("claim", r.choice([1, 2]), MINUTE * 1.5, WORKERS[0], 0, r.random() < 0.2, kind),
            ("move", MINUTE * 2), ("reclaim", r.choice([1, 1, 2]), WORKERS[1])]


def goes_round(r):
    """What has ended gets its next time, and that comes."""
    return [("sweep", 0), ("arrive", "between runs", 0), ("promote",)]


def is_asked_to_stop(r):
    """A worker takes a task whose cancellation is requested."""
    return [("claim", 1, MINUTE * 1.5, r.choice(WORKERS), 0, False, r.choice(KINDS)),
            ("cancel", ("In Progress", 0), None)]


STORIES = dies, dies, goes_round, is_asked_to_stop


def random_sequence(seed):
    r = random.Random(seed)
    # Each sequence prefers some of the operations, so that what needs several of one kind comes about, too.
    weights = [weight * r.choice([0.3, 1, 3]) for weight, _ in OPERATIONS.values()]
    names = ["create"] * 2 + r.choices(list(OPERATIONS), weights, k=LENGTH - 2)
    sequence = []
    for name in names:
        if r.random() < 0.1:
            sequence += r.choice(STORIES)(r)
        sequence.append((name, *OPERATIONS[name][1](r)))
    return sequence


# Doing them to both

def answer(call, *args, **kwargs):
    """What a call returns, or the name of its error."""
    try:
        return call(*args, **kwargs)
    except TaskError as e:
        return type(e).__name__


class Run:
    """One sequence. Each operation does the same to both, and returns both answers: the model's is first."""

    def __init__(self, store):
        self.store, self.model = store, Model()
        sql(store, "delete from tasks")

    def id(self, status, number):
        means = SELECTED.get(status, lambda task: task.status == status)
        tasks = [task.id for task in self.model.in_order() if means(task)]
        ids = tasks or [*sorted(self.model.tasks), *self.model.deleted] or [1]
        return ids[number % len(ids)]

    def attempts(self, reports):
        """The attempts that are meant: (id, attempt), each once."""
        attempts = set()
        for status, number, difference in reports:
            id = self.id(status, number)
            current = self.model.tasks[id].attempt if id in self.model.tasks else 0
            attempts.add((id, max(1, current + difference)))
        return sorted(attempts)

    def seen(self, id, seen):
        """What the client has seen of a task, for the model and for the store."""
        if not seen or id not in self.model.tasks:
            return None, None
        task = self.model.tasks[id]
        status, attempt = seen[0] or task.status, task.attempt + seen[1]
        return (status, attempt), SimpleNamespace(status=status, attempt=attempt)

    def filters(self, filters):
        times = {name: filters[name] and self.store.now() + timedelta(seconds=filters[name])
                 for name in ("created_after", "created_before")}
        return Filters(**filters | times)

    def create(self, tasks):
        def given(fields):
            if "run_at" not in fields:
                return fields
            moment = self.store.now() + timedelta(seconds=fields["run_at"])
            return fields | {"run_at": moment.isoformat() + "Z"}
        return self.create_both([fields for fields, _ in tasks],
                                [new_task(given(fields), key) for fields, key in tasks])

    def create_same(self, key, priority, many):
        """Send what a client may have sent before: an array, or one task."""
        fields = [{"priority": priority}] * (many or 1)
        return self.create_both(fields, new_tasks(fields, key) if many else [new_task(fields[0], key)])

    def create_both(self, fields, tasks):
        got = answer(self.store.create, tasks)
        highest = max(self.model.tasks, default=0)
        ids = iter(sorted({id for id in got if id > highest})) if isinstance(got, list) else iter(())
        keys = [(task.idempotency_key, task.fingerprint) for task in tasks]
        return self.model.create([(each, *key) for each, key in zip(fields, keys, strict=True)], ids), got

    def insert(self, status, repeat):
        """Insert a row with plain SQL: whatever its status, it has no lease, no attempt and no next time."""
        columns, values = ("status", "%(status)s") if repeat is None else (
            "status, repeat", f"%(status)s, '{repeat}'")
        [(id,)] = sql(self.store, f"insert into tasks ({columns}) values ({values})", status=status)
        self.model.tasks[id] = self.model.new(id, {"status": status} | ({"repeat": repeat} if repeat else {}))
        return id, id

    def move(self, seconds):
        """Move the clock: all times of the table are so much longer ago."""
        moved = ", ".join(f"{column} = {column} - %(seconds)s * interval '1 second'" for column in MOVED)
        sql(self.store, f"update tasks set {moved}", seconds=float(seconds))
        self.model.now += seconds
        return None, None

    def arrive(self, status, number):
        """The time has come for which a task waits, far as it may have been."""
        id = self.id(status, number)
        if id in self.model.tasks and self.model.tasks[id].run_at is not None:
            self.model.tasks[id].run_at = self.model.now
        sql(self.store, "update tasks set run_at = now() where id = %(id)s and run_at is not null", id=id)
        return None, None

    def promote(self):
        return self.model.promote(), self.store.promote() + self.store.repeat()

    def claim(self, *args):
        self.store._state.claim_starts.clear()        # on a slow machine it would not begin at the front
        return self.model.claim(*args), [(row.id, row.attempt) for row in self.store.claim(*args)]

    def look(self, worker):
        expected = self.model.held_by(worker), self.model.requested(), self.model.ready_kinds()
        attempts = [(task.id, attempt) for task in self.model.tasks.values()
                    for attempt in (task.attempt, task.attempt - 1)]
        ready = {kind: alone for kind, (alone, _) in self.store.ready_kinds(KINDS).items()}
        return expected, (self.store.held_by(worker), self.store.cancel_requests(attempts), ready)

    def find(self, filters, limit, order):
        found, after = [], None
        while True:
            rows, after = self.store.find_tasks(self.filters(filters), after, limit, order)
            found += [row.id for row in rows]
            if after is None:
                expected = [task.id for task in self.model.find(**filters)]
                return expected if order == "asc" else expected[::-1], found

    def extend(self, reports, lease, progress):
        attempts = self.attempts(reports)
        got = self.store.extend([(*attempt, progress) for attempt in attempts], lease)
        return self.model.extend(attempts, lease, progress), got

    def end(self, verb, reports, value, planned, *timed_out):
        """What a worker does: it plans the next run, unless it does not know that there is one."""
        attempts = self.attempts(reports)
        rows = []
        for id, attempt in attempts:
            has_next = planned and id in self.model.tasks
            next_run = self.store.next_run(self.store.read(id)) if has_next else None
            outcome = ["timed_out"] if any(timed_out) else []
            rows.append((id, attempt, value, next_run, *outcome))
        got = getattr(self.store, verb)(rows)
        return getattr(self.model, verb)(attempts, value, planned, *timed_out), got

    def complete(self, *args):
        return self.end("complete", *args)

    def fail(self, *args):
        return self.end("fail", *args)

    def retry(self, reports, error, delay, timed_out):
        attempts = self.attempts(reports)
        outcome = ["timed_out"] if timed_out else []
        got = self.store.retry([(*attempt, error, delay, *outcome) for attempt in attempts])
        return self.model.retry(attempts, error, delay, timed_out), got

    def release(self, reports):
        attempts = self.attempts(reports)
        return self.model.release(attempts), self.store.release(attempts)

    def reclaim(self, *args):
        return self.model.reclaim(*args), self.store.reclaim(*args)

    def sweep(self, difference):
        rows = self.store.unscheduled()
        planned = [(row.id, row.attempt + difference, self.store.next_run(row)) for row in rows]
        got = {row.id for row in rows}, self.store.schedule(planned)
        return self.model.sweep(difference), got

    def schedule(self, reports):
        """Plan the next run of tasks, whatever state they are in."""
        attempts = self.attempts(reports)
        planned = [(id, attempt, self.store.next_run(self.store.read(id))) for id, attempt in attempts
                   if id in self.model.tasks]
        return self.model.schedule(attempts), self.store.schedule(planned)

    def change(self, verb, ref, seen):
        id = self.id(*ref)
        known, row = self.seen(id, seen)
        got = answer(getattr(self.store, verb), id, row)
        return getattr(self.model, verb)(id, known), got if isinstance(got, str) else got.id

    def cancel(self, *args):
        return self.change("cancel", *args)

    def retry_by_hand(self, *args):
        return self.change("retry_by_hand", *args)

    def delete(self, *args):
        return self.change("delete", *args)

    def change_all(self, what, filters, limit):
        """Page by page, until there is no more."""
        count, after = 0, None
        while True:
            many, refused, after = getattr(self.store, f"{what}_all")(self.filters(filters), after, limit)
            count += many + refused
            if after is None:
                return self.model.change_all(what, filters), count

    def delete_old(self, status, age):
        return self.model.delete_old(status, age), self.store.delete_old(status, age / 86400)

    # Comparing

    def seconds(self, task, name):
        """A time of a task of the model, in seconds from now."""
        if name == "ready since":
            return task.ready_at - self.model.now if task.is_ready else None
        moment = getattr(task, name)
        return None if moment is None else moment - self.model.now

    def rows(self):
        """The table as the model has it, and as the store has it."""
        times = ", ".join(f"date_part('epoch', {time} - {taskmanager.NOW})" for time in TIMES.values())
        moments = {id: seconds for id, *seconds in self.store._execute(f"select id, {times} from tasks")}
        expected = {
            id: task.shown() | {"attempt": task.attempt, "alone": task.alone, "earlier": task.earlier}
            | {name: self.seconds(task, name) for name in TIMES}
            for id, task in self.model.tasks.items()
        }
        got = {}
        for row in self.store.list_tasks():
            shown = json.loads(row.to_json())
            for column in ("id", "created_at", "updated_at", "run_at"):
                if column in shown:
                    del shown[column]
            if row.run_at is not None:
                shown["run_at"] = "a time"
            got[row.id] = shown | {"attempt": row.attempt, "alone": bool(row.alone), "earlier": row.earlier}
            for name, seconds in zip(TIMES, moments[row.id], strict=True):
                got[row.id][name] = about(seconds, expected.get(row.id, {}).get(name))
        return expected, got

    def history(self, ids):
        """The attempts of these tasks, on both sides."""
        expected = {id: [dataclasses.astuple(each) for each in self.model.tasks[id].attempts] for id in ids}
        got = {}
        for id in ids:
            found = self.store.attempts(id)
            got[id] = [(each.attempt, each.worker, each.outcome, each.error) for each in found]
            for each in found:
                assert each.started_at and bool(each.ended_at) == bool(each.outcome)
        return expected, got

    def attempts_so_far(self):
        return {id: [dataclasses.astuple(each) for each in task.attempts]
                for id, task in self.model.tasks.items()}

    def do(self, name, *args):
        """Do an operation, and compare; a difference is an AssertionError."""
        before = self.attempts_so_far()
        same(*getattr(self, name)(*args), "answer")
        same(*self.rows(), "rows")
        after = self.attempts_so_far()
        same(*self.history([id for id in after if after[id] != before.get(id, [])]), "attempts")


def about(seconds, expected):
    """The number of seconds that is expected, where these are about as many."""
    if seconds is None or expected is None:
        return seconds
    if expected == math.inf and seconds > FAR or abs(seconds - expected) < TOLERANCE:
        return expected
    return float(seconds)


def same(expected, got, what):
    if expected == got:
        return
    if isinstance(expected, dict) and isinstance(got, dict):
        keys = [key for key in expected.keys() | got.keys() if expected.get(key) != got.get(key)]
        expected = {key: expected.get(key) for key in sorted(keys)}
        got = {key: got.get(key) for key in sorted(keys)}
    raise AssertionError(f"{what}\n    expected {expected}\n    got      {got}")


def difference(store, sequence):
    """How many operations it takes to show a difference, and the difference; None when there is none."""
    run = Run(store)
    done = 0
    try:
        for operation in sequence:
            done += 1
            run.do(*operation)
        same(*run.history(list(run.model.tasks)), "attempts at the end")
    except AssertionError as e:
        return done, str(e)
    except Exception as e:
        return done, repr(e)        # the store should not have raised it
    return None


def shorter(value):
    """What a sequence, or a part of it, is without one of its parts: the largest parts come first."""
    if isinstance(value, list):
        for size in (2 ** n for n in range(len(value).bit_length() - 1, -1, -1)):
            yield from (value[:start] + value[start + size:] for start in range(0, len(value), size))
    if isinstance(value, dict) and "statuses" not in value:     # all filters are named
        yield from ({name: value[name] for name in value if name != without} for without in value)
    if isinstance(value, (list, tuple)):
        for n, part in enumerate(value):
            yield from (value[:n] + type(value)([less]) + value[n + 1:] for less in shorter(part))


def shrink(sequence, fails):
    """Leave out what can be left out so that it still fails, until nothing can."""
    while (found := next(filter(fails, shorter(sequence)), None)) is not None:
        sequence = found
    return sequence


def check(store, sequence, seed=None):
    """Fail with the shortest sequence that shows a difference, and with what that is."""
    found = difference(store, sequence)
    if found is None:
        return
    done, text = found
    shortest = shrink(sequence[:done], lambda sequence: difference(store, sequence))
    _, text = difference(store, shortest) or found
    operations = "\n".join(f"    {operation!r}," for operation in shortest)
    pytest.fail(f"the store and the model differ, seed {seed}, after these operations:\n{operations}\n{text}")


# The tests

# Sequences that have shown a difference.
FOUND = {
    "a row of plain SQL that no worker has ever claimed is reclaimed": [
        ("insert", "In Progress", None),
        ("reclaim", 3, "host:1:00000001"),
    ],
    "a row of plain SQL that never ran is repeated": [
        ("insert", "Completed", 60),
        ("sweep", 0),
        ("arrive", "waiting", 0),
        ("promote",),
    ],
}


@pytest.mark.parametrize("sequence", FOUND.values(), ids=FOUND)
def test_what_was_mended_stays_so(store, sequence):
    check(store, sequence)


def test_the_store_does_what_the_model_says(store):
    print(f"MODEL_SEED={SEED} MODEL_SEQUENCES={SEQUENCES}")
    for seed in range(SEED, SEED + SEQUENCES):
        check(store, random_sequence(seed), seed)


def test_a_sequence_is_made_as_short_as_can_be():
    sequence = list(range(30))
    assert shrink(sequence, lambda sequence: {3, 17, 18} <= set(sequence)) == [3, 17, 18]
    sequence = [("promote",), ("create", [({"priority": 1, "kind": "mail"}, None), ({}, "a")])]
    shortest = [("create", [({"kind": "mail"}, None)])]
    assert shrink(sequence, lambda sequence: "mail" in repr(sequence)) == shortest
