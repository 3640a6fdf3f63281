"""Clients that race for the same tasks, over HTTP, on both databases.

Every answer is a documented one, and the promises hold.
"""

import collections
import functools
import random
import time

import pytest

import taskmanager
from helpers import at_once, eventually, http, sql
from taskmanager import NewTask, new_task

ENDS = ("complete", "fail", "release")
DOCUMENTED = {
    "create": {201},
    "claim": {200},
    "read": {200, 404},
    "list": {200},
    "delete": {204, 404, 409},
    "cancel": {200, 202, 404, 409},
    "retry": {200, 404, 409},
    **dict.fromkeys(("extend", "progress", *ENDS), {200, 404, 409}),
}


def send(api, what, id=None, **said):
    if what in ("create", "list"):
        return http({"create": "POST", "list": "GET"}[what], f"{api}/tasks", said or None)
    if what in ("read", "delete"):
        return http({"read": "GET", "delete": "DELETE"}[what], f"{api}/tasks/{id}")
    return http("POST", f"{api}/tasks/claim" if what == "claim" else f"{api}/tasks/{id}/{what}", said or None)


# Two or three for one task, again and again

def outcome(what, answer):
    """A claim that got it is "got"; what ended a task says how."""
    if what == "claim":
        return "got" if answer.json else "none"
    return answer.json["status"] if answer.status == 200 and what in (*ENDS, "cancel") else answer.status


RIVALS = {
    "New": {
        "claim claim claim": ["got none none"],
        "claim cancel": ["got 202", "none Failed"],
        "claim delete": ["got 409", "none 204"],
        "cancel delete": ["Failed 204", "404 204"],
        "cancel cancel cancel": ["Failed Failed Failed"],
        "delete delete delete": ["204 404 404"],
    },
    "In Progress": {
        "complete complete complete": ["Completed 409 409"],
        "fail complete": ["New 409", "409 Completed"],
        "fail fail release": ["New 409 409", "409 409 New"],
        "cancel complete": ["202 Failed", "409 Completed"],
        "cancel release": ["202 Failed", "Failed New", "Failed Failed"],
        "complete delete": ["Completed 409", "Completed 204", "404 204"],
        "complete retry": ["Completed 409"],
    },
    "Failed": {
        "retry retry retry": ["200 409 409"],
        "retry delete": ["200 204", "404 204"],
        "retry cancel": ["200 Failed", "200 409"],
        "retry claim": ["200 got", "200 none"],
    },
}


def body_of(what, n, attempt):
    """What a rival says; only the holder of an attempt has anything to say."""
    return {
        "complete": {"attempt": attempt, "result": n},
        "fail": {"attempt": attempt, "error": f"error {n}"},
        "release": {"attempt": attempt},
    }.get(what, {})


@pytest.mark.parametrize(
    "before, rivals, outcomes",
    [
        (before, rivals.split(), outcomes)
        for before, races in RIVALS.items()
        for rivals, outcomes in races.items()
    ],
    ids=[f"{before}: {rivals}" for before, races in RIVALS.items() for rivals in races],
)
def test_of_rivals_for_one_task_only_as_many_win_as_may(api, store, before, rivals, outcomes):
    allowed = [sorted(zip(rivals, each.split(), strict=True)) for each in outcomes]
    for _ in range(5):
        [id] = store.create()
        attempt = store.claim(1, 60)[0].attempt if before != "New" else None
        if before == "Failed":
            store.fail([(id, attempt, "why")])
        answers = at_once(
            *(
                functools.partial(send, api, what, id, **body_of(what, n, attempt))
                for n, what in enumerate(rivals)
            )
        )
        seen = sorted(
            (what, str(outcome(what, answer))) for what, answer in zip(rivals, answers, strict=True)
        )
        assert seen in allowed
        row = next((row for row in store.list_tasks() if row.id == id), None)
        assert (row is None) == (("delete", "204") in seen)
        if row and row.status == "Completed":
            winners = [
                n
                for n, (what, answer) in enumerate(zip(rivals, answers, strict=True))
                if what == "complete" and answer.status == 200
            ]
            assert winners == [int(row.result)]
        sql(store, "delete from tasks")


# Everybody for everything

class Seen:
    """What was asked and answered."""

    def __init__(self):
        self.claims: list[tuple[int, int]] = []     # (id, attempt)
        # (id, attempt): what was answered with 200, unless the task was canceled
        self.ends = collections.defaultdict(list)
        self.answers: list[tuple[str, int, int, float]] = []        # what, id, status, when it began
        self.deleted: dict[int, float] = {}         # id: when that was answered


DEEDS = (
    "create", "claim", "claim", "complete", "complete", "fail", "release", "extend", "progress",
    "cancel", "retry", "delete", "read", "list", "clock",
)


# How an attempt may have ended to which an end was answered with 200; it may have been canceled before.
OUTCOMES = {
    "complete": {"completed", "canceled"},
    "fail": {"failed", "retried", "canceled"},
    "release": {"released", "canceled"},
}


def riot(api, store, seen, seed, rounds):
    """Do so many things by chance, as one of several clients, and note in `seen` what came of them."""
    dice = random.Random(seed)
    for n in range(rounds):
        what = dice.choice(DEEDS)
        if what == "clock":  # a lease runs out, a worker minds the clock
            sql(
                store,
                "update tasks set lease_until = now() where status = 'In Progress' and id = %(id)s",
                id=dice.randint(1, 5),
            )
            store.reclaim(2)
            sql(store, "update tasks set run_at = now() where status in ('Completed', 'Failed') "
                       "and run_at is not null and id = %(id)s", id=dice.randint(1, 5))
            store.schedule([(row.id, row.attempt, store.next_run(row)) for row in store.unscheduled()])
            store.promote()
            store.repeat()
            continue
        id, said = dice.randint(1, 5 + len(seen.deleted)), {}
        if what == "claim":
            said = {"limit": 2}
        elif what in ("extend", "progress", *ENDS):
            id, attempt = dice.choice(seen.claims[-6:] or [(1, 1)])
            said = {"attempt": attempt} | {
                "complete": {"result": f"{seed}-{n}"},
                "fail": {"error": f"{seed}-{n}", "delay": 0, "final": dice.random() < 0.5},
                "progress": {"progress": 0.5},
            }.get(what, {})
        began = time.monotonic()
        answer = send(api, what, id, **said)
        seen.answers.append((what, id, answer.status, began))
        if what == "claim" and answer.status == 200:
            seen.claims += [(task["id"], task["attempt"]) for task in answer.json]
        elif what in ENDS and answer.status == 200 and not answer.json.get("canceled"):
            seen.ends[id, attempt].append((what, said.get("result")))
        elif what == "delete" and answer.status == 204:
            assert id not in seen.deleted
            seen.deleted[id] = time.monotonic()


def test_every_promise_holds_whatever_clients_do_at_the_same_time(api, store):
    store.create([NewTask()] * 2 + [new_task({"repeat": 60})] * 3)
    seen = Seen()
    at_once(*(lambda seed=seed: riot(api, store, seen, seed, 60) for seed in range(8)))

    assert [each for each in seen.answers if each[2] not in DOCUMENTED[each[0]]] == []
    assert len(set(seen.claims)) == len(seen.claims) > 20               # no attempt was handed out twice
    # And none ended in two ways. One that is sent again after the task has gone on is answered as before; and
    # whatever is sent of one that ended as canceled.
    canceled = {(row.id, each.attempt) for row in store.list_tasks() for each in store.attempts(row.id)
                if each.outcome == "canceled"}
    assert all(len({what for what, _ in ends}) == 1
               for attempt, ends in seen.ends.items()
               if attempt not in canceled and attempt[0] not in seen.deleted)
    assert {"complete", "fail", "release"} <= {what for (what, _), *_ in seen.ends.values()}
    rows = {row.id: row for row in store.list_tasks()}
    assert not rows.keys() & seen.deleted.keys()  # what was deleted did not come back
    assert [
        each
        for each in seen.answers
        if each[1] in seen.deleted
        and each[3] > seen.deleted[each[1]]
        and each[0] not in ("create", "claim", "list")
        and each[2] != 404
    ] == []
    assert all(http("GET", f"{api}/tasks/{id}").status == 404 for id in seen.deleted)
    for id, row in rows.items():
        [(leased,)] = store._execute(
            "select lease_until is not null from tasks where id = %(id)s", {"id": id}
        )
        assert row.status in taskmanager.STATUSES
        assert bool(leased) == (row.status == "In Progress")
        assert row.attempt >= row.attempts >= 0
        assert row.attempt == max((attempt for of, attempt in seen.claims if of == id), default=0)
        assert (row.result is None) == (row.status != "Completed")
        if row.status != "In Progress":
            assert row.progress is None
            if row.canceled:
                # One that repeats stays as its last run has left it, if it was canceled after that.
                assert (row.status, row.error) == ("Failed", "canceled") or row.repeat and not row.run_at
        if row.status == "Completed":
            assert seen.ends[id, row.attempt] == [("complete", row.result.strip('"'))]
            assert row.error is None
        attempts = store.attempts(id)
        numbers = [each.attempt for each in attempts]
        assert numbers == list(range(1, row.attempt + 1))[-len(numbers):]      # each once, in order
        for each in attempts:
            assert (each.ended_at is None) == (each.outcome is None) == (
                each.attempt == row.attempt and row.status == "In Progress")
            for what, _ in seen.ends.get((id, each.attempt), []):
                assert each.outcome in OUTCOMES[what]
        if row.run_at and row.status in ("Completed", "Failed"):
            assert row.repeat and not row.canceled
        # None of them is stuck.
        ended = 200 if row.canceled or row.repeat else 409      # what repeats no longer does
        by_status = {"New": 200, "In Progress": 202, "Completed": ended, "Failed": ended}
        assert send(api, "cancel", id).status == by_status[row.status]
        if row.status == "In Progress":
            assert send(api, "release", id, attempt=row.attempt).status == 200
        assert http("DELETE", f"{api}/tasks/{id}").status == 204
    assert store.list_tasks() == []


def test_ten_workers_share_the_tasks_and_lose_none(api, store):
    ids = store.create([new_task({"payload": n}) for n in range(60)])

    def work():
        while tasks := send(api, "claim", limit=4).json:
            for task in tasks:
                assert (
                    send(
                        api, "complete", task["id"], attempt=task["attempt"], result=task["payload"] * 2
                    ).status
                    == 200
                )

    at_once(*[work] * 10)
    assert [(row.id, row.status, row.result, row.attempt) for row in store.list_tasks()] == [
        (id, "Completed", str(2 * n), 1) for n, id in enumerate(ids)
    ]


# Idempotency keys

def test_twenty_requests_with_one_key_at_once_make_one_task(api, store):
    for n in range(3):
        answers = at_once(
            *[lambda: http("POST", f"{api}/tasks", {"payload": [n]}, Idempotency_Key=f"key {n}")] * 20
        )
        assert {(answer.status, answer.body) for answer in answers} == {(201, answers[0].body)}
        assert len(store.list_tasks()) == n + 1


def test_one_key_and_many_bodies_at_once_have_exactly_one_winner(api, store):
    for n in range(3):
        answers = at_once(
            *(
                lambda body=body: http(
                    "POST", f"{api}/tasks", {"payload": body % 5}, Idempotency_Key=f"key {n}"
                )
                for body in range(20)
            )
        )
        created = store.list_tasks()[-1]
        assert [answer.status for answer in answers] == [
            201 if body % 5 == int(created.payload) else 422 for body in range(20)
        ]
        assert {answer.json["id"] for answer in answers if answer.status == 201} == {created.id}
        assert len(store.list_tasks()) == n + 1


def test_an_array_that_is_replayed_at_once_is_created_once(api, store):
    tasks = [{"payload": n} for n in range(50)]
    answers = at_once(*[lambda: http("POST", f"{api}/tasks", tasks, Idempotency_Key="key")] * 10)
    assert {(answer.status, answer.body) for answer in answers} == {(201, answers[0].body)}
    assert [row.id for row in store.list_tasks()] == answers[0].json
    assert [int(row.payload) for row in store.list_tasks()] == list(range(50))


def test_of_an_array_and_its_variants_under_one_key_only_one_is_created(api, store):
    tasks = [{"payload": n} for n in range(30)]
    rivals = [tasks, tasks[::-1], tasks[:10], tasks[0], tasks] * 3
    answers = at_once(
        *(lambda body=body: http("POST", f"{api}/tasks", body, Idempotency_Key="key") for body in rivals)
    )
    won = [body for body, answer in zip(rivals, answers, strict=True) if answer.status == 201]
    assert {answer.status for answer in answers} == {201, 422}
    assert all(body == won[0] for body in won)
    assert [row.payload for row in store.list_tasks()] == [
        str(task["payload"]) for task in (won[0] if isinstance(won[0], list) else [won[0]])
    ]


def test_a_key_that_looks_like_one_of_an_array_is_another_key(api, store):
    array = [{"payload": 0}, {"payload": 1}]
    rivals = {"key": array, "key[1]": {"payload": 1}, "key[0]": {"payload": 0}}
    answers = at_once(
        *(
            lambda key=key, body=body: http("POST", f"{api}/tasks", body, Idempotency_Key=key)
            for key, body in rivals.items()
        )
    )
    assert all(answer.status in (201, 422) for answer in answers)
    assert answers[2].status == 201
    again = [http("POST", f"{api}/tasks", body, Idempotency_Key=key) for key, body in rivals.items()]
    assert [(answer.status, answer.status == 201 and answer.body) for answer in again] == [
        (answer.status, answer.status == 201 and answer.body) for answer in answers
    ]


def test_a_key_is_replayed_while_its_task_lives(api, store):
    http("POST", f"{api}/tasks", {"payload": 1}, Idempotency_Key="key")

    def live():
        [task] = eventually(lambda: send(api, "claim").json)  # it passes over a row that a replay has locked
        return send(api, "complete", task["id"], attempt=task["attempt"], result=1)

    answers = at_once(
        live, *[lambda: http("POST", f"{api}/tasks", {"payload": 1}, Idempotency_Key="key")] * 9
    )
    assert answers[0].status == 200
    assert {(answer.status, answer.json["id"]) for answer in answers[1:]} == {(201, 1)}
    assert (store.read(1).status, store.read(1).attempt) == ("Completed", 1)
    before = store.read(1)
    assert http("POST", f"{api}/tasks", {"payload": 1}, Idempotency_Key="key").json == {"id": 1}
    assert store.read(1) == before
