"""Between a client and the service: names, proxies, prefixes, other WSGI servers, pages of other origins."""

import io
import json
import re
from types import SimpleNamespace
from urllib.parse import urlsplit

import bottle
import pytest

import taskmanager
from helpers import ROOT, call_app, http, is_problem, raw
from taskmanager import BadSetting, Config, new_task


@pytest.fixture
def api(serve, sqlite_database):
    """api(**settings): an API on SQLite."""
    return lambda **settings: serve(taskmanager.open_store(sqlite_database), **settings)


def setting(name, value):
    return getattr(Config.from_env({name: value}), name.lower())


# The names of the service: a page of another site may lead a name of its own here (DNS rebinding)

def test_a_page_of_another_site_reads_nothing_of_the_image(start, sqlite_database):
    # `docker run -p 127.0.0.1:5000:5000`: inside, every address is open, and Host says what the page likes
    lines = re.findall("^ENV (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    image = dict(re.findall(r"(\w+)=(\S+)", " ".join(lines)))
    program = start("taskmanager.py", **image | {"DATABASE_URL": sqlite_database, "WORKER": "off"})
    url = f"http://127.0.0.1:{urlsplit(program.url).port}"
    for host in ("localhost:5000", "127.0.0.1:5000", "[::1]:5000"):
        assert http("POST", f"{url}/tasks", Host=host).status == 201
    for host in ("evil.example", "evil.example:5000", "127.0.0.1.evil.example", "evil", "192.168.1.5"):
        same_origin = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        for request in ("GET /tasks", "POST /tasks", "DELETE /tasks/1", "GET /metrics", "GET /"):
            method, path = request.split()
            is_problem(http(method, url + path, **same_origin), 403)
    assert len(http("GET", f"{url}/tasks").json) == 3


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost", 200),
        ("tasks.localhost", 200),
        ("192.168.1.5", 200),
        ("192.168.1.5:5000", 200),
        ("[fe80::1]:5000", 200),
        ("api", 200),
        ("my-machine:5000", 200),
        ("evil.example", 403),
        ("evil.example:5000", 403),
        ("192.168.1.5.evil.example", 403),
        ("1e.2", 403),
        ("evil.", 403),
        ("localhost.evil.example", 403),
        (".localhost", 403),
        ("[evil.example]", 403),
        ("\xff", 403),
    ],
    ids=ascii,
)
def test_where_nobody_named_it_only_names_that_no_site_can_have_are_answered(api, host, status):
    # an API that is open to the network, or under another WSGI server, with neither a token nor ALLOWED_HOSTS
    answer = http("GET", f"{api()}/tasks", Host=host)
    assert answer.status == status
    if status == 403:
        assert "ALLOWED_HOSTS" in is_problem(answer, 403)


@pytest.mark.parametrize("value, good, bad", [
    ("a.example.com, b.example", ["a.example.com", "B.example:80"], ["localhost", "example.com"]),
    (".example.com", ["example.com", "a.example.com", "a.b.example.com:5000"], ["anexample.com", "x"]),
    ("*", ["evil.example", "127.0.0.1", "x"], []),
    ("::1,10.0.0.7", ["[::1]:5000", "10.0.0.7"], ["10.0.0.70", "localhost"]),
], ids=["blanks", "domain", "any", "addresses"])
def test_only_allowed_hosts_are_answered(api, value, good, bad):
    url = api(allowed_hosts=setting("ALLOWED_HOSTS", value))
    assert {http("GET", f"{url}/tasks", Host=host).status for host in good} == {200}
    assert [http("GET", f"{url}/tasks", Host=host).status for host in bad] == [403] * len(bad)


@pytest.mark.parametrize(
    "name, value",
    [
        *(
            ("ALLOWED_HOSTS", value)
            for value in (
                "https://tasks.example.com",
                "tasks.example.com:5000",
                "10.0.0.0/8",
                "a,,b",
                "a b",
                "*.example.com",
                "999.1.1.1",
                "5000",
                "a..b",
                "tasks.example.com/",
                "münchen.example",
            )
        ),
        *(
            ("PUBLIC_URL", value)
            for value in (
                "tasks.example.com",
                "https://",
                "ftp://x/",
                "https://x/?a=1",
                "https://user@x/",
                "https://x//y",
                "https://x:70000/",
                "https://x/#y",
                "https://x..y/",
                "https://.x/",
                "http://256.1.1.1/",
                "https://x:080/",
            )
        ),
        *(
            ("ALLOWED_ORIGINS", value)
            for value in (
                "*",
                "null",
                "app.example.com",
                "https://x/",
                "https://x,",
                "https://*.example.com",
                "https://x:0",
            )
        ),
    ],
)
def test_what_can_never_match_is_refused_at_the_start(name, value):
    with pytest.raises(BadSetting, match=f"{name}=.*expected"):
        setting(name, value)


def test_health_answers_to_any_name(api):
    # a probe of Kubernetes or of a load balancer comes by the address of the container
    url = api(allowed_hosts="tasks.example.com")
    for path, status in (("/livez", 200), ("/readyz", 200), ("/metrics", 403), ("/tasks", 403)):
        assert http("GET", url + path, Host="evil.example").status == status


# Behind a proxy

PUBLIC = "https://tasks.example.com/jobs/"


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "tasks.example.com", "Tasks.Example.com:443"])
@pytest.mark.parametrize("hosts", [(), ("localhost", "127.0.0.1")], ids=["open", "loopback"])
def test_a_page_behind_a_proxy_may_act_and_every_address_leads_there(api, host, hosts):
    # nginx says its own name for the service, or the client's without the port, and strips the prefix
    url = api(public_url=setting("PUBLIC_URL", PUBLIC), hosts=hosts)
    answer = http("POST", f"{url}/tasks", Host=host, Origin="https://tasks.example.com")
    assert (answer.status, answer.headers["Location"]) == (201, "/jobs/tasks/1")
    http("POST", f"{url}/tasks", Host=host)
    link = http("GET", f"{url}/tasks?limit=1", Host=host).headers["Link"]
    assert link == '</jobs/tasks?limit=1>; rel="first", </jobs/tasks?limit=1&after=1>; rel="next"'
    assert http("GET", f"{url}/swagger/", Host=host).headers["Location"] == "/jobs/swagger"
    assert http("GET", f"{url}/tasks/7", Host=host).json["instance"] == "/jobs/tasks/7"
    refused = raw(url, f"GET /tasks HTTP/1.1\r\nHost: {host}\r\nContent-Length: x\r\n\r\n".encode())
    assert json.loads(refused.partition(b"\r\n\r\n")[2])["instance"] == "/jobs/tasks"
    for origin in "https://tasks.example.com:8443", "https://example.com", "null", "://":
        is_problem(http("POST", f"{url}/tasks", Host=host, Origin=origin), 403)


@pytest.mark.parametrize(
    "value, kept",
    [
        ("https://tasks.example.com", "https://tasks.example.com/"),
        ("HTTPS://Tasks.Example.com:443/jobs", PUBLIC),
        ("http://10.0.0.7:8080/B%20c/", "http://10.0.0.7:8080/B%20c/"),
        ("http://[::1]:80", "http://[::1]/"),
    ],
)
def test_a_public_url_is_what_a_browser_makes_of_it(value, kept):
    assert setting("PUBLIC_URL", value) == kept


def test_the_start_shows_the_public_url(start, sqlite_database):
    program = start("taskmanager.py", DATABASE_URL=sqlite_database, PUBLIC_URL=PUBLIC)
    assert program.url.startswith("http://localhost:")
    program.logged(f"look at it +{PUBLIC}"[:-1])


# Under a prefix

@pytest.mark.parametrize("prefix", ["/jobs", "/jobs/"])
def test_a_page_opened_without_the_slash_is_led_to_the_one_with_it(serve, sqlite_database, prefix):
    # a Bottle application says "/" for /jobs as well as for /jobs/
    app = bottle.Bottle()
    app.mount(prefix, taskmanager.create_app(taskmanager.open_store(sqlite_database)))
    url = serve(app)
    assert http("GET", f"{url}/jobs/").status == 200
    if prefix == "/jobs":
        assert http("GET", f"{url}/jobs?task=1").headers["Location"] == "/jobs/?task=1"


@pytest.mark.parametrize(
    "prefix, query, leads",
    [
        ("/jobs", "", "/jobs/"),
        ("/jobs", "status=New&after=5", "/jobs/?status=New&after=5"),
        ("/a/b c", "", "/a/b%20c/"),
        ("/b\u00fcro".encode().decode("latin-1"), "", "/b%C3%BCro/"),
    ],
)
def test_a_path_without_the_slash_is_led_on_under_every_wsgi_server(sqlite_database, prefix, query, leads):
    # Werkzeug's DispatcherMiddleware, mod_wsgi and others leave the path empty
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database))
    status, headers, _ = call_app(app, "GET", "", SCRIPT_NAME=prefix, QUERY_STRING=query)
    assert (status, headers["Location"]) == (302, leads)
    assert call_app(app, "GET", "/", SCRIPT_NAME=prefix)[0] == 200
    created = call_app(app, "POST", "/tasks", SCRIPT_NAME=prefix)
    assert created[1]["Location"] == leads.partition("?")[0] + "tasks/1"


# Other WSGI servers

TEXT = b'{"payload": "' + b"x" * 200_000 + b'"}'
PIECES = [TEXT[n:n + 7000] for n in range(0, len(TEXT), 7000)]
CHUNKS = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*PIECES, b""])


class OpenEnd(io.BytesIO):
    """A connection that the client keeps open: a server that reads on behind the end waits for ever."""

    def read(self, size=-1):
        data = super().read(size)
        assert data and size > 0, "waits for ever"
        return data


class InPieces(io.BytesIO):
    def read(self, size=-1):
        return super().read(min(size, 1000))


@pytest.mark.parametrize(
    "stream, environ",
    [
        (io.BytesIO(TEXT), {"wsgi.input_terminated": True}),
        (InPieces(TEXT), {"wsgi.input_terminated": True}),
        (io.BytesIO(TEXT), {}),
        (InPieces(b"\n " + TEXT), {}),
        (OpenEnd(CHUNKS), {}),
    ],
    ids=["gunicorn, cheroot, gevent", "in pieces", "hypercorn, tornado", "eventlet", "wsgiref"],
)
def test_a_chunked_body_is_read_whether_the_server_has_decoded_it_or_not(sqlite_database, stream, environ):
    store = taskmanager.open_store(sqlite_database)
    app = taskmanager.create_app(store)
    environ = {"HTTP_TRANSFER_ENCODING": "chunked", **environ}
    assert call_app(app, "POST", "/tasks", stream=stream, **environ)[0] == 201
    assert store.read(1).payload == json.dumps("x" * 200_000)


def test_an_empty_chunked_body_makes_a_bare_task(sqlite_database):
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database))
    for stream, environ in ((io.BytesIO(), {"wsgi.input_terminated": True}), (OpenEnd(b"0\r\n\r\n"), {})):
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
        assert call_app(app, "POST", "/tasks", stream=stream, **environ)[0] == 201


def test_a_chunked_body_that_the_server_keeps_to_itself_makes_no_bare_task(sqlite_database):
    store = taskmanager.open_store(sqlite_database)     # so uWSGI, which has a call of its own for it
    app = taskmanager.create_app(store)
    status, _, body = call_app(app, "POST", "/tasks", HTTP_TRANSFER_ENCODING="chunked")
    assert status == 400
    assert b"Content-Length" in body
    assert store.list_tasks() == []


def test_a_body_that_is_too_large_is_refused_under_other_servers_too(sqlite_database):
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database))
    for environ in ({"wsgi.input_terminated": True}, {}):
        many = SimpleNamespace(read=lambda size: b" " * size)      # without end
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
        assert call_app(app, "POST", "/tasks", stream=many, **environ)[0] == 413


@pytest.mark.parametrize("request_line", ["POST /tasks", "DELETE /tasks/1", "POST /tasks/1/cancel"])
@pytest.mark.parametrize("environ", [
    {"HTTP_TRANSFER_ENCODING": "chunked"}, {"CONTENT_LENGTH": str(2**40)}], ids=["chunks", "length"])
def test_a_body_without_end_fills_no_disk_under_other_servers(sqlite_database, request_line, environ):
    # under wsgiref and uWSGI nobody else counts what comes, and Bottle keeps all of it in a file
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database))
    chunk, taken = b"10000\r\n" + b" " * 65536 + b"\r\n", [0]

    def read(size):
        begin = taken[0] % len(chunk)
        data = chunk[begin:begin + size]
        taken[0] += len(data)
        assert taken[0] < 2 * taskmanager.MAX_BODY, "takes more than it may use"
        return data
    method, path = request_line.split()
    assert call_app(app, method, path, stream=SimpleNamespace(read=read), **environ)[0] in (404, 413)


# Pages of other origins (CORS)

APP = "https://app.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}


def cors(answer):
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def test_a_front_end_on_an_allowed_origin_may_do_all_with_its_token(api):
    origins = setting("ALLOWED_ORIGINS", f"https://other.example, {APP}:443")
    url = api(allowed_origins=origins, api_token="s3cret")
    page = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
    before = http("OPTIONS", f"{url}/tasks/1", **page, **PREFLIGHT)       # without the token, as browsers ask
    assert before.status == 204
    assert cors(before)["access-control-allow-origin"] == APP
    assert "DELETE" in cors(before)["access-control-allow-methods"]
    assert {"authorization", "content-type", "if-match", "prefer", "idempotency-key"} <= {
        name.strip().lower() for name in cors(before)["access-control-allow-headers"].split(",")}
    token = {"Authorization": "Bearer s3cret"}
    requests = ("POST /tasks", "GET /tasks", "GET /tasks/7", "DELETE /tasks/1", "PUT /tasks/1")
    answers = [http(method, url + path, **page, **token) for method, path in map(str.split, requests)]
    answers += [http("GET", f"{url}/tasks", **page), http("GET", f"{url}/tasks", **page, Cookie="s3cret")]
    # by the server
    answers.append(http("POST", f"{url}/tasks", b" " * (taskmanager.MAX_BODY + 1), **page, **token))
    assert [answer.status for answer in answers] == [201, 200, 404, 204, 405, 401, 401, 413]
    for answer in answers:      # errors as well: a front end shows what they say
        assert cors(answer)["access-control-allow-origin"] == APP
        assert "ETag" in cors(answer)["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in cors(answer)


@pytest.mark.parametrize("origin", [
    "https://evil.example", "http://app.example.com", f"{APP}:8443", f"{APP}.evil.example", "null", ""])
def test_another_origin_is_shut_out_as_ever(api, origin):
    url = api(allowed_origins=APP)
    page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    assert not cors(http("OPTIONS", f"{url}/tasks", **page, **PREFLIGHT))
    assert not cors(http("GET", f"{url}/tasks", **page))
    is_problem(http("POST", f"{url}/tasks", **page), 403)


def test_a_cache_does_not_give_the_answer_for_one_origin_to_another(api):
    url = api(allowed_origins=APP)
    http("POST", f"{url}/tasks")
    tag = http("GET", f"{url}/tasks/1").headers["ETag"]
    for headers in ({}, {"Origin": APP}, {"Origin": "https://evil.example"}, {"If-None-Match": tag}):
        for path in ("/tasks", "/tasks/1", "/", "/openapi.yaml", "/nothing"):
            assert http("GET", url + path, **headers).headers["Vary"] == "Origin"


def test_without_allowed_origins_there_is_no_word_of_it(api):
    url = api(public_url=PUBLIC)
    for origin in (APP, "https://tasks.example.com", ""):
        answer = http("GET", f"{url}/tasks", Origin=origin)
        assert not cors(answer) and answer.headers["Vary"] is None


# If-Match: only if nobody has changed it since

ACTIONS = pytest.mark.parametrize(
    "method, verb, status",
    [
        ("POST", "/cancel", 409),
        ("POST", "/retry", 200),
        ("DELETE", "", 204),
    ],
    ids=["cancel", "retry", "delete"],
)


@ACTIONS
def test_what_has_changed_since_it_was_read_is_left_alone(store, serve, method, verb, status):
    # two people with the same page open: one retries and deletes what the other has in view
    url = serve(store)
    [id] = store.create([new_task({"payload": 1})])
    old = http("GET", f"{url}/tasks/{id}").headers["ETag"]
    store.cancel(id)
    failed = http("GET", f"{url}/tasks/{id}").headers["ETag"]
    for stale in (old, f'"x", {old}', f"W/{failed}", "nonsense", ""):
        assert "If-Match" in is_problem(http(method, f"{url}/tasks/{id}{verb}", If_Match=stale), 412)
    assert http("GET", f"{url}/tasks/{id}").headers["ETag"] == failed
    is_problem(http(method, f"{url}/tasks/99{verb}", If_Match=old), 404)
    status = 200 if verb == "/cancel" else status       # to cancel twice does no harm
    assert http(method, f"{url}/tasks/{id}{verb}", If_Match=f'"x", {failed}').status == status


@ACTIONS
def test_any_version_is_meant_by_a_star(store, serve, method, verb, status):
    url = serve(store)
    store.create()
    store.fail([(row.id, row.attempt, "why") for row in store.claim(1, 30)])
    assert http(method, f"{url}/tasks/1{verb}", If_Match="*").status == status
    is_problem(http(method, f"{url}/tasks/99{verb}", If_Match="*"), 404)


@pytest.mark.parametrize("act", ["cancel", "retry_by_hand", "delete"])
def test_a_change_between_reading_and_acting_is_noticed(store, act):
    [id] = store.create()
    if act == "retry_by_hand":
        store.cancel(id)
    seen = store.read(id)
    if act == "retry_by_hand":
        store.retry_by_hand(id)
    store.fail([(row.id, row.attempt, "why") for row in store.claim(1, 30)])
    now = store.read(id)
    with pytest.raises(taskmanager.Changed):
        getattr(store, act)(id, seen)
    assert store.read(id) == now
