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
