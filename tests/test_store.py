"""The store's contract, the same on SQLite and PostgreSQL: one verb a transition, each of them guarded."""

import concurrent.futures
import contextlib
import json
import re
import threading
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

import taskmanager
from helpers import LEASE, at_once, eventually, expire, plan_of, raising, set_time, sql
from taskmanager import (
    Invalid,
    KeyReused,
    NewTask,
    NotInState,
    TaskNotFound,
    Unavailable,
    new_task,
    new_tasks,
)


def claimed(store, **fields):
    """A new task, and the claim on it."""
    [id] = store.create([new_task(fields)])
    [claim] = store.claim(1, LEASE)
    assert claim.id == id
    return claim


# Creating

def test_create_makes_a_new_task(store):
    [id] = store.create()
    row = store.read(id)
    assert (row.id, row.status, row.attempts, row.payload) == (id, "New", 0, None)
    assert row.created_at == row.updated_at
    assert abs(
        datetime.fromisoformat(row.created_at) - datetime.now(timezone.utc).replace(tzinfo=None)
    ) < timedelta(seconds=5)


def test_a_bare_task_is_the_documents_four_fields_whatever_happens_to_it(store):
    [id] = store.create()
    assert list(json.loads(store.read(id).to_json())) == ["id", "status", "created_at", "updated_at"]
    [claim] = store.claim(1, LEASE)
    assert store.read(id).to_json().count(":") == 4 + 4       # four names, and two clocks
    store.complete([(id, claim.attempt, None)])
    assert list(json.loads(store.read(id).to_json())) == ["id", "status", "created_at", "updated_at"]


def test_a_task_with_any_other_field_says_how_many_attempts_it_had(store):
    def attempts(id):
        return json.loads(store.read(id).to_json()).get("attempts", 0)

    kinds = {"payload": None}, {"max_attempts": 5}, {"priority": 1}, {}
    ids = store.create([new_task(fields) for fields in kinds])
    assert [attempts(id) for id in ids] == [0, 0, 0, 0]
    claims = {row.id: row.attempt for row in store.claim(4, LEASE)}
    assert [attempts(id) for id in ids] == [1, 1, 1, 0]
    store.release([(ids[1], 1)])
    store.retry([(ids[3], claims[ids[3]], "why", 0)])
    assert [attempts(id) for id in ids] == [1, 0, 1, 1]
    store.promote()
    assert attempts(ids[3]) == 1
    assert sorted(row.id for row in store.claim(4, LEASE)) == [ids[1], ids[3]]
    store.complete([(ids[3], 2, None)])
    assert attempts(ids[3]) == 2


def test_create_keeps_what_it_was_given(store):
    given = {
        "payload": {"ключ": [1, "☃"]},
        "priority": 3,
        "run_at": "2999-01-02T03:04:05Z",
        "max_attempts": 4,
        "timeout": 2.5,
    }
    [id] = store.create([new_task(given)])
    kept = json.loads(store.read(id).to_json())
    assert kept == {
        "id": id,
        "status": "New",
        "created_at": kept["created_at"],
        "updated_at": kept["updated_at"],
        **given,
        "run_at": "2999-01-02T03:04:05",
    }


def test_create_gives_ids_in_the_order_of_the_tasks(store):
    ids = store.create([new_task({"payload": n}) for n in range(700)])
    assert ids == sorted(ids)
    assert [store.read(id).payload for id in ids[::100]] == [str(n) for n in range(0, 700, 100)]


def test_an_idempotency_key_makes_one_task(store):
    key, other = new_task({"payload": 1}, "a"), new_task({"payload": 1}, "b")
    first, again, none, second = store.create([key, key, NewTask(), other])
    assert again == first and len({first, none, second}) == 3
    before = [store.read(id) for id in (first, second)]
    assert store.create([other, NewTask(), key])[::2] == [second, first]
    assert [store.read(id) for id in (first, second)] == before
    assert len(store.list_tasks()) == 4


def test_an_idempotency_key_is_still_known_when_its_task_has_moved_on(store):
    task = new_task({"delay": 60}, "key")
    [id] = store.create([task])
    store.cancel(id)
    assert store.create([new_task({"delay": 60}, "key")]) == [id]
    assert store.read(id).status == "Failed"


def test_an_idempotency_key_of_another_task_is_refused_and_so_is_the_whole_batch(store):
    store.create([new_task({"payload": 1}, "key")])
    for batch in (
        [NewTask(), new_task({"payload": 2}, "key")],
        [new_task({}, "new"), new_task({"payload": 2}, "new")],
    ):
        with pytest.raises(KeyReused):
            store.create(batch)
    assert len(store.list_tasks()) == 1


def test_a_key_without_a_fingerprint_has_no_other_task_to_be_of(store):
    # by plain SQL, or before there were fingerprints
    sql(store, "insert into tasks (idempotency_key) values ('key')")
    assert store.create([new_task({"payload": 1}, "key")]) == [1]
    assert store.create([NewTask(idempotency_key="other")]) == store.create(
        [NewTask(idempotency_key="other")]
    )


def test_an_array_has_one_key_for_all_of_it(store):
    items = [{"payload": 1}, {"payload": 2}]
    ids = store.create(new_tasks(items, "key"))
    assert store.create(new_tasks(items, "key")) == ids
    for other in (items[::-1], items[:1], [*items, {}], [{}]):
        with pytest.raises(KeyReused):
            store.create(new_tasks(other, "key"))
    with pytest.raises(KeyReused):
        store.create([new_task({"payload": 1}, "key")])
    assert [row.id for row in store.list_tasks()] == ids


def test_create_takes_ten_thousand_at_once(store):
    ids = store.create(new_tasks([{"payload": n, "priority": n % 7} for n in range(10_000)], "x" * 255))
    assert len(ids) == 10_000
    assert [store.read(id).payload for id in ids[::2500]] == ["0", "2500", "5000", "7500"]
    assert (
        store.create(new_tasks([{"payload": n, "priority": n % 7} for n in range(10_000)], "x" * 255)) == ids
    )


def test_ten_thousand_at_once_cost_no_more_than_one_after_the_other(store):
    # a few clients that do so keep the interpreter busy, and all others wait
    def took(call, *args):
        began = time.thread_time()
        call(*args)
        return time.thread_time() - began

    tasks = [NewTask()] * 1000
    few = min(sum(took(store.create, tasks[:50]) for _ in range(20)) for _ in range(3))
    assert min(took(store.create, tasks) for _ in range(5)) < 1.5 * few


def test_create_makes_all_of_a_batch_or_none(store):
    with pytest.raises(Invalid):
        store.create([NewTask(), NewTask(payload="{not json")])
    assert store.list_tasks() == []


def test_a_commit_is_on_the_disk_before_it_is_answered(sqlite_database):
    # a power cut; in a log that is written ahead, less than FULL (2) loses what was committed last
    store = taskmanager.open_store(sqlite_database)
    assert store._execute("pragma journal_mode") == [("wal",)]
    assert store._execute("pragma synchronous") == [(2,)]


def test_create_notifies_the_listeners_after_the_commit(store):
    seen = []
    store.listeners.append(lambda: seen.append(len(store.list_tasks())))
    store.create()
    assert seen == [1]      # the new task is there by then


def test_a_row_of_plain_sql_is_a_task(store):
    sql(store, "insert into tasks default values")
    [claim] = store.claim(1, LEASE)
    assert store.complete([(claim.id, claim.attempt, '"done"')]) == {claim.id}
    row = store.read(claim.id)
    assert (row.status, row.result, len(row.created_at)) == ("Completed", '"done"', 19)


def test_plain_sql_can_not_make_up_a_status(store):
    with pytest.raises(Exception, match="(?i)check"):
        sql(store, "insert into tasks (status) values ('Done')")


def test_an_id_that_plain_sql_took_is_passed_over(store):
    sql(store, "insert into tasks (id) values (1)")
    with contextlib.suppress(taskmanager.Unavailable):     # "try again", on PostgreSQL
        store.create()
    store.create()
    assert [row.id for row in store.list_tasks()][:2] == [1, 2]


# Reading

@pytest.mark.parametrize("id", [0, -1, 1, 2**63 - 1, 2**63, 10**30])
def test_read_refuses_an_unknown_id(store, id):
    with pytest.raises(TaskNotFound, match=str(id)):
        store.read(id)


def test_list_is_in_id_order_and_pages_by_the_last_id(store):
    ids = store.create([NewTask(priority=n % 3) for n in range(10)])
    assert [row.id for row in store.list_tasks()] == ids
    assert [row.id for row in store.list_tasks(after=ids[3], limit=4)] == ids[4:8]
    assert store.list_tasks(after=2**63 - 1) == []


def test_list_has_only_the_statuses_that_were_asked_for(store):
    ids = store.create([NewTask()] * 4)
    for claim in store.claim(2, LEASE)[:1]:
        store.complete([(claim.id, claim.attempt, None)])
    found = {status: [row.id for row in store.list_tasks(status)] for status in taskmanager.STATUSES}
    assert found == {"New": ids[2:], "In Progress": ids[1:2], "Completed": ids[:1], "Failed": []}
    assert [row.id for row in store.list_tasks("New", "Completed")] == [ids[0], *ids[2:]]
    assert [row.id for row in store.list_tasks("New", "Completed", order="desc", limit=2)] == ids[:1:-1]
    assert [row.id for row in store.list_tasks(*taskmanager.STATUSES)] == ids


def test_list_begins_with_the_last_id_in_descending_order(store):
    ids = store.create([NewTask()] * 6)
    assert [row.id for row in store.list_tasks(order="desc")] == ids[::-1]
    assert [row.id for row in store.list_tasks(order="desc", after=ids[3], limit=2)] == [ids[2], ids[1]]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_of_large_tasks_ends_early(store, order):
    large = NewTask(payload=json.dumps("é" * (taskmanager.MAX_PAGE_BYTES // 6), ensure_ascii=False))
    # however many small ones there are before them
    ids = store.create([NewTask()] * 9 + [large] * 10 + [NewTask()] * 9)
    ids.sort(reverse=order == "desc")
    seen, pages = [], []
    while rows := store.list_tasks(*["New"] * bool(seen), order=order, after=seen[-1] if seen else None):
        seen += [row.id for row in rows]
        pages.append(len(rows))
    assert seen == ids and pages == [12, 3, 3, 10]


def test_a_page_has_at_least_one_task(store):
    whole = json.dumps("x" * (taskmanager.MAX_BODY - 2))
    ids = store.create([NewTask(payload=whole)] * 2)
    claims = store.claim(9, LEASE) + store.claim(9, LEASE)
    assert [claim.id for claim in claims] == ids
    store.complete([(claim.id, claim.attempt, whole) for claim in claims])
    assert [row.id for row in store.list_tasks()] == ids[:1]
    assert [row.id for row in store.list_tasks(order="desc")] == ids[1:]


# Claiming

def test_claim_takes_the_most_urgent_first_and_then_the_oldest(store):
    ids = store.create([NewTask(priority=priority) for priority in (0, 5, -1, 5, 0)])
    assert [claim.id for claim in store.claim(4, LEASE)] == [ids[1], ids[3], ids[0], ids[4]]
    assert [claim.id for claim in store.claim(4, LEASE)] == [ids[2]]
    assert store.claim(4, LEASE) == []


def test_claim_takes_no_more_than_can_be_held(store):
    ids = store.create(
        [
            NewTask(payload=json.dumps("x" * (taskmanager.MAX_PAGE_BYTES // 3)), priority=n % 2)
            for n in range(24)
        ]
    )
    taken = [row.id for row in store.claim(500, LEASE)]
    assert taken == ids[1:6:2]
    while rows := store.claim(500, LEASE):
        taken += [row.id for row in rows]
    assert taken == ids[1::2] + ids[::2]


def test_claim_leaves_what_is_scheduled(store):
    store.create([new_task({"delay": 60})])
    assert store.claim(1, LEASE) == []


def test_claim_moves_updated_at(store):
    [id] = store.create()
    for column in ("created_at", "updated_at"):
        set_time(store, id, column, -3600)
    before = store.read(id)
    store.claim(1, LEASE)
    after = store.read(id)
    assert after.created_at == before.created_at
    assert after.updated_at > before.updated_at
    assert after.status == "In Progress"


def test_four_threads_never_claim_the_same_task(store):
    store.create([NewTask()] * 400)
    got = []

    def work():
        while claims := store.claim(7, LEASE):
            got.extend(claim.id for claim in claims)

    at_once(*[work] * 4)
    assert sorted(got) == [row.id for row in store.list_tasks()]


# The holder of an attempt, and nobody else

VERBS = {
    "complete": lambda store, id, attempt: store.complete([(id, attempt, None)]),
    "retry": lambda store, id, attempt: store.retry([(id, attempt, "why", 0)]),
    "fail": lambda store, id, attempt: store.fail([(id, attempt, "why")]),
    "release": lambda store, id, attempt: store.release([(id, attempt)]),
    "extend": lambda store, id, attempt: store.extend([(id, attempt, None)], LEASE),
}


@pytest.fixture(params=VERBS)
def verb(request):
    return VERBS[request.param]


def test_the_holder_of_an_attempt_may_report_on_it(store, verb):
    claim = claimed(store)
    assert verb(store, claim.id, claim.attempt) == {claim.id}


def test_a_report_on_another_attempt_is_refused(store, verb):
    claim = claimed(store)
    before = store.read(claim.id)
    for attempt in (claim.attempt - 1, claim.attempt + 1):
        assert verb(store, claim.id, attempt) == set()
    assert store.read(claim.id) == before


def test_the_holder_may_report_after_the_lease_expired_until_another_takes_over(store, verb):
    claim = claimed(store)
    expire(store, claim.id)
    assert verb(store, claim.id, claim.attempt) == {claim.id}


def test_a_frozen_worker_is_refused_after_another_took_over(store, verb):
    frozen = claimed(store)
    expire(store, frozen.id)
    assert store.reclaim(3) == 1
    [claim] = store.claim(1, LEASE)
    assert claim.attempt == frozen.attempt + 1
    assert verb(store, frozen.id, frozen.attempt) == set()
    assert verb(store, claim.id, claim.attempt) == {claim.id}


def test_a_report_on_a_task_that_is_not_in_progress_is_refused(store, verb):
    claim = claimed(store)
    store.complete([(claim.id, claim.attempt, None)])
    assert verb(store, claim.id, claim.attempt) == set()
    assert store.read(claim.id).status == "Completed"


TEXTS = [
    "", "NULL", "null", "a,b", "{}", "{a}", '"', '""', "\\", "\\\\", '\\"', "'", "''", "$1", "%s", "%(id)s",
    ":now", " a ", "line\nline\r\ttab", "\\x41\\N", "größe 日本 \U0001f600", "\x01\x7f", "$[0]",
]


def test_whatever_text_stands_in_a_batch_is_kept(store):
    """Each beside a task that has no such text, and one of each field in one statement."""
    keys = [text for text in TEXTS if text.isprintable() and text]
    tasks = [NewTask(payload=json.dumps(text), idempotency_key=text if text in keys else None,
                     fingerprint=text, timeout=0.1, delay=1e-6) for text in TEXTS]
    ids = store.create([each for task in tasks for each in (task, NewTask())])[::2]
    assert store.create([task for task in tasks if task.idempotency_key]) == [
        id for id, text in zip(ids, TEXTS, strict=True) if text in keys]
    assert [json.loads(store.read(id).payload) for id in ids] == TEXTS
    assert [store.read(id).idempotency_key for id in ids] == [
        text if text in keys else None for text in TEXTS]
    assert {float(store.read(id).timeout) for id in ids} == {0.1}

    store.promote()
    rows = [row for row in store.claim(100, LEASE) if row.id in ids]
    half = len(rows) // 2
    done, failed = rows[:half], rows[half:]
    texts = dict(zip(ids, TEXTS, strict=True))
    store.complete([(row.id, row.attempt, None if row is done[0] else row.payload) for row in done])
    store.fail([(row.id, row.attempt, texts[row.id]) for row in failed])
    assert [store.read(row.id).result for row in done] == [None, *(row.payload for row in done[1:])]
    assert [store.read(row.id).error for row in failed] == [texts[row.id] for row in failed]


def test_a_batch_says_which_of_it_were_still_ours(store):
    ids = store.create([NewTask()] * 3)
    store.claim(3, LEASE)
    expire(store, ids[1])
    store.reclaim(3)
    assert store.complete([(id, 1, None) for id in ids]) == {ids[0], ids[2]}


# Ending

def test_complete_keeps_the_result_and_forgets_the_last_error(store):
    claim = claimed(store)
    store.retry([(claim.id, claim.attempt, "first time", 0)])
    store.promote()
    [claim] = store.claim(1, LEASE)
    store.complete([(claim.id, claim.attempt, '{"a": [1, "☃"]}')])
    row = store.read(claim.id)
    assert (row.status, row.error, row.attempts) == ("Completed", None, 2)
    assert json.loads(row.result) == {"a": [1, "☃"]}


def test_a_result_may_be_json_null(store):
    claim = claimed(store)
    store.complete([(claim.id, claim.attempt, "null")])
    assert '"result": null' in store.read(claim.id).to_json()


def test_fail_keeps_the_error(store):
    claim = claimed(store)
    store.fail([(claim.id, claim.attempt, "no such file: 'ё'")])
    row = store.read(claim.id)
    assert (row.status, row.error) == ("Failed", "no such file: 'ё'")


def test_retry_waits_and_says_why(store):
    claim = claimed(store)
    store.retry([(claim.id, claim.attempt, "busy", 3600)])
    row = store.read(claim.id)
    assert (row.status, row.error) == ("New", "busy")
    assert row.run_at > row.updated_at
    assert store.promote() == 0 and store.claim(1, LEASE) == []


def test_release_does_not_count_the_attempt_and_does_not_use_its_number_again(store):
    claim = claimed(store)
    store.release([(claim.id, claim.attempt)])
    assert (store.read(claim.id).status, store.read(claim.id).attempts) == ("New", 0)
    [again] = store.claim(1, LEASE)
    assert (again.attempts, again.attempt) == (1, claim.attempt + 1)


# What several threads want at the same moment

class Together:
    """Threads that want something each, while the first CREATE or READ is under way; their `sizes`."""

    def __init__(self, store, monkeypatch, statement=taskmanager.CREATE):
        self.store, self.sizes, self.pool = store, [], concurrent.futures.ThreadPoolExecutor(9)
        self.gate, batch = threading.Event(), store._batch

        def wait(sql, rows, **more):
            if sql == statement:
                self.sizes.append(len(rows))
                if len(self.sizes) == 1:
                    assert self.gate.wait(20)
            return batch(sql, rows, **more)
        monkeypatch.setattr(store, "_batch", wait)
        monkeypatch.setattr(taskmanager.Batcher, "SLOW", 100)
        monkeypatch.setattr(taskmanager.Batcher, "PATIENCE", 100)

    def call(self, function, arguments):
        calls = [self.pool.submit(function, each) for each in arguments]
        eventually(lambda: self.sizes)
        return calls

    def create(self, *payloads):
        return self.call(self.store.create_one, [new_task({"payload": each}) for each in payloads])

    def gathered(self, number):
        state = self.store._state
        eventually(lambda: len(state.creating._waiting) + len(state.reading._waiting) == number)


@pytest.fixture
def together(store, monkeypatch):
    there = Together(store, monkeypatch)
    with there.pool:
        yield there
        there.gate.set()


def test_what_threads_create_at_the_same_moment_is_one_statement(store, together, caplog):
    caplog.set_level("INFO", "taskmanager")
    calls = together.create("first")
    calls += together.create(*range(6))
    together.gathered(6)
    together.gate.set()
    ids = [call.result(20) for call in calls]
    assert together.sizes == [1, 6]
    assert [json.loads(store.read(id).payload) for id in ids] == ["first", *range(6)]
    assert sorted(message for message in caplog.messages if "created" in message) == [
        f"created task={id} via=call" for id in sorted(ids)]
    assert store.create_one(NewTask()) == max(ids) + 1      # and then one begins anew
    assert together.sizes == [1, 6, 1]


def test_who_may_wait_for_another_or_is_large_keeps_nobody_waiting(store, together):
    [first] = together.create("first")
    store.create_one(new_task({}, "a key"))
    store.create_one(new_task({"payload": "x" * 9000}))
    assert together.sizes == [1, 1, 1] and not first.done()


def test_nobody_waits_for_long_behind_a_statement_that_hangs(store, together, monkeypatch):
    [first] = together.create("first")
    [second] = together.create("second")
    together.gathered(1)
    monkeypatch.setattr(taskmanager.Batcher, "SLOW", 0)
    store.create_one(NewTask())     # takes with it the one that was waiting
    second.result(20)
    assert together.sizes == [1, 2] and not first.done()


def test_threads_that_wait_behind_a_statement_that_hangs_go_on_without_another_one_to_come(
        store, together, monkeypatch):
    monkeypatch.setattr(taskmanager.Batcher, "PATIENCE", 0.1)
    first, *later = together.create("first") + together.create("second", "third")
    ids = [call.result(20) for call in later]
    assert [json.loads(store.read(id).payload) for id in ids] == ["second", "third"]
    assert sum(together.sizes) == 3 and not first.done()


def test_who_reads_does_not_wait_for_the_statement_that_hangs_with_what_it_wants(store, monkeypatch):
    ids = store.create([NewTask()] * 4)
    monkeypatch.setattr(taskmanager.Batcher, "PATIENCE", 0.1)
    hangs, waits, batch = threading.Event(), threading.Event(), store._batch

    def hang(sql, rows, **more):
        if sql == taskmanager.READ and not hangs.is_set() and len(rows) > 1:
            hangs.set()
            assert waits.wait(20)
        return batch(sql, rows, **more)
    reading, members = store._state.reading, [taskmanager.BatchMember(id) for id in ids[:1]]
    monkeypatch.setattr(store, "_batch", hang)
    with reading._lock:         # one leads, and three come meanwhile
        reading._leaders += members
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(taskmanager.Batcher, "SLOW", 100)
        calls = [pool.submit(store.read, id) for id in ids[1:]]
        eventually(lambda: len(reading._waiting) == 3)
        pool.submit(reading._lead, members[0])
        eventually(hangs.is_set)
        assert [call.result(20).id for call in calls] == ids[1:]
        assert not members[0].is_done
        waits.set()
    assert members[0].result.id == ids[0] and not reading._leaders and not reading._waiting


def test_a_distant_database_gets_several_statements_at_a_time(store, together):
    [first] = together.create("first")
    store._state.creating._seconds = 200
    store.create_one(NewTask())
    assert together.sizes == [1, 1] and not first.done()


def test_what_threads_read_at_the_same_moment_is_one_statement(store, monkeypatch):
    ids = store.create([new_task({"payload": n}) for n in range(4)])
    together = Together(store, monkeypatch, taskmanager.READ)
    with together.pool:
        [first] = together.call(store.read, ids[:1])
        store.cancel(ids[0])
        later = together.call(store.read, [*ids, ids[1]])
        [missing] = together.call(store.read, [ids[-1] + 1])
        together.gathered(6)
        together.gate.set()
        # The one that came after a change sees it, even if it waited for a statement that does not.
        assert [call.result(20).id for call in later] == [*ids, ids[1]]
        assert later[0].result().status == "Failed"
        assert [json.loads(call.result().payload) for call in later] == [0, 1, 2, 3, 1]
        with pytest.raises(TaskNotFound, match=f"there is no task {ids[-1] + 1}"):
            missing.result(20)
        assert first.result(20).id == ids[0]
    assert together.sizes == [1, 6]


def test_what_is_refused_among_others_is_refused_alone(postgres_database, monkeypatch):
    store = taskmanager.open_store(postgres_database)
    store._execute("""create function refuse() returns trigger language plpgsql as
                      $$ begin raise exception 'not this one'; end $$""")
    store._execute("""create trigger refuse before insert on tasks for each row
                      when (cast(new.payload as text) = '"bad"') execute function refuse()""")
    together = Together(store, monkeypatch)
    with together.pool:
        [first] = together.create("first")
        good, bad, fine = together.create("good", "bad", "fine")
        together.gathered(3)
        together.gate.set()
        with pytest.raises(Invalid, match="not this one"):
            bad.result(20)
        for call in (first, good, fine):
            assert store.read(call.result(20)).status == "New"
    assert together.sizes == [1, 3, 1, 1, 1] and len(store.list_tasks()) == 3
    store.close()


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError()], ids=repr)
def test_all_of_a_group_are_told_that_the_database_is_away(store, together, monkeypatch, error):
    calls = together.create("first")
    calls += together.create(1, 2, 3)
    together.gathered(3)
    monkeypatch.setattr(store, "_batch", raising(error))
    together.gate.set()
    assert calls[0].result(20) == 1
    assert [type(call.exception(20)) for call in calls[1:]] == [type(error)] * 3
    monkeypatch.undo()
    assert store.create_one(NewTask()) == 2


# The log, which operators search

def test_each_transition_logs_a_verb_of_its_own(store, caplog):
    caplog.set_level("INFO", "taskmanager")
    caplog.clear()
    [id] = store.create([new_task({}, "key")])
    store.create([new_task({}, "key")], via="http")
    store.claim(1, LEASE)
    store.retry([(id, 1, "why", 0)])
    store.promote()
    store.claim(1, LEASE)
    store.release([(id, 2)])
    store.claim(1, LEASE)
    store.cancel(id)
    store.fail([(id, 3, "why")])
    store.complete([(id, 3, None)])
    store.retry_by_hand(id)
    store.claim(1, LEASE)
    expire(store, id)
    store.reclaim(3)
    store.cancel(id)
    store.delete(id)
    assert caplog.messages == [
        f"created task={id} via=call",
        f"deduplicated task={id} via=http",
        f"claimed task={id} attempt=1",
        f"retried task={id} attempt=1 in=0.0s error='why'",
        f"claimed task={id} attempt=2",
        f"released task={id} attempt=2",
        f"claimed task={id} attempt=3",
        f"requested cancellation task={id} attempt=3",
        f"canceled task={id} attempt=3",
        f"refused task={id} attempt=3 outcome=completed reason='it had ended, or another attempt has begun'",
        f"retried task={id} by=client",
        f"claimed task={id} attempt=4",
        f"reclaimed task={id} attempt=4 status='New' reason='the worker died or was cut off'",
        f"canceled task={id} by=client",
        f"deleted task={id} by=client",
    ]


# The answer to the end of an attempt is lost

def lose_an_answer(store, monkeypatch):
    """The next statement takes effect, and its answer does not come."""
    batch = store._batch

    def lose(*args, **kwargs):
        monkeypatch.setattr(store, "_batch", batch)
        batch(*args, **kwargs)
        raise Unavailable("the connection was cut after the commit")
    monkeypatch.setattr(store, "_batch", lose)


def logged_and_counted(store, caplog, verb, id):
    events = f'taskmanager_task_events_total{{event="{verb}"}} 1\n'
    return events in store.metrics.text({}) and [
        record.message.split(" task=")[0] for record in caplog.records if f"task={id} " in record.message]


@pytest.mark.parametrize(
    "name, verb, then",
    [
        ("complete", "completed", ""),
        ("complete", "canceled", "cancel"),
        ("fail", "failed", ""),
        ("fail", "canceled", "cancel"),
        ("retry", "retried", ""),
        ("retry", "canceled", "cancel"),
        ("retry", "retried", "claim"),
        ("release", "released", ""),
        ("release", "canceled", "cancel"),
        ("release", "released", "claim"),
    ],
)
def test_an_end_that_is_sent_again_counts_once(store, monkeypatch, caplog, name, verb, then):
    """A connection breaks after the commit; the task may be canceled or claimed by another meanwhile."""
    claim = claimed(store)
    if then == "cancel":
        store.cancel(claim.id)
    caplog.set_level("INFO", "taskmanager")
    caplog.clear()
    lose_an_answer(store, monkeypatch)
    with pytest.raises(Unavailable):
        VERBS[name](store, claim.id, claim.attempt)
    if then == "claim":
        store.promote()
        store.claim(1, LEASE)
        caplog.clear()
    before = store.read(claim.id)
    assert VERBS[name](store, claim.id, claim.attempt) == set()
    assert store.read(claim.id) == before
    assert logged_and_counted(store, caplog, verb, claim.id) == [verb]
    VERBS[name](store, claim.id, claim.attempt)     # once more: then it is refused
    assert logged_and_counted(store, caplog, verb, claim.id) == [verb, "refused"]


def test_an_end_that_never_took_effect_is_refused_when_another_took_over(store, monkeypatch, caplog):
    claim = claimed(store)
    monkeypatch.setattr(store, "_batch", raising(Unavailable("away")))
    for name in ("retry", "release"):
        with pytest.raises(Unavailable):
            VERBS[name](store, claim.id, claim.attempt)
    monkeypatch.undo()
    expire(store, claim.id)
    store.reclaim(3)
    for _ in range(2):      # while it is New, and while it is another's
        for name in ("retry", "release"):
            caplog.clear()
            assert VERBS[name](store, claim.id, claim.attempt) == set()
            assert [record.message.split(" ")[0] for record in caplog.records] == ["refused"]
            store._state.unconfirmed.add((claim.id, claim.attempt))
        store.claim(1, LEASE)


# Nothing to do

@pytest.mark.parametrize("name", ["complete", "retry", "fail", "release", "create"])
def test_nothing_is_done_with_nothing(store, name):
    claim = claimed(store)
    assert not getattr(store, name)([]) and not store.extend([], LEASE)
    assert [row.id for row in store.list_tasks("In Progress")] == [claim.id]


# Others who are just doing something with a row

TAKE = {
    "claim": lambda store: [row.id for row in store.claim(1, LEASE)],
    "reclaim": lambda store: store.reclaim(3) and [row.id for row in store.list_tasks("New")],
    "promote": lambda store: store.promote() and [row.id for row in store.list_tasks() if not row.run_at],
    "delete_old": lambda store: (
        store.delete_old("Completed", 1, 1) and sorted({1, 2} - {row.id for row in store.list_tasks()})
    ),
}
BEFORE = {
    "claim": "priority = 2 - id",
    "reclaim": "status = 'In Progress', lease_until = now() - %(age)s * interval '1 second'",
    "promote": "run_at = now() - %(age)s * interval '1 second'",
    "delete_old": "status = 'Completed', updated_at = now() - %(age)s * interval '1 second'",
}
ARGUMENTS = {"reclaim": (3,), "promote": (), "delete_old": ("Completed", 1, 1)}


@pytest.mark.parametrize("verb", TAKE)
def test_a_row_that_another_transaction_has_locked_is_passed_over(postgres_database, monkeypatch, verb):
    import psycopg2
    monkeypatch.setattr(taskmanager, "STATEMENT_SECONDS", 2)
    store = taskmanager.open_store(postgres_database)
    store.create([NewTask()] * 2)
    sql(store, f"update tasks set {BEFORE[verb]}", age=360_000.0)
    with contextlib.closing(psycopg2.connect(postgres_database)) as other:
        other.cursor().execute("select * from tasks where id = 1 for update")
        assert TAKE[verb](store) == [2]
    store.close()


@pytest.mark.parametrize(
    "verb, order",
    [("promote", [3, 1, 5, 2, 4]), ("delete_old", [3, 1, 5, 2, 4]), ("reclaim", [1, 2, 3, 4, 5])],
)
def test_the_oldest_come_first_where_not_all_can(store, monkeypatch, verb, order):
    # a day's tasks become due, or too old, at once, or a whole cluster dies
    monkeypatch.setattr(taskmanager, "BATCH_ROWS", 1)
    store.create([NewTask()] * 5)
    for id in [2, 5, 1, 4, 3]:      # so they lie in another order: PostgreSQL moves a row that is changed
        age = 3600.0 * (100 - order.index(id))
        sql(store, f"update tasks set {BEFORE[verb]} where id = %(id)s", id=id, age=age)
    if isinstance(store, taskmanager.PostgresStore):
        store._execute("analyze tasks")     # now it knows that the table is small, and reads it as it lies
    seen = []
    for _ in order:
        before = {row.id: (row.status, row.run_at) for row in store.list_tasks()}
        assert getattr(store, verb)(*ARGUMENTS[verb]) == 1
        after = {row.id: (row.status, row.run_at) for row in store.list_tasks()}
        seen += [id for id in before if before[id] != after.get(id)]
    assert seen == order


# What nobody holds any more

def test_reclaim_leaves_a_task_whose_lease_lasts(store):
    claimed(store)
    assert store.reclaim(3) == 0


def test_extend_makes_the_lease_last(store):
    claim = claimed(store)
    set_time(store, claim.id, "lease_until", 0.2)
    assert store.extend([(claim.id, claim.attempt, 0.25)], LEASE) == {claim.id}
    time.sleep(0.3)
    assert store.reclaim(3) == 0 and store.read(claim.id).progress == 0.25


def test_extend_never_shortens_a_lease(store):
    claim = claimed(store)
    for lease in (3600, 1):     # a worker over HTTP asks for an hour, and reports progress then
        assert store.extend([(claim.id, claim.attempt, None)], lease) == {claim.id}
    [(left,)] = store._execute(f"select date_part('epoch', lease_until - {taskmanager.NOW}) from tasks")
    assert 3000 < left <= 3600


def test_reclaim_fails_a_task_that_has_had_its_attempts(store):
    claim = claimed(store, max_attempts=2)
    for status in ("New", "Failed"):
        expire(store, claim.id)
        assert store.reclaim(3) == 1
        assert store.read(claim.id).status == status
        store.claim(1, LEASE)
    assert store.read(claim.id).error == "the worker died or was cut off during attempt 2 of 2"


def test_reclaim_uses_the_workers_max_attempts_where_the_task_has_none(store):
    claim = claimed(store)
    # once more, alone: it may not have been this task that killed the worker
    for status in ("New", "Failed"):
        expire(store, claim.id)
        store.reclaim(1)
        assert store.read(claim.id).status == status
        store.claim(1, LEASE)


def test_a_row_in_progress_without_a_lease_is_reclaimed(store):
    [(id,)] = sql(store, "insert into tasks (status) values ('In Progress')")
    assert store.reclaim(3) == 1
    assert store.read(id).status == "New"


# Cancelling, and trying again by hand

def test_cancel_ends_a_new_task(store):
    [id] = store.create([new_task({"delay": 60})])
    assert store.cancel(id).status == "Failed"
    row = store.read(id)
    assert (row.status, row.error, row.canceled, row.run_at) == ("Failed", "canceled", True, None)
    assert store.cancel(id).status == "Failed"     # again: no harm
    assert store.promote() == 0 and store.claim(1, LEASE) == []


def test_cancel_asks_the_holder(store):
    claim = claimed(store)
    before = store.read(claim.id)
    assert store.cancel(claim.id).status == "In Progress"
    held = [(claim.id, claim.attempt), (claim.id, claim.attempt + 1), (claim.id + 1, 1)]
    assert store.cancel_requests(held) == {(claim.id, claim.attempt)}
    # the status, and so updated_at, did not move
    assert store.read(claim.id) == before._replace(canceled=True)


@pytest.mark.parametrize("name", ["complete", "retry", "fail", "release"])
def test_a_task_that_was_canceled_ends_as_canceled_whatever_its_holder_says(store, name):
    claim = claimed(store)
    store.cancel(claim.id)
    assert VERBS[name](store, claim.id, claim.attempt) == {claim.id}
    row = store.read(claim.id)
    assert (row.status, row.error, row.result, row.run_at) == ("Failed", "canceled", None, None)


def test_a_task_that_was_canceled_is_not_run_again_when_its_worker_dies(store):
    claim = claimed(store)
    store.cancel(claim.id)
    expire(store, claim.id)
    store.reclaim(3)
    assert (store.read(claim.id).status, store.read(claim.id).error) == ("Failed", "canceled")


def test_cancel_of_a_finished_task_is_a_conflict(store):
    claim = claimed(store)
    store.complete([(claim.id, claim.attempt, None)])
    with pytest.raises(NotInState, match="Completed"):
        store.cancel(claim.id)
    with pytest.raises(TaskNotFound):
        store.cancel(10**30)


def test_retry_by_hand_begins_anew(store):
    old = claimed(store, max_attempts=1)
    store.fail([(old.id, old.attempt, "why")])
    store.retry_by_hand(old.id)
    row = store.read(old.id)
    assert (row.status, row.error, row.attempts) == ("New", None, 0)
    [claim] = store.claim(1, LEASE)
    assert (claim.attempts, claim.attempt) == (1, old.attempt + 1)      # the old number is not used again


def test_delete_is_for_tasks_that_nobody_runs(store):
    ids = store.create([NewTask()] * 4)
    done, failed, running = store.claim(3, LEASE)
    store.complete([(done.id, done.attempt, None)])
    store.fail([(failed.id, failed.attempt, "why")])
    with pytest.raises(NotInState, match="In Progress"):
        store.delete(running.id)
    for id in (done.id, failed.id, ids[3]):
        assert store.delete(id).id == id
        with pytest.raises(TaskNotFound):
            store.delete(id)
    assert [row.id for row in store.list_tasks()] == [running.id]


def test_retry_by_hand_is_for_failed_tasks(store):
    [id] = store.create()
    with pytest.raises(NotInState, match="New"):
        store.retry_by_hand(id)
    with pytest.raises(TaskNotFound):
        store.retry_by_hand(id + 1)


# By the clock

def test_promote_makes_ready_what_is_due_and_leaves_updated_at(store):
    early, late = store.create([new_task({"delay": 3600}), new_task({"delay": 7200})])
    for column in ("run_at", "updated_at"):
        set_time(store, early, column, -5)
    before = store.read(early)
    assert store.promote() == 1
    assert store.read(early) == before._replace(run_at=None)
    assert [claim.id for claim in store.claim(9, LEASE)] == [early]


def test_delete_old_deletes_what_was_finished_long_ago(store):
    ids = store.create([NewTask()] * 4)
    for claim in store.claim(3, LEASE):
        if claim.id == ids[0]:
            store.complete([(claim.id, claim.attempt, None)])
        elif claim.id == ids[1]:
            store.fail([(claim.id, claim.attempt, "why")])
    assert [store.delete_old(status, 1) for status in ("Completed", "Failed")] == [0, 0]
    for id in ids:
        set_time(store, id, "updated_at", -2 * 86400)
    assert [store.delete_old(status, 1) for status in ("Completed", "Failed")] == [1, 1]
    assert [row.id for row in store.list_tasks()] == ids[2:]      # In Progress and New stay, however old
    [id] = store.create()
    assert id == ids[-1] + 1                                 # and ids are not used again


def test_it_is_known_how_long_a_task_was_ready(store):
    new, due = store.create([NewTask(), new_task({"delay": 7200})])
    for id in (new, due):
        set_time(store, id, "created_at", -7200)
    set_time(store, due, "run_at", -3600)
    assert round(store.oldest_ready_seconds()) == 7200
    store.promote()
    store.claim(2, LEASE)
    assert "taskmanager_wait_seconds_sum 1080" in store.metrics.text({})       # two hours, and one, and a bit
    store.release([(new, 1)])
    store.claim(1, LEASE)
    assert "taskmanager_wait_seconds_sum 1080" in store.metrics.text({})
    assert store.count("In Progress") == 2


def test_the_oldest_ready_task_is_found_whatever_its_kind_and_priority(store):
    """Starved by more urgent ones, by other kinds, or by one with a lower id that became ready just now."""
    assert store.oldest_ready_seconds() == 0
    kinds = [{"kind": kind, "priority": priority} for kind in ("b", "a", "c") for priority in (-5, 0, 5)]
    ids = store.create([new_task(each) for each in kinds for _ in range(2)])
    for hours, id in enumerate(ids, 1):
        set_time(store, id, "created_at", -3600 * hours)
        store._state.figures.clear()       # measure it now
        assert round(store.oldest_ready_seconds()) == 3600 * hours


def test_a_listener_that_fails_is_logged_and_harms_nothing(store, caplog):
    told = []
    store.listeners[:] = [raising(ValueError("broken")), lambda: told.append(1)]
    assert store.create() == [1] and told == [1]
    assert "could not notify" in caplog.text and "broken" in caplog.text


def test_postgres_does_not_read_all_that_is_ready_for_the_oldest(postgres_database):
    store = taskmanager.open_store(postgres_database)
    store._execute("alter table tasks set (autovacuum_enabled = off)")
    store._execute("insert into tasks (kind) select 'k' || n % 5 from generate_series(1, 50000) n")
    plan = plan_of(store, taskmanager.OLDEST_READY, {})
    assert "Seq Scan" not in plan and "Sort" not in plan and max(
        int(rows) for rows in re.findall(r"actual .*?rows=(\d+)", plan)) == 1000
    store.close()


def test_apply_schema_may_be_done_again_and_at_once(database):
    at_once(*[lambda: taskmanager.open_store(database).create()] * 6)
    assert len(taskmanager.open_store(database).list_tasks()) == 6


@pytest.mark.parametrize(
    "statement, index",
    [
        ("CLAIM", "tasks_claim_kind"),
        ("PROMOTE", "tasks_promote"),
        ("REPEAT", "tasks_repeat"),
        ("UNSCHEDULED", "tasks_repeat"),
        ("DELETE_OLD", "tasks_finished"),
        ("FINISHED", "tasks_finished"),
        ("RECLAIM", "tasks_list_status"),
    ],
)
def test_sqlite_takes_the_index_that_was_made_for_the_statement(sqlite_database, statement, index):
    store = taskmanager.open_store(sqlite_database)
    plan = store._execute(
        "explain query plan " + getattr(taskmanager, statement),
        {
            "limit": 1,
            "size": 1,
            "lease": 1,
            "kind": "default",
            "age": 1,
            "max_attempts": 1,
            "status": "Failed",
            "worker": "",
            "busy": 0,
            "single": False,
            "kept": 0,
            "after": 0,
            "urgency": -32767,
            "first": 0,
        },
    )
    assert any(f" INDEX {index}" in row[-1] for row in plan)


ROWS = {
    "READ": (5,),
    "COMPLETE": (5, 1, None, None),
    "RETRY": (5, 1, "why", 1.0, "retried"),
    "FAIL": (5, 1, "why", None, "failed"),
    "RELEASE": (5, 1),
    "EXTEND": (5, 1, None),
    "SCHEDULE": (5, 1, datetime(2999, 1, 1)),
    "CANCEL_REQUESTED": (5, 1),
    "READY_KINDS": ("default", -32767, 0),
}
PLANS = {
    "CLAIM": "tasks_claim_kind",
    "PROMOTE": "tasks_promote",
    "REPEAT": "tasks_repeat",
    "UNSCHEDULED": "tasks_repeat",
    "DELETE_OLD": "tasks_finished",
    "FINISHED": "tasks_finished",
    "RECLAIM": "tasks_list_status",
    "HELD_BY": "tasks_list_status",
    "OLDEST_READY": "tasks_claim_kind",
    **dict.fromkeys(ROWS, "tasks_pkey"),
    "SCHEDULE": "tasks_(pkey|repeat)",
    "READY_KINDS": "tasks_claim_kind",
    "SEARCH_REPEATING": "tasks_repeat",
    # both by the id
    **dict.fromkeys(("CANCEL", "DELETE", "RETRY_BY_HAND", "ATTEMPTS"), "tasks_(pkey|list_status)"),
}


@pytest.mark.parametrize("statistics", [True, False], ids=["analyzed", "new"])
def test_postgresql_takes_the_index_that_was_made_for_the_statement(postgres_database, statistics):
    # 30,000 tasks, most of which have ended, on a table that has just been analyzed, or never
    store = taskmanager.open_store(postgres_database)
    store._execute("alter table tasks set (autovacuum_enabled = off)")
    for status, many, run_at in (
            ("Completed", 27_000, "null"), ("Failed", 1000, "null"), ("In Progress", 1000, "null"),
            ("New", 500, "null"), ("New", 500, "now()")):
        store._execute(f"""
            insert into tasks (status, attempt, run_at, updated_at, lease_until)
            select '{status}', {int(status != 'New')}, {run_at}, now() - n * interval '1 minute',
                   case '{status}' when 'In Progress' then now() + interval '1 minute' end
            from   generate_series(1, {many}) as n""")
    if statistics:
        store._execute("analyze tasks")
    usual = {"id": 5, "limit": 4, "size": 1, "lease": 1, "kind": "default", "age": 86400,
             "max_attempts": 1, "worker": "",
             "status": "Failed", "busy": 0, "single": False, "kept": 0, "attempt": 1, "after": 0,
             "urgency": -32767, "first": 0,
             "last": taskmanager.MAX_ID, "completed": True, "failed": True, "kinds": None, "pattern": None,
             "created_after": None, "created_before": None}
    for statement, index in PLANS.items():
        rows = [ROWS[statement]] * 8 if statement in ROWS else []
        text = getattr(taskmanager, statement)
        params = usual | (store._rows(text, rows) if rows else {})
        plan = "\n".join([statement, *(line for line, in store._execute(f"explain {text}", params))])
        assert re.search(rf"Index (Only )?Scan (using|on) {index}\b", plan), plan
        assert "Seq Scan on tasks" not in plan, plan
        assert "Sort Key: tasks" not in plan or statement == "RECLAIM", plan
    store.close()


@pytest.mark.parametrize("statistics", [True, False], ids=["analyzed", "new"])
def test_a_prepared_statement_reads_no_more_of_a_large_table_than_it_needs(postgres_database, statistics):
    """One plan for all parameters: the only one that is made, since it is not known what they will be."""
    store = taskmanager.open_store(postgres_database)
    store._execute("alter table tasks set (autovacuum_enabled = off)")
    store._execute("insert into tasks (status) select 'New' from generate_series(1, 30000)")
    if statistics:
        store._execute("analyze tasks")
    params = {"id": 5, "limit": 8, "size": taskmanager.MAX_PAGE_BYTES, "lease": 30.0, "kind": "default",
              "max_attempts": 1, "worker": "w", "status": None, "attempt": None, "busy": 0.0, "single": False,
              "new": True, "in_progress": False, "completed": False, "failed": False,
              "urgency": -32767, "first": 0}
    batches = {taskmanager.CREATE: (1, *NewTask()),
               **{getattr(taskmanager, name): row for name, row in ROWS.items()}}
    for statement in taskmanager.PREPARED:
        name, prepare, execute = taskmanager.prepared(statement)
        batch = [batches[statement]] * 8 if statement in batches else []
        params["after"] = taskmanager.MAX_ID if "id < %(after)s" in statement else 0
        given = params | (store._rows(statement, batch) if batch else {})
        with store._state.pool.connection() as (connection, _), connection.cursor() as cursor:
            cursor.execute(prepare)
            cursor.execute(f"explain analyze {execute}", given)
            plan = "\n".join([statement, *(line for line, in cursor)])
        assert "Seq Scan on tasks" not in plan and not re.search(r"rows=\d{4,} loops", plan), plan
    store.close()


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("statuses, index", [([], "tasks_pkey"), (["Failed"], "tasks_list_status"),
                                             (["New", "Failed"], "tasks_list_status")],
                         ids=["all", "one status", "two"])
def test_a_page_is_read_from_an_index_in_order(postgres_database, monkeypatch, statuses, index, order):
    """Whatever many tasks of a status there are, and wherever the few of another one stand."""
    store = taskmanager.open_store(postgres_database)
    store._execute("""insert into tasks (status) select case when n % 10 = 0 then 'Failed' else 'New' end
                      from generate_series(1, 50000) as n""")
    store._execute("analyze tasks")
    plans, execute = [], store._execute

    def explain(sql, params):
        plans.append(plan_of(store, sql, params))
        return execute(sql, params)
    monkeypatch.setattr(store, "_execute", explain)
    assert len(store.list_tasks(*statuses, limit=20, order=order)) == 20
    assert re.search(rf"Index (Only )?Scan (Backward )?using {index} ", plans[0]), plans[0]
    plan = plans[0].split("Execution Time")[0]
    assert not re.search(r"Seq Scan on tasks|Bitmap|rows=\d{3,} loops", plan), plan
    store.close()


def test_postgres_does_not_compare_all_tasks_under_way_with_each_of_a_batch(postgres_database):
    """Tasks were created by the thousand, autovacuum has counted none that runs, and then they are done."""
    store = taskmanager.open_store(postgres_database)
    store._execute("insert into tasks (status) select 'New' from generate_series(1, 20000)")
    store._execute("analyze tasks")
    rows = [store.claim(500, LEASE) for _ in range(4)][-1]
    ends = [(row.id, row.attempt, None, None) for row in rows]
    plan = plan_of(store, taskmanager.COMPLETE, store._rows(taskmanager.COMPLETE, ends))
    assert "rows=500 " in plan and "Rows Removed by Join Filter" not in plan
    store.close()


def test_postgres_does_not_sort_all_that_is_ready_to_claim_a_few(postgres_database):
    """Many tasks came at once, before autovacuum has ever looked at the table."""
    store = taskmanager.open_store(postgres_database)
    store._execute("alter table tasks set (autovacuum_enabled = off)")
    store._execute("insert into tasks (status) select 'New' from generate_series(1, 200000)")
    plan = plan_of(store, taskmanager.CLAIM, {"limit": 8, "lease": 30, "kind": "default",
                                                "size": taskmanager.MAX_PAGE_BYTES,
                                              "worker": "w", "busy": 0, "single": False,
                                              "urgency": -32767, "first": 0})
    assert "rows=8 " in plan and "rows=200000 " not in plan
    store.close()


# A transaction that somebody keeps open

@pytest.fixture
def on_postgres(postgres_database):
    store = taskmanager.open_store(postgres_database)
    yield store
    store.close()


@pytest.fixture
def later(monkeypatch):
    """later(): a second has passed. A claim from the front always counts as slow."""
    monkeypatch.setattr(taskmanager, "SLOW_CLAIM", -1.0)
    clock = SimpleNamespace(**{name: getattr(time, name) for name in ("time", "sleep")}, ahead=0.0)
    clock.monotonic = lambda: clock.ahead
    monkeypatch.setattr(taskmanager, "time", clock)

    def later():
        clock.ahead += 1.0
    return later


def taken(store, limit):
    return [row.id for row in store.claim(limit, LEASE)]


def test_a_claim_that_does_not_look_at_the_front_misses_nothing_for_long(on_postgres, later):
    store = on_postgres
    ids = store.create([NewTask()] * 6)
    later()
    assert taken(store, 2) == ids[:2]
    [urgent] = store.create([NewTask(priority=1)])
    store._claim_start("default")._return_at = 2.0     # as if that claim had taken long
    assert taken(store, 2) == ids[2:4]
    later()
    assert taken(store, 1) == [urgent]


@pytest.mark.parametrize("at_the_front, elsewhere, begun_elsewhere", [
    (0.03, 0.001, 17),      # entries of what was claimed lie before the queue
    (0.03, 0.028, 1),       # the database is far away
])
def test_claims_pass_over_the_front_only_when_it_is_slower_than_another_place(
        on_postgres, monkeypatch, at_the_front, elsewhere, begun_elsewhere):
    clock = SimpleNamespace(time=time.time, sleep=time.sleep, now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(taskmanager, "time", clock)
    store, begun = on_postgres, []
    execute = store._execute

    def slow(sql, params=(), *args, **options):
        if sql == taskmanager.CLAIM:
            begun.append(params["first"] > 0)
            clock.now += elsewhere if begun[-1] else at_the_front
        return execute(sql, params, *args, **options)

    monkeypatch.setattr(store, "_execute", slow)
    store.create([NewTask()] * 20)
    for _ in range(20):
        assert len(taken(store, 1)) == 1
    assert begun[:4] == [False, False, False, True] and sum(begun) == begun_elsewhere


def test_no_claim_is_answered_with_nothing_while_there_is_a_task(on_postgres, later):
    store = on_postgres
    ids = store.create([NewTask()] * 3)
    later()
    assert taken(store, 3) == ids
    store._claim_start("default")._return_at = 2.0
    store.release([(ids[0], 1)])
    assert taken(store, 8) == [ids[0]]
    store.release([(ids[1], 1)])
    store._claim_start("default")._return_at = 2.0
    assert store.ready_kinds(["default", "other"]).keys() == {"default"}


def test_the_look_for_ready_kinds_tells_the_claims_where_to_begin(on_postgres, later, monkeypatch):
    store = on_postgres
    ids = store.create([NewTask()] * 3)
    later()
    assert taken(store, 2) == ids[:2]
    store.release([(ids[0], 1)])
    later()
    monkeypatch.setattr(taskmanager.ClaimStart, "measured",
                        lambda start, place, seconds: setattr(start, "_return_at", 99.0))
    assert store.ready_kinds(["default"]).keys() == {"default"}
    assert taken(store, 2) == [ids[0], ids[2]]


def test_under_a_transaction_that_is_kept_open_a_claim_does_not_walk_over_all_that_was_claimed(
        postgres_database):
    """A backup or a report reads for hours: PostgreSQL keeps the index entries of all claimed since then."""
    import psycopg2
    store = taskmanager.open_store(postgres_database)
    store.create([NewTask()] * 4000)
    with contextlib.closing(psycopg2.connect(postgres_database)) as report:
        report.set_session("REPEATABLE READ")
        report.cursor().execute("select count(*) from tasks")
        for _ in range(7):
            store.claim(500, LEASE)

        def pages(place):
            params = {"limit": 8, "lease": 30, "kind": "default", "size": taskmanager.MAX_PAGE_BYTES,
                      "worker": "w", "busy": 0, "single": False, "urgency": place[0], "first": place[1]}
            plan = store._execute("explain (analyze, buffers)" + taskmanager.CLAIM, params)
            text = " ".join(line for line, in plan)
            return int(re.findall(r"using tasks_claim_kind.*?shared hit=(\d+)", text)[0])
        from_last, from_front = pages(store._claim_start("default").last), pages(taskmanager.ClaimStart.FRONT)
    assert from_front > 60 and from_last < 15
    store.close()


def test_both_databases_have_the_same_columns(sqlite_database, postgres_database):
    of_sqlite = [
        name
        for (name,) in taskmanager.open_store(sqlite_database)._execute(
            "select name from pragma_table_xinfo('tasks')"
        )
    ]
    of_postgres = [name for name, in taskmanager.open_store(postgres_database)._execute(
        "select attname from pg_attribute where attrelid = 'tasks'::regclass and attnum > 0")]
    assert sorted(of_sqlite) == sorted(of_postgres)
    indexes = re.compile(r"create (?:unique )?index\s+if not exists (\w+)\s+on tasks \((.*?)\)")
    assert indexes.findall(taskmanager.SQLiteStore.INDEXES) == indexes.findall(
        (taskmanager.HERE / "schema.sql").read_text()
    )


def test_text_is_kept_whatever_the_encoding_of_the_client_would_be(postgres_database, monkeypatch):
    # as it is by default with a database made under LANG=C
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    store = taskmanager.open_store(postgres_database)
    [id] = store.create([new_task({"payload": "дом"})])
    assert store.read(id).payload == '"дом"'
    store.close()


def test_a_task_of_the_lowest_and_of_the_highest_priority_is_claimed(store):
    low, high = store.create([new_task({"priority": -32768}), new_task({"priority": 32767})])
    assert [row.id for row in store.claim(2, 30)] == [high, low]


# What plain SQL may write

FIRST_TIME = {"sqlite": "-62135596800", "postgres": "'0001-01-01'"}
LAST_TIME = {"sqlite": "253402300799.999", "postgres": "'9999-12-31 23:59:59.999999'"}
TOO_LATE = {"sqlite": "253402300800", "postgres": "'10000-01-01'"}
TEXT = {     # so many bytes
    "sqlite": lambda many: f"substr(replace(hex(zeroblob({many})), '0', 'a'), 1, {many})",
    "postgres": lambda many: f"repeat('a', {many})",
}


def json_text(text):
    return {"sqlite": f"'\"' || {text['sqlite']} || '\"'", "postgres": f"to_json({text['postgres']})"}


def long_text(many):
    return {kind: write(many) for kind, write in TEXT.items()}


# By column: values that both tables take, and values that both refuse.
RULES = {
    "id": (["1", "9007199254740991"], ["0", "-1", "9007199254740992"]),
    "status": (["'New'", "'Failed'"], ["'new'", "'Done'", "''", "null"]),
    **dict.fromkeys(["run_at", "lease_until", "ready_at", "started_at", "planned_at"],
                    ([FIRST_TIME, LAST_TIME, "null"], [TOO_LATE, "'soon'"])),
    **dict.fromkeys(["created_at", "updated_at"], ([FIRST_TIME, LAST_TIME], [TOO_LATE, "'soon'", "null"])),
    "priority": (["-32768", "32767"], ["-32769", "32768", "null", "'high'"]),
    "attempt": (["0", "2147483647"], ["-1", "2147483648", "null"]),
    "uncounted": (["0"], ["-1", "1", "null"]),
    "earlier": (["0", "2147483647"], ["2147483648", "null"]),
    "max_attempts": (["1", "2147483647", "null"], ["0", "2147483648"]),
    "timeout": (["0.001", "9e98", "null"], ["0", "-1", "1e99", "'long'"]),
    "progress": (["0", "1", "null"], ["-0.1", "1.1", "'half'"]),
    **dict.fromkeys(["canceled", "alone"], (["true", "false"], ["null", "'maybe'"])),
    "kind": (["'a'", "'0_-'", long_text(63)],
             ["''", "'-a'", "'_a'", "'A'", "'a b'", "'é'", "null", long_text(64),
              {"sqlite": "cast(x'6100' as text)", "postgres": "'a' || chr(0)"}]),
    "error": ([long_text(1048576)], [long_text(1048577)]),
    "history": ([long_text(1048576)], [long_text(1048577)]),
    "idempotency_key": ([long_text(2000)], [long_text(2001)]),
    "repeat": (["'60'", json_text(long_text(998))], ["'{'", json_text(long_text(999))]),
    "payload": (["'null'", json_text(long_text(33554430))], ["'{'", "''", json_text(long_text(33554431))]),
    "result": (["'null'"], ["'{'", json_text(long_text(33554431))]),
}


@pytest.mark.parametrize("column", RULES)
def test_both_tables_take_and_refuse_the_same(store, column):
    kind = "sqlite" if isinstance(store, taskmanager.SQLiteStore) else "postgres"
    taken, refused = RULES[column]
    for value in taken + refused:
        text = value if isinstance(value, str) else value[kind]
        refusal = pytest.raises((Invalid, Unavailable)) if value in refused else contextlib.nullcontext()
        with refusal:
            sql(store, f"insert into tasks ({column}) values ({text})")
        sql(store, "delete from tasks")


def test_every_rule_of_the_table_has_its_values(postgres_database):
    store = taskmanager.open_store(postgres_database)
    checked = store._execute("""
        select attname from pg_constraint join pg_attribute on attrelid = conrelid and attnum = any(conkey)
        where  conrelid = to_regclass('tasks') and contype = 'c'""")
    assert {column for column, in checked} - {"size"} <= RULES.keys()       # that of payload and result
    store.close()
