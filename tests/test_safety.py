"""Malice from outside: other sites' pages, forged headers and log lines, clients that vanish or dribble."""

import contextlib
import functools
import http.client
import io
import logging
import re
import time
from urllib.parse import urlsplit

import pytest

import taskmanager
from helpers import Answer, at_once, connect, eventually, http as send, is_problem, raising, raw, reset
from taskmanager import HEADERS, MAX_BODY, MAX_ERRORS, NewTask, new_task

pytestmark = pytest.mark.sqlite

EVIL = "http://evil.example"


def send_bytes(url, request):
    """Send bytes as they are; an Answer."""
    head, _, body = raw(url, request).partition(b"\r\n\r\n")
    line, _, headers = head.partition(b"\r\n")
    return Answer(int(line.split()[1]), http.client.parse_headers(io.BytesIO(headers + b"\r\n\r\n")), body)


def request_of(url, method, path, headers=b"", body=b""):
    """The bytes of a request; `headers` are bytes, each line with its end."""
    first = f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nConnection: close\r\n"
    return first.encode() + b"Content-Length: %d\r\n" % len(body) + headers + b"\r\n" + body


# Pages of other sites, in somebody's browser

UNSAFE = [
    ("POST", "/tasks", {"payload": 1}),
    ("POST", "/tasks", None),
    ("POST", "/tasks", [{}, {}]),
    ("POST", "/tasks/claim", {}),
    ("POST", "/tasks/1/cancel", None),
    ("DELETE", "/tasks/1", None),
    ("POST", "/tasks/2/retry", None),
    ("POST", "/tasks/3/complete", {"attempt": 1}),
    ("POST", "/tasks/3/fail", {"attempt": 1, "error": "why"}),
    ("POST", "/tasks/3/release", {"attempt": 1}),
    ("POST", "/tasks/3/progress", {"attempt": 1, "progress": 1}),
    ("POST", "/tasks/3/extend", {"attempt": 1, "lease": 86400}),
]


@pytest.fixture
def furnished(store, api):
    """An API with a task that is New, one that has Failed, and one In Progress."""
    store.create([NewTask(), NewTask(priority=9), NewTask(priority=5)])
    for row in store.claim(2, 60):
        if row.id == 2:
            store.fail([(2, row.attempt, "why")])
    return api


def everything(store):
    return store._execute("select * from tasks order by id")


def filled(headers, api):
    return {name: value.format(host=urlsplit(api).netloc) for name, value in headers.items()}


OURS = {
    "no browser": {},
    "our page": {"Sec-Fetch-Site": "same-origin"},
    "the user": {"Sec-Fetch-Site": "none"},
    "in capitals": {"Sec-Fetch-Site": "Same-Origin"},
    "our page, said twice": {"Sec-Fetch-Site": "same-origin", "Origin": "http://{host}"},
    "an old browser": {"Origin": "http://{host}"},
    "behind TLS": {"Origin": "https://{host}"},
    "a proxy that changes Host": {"Sec-Fetch-Site": "same-origin", "Origin": "https://tasks.example"},
}
OTHERS = {
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "a sister site": {"Sec-Fetch-Site": "same-site"},
    "an unknown word": {"Sec-Fetch-Site": "friendly"},
    "two words": {"Sec-Fetch-Site": "same-origin, cross-site"},
    "another site with our origin": {"Sec-Fetch-Site": "cross-site", "Origin": "http://{host}"},
    "another origin": {"Origin": EVIL},
    "an empty word": {"Sec-Fetch-Site": "", "Origin": EVIL},
    "a sandbox": {"Origin": "null"},
    "no origin": {"Sec-Fetch-Site": "cross-site", "Origin": "://"},
    "a longer name": {"Origin": "http://{host}.evil.example"},
    "a user name": {"Origin": "http://{host}@evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "no port": {"Origin": "http://127.0.0.1"},
    "another scheme": {"Origin": "ftp://{host}"},
    "two origins": {"Origin": "http://{host} http://evil.example"},
    "a file": {"Origin": "file://"},
}


@pytest.mark.parametrize("headers", OURS.values(), ids=OURS)
@pytest.mark.parametrize(
    "method, path, body", [UNSAFE[n] for n in (0, 3, 4, 5)], ids=["create", "claim", "cancel", "delete"]
)
def test_what_our_pages_and_programs_send_is_let_through(furnished, headers, method, path, body):
    assert send(method, furnished + path, body, **filled(headers, furnished)).status in (200, 201, 204)


@pytest.mark.parametrize("headers", OTHERS.values(), ids=OTHERS)
def test_what_a_page_of_another_site_sends_changes_nothing(furnished, store, headers):
    before = everything(store)
    for method, path, body in UNSAFE:
        answer = send(method, furnished + path, body, **filled(headers, furnished))
        assert "another site" in is_problem(answer, 403), (method, path)
        assert answer.json["instance"] == path
    assert everything(store) == before


def test_a_form_of_another_site_changes_nothing(furnished, store):
    before = everything(store)
    # The types that a form may send, in a browser that sends no Sec-Fetch-Site.
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"):
        is_problem(send("POST", f"{furnished}/tasks", b'{"payload": 1}', Content_Type=kind), 415)
    is_problem(send("POST", f"{furnished}/tasks", b'{"payload": 1}', Content_Encoding="gzip"), 415)
    assert everything(store) == before


@pytest.mark.parametrize(
    "headers", [OTHERS[each] for each in ("another site", "another origin")], ids=["site", "origin"]
)
def test_a_link_from_another_site_is_followed(furnished, headers):
    for path in ("/tasks", "/tasks/1", "/", "/swagger", "/livez", "/readyz", "/metrics"):
        for method in ("GET", "HEAD"):
            assert send(method, furnished + path, **headers).status in (200, 302)


def test_no_other_site_is_ever_allowed_to_read(furnished):
    preflight = {
        "Origin": EVIL,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "content-type",
    }
    for method, path in [
        ("OPTIONS", "/tasks"),
        ("OPTIONS", "/tasks/1"),
        ("GET", "/tasks"),
        ("GET", "/tasks/1"),
        ("GET", "/swagger"),
        ("POST", "/tasks"),
        ("GET", "/nothing"),
    ]:
        assert not [
            name
            for name in send(method, furnished + path, **preflight).headers
            if name.lower().startswith("access-control")
        ]


def test_a_token_does_not_let_in_other_sites(store, serve):
    api = serve(store, api_token="s3cret")
    is_problem(send("POST", f"{api}/tasks", Authorization="Bearer s3cret", Sec_Fetch_Site="cross-site"), 403)
    assert store.list_tasks() == []


# Names that lead here

def test_on_loopback_only_our_own_names_are_answered(start, sqlite_database):
    program = start("taskmanager.py", DATABASE_URL=sqlite_database, WORKER="off")
    port = urlsplit(program.url).port
    url = f"http://127.0.0.1:{port}"
    for host in (
        "localhost",
        "LocalHost",
        f"localhost:{port}",
        f"127.0.0.1:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        f"[::1]:{port}",
        "localhost:",
    ):
        assert send("GET", f"{url}/tasks", Host=host).status == 200, host
        assert send("POST", f"{url}/tasks", Host=host).status == 201, host
    # of HTTP/1.0, which knows no Host: no browser
    assert raw(url, b"GET /tasks HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")
    created = len(send("GET", f"{url}/tasks").json)
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "evil.example:localhost",
        "127.0.0.2",
        "0.0.0.0",
        "[::2]",
        "[::1].evil.example",
        "::1x",
        "localhost:80:80",
        "localhost:x",
        "localhost, evil.example",
        "\xff",
        "evil.example#localhost",
        "localhost/",
    ):
        for method, path in (
            ("GET", "/tasks"),
            ("GET", "/tasks/1"),
            ("HEAD", "/tasks"),
            ("POST", "/tasks"),
            ("DELETE", "/tasks/1"),
            ("POST", "/tasks/claim"),
            ("GET", "/metrics"),
            ("GET", "/swagger"),
        ):
            answer = send(method, url + path, Host=host)
            assert answer.status == (400 if re.search("[@,#/]", host) else 403), (host, method, path)
            if answer.status == 403 and method != "HEAD":
                assert "API_TOKEN" in is_problem(answer, 403)
    # as after DNS rebinding
    is_problem(
        send(
            "GET",
            f"{url}/tasks",
            Host="evil.example",
            Origin="http://evil.example",
            Sec_Fetch_Site="same-origin",
        ),
        403,
    )
    assert len(send("GET", f"{url}/tasks").json) == created


@pytest.mark.parametrize("settings", [{"API_TOKEN": "s3cret"}, {"HOST": "0.0.0.0", "ALLOWED_HOSTS": "*"}],
                         ids=["with a token", "when told so"])
def test_elsewhere_any_name_is_answered(start, sqlite_database, settings):
    program = start("taskmanager.py", DATABASE_URL=sqlite_database, WORKER="off", **settings)
    url = f"http://127.0.0.1:{urlsplit(program.url).port}"
    for host in ("tasks.example", "tasks.example:8443", "evil.example", "localhost", "\xff"):
        assert send("GET", f"{url}/tasks", Host=host, Authorization="Bearer s3cret").status == 200


def test_a_worker_on_loopback_answers_to_its_own_names_only_as_well(start, sqlite_database):
    worker = start("worker.py", DATABASE_URL=sqlite_database, METRICS_PORT=0)
    url = f"http://127.0.0.1:{worker.logged(r'started metrics port=([0-9]+)')[1]}"
    url += "/metrics"
    assert send("GET", url).status == send("GET", url, Host="localhost").status == 200
    is_problem(send("GET", url, Host="evil.example"), 403)


@pytest.mark.parametrize(
    "settings, warns",
    [
        ({"HOST": "0.0.0.0"}, True),
        ({"HOST": "0.0.0.0", "API_TOKEN": "s3cret"}, False),
        ({}, False),
        ({"HOST": "127.0.0.1"}, False),
        ({"HOST": "localhost"}, False),
        ({"HOST": "127.0.0.1", "API_TOKEN": "s3cret"}, False),
    ],
    ids=["open", "open with a token", "by default", "loopback", "localhost", "loopback with a token"],
)
def test_the_start_warns_of_an_api_that_is_open_to_all(start, sqlite_database, settings, warns):
    program = start("taskmanager.py", DATABASE_URL=sqlite_database, WORKER="off", **settings)
    port = urlsplit(program.url).port
    warnings = [line for line in program.log().splitlines() if " WARNING " in line]
    assert len(warnings) == warns
    assert all(
        "opened without" in line and "0.0.0.0" in line and str(port) in line and "API_TOKEN" in line
        for line in warnings
    )
    assert "s3cret" not in program.log()


# What every answer has

def fail_inside(monkeypatch, store):
    monkeypatch.setattr(store, "find_tasks", raising(ZeroDivisionError("secret")))


LARGE = b"Content-Length: 99999999999\r\n"
KINDS = {
    "200": (200, b"GET /tasks/1 HTTP/1.1\r\n"),
    "201": (201, b"POST /tasks HTTP/1.1\r\n"),
    "202": (202, b"POST /tasks/2/cancel HTTP/1.1\r\n"),
    "204": (204, b"DELETE /tasks/1 HTTP/1.1\r\n"),
    "204 to OPTIONS": (204, b"OPTIONS /tasks HTTP/1.1\r\n"),
    "302": (302, b"GET /swagger/ HTTP/1.1\r\n"),
    "304": (304, b"GET /tasks/1 HTTP/1.1\r\nIf-None-Match: *\r\n"),
    "400": (400, b"GET /tasks?limit=0 HTTP/1.1\r\n"),
    "400 by the server": (400, b"GET /tasks HTTP/1.1\r\nContent-Length: x\r\n"),
    "403": (403, b"POST /tasks HTTP/1.1\r\nSec-Fetch-Site: cross-site\r\n"),
    "404": (404, b"GET /tasks/7 HTTP/1.1\r\n"),
    "404 of an address": (404, b"GET /nothing HTTP/1.1\r\n"),
    "404 of a page": (404, b"GET /swagger/nothing.js HTTP/1.1\r\n"),
    "405": (405, b"PUT /tasks HTTP/1.1\r\n"),
    "409": (409, b"DELETE /tasks/2 HTTP/1.1\r\n"),
    "413": (413, b"POST /tasks HTTP/1.1\r\nContent-Length: %d\r\n" % (MAX_BODY + 1)),
    "413 by the server": (413, b"POST /tasks HTTP/1.1\r\n" + LARGE),
    "415": (415, b"POST /tasks HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n"),
    "431": (431, b"GET /tasks HTTP/1.1\r\nX: " + b"x" * 65_600 + b"\r\n"),
    "500": (500, b"GET /tasks HTTP/1.1\r\n"),
    "501": (501, b"POST /tasks HTTP/1.1\r\nTransfer-Encoding: gzip\r\n"),
    "livez": (200, b"GET /livez HTTP/1.1\r\n"),
    "readyz": (200, b"GET /readyz HTTP/1.1\r\n"),
    "metrics": (200, b"GET /metrics HTTP/1.1\r\n"),
    "HEAD": (200, b"HEAD /tasks/1 HTTP/1.1\r\n"),
    "page": (200, b"GET /swagger HTTP/1.1\r\n"),
    "script": (200, b"GET /swagger/swagger-ui-bundle.js HTTP/1.1\r\n"),
    "description": (200, b"GET /openapi.yaml HTTP/1.1\r\n"),
    "page 304": (304, b"GET /swagger HTTP/1.1\r\nIf-None-Match: *\r\n"),
}


@pytest.mark.parametrize("status, head", KINDS.values(), ids=KINDS)
def test_every_kind_of_answer_has_the_security_headers(store, api, monkeypatch, status, head):
    store.create([NewTask(), NewTask(priority=1)])
    store.claim(1, 60)
    if status == 500:
        fail_inside(monkeypatch, store)
    body = b" " * (MAX_BODY + 1) if b"1048577" in head else b"[]" if status == 415 else b""
    answer = send_bytes(api, head + b"Host: x\r\nConnection: close\r\nX-Request-Id: mine-1\r\n\r\n" + body)
    assert answer.status == status
    page = head.startswith((b"GET /swagger", b"GET /openapi.yaml"))
    for name, value in HEADERS.items():
        found = answer.headers.get_all(name)
        assert found and len(found) == 1, name
        if page and name == "Content-Security-Policy" and found != [value]:
            assert "default-src 'none'" in found[0]
            assert "frame-ancestors 'none'" in found[0]
            assert "unsafe" not in found[0]
        else:
            assert found == [value], name
    if status == 431:       # its headers were not read
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-Id"])
    else:
        assert answer.headers.get_all("X-Request-Id") == ["mine-1"]
    server = answer.headers.get("Server", "")
    assert not re.search("waitress|bottle|python", server, re.IGNORECASE)
    if status >= 400 and not head.startswith(b"HEAD"):
        is_problem(answer, status)
        assert answer.json["title"]
        assert answer.json["type"] == "about:blank"
        assert answer.json["instance"].startswith("/")


def test_every_answer_forbids_framing_sniffing_and_referrers(api):
    headers = send("GET", f"{api}/tasks").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Cache-Control"] in ("no-cache", "no-store")


# The request's id

@pytest.mark.parametrize(
    "given",
    ["a", "0", "x" * 128, "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "A.z_9:+/=@~-", "eyJhbGciOi/+=="],
    ids=lambda given: given[:20],
)
def test_a_sane_request_id_is_taken(api, given):
    for path in ("/tasks", "/tasks/7", "/nothing", "/livez", "/swagger"):
        assert send("GET", api + path, X_Request_Id=given).headers["X-Request-Id"] == given


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b" ",
        b"x" * 129,
        b"x" * 10_000,
        b"a b",
        b"a,b",
        b"a;b",
        b'"a"',
        b"a\tb",
        b"<script>",
        b"a'b",
        b"%0a",
        b"\xff",
        b"\xc3\xa9",
        b"\xd9\xa1",
        b"a\\nb",
        b"${jndi}",
        b"*",
        b"a\x7f",
        b"[a]",
    ],
    ids=lambda given: ascii(given[:20]),
)
def test_a_strange_request_id_is_replaced(api, given):
    header = b"X-Request-Id: " + given + b"\r\n"
    answers = [
        send_bytes(api, request_of(api, "GET", path, header)) for path in ("/tasks", "/tasks/7", "/nothing")
    ]
    found = {answer.headers["X-Request-Id"] for answer in answers}
    assert len(found) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in found)


def test_two_request_ids_are_replaced_by_one(api):
    assert re.fullmatch(
        "[0-9a-f]{16}",
        send_bytes(api, request_of(api, "GET", "/tasks", b"X-Request-Id: a\r\nX-Request-Id: b\r\n")).headers[
            "X-Request-Id"
        ],
    )


def test_every_request_without_an_id_gets_its_own(api):
    assert len({send("GET", f"{api}/tasks").headers["X-Request-Id"] for _ in range(50)}) == 50


@pytest.mark.parametrize("given", ["mine-1", None], ids=["given", "made"])
def test_an_error_in_the_program_is_found_in_the_log_under_the_requests_id(
    store, api, monkeypatch, caplog, given
):
    fail_inside(monkeypatch, store)
    answer = send("GET", f"{api}/tasks", **({"X-Request-Id": given} if given else {}))
    detail = is_problem(answer, 500)
    id = answer.headers["X-Request-Id"]
    if given:
        assert id == given
    else:
        assert re.fullmatch("[0-9a-f]{16}", id)
    for inside in ("Traceback", "ZeroDivisionError", "secret", "taskmanager.py", "line "):
        assert inside not in answer.body.decode()
        assert inside not in str(answer.headers)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert id in record.getMessage()
    assert "ZeroDivisionError: secret" in caplog.text
    assert "under the request's id" in detail
    assert send("GET", f"{api}/livez").status == 200


# What a body says it is

@pytest.mark.parametrize(
    "kind, passes",
    [
        (None, True),
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("APPLICATION/JSON", True),
        ("application/json;charset=UTF-8", True),
        ("application/vnd.api+json", True),
        ("application/merge-patch+json ; a=b", True),
        ("application/problem+JSON", True),
        ("text/json", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("application/xml", False),
        ("application/jsonp", False),
        ("application/json5", False),
        ("application/+json", False),
        ("text/plain; application/json", False),
        ("application/json, text/plain", False),
        ("text/plain, application/json", False),
        ("json", False),
        ("*/*", False),
        ("nonsense", False),
        ("application/octet-stream", False),
        ("application/jsonnet", False),
        ("\xff", False),
        ("image/svg+xml", False),
        ("application/json+xml", False),
    ],
    ids=ascii,
)
def test_a_body_that_does_not_say_that_it_is_json_is_refused(api, store, kind, passes):
    header = b"" if kind is None else b"Content-Type: " + kind.encode("latin-1") + b"\r\n"
    for path, said, status in (
        ("/tasks", b'{"payload": 1}', 201),
        ("/tasks/claim", b'{"limit": 1}', 200),
        ("/tasks/1/complete", b'{"attempt": 1}', 200 if passes else 415),
    ):
        # The connection stays open: for a client that has hung up nothing is claimed.
        with connect(api, request_of(api, "POST", path, header, said)) as connection:
            answer = connection.recv(65536)
        assert answer.split()[1] == str(status if passes else 415).encode(), path
    is_created = [row.status for row in store.list_tasks()]
    assert is_created == (["Completed"] if passes else [])
    # where nothing is said, it does not matter what it would be
    assert send_bytes(api, request_of(api, "POST", "/tasks", header)).status == 201


# Errors say where

@pytest.mark.parametrize(
    "method, path, said, headers, status, errors",
    [
        (
            "POST",
            "/tasks",
            {"priority": "high", "a/b~": 1},
            {},
            400,
            [{"pointer": "/priority"}, {"pointer": "/a~1b~0"}],
        ),
        ("POST", "/tasks", b"nonsense", {}, 400, [{"pointer": ""}]),
        ("POST", "/tasks", [{}, {"timeout": 0}], {}, 400, [{"pointer": "/1/timeout"}]),
        ("GET", "/tasks?limit=0&after=x", None, {}, 400, [{"parameter": "limit"}, {"parameter": "after"}]),
        ("GET", "/tasks/1?a=1", None, {}, 400, [{"parameter": "a"}]),
        ("POST", "/tasks/claim?b=1", None, {}, 400, [{"parameter": "b"}]),
        ("POST", "/tasks", None, {"Idempotency-Key": "x" * 256}, 400, [{"header": "Idempotency-Key"}]),
        ("POST", "/tasks/1/cancel", {"a": 1}, {}, 400, [{"pointer": ""}]),
        ("POST", "/tasks/1/fail", {"attempt": 0}, {}, 400, [{"pointer": "/error"}, {"pointer": "/attempt"}]),
        ("GET", "/tasks/7", None, {}, 404, None),
        ("GET", "/nothing/%C3%A9%20x", None, {}, 404, None),
        ("PUT", "/tasks", None, {}, 405, None),
        ("POST", "/tasks/1/retry", None, {}, 409, None),
        ("POST", "/tasks", b"{}", {"Content-Type": "text/plain"}, 415, None),
    ],
    ids=str,
)
def test_an_error_says_where_it_is(store, api, method, path, said, headers, status, errors):
    store.create()
    answer = send(method, api + path, said, **headers)
    is_problem(answer, status)
    assert answer.json["instance"] == path.partition("?")[0]
    found = answer.json.get("errors", [])
    assert all(each["detail"] and each["code"] for each in found)
    kinds = ("pointer", "parameter", "header")
    assert [{kind: each[kind] for kind in kinds if kind in each} for each in found] == (errors or [])


def test_what_the_server_itself_refuses_names_its_address_as_well(api):
    for path in ("/tasks", "/nothing/%C3%A9%20x", "/a%0Ab"):
        answer = send_bytes(api, f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + LARGE + b"\r\n")
        assert answer.json["instance"] == path


@pytest.mark.parametrize(
    "path",
    [
        "/tasks?" + "&".join(f"a{n}=1" for n in range(700)),
        "/tasks/1?" + "&".join(f"a{n}=1" for n in range(700)),
        "/tasks?" + "&".join(f"status={n}" for n in range(700)),
        "/tasks?" + "x" * 7_000 + "=1",
        "/tasks?status=" + "x" * 7_000,
        "/tasks/" + "x" * 7_000,
        "/" + "x" * 7_000,
    ],
    ids=lambda path: path[:12] + "…",
)
def test_an_error_is_not_much_larger_than_what_it_is_about(api, path):
    answer = send("GET", api + path)
    is_problem(answer, 404 if "?" not in path else 400)
    assert len(answer.json.get("errors", [])) <= MAX_ERRORS
    assert len(answer.body) < 4 * 65_536


# What is no proper HTTP

@pytest.mark.parametrize(
    "head, detail",
    [
        (b"GET /livez HTTP/1.1\r\n", "Host"),
        (b"GET /livez HTTP/1.1\r\nHost:\r\n", "Host"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: x\r\n", "Host"),
        (b"GET /livez HTTP/1.1\r\nHost: a b/c\r\n", "Host"),
        (
            b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n",
            "not both",
        ),
    ],
    ids=["no host", "an empty one", "two hosts", "no name", "two lengths"],
)
def test_a_request_of_two_meanings_is_refused(api, head, detail):
    assert detail in is_problem(send_bytes(api, head + b"Connection: close\r\n\r\n"), 400)


def test_the_name_in_a_whole_address_counts(store, serve):
    api = serve(store, hosts=("localhost",))
    for host, status in (("localhost", 200), ("evil.example", 403)):
        head = f"GET http://{host}/tasks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert send_bytes(api, head.encode()).status == status


@pytest.mark.parametrize(
    "more, status",
    [
        (b"", 201),
        (b"Content-Length: 0\r\n", 201),
        (b"Content-Length: 20000000\r\n", 413),
        (b"Content-Length: abc\r\n", 400),
    ],
    ids=["no body", "an empty one", "too large", "wrong"],
)
def test_a_client_that_asks_before_sending_a_body_is_answered(api, more, status):
    head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + more + b"\r\n"
    with connect(api, head) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 %d " % status)


def test_what_is_refused_is_counted(api, store):
    for head, status in (
        (b"POST /tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"BREW /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", 400),
    ):
        assert send_bytes(api, head).status == status
    found = send("GET", f"{api}/metrics").body.decode()
    assert 'http_requests_total{route="other",method="POST",status="501"} 1\n' in found
    assert 'http_requests_total{route="other",method="other",status="400"} 1\n' in found


def test_a_refusal_of_head_has_no_body(api):
    answer = send_bytes(api, b"HEAD /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n")
    assert (answer.status, answer.body) == (400, b"")
    assert int(answer.headers["Content-Length"]) > 0


# Bytes that are no text

READ = [
    "Host",
    "Origin",
    "Sec-Fetch-Site",
    "Authorization",
    "If-None-Match",
    "Prefer",
    "X-Request-Id",
    "Content-Type",
    "Idempotency-Key",
    "If-Modified-Since",
    "Range",
    "Cookie",
    "Accept",
    "User-Agent",
    "X-Forwarded-Host",
    "X-Forwarded-For",
    "Forwarded",
    "X-HTTP-Method-Override",
    "Expect",
    "Referer",
]


@pytest.mark.parametrize("name", READ)
def test_a_header_that_is_not_utf_8_does_no_harm(store, serve, caplog, name):
    store.create()
    open_, guarded = serve(store), serve(store, api_token="s3cret")
    for value in (
        b"\xff",
        b"\xff\xfe\x80",
        b"Bearer \xff",
        b"wait=\xb2",
        b'"\xe9"',
        b"\xed\xa0\x80",
        b"a" * 20_000 + b"\xff",
    ):
        header = name.encode() + b": " + value + b"\r\n"
        for api in (open_, guarded):
            for method, path, body in (
                ("GET", "/tasks/1", b""),
                ("GET", "/tasks", b""),
                ("POST", "/tasks", b"{}"),
                ("POST", "/tasks/1/cancel", b""),
                ("GET", "/swagger", b""),
                ("GET", "/metrics", b""),
                ("GET", "/nothing", b""),
            ):
                head = f"{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
                if name != "Host":
                    head += "Host: x\r\n"
                answer = send_bytes(api, head.encode() + header + b"\r\n" + body)
                assert answer.status < 500, (value, method, path)
                if api == guarded and path not in ("/swagger", "/nothing"):
                    assert answer.status in (400, 401, 403), (value, method, path)
                if answer.status >= 400:
                    is_problem(answer, answer.status)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "line",
    [
        b"GET /tasks/\xff",
        b"GET /tasks?status=\xff",
        b"GET /tasks/1%FF",
        b"GET /tasks?%FF=%FF",
        b"POST /tasks/%ED%A0%80/cancel",
        b"GET /swagger/%FF",
        b"GET /%FF",
        b"GET /tasks?status=New&status=%80",
        b"GET /tasks/1%00",
        b"GET /swagger/a%00b",
        b"GET /swagger/..%00",
        b"GET \xff",
        b"\xff /tasks",
        b"GET http://[/tasks",
        b"GET *",
    ],
    ids=ascii,
)
def test_an_address_that_is_not_utf_8_does_no_harm(store, api, caplog, line):
    answer = send_bytes(api, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    is_problem(answer, answer.status)
    assert answer.status in (400, 404)
    if line == b"GET /tasks/1%FF":
        assert answer.json["instance"] == "/tasks/1%FF"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# What a task does is the operator's to say

def test_no_request_can_name_a_handler(start, sqlite_database, tmp_path):
    trace = tmp_path / "trace"
    program = start("taskmanager.py", DATABASE_URL=sqlite_database, HANDLER="tests.handlers:echo")
    evil = f"exec:touch {trace}"
    named = {"handler": evil, "HANDLER": evil, "exec": evil, "command": evil}
    for body in ({name: evil} for name in named):
        is_problem(send("POST", f"{program.url}/tasks", body), 400)
        is_problem(send("POST", f"{program.url}/tasks", [{}, body]), 400)
        is_problem(send("POST", f"{program.url}/tasks/claim", body), 400)
    is_problem(send("POST", f"{program.url}/tasks?handler=exec:touch"), 400)
    assert send("GET", f"{program.url}/tasks").json == []
    for headers in (
        {"Handler": evil},
        {"X-Handler": evil},
        {"HTTP_HANDLER": evil},
        {"Cookie": f"handler={evil}"},
    ):
        task = send("POST", f"{program.url}/tasks", {"payload": named}, **headers, Prefer="wait=20").json
        assert (task["status"], task["result"]) == (
            "Completed",
            {"id": task["id"], "attempt": 1, "payload": named},
        )
    assert not trace.exists()


# Clients that vanish

def vanish(url, request, after=0.0):
    """Send a request, or the beginning of one, and reset the connection after so many seconds."""
    connection = connect(url, request)
    time.sleep(after)
    reset(connection)


@pytest.fixture
def program(start, sqlite_database):
    """A real one, that has to be none the worse in the end."""
    program = start(
        "taskmanager.py", DATABASE_URL=sqlite_database, WORKER="off", THREADS=2, WAITERS=2, POLL_SECONDS=0.05
    )
    assert send("POST", f"{program.url}/tasks", {"payload": "x" * 1000}).status == 201
    yield program
    for method, path, status in (
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/tasks/1", 200),
        ("POST", "/tasks", 201),
        ("GET", "/tasks", 200),
        ("GET", "/metrics", 200),
    ):
        assert send(method, program.url + path).status == status
    # there are places for who would wait
    eventually(lambda: send("GET", f"{program.url}/tasks/1", Prefer="wait=0").headers["Preference-Applied"])
    assert program.process.poll() is None
    assert not re.search(r"Traceback|uncaptured| ERROR (?!taskmanager failed task=)", program.log())
    assert program.stop() == 0


WHOLE = {
    "read": request_of("//localhost", "GET", "/tasks/1"),
    "list": request_of("//localhost", "GET", "/tasks"),
    "create": request_of("//localhost", "POST", "/tasks", body=b'{"payload": 1}'),
    "page": request_of("//localhost", "GET", "/swagger/swagger-ui-bundle.js"),
    "claim": request_of("//localhost", "POST", "/tasks/claim", body=b'{"limit": 1}'),
    "wait": request_of("//localhost", "GET", "/tasks/1", b"Prefer: wait=60\r\n"),
    "wait to claim": request_of("//localhost", "POST", "/tasks/claim", b"Prefer: wait=60\r\n"),
    "create and wait": request_of(
        "//localhost", "POST", "/tasks", b"Prefer: wait=60\r\n", b'{"delay": 3600}'
    ),
    "refused": b"nonsense\r\n\r\n",
    "too large": b"POST /tasks HTTP/1.1\r\nHost: localhost\r\n" + LARGE + b"\r\n",
    "expectant": b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    b"Content-Length: 2\r\n\r\n",
    "many": request_of("//localhost", "GET", "/tasks/1").replace(b"Connection: close\r\n", b"") * 20,
}


def test_clients_that_vanish_within_a_request_do_no_harm(program):
    for name in ("read", "create", "expectant"):
        request = WHOLE[name]
        for end in {
            0,
            1,
            4,
            10,
            request.index(b"\r\n") + 1,
            request.index(b"\r\n\r\n") + 2,
            request.index(b"\r\n\r\n") + 4,
            len(request) - 1,
        }:
            vanish(program.url, request[:end])
            vanish(program.url, request[:end], after=0.01)
    vanish(
        program.url,
        b'POST /tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a',
        after=0.01,
    )
    vanish(
        program.url,
        b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b" " * 500_000,
        after=0.01,
    )
    assert len(send("GET", f"{program.url}/tasks").json) == 1       # half a request is none


def test_clients_that_vanish_behind_a_request_do_no_harm(program):
    for name, request in WHOLE.items():
        for after in (0, 0, 0.0002, 0.0005, 0.001, 0.003, 0.01, 0.05) + (0, 0.0002) * (
            20 if name == "refused" else 0
        ):
            vanish(program.url, request, after)
        assert send("GET", f"{program.url}/livez").status == 200, name


def test_many_clients_that_vanish_at_once_do_no_harm(program):
    url = program.url
    requests = [*WHOLE.values()] * 8
    at_once(*(functools.partial(vanish, url, request, n % 5 / 1000) for n, request in enumerate(requests)))


def test_a_client_that_does_not_read_keeps_nobody_waiting(program):
    silent = []
    for _ in range(8):      # four times as many as there are threads
        silent.append(connect(program.url, WHOLE["page"], buffer=4096))
    assert send("GET", f"{program.url}/livez").status == 200
    for each in silent:
        each.close()


# Clients that dribble

@pytest.fixture
def listen(server, store):
    """listen(patience): the address of a server that closes a connection after so many seconds of silence."""
    return lambda patience: server(store, patience=patience, waiters=1).url


@pytest.mark.parametrize(
    "first, then",
    [
        (b"", b"GET /tasks HTTP/1.1\r\nX: "),
        (b"GET /tasks HTTP/1.1\r\nHost: x\r\n", b"X: "),
        (b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n", b""),
        (b"POST /tasks HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999\r\n\r\n", b""),
        (b"POST /tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n270f\r\n", b""),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /tasks HTTP/1.1\r\nX: "),
    ],
    ids=[
        "from the first byte",
        "in its headers",
        "in its body",
        "in a body that was asked for",
        "in a chunk",
        "behind another",
    ],
)
def test_a_request_that_dribbles_in_is_given_up(listen, store, first, then):
    url = listen(patience=0.5)
    with connect(url, first) as connection:
        connection.settimeout(0.02)
        dribbled, deadline = 0, time.monotonic() + 20
        try:
            while True:
                assert time.monotonic() < deadline, f"it still listens, after {dribbled} bytes"
                connection.sendall(then[dribbled:dribbled + 1] or b" ")
                dribbled += 1
                try:
                    if not connection.recv(65536):
                        break
                except TimeoutError:
                    pass
        except (ConnectionResetError, BrokenPipeError):     # it has closed
            pass
    assert dribbled > 2 and send("GET", f"{url}/tasks").json == []


def test_a_request_that_comes_in_pieces_is_answered(listen):
    with connect(url := listen(patience=20)) as connection:
        for byte in request_of(url, "POST", "/tasks", b"", b'{"payload": 1}'):
            connection.sendall(bytes([byte]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")


def test_a_connection_that_is_used_again_and_again_is_kept(listen):
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(listen(patience=1)).port, timeout=20)
    connection.connect()
    ours, deadline = connection.sock, time.monotonic() + 2
    while time.monotonic() < deadline:
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"status": "ok"}'
        time.sleep(0.1)
    assert connection.sock is ours
    connection.close()


def test_clients_that_do_not_read_are_cut_off_and_hold_up_nobody(listen):
    url = listen(patience=2)
    # More clients than there are threads, and each asks for more than the server would keep for it.
    much = b"GET /swagger/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 30
    greedy = [connect(url, much, buffer=4096) for _ in range(12)]
    for _ in range(5):
        assert send("GET", f"{url}/livez").status == 200
    for connection in greedy:       # and they are cut off
        with connection, contextlib.suppress(ConnectionResetError):
            while connection.recv(1_000_000):
                pass


def test_idle_connections_make_room_for_others(listen, monkeypatch):
    monkeypatch.setattr(taskmanager, "MAX_CONNECTIONS", 50)
    url = listen(patience=60)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(url))
        assert send("GET", f"{url}/livez").status == 200


def test_a_request_that_waits_is_no_idle_connection(listen, store):
    store.create([new_task({"delay": 3600})])
    answer = send("GET", f"{listen(patience=0.2)}/tasks/1", Prefer="wait=1")
    assert (answer.status, answer.headers["Preference-Applied"]) == (200, "wait=1")


# Forged log lines

FORGED = "%0AFORGED%0D%0AFORGED%1B%5B2JFORGED%C2%85FORGED%E2%80%A8FORGED"


def assert_no_line_is_forged(log):
    assert not re.search(r"(?m)^\s*FORGED", log)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u2028\u2029]", log)


def test_nobody_can_forge_a_log_line(program):
    url = program.url
    for method in ("GET", "POST", "DELETE", "OPTIONS", "PUT"):
        for path in (
            f"/tasks/{FORGED}",
            f"/tasks/1{FORGED}",
            f"/tasks/1{FORGED}/cancel",
            f"/tasks/1/{FORGED}",
            f"/{FORGED}",
            f"/swagger/{FORGED}",
            f"/tasks?status={FORGED}",
            f"/tasks?{FORGED}=1",
            f"/tasks/1/complete{FORGED}",
        ):
            assert send(method, url + path).status in (204, 400, 404, 405)
    for value in (
        b"a\x0bFORGED",
        b"a\x1b[2JFORGED",
        b"a\x85FORGED",
        b"a\xe2\x80\xa8FORGED",
        b"a\x00FORGED",
        b"a\r\n FORGED",
        b"a\rFORGED",
        b"a\nFORGED",
    ):
        for name in (
            b"Idempotency-Key",
            b"X-Request-Id",
            b"Authorization",
            b"Host",
            b"Origin",
            b"Prefer",
            b"Content-Type",
            b"If-None-Match",
            b"User-Agent",
        ):
            raw(
                url,
                b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n"
                + name
                + b": "
                + value
                + b"\r\n\r\n{}",
            )
    task = send(
        "POST",
        f"{url}/tasks",
        {"payload": "\nFORGED", "max_attempts": 1},
        Idempotency_Key="FORGED",
        Prefer="wait=0",
    ).json
    while send("POST", f"{url}/tasks/claim").json[0]["id"] != task["id"]:
        pass
    assert (
        send(
            "POST",
            f"{url}/tasks/{task['id']}/fail",
            {"attempt": 1, "error": "\nFORGED\r\nFORGED\x1b[2J\x85\u2028FORGED"},
        ).json["status"]
        == "Failed"
    )
    program.logged(rf"failed task={task['id']} .*FORGED")
    assert_no_line_is_forged(program.log())


def test_a_client_that_is_gone_can_not_forge_a_log_line(program):
    for n in range(60):
        vanish(
            program.url,
            f"GET /tasks/1{FORGED} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * (n % 20 + 1),
            after=n % 4 / 2000,
        )
    send("GET", f"{program.url}/livez")
    assert_no_line_is_forged(program.log())


def test_an_error_in_the_program_can_not_forge_a_log_line(api, monkeypatch, caplog):
    monkeypatch.setattr(taskmanager, "HERE", None)
    is_problem(send("GET", f"{api}/swagger/a{FORGED}"), 500)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "FORGED" in record.getMessage()
    assert_no_line_is_forged(record.getMessage())


def test_a_handler_can_not_forge_a_log_line():
    record = logging.LogRecord(
        "handler",
        logging.INFO,
        "",
        0,
        "mail to %s",
        ("ann\r\n2026-01-01T00:00:00.000Z INFO forged\u2028\x1b[31m",),
        None,
    )
    assert (
        taskmanager.OneLine("%(message)s").format(record)
        == r"mail to ann\r\n2026-01-01T00:00:00.000Z INFO forged\u2028\x1b[31m"
    )
