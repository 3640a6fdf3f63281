"""READ_TOKEN: a second token, which reads everything and changes nothing."""

import re

import pytest

import taskmanager
from helpers import call_app, http, is_problem
from taskmanager import BadSetting, Config, NewTask

TOKENS = {"api_token": "may-write", "read_token": "may-read"}
WRITE, READ = {"Authorization": "Bearer may-write"}, {"Authorization": "Bearer may-read"}


@pytest.fixture
def api(store, serve):
    return serve(store, **TOKENS)


def test_it_reads_and_does_nothing_else(api, store):
    store.create([NewTask()] * 2)
    before = [store.read(1), store.read(2)]
    bodies = {"extend": {"attempt": 1}, "progress": {"attempt": 1, "progress": 0.5},
              "complete": {"attempt": 1}, "fail": {"attempt": 1, "error": "why"}, "release": {"attempt": 1}}
    for route in taskmanager.ROUTES:
        path = route.path.replace("{id}", "1").replace("{name}", "LICENSE")
        body = bodies.get(path.rpartition("/")[2])
        answer = http(route.method, api + path, body, **READ)
        if route.method == "GET":
            assert answer.status in (200, 302, 404), path
            assert http("HEAD", api + path, **READ).status == answer.status
        else:
            assert "API_TOKEN" in is_problem(answer, 403)
            assert answer.json["code"] == "read-only-token", path
    assert [store.read(1), store.read(2)] == before and len(store.list_tasks()) == 2
    assert http("POST", f"{api}/tasks", **WRITE).status == 201


def test_a_refused_request_is_refused_before_its_body_is_looked_at(api):
    is_problem(http("POST", f"{api}/tasks", b"nonsense", **READ), 403)
    is_problem(http("POST", f"{api}/tasks/nonsense/cancel", **READ), 403)


def test_the_page_is_told_what_a_token_is_good_for(api, store, serve):
    asked = f"{api}/token"
    assert http("GET", asked, **WRITE).json == {"write": True}
    assert http("GET", asked, **READ).json == {"write": False}
    for headers in ({}, {"Authorization": "Bearer may"}, {"Authorization": "Basic may-read"},
                    {"Authorization": "Bearer "}, {"Authorization": "Bearer may-read may-read"}):
        is_problem(http("GET", asked, **headers), 401)
        is_problem(http("GET", f"{api}/tasks", **headers), 401)
    assert http("GET", f"{serve(store)}/token").json == {"write": True}
    assert http("GET", f"{serve(store)}/token", **READ).json == {"write": True}      # as no token is needed
    alone = serve(store, api_token="may-write")
    assert http("GET", f"{alone}/token", **WRITE).json == {"write": True}
    is_problem(http("GET", f"{alone}/token", **READ), 401)
    is_problem(http("GET", f"{alone}/token", Authorization="Bearer "), 401)


def test_it_is_good_for_the_metrics_of_a_worker_too(store):
    app = taskmanager.create_app(store, Config(**TOKENS), only_health=True)
    assert call_app(app, "GET", "/metrics", HTTP_AUTHORIZATION="Bearer may-read")[0] == 200
    assert call_app(app, "GET", "/metrics", HTTP_AUTHORIZATION="Bearer may")[0] == 401


def test_a_browser_asks_before_it_sends_a_token(store, serve):
    api, origin = serve(store, allowed_origins="https://app.example", **TOKENS), "https://app.example"
    preflight = http("OPTIONS", f"{api}/tasks", Origin=origin, Access_Control_Request_Method="POST")
    assert (preflight.status, preflight.headers["Access-Control-Allow-Origin"]) == (204, origin)
    refused = http("POST", f"{api}/tasks", Origin=origin, **READ)
    assert refused.json["code"] == "read-only-token"
    assert refused.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize("settings, expected", [
    ({"read_token": "Hunter2Secret7x"}, "API_TOKEN"),
    ({"api_token": "Hunter2Secret7x", "read_token": "Hunter2Secret7x"}, "another token"),
], ids=["alone", "the same"])
def test_it_needs_another_one_beside_it(settings, expected):
    with pytest.raises(BadSetting, match=f"READ_TOKEN=.*{expected}") as error:
        Config.from_env({name.upper(): value for name, value in settings.items()})
    assert not re.search("Hunter2|Secret7x", str(error.value))
    assert Config(api_token="a", read_token="b").read_token == "b"
