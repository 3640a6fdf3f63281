"""What is written is what happens: README, openapi.yaml, .env.example and schema.sql against the programs."""

import ast
import io
import json
import operator
import os
import re
import shlex
import shutil
import signal
import subprocess
import symtable
import sys
import time
import wsgiref.util
from urllib.parse import urlsplit

import bottle
import pytest

import taskmanager
from helpers import DOCUMENT_TABLE, ROOT, call_app, eventually, http, raising
from servers import free_port
from taskmanager import Config

README = (ROOT / "README.md").read_text(encoding="utf-8")
OPENAPI = (ROOT / "openapi.yaml").read_text(encoding="utf-8")


def section(title):
    """A section of README, down to the next title of its level."""
    level = title.split(" ")[0]
    pattern = rf"^{re.escape(title)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)"
    return re.search(pattern, README, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_readme_says_a_thing_once(name):
    """As after two branches that both changed a paragraph, and a merge that kept both."""
    text = (ROOT / name).read_text(encoding="utf-8")
    told = re.findall(r"^(?:- )?\*\*.+?\*\*|^\| `tests.*?\|", text, re.MULTILINE)
    assert [each for each in set(told) if told.count(each) > 1] == []
    numbers = [int(each) for each in re.findall(r"^(\d+)\. ", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


# Configuration

def test_readme_has_every_variable_with_its_default_and_meaning():
    rows = re.findall(
        r"^\| `(\w+)` \| (?:`(.+?)`|\*\(none\)\*) \| (.+) \|$", section("## Configuration"), re.MULTILINE
    )
    assert rows == list(Config.table())


def test_env_example_has_every_variable_with_its_default():
    text = (ROOT / ".env.example").read_text()
    for name, default, _ in Config.table():
        said = re.search(rf"^#?{name}=(.*)$", text, re.MULTILINE)
        assert said, name
        if name not in ("DATABASE_URL", "RABBITMQ_URL"):        # these two are as in the document, see below
            assert said[1] == default, name
    document = "FLASK_APP=app.py\nFLASK_ENV=development\nDATABASE_URL=postgresql://user:password@postgres:5432/task_db\nRABBITMQ_URL=amqp://rabbitmq\n"
    assert document in text


def test_compose_hands_on_every_variable():
    """A setting in .env that compose does not name never reaches the containers."""
    text = (ROOT / "docker-compose.yml").read_text()
    assert [name for name, *_ in Config.table() if not re.search(rf"^ +{name}: ", text, re.MULTILINE)] == []


@pytest.mark.parametrize(
    "name, value",
    [
        ("DATABASE_URL", "mysql://host/name"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "sqlite:///tasks.db?x=1"),
        ("DATABASE_URL", "postgresql://user:s3cret@host:port/name"),
        ("RABBITMQ_URL", "rabbitmq"),
        ("RABBITMQ_URL", "amqp://user:s3cret@host:port"),
        ("RABBITMQ_URL", "amqp://host?heartbeat=soon"),
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("THREADS", "0"),
        ("THREADS", "1.5"),
        ("WORKER", "yes"),
        ("CONCURRENCY", "many"),
        ("MAX_ATTEMPTS", "0"),
        ("RETRY_SECONDS", "-1"),
        ("RETRY_SECONDS", "nan"),
        ("LEASE_SECONDS", "inf"),
        ("POLL_SECONDS", "0"),
        ("GRACE_SECONDS", "soon"),
        ("RETENTION_DAYS", "-1"),
        ("TASK_TIMEOUT", "0"),
        ("TASK_QUEUE", "amq.queue"),
        ("TASK_QUEUE", "a b"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FILE", "/no/such/folder/log"),
        ("API_TOKEN", "two words"),
        ("READ_TOKEN", "two words"),
        ("READ_TOKEN", "s3cret"),       # alone
        ("PROCESSES", "0"),
        ("PROCESSES", "2"),             # on SQLite
        ("HANDLER", "nonsense"),
        ("HOST", "no.such.host.invalid"),
        ("DATABASE_URL", "sqlite:////no/such/folder/tasks.db"),
        ("DATABASE_URL", "sqlite:///README.md"),
    ],
    ids=lambda value: value[:25],
)
def test_a_value_that_can_not_be_used_stops_the_start_with_one_line(start, sqlite_database, name, value):
    program = start("taskmanager.py", **{"DATABASE_URL": sqlite_database, name: value})
    assert program.process.wait(20) == 1
    *_, line = program.log().splitlines()
    assert line.startswith("taskmanager.py: ")
    assert f"{name}=" in line
    assert "can't be used" in line
    assert "Traceback" not in program.log()
    assert "s3cret" not in program.log()
    assert "two words" not in program.log()


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:s3cret@host/name",
        "postgresql://user:s3#cret@host/name",
        "postgresql://user:s3?cret@host/name",
        "postgresql://user:s3/cret@host/name",
        "postgresql://host/name?user=u&password=s3cret",
        "amqp://user:s3@cret@host",
        "https://host/path?token=s3cret",
        "no answer from http://u:s3cret@host: refused",
    ],
)
def test_a_password_is_not_shown(text):
    shown = taskmanager.redact(text)
    assert "s3" not in shown
    assert "cret" not in shown
    if "?cret" not in text:     # where it is not clear what the host is
        assert "host" in shown


def test_an_empty_variable_counts_as_not_set():
    assert Config.from_env({name: "" for name, _, _ in Config.table()}) == Config()


@pytest.mark.parametrize("script", ["taskmanager.py", "worker.py"])
def test_help_tells_every_variable(script):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    assert done.returncode == 0
    for name, default, meaning in Config.table():
        assert f"{name} {default or '-'} {meaning.replace('`', '')}" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert subprocess.run([sys.executable, ROOT / script, "--verbose"], capture_output=True).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251"])
def test_help_is_shown_in_whatever_encoding_stdout_has(encoding):
    # LC_ALL=POSIX in a minimal container, a console of Windows
    environ = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    command = [sys.executable, ROOT / "taskmanager.py", "--help"]
    done = subprocess.run(command, capture_output=True, env=environ)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).count("\n  ") >= len(list(Config.table()))


# openapi.yaml, read with regular expressions: its layout is fixed, and a parser would be one more dependency

def operations():
    """(method, path): the lines of the operation."""
    found, path, method = {}, None, None
    for line in OPENAPI[OPENAPI.index("\npaths:"):OPENAPI.index("\ncomponents:")].splitlines()[2:]:
        if match := re.match(r"  (/\S*):", line):
            path, method = match[1], None
        elif match := re.match(r"    (get|post|put|delete|patch):", line):
            method = match[1].upper()
            found[method, path] = []
        elif method:
            found[method, path].append(line)
    return {key: "\n".join(lines) for key, lines in found.items()}


def component(kind, name):
    """The lines of #/components/KIND/NAME."""
    components = OPENAPI[OPENAPI.index("\ncomponents:"):]
    kinds = re.search(rf"^  {kind}:\n(.*?)(?=^  \w|\Z)", components, re.MULTILINE | re.DOTALL)[1]
    return re.search(rf"^    {name}:\n(.*?)(?=^    \w|\Z)", kinds, re.MULTILINE | re.DOTALL)[1]


def properties(schema):
    """The names of a schema's properties, and those that are required."""
    text = component("schemas", schema)
    names = re.findall(r"^        (\w+):", text[text.index("      properties:"):], re.MULTILINE)
    required = re.search(r"^      required: \[(.*)\]$", text, re.MULTILINE)
    return names, required[1].split(", ") if required else []


def documented(operation):
    """What openapi.yaml says of an operation, as a route declares it."""
    def block(name):
        found = re.search(rf"^      {name}:\n(.*?)(?=^      \w|\Z)", operation, re.MULTILINE | re.DOTALL)
        return found[1] if found else ""

    parameters = block("parameters")
    for name in re.findall("#/components/parameters/(\\w+)", parameters):
        lines = component("parameters", name).strip().replace("\n      ", "\n          ")
        parameters += f"        - {lines}\n"
    query = re.findall(r"- name: (\S+)\n +in: query", parameters)

    fields, required, array = None, [], False
    for schema in re.findall(r"#/components/schemas/(\w+)", block("requestBody")):
        text = component("schemas", schema)
        if item := re.search(r"^      type: array\n(?:.*\n)*? +items: .*/(\w+)'", text, re.MULTILINE):
            array = item[1] in block("requestBody")
        else:
            assert "additionalProperties: false" in text
            fields, required = properties(schema)
    has_body = re.search("^        required: (true|false)$", block("requestBody"), re.MULTILINE)
    assert not has_body or (has_body[1] == "true") == bool(required)

    statuses = [int(status) for status in re.findall(r"^        '(\d+)':", operation, re.MULTILINE)]
    return {
        "statuses": [status for status in statuses if status < 400], "query": query, "fields": fields,
        "required": required, "array": array, "public": "      security: []" in operation,
        "health": "tags: [health]" in operation,
        "may be refused": [status for status in (400, 401, 403, 404, 415) if status in statuses]}


def declared(route):
    """The same of a route."""
    refused = {400: route.query is not None, 401: not route.public, 403: not route.any_host,
               404: "{id}" in route.path, 415: route.body is not None}
    return {
        "statuses": list(route.statuses), "query": list(route.query or ()),
        "fields": None if route.body is None else list(route.body), "required": list(route.required),
        "array": route.array, "public": route.public, "health": route.health,
        "may be refused": [status for status, may in refused.items() if may]}


@pytest.fixture
def routes(sqlite_database):
    """The application on SQLite, and its routes."""
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database))
    return app, app.routes


def test_openapi_says_of_each_route_what_it_declares(routes):
    is_page = re.compile(r"/($|static|swagger|openapi|asyncapi)")
    described = [route for route in routes[1] if not is_page.match(route.path)]
    told = {(route.method, route.path): declared(route) for route in described}
    found = {key: documented(operation) for key, operation in operations().items()}
    assert list(found) == list(told)        # in the same order
    for key in told:
        assert found[key] == told[key], key


def test_a_route_refuses_what_it_does_not_declare(routes):
    app, routes = routes
    assert {route.path for route in routes if route.query is None} == {
        "/livez", "/readyz", "/metrics", "/", "/openapi.yaml", "/asyncapi.yaml", "/static/{name}",
        "/swagger", "/swagger/", "/swagger/index.html", "/swagger/{name}"}
    for route in routes:
        path = route.path.replace("{id}", "1").replace("{name}", "no")
        if route.query is not None:
            assert call(app, route.method, f"{path}?undeclared=1") == 400, path
        if route.method != "GET":
            body = json.dumps({"undeclared": 1} | dict.fromkeys(route.required, 1)).encode()
            assert call(app, route.method, path, body, CONTENT_TYPE="application/json") == 400, path
            assert call(app, route.method, path, b"[]", CONTENT_TYPE="application/json") == 400, path


def test_every_route_is_behind_the_token_the_host_and_the_origin_but_for_what_it_declares(sqlite_database):
    store = taskmanager.open_store(sqlite_database)
    locked, named = taskmanager.create_app(store, Config(api_token="s3cret")), taskmanager.create_app(store)
    assert [route.path for route in locked.routes if route.public] == [
        "/livez", "/readyz", "/openapi.yaml", "/asyncapi.yaml", "/", "/static/{name}",
        "/swagger", "/swagger/", "/swagger/index.html", "/swagger/{name}"]
    for route in locked.routes:
        path = route.path.replace("{id}", "1").replace("{name}", "no")
        assert (call(locked, route.method, path) == 401) != route.public, path
        assert (call(named, route.method, path, HTTP_HOST="evil.example") == 403) != route.any_host, path
        from_elsewhere = call(named, route.method, path, HTTP_ORIGIN="https://evil.example")
        assert (from_elsewhere == 403) == (route.method != "GET"), path


def test_a_worker_serves_health_and_nothing_else(sqlite_database):
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database), only_health=True)
    assert [route.path for route in app.routes] == ["/livez", "/readyz", "/metrics"]
    assert [call(app, "GET", path) for path in ("/livez", "/readyz", "/metrics", "/tasks", "/")] == [
        200, 200, 200, 404, 404]


def call(app, method, path, body=b"", **environ):
    """The status of one request, without a server."""
    path, _, query = path.partition("?")
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)), **environ}
    wsgiref.util.setup_testing_defaults(environ)
    said = []
    b"".join(app(environ, lambda status, headers, exc_info=None: said.append(status)))
    return int(said[0][:3])


def test_openapi_has_the_statuses_that_the_application_answers(sqlite_database, monkeypatch):
    store = taskmanager.open_store(sqlite_database)
    app = taskmanager.create_app(store)
    locked = taskmanager.create_app(store, Config(api_token="s3cret"))
    named = taskmanager.create_app(store, hosts=("localhost",))
    store.create([taskmanager.NewTask()] * 13)
    for row in store.claim(11, 30):       # so: 1 Failed, 2 Completed, 3 to 11 In Progress, the others New
        {1: store.fail, 2: store.complete}.get(row.id, lambda _: None)([(row.id, row.attempt, "0")])
    answers = {}
    json_ = {"CONTENT_TYPE": "application/json"}
    huge, text, none = (b" " * 1_048_577, json_), (b"1", {"CONTENT_TYPE": "text/plain"}), (b"", {})
    other = (b"", {"HTTP_IF_MATCH": '"another"'})

    def status_of(app, method, path, body, headers):
        return call_app(app, method, path, io.BytesIO(body), CONTENT_LENGTH=str(len(body)), **headers)[0]

    def probe(method, operation, *requests):
        """Send requests, and the first of them again to a service that refuses it or is not well."""
        requests = [(method, path, body, headers) for path, (body, headers) in requests]
        first = requests[0]
        found = {status_of(app, *request) for request in requests}
        found |= {status_of(other, *first) for other in (locked, named)}
        for error in (taskmanager.Unavailable("away"), ZeroDivisionError()):
            with monkeypatch.context() as patch:
                patch.setattr(store, "_execute", raising(error))
                patch.setattr(store, "_batch", raising(error))
                found.add(status_of(app, *first))
        answers[method, operation] = found

    key = {"HTTP_IDEMPOTENCY_KEY": "key"}
    probe(
        "POST",
        "/tasks",
        ("/tasks", none),
        ("/tasks", (b"nonsense", json_)),
        ("/tasks", huge),
        ("/tasks", text),
        ("/tasks", (b"{}", key)),
        ("/tasks", (b'{"payload": 1}', key)),
    )
    probe(
        "GET",
        "/tasks",
        ("/tasks", none),
        ("/tasks?status=Done", none),
        ("/tasks", (b"", {"HTTP_IF_NONE_MATCH": "*"})),
    )
    for method, path in (("DELETE", "/tasks"), ("POST", "/tasks/cancel"), ("POST", "/tasks/retry")):
        probe(method, path, (f"{path}?kind=no", none), (path, none))
    probe("GET", "/finished", ("/finished", none), ("/finished?bins=0", none))
    probe(
        "POST",
        "/tasks/claim",
        ("/tasks/claim", none),
        ("/tasks/claim", (b'{"limit": 0}', json_)),
        ("/tasks/claim", huge),
        ("/tasks/claim", text),
    )
    probe(
        "GET",
        "/tasks/{id}",
        ("/tasks/1", none),
        ("/tasks/99", none),
        ("/tasks/1?x=1", none),
        ("/tasks/1", (b"", {"HTTP_IF_NONE_MATCH": "*"})),
    )
    reports = {
        "extend": b'{"attempt": 1}',
        "progress": b'{"attempt": 1, "progress": 0.5}',
        "complete": b'{"attempt": 1}',
        "fail": b'{"attempt": 1, "error": "why"}',
        "release": b'{"attempt": 1}',
    }
    for id, (verb, good) in enumerate(reports.items(), 5):
        bad = b'{"attempt": 0}'
        stale = good.replace(b"1", b"7", 1)
        path = f"/tasks/{id}/{verb}"
        probe(
            "POST",
            "/tasks/{id}/" + verb,
            (path, (good, json_)),
            (path, (bad, json_)),
            (path, (stale, json_)),
            (f"/tasks/99/{verb}", (good, json_)),
            (path, huge),
            (path, text),
        )
    probe(
        "DELETE",
        "/tasks/{id}",
        ("/tasks/2", none),
        ("/tasks/3", none),
        ("/tasks/2", none),
        ("/tasks/2?x=1", none),
        ("/tasks/3", other),
    )
    probe(
        "POST",
        "/tasks/{id}/cancel",
        ("/tasks/13/cancel", none),
        ("/tasks/3/cancel", none),
        ("/tasks/7/cancel", none),
        ("/tasks/99/cancel", none),
        ("/tasks/13/cancel?x=1", none),
        ("/tasks/3/cancel", other),
    )
    probe(
        "POST",
        "/tasks/{id}/retry",
        ("/tasks/1/retry", none),
        ("/tasks/7/retry", none),
        ("/tasks/99/retry", none),
        ("/tasks/1/retry?x=1", none),
        ("/tasks/3/retry", other),
    )
    probe(
        "GET",
        "/tasks/{id}/attempts",
        ("/tasks/1/attempts", none),
        ("/tasks/99/attempts", none),
        ("/tasks/1/attempts?x=1", none),
        ("/tasks/1/attempts", (b"", {"HTTP_IF_NONE_MATCH": "*"})),
    )
    probe("GET", "/token", ("/token", none), ("/token?x=1", none))
    for path in ("/livez", "/readyz", "/metrics"):
        probe("GET", path, (path, none))
    documented = {
        key: set(map(int, re.findall(r"^        '(\d{3})':", text, re.MULTILINE)))
        for key, text in operations().items()
    }
    assert documented == answers


def codes_in_use():
    """The codes that the programs can give: of problems, each with its status, and of input errors."""
    kinds, problems = [taskmanager.TaskError], {}
    for kind in kinds:
        kinds += kind.__subclasses__()
        problems.setdefault(kind.code, kind.status)
    for status, code in taskmanager.CODES.items():
        assert problems.setdefault(code, status) == status

    inputs = set()
    for script in ("taskmanager.py", "worker.py"):
        for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
            name = getattr(node, "func", None) and ast.unparse(node.func).removeprefix("taskmanager.")
            if name not in ("invalid", "InputError"):
                continue
            code = node.args[name == "InputError"]
            literals = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
            for literal in literals:
                if isinstance(literal, ast.Constant):
                    inputs.add(literal.value)
                else:       # in invalid() itself, and in KeyReused
                    assert ast.unparse(literal) in ("code", "self.code")
    return problems, inputs | {taskmanager.KeyReused.code}


def test_openapi_lists_every_code_and_its_status():
    problems, inputs = codes_in_use()
    for schema, codes in (("ProblemCode", problems), ("InputErrorCode", inputs)):
        text = component("schemas", schema)
        listed = re.search(r"enum: \[(.*?)\]", text, re.DOTALL)[1].replace("\n", " ").split(",")
        listed = [code.strip() for code in listed]
        told = re.findall(r"^        - `([a-z0-9-]+)`(?: \((\d+)\))?: \w", text, re.MULTILINE)
        assert [code for code, _ in told] == listed and len(set(listed)) == len(listed)
        assert set(listed) == set(codes)
        assert schema == "InputErrorCode" or {code: int(status) for code, status in told} == codes


def test_openapis_examples_of_errors_are_what_the_programs_say():
    problems, inputs = codes_in_use()
    examples = re.findall(r"status: (\d+)(?:, |\s+)code: ([a-z0-9-]+)", OPENAPI)
    assert len(examples) == OPENAPI.count("type: about:blank") > 10
    for status, code in examples:
        assert problems[code] == int(status), code
    entries = re.findall(r"- \{?(?:pointer|parameter|header): \S+?(?:, |\s+)code: ([a-z0-9-]+)", OPENAPI)
    assert len(entries) == len(re.findall(r"- \{?(?:pointer|parameter|header): ", OPENAPI)) == 3
    assert set(entries) <= inputs


def test_openapi_says_of_each_operation_what_is_needed():
    for operation in operations().values():
        assert re.search(r"^      operationId: \w+$", operation, re.MULTILINE)
        assert "      summary: " in operation
        has_example = re.search("^ +examples?:", operation, re.MULTILINE)
        assert has_example or "'204':" in operation, operation      # where an answer has a body


def test_openapi_has_the_fields_and_statuses_of_the_program():
    assert re.search(r"^  version: (\S+)$", OPENAPI, re.MULTILINE)[1].strip('"') == taskmanager.__version__

    assert properties("NewTask")[0] == list(taskmanager.NEW_TASK)
    fields = taskmanager.Row._fields
    assert properties("Task")[0] == list(fields[:fields.index("attempt") + 1])      # the others are not shown
    [enum] = re.findall(r"^    Status:\n +type: string\n +enum: \[(.*)\]$", OPENAPI, re.MULTILINE)
    assert enum.split(", ") == list(taskmanager.STATUSES)
    [check] = re.findall(r"check \(status = any \('\{(.*)\}'\)\)", (ROOT / "schema.sql").read_text())
    assert check.split(",") == list(taskmanager.STATUSES)


# README's commands, and what it says they print

def commands(text):
    """(command, output) of the console blocks."""
    for block in re.findall(r"^```(?:console)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        joined = re.sub(r"\\\n +", "", block)      # a long command goes on in the next line
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", joined, re.MULTILINE):
            yield command, output.strip()


def curl(command, api, tags):
    """What README's curl would print; `tags` holds what --etag-save has saved."""
    command, _, pattern = command.partition(" | grep ")
    words = iter(shlex.split(command)[1:])
    method, body, url, headers, heads, write_out, tag = None, None, None, {}, False, "", None
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-d":
            body = next(words).encode()
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        elif word == "-H":
            name, _, value = next(words).partition(":")
            headers[name.title()] = value.strip()
        elif word == "-w":
            write_out = next(words)
        elif word == "--etag-save":
            tag = next(words)
        elif word == "--etag-compare":
            headers["If-None-Match"] = tags[next(words)]
        elif word in ("-s", "-si"):
            heads = "i" in word
        else:
            address = urlsplit(word if "//" in word else f"http://{word}")
            assert address.netloc == "localhost:5000"
            url = api + address.path + (f"?{address.query}" if address.query else "")
    answer = http(method or ("POST" if body else "GET"), url, body, **headers)
    tags[tag] = answer.headers["ETag"]
    lines = [f"{name}: {value}" for name, value in answer.headers.items() if heads]
    lines += [
        *answer.body.decode().splitlines(),
        *([write_out.replace("%{http_code}", str(answer.status))] if write_out else []),
    ]
    return "\n".join(line for line in lines if re.search(pattern, line))


def same(expected, got):
    """Compare two outputs: as JSON where possible, without times and process ids."""
    def comparable(text):
        text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "TIME", text)
        text = re.sub(r'"worker": "[\w.-]+:\d+"', '"worker": "HOST:PID"', text)
        try:
            return json.loads(text)
        except ValueError:
            return text
    return comparable(expected) == comparable(got)


@pytest.mark.parametrize(
    "title",
    [
        None,
        "### A worker in any language",
        "### Kinds",
        "### A program, in any language",
        "### How a handler is stopped",
    ],
    ids=["API", "worker", "kinds", "program", "stop"],
)
def test_readmes_commands_print_what_it_says(start, sqlite_database, tmp_path, title):
    text = section(title) if title else README[:README.index("### A worker in any language")]
    text = text.replace("/tmp/", f"{tmp_path}/")
    settings = dict(re.findall(r'^\$ (\w+)="?(.*?)"? make run$', text, re.MULTILINE))
    tried, api, tags = 0, None, {}

    for command, expected in commands(text):
        if command.startswith("mkdir "):
            subprocess.run(command, shell=True, cwd=ROOT, check=True)
        api = api or start("taskmanager.py", DATABASE_URL=sqlite_database, TMPDIR=tmp_path, **settings)
        pause, _, request = command.rpartition("; ")
        if pause.startswith("sleep "):
            time.sleep(float(pause.removeprefix("sleep ")))
        else:
            request = command
        if not request.startswith("curl "):
            continue
        tried += 1
        if "-X" in request or "-d" in request:
            got = curl(request, api.url, tags)
            assert same(expected, got), (request, got)
        else:       # a worker may need a moment
            eventually(lambda: same(expected, got := curl(request, api.url, tags)) or print(got), seconds=5)

    assert tried >= 2
    if title is None:
        assert tried >= 15
        lines = re.findall(r"^\w+-1 +\| \S+ (INFO .*)$", README, re.MULTILINE)
        assert len(lines) == 3
        assert [line for line in lines if line not in api.log()] == []


def test_readmes_worker_works(start, sqlite_database, tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", section("### A worker in any language"), re.DOTALL)
    api = start("taskmanager.py", DATABASE_URL=sqlite_database, CONCURRENCY=0)
    http("POST", f"{api.url}/tasks", [{"payload": [1, 2, 3]}, {"payload": ["a"], "max_attempts": 1}])
    (tmp_path / "remote.py").write_text(code.replace("http://localhost:5000", api.url))
    with subprocess.Popen([sys.executable, tmp_path / "remote.py"]) as worker:
        try:
            ended = f"{api.url}/tasks?status=Completed&status=Failed"
            done, failed = eventually(lambda: len(tasks := http("GET", ended).json) == 2 and tasks)
        finally:
            worker.kill()
    assert done["result"] == 6 and failed["error"].startswith("TypeError")


def test_make_demo_has_life_in_it(start, sqlite_database):
    assert "examples/demo.py" in (ROOT / "Makefile").read_text()
    demo = start("examples/demo.py", DATABASE_URL=sqlite_database, PORT=free_port())
    tasks = eventually(lambda: len(found := http("GET", f"{demo.url}/tasks").json) > 3 and found)
    assert tasks[0]["kind"] == "cleanup" and tasks[0]["repeat"] == 20
    assert {task.get("kind", "default") for task in tasks} <= {"default", "report", "mail", "cleanup"}
    eventually(lambda: http("GET", f"{demo.url}/tasks?status=Completed").json)
    assert demo.stop(signal.SIGINT) == 0


def test_readmes_embedding_example_needs_two_files_and_no_installation(tmp_path):
    for module in (taskmanager, bottle):
        shutil.copy(module.__file__, tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", section("## Embedding"), re.DOTALL)
    (tmp_path / "application.py").write_text(code + """
import wsgiref.util
environ = {"PATH_INFO": "/jobs/tasks/1"}
wsgiref.util.setup_testing_defaults(environ)
print(json.loads(b"".join(application(environ, lambda status, *_: print(status))))["status"])
""")
    done = subprocess.run(
        [sys.executable, "-S", "application.py"],       # -S: without site-packages
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.returncode) == ("Hello, Ann\n200 OK\nCompleted\n", 0), done.stderr


def test_readme_needs_the_versions_that_the_programs_need():
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) or newer \|", section("## Supported versions"), re.MULTILINE)
    table = dict(rows)
    program = (ROOT / "taskmanager.py").read_text(encoding="utf-8")
    python = re.search(r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    sqlite = re.search(r"sqlite_version_info < \((\d+), (\d+)\)", program)
    assert [table["Python"], table["SQLite"]] == [".".join(python.groups()), ".".join(sqlite.groups())]
    assert f"PostgreSQL {table['PostgreSQL']} or newer" in (ROOT / "schema.sql").read_text()


def test_contributing_names_places_that_exist_where_a_thing_is_added():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d+\. .*", text.partition("\n## Where a thing is added\n")[2], re.MULTILINE)
    names = re.findall(r"`([\w.]+)`", " ".join(steps))
    assert len(names) > 10

    def exists(name):
        try:
            return (ROOT / name).exists() or operator.attrgetter(name)(taskmanager)
        except AttributeError:
            return any(hasattr(part, name) for part in (taskmanager.Row, taskmanager.Store))

    assert [name for name in names if not exists(name)] == []


def test_importing_starts_nothing_and_sqlite_needs_neither_psycopg2_nor_pika(tmp_path):
    code = f"""
import sys, threading
sys.modules["psycopg2"] = sys.modules["pika"] = sys.modules["waitress"] = None      # an import of these fails
import taskmanager
assert threading.active_count() == 1
store = taskmanager.open_store("sqlite:///{tmp_path}/tasks.db")
app = taskmanager.create_app(store)
worker = taskmanager.Worker(store)
worker.start()
store.create()
worker.stop()
store.close()
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)


# The table of the document


def test_the_documents_own_table_is_upgraded_in_place(postgres_database, start):
    import psycopg2
    with psycopg2.connect(postgres_database) as connection, connection.cursor() as cursor:
        cursor.execute(DOCUMENT_TABLE)
        cursor.execute("""
            insert into tasks (status, created_at, updated_at) values
                ('New', '2024-12-17 10:00:00', '2024-12-17 10:00:00'),
                ('In Progress', '2024-12-17 10:05:00', '2024-12-17 10:06:00'),
                ('Completed', '2024-12-17 10:07:00', '2024-12-17 10:08:00'),
                (null, null, null),
                ('Paused', '2024-12-17 10:07:00', '2024-12-17 10:08:00')""")
        cursor.execute("insert into tasks default values")
    connection.close()
    api = start("taskmanager.py", DATABASE_URL=postgres_database)
    before = http("GET", f"{api.url}/tasks").json
    assert [task["status"] for task in before] == ["New", "In Progress", "Completed", "New", "Paused", "New"]
    assert before[1] == {
        "id": 2,
        "status": "In Progress",
        "created_at": "2024-12-17T10:05:00",
        "updated_at": "2024-12-17T10:06:00",
    }
    assert http("POST", f"{api.url}/tasks", {"payload": 1}).json == {"id": 7}
    start("worker.py", DATABASE_URL=postgres_database, POLL_SECONDS=0.1)
    after = eventually(
        lambda: (
            (now := http("GET", f"{api.url}/tasks").json)
            and all(task["status"] in ("Completed", "Paused") for task in now)
            and now
        )
    )
    assert after[2] == before[2] and after[4] == before[4]
    assert {tuple(task)[:4] for task in after} == {("id", "status", "created_at", "updated_at")}


def test_the_documents_own_table_has_room_for_all_ids(postgres_database):
    import psycopg2
    with psycopg2.connect(postgres_database) as connection, connection.cursor() as cursor:
        cursor.execute(DOCUMENT_TABLE)
    connection.close()
    store = taskmanager.open_store(postgres_database)
    store._execute("select setval('tasks_id_seq', 2147483647)")      # where its SERIAL ends
    assert store.create() == [2147483648]
    assert store.read(2147483648).status == "New"
    store.close()


def test_schema_sql_may_be_run_by_psql_first(postgres_database):
    import psycopg2
    connection = psycopg2.connect(postgres_database)
    connection.autocommit = True
    for _ in range(2):
        connection.cursor().execute((ROOT / "schema.sql").read_text())
    connection.close()
    store = taskmanager.open_store(postgres_database)       # finds it current, and so alters nothing
    assert store.create() == [1]


def test_an_older_program_leaves_a_newer_schema_alone(postgres_database):
    store = taskmanager.open_store(postgres_database)
    store._execute("comment on table tasks is 'Task Manager, schema 99'")
    [(comment, *_)] = taskmanager.open_store(postgres_database)._execute(taskmanager.FOUND_TABLE)
    assert comment == "Task Manager, schema 99"


def test_the_databases_own_options_are_kept(postgres_database):
    store = taskmanager.PostgresStore(
        postgres_database.partition("?")[0] + "?application_name=mine&options=-csearch_path%3Dpg_catalog"
    )
    assert store._execute("select current_setting('application_name'), current_setting('search_path')") == [
        ("mine", "pg_catalog")
    ]


def test_schema_is_not_touched_when_it_is_current(postgres_database):
    import psycopg2
    taskmanager.open_store(postgres_database)
    with psycopg2.connect(postgres_database) as backup, backup.cursor() as cursor:
        cursor.execute("select * from tasks")       # such a lock is held by pg_dump for as long as it runs
        assert taskmanager.open_store(postgres_database).create() == [1]
    backup.close()


# Embedding

def test_readme_uses_public_names_only():
    code = re.findall(r"```python\n(.*?)```|`([^`\n]+)`", README, re.DOTALL)
    used = set(re.findall(r"\btaskmanager\.(?!py\b)(\w+)", " ".join("".join(each) for each in code)))
    assert used > {"open_store", "Worker", "create_app", "new_task", "Failed", "Retry"}
    assert used - {"__all__", *taskmanager.__all__} == set()
    assert [name for name in taskmanager.__all__ if not hasattr(taskmanager, name)] == []


# The order of the code

def global_names(table):
    """The global names that a function or a class uses, with those of what is defined inside it."""
    used = [symbol for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()]
    names = {symbol.get_name() for symbol in used}
    return names.union(*map(global_names, table.get_children()))


def test_the_module_docstring_names_every_section():
    text = (ROOT / "taskmanager.py").read_text(encoding="utf-8")
    sections = re.findall(r"^# -{76}\n# ([\w ]+):", text, re.MULTILINE)
    map = text.partition("what stands below it:\n\n")[2].partition("\n\n")[0]
    assert [line.split("  ")[2] for line in map.splitlines()] == sections
    assert text.count("# " + 76 * "-") == len(sections) > 10


@pytest.mark.parametrize("file", ["taskmanager.py", "worker.py"])
def test_nothing_refers_to_what_stands_below_it(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = {}
    for node in ast.parse(text).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        for name in [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]:
            lines.setdefault(name, node.lineno)
    wrong = {(table.get_name(), name) for table in symtable.symtable(text, file, "exec").get_children()
             for name in global_names(table) if lines.get(name, 0) > table.get_lineno()}
    assert wrong == set()
