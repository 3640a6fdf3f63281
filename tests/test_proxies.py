"""Between a client and the service: names, proxies, prefixes, other WSGI servers, pages of other origins."""

import io
import json
import re
import wsgiref.util
from types import SimpleNamespace
from urllib.parse import urlsplit

import bottle
import pytest

import taskmanager
from conftest import ROOT, http, is_problem, raw
from taskmanager import BadSetting, Config, new_task


@pytest.fixture
def api(serve, sqlite_database):
    """api(**settings): an API on SQLite."""
    return lambda **settings: serve(taskmanager.open_store(sqlite_database), **settings)


def setting(name, value):
    return getattr(Config.from_env({name: value}), name.lower())


def ask(app, method, path, stream=None, **environ):
    """One request without a server: the status, the headers and the body of the answer."""
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": stream or io.BytesIO()}
    wsgiref.util.setup_testing_defaults(environ)
    said = []

    def start(status, headers, exc_info=None):
        said.extend((int(status[:3]), dict(headers)))
    body = b"".join(app(environ, start))
    return (*said, body)


# Other WSGI servers

TEXT = b'{"payload": "' + b"x" * 200_000 + b'"}'
PIECES = [TEXT[n:n + 7000] for n in range(0, len(TEXT), 7000)]
CHUNKS = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*PIECES, b""])


class OpenEnd(io.BytesIO):
    """A connection that the client keeps open: whoever reads on behind the end waits for ever."""

    def read(self, size=-1):
        data = super().read(size)
        assert data and size > 0, "waits for ever"
        return data


class InPieces(io.BytesIO):
    def read(self, size=-1):
        return super().read(min(size, 1000))


@pytest.mark.parametrize("stream, environ", [
    (io.BytesIO(TEXT), {"wsgi.input_terminated": True}), (InPieces(TEXT), {"wsgi.input_terminated": True}),
    (io.BytesIO(TEXT), {}), (InPieces(b"\n " + TEXT), {}), (OpenEnd(CHUNKS), {}),
], ids=["gunicorn, cheroot, gevent", "in pieces", "hypercorn, tornado", "eventlet", "wsgiref"])
def test_a_chunked_body_is_read_whether_the_server_has_decoded_it_or_not(sqlite_database, stream, environ):
    store = taskmanager.open_store(sqlite_database)
    app = taskmanager.create_app(store)
    assert ask(app, "POST", "/tasks", stream=stream, HTTP_TRANSFER_ENCODING="chunked", **environ)[0] == 201
    assert store.read(1).payload == json.dumps("x" * 200_000)


def test_an_empty_chunked_body_makes_a_bare_task(sqlite_database):
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database))
    for stream, environ in ((io.BytesIO(), {"wsgi.input_terminated": True}), (OpenEnd(b"0\r\n\r\n"), {})):
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
        assert ask(app, "POST", "/tasks", stream=stream, **environ)[0] == 201


def test_a_chunked_body_that_the_server_keeps_to_itself_makes_no_bare_task(sqlite_database):
    store = taskmanager.open_store(sqlite_database)     # so uWSGI, which has a call of its own for it
    status, _, body = ask(taskmanager.create_app(store), "POST", "/tasks", HTTP_TRANSFER_ENCODING="chunked")
    assert status == 400 and b"Content-Length" in body and store.list() == []


def test_a_body_that_is_too_large_is_refused_under_other_servers_too(sqlite_database):
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database))
    for environ in ({"wsgi.input_terminated": True}, {}):
        many = SimpleNamespace(read=lambda size: b" " * size)      # without end
        assert ask(app, "POST", "/tasks", stream=many, HTTP_TRANSFER_ENCODING="chunked", **environ)[0] == 413


# If-Match: only if nobody has changed it since

ACTIONS = pytest.mark.parametrize("method, verb, status", [
    ("POST", "/cancel", 409), ("POST", "/retry", 200), ("DELETE", "", 204),
], ids=["cancel", "retry", "delete"])


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
def test_a_change_between_the_look_and_the_deed_is_seen(store, act):
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
