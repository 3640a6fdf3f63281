"""What a monitor sees: /metrics in the text form of Prometheus, /livez and /readyz."""

import contextlib
import json
import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pika
import pytest

import taskmanager
from helpers import eventually, expire, http, is_problem, set_time
from taskmanager import NewTask, new_task

TEXT = "text/plain; version=0.0.4; charset=utf-8"
SAMPLE = re.compile(
    r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)'
)
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"')


class Metrics(dict):
    """The value of each series, by its name and its labels."""

    def of(self, name, **labels):
        return self.get((name, frozenset(labels.items())))

    def by(self, name, label):
        """The values of a name that has this label alone, by the value of the label."""
        return {
            dict(labels)[label]: value
            for (each, labels), value in self.items()
            if each == name and [*dict(labels)] == [label]
        }

    def labels(self, name):
        return [dict(labels) for each, labels in self if each == name]


def parse(text):
    """Metrics, read more strictly than Prometheus does."""
    assert text.endswith("\n")
    metrics, families, kind, buckets = Metrics(), [], None, {}
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("#"):
            word, name, meaning = line[2:].split(" ", 2)
            assert (word, bool(meaning)) == ("HELP", True), line
            assert name not in families, line
            word, typed, kind = next(lines)[2:].split(" ")
            assert (word, typed) == ("TYPE", name), line
            assert kind in ("gauge", "counter", "histogram"), line
            assert (kind == "counter") == name.endswith("_total"), line
            families.append(name)
            continue
        found = SAMPLE.fullmatch(line)
        assert found, line
        name, text, value = found[1], found[2] or "", float(found[3])
        labels = dict(LABEL.findall(text))
        assert ",".join(f'{label}="{each}"' for label, each in labels.items()) == text, line
        assert name.removeprefix(families[-1]) in (
            ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        ), line
        assert math.isfinite(value), line
        assert value >= 0, line
        assert (kind == "gauge" or name.endswith("_sum") or value == int(value)), line
        assert metrics.of(name, **labels) is None, f"twice: {line}"
        metrics[name, frozenset(labels.items())] = value
        if kind == "histogram" and name.endswith("_bucket"):
            buckets.setdefault(families[-1], []).append((float(labels["le"]), value))
    for name, each in buckets.items():
        limits, values = zip(*each, strict=True)
        assert limits[-1] == math.inf
        assert list(limits) == sorted(set(limits))
        assert list(values) == sorted(values)
        assert values[-1] == metrics.of(f"{name}_count")
        assert metrics.of(f"{name}_sum") is not None
    return metrics


def scrape(api, **headers):
    answer = http("GET", f"{api}/metrics", **headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, TEXT)
    return parse(answer.body.decode())


def statuses(api):
    return scrape(api).by("taskmanager_tasks", "status")


def events(api):
    """What happened at all, and how often."""
    return {
        event: number
        for event, number in scrape(api).by("taskmanager_task_events_total", "event").items()
        if number
    }


# The form

@pytest.mark.parametrize(
    "text, broken",
    [
        ('# HELP a_total b\n# TYPE a_total counter\na_total{x="1"} 1\n', False),
        ("a 1\n", True),
        ("# HELP a b\na 1\n", True),
        ("# HELP a b\n# TYPE a gauge\na 1\na 2\n", True),
        ('# HELP a b\n# TYPE a gauge\na{x="1",y="2"} 1\na{y="2",x="1"} 2\n', True),
        ("# HELP a b\n# TYPE a gauge\na 1", True),
        ("# HELP a b\n# TYPE a gauge\na NaN\n", True),
        ('# HELP a b\n# TYPE a gauge\na{x="\n"} 1\n', True),
        (
            '# HELP a b\n# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
            True,
        ),
        (
            '# HELP a b\n# TYPE a histogram\na_bucket{le="1"} 1\na_bucket{le="+Inf"} 1\na_sum 1\na_count 2\n',
            True,
        ),
    ],
    ids=[
        "right",
        "no type",
        "no type but help",
        "twice",
        "twice in another order",
        "no end",
        "no number",
        "newline in a label",
        "not cumulative",
        "another count",
    ],
)
def test_the_parser_of_these_tests_is_strict(text, broken):
    with pytest.raises((AssertionError, ValueError, IndexError)) if broken else contextlib.nullcontext():
        parse(text)


def test_a_service_that_has_done_nothing_shows_zeros(api):
    metrics = scrape(api)
    assert metrics.by("taskmanager_tasks", "status") == {
        "New": 0,
        "In Progress": 0,
        "Completed": 0,
        "Failed": 0,
    }
    assert set(metrics.by("taskmanager_task_events_total", "event")) == {
        "created",
        "claimed",
        "completed",
        "failed",
        "retried",
        "released",
        "reclaimed",
        "canceled",
        "deleted",
    }
    for name in (
        "taskmanager_oldest_ready_seconds",
        "taskmanager_messages_rejected_total",
        "taskmanager_wait_seconds_count",
        "taskmanager_run_seconds_count",
    ):
        assert metrics.of(name) == 0, name
    assert metrics.of("taskmanager_info", version=taskmanager.__version__) == 1
    assert metrics.of("taskmanager_database_up") == 1
    assert metrics.of("taskmanager_rabbitmq_up") is None       # where there should be none


def test_metrics_are_those_of_the_table_in_its_order(store, server):
    for rabbitmq in (None, lambda: True):
        text = http("GET", server(store, rabbitmq=rabbitmq, kinds="mail").url + "/metrics").body.decode()
        found = re.findall("# HELP ([^ ]+) (.+)\n# TYPE ([^ ]+) ([a-z]+)\n", text)
        table = [(name, meaning, name, kind) for name, (kind, meaning) in taskmanager.METRICS.items()]
        assert found == [each for each in table if rabbitmq or "rabbitmq" not in each[0]]
    with pytest.raises(KeyError):
        store.metrics._add("taskmanager_unknown_total", "", 1)


def test_head_of_the_metrics_has_no_body(api):
    answer = http("HEAD", f"{api}/metrics")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"", TEXT)


# Tasks

def test_tasks_are_counted_by_status(api, store):
    store.create([NewTask()] * 10 + [new_task({"delay": 3600})])
    done, failed, *_ = store.claim(6, 60)
    store.complete([(done.id, done.attempt, None)])
    store.fail([(failed.id, failed.attempt, "why")])
    assert statuses(api) == {"New": 5, "In Progress": 4, "Completed": 1, "Failed": 1}
    store.delete(done.id)
    store.create()
    eventually(lambda: statuses(api) == {"New": 6, "In Progress": 4, "Completed": 0, "Failed": 1})


def test_what_has_just_ended_has_a_rate(api, store):
    store.create([NewTask()] * 40)
    claims = store.claim(40, 60)
    store.complete([(row.id, row.attempt, None) for row in claims[:30]])
    store.fail([(row.id, row.attempt, "why") for row in claims[30:]])
    for row in claims[:5]:
        set_time(store, row.id, "updated_at", -60)
    assert scrape(api).by("taskmanager_finished_per_second", "status") == {"Completed": 2.5, "Failed": 1}


def test_the_oldest_task_that_could_be_claimed_has_an_age(api, store):
    def oldest():
        return scrape(api).of("taskmanager_oldest_ready_seconds")

    ready, scheduled, done = store.create([NewTask(priority=-1), new_task({"delay": 60}), NewTask()])
    [claim] = store.claim(1, 60)
    store.complete([(done, claim.attempt, None)])
    for id in (scheduled, done):
        set_time(store, id, "created_at", -18000)
    set_time(store, ready, "created_at", -3600)
    assert 3600 <= oldest() < 3660
    set_time(store, scheduled, "run_at", -7200)        # not ready before that, whenever it was created
    store.promote()
    eventually(lambda: 7200 <= oldest() < 7260)
    store.claim(9, 60)
    eventually(lambda: oldest() == 0)


def test_what_happens_to_tasks_is_counted(api, store):
    def tell(id, verb, **said):
        assert http("POST", f"{api}/tasks/{id}/{verb}", {"attempt": 1, **said}).status == 200
    assert http("POST", f"{api}/tasks", [{}] * 7).status == 201
    assert len(http("POST", f"{api}/tasks/claim", {"limit": 6}).json) == 6
    assert events(api) == {"created": 7, "claimed": 6}
    tell(1, "complete")
    tell(2, "fail", error="why", final=True)
    tell(3, "fail", error="why", delay=0)
    tell(4, "release")
    http("POST", f"{api}/tasks/5/cancel")  # asked, and then done
    assert events(api) == {
        "created": 7,
        "claimed": 6,
        "completed": 1,
        "failed": 1,
        "retried": 1,
        "released": 1,
    }
    tell(5, "complete")
    http("POST", f"{api}/tasks/7/cancel")
    http("POST", f"{api}/tasks/7/cancel")           # again: it counts once
    http("POST", f"{api}/tasks/2/retry")
    http("DELETE", f"{api}/tasks/1")
    assert events(api) == {
        "created": 7,
        "claimed": 6,
        "completed": 1,
        "failed": 1,
        "retried": 2,
        "released": 1,
        "canceled": 2,
        "deleted": 1,
    }


def test_what_is_refused_is_no_event(api, store):
    store.create([NewTask()] * 2)
    http("POST", f"{api}/tasks/claim")
    before = events(api)
    for method, path, said in (
        ("DELETE", "/1", None),
        ("POST", "/1/retry", None),
        ("POST", "/1/complete", {"attempt": 2}),
        ("POST", "/2/fail", {"attempt": 1, "error": "why"}),
        ("POST", "/2/release", {"attempt": 1}),
        ("POST", "/9/cancel", None),
        ("POST", "", {"priority": "high"}),
        ("POST", "", []),
    ):
        assert http(method, f"{api}/tasks{path}", said).status in (400, 404, 409)
    assert events(api) == before == {"created": 2, "claimed": 1}


def test_a_replay_creates_nothing(api):
    for _ in range(3):
        assert http("POST", f"{api}/tasks", [{}, {}], Idempotency_Key="key").status == 201
    assert events(api) == {"created": 2}


def test_a_task_whose_worker_died_is_counted_when_it_is_taken_back(api, store, work):
    store.create([NewTask()] * 2)
    http("POST", f"{api}/tasks/claim", {"limit": 2})
    expire(store, 1)
    work(concurrency=0)
    eventually(lambda: events(api).get("reclaimed"))
    assert events(api) == {"created": 2, "claimed": 2, "reclaimed": 1}
    eventually(lambda: statuses(api) == {"New": 1, "In Progress": 1, "Completed": 0, "Failed": 0})


def test_the_time_that_tasks_waited_is_measured(api, store):
    store.create([NewTask()] * 3)
    set_time(store, 1, "created_at", -20)
    set_time(store, 2, "created_at", -10800)
    http("POST", f"{api}/tasks/claim", {"limit": 3})
    metrics = scrape(api)
    waits = {float(le): number for le, number in metrics.by("taskmanager_wait_seconds_bucket", "le").items()}
    assert (waits[10], waits[30], waits[7200], waits[math.inf]) == (1, 2, 2, 3)
    assert 10820 <= metrics.of("taskmanager_wait_seconds_sum") < 10880


def test_the_time_that_tasks_ran_is_measured_over_http(api, store):
    store.create([NewTask()] * 3)
    http("POST", f"{api}/tasks/claim", {"limit": 3})
    for id in (1, 2, 3):
        set_time(store, id, "started_at", -100)
    for verb, said in (("extend", {}), ("progress", {"progress": 0.5})):
        http("POST", f"{api}/tasks/1/{verb}", {"attempt": 1, **said})
    assert scrape(api).of("taskmanager_run_seconds_count") == 0     # they still run
    for _ in range(2):  # the second time says nothing new
        for id, (verb, said) in enumerate(
            [("complete", {}), ("fail", {"error": "why", "final": True}), ("fail", {"error": "why"})], 1
        ):
            http("POST", f"{api}/tasks/{id}/{verb}", {"attempt": 1, **said})
    metrics = scrape(api)
    runs = {float(le): number for le, number in metrics.by("taskmanager_run_seconds_bucket", "le").items()}
    assert (runs[60], runs[300], runs[math.inf]) == (0, 3, 3)
    assert 300 <= metrics.of("taskmanager_run_seconds_sum") < 400


def test_the_time_that_tasks_ran_is_measured_in_the_embedded_worker(api, store, work):
    store.create([new_task({"payload": "fail", "max_attempts": 1}), new_task({"payload": "done"})])
    work(lambda task: {"done": 1}[task.payload])
    eventually(lambda: events(api) == {"created": 2, "claimed": 2, "completed": 1, "failed": 1})
    metrics = scrape(api)
    assert metrics.of("taskmanager_run_seconds_count") == metrics.of("taskmanager_wait_seconds_count") == 2


# Requests

def requests(api):
    """How many were answered, by route, method and status."""
    return {
        tuple(dict(labels)[label] for label in ("route", "method", "status")): number
        for (name, labels), number in scrape(api).items()
        if name == "taskmanager_http_requests_total"
    }


@pytest.mark.sqlite
def test_requests_are_counted_by_route_method_and_status(api, store):
    store.create()
    for method, path, times in (
        ("GET", "/tasks/1", 3),
        ("GET", "/tasks/2", 2),
        ("GET", "/tasks/3", 2),
        ("HEAD", "/tasks/1", 1),
        ("POST", "/tasks/1/cancel", 1),
        ("POST", "/tasks/claim", 2),
        ("GET", "/tasks?limit=0", 1),
        ("DELETE", "/tasks/1", 1),
        ("GET", "/nothing", 1),
        ("GET", "/nothing/7", 1),
        ("PUT", "/tasks/1", 1),
        ("OPTIONS", "/tasks/1", 1),
        ("GET", "/livez", 1),
        ("GET", "/swagger", 1),
        ("GET", "/swagger/none.js", 1),
    ):
        for _ in range(times):
            http(method, api + path)
    found = requests(api)
    for (route, method, status), number in {
        ("/tasks/{id}", "GET", "200"): 3,
        ("/tasks/{id}", "GET", "404"): 4,
        ("/tasks/{id}", "HEAD", "200"): 1,
        ("/tasks/{id}/cancel", "POST", "200"): 1,
        ("/tasks/claim", "POST", "200"): 2,
        ("/tasks", "GET", "400"): 1,
        ("/tasks/{id}", "DELETE", "204"): 1,
        ("other", "GET", "404"): 2,
        ("other", "other", "405"): 1,
        ("other", "OPTIONS", "204"): 1,
        ("/livez", "GET", "200"): 1,
        ("/swagger", "GET", "200"): 1,
        ("/swagger/{name}", "GET", "404"): 1,
    }.items():
        assert found[route, method, status] == number, (route, method, status)
    assert requests(api)["/metrics", "GET", "200"] == 1


@pytest.mark.sqlite
def test_no_client_can_make_a_new_series(api, store):
    def ask(n, methods):
        for path in (
            f"/tasks/{n}",
            f"/tasks/x{n}",
            f"/tasks/{n}/cancel",
            f"/tasks/{n}/complete",
            f"/tasks/{n}/nothing",
            f"/nothing/{n}",
            f"/{n}",
            f"/swagger/{n}",
            f"/tasks?a{n}=1",
            f"/livez?{n}",
            f"/tasks/%22%7D%20{n}%0A",
        ):
            for method in methods:
                http(method, api + path, X_Request_Id=f"id-{n}", Host=f"host{n}")
    ask(123, ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT"])
    scrape(api)
    before = set(requests(api))
    for n in (1234, "q" * 300):
        ask(n, ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PATCH", f"BREW{n}".upper(), "X!#$%&'*+-.^_`|~"])
    assert set(requests(api)) == before
    assert not re.search("123|BREW|host", " ".join(map(str, before)))


@pytest.mark.sqlite
def test_a_refused_token_is_counted_too(store, serve):
    api = serve(store, api_token="s3cret")
    http("GET", f"{api}/tasks")
    assert (
        scrape(api, Authorization="Bearer s3cret").of(
            "taskmanager_http_requests_total", route="/tasks", method="GET", status="401"
        )
        == 1
    )


# The token

@pytest.mark.sqlite
@pytest.mark.parametrize("path, status", [("/metrics", 401), ("/livez", 200), ("/readyz", 200)], ids=str)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["none", "wrong"])
def test_the_token_guards_the_metrics_and_not_the_health(store, serve, path, status, headers):
    api = serve(store, api_token="s3cret")
    answer = http("GET", api + path, **headers)
    if status == 401:
        is_problem(answer, 401)
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Task Manager"'
        assert b"taskmanager_" not in answer.body
    assert answer.status == status
    assert http("GET", api + path, Authorization="Bearer s3cret").status == 200


# Health

def database_is_away(api, store):
    assert http("GET", f"{api}/livez").status == 200
    answer = http("GET", f"{api}/readyz")
    is_problem(answer, 503)
    assert answer.headers["Retry-After"]
    metrics = scrape(api)
    assert metrics.of("taskmanager_database_up") == 0
    # better none than old ones
    assert not metrics.labels("taskmanager_tasks")
    assert metrics.of("taskmanager_oldest_ready_seconds") is None
    assert metrics.of("taskmanager_task_events_total", event="created") == 2
    assert metrics.of("taskmanager_wait_seconds_count") == 0
    return True


def database_is_back(api, store):
    assert http("GET", f"{api}/readyz").json == {"status": "ok", "database": "ok"}
    metrics = scrape(api)
    assert metrics.of("taskmanager_database_up") == 1
    assert metrics.of("taskmanager_tasks", status="New") == 2


def test_a_missing_table_is_reported_until_it_is_back(api, store):
    store.create([NewTask()] * 2)
    database_is_back(api, store)
    store._execute("alter table tasks rename to hidden")
    database_is_away(api, store)
    store._execute("alter table hidden rename to tasks")
    database_is_back(api, store)
    store._execute("drop table tasks")
    database_is_away(api, store)


@pytest.mark.sqlite
def test_a_missing_database_file_is_reported_until_it_is_back(api, store):
    store.create([NewTask()] * 2)
    aside = store.path.rename(store.path.with_suffix(".aside"))
    database_is_away(api, store)
    aside.rename(store.path)
    database_is_back(api, store)


def test_a_database_server_that_is_away_is_reported_until_it_is_back(postgres, serve):
    store = taskmanager.open_store(postgres.create_database("metrics"))
    api = serve(store)
    store.create([NewTask()] * 2)
    postgres.kill()
    database_is_away(api, store)
    postgres.start()
    database_is_back(api, store)


@pytest.mark.sqlite
def test_counts_are_not_asked_for_at_every_scrape_when_that_is_slow(api, store, monkeypatch):
    execute, asked = store._execute, []

    def slow(statement, *args, **kwargs):
        asked.append(statement)
        time.sleep(0.1)
        return execute(statement, *args, **kwargs)
    store.create([NewTask()] * 3)
    monkeypatch.setattr(store, "_execute", slow)
    for _ in range(5):
        metrics = scrape(api)
        assert metrics.by("taskmanager_tasks", "status") == {
            "New": 3,
            "In Progress": 0,
            "Completed": 0,
            "Failed": 0,
        }
        assert metrics.of("taskmanager_oldest_ready_seconds") > 0
    assert (
        asked.count(taskmanager.COUNT),
        asked.count(taskmanager.FINISHED),
        asked.count(taskmanager.OLDEST_READY),
    ) == (4, 2, 1)
    assert len(asked) == 12         # and, each time, whether it answers at all


# RabbitMQ, and the worker's own port


def test_nobody_waits_while_another_one_counts(store, monkeypatch):
    counting, done, execute = threading.Event(), threading.Event(), store._execute

    def slow(*args):
        counting.set()
        assert done.wait(20)
        return execute(*args)

    store.create([NewTask()] * 3)
    with monkeypatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr(store, "_execute", slow)
        first = pool.submit(store.count, "New")
        try:
            assert counting.wait(20) and store.count("New") is None
        finally:
            done.set()
        assert first.result() == 3
    assert store.count("New") == 3


def test_a_worker_serves_its_health_and_metrics_on_a_port_of_its_own(start, sqlite_database, broker):
    worker = start(
        "worker.py", DATABASE_URL=sqlite_database, RABBITMQ_URL=broker, METRICS_PORT=0, API_TOKEN="s3cret"
    )
    url, token = worker.metrics_url, {"Authorization": "Bearer s3cret"}
    worker.logged("started intake")
    eventually(
        lambda: http("GET", f"{url}/readyz").json == {"status": "ok", "database": "ok", "rabbitmq": "ok"}
    )
    assert http("GET", f"{url}/livez").json == {"status": "ok"}
    is_problem(http("GET", f"{url}/metrics"), 401)
    with pika.BlockingConnection(pika.URLParameters(broker)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for body in (b"nonsense", json.dumps({"payload": 1}).encode(), b'{"status": "Completed"}', b""):
            channel.basic_publish("", "task_queue", body, mandatory=True)
    eventually(lambda: scrape(url, **token).of("taskmanager_messages_rejected_total") == 2)
    eventually(lambda: scrape(url, **token).of("taskmanager_task_events_total", event="completed") == 2)
    metrics = scrape(url, **token)
    assert (
        metrics.of("taskmanager_task_events_total", event="created")
        == metrics.of("taskmanager_wait_seconds_count")
        == 2
    )
    assert metrics.of("taskmanager_rabbitmq_up") == metrics.of("taskmanager_database_up") == 1
    # nothing else is there
    for method, path in (
        ("GET", "/tasks"),
        ("POST", "/tasks"),
        ("POST", "/tasks/claim"),
        ("GET", "/swagger"),
        ("GET", "/"),
    ):
        is_problem(http(method, url + path, **token), 404)
    assert len(worker.log().split("started metrics port=")) == 2
    assert worker.stop() == 0


def test_a_worker_opens_no_port_unless_it_is_told_to(start, sqlite_database):
    worker = start("worker.py", DATABASE_URL=sqlite_database)
    worker.logged("started worker")
    assert "started metrics" not in worker.log()


@pytest.mark.sqlite
def test_a_metrics_port_that_is_taken_stops_the_start(start, sqlite_database, api):
    worker = start("worker.py", DATABASE_URL=sqlite_database, METRICS_PORT=api.rpartition(":")[2])
    assert worker.process.wait(20) == 1
    assert worker.log().startswith("worker.py: METRICS_PORT=")
    assert "Traceback" not in worker.log()


def test_without_rabbitmq_all_is_degraded_and_goes_on(start, sqlite_database, rabbitmq):
    settings = dict(DATABASE_URL=sqlite_database, RABBITMQ_URL=rabbitmq.url)
    api, worker = (
        start("taskmanager.py", **settings, WORKER="off"),
        start("worker.py", **settings, METRICS_PORT=0),
    )
    urls = [api.url, worker.metrics_url]
    worker.logged("started intake")

    def say(status, rabbitmq):
        for url in urls:
            answer = http("GET", f"{url}/readyz")
            assert answer.status == http("GET", f"{url}/livez").status == 200
            if answer.json != {"status": status, "database": "ok", "rabbitmq": rabbitmq} or scrape(url).of(
                "taskmanager_rabbitmq_up"
            ) != (rabbitmq == "ok"):
                return False
        return True
    eventually(lambda: say("ok", "ok"))
    rabbitmq.kill()
    eventually(lambda: say("degraded", "away"))
    id = http("POST", f"{urls[0]}/tasks").json["id"]
    eventually(lambda: http("GET", f"{urls[0]}/tasks/{id}").json["status"] == "Completed")
    rabbitmq.start()
    eventually(lambda: say("ok", "ok"), seconds=40)
