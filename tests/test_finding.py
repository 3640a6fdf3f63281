"""Filters, pages that look at a limited number of tasks, many tasks changed at once, numbers for a chart."""

import itertools
import json
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from urllib.parse import quote, urlencode
from wsgiref.util import setup_testing_defaults

import pytest

import taskmanager
from helpers import LEASE, at_once, create, eventually, http, is_problem, plan_of, set_time, sql
from taskmanager import Filters, NewTask, new_task

NOTHING = Filters(q="nothing has this")


def found(store, order="asc", limit=1000, **filters):
    """The ids of all tasks that meet the filters, page by page."""
    ids, after = [], None
    while True:
        rows, after = store.find_tasks(Filters(**filters), after, limit, order)
        ids += [row.id for row in rows]
        if after is None:
            return ids


def next_link(answer):
    """The address of the next page, or None; the path alone."""
    match = re.search('<([^>]*)>; rel="next"', answer.headers["Link"] or "")
    return match and match[1]


def of_each_status(store, many=1, **fields):
    """Tasks of each status, as many of each; their ids by status."""
    ids = store.create([new_task(fields)] * 4 * many)
    parts = {status: ids[n::4] for n, status in enumerate(taskmanager.STATUSES)}
    for status, part in parts.items():
        for id in part:
            sql(store, "update tasks set status = %(status)s, attempt = 1 where id = %(id)s",
                status=status, id=id)
    return parts


def test_a_list_shows_a_task_as_it_is_shown_alone(store, api):
    """The one is written by the database, and the other is not."""
    several = [{}, {"payload": None}, {"payload": {"a": [1, "ж\\\"\n\u2028 😀"]}},
               {"kind": "mail", "priority": -3}, {"max_attempts": 2, "timeout": 0.001}, {"timeout": 30},
               {"delay": 3600}, {"repeat": 1.5}, {"repeat": "0 3 * * mon", "timezone": "UTC"}]
    ids = store.create([new_task(fields) for fields in several])
    ids += store.create([new_task({}, 'a "key" ж')])
    claimed = store.claim(9, LEASE) + store.claim(9, LEASE, kind="mail")
    ends = [
        lambda *attempt: store.complete([(*attempt, None)]),
        lambda *attempt: store.complete([(*attempt, '{"a": "\\u0416 \\""}')]),
        lambda *attempt: store.fail([(*attempt, "why: 'ж' \\ \"\t\x7f\x1b")]),
        lambda *attempt: store.extend([(*attempt, 1 / 3)], LEASE),
        lambda *attempt: store.cancel(attempt[0]),
        lambda *attempt: store.release([attempt]),
    ]
    for row, end in zip(claimed, ends, strict=False):
        end(row.id, row.attempt)

    alone = [json.loads(store.read(id).to_json()) for id in ids]
    assert len({name for task in alone for name in task}) == 18, "not every field is tried"
    every = urlencode([("status", status) for status in taskmanager.STATUSES])
    for query in ("", every, "created_after=2020-01-01T00:00:00Z"):
        found = http("GET", f"{api}/tasks?{query}").json
        assert found == alone
        assert [list(task) for task in found] == [list(task) for task in alone]


# Filters

def test_a_list_has_the_tasks_that_meet_every_filter(store):
    a = create(store, kind="mail", payload="one")
    b = create(store, kind="report", payload="one")
    c = create(store, payload="two")
    store.cancel(b)
    assert found(store) == [a, b, c]
    assert found(store, kinds=["mail"]) == [a]
    assert found(store, kinds=["mail", "default", "none"]) == [a, c]
    assert found(store, kinds=["mai", "ail", "m.il", ".*"]) == []
    assert found(store, q="one") == [a, b]
    assert found(store, q="one", statuses=["Failed", "Completed"]) == [b]
    assert found(store, q="one", kinds=["mail"], statuses=["Failed"]) == []
    assert found(store, q="cancel") == [b]      # in its error


@pytest.mark.parametrize("text, q, is_found", [
    ("Straße in Zürich", "zÜRICH", True),
    ("ПРИВЕТ мир", "привет МИР", True),
    ("ΣΊΣΥΦΟΣ", "σίσυφος", True),
    ("Ölçüm ÉCOLE", "ölçüm école", True),
    ("𐐨𐐩", "𐐀𐐁", True),
    ("fi 🙂 ☃", "🙂 ☃", True),
    ("100%", "100%", True), ("1000", "100%", False), ("1000", "10_0", False), ("abc", "a.c", False),
    ("abc", "a*", False), ("a[b]c^$(d)|e+f?{2}", "A[B]C^$(D)|E+F?{2}", True), ("abc", "[abc]", False),
    ("***=x", "***=x", True), ("(?i)x", "(?I)X", True), ("a b", "A B", True),
    ("x-y#z&w~", "X-Y#Z&W~", True),
    (r"back\slash", r"back\\slash", True),      # as it stands in the JSON text
    ('a "quoted" word', r'\"QUOTED\"', True),
    ("x" * 5000 + "needle", "NEEDLE", True), ("needl", "needle", False),
])
def test_q_is_text_in_whatever_case_and_without_wildcards(store, text, q, is_found):
    id = create(store, payload={"text": text})
    assert found(store, q=q) == [id] * is_found
    if "\\" not in q:
        sql(store, "update tasks set payload = null, error = %(text)s where id = %(id)s", text=text, id=id)
        assert found(store, q=q) == [id] * is_found


@pytest.mark.sqlite
@pytest.mark.parametrize("q", ["a" * 199 + "b", "b" + "a" * 199, "a" * 99 + "b" + "a" * 100, "a" * 30 + "b"],
                         ids=["end", "begin", "middle", "short"])
def test_no_text_to_look_for_takes_long_however_alike_what_is_there(store, q):
    """On SQLite Python looks, and keeps all other threads of the process from going on meanwhile."""
    for _ in range(10):
        create(store, payload="a" * 1_000_000)
    began = time.process_time()
    assert found(store, q=q) == []
    assert time.process_time() - began < 1      # with a regular expression 5 s


@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII", "LATIN1", "WIN1251"])
def test_q_knows_the_case_of_every_letter_where_the_locale_knows_ascii_alone(empty_database, encoding):
    store = taskmanager.open_store(empty_database(
        f"template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"))
    id = create(store, payload="Желтый ÉCOLE ☃")
    store.fail([(id, store.claim(1, LEASE)[0].attempt, "ОШИБКА: école")])
    for q in ("желтЫЙ", "école ☃", "ошибка", "ÉCOLE"):
        assert found(store, q=q) == [id], q
    assert found(store, q="жёлтый") == []
    store.close()


def test_created_after_is_that_time_or_later_and_created_before_is_earlier(store):
    ids = store.create([NewTask()] * 3)
    noon = datetime(2024, 5, 1, 12)
    for n, id in enumerate(ids):
        moment = noon + n * timedelta(hours=1)
        sql(store, "update tasks set created_at = %(t)s where id = %(id)s", id=id, t=moment)
    assert found(store, created_after=noon) == ids
    assert found(store, created_before=noon) == []
    assert found(store, created_after=noon + timedelta(seconds=1)) == ids[1:]
    assert found(store, created_after=noon + timedelta(hours=1),
                 created_before=noon + timedelta(hours=2)) == ids[1:2]


@pytest.mark.parametrize("query, code", [
    ("q=", "out-of-range"), ("q=" + "x" * 201, "out-of-range"), ("q=a&q=b", "repeated-parameter"),
    ("q=a%00", "nul-character"), ("q=%ED%A0%80", "not-utf8"),
    ("kind=", "not-a-kind"), ("kind=Mail", "not-a-kind"), ("kind=mail%0a", "not-a-kind"),
    ("created_after=yesterday", "not-a-time"), ("created_before=", "not-a-time"),
    ("created_after=2024-01-01T00:00:00&created_after=2024-01-01T00:00:00", "repeated-parameter"),
    ("status=Done", "unknown-value"),
])
@pytest.mark.parametrize("method, path", [("GET", "/tasks"), ("DELETE", "/tasks"), ("POST", "/tasks/cancel"),
                                          ("POST", "/tasks/retry")])
def test_a_wrong_filter_is_refused(api, store, method, path, query, code):
    store.create()
    answer = http(method, f"{api}{path}?{query}")
    is_problem(answer, 400)
    assert [each["code"] for each in answer.json["errors"]] == [code]
    assert len(store.list_tasks()) == 1


def test_q_may_have_200_characters_of_any_language(api, store):
    q = "☃🙂\"\\&=#%+ ж" * 20
    create(store, payload=q)
    link = f"/tasks?{urlencode({'q': json.dumps(q[:100], ensure_ascii=False)[1:-1], 'limit': 1})}"
    assert len(http("GET", api + link).json) == 1
    assert http("GET", f"{api}/tasks?q={quote('🙂' * 200)}").json == []


# Pages

@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("statuses", [[], ["New"], ["New", "Failed"], list(taskmanager.STATUSES)],
                         ids=["all", "one", "two", "four"])
def test_pages_of_a_search_have_every_find_once_and_in_order(store, monkeypatch, order, statuses):
    monkeypatch.setattr(taskmanager, "SEARCH_ROWS", 7)
    dice = random.Random(str(statuses))
    ids = store.create([new_task({"payload": n, "kind": dice.choice(["a", "b"])}) for n in range(60)])
    for id in ids:
        sql(store, "update tasks set status = %(status)s, attempt = 1 where id = %(id)s",
            id=id, status=dice.choice(taskmanager.STATUSES))
    sql(store, "delete from tasks where id > 20 and id < 25")
    rows = store.list_tasks(order=order)
    for limit in (1, 3, 7, 100):
        wanted = [row.id for row in rows if row.status in (statuses or taskmanager.STATUSES)]
        assert found(store, order, limit, created_after=datetime(2000, 1, 1), statuses=statuses) == wanted
        wanted = [row.id for row in rows if row.kind == "a" and row.id in wanted]
        assert found(store, order, limit, kinds=["a"], statuses=statuses) == wanted
        wanted = [row.id for row in rows if row.id in wanted and "3" in row.payload]
        assert found(store, order, limit, kinds=["a"], q="3", statuses=statuses) == wanted


def test_a_page_looks_at_a_limited_number_of_tasks(store, monkeypatch):
    monkeypatch.setattr(taskmanager, "SEARCH_ROWS", 10)
    ids = store.create([NewTask()] * 25)
    assert store.find_tasks(NOTHING) == ([], ids[9])
    assert store.find_tasks(NOTHING, ids[9]) == ([], ids[19])
    assert store.find_tasks(NOTHING, ids[14]) == ([], None)     # exactly ten are left
    assert store.find_tasks(NOTHING, ids[19]) == ([], None)
    assert store.find_tasks(NOTHING, ids[-1]) == ([], None)
    assert store.find_tasks(NOTHING, order="desc") == ([], ids[15])
    assert store.find_tasks(NOTHING, ids[10], order="desc") == ([], None)
    assert store.find_tasks(NOTHING._replace(statuses=["Failed"])) == ([], None)


def test_a_page_looks_at_a_limited_number_of_bytes_but_at_one_task(store, monkeypatch):
    monkeypatch.setattr(taskmanager, "SEARCH_BYTES", 5000)
    ids = store.create([new_task({"payload": "x" * many}) for many in (9000, 2000, 2000, 2000, 10, 10)])
    assert store.find_tasks(NOTHING) == ([], ids[0])
    assert store.find_tasks(NOTHING, ids[0]) == ([], ids[3])
    assert store.find_tasks(NOTHING, ids[3]) == ([], None)


def test_a_page_of_large_finds_ends_early_and_has_a_next(store):
    ids = store.create([new_task({"payload": "x" * 400_000})] * 5)
    rows, after = store.find_tasks(Filters(q="xxx"))
    assert [row.id for row in rows] == ids[:3] and after == ids[2]
    assert found(store, q="xxx") == ids


def test_an_empty_page_has_a_link_to_the_next_with_all_the_filters(api, store, monkeypatch):
    monkeypatch.setattr(taskmanager, "SEARCH_ROWS", 2)
    store.create([NewTask()] * 5)
    last = create(store, payload="Ж & =", kind="mail")
    times = {"created_after": "2024-01-01T00:00:00.5Z", "created_before": "9000-01-01T02:00:00+02:00"}
    query = urlencode([("q", "ж & ="), ("kind", "mail"), ("kind", "x"), ("status", "New"),
                       ("status", "Failed"), *times.items(), ("limit", 3), ("order", "asc")])
    answer, pages = http("GET", f"{api}/tasks?{query}"), 1
    while not answer.json:
        answer, pages = http("GET", api + next_link(answer)), pages + 1
    assert [task["id"] for task in answer.json] == [last] and pages == 3 and not next_link(answer)
    first = re.search('<([^>]*)>; rel="first"', answer.headers["Link"])[1]
    assert "created_after=2024-01-01T00%3A00%3A00.500000&created_before=9000-01-01T00%3A00%3A00" in first
    assert http("GET", api + first).json == []


def test_a_page_is_read_once_for_those_that_ask_for_it_at_the_same_moment(store, monkeypatch):
    """The addresses in its links are each client's own."""
    create(store)
    app = taskmanager.create_app(store, taskmanager.Config(waiters=0))
    gate, reads, find_tasks = threading.Event(), [], store.find_tasks

    def wait(filters, after, limit, order):
        page = find_tasks(filters, after, limit, order)
        reads.append(limit)
        if len(reads) == 1:
            assert gate.wait(20)
        return page
    monkeypatch.setattr(store, "find_tasks", wait)
    monkeypatch.setattr(taskmanager.Batcher, "SLOW", 100)

    def get(limit, prefix):
        environ = {"PATH_INFO": "/tasks", "SCRIPT_NAME": prefix, "QUERY_STRING": f"limit={limit}"}
        setup_testing_defaults(environ)
        answered = {}
        body = app(environ, lambda status, headers, exc_info=None: answered.update(headers))
        return json.loads(b"".join(body)), re.search("<(.*?)>", answered["Link"])[1]

    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(get, 5, "/a")
        eventually(lambda: reads)
        assert get(6, "/a")[1] == "/a/tasks?limit=6"        # another page waits for nobody,
        assert get(5, "/b")[1] == "/b/tasks?limit=5"        # and is not given to others
        create(store)
        later = [pool.submit(get, 5, "/a") for _ in range(4)]
        eventually(lambda: len(app._pages["/a/", "limit=5"]._waiting) == 4)
        gate.set()
        # They came after a change, and see it.
        assert [len(call.result(20)[0]) for call in later] == [2] * 4
        assert len(first.result()[0]) == 1
    assert reads == [5, 6, 5, 5]
    eventually(lambda: not app._pages)


@pytest.mark.parametrize("filters, statement", [
    ({}, "LIST"), ({"statuses": ["New"]}, "LIST_STATUS"), ({"kinds": ["default"]}, "SEARCH"),
    ({"q": "x"}, "SEARCH")],
    ids=["all", "status", "kind", "text"])
def test_a_list_without_a_search_is_read_as_ever(store, monkeypatch, filters, statement):
    store.create()
    used, execute = [], store._execute
    monkeypatch.setattr(store, "_execute", lambda sql, params: used.append(sql) or execute(sql, params))
    store.find_tasks(Filters(**filters))
    assert used == [getattr(taskmanager, statement)]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("statuses", [[], ["Failed"], ["New", "Failed"]], ids=["all", "one status", "two"])
def test_postgresql_looks_at_no_more_than_it_is_told(postgres_database, monkeypatch, statuses, order):
    store = taskmanager.open_store(postgres_database)
    store._execute("""insert into tasks (status) select case when n % 10 = 0 then 'Failed' else 'New' end
                      from generate_series(1, 30000) as n""")
    store._execute("analyze tasks")
    monkeypatch.setattr(taskmanager, "SEARCH_ROWS", 90)
    plans, execute = [], store._execute
    monkeypatch.setattr(store, "_execute", lambda sql, params: (
        plans.append(plan_of(store, sql, params)) or execute(sql, params)))
    store.find_tasks(NOTHING._replace(statuses=statuses), limit=20, order=order)
    plan = plans[0].split("Execution Time")[0]
    assert not re.search(r"Seq Scan on tasks|Bitmap|rows=\d{3,} loops", plan), plan
    store.close()


def test_sqlite_looks_at_no_more_than_it_is_told(sqlite_database, monkeypatch):
    monkeypatch.setattr(taskmanager, "SEARCH_ROWS", 90)
    store = taskmanager.open_store(sqlite_database)
    store.create([new_task({"payload": 1})] * 2000)
    looks = []
    monkeypatch.setattr(store, "_match", lambda folded, text: looks.append(text))
    for statuses in ([], ["New"], ["Failed", "New"]):
        looks.clear()
        store.close()
        store.find_tasks(NOTHING._replace(statuses=statuses))
        assert len([each for each in looks if each]) == 90
    plan = "\n".join(row[-1] for row in store._execute("explain query plan " + taskmanager.SEARCH, {
        "after": 0, "limit": 1, "size": 1, "rows": 1, "bytes": 1, "kinds": None, "pattern": "x", "any": False,
        "created_after": None, "created_before": None, "new": True, "in_progress": True, "completed": True,
        "failed": True}))
    assert not re.search(r"SCAN tasks(?! USING (COVERING )?INDEX)", plan), plan


# Many at once

ACTIONS = {     # the request, what it is good for, and what becomes of these
    "cancel": ("POST", "/tasks/cancel", {"New": "Failed", "In Progress": "In Progress"}),
    "retry": ("POST", "/tasks/retry", {"Failed": "New"}),
    "delete": ("DELETE", "/tasks", {"New": None, "Completed": None, "Failed": None}),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_changes_the_tasks_that_it_is_for_and_no_others(api, store, action):
    method, path, outcome = ACTIONS[action]
    ids = of_each_status(store, 3, kind="mail")
    others = of_each_status(store, 2)
    before = {row.id: row for row in store.list_tasks()}

    answer = http(method, f"{api}{path}?kind=mail")
    assert (answer.status, answer.json, answer.headers["Link"]) == (200, {"count": 3 * len(outcome)}, None)
    after = {row.id: row for row in store.list_tasks()}
    for status, part in ids.items():
        for id in part:
            assert (after[id].status if id in after else None) == outcome.get(status, status)
            assert status in outcome or after[id] == before[id]
    for id in itertools.chain(*others.values()):
        assert after[id] == before[id]
    assert http(method, f"{api}{path}?kind=mail").json == {"count": 0}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_heeds_the_status_that_is_asked_for(api, store, action):
    method, path, outcome = ACTIONS[action]
    of_each_status(store, 2)
    for status in taskmanager.STATUSES:
        before = {row.id: row for row in store.list_tasks()}
        assert http(method, f"{api}{path}?{urlencode({'status': status})}").json == {
            "count": 2 * (status in outcome)}
        after = {row.id: row for row in store.list_tasks()}
        assert all(after[id] == row for id, row in before.items() if row.status != status)
        sql(store, "delete from tasks")
        of_each_status(store, 2)


def test_tasks_that_are_canceled_end_or_are_marked_and_count_once(store):
    ids = of_each_status(store)
    assert store.cancel_all(Filters(statuses=taskmanager.STATUSES)) == (2, 0, None)
    new, running = store.read(ids["New"][0]), store.read(ids["In Progress"][0])
    assert (new.status, new.error, new.canceled) == ("Failed", "canceled", True)
    assert (running.status, running.canceled) == ("In Progress", True)
    assert store.cancel_all(Filters(statuses=taskmanager.STATUSES)) == (0, 0, None)
    assert 'event="canceled"} 1\n' in store.metrics.text({})        # the other one when it has ended
    store.release([(running.id, 1)])
    assert 'event="canceled"} 2\n' in store.metrics.text({})
    one = create(store, delay=60)
    assert store.cancel_all(Filters(statuses=["New"])) == (1, 0, None)
    assert store.cancel(one).run_at is None


def test_a_task_that_is_retried_is_as_one_that_is_retried_alone(store):
    ids = store.create([NewTask()] * 2)
    rows = store.claim(2, LEASE, single=True)
    for row in rows:
        store.cancel(row.id)
    store.fail([(row.id, row.attempt, "why") for row in rows])     # at the same second
    woken = []
    store.listeners.append(lambda: woken.append(1))
    store.retry_by_hand(ids[0])
    assert store.retry_all(Filters(q="CANCEL")) == (1, 0, None)
    assert len(woken) == 2
    columns = "status, error, run_at, uncounted, alone, canceled, attempt, ready_at is null, lease_until"
    one, other = store._execute(f"select {columns} from tasks order by id")
    assert one == other
    assert store.attempts(ids[0]) == store.attempts(ids[1]) != []
    assert [row.id for row in store.claim(2, LEASE)] == ids


def test_what_is_between_two_runs_is_canceled_with_the_others_and_retried_where_its_status_is_named(store):
    ids = of_each_status(store, 2, repeat="@daily")
    done, failed = ids["Completed"], ids["Failed"]
    everything = Filters(kinds=["default"])
    assert store.retry_all(Filters(statuses=["Completed"], q="none")) == (0, 0, None)
    sql(store, "update tasks set result = '1' where id = %(id)s", id=done[0])
    assert store.retry_all(everything) == (2, 0, None)
    assert [store.read(id).status for id in failed + done] == ["New"] * 2 + ["Completed"] * 2
    assert store.cancel_all(everything._replace(q="none")) == (0, 0, None)
    assert store.cancel_all(everything) == (8, 0, None)
    assert store.cancel_all(everything) == (0, 0, None)     # they were canceled
    assert store.retry_all(Filters(statuses=["Completed", "New"])) == (2, 0, None)
    assert (store.read(done[0]).status, store.read(done[0]).result) == ("New", None)

    [last] = of_each_status(store, repeat=60)["Completed"]
    plain = of_each_status(store)["Completed"]
    set_time(store, last, "run_at", 60)
    assert store.cancel_all(Filters(statuses=["Completed"])) == (1, 0, None)
    row = store.read(last)
    assert (row.status, row.repeat, row.run_at, row.canceled) == ("Completed", "60", None, True)
    assert store.retry_all(Filters(statuses=["Completed"])) == (1, 0, None)
    assert store.read(plain[0]).status == "Completed"


def test_of_what_is_between_two_runs_each_is_canceled_once_page_by_page(store):
    ids = store.create([NewTask(), new_task({"repeat": 60})] * 10)
    store.complete([(row.id, row.attempt, None) for row in store.claim(15, LEASE)])
    counts, after = [], None
    while not counts or after:
        count, _, after = store.cancel_all(Filters(kinds=["default"]), after, 4)
        counts.append(count)
    assert counts == [4, 4, 4, 0]       # 5 that are New, 7 that are between two runs
    assert {row.id for row in store.list_tasks() if row.canceled} == {*ids[1::2], *ids[15:]}


def test_an_action_goes_on_where_it_ended(api, store):
    store.create([new_task({"kind": "mail", "payload": "Ж"})] * 2500 + [NewTask()] * 10)
    address, counts = f"/tasks/cancel?kind=mail&q={quote('ж')}&status=New&status=In+Progress", []
    while address:
        answer = http("POST", api + address)
        counts.append(answer.json["count"])
        address = next_link(answer)
    assert counts == [1000, 1000, 500]
    assert len(found(store, statuses=["Failed"])) == 2500


def test_an_action_that_finds_nothing_in_its_reach_may_still_have_more(api, store, monkeypatch):
    monkeypatch.setattr(taskmanager, "SEARCH_ROWS", 10)
    store.create([NewTask()] * 15 + [new_task({"payload": "here"})])
    answer = http("DELETE", f"{api}/tasks?q=HERE")
    assert answer.json == {"count": 0}
    assert next_link(answer) == "/tasks?q=HERE&after=10"
    assert http("DELETE", api + next_link(answer)).json == {"count": 1}
    assert len(store.list_tasks()) == 15


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_needs_a_filter(api, store, action):
    method, path, _ = ACTIONS[action]
    of_each_status(store)
    before = store.list_tasks()
    for query in ("", "?after=0"):
        answer = http(method, f"{api}{path}{query}")
        is_problem(answer, 400)
        assert answer.json["errors"][0]["code"] == "missing-parameter"
    for query in ("?status=New&limit=1", "?status=New&order=desc", "?Status=New"):
        assert http(method, f"{api}{path}{query}").json["errors"][0]["code"] == "unknown-parameter"
    assert is_problem(http(method, f"{api}{path}?status=New", [1]), 400)
    assert store.list_tasks() == before


def test_a_task_that_another_table_refers_to_keeps_no_other_from_being_deleted(postgres_database, serve):
    store = taskmanager.open_store(postgres_database)
    api = serve(store)
    ids = store.create([NewTask()] * 1100)
    kept = [ids[0], ids[7], ids[500], ids[-1]]
    store._execute("create table invoices (task bigint references tasks)")
    for id in kept:
        store._execute("insert into invoices values (%(id)s)", {"id": id})
    first = http("DELETE", f"{api}/tasks?status=New")
    assert first.json == {"count": 997, "refused": 3}
    assert http("DELETE", api + next_link(first)).json == {"count": 99, "refused": 1}
    assert [row.id for row in store.list_tasks()] == kept
    is_problem(http("DELETE", f"{api}/tasks/{kept[0]}"), 400)
    store.close()


@pytest.mark.parametrize("action", ACTIONS)
def test_if_match_does_not_apply_to_many(api, store, action):
    method, path, outcome = ACTIONS[action]
    of_each_status(store)
    assert http(method, f"{api}{path}?kind=default", If_Match='"x"').json == {"count": len(outcome)}


def test_an_action_says_in_one_line_of_the_log_which_tasks(store, caplog):
    caplog.set_level("INFO")
    ids = of_each_status(store, 2)
    caplog.clear()
    store.cancel_all(Filters(statuses=["New", "In Progress"]))
    store.retry_all(Filters(statuses=["Failed"]))
    store.delete_all(NOTHING)
    running, ended = (",".join(map(str, ids[status])) for status in ("In Progress", "New"))
    again = ",".join(map(str, sorted(ids["New"] + ids["Failed"])))
    assert [record.getMessage() for record in caplog.records] == [
        f"requested cancellation tasks=2 by=client ids={running}",
        f"canceled tasks=2 by=client ids={ended}",
        f"retried tasks=4 by=client ids={again}"]


def test_an_action_neither_waits_for_a_task_that_is_locked_nor_changes_it(postgres_database):
    import psycopg2
    store = taskmanager.open_store(postgres_database)
    ids = store.create([NewTask()] * 3)
    other = psycopg2.connect(postgres_database)
    other.cursor().execute("select 1 from tasks where id = %s for update", [ids[1]])
    began = time.monotonic()
    assert store.cancel_all(Filters(statuses=["New"])) == (2, 0, None)
    assert store.retry_all(Filters(statuses=["Failed"])) == (2, 0, None)
    assert store.delete_all(Filters(statuses=["New"])) == (2, 0, None)
    assert time.monotonic() < began + 0.9
    other.close()
    assert [row.id for row in store.list_tasks("New")] == [ids[1]]
    store.close()


@pytest.mark.parametrize("action, before, change", [
    ("cancel", "New", "update tasks set status = 'In Progress'"),       # it is claimed
    ("cancel", "In Progress", "update tasks set status = 'New'"),       # it is released
    ("cancel", "New", "update tasks set status = 'Failed'"),            # another one cancels it
    ("retry", "Failed", "update tasks set status = 'New'"),
    ("delete", "New", "update tasks set status = 'In Progress'"),
    ("delete", "New", "update tasks set status = 'Completed'"),
    ("delete", "Completed", "update tasks set status = 'New'"),
    ("delete", "Failed", "update tasks set status = 'New'"),
    ("delete", "New", "delete from tasks"),
])
def test_what_has_another_status_since_it_was_found_is_left_out(store, monkeypatch, action, before, change):
    [id] = of_each_status(store)[before]
    search = store._search

    def search_and_lose(*args):
        there = search(*args)
        sql(store, f"{change} where id = %(id)s", id=id)
        return there
    monkeypatch.setattr(store, "_search", search_and_lose)
    assert getattr(store, f"{action}_all")(Filters(statuses=[before])) == (0, 0, None)
    assert "delete from" in change or not store.read(id).canceled


def test_actions_that_race_with_workers_lose_no_task(store):
    """Every task ends as Completed, Failed or deleted, each attempt has one outcome, and all counts agree."""
    many = 600
    for _ in range(2):
        sql(store, "delete from tasks")
        ids = set(store.create([new_task({"payload": n, "kind": "ab"[n % 2]}) for n in range(many)]))
        completed, claims, counts, over = [], [], Counter(), threading.Event()

        def work(name, ids=ids, completed=completed, claims=claims, over=over):
            dice = random.Random(name)
            while not over.is_set() or store.list_tasks("New", "In Progress", limit=1):
                rows = [row for kind in "ab" for row in store.claim(7, LEASE, name, kind=kind)]
                claims.extend((row.id, row.attempt) for row in rows)
                ends = [(row.id, row.attempt, "1") for row in rows]
                held = store.complete(ends[::2])
                held |= store.fail([(id, attempt, "why") for id, attempt, _ in ends[1::2]])
                completed.extend(id for id, *_ in ends[::2] if id in held)
                assert held == {row.id for row in rows}     # nothing takes a task from its worker
                if dice.random() < 0.3:
                    time.sleep(0.002)

        def act(name, statuses, counts=counts):
            do, dice = getattr(store, f"{name}_all"), random.Random(name)
            for _ in range(25):
                count, _, _ = do(Filters(statuses=statuses, kinds=[dice.choice("ab")]), limit=20)
                counts[name] += count
                time.sleep(0.004)

        def actions(over=over):
            at_once(lambda: act("retry", ["Failed"]), lambda: act("cancel", ["New", "In Progress"]),
                    lambda: act("delete", ["Completed", "Failed"]))
            over.set()

        before = events(store)
        at_once(actions, *(lambda n=n: work(f"worker {n}") for n in range(3)))
        rows = {row.id: row for row in store.list_tasks()}
        assert {row.status for row in rows.values()} <= {"Completed", "Failed"}
        assert len(set(claims)) == len(claims)
        counted = {event: value - before.get(event, 0) for event, value in events(store).items()}
        assert rows.keys() <= ids and len(ids) - len(rows) == counts["delete"] == counted["deleted"]
        assert counts["retry"] == counted["retried"] and counts["delete"] > 0 < counts["retry"]
        assert counts["cancel"] >= counted["canceled"] > 0
        assert all(row.canceled == (row.error == "canceled") for row in rows.values())
        assert all((row.status == "Completed") == (row.result is not None) for row in rows.values())


def events(store):
    return {name: int(value) for name, value in
            re.findall(r'task_events_total\{event="(\w+)"\} (\d+)', store.metrics.text({}))}


# The chart

def ended(store, ago, status="Completed"):
    id = create(store)
    sql(store, "update tasks set status = %(status)s where id = %(id)s", status=status, id=id)
    set_time(store, id, "updated_at", -ago)


def test_finished_tasks_are_counted_by_when_they_ended(api, store):
    for ago in (5, 65, 66, 290, 301, 4000, -50):
        ended(store, ago)
    for ago in (65, 239):
        ended(store, ago, "Failed")
    create(store)
    answer = http("GET", f"{api}/finished?seconds=300&bins=5")
    assert answer.json == {
        "since": answer.json["since"], "seconds": 300,
        "completed": [1, 0, 0, 2, 1], "failed": [0, 1, 0, 1, 0]}
    [(now,)] = store._execute(f"""select to_char({taskmanager.NOW}, 'YYYY-MM-DD"T"HH24:MI:SS')""")
    since = datetime.fromisoformat(now) - datetime.fromisoformat(answer.json["since"])
    assert timedelta(seconds=299) <= since <= timedelta(seconds=303)
    whole = http("GET", f"{api}/finished").json
    assert (whole["seconds"], sum(whole["completed"]), len(whole["failed"])) == (3600, 5, 60)


def test_where_nothing_has_ended_there_is_nothing(api):
    answer = http("GET", f"{api}/finished?seconds=60&bins=2").json
    assert (answer["completed"], answer["failed"]) == ([0, 0], [0, 0]) and answer["since"]


PARAMETERS = {"seconds": 3600, "bins": 60, "limit": 100}


def test_what_has_ended_is_found_by_its_status_and_time(sqlite_database, postgres_database):
    store = taskmanager.open_store(postgres_database)
    store._execute("""insert into tasks (status, updated_at)
                      select case when n % 100 = 0 then 'Failed' else 'Completed' end,
                             timezone('utc', now()) - n * interval '10 seconds'
                      from   generate_series(1, 30000) as n""")
    store._execute("analyze tasks")
    plan = plan_of(store, taskmanager.FINISHED_BINS, PARAMETERS)
    store.close()
    assert len(re.findall(r"Index (?:Only )?Scan Backward using tasks_finished", plan)) == 2, plan
    assert not re.search(r"Seq Scan on tasks|Bitmap|Rows Removed|rows=\d{4,} loops", plan), plan

    store = taskmanager.open_store(sqlite_database)
    plan = store._execute("explain query plan " + taskmanager.FINISHED_BINS, PARAMETERS)
    plan = "\n".join(row[-1] for row in plan)
    assert plan.count("COVERING INDEX tasks_finished (status=? AND updated_at>? AND updated_at<?)") == 2, plan


def test_what_is_too_much_to_count_is_not_known(store, monkeypatch):
    monkeypatch.setattr(taskmanager, "COUNTED_ROWS", 3)
    for ago in (5, 15, 25, 26, 55):
        ended(store, ago)
    ended(store, 45, "Failed")
    assert store.finished_bins(60, 6) | {"since": 0} == {
        "since": 0, "seconds": 60, "completed": [None, None, None, None, 1, 1], "failed": [0, 1, 0, 0, 0, 0]}


def test_what_was_counted_is_shown_again_for_a_hundred_times_as_long_as_it_took(store, monkeypatch):
    execute, counted = store._execute, []

    def slow(sql, params=None, *args):
        if sql == taskmanager.FINISHED_BINS:
            counted.append(1)
            time.sleep(0.05)
        return execute(sql, params, *args)
    monkeypatch.setattr(store, "_execute", slow)
    first = store.finished_bins(60, 6)
    ended(store, 5)
    assert [store.finished_bins(60, 6) for _ in range(20)] == [first] * 20 and counted == [1]
    assert sum(store.finished_bins(60, 5)["completed"]) == 1 and counted == [1, 1]
    eventually(lambda: sum(store.finished_bins(60, 6)["completed"]) == 1)


def test_spans_that_clients_like_to_ask_for_do_not_pile_up(store, monkeypatch):
    monkeypatch.setattr(store, "_execute", lambda *_: [("2024-01-01T00:00:00", None, None, 0)])
    for seconds in range(60, 2000):
        store.finished_bins(seconds, 5)
    assert len(store._state.figures) < 500


@pytest.mark.parametrize("query", ["seconds=59", "seconds=86401", "bins=0", "bins=145", "bins=x", "limit=1"])
def test_an_impossible_span_is_refused(api, query):
    is_problem(http("GET", f"{api}/finished?{query}"), 400)
