"""The HTTP API over a real socket, on both databases."""

import concurrent.futures
import json
import re
from urllib.parse import quote

import pytest

import taskmanager
from helpers import http, is_problem, raising, raw
from taskmanager import NewTask

CLOCK = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"


# The document, to the letter

@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "nonsense"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
    ids=lambda headers: headers.get("Content-Type", "none"),
)
def test_post_with_an_empty_body_creates_a_task(api, headers):
    answer = http("POST", f"{api}/tasks", b"", **headers)
    assert (answer.status, answer.body) == (201, b'{"id": 1}')
    assert answer.headers["Content-Type"] == "application/json"


def test_post_without_any_header_about_a_body_creates_a_task(api):
    assert raw(api, b"POST /tasks HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 201 Created\r\n")


def test_get_answers_with_the_documents_four_fields(api):
    http("POST", f"{api}/tasks")
    answer = http("GET", f"{api}/tasks/1")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert re.fullmatch(
        rf'{{"id": 1, "status": "New", "created_at": "{CLOCK}", "updated_at": "{CLOCK}"}}',
        answer.body.decode(),
    )


def test_a_list_has_all_tasks_or_those_with_a_status(api, store):
    assert http("GET", f"{api}/tasks").body == b"[]"
    store.create([NewTask()] * 3)
    store.claim(1, 30)
    assert [(task["id"], task["status"]) for task in http("GET", f"{api}/tasks").json] == [
        (1, "In Progress"),
        (2, "New"),
        (3, "New"),
    ]
    for status, ids in {"New": [2, 3], "In Progress": [1], "Completed": [], "Failed": []}.items():
        for written in (quote(status), status.replace(" ", "+")):
            answer = http("GET", f"{api}/tasks?status={written}")
            assert (answer.status, [task["id"] for task in answer.json]) == (200, ids)


# Bad input gets a clear answer

@pytest.mark.parametrize(
    "method, path", [("GET", ""), ("POST", "/cancel"), ("POST", "/retry")], ids=["read", "cancel", "retry"]
)
def test_an_id_that_no_task_has_is_not_found(api, store, method, path):
    store.create()
    for id in (
        "0",
        "2",
        "-1",
        "abc",
        "1.0",
        "007",
        "1e3",
        "9" * 30,
        str(2**63),
        str(2**63 - 1),
        "%D9%A1",
        "%EF%BC%91",
        "1%00",
        "%FF",
        "%FF1",
        "1%FF",
        "1%2F2",
        "null",
        "1;drop",
    ):
        is_problem(http(method, f"{api}/tasks/{id}{path}"), 404)


def test_an_unknown_status_is_refused_and_the_four_are_named(api):
    detail = is_problem(http("GET", f"{api}/tasks?status=Done"), 400)
    assert "'Done'" in detail
    assert "New, In Progress, Completed, Failed" in detail


@pytest.mark.parametrize(
    "query, said",
    [
        ("status=", "status: ''"),
        ("status=new", "status: 'new'"),
        ("status=%FF", "expected UTF-8"),
        ("limit=1&limit=2", "limit: expected once"),
        ("order=up", "order: 'up': expected asc or desc"),
        ("order=", "order"),
        ("limit=0", "limit: '0': expected a whole number from 1 to 1000"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=%D9%A1", "limit"),
        ("after=-1", "after"),
        ("after=" + "9" * 30, "after"),
        ("after=9223372036854775808", "after"),
        ("after=", "after"),
        ("statos=New", "statos: unknown; expected"),
        ("%C3%A9=1", "é: unknown; expected"),
    ],
    ids=lambda value: value[:20],
)
def test_a_wrong_query_is_refused_with_the_reason(api, query, said):
    assert said in is_problem(http("GET", f"{api}/tasks?{query}"), 400)


def test_a_body_that_is_wrong_creates_nothing_and_names_every_field(api, store):
    answer = http("POST", f"{api}/tasks", {"priority": "high", "color": 1})
    is_problem(answer, 400)
    assert [error["pointer"] for error in answer.json["errors"]] == ["/priority", "/color"]
    answer = http("POST", f"{api}/tasks", [{}, {"priority": "high"}, 7, {"payload": {}, "a/b~": 1}])
    is_problem(answer, 400)
    assert [error["pointer"] for error in answer.json["errors"]] == ["/1/priority", "/2", "/3/a~1b~0"]
    assert store.list_tasks() == []


def test_all_that_is_wrong_in_a_query_is_named_at_once(api):
    answer = http("GET", f"{api}/tasks?limit=0&after=x&status=Done&status=New&colour=red")
    is_problem(answer, 400)
    assert [error["parameter"] for error in answer.json["errors"]] == ["limit", "after", "status", "colour"]
    assert (
        len(http("GET", f"{api}/tasks?" + "&".join(f"p{n}" for n in range(1000))).json["errors"])
        == taskmanager.MAX_ERRORS
    )


@pytest.mark.parametrize("path, body, expected", [
    ("/tasks?limit=ten", None, {"parameter": "limit", "code": "wrong-type", "minimum": 1, "maximum": 1000}),
    ("/tasks?limit=0", None, {"parameter": "limit", "code": "out-of-range", "minimum": 1, "maximum": 1000}),
    ("/tasks?limit=-1", None, {"parameter": "limit", "code": "out-of-range", "minimum": 1, "maximum": 1000}),
    ("/tasks?order=up", None, {"parameter": "order", "code": "unknown-value"}),
    ("/tasks?order=asc&order=asc", None, {"parameter": "order", "code": "repeated-parameter"}),
    ("/tasks?statos=New", None, {"parameter": "statos", "code": "unknown-parameter"}),
    ("/tasks", {"color": 1}, {"pointer": "/color", "code": "unknown-field"}),
    ("/tasks", {"priority": 1.5},
     {"pointer": "/priority", "code": "wrong-type", "minimum": -32768, "maximum": 32767}),
    ("/tasks", {"priority": 1e99},
     {"pointer": "/priority", "code": "out-of-range", "minimum": -32768, "maximum": 32767}),
    ("/tasks", [{}] * 10_001, {"pointer": "", "code": "out-of-range", "minimum": 1, "maximum": 10_000}),
    ("/tasks/1/release", {}, {"pointer": "/attempt", "code": "missing-field"}),
    ("/tasks/1/fail", {"attempt": 1, "error": ""},
     {"pointer": "/error", "code": "out-of-range", "minimum": 1}),
    ("/tasks/1/fail", {"attempt": 1, "error": 7}, {"pointer": "/error", "code": "wrong-type"}),
    ("/tasks/1/cancel", {"attempt": 1}, {"pointer": "", "code": "unexpected-body"}),
], ids=lambda value: str(value)[:40])
def test_a_program_can_tell_what_is_wrong_without_reading_the_text(api, path, body, expected):
    answer = http("GET" if body is None else "POST", api + path, body)
    is_problem(answer, 400)
    [error] = answer.json["errors"]
    assert answer.json["code"] == "invalid-input" and error.pop("detail")
    assert error == expected


@pytest.mark.parametrize("method, path, headers, expected", [
    ("GET", "/nothing", {}, (404, "not-found", {})),
    ("PUT", "/tasks", {}, (405, "method-not-allowed", {})),
    ("GET", "/tasks/7", {}, (404, "task-not-found", {})),
    ("GET", "/tasks/x", {}, (404, "task-not-found", {})),
    ("GET", "/tasks", {"Host": "evil.example"}, (403, "host-not-allowed", {})),
    ("POST", "/tasks", {"Origin": "https://evil.example"}, (403, "cross-site-request", {})),
    ("POST", "/tasks/1/retry", {}, (409, "not-in-state", {"task_status": "New"})),
    ("POST", "/tasks/1/release", {}, (409, "lease-lost", {"task_status": "New"})),
    ("POST", "/tasks/1/cancel", {"If-Match": '"x"'}, (412, "precondition-failed", {})),
    ("POST", "/tasks/claim", {"Content-Type": "text/plain"}, (415, "unsupported-media-type", {})),
], ids=str)
def test_a_program_can_tell_which_error_it_is(api, store, method, path, headers, expected):
    store.create()
    body = {"attempt": 1} if path.endswith(("release", "claim")) else None
    answer = http(method, api + path, body, **headers)
    common = {"type", "title", "status", "code", "detail", "instance"}
    members = {name: value for name, value in answer.json.items() if name not in common}
    assert (answer.status, answer.json["code"], members) == expected


def test_a_field_in_the_query_is_not_overlooked(api, store):
    assert "priority: unknown; expected none" in is_problem(http("POST", f"{api}/tasks?priority=5"), 400)
    assert store.list_tasks() == []


def test_a_body_that_is_too_large_is_refused_and_creates_nothing(api, store):
    for announced, sent in (
        (b"Content-Length: 1048577", 1_048_577),
        (b"Content-Length: 5000000", 5_000_000),
        (b"Content-Length: 99999999999", 0),
    ):
        head, _, body = raw(
            api,
            b"POST /tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            + announced
            + b"\r\n\r\n"
            + b" " * sent,
        ).partition(b"\r\n\r\n")
        assert b" 413 " in head
        assert b"application/problem+json" in head
        assert "1048576" in json.loads(body)["detail"]
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert (
        b" 413 "
        in raw(
            api,
            b"POST /tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunk * 16
            + b"1\r\n \r\n0\r\n\r\n",
        ).split(b"\r\n")[0]
    )
    assert store.list_tasks() == []
    assert http("POST", f"{api}/tasks", b" " * 1_048_576).status == 201


def test_numbers_that_grow_when_they_are_written_out_have_a_limit_too(api, store):
    assert "when written out" in is_problem(
        http("POST", f"{api}/tasks", b'{"payload": [' + b"1e15," * 150_000 + b"1]}"), 400
    )
    assert http("POST", f"{api}/tasks", b'{"payload": [' + b"1," * 500_000 + b"1]}").status == 201


def test_a_body_in_chunks_is_read(api, store):
    head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 201 " in raw(api, head + b'4\r\n{"pa\r\nd\r\nyload": "ab"}\r\n0\r\n\r\n')
    assert store.read(1).payload == '"ab"'


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/nothing", 404),
        ("GET", "/tasks/", 404),
        ("GET", "/tasks/1/2", 404),
        ("POST", "/nothing", 404),
        ("GET", "/swagger/../taskmanager.py", 404),
        ("GET", "/swagger/%2e%2e%2fschema.sql", 404),
        ("GET", "/swagger/nothing.js", 404),
        ("GET", "/static/%2e%2e%2ftaskmanager.py", 404),
        ("GET", "/static/swagger", 404),
        ("POST", "/", 405),
        ("GET", "/a/../b", 404),
        ("GET", "//x", 404),
        ("GET", "/http://[x", 404),
        ("PUT", "/tasks", 405),
        ("DELETE", "/tasks/retry", 405),
        ("PUT", "/tasks/1", 405),
        ("GET", "/tasks/1/cancel", 405),
    ],
    ids=str,
)
def test_an_unknown_address_or_method_is_refused_as_a_problem_in_json(api, method, path, status):
    head, _, body = raw(
        api, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    ).partition(b"\r\n\r\n")
    assert f" {status} ".encode() in head
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status
    assert (b"\r\nAllow: " in head) == (status == 405)


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", 400),
        (b"GET /tasks HTTP/1.1\r\nbroken\r\n\r\n", 400),
        (b"GET /tasks HTTP/1.1\r\nX: " + b"x" * 65_600 + b"\r\n\r\n", 431),
        (b"POST /tasks HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
    ids=["no request", "length", "header", "large header", "encoding"],
)
def test_what_the_server_itself_refuses_is_a_problem_in_json_too(api, request_, status):
    head, _, body = raw(api, request_).partition(b"\r\n\r\n")
    assert f" {status} ".encode() in head
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status


def test_an_error_in_the_program_says_nothing_of_its_inside(store, serve, monkeypatch, caplog):
    monkeypatch.setattr(store, "find_tasks", raising(ZeroDivisionError("secret")))
    assert "secret" not in is_problem(http("GET", f"{serve(store)}/tasks"), 500)
    assert "ZeroDivisionError" in caplog.text


# More than the document

def test_post_takes_a_task(api):
    answer = http(
        "POST",
        f"{api}/tasks",
        {
            "payload": {"to": "дом"},
            "priority": 9,
            "run_at": "2999-01-01T00:00:00Z",
            "max_attempts": 5,
            "timeout": 60,
            "status": "New",
        },
    )
    assert (answer.status, answer.body, answer.headers["Location"]) == (201, b'{"id": 1}', "/tasks/1")
    answer = http("GET", f"{api}/tasks/1")
    assert "дом" in answer.body.decode()
    assert {name: answer.json[name] for name in list(answer.json)[4:]} == {
        "payload": {"to": "дом"},
        "max_attempts": 5,
        "priority": 9,
        "run_at": "2999-01-01T00:00:00",
        "timeout": 60.0,
    }


def test_a_payload_that_plain_sql_made_strange_is_still_json(api, store):
    store._execute("insert into tasks (payload) values ('{\"a\": \"\\ud800\", \"b\": 1e999}') returning id")
    assert http("GET", f"{api}/tasks/1").body.count(b"1e999") == 1


def test_lists_come_in_pages(api, store):
    store.create([NewTask()] * 1001)
    seen, url = [], f"{api}/tasks"
    while url:
        answer = http("GET", url)
        seen.append(len(answer.json))
        url = "next" in links(answer) and api + links(answer)["next"]
    assert seen == [1000, 1]
    answer = http("GET", f"{api}/tasks?limit=2&status=New&after=7")
    assert [task["id"] for task in answer.json] == [8, 9]
    assert (
        answer.headers["Link"]
        == '</tasks?status=New&limit=2>; rel="first", </tasks?status=New&limit=2&after=9>; rel="next"'
    )


def links(answer):
    """The addresses in the header Link, by their relation."""
    return {
        relation: address
        for address, relation in re.findall(r'<([^>]+)>; rel="(\w+)"', answer.headers["Link"])
    }


def test_a_list_of_several_statuses_is_paged_in_either_order(api, store):
    ids = store.create([NewTask()] * 9)
    for row in store.claim(3, 30):
        store.fail([(row.id, row.attempt, "why")])
    store.claim(3, 30)  # so: three Failed, three In Progress, three New
    for query, expected in {
        "": ids,
        "order=asc&status=New": ids[6:],
        "order=desc": ids[::-1],
        "status=New&status=Failed": ids[:3] + ids[6:],
        "order=desc&status=Failed&status=New&status=New": (ids[:3] + ids[6:])[::-1],
    }.items():
        for limit in (1, 2, 5, 9, 1000):
            seen, url = [], f"{api}/tasks?{query}&limit={limit}"
            first = links(http("GET", url))["first"]
            assert first.count("status=New") <= 1
            while url:
                answer = http("GET", url)
                assert answer.status == 200 and links(answer)["first"] == first
                seen += [task["id"] for task in answer.json]
                url = "next" in links(answer) and api + links(answer)["next"]
            assert seen == expected


def test_a_page_of_large_tasks_ends_early_and_leads_on(api, store):
    ids = store.create([NewTask(payload=f'"{"x" * 400_000}"')] * 5)
    answer = http("GET", f"{api}/tasks?order=desc")
    assert [task["id"] for task in answer.json] == ids[:1:-1]
    answer = http("GET", api + links(answer)["next"])
    assert [task["id"] for task in answer.json] == ids[1::-1]
    assert "next" not in links(answer)


def test_an_array_creates_all_or_none(api, store):
    answer = http("POST", f"{api}/tasks", [{"payload": n, "priority": n % 3} for n in range(700)])
    assert answer.status == 201 and answer.headers["Location"] is None
    assert [store.read(id).payload for id in answer.json[::100]] == [str(n) for n in range(0, 700, 100)]
    for wrong in ([], [{}] * 10_001, [{}, {"priority": 1e9}], [{}, None], [[]]):
        is_problem(http("POST", f"{api}/tasks", wrong), 400)
    assert len(store.list_tasks()) == 700


@pytest.mark.parametrize(
    "said",
    [None, {}, {"payload": [1, {"b": 2, "a": None}], "delay": 60}, [{}, {"payload": 1}]],
    ids=["nothing", "bare", "payload", "array"],
)
def test_a_replay_answers_as_the_first_time(api, store, said):
    first = http("POST", f"{api}/tasks", said, Idempotency_Key='"key"')
    again = http("POST", f"{api}/tasks", said, Idempotency_Key="key")
    is_array = isinstance(said, list)
    body, location = (b"[1, 2]", None) if is_array else (b'{"id": 1}', "/tasks/1")
    for answer in (first, again):
        assert (answer.status, answer.body, answer.headers["Location"]) == (201, body, location)
    for other in ({"payload": 0}, [{"payload": 0}], [{}]):
        answer = http("POST", f"{api}/tasks", other, Idempotency_Key="key")
        is_problem(answer, 422)
        assert answer.json["errors"] == [
            {
                "header": "Idempotency-Key",
                "code": "key-reused",
                "detail": "was used before, with another body",
            }
        ]
    assert len(store.list_tasks()) == (len(said) if is_array else 1)


@pytest.mark.parametrize(
    "header, key",
    [
        ("a", "a"),
        ('"a"', "a"),
        ('"a \\"b\\" \\\\"', 'a "b" \\'),
        ("x" * 255, "x" * 255),
        ("ключ".encode().decode("latin-1"), "ключ"),
        ("a, b;c", "a, b;c"),
        ('a"b', 'a"b'),
    ],
    ids=str,
)
def test_the_idempotency_key_may_be_bare_or_quoted(api, header, key):
    http("POST", f"{api}/tasks", Idempotency_Key=header)
    assert http("GET", f"{api}/tasks/1").json["idempotency_key"] == key


@pytest.mark.parametrize(
    "header", ["", '""', '"a', '"a"b"', '"a\\x"', "x" * 256, f'"{"x" * 256}"', "a\tb", "\xff"], ids=repr
)
def test_a_wrong_idempotency_key_is_refused(api, store, header):
    answer = http("POST", f"{api}/tasks", Idempotency_Key=header)
    is_problem(answer, 400)
    assert answer.json["errors"][0]["header"] == "Idempotency-Key"
    assert store.list_tasks() == []


def test_an_etag_stands_for_the_answer_until_that_changes(api, store):
    store.create([NewTask(payload="[1]"), NewTask()])
    for path in ("/tasks/1", "/tasks", "/tasks?status=New", "/tasks?limit=1"):
        answer = http("GET", api + path)
        tag = answer.headers["ETag"]
        assert re.fullmatch('"[0-9a-f]+"', tag)
        assert http("HEAD", api + path).headers["ETag"] == tag
        for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            same = http("GET", api + path, If_None_Match=known)
            assert (same.status, same.body, same.headers["ETag"]) == (304, b"", tag)
            assert same.headers["Link"] == answer.headers["Link"]
        assert http("GET", api + path, If_None_Match='"x"').status == 200
        if path == "/tasks/1":
            store.cancel(1)
        else:
            store.create()      # on a page behind the first task
        status = 304 if path == "/tasks?limit=1" else 200
        assert http("GET", api + path, If_None_Match=tag).status == status


def test_head_answers_as_get_does_and_options_names_the_methods(api, store):
    store.create()
    for path in (
        "/tasks",
        "/tasks/1",
        "/tasks/7",
        "/livez",
        "/readyz",
        "/metrics",
        "/swagger",
        "/openapi.yaml",
        "/nothing",
    ):
        head, get = http("HEAD", api + path), http("GET", api + path)
        assert (head.status, head.body, head.headers["Content-Type"]) == (
            get.status,
            b"",
            get.headers["Content-Type"],
        )
    for path, allow in {
        "/tasks": "DELETE, GET, HEAD, OPTIONS, POST",
        "/tasks/1": "DELETE, GET, HEAD, OPTIONS",
        "/tasks/1/cancel": "OPTIONS, POST",
        "/livez": "GET, HEAD, OPTIONS",
        "/tasks/claim": "OPTIONS, POST",
    }.items():
        answer = http("OPTIONS", api + path)
        assert (answer.status, answer.body, answer.headers["Allow"]) == (204, b"", allow)
        assert http("PATCH", api + path).headers["Allow"] == allow
    is_problem(http("OPTIONS", f"{api}/nothing"), 404)


def test_delete_removes_a_task_that_is_not_in_progress(api, store):
    store.create([NewTask()] * 2)
    store.claim(1, 30)
    assert "In Progress" in is_problem(http("DELETE", f"{api}/tasks/1"), 409)
    answer = http("DELETE", f"{api}/tasks/2")
    assert (answer.status, answer.body) == (204, b"")
    is_problem(http("DELETE", f"{api}/tasks/2"), 404)
    assert [row.id for row in store.list_tasks()] == [1]


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_cancel_and_retry_take_no_body(api, store, verb):
    store.create()
    assert "expected no body" in is_problem(http("POST", f"{api}/tasks/1/{verb}", {"delay": 60}), 400)
    assert store.read(1).status == "New"


def test_cancel_ends_a_task_and_retry_makes_it_new_again(api, store):
    store.create([NewTask()] * 2)
    answer = http("POST", f"{api}/tasks/2/cancel")
    assert (answer.status, answer.json["status"], answer.json["error"]) == (200, "Failed", "canceled")
    assert http("POST", f"{api}/tasks/2/cancel").status == 200
    answer = http("POST", f"{api}/tasks/2/retry")
    assert (answer.status, answer.json["status"]) == (200, "New")
    assert list(answer.json) == ["id", "status", "created_at", "updated_at"]
    assert "New" in is_problem(http("POST", f"{api}/tasks/2/retry"), 409)
    [claim] = store.claim(1, 30)
    answer = http("POST", f"{api}/tasks/1/cancel")
    assert (answer.status, answer.json["status"], answer.json["canceled"]) == (202, "In Progress", True)
    store.complete([(1, claim.attempt, None)])
    assert http("POST", f"{api}/tasks/1/cancel").json["error"] == "canceled"


def test_run_at_may_be_the_last_moment_of_the_calendar(api):
    http("POST", f"{api}/tasks", {"run_at": "9999-12-31T23:59:59.999999Z"})
    assert http("GET", f"{api}/tasks/1").json["run_at"] == "9999-12-31T23:59:59"


def test_a_repeating_task_is_created_once_however_often_a_deployment_asks_for_it(api, store):
    nightly = {"kind": "report", "repeat": "30  3 * * MON-fri", "timezone": "Europe/Berlin"}
    for _ in range(3):
        answer = http("POST", f"{api}/tasks", nightly, Idempotency_Key="nightly")
        assert (answer.status, answer.headers["Location"], answer.json) == (201, "/tasks/1", {"id": 1})
    task = http("GET", f"{api}/tasks/1").json
    assert list(task)[4:] == ["kind", "run_at", "repeat", "timezone", "idempotency_key"]
    assert task["repeat"] == "30 3 * * MON-fri"
    assert task["run_at"] > task["created_at"] and re.search("T0[12]:30:00$", task["run_at"])

    answer = http("POST", f"{api}/tasks", [nightly, {"repeat": 90.5}, {"repeat": 60, "delay": 3600}])
    assert (answer.status, len(answer.json)) == (201, 3)
    tasks = http("GET", f"{api}/tasks").json
    assert [task.get("repeat") for task in tasks[2:]] == [90.5, 60]
    assert ["run_at" in task for task in tasks] == [True, True, False, True]


@pytest.mark.parametrize("body, code", [
    ({"timezone": "Europe/Berlin"}, "conflicting-fields"),
    ({"timezone": "Europe/Berlin", "repeat": 60}, "conflicting-fields"),
    ({"timezone": "../etc/passwd", "repeat": "@daily"}, "unknown-time-zone"),
    ({"repeat": "99 * * * *"}, "not-a-schedule"),
    ({"repeat": 0}, "out-of-range"),
    ({"repeat": None}, "wrong-type"),
    ({"kind": "../x"}, "not-a-kind"),
])
def test_what_can_not_repeat_so_is_refused(api, store, body, code):
    for sent in (body, [{}, body]):
        answer = http("POST", f"{api}/tasks", sent)
        is_problem(answer, 400)
        assert [each["code"] for each in answer.json["errors"]] == [code]
    assert store.list_tasks() == []


@pytest.mark.parametrize(
    "column, value",
    [
        ("timeout", "'NaN'"),
        ("timeout", "9e999"),
        ("timeout", "-1"),
        ("progress", "2"),
        ("max_attempts", "0"),
        ("payload", "'{'"),
        ("status", "'Done'"),
    ],
)
def test_plain_sql_can_not_make_a_task_that_is_no_json(store, column, value):
    with pytest.raises(taskmanager.Invalid):
        store._execute(f"insert into tasks ({column}) values ({value}) returning id")


def test_requests_at_the_same_time_get_a_task_each(api, store):
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: http("POST", f"{api}/tasks", {"payload": n}), range(200)))
    assert [answer.status for answer in answers] == [201] * 200
    assert {answer.json["id"]: n for n, answer in enumerate(answers)} == {
        row.id: int(row.payload) for row in store.list_tasks()
    }


def test_a_token_is_needed_where_one_is_set(store, serve):
    api = serve(store, api_token="s3cret")
    wrong = ["Bearer wrong", "Basic s3cret", "s3cret", "Bearer пароль".encode().decode("latin-1")]
    wrong += [f"Bearer {token}" for token in ("", "s", "s3cre", "s3cret1", "S3CRET", "s3cret s3cret")]
    for headers in ({}, *({"Authorization": each} for each in wrong)):
        for method, path in [
            ("POST", "/tasks"),
            ("GET", "/tasks"),
            ("GET", "/tasks/1"),
            ("POST", "/tasks/1/cancel"),
        ]:
            answer = http(method, api + path, **headers)
            is_problem(answer, 401)
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Task Manager"'
    assert store.list_tasks() == []
    assert http("POST", f"{api}/tasks", Authorization="Bearer s3cret").status == 201
    for path in (
        "/livez",
        "/readyz",
        "/",
        "/static/page.js",
        "/swagger",
        "/openapi.yaml",
        "/swagger/swagger-ui.css",
    ):
        assert http("GET", api + path).status == 200


def test_livez_answers_and_readyz_refuses_while_the_database_is_away(api, store, monkeypatch):
    assert http("GET", f"{api}/livez").json == {"status": "ok"}
    assert http("GET", f"{api}/readyz").json == {"status": "ok", "database": "ok"}

    monkeypatch.setattr(store, "_execute", raising(taskmanager.Unavailable("the database can't be reached")))
    assert http("GET", f"{api}/livez").status == 200
    answer = http("GET", f"{api}/readyz")
    is_problem(answer, 503)
    assert answer.headers["Retry-After"] == "1"


# Swagger UI

def test_the_page_is_served_from_here_alone(api):
    page = http("GET", f"{api}/")
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    html = page.body.decode()
    assert not re.search(r"""<style|style=|<script(?![^>]*src)|\son\w+=|(src|href)=["']?(https?:|/)""", html)
    files = re.findall(r'(?:src|href)="(static/[^"]+)"', html)
    assert len(set(files)) == 3
    for name in files:
        assert http("GET", f"{api}/{name}").status == 200
    assert re.search(
        "(text|application)/javascript", http("GET", f"{api}/static/page.js").headers["Content-Type"]
    )


def test_swagger_ui_is_served_from_here_alone(api):
    page = http("GET", f"{api}/swagger")
    assert page.status == 200
    assert "text/html" in page.headers["Content-Type"]
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    files = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert len(files) >= 3
    assert not re.search(rb"<script>|<style|\sstyle=|\son\w+=", page.body)
    for file in files:
        assert "//" not in file and http("GET", f"{api}/{file}").status == 200
    assert http("GET", f"{api}/swagger/").status == http("GET", f"{api}/swagger/index.html").status == 302
    assert http("GET", f"{api}/swagger/LICENSE").headers["Content-Type"].startswith("text/plain")


def test_openapi_yaml_is_served(api):
    answer = http("GET", f"{api}/openapi.yaml")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/yaml")
    assert b"\nopenapi: 3.1" in answer.body


def test_addresses_in_answers_begin_with_the_prefix_of_the_application(store, serve):
    import bottle
    app = bottle.Bottle()
    app.mount("/jobs/", taskmanager.create_app(store))
    url = serve(app)
    answer = http("POST", f"{url}/jobs/tasks")
    assert (answer.status, answer.headers["Location"]) == (201, "/jobs/tasks/1")
    http("POST", f"{url}/jobs/tasks")
    assert links(http("GET", f"{url}/jobs/tasks?limit=1")) == {
        "first": "/jobs/tasks?limit=1",
        "next": "/jobs/tasks?limit=1&after=1",
    }
    assert http("GET", f"{url}/jobs/tasks/7").json["instance"] == "/jobs/tasks/7"
    assert http("GET", f"{url}/jobs/swagger").status == 200
    assert http("GET", f"{url}/jobs/").status == http("GET", f"{url}/jobs/static/page.js").status == 200
    assert http("GET", f"{url}/jobs/swagger/").headers["Location"] == "/jobs/swagger"
    for id in ("%E2%98%83", "1%C3%A9"):
        assert http("GET", f"{url}/jobs/tasks/{id}").json["instance"] == f"/jobs/tasks/{id}"
