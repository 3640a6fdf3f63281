"""Workers in any language: claim, extend, progress, complete, fail, release over HTTP, on both databases."""

import json
import re
import urllib.error
import urllib.request
from datetime import datetime

import pytest

import taskmanager
from helpers import at_once, eventually, expire, http, is_problem, sql
from taskmanager import Config, NewTask, Unavailable, Worker, new_task

VERBS = {
    "extend": {"lease": 60},
    "progress": {"progress": 0.5},
    "complete": {"result": {"sum": 6}},
    "fail": {"error": "why"},
    "release": {},
}
ENDS = ("complete", "fail", "release")


def claim(api, **said):
    answer = http("POST", f"{api}/tasks/claim", said)
    assert answer.status == 200, answer.body
    return answer.json


def claimed(api, store, **fields):
    """A new task, and the claim on it: its id and its attempt."""
    [id] = store.create([new_task(fields)])
    [task] = claim(api)
    assert task["id"] == id
    return id, task["attempt"]


def tell(api, id, verb, attempt, **said):
    return http("POST", f"{api}/tasks/{id}/{verb}", {"attempt": attempt, **(said or VERBS[verb])})


def lease(store, id):
    [(until,)] = store._execute("select lease_until from tasks where id = %(id)s", {"id": id})
    return until


def hours_until_run(task):
    span = datetime.fromisoformat(task["run_at"]) - datetime.fromisoformat(task["updated_at"])
    return round(span.total_seconds() / 3600)


# A life

def test_a_task_is_claimed_reported_on_and_completed_over_http(api, store):
    http("POST", f"{api}/tasks", {"payload": {"n": 3}, "priority": 2})
    [task] = claim(api)
    assert (task["attempt"], task["status"]) == (1, "In Progress")
    assert (task["payload"], task["priority"]) == ({"n": 3}, 2)
    assert list(task)[-1] == "attempt"
    assert claim(api) == []
    answer = tell(api, 1, "progress", 1, progress=0.25)
    assert (answer.status, answer.json["progress"], answer.json["status"]) == (200, 0.25, "In Progress")
    assert "attempt" not in answer.json
    assert tell(api, 1, "extend", 1).json["progress"] == 0.25
    answer = tell(api, 1, "complete", 1, result=[9, "☃"])
    assert (answer.status, answer.json["status"], answer.json["result"]) == (200, "Completed", [9, "☃"])
    assert "progress" not in answer.json
    assert http("GET", f"{api}/tasks/1").json == answer.json
    assert claim(api) == []


def test_a_claim_takes_as_many_as_it_asks_for_the_most_urgent_first(api, store):
    store.create([NewTask(priority=priority) for priority in (0, 5, -1, 5)])
    assert http("POST", f"{api}/tasks/claim").json[0]["id"] == 2       # no body: one
    assert [task["id"] for task in claim(api, limit=1000)] == [4, 1, 3]


def test_a_claim_leaves_what_is_scheduled(api, store):
    store.create([new_task({"delay": 3600})])
    assert claim(api) == []


def test_a_result_is_any_json_or_none(api, store):
    for said in (
        '{"result": null}',
        '{"result": false}',
        '{"result": 0}',
        '{"result": ""}',
        '{"result": []}',
        '{"result": {}}',
        '{"result": 123456789012345678901234567890}',
        '{"result": {"é": ["\\u2028", 1e300, -0.0]}}',
        "{}",
    ):
        id, attempt = claimed(api, store)
        answer = http("POST", f"{api}/tasks/{id}/complete", {"attempt": attempt, **json.loads(said)})
        assert answer.status == 200
        assert {name: value for name, value in answer.json.items() if name == "result"} == json.loads(said)


def test_an_error_is_kept_as_far_as_it_can_be(api, store):
    for error, kept in (
        ("x" * 1990 + "the end, at last", "x" * 1984 + "the end, at last"),
        ("a\0b", "a\ufffdb"),
        ("a\ud800b", "a?b"),
        ("\n", "\n"),
        ("é☃😀", "é☃😀"),
    ):
        id, attempt = claimed(api, store)
        for _ in ("once", "again"):
            answer = tell(api, id, "fail", attempt, error=error, final=True)
            assert (answer.status, answer.json["error"]) == (200, kept)


# Kinds, and the worker's name

def test_a_claim_takes_tasks_of_its_kinds_alone(api, store):
    ids = store.create([new_task(fields) for fields in ({"kind": "mail"}, {}, {"kind": "report"})])
    assert [task["id"] for task in claim(api, limit=10)] == [ids[1]]
    assert claim(api, kinds=["photo"]) == []
    [task] = claim(api, limit=10, kinds=["mail"])
    assert (task["id"], task["kind"]) == (ids[0], "mail")
    assert [task["id"] for task in claim(api, limit=10, kinds=["mail", "default", "report"])] == [ids[2]]


def test_a_claim_of_several_kinds_is_filled_from_all_of_them(api, store):
    store.create([new_task({"kind": kind}) for kind in ("a", "b", "c") for _ in range(3)])
    found = [len(claim(api, limit=4, kinds=["a", "b", "c", "a"])) for _ in range(4)]
    assert found == [4, 4, 1, 0]


def test_a_backlog_of_one_kind_does_not_starve_another(api, store):
    store.create([new_task({"kind": "mail", "priority": 9})] * 60)
    store.create([new_task({"kind": kind}) for kind in ("report", "photo") for _ in range(3)])
    kinds = [task["kind"] for _ in range(9) for task in claim(api, kinds=["mail", "report", "photo"])]
    assert sorted(kinds) == ["mail"] * 3 + ["photo"] * 3 + ["report"] * 3


def test_two_workers_in_step_do_not_starve_a_kind_of_one_of_them(api, store):
    store.create([new_task({"kind": kind}) for kind in ("a", "b", "c") for _ in range(30)])
    claims = [[task["kind"] for kinds in (["a", "b"], ["a", "c"]) for task in claim(api, kinds=kinds)]
              for _ in range(6)]
    assert {kind for each in claims for kind in each} == {"a", "b", "c"}
    assert sum(each.count("a") for each in claims) == 6


def test_the_large_tasks_of_several_kinds_fill_no_more_than_a_page(api, store):
    store.create([new_task({"kind": kind, "payload": "x" * 900_000}) for kind in ("a", "b", "c", "d")])
    kinds = ["a", "b", "c", "d"]
    assert [len(claim(api, limit=1000, kinds=kinds)) for _ in range(3)] == [2, 2, 0]


def test_a_task_that_is_to_run_alone_comes_alone_whatever_the_kinds(api, store):
    for kind, most in (("a", 1), ("b", 3)):
        store.create([new_task({"kind": kind, "max_attempts": most}) for _ in range(2)])
    sql(store, "update tasks set alone = true where id = 3")
    found = [sorted(task["id"] for task in claim(api, limit=10, kinds=["a", "b"])) for _ in range(4)]
    assert [3] in found and sum(found, []).count(4) == 1
    assert all(ids == [3] or 3 not in ids for ids in found)


def test_what_was_claimed_of_one_kind_is_answered_when_the_database_is_away_for_the_next(
        api, store, monkeypatch):
    store.create([new_task({"kind": kind}) for kind in ("a", "a", "b")])
    real = store.claim

    def claim_of(*args, kind):
        if kind == "b":
            raise Unavailable("the database can't be reached")
        return real(*args, kind=kind)

    monkeypatch.setattr(store, "claim", claim_of)
    answers = [http("POST", f"{api}/tasks/claim", {"kinds": ["a", "b"], "limit": 9}) for _ in range(2)]
    assert sorted(answer.status for answer in answers) == [200, 503]
    assert [len(answer.json) for answer in answers if answer.status == 200] == [2]


@pytest.mark.parametrize("body, where, code", [
    ({"kinds": "mail"}, "/kinds", "wrong-type"),
    ({"kinds": []}, "/kinds", "out-of-range"),
    ({"kinds": ["mail"] * 21}, "/kinds", "out-of-range"),
    ({"kinds": ["mail", "../x"]}, "/kinds", "not-a-kind"),
    ({"kinds": ["Mail"]}, "/kinds", "not-a-kind"),
    ({"kinds": [None]}, "/kinds", "not-a-kind"),
    ({"worker": 7}, "/worker", "wrong-type"),
    ({"worker": ""}, "/worker", "not-a-name"),
    ({"worker": "x" * 101}, "/worker", "not-a-name"),
    ({"worker": "a\nb"}, "/worker", "not-a-name"),
    ({"worker": "a\0b"}, "/worker", "not-a-name"),
    ({"worker": "a\ud800b"}, "/worker", "not-a-name"),
    ({"worker": " a"}, "/worker", "not-a-name"),
], ids=lambda value: repr(value)[:30])
def test_a_claim_that_can_not_be_meant_so_is_refused(api, store, body, where, code):
    store.create()
    answer = http("POST", f"{api}/tasks/claim", body)
    is_problem(answer, 400)
    assert [(each["pointer"], each["code"]) for each in answer.json["errors"]] == [(where, code)]
    assert store.read(1).attempt == 0


def test_the_name_of_a_worker_is_kept_so_that_it_is_no_other_workers(api, store):
    def workers():
        return [worker for worker, in store._execute("select worker from tasks order by id")]
    store.create([NewTask()] * 3)
    claim(api, worker="host:1:abc")
    claim(api, worker="number 7")
    claim(api)
    assert workers() == ["@host:1:abc", "@number 7", None]


# A task that repeats

def test_the_answer_to_its_end_says_when_a_repeating_task_runs_next(api, store):
    for verb, said, status in (("complete", {"result": 1}, "Completed"),
                               ("fail", {"error": "why", "final": True}, "Failed")):
        id, attempt = claimed(api, store, repeat=7200)
        for _ in ("once", "again"):
            task = tell(api, id, verb, attempt, **said).json
            assert (task["status"], task["repeat"], hours_until_run(task)) == (status, 7200, 2)
        assert store.unscheduled() == []
        assert claim(api, limit=9) == []


def test_a_repeating_task_that_is_tried_again_keeps_its_delay(api, store):
    id, attempt = claimed(api, store, repeat=7200)
    task = tell(api, id, "fail", attempt, error="why", delay=3600).json
    assert (task["status"], hours_until_run(task)) == ("New", 1)


def test_a_repeating_task_that_was_canceled_meanwhile_does_not_run_again(api, store):
    id, attempt = claimed(api, store, repeat=7200)
    assert http("POST", f"{api}/tasks/{id}/cancel").status == 202
    task = tell(api, id, "complete", attempt).json
    assert (task["status"], task["error"], "run_at" in task) == ("Failed", "canceled", False)


def test_a_repeating_task_is_retried_and_canceled_between_two_runs(api, store):
    id, attempt = claimed(api, store, repeat="0 0 1 1 *", run_at="2001-01-01T00:00:00Z")
    assert tell(api, id, "complete", attempt).json["run_at"][5:] == "01-01T00:00:00"
    answer = http("POST", f"{api}/tasks/{id}/retry")
    assert (answer.status, answer.json["status"], "run_at" in answer.json) == (200, "New", False)
    [again] = claim(api)
    tell(api, id, "complete", again["attempt"])
    answer = http("POST", f"{api}/tasks/{id}/cancel")
    assert (answer.status, answer.json["status"], "run_at" in answer.json) == (200, "Completed", False)
    assert answer.json["canceled"] is True
    assert http("POST", f"{api}/tasks/{id}/cancel").json == answer.json
    answer = http("POST", f"{api}/tasks/{id}/retry")
    assert (answer.status, answer.json["status"], "canceled" in answer.json) == (200, "New", False)
    assert http("DELETE", f"{api}/tasks/{id}").status == 204


# How the attempts went

def test_the_attempts_say_who_made_them_and_how_they_went(api, store):
    path = f"{api}/tasks/1/attempts"
    is_problem(http("GET", path), 404)
    store.create()
    assert http("GET", path).json == []
    claim(api, worker="mailer 3")
    [running] = http("GET", path).json
    assert (running["attempt"], running["worker"]) == (1, "mailer 3")
    assert list(running) == ["attempt", "worker", "started_at"]
    tell(api, 1, "fail", 1, error="why", delay=0)
    store.promote()
    claim(api)
    tell(api, 1, "complete", 2)
    first, second = http("GET", path).json
    assert list(first) == ["attempt", "worker", "started_at", "ended_at", "outcome", "error"]
    assert (first["outcome"], first["error"], first["worker"]) == ("retried", "why", "mailer 3")
    assert list(second) == ["attempt", "started_at", "ended_at", "outcome"]
    assert second["outcome"] == "completed"
    assert "started_at" not in http("GET", f"{api}/tasks/1").json


# Only the holder of an attempt

def refused(api, store, id, attempt, **other):
    """Whatever the holder of this attempt says is a conflict, and changes nothing."""
    before, until = store.read(id), lease(store, id)
    for verb in VERBS:
        field = {"complete": "result", "fail": "error"}.get(verb)
        said = {field: other["content"]} if other and field else {}
        assert is_problem(tell(api, id, verb, attempt, **said), 409), verb
    assert (store.read(id), lease(store, id)) == (before, until)


def test_a_report_on_another_attempt_is_refused(api, store):
    id, attempt = claimed(api, store)
    tell(api, id, "release", attempt)
    claim(api)
    for other in (attempt, attempt + 2, 2**31 - 1):
        refused(api, store, id, other)


@pytest.mark.parametrize("verb", VERBS)
def test_the_holder_may_report_after_the_lease_expired_until_another_takes_over(api, store, verb):
    id, attempt = claimed(api, store)
    expire(store, id)
    assert tell(api, id, verb, attempt).status == 200


def test_a_frozen_worker_is_refused_after_another_took_over(api, store):
    id, frozen = claimed(api, store)
    expire(store, id)
    store.reclaim(3)
    refused(api, store, id, frozen)         # when nobody has it
    [task] = claim(api)
    refused(api, store, id, frozen)         # when another has it
    assert task["attempt"] == frozen + 1
    assert tell(api, id, "complete", task["attempt"]).status == 200
    refused(api, store, id, frozen)         # even with the same result


@pytest.mark.parametrize("end", ENDS)
def test_a_report_on_an_ended_attempt_is_refused(api, store, end):
    id, attempt = claimed(api, store)
    assert tell(api, id, end, attempt).status == 200
    refused(api, store, id, attempt, content="another")


def test_a_report_on_an_unknown_task_is_not_found(api, store):
    gone, attempt = claimed(api, store)
    tell(api, gone, "fail", attempt, error="why", final=True)
    store.delete(gone)
    for id in (str(gone), "7", "0", "-1", "claim", "1.0", "9" * 30, str(2**63), "%FF"):
        for verb in VERBS:
            is_problem(tell(api, id, verb, attempt), 404)


# An answer may be lost

@pytest.mark.parametrize(
    "verb, said, status",
    [
        (
            "complete",
            [{"result": {"sum": 6, "names": ["ж", 1.5]}}, {"result": None}, {"result": []}],
            "Completed",
        ),
        ("fail", [{"error": "why"}, {"error": "why", "delay": 0}, {"error": "x" * 5000}], "New"),
        ("fail", [{"error": "why", "final": True}], "Failed"),
    ],
    ids=["complete", "fail", "fail for good"],
)
def test_a_repeat_of_what_took_effect_is_answered_alike(api, store, verb, said, status):
    for each in said:
        id, attempt = claimed(api, store)
        first = tell(api, id, verb, attempt, **each)
        before = store.read(id)
        again = tell(api, id, verb, attempt, **each)
        assert (first.status, first.json["status"]) == (200, status)
        assert (again.status, again.json) == (200, first.json)
        assert store.read(id) == before


def test_a_repeated_complete_without_a_result_is_answered_alike(api, store):
    id, attempt = claimed(api, store)
    for _ in range(2):
        assert http("POST", f"{api}/tasks/{id}/complete", {"attempt": attempt}).status == 200
    is_problem(tell(api, id, "complete", attempt, result=None), 409)        # null is another result than none


@pytest.mark.parametrize(
    "verb, other", [("complete", {"result": {"sum": 7}}), ("fail", {"error": "another"})]
)
def test_a_repeat_with_another_content_is_refused(api, store, verb, other):
    id, attempt = claimed(api, store)
    tell(api, id, verb, attempt)
    before = store.read(id)
    is_problem(tell(api, id, verb, attempt, **other), 409)
    assert store.read(id) == before


@pytest.mark.parametrize("verb, said, other", [
    ("complete", {"result": 1}, ("fail", {"error": "why"})),
    ("fail", {"error": "x" * 5000, "final": True}, ("fail", {"error": "another"})),
    ("fail", {"error": "why", "delay": 0}, ("complete", {})),
], ids=["complete", "fail for good", "fail"])
def test_a_repeat_after_the_task_has_gone_on_is_answered_all_the_same(api, store, verb, said, other):
    id, attempt = claimed(api, store, repeat=60)
    tell(api, id, verb, attempt, **said)
    sql(store, "update tasks set run_at = now() where id = %(id)s", id=id)
    store.promote()
    store.repeat()
    for _ in range(2):
        before = store.read(id)
        again = tell(api, id, verb, attempt, **said)
        assert (again.status, again.json["status"]) == (200, before.status)
        verb_of_other, said_of_other = other
        is_problem(tell(api, id, verb_of_other, attempt, **said_of_other), 409)
        assert store.read(id) == before
        claim(api)


@pytest.mark.parametrize("verb", ["complete", "fail"])
def test_a_repeat_of_what_ended_as_canceled_is_answered_alike(api, store, verb):
    id, attempt = claimed(api, store)
    http("POST", f"{api}/tasks/{id}/cancel")
    first, again = (tell(api, id, verb, attempt) for _ in range(2))
    assert (first.status, again.status) == (200, 200)
    assert first.json == again.json


@pytest.mark.sqlite
def test_the_end_of_an_attempt_takes_few_statements(api, store, monkeypatch):
    sent, transaction = [], store._transaction

    def note(statements):
        sent.extend(re.search(r"^(update|select|delete)", sql, re.MULTILINE)[0] for sql, _ in statements
                    if sql != taskmanager.CLOCK)
        return transaction(statements)
    for verb, fields, statements in (
            ("complete", {}, ["update", "select"]),
            ("complete", {"repeat": 60}, ["update", "select", "update", "select"]),
            ("fail", {}, ["select", "update", "select"]),
            ("release", {}, ["update", "select"])):
        id, attempt = claimed(api, store, **fields)
        monkeypatch.setattr(store, "_transaction", note)
        assert tell(api, id, verb, attempt).status == 200
        monkeypatch.undo()
        assert sent == statements
        sent.clear()
        store.delete(id)


# Cancelling

def test_a_cancellation_is_seen_with_the_next_sign_of_life_and_ends_the_task(api, store):
    for end in ENDS:
        id, attempt = claimed(api, store)
        assert "canceled" not in tell(api, id, "extend", attempt).json
        assert http("POST", f"{api}/tasks/{id}/cancel").status == 202
        for sign in ("extend", "progress"):
            answer = tell(api, id, sign, attempt)
            assert (answer.status, answer.json["status"]) == (200, "In Progress")
            assert answer.json["canceled"] is True
        answer = tell(api, id, end, attempt)
        assert (answer.status, answer.json["status"]) == (200, "Failed")
        assert (answer.json["error"], answer.json["canceled"]) == ("canceled", True)
        assert not answer.json.keys() & {"result", "run_at"}
        assert claim(api) == []


# Trying again

def test_a_failed_attempt_is_tried_again_with_backoff(store, serve):
    api = serve(store, retry_seconds=3600)
    id, attempt = claimed(api, store)
    task = tell(api, id, "fail", attempt).json
    assert (task["status"], task["error"]) == ("New", "why")
    assert task["run_at"] > task["updated_at"]
    assert claim(api) == []


def test_a_failed_attempt_says_when_to_try_again(api, store):
    id, attempt = claimed(api, store)
    assert hours_until_run(tell(api, id, "fail", attempt, error="why", delay=7200).json) == 2
    sql(store, "update tasks set run_at = created_at")
    store.promote()
    [task] = claim(api)
    task = tell(api, id, "fail", task["attempt"], error="again", delay=0).json
    assert (task["status"], task["attempts"]) == ("New", 2)
    store.promote()
    assert claim(api)[0]["attempt"] == 3


def test_a_final_failure_is_not_tried_again(api, store):
    id, attempt = claimed(api, store)
    task = tell(api, id, "fail", attempt, error="no such customer", final=True, delay=60).json
    assert (task["status"], task["error"]) == ("Failed", "no such customer")
    assert "run_at" not in task
    id, attempt = claimed(api, store)
    assert tell(api, id, "fail", attempt, error="busy", final=False).json["status"] == "New"


@pytest.mark.parametrize(
    "fields, settings, statuses",
    [
        ({"max_attempts": 1}, {}, ["Failed"]),
        ({"max_attempts": 2}, {"max_attempts": 1}, ["New", "Failed"]),
        ({}, {"max_attempts": 1}, ["Failed"]),
        ({}, {}, ["New", "New", "Failed"]),
    ],
    ids=str,
)
def test_a_task_fails_for_good_when_its_attempts_are_used_up(store, serve, fields, settings, statuses):
    api = serve(store, **settings)
    [id] = store.create([new_task(fields)])
    for status in statuses:
        store.promote()
        [task] = claim(api)
        assert tell(api, id, "fail", task["attempt"], error="why", delay=0).json["status"] == status
    assert store.read(id).attempts == len(statuses)


def test_a_release_does_not_count(api, store):
    id, attempt = claimed(api, store, max_attempts=1)
    for n in range(1, 5):
        task = tell(api, id, "release", attempt).json
        assert (task["status"], attempt) == ("New", n)
        assert "attempts" not in task
        assert "run_at" not in task
        attempt = claim(api)[0]["attempt"]
    assert tell(api, id, "fail", attempt).json["status"] == "Failed"


def test_a_task_that_was_tried_again_by_hand_has_a_new_attempt_number(api, store):
    id, attempt = claimed(api, store, max_attempts=1)
    tell(api, id, "fail", attempt)
    http("POST", f"{api}/tasks/{id}/retry")
    [task] = claim(api)
    assert task["attempt"] == attempt + 1
    is_problem(tell(api, id, "complete", attempt), 409)
    assert tell(api, id, "complete", attempt + 1).status == 200


# Leases

def test_a_lease_never_gets_shorter(api, store):
    store.create()
    claim(api, lease=86400)
    until = lease(store, 1)
    for verb, said in (("extend", {"lease": 1}), ("extend", {}), ("progress", {"progress": 1})):
        assert http("POST", f"{api}/tasks/1/{verb}", {"attempt": 1, **said}).status == 200
        assert lease(store, 1) == until


def test_a_sign_of_life_extends_the_lease(api, store):
    store.create()
    claim(api, lease=1)
    for verb, said in (("extend", {}), ("progress", {"progress": 0}), ("extend", {"lease": 3600})):
        before = lease(store, 1)
        assert http("POST", f"{api}/tasks/1/{verb}", {"attempt": 1, **said}).status == 200
        assert lease(store, 1) > before


def test_the_lease_of_a_claim_is_what_it_asks_for_or_the_setting(store, serve):
    api = serve(store, lease_seconds=7200)
    store.create([NewTask()] * 3)
    claim(api, lease=3600)
    claim(api)
    claim(api, lease=86400)
    store.reclaim(3)
    assert lease(store, 1) < lease(store, 2) < lease(store, 3)


# Wrong input, which never comes as far as the database


ANY = (None, True, "1", [], {}, -1, 0.5, 1e300)

WRONG = {
    "claim": {
        "limit": (*ANY, 0, 1001),
        "lease": (None, False, "60", [], {}, 0, 0.999, -1, 86401, 1e300),
        "attempt": (1,),
        "Limit": (1,),
    },
    "extend": {
        "attempt": (*ANY, 0, 2**31, 2**63, 10**40),
        "lease": (None, True, "60", 0, 86401),
        "progress": (0.5,),
    },
    "progress": {
        "attempt": (*ANY, 0),
        "progress": (None, True, "0.5", [0.5], -0.001, 1.001, 50),
        "lease": (60,),
    },
    "complete": {
        "attempt": (*ANY, 0),
        "result": ("\0", {"\0": 1}, "\ud800", json.loads("[" * 101 + "]" * 101)),
        "error": ("why",),
    },
    "fail": {
        "attempt": (*ANY, 0),
        "error": (None, "", 0, False, {}, ["why"]),
        "final": (None, 0, 1, "true"),
        "delay": (None, True, "1", -1, 315360001),
        "retry": (1,),
    },
    "release": {"attempt": (*ANY, 0), "delay": (0,)},
}


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "verb, name", [(verb, name) for verb, names in WRONG.items() for name in names], ids=lambda value: value
)
def test_a_wrong_field_is_named_and_changes_nothing(api, store, verb, name):
    if verb == "claim":
        store.create()
        url, right = f"{api}/tasks/claim", {}
    else:
        id, attempt = claimed(api, store)
        url, right = f"{api}/tasks/{id}/{verb}", {"attempt": attempt, **VERBS[verb]}
    before, until = store.read(1), lease(store, 1)
    for value in WRONG[verb][name]:
        answer = http("POST", url, {**right, name: value})
        is_problem(answer, 400)
        assert [error["pointer"] for error in answer.json["errors"]] == [f"/{name}"], value
        assert answer.json["errors"][0]["detail"], value
    assert (store.read(1), lease(store, 1)) == (before, until)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "verb, said, pointers",
    [
        ("extend", {}, ["/attempt"]),
        ("extend", {"lease": 0}, ["/attempt", "/lease"]),
        ("progress", {}, ["/attempt", "/progress"]),
        ("progress", {"attempt": 1}, ["/progress"]),
        ("complete", {}, ["/attempt"]),
        ("complete", {"result": 1, "a/b~": 1}, ["/a~1b~0", "/attempt"]),
        ("fail", {}, ["/attempt", "/error"]),
        ("fail", {"attempt": 0, "final": 1}, ["/attempt", "/error", "/final"]),
        ("release", {}, ["/attempt"]),
        ("release", [], [""]),
        ("complete", [{"attempt": 1}], [""]),
        ("fail", b'"why"', [""]),
        ("fail", b"null", [""]),
        ("fail", b"nonsense", [""]),
        ("release", None, ["/attempt"]),
        ("extend", b'{"attempt": 1, "attempt": 2}', [""]),
        ("progress", b'{"attempt": 1, "progress": NaN}', [""]),
        ("progress", b'{"attempt": 1, "progress": 1e999}', ["/progress"]),
    ],
    ids=str,
)
def test_all_that_is_wrong_or_missing_is_named_at_once(api, store, verb, said, pointers):
    claimed(api, store)
    answer = http("POST", f"{api}/tasks/1/{verb}", said)
    is_problem(answer, 400)
    assert sorted(error["pointer"] for error in answer.json["errors"]) == sorted(pointers)
    assert store.read(1).status == "In Progress"


@pytest.mark.sqlite
def test_a_claim_that_is_wrong_claims_nothing(api, store):
    store.create()
    for said, pointers in (
        ({"limit": 0, "lease": 0, "queue": "a"}, ["/lease", "/limit", "/queue"]),
        ([], [""]),
        ([{"limit": 1}], [""]),
        (b"1", [""]),
    ):
        answer = http("POST", f"{api}/tasks/claim", said)
        is_problem(answer, 400)
        assert sorted(error["pointer"] for error in answer.json["errors"]) == sorted(pointers)
    is_problem(http("POST", f"{api}/tasks/claim", b'{"limit": 1}', Content_Type="text/plain"), 415)
    is_problem(http("POST", f"{api}/tasks/claim", b" " * 1_048_577), 413)
    answer = http("POST", f"{api}/tasks/claim?limit=5")
    is_problem(answer, 400)
    assert answer.json["errors"][0]["parameter"] == "limit"
    assert store.read(1).attempt == 0


@pytest.mark.sqlite
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_too_large_or_no_json_changes_nothing(api, store, verb):
    id, attempt = claimed(api, store)
    body = json.dumps({"attempt": attempt, **VERBS[verb]}).encode()
    is_problem(http("POST", f"{api}/tasks/{id}/{verb}", body + b" " * 1_048_576), 413)
    is_problem(
        http("POST", f"{api}/tasks/{id}/{verb}", body, Content_Type="application/x-www-form-urlencoded"), 415
    )
    is_problem(http("POST", f"{api}/tasks/{id}/{verb}?attempt=1", body), 400)
    assert (store.read(id).status, store.read(id).progress) == ("In Progress", None)


@pytest.mark.sqlite
@pytest.mark.parametrize("number", ["1", "1.0", "1e0"])
def test_a_whole_number_is_one_however_it_is_written(api, store, number):
    claimed(api, store)
    assert http("POST", f"{api}/tasks/1/complete", f'{{"attempt": {number}}}'.encode()).status == 200


@pytest.mark.sqlite
def test_workers_need_the_token_too(store, serve):
    api = serve(store, api_token="s3cret")
    store.create()
    for path in ("claim", *(f"1/{verb}" for verb in VERBS)):
        is_problem(http("POST", f"{api}/tasks/{path}", {"attempt": 1}), 401)
    assert store.read(1).attempt == 0
    assert http("POST", f"{api}/tasks/claim", Authorization="Bearer s3cret").json[0]["id"] == 1


# Workers

def work(url):
    """A worker, as README shows it."""
    def post(path, **said):
        request = urllib.request.Request(
            url + path, json.dumps(said).encode(), {"Content-Type": "application/json", "Prefer": "wait=1"}
        )
        with urllib.request.urlopen(request, timeout=90) as answer:
            return json.load(answer)

    while tasks := post("/tasks/claim", limit=3):       # a worker that stays asks `while True`
        for task in tasks:
            id, attempt = task["id"], task["attempt"]
            try:
                post(f"/tasks/{id}/complete", attempt=attempt, result=100 / task["payload"])
            except urllib.error.HTTPError as e:         # 409: it is somebody else's by now
                print(e.read())
            except Exception as e:
                post(f"/tasks/{id}/fail", attempt=attempt, error=repr(e), final=True)


def test_a_worker_of_fifteen_lines_completes_all_tasks(store, serve, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    api = serve(store, waiters=2)
    store.create([new_task({"payload": n}) for n in range(20)])
    at_once(*[lambda: work(api)] * 2)
    failed, *completed = store.list_tasks()
    assert (failed.status, failed.error) == ("Failed", "ZeroDivisionError('division by zero')")
    assert [(row.status, row.result, row.attempts) for row in completed] == [
        ("Completed", json.dumps(100 / n), 1) for n in range(1, 20)
    ]


@pytest.mark.parametrize("handler", [None, lambda task: "ours"], ids=["no handler", "a handler"])
def test_with_a_concurrency_of_0_our_worker_only_minds_the_clock(api, store, handler):
    ready, lost, due = store.create([NewTask()] * 3)
    assert claim(api)[0]["id"] == ready
    tell(api, ready, "release", 1)
    # A worker holds it that sends no heartbeat.
    sql(store, "update tasks set status = 'In Progress', attempt = 1 where id = %(id)s", id=lost)
    schedule = "update tasks set run_at = created_at where id = %(id)s"
    sql(store, schedule, id=due)
    worker = Worker(store, Config(concurrency=0, poll_seconds=0.02), handler)
    worker.start()
    try:
        eventually(lambda: store.read(lost).status == "New" and store.read(due).run_at is None)
        for id in (due, lost):      # and now it has been around since
            sql(store, schedule, id=id)
            worker.wake()
            eventually(lambda: store.read(id).run_at is None)
        assert [(row.status, row.attempt) for row in store.list_tasks()] == [
            ("New", 1),
            ("New", 1),
            ("New", 0),
        ]
        assert sorted(task["id"] for task in claim(api, limit=9)) == [ready, lost, due]
    finally:
        worker.stop(0)
