"""What is written is what happens: README, openapi.yaml, .env.example and schema.sql against the programs."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import wsgiref.util
from urllib.parse import urlsplit

import pytest

import taskmanager
from conftest import ROOT, eventually, http
from taskmanager import Config

README = (ROOT / "README.md").read_text(encoding="utf-8")
OPENAPI = (ROOT / "openapi.yaml").read_text(encoding="utf-8")


def section(title):
    """A section of README, down to the next title of its level."""
    level = title.split(" ")[0]
    return re.search(rf"^{re.escape(title)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", README, re.MULTILINE | re.DOTALL)[1]


# Configuration

def test_readme_has_every_variable_with_its_default_and_meaning():
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`|\*\(none\)\*) \| (.+) \|$", section("## Configuration"), re.MULTILINE)
    assert rows == list(Config.table())


def test_env_example_has_every_variable_with_its_default():
    text = (ROOT / ".env.example").read_text()
    for name, default, _ in Config.table():
        said = re.search(rf"^#?{name}=(.*)$", text, re.MULTILINE)
        assert said, name
        assert said[1] == default or name in ("DATABASE_URL", "RABBITMQ_URL"), name
    document = "FLASK_APP=app.py\nFLASK_ENV=development\nDATABASE_URL=postgresql://user:password@postgres:5432/task_db\nRABBITMQ_URL=amqp://rabbitmq\n"
    assert document in text


@pytest.mark.parametrize("name, value", [
    ("DATABASE_URL", "mysql://host/name"), ("DATABASE_URL", "sqlite://"), ("DATABASE_URL", "sqlite:///:memory:"), ("DATABASE_URL", "sqlite:///tasks.db?x=1"), ("DATABASE_URL", "postgresql://user:s3cret@host:port/name"), ("RABBITMQ_URL", "rabbitmq"), ("RABBITMQ_URL", "amqp://user:s3cret@host:port"), ("RABBITMQ_URL", "amqp://host?heartbeat=soon"),
    ("PORT", "http"), ("PORT", "65536"), ("PORT", "-1"), ("THREADS", "0"), ("THREADS", "1.5"), ("WORKER", "yes"), ("CONCURRENCY", "many"), ("MAX_ATTEMPTS", "0"),
    ("RETRY_SECONDS", "-1"), ("RETRY_SECONDS", "nan"), ("LEASE_SECONDS", "inf"), ("POLL_SECONDS", "0"), ("GRACE_SECONDS", "soon"), ("RETENTION_DAYS", "-1"), ("TASK_TIMEOUT", "0"),
    ("TASK_QUEUE", "amq.queue"), ("TASK_QUEUE", "a b"), ("LOG_LEVEL", "LOUD"), ("LOG_FILE", "/no/such/folder/log"), ("API_TOKEN", "two words"), ("HANDLER", "nonsense"),
    ("HOST", "no.such.host.invalid"), ("DATABASE_URL", "sqlite:////no/such/folder/tasks.db"), ("DATABASE_URL", "sqlite:///README.md"),
], ids=lambda value: value[:25])
def test_a_value_that_can_not_be_used_stops_the_start_with_one_line(start, sqlite_database, name, value):
    program = start("taskmanager.py", **{"DATABASE_URL": sqlite_database, name: value})
    assert program.process.wait(20) == 1
    *_, line = program.log().splitlines()
    assert line.startswith("taskmanager.py: ") and f"{name}=" in line and "can't be used" in line
    assert "Traceback" not in program.log() and "s3cret" not in program.log() and "two words" not in program.log()


@pytest.mark.parametrize("text", [
    "postgresql://user:s3cret@host/name", "postgresql://user:s3#cret@host/name", "postgresql://user:s3?cret@host/name", "postgresql://user:s3/cret@host/name",
    "postgresql://host/name?user=u&password=s3cret", "amqp://user:s3@cret@host", "https://host/path?token=s3cret", "no answer from http://u:s3cret@host: refused",
])
def test_a_password_is_not_shown(text):
    shown = taskmanager.redact(text)
    assert "s3" not in shown and "cret" not in shown and "host" in shown


def test_an_empty_variable_counts_as_not_set():
    assert Config.from_env({name: "" for name, _, _ in Config.table()}) == Config()


@pytest.mark.parametrize("script", ["taskmanager.py", "worker.py"])
def test_help_tells_every_variable(script):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == 0
    for name, default, meaning in Config.table():
        assert f"{name} {default or '-'} {meaning.replace('`', '')}" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert subprocess.run([sys.executable, ROOT / script, "--verbose"], capture_output=True).returncode == 2


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


def test_openapi_has_the_operations_of_the_application(sqlite_database):
    app = taskmanager.create_app(taskmanager.open_store(sqlite_database)).__self__
    routes = [(route.method, route.rule.replace("<", "{").replace(">", "}")) for route in app.routes]
    assert list(operations()) == [(method, path) for method, path in routes if not re.match(r"/($|swagger|openapi)", path)]


def call(app, method, path, body=b"", **environ):
    """The status of one request, without a server."""
    path, _, query = path.partition("?")
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), **environ}
    wsgiref.util.setup_testing_defaults(environ)
    said = []
    b"".join(app(environ, lambda status, headers, exc_info=None: said.append(status)))
    return int(said[0][:3])


def test_openapi_has_the_statuses_that_the_application_answers(sqlite_database, monkeypatch):
    store = taskmanager.open_store(sqlite_database)
    app = taskmanager.create_app(store)
    locked = taskmanager.create_app(store, Config(api_token="s3cret"))
    store.create([taskmanager.NewTask()] * 4)
    store.claim(1, 30), store.fail([(1, 1, "why")])
    store.claim(1, 30), store.complete([(2, 1, None)])
    store.claim(1, 30)      # so: 1 Failed, 2 Completed, 3 In Progress, 4 New
    answers = {}

    def ask(method, path, *requests):
        requests = [request if isinstance(request, tuple) else (request,) for request in requests]
        answers[method, path] = {call(app, method, *request) for request in requests} | {call(locked, method, *requests[0])}
        for error in (taskmanager.Unavailable("away"), ZeroDivisionError()):
            with monkeypatch.context() as patch:
                patch.setattr(store, "_execute", raising(error))
                answers[method, path].add(call(app, method, *requests[0]))

    ask("POST", "/tasks", "/tasks", ("/tasks", b"nonsense"), ("/tasks", b" " * 1_048_577))
    ask("GET", "/tasks", "/tasks", "/tasks?status=Done")
    ask("GET", "/tasks/{id}", "/tasks/1", "/tasks/99", "/tasks/abc")
    ask("POST", "/tasks/{id}/cancel", "/tasks/4/cancel", "/tasks/3/cancel", "/tasks/2/cancel", "/tasks/99/cancel")
    ask("POST", "/tasks/{id}/retry", "/tasks/1/retry", "/tasks/2/retry", "/tasks/99/retry")
    ask("GET", "/livez", "/livez")
    ask("GET", "/readyz", "/readyz")
    documented = {key: set(map(int, re.findall(r"^        '(\d{3})':", text, re.MULTILINE))) for key, text in operations().items()}
    assert documented == answers


def raising(error):
    def call(*args, **kwargs):
        raise error
    return call


def test_openapi_says_of_each_operation_what_is_needed():
    for operation in operations().values():
        assert re.search(r"^      operationId: \w+$", operation, re.MULTILINE) and "      summary: " in operation
        assert "example" in operation or "$ref: '#/components/responses/" in operation


def test_openapi_has_the_fields_and_statuses_of_the_program():
    assert re.search(r"^  version: (\S+)$", OPENAPI, re.MULTILINE)[1].strip('"') == taskmanager.__version__

    def properties(schema):
        block = re.search(rf"^    {schema}:\n(.*?)(?=^    \w|\Z)", OPENAPI, re.MULTILINE | re.DOTALL)[1]
        return re.findall(r"^        (\w+):", block[block.index("      properties:"):].split("\n      required:")[0], re.MULTILINE)

    assert properties("NewTask")[:len(taskmanager._FIELDS)] == list(taskmanager._FIELDS)
    assert properties("Task")[:len(taskmanager.Row._fields)] == list(taskmanager.Row._fields)
    for status in taskmanager.STATUSES:
        assert status in OPENAPI and f"'{status}'" in (ROOT / "schema.sql").read_text()


# README's commands, and what it says they print

def commands(text):
    """(command, output) of the console blocks."""
    for block in re.findall(r"^```(?:console)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            yield command, output.strip()


def curl(command, api):
    """What README's curl would print."""
    command, _, grep = command.partition(" | grep ")
    words = iter(shlex.split(command)[1:])
    method, body, url = None, None, None
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-d":
            body = next(words).encode()
        elif not word.startswith("-"):
            address = urlsplit(word if "//" in word else f"http://{word}")
            assert address.netloc == "localhost:5000"
            url = api + address.path + (f"?{address.query}" if address.query else "")
    answer = http(method or ("POST" if body else "GET"), url, body)
    return f"{grep}: {answer.headers[grep]}" if grep else answer.body.decode()


def same(said, got):
    """Equal but for the clock."""
    def still(text):
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "TIME", text)
    return still(said) == still(got)


@pytest.mark.parametrize("title, handler", [("# Task Manager", None), ("### A function", "examples.report:summarize")], ids=["API", "function"])
def test_readmes_commands_print_what_it_says(start, sqlite_database, title, handler):
    text = section(title) if handler else README[:README.index("## RabbitMQ by example")]
    api = start("taskmanager.py", DATABASE_URL=sqlite_database, **({"HANDLER": handler} if handler else {})).url
    tried = 0
    for command, said in commands(text):
        if command.startswith("curl"):
            tried += 1
            if "-X POST" in command or "-d" in command:
                assert same(said, curl(command, api)), command
            else:       # a worker may need a moment
                eventually(lambda: same(said, curl(command, api)) or print(curl(command, api)), seconds=5)
    assert tried >= 4


def test_readmes_embedding_example_runs(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", section("## Embedding"), re.DOTALL)
    (tmp_path / "application.py").write_text(code)
    done = subprocess.run([sys.executable, "application.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("Hello, Ann\n", 0), done.stderr


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
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)


# The table of the document

DOCUMENT_TABLE = """
CREATE TABLE tasks (
    id SERIAL PRIMARY KEY,
    status VARCHAR(20) DEFAULT 'New',
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
"""


def test_the_documents_own_table_is_upgraded_in_place(postgres_database, start):
    import psycopg2
    with psycopg2.connect(postgres_database) as connection, connection.cursor() as cursor:
        cursor.execute(DOCUMENT_TABLE + """
            insert into tasks (status, created_at, updated_at) values
                ('New', '2024-12-17 10:00:00', '2024-12-17 10:00:00'), ('In Progress', '2024-12-17 10:05:00', '2024-12-17 10:06:00'),
                ('Completed', '2024-12-17 10:07:00', '2024-12-17 10:08:00'), (null, null, null), ('Paused', '2024-12-17 10:07:00', '2024-12-17 10:08:00');
            insert into tasks default values""")
    connection.close()
    api = start("taskmanager.py", DATABASE_URL=postgres_database)
    before = http("GET", f"{api.url}/tasks").json
    assert [task["status"] for task in before] == ["New", "In Progress", "Completed", "New", "Paused", "New"]
    assert before[1] == {"id": 2, "status": "In Progress", "created_at": "2024-12-17T10:05:00", "updated_at": "2024-12-17T10:06:00"}
    assert http("POST", f"{api.url}/tasks", {"payload": 1}).json == {"id": 7}
    start("worker.py", DATABASE_URL=postgres_database, POLL_SECONDS=0.1)
    after = eventually(lambda: (now := http("GET", f"{api.url}/tasks").json) and all(task["status"] in ("Completed", "Paused") for task in now) and now)
    assert after[2] == before[2] and after[4] == before[4]
    assert {tuple(task)[:4] for task in after} == {("id", "status", "created_at", "updated_at")}


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
    store._run("comment on table tasks is 'Task Manager, schema 99'")
    assert taskmanager.open_store(postgres_database)._version() == 99


def test_the_databases_own_options_are_kept(postgres_database):
    store = taskmanager.PostgresStore(postgres_database + "?application_name=mine&options=-csearch_path%3Dpg_catalog")
    assert store._execute("select current_setting('application_name'), current_setting('search_path'), current_setting('TimeZone')") == [("mine", "pg_catalog", "UTC")]


def test_schema_is_not_touched_when_it_is_current(postgres_database):
    import psycopg2
    taskmanager.open_store(postgres_database)
    with psycopg2.connect(postgres_database) as backup, backup.cursor() as cursor:
        cursor.execute("select * from tasks")       # such a lock is held by pg_dump for as long as it runs
        assert taskmanager.open_store(postgres_database).create() == [1]
    backup.close()


def test_the_vendored_swagger_ui_names_its_version():
    folder = ROOT / "static" / "swagger"
    assert "5.35.0" in (folder / "README.md").read_text()
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"} <= {file.name for file in folder.iterdir()}
    assert json.dumps("5.35.0") in (folder / "swagger-ui-bundle.js").read_text(encoding="utf-8")
