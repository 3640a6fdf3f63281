"""No password in a log, an answer or an error, and no text that takes longer than its length."""

import ast
import contextlib
import json
import logging
import os
import re
import stat
import sys
import time
from pathlib import Path

import pytest

import taskmanager
import worker as worker_program
from helpers import QUICK, eventually, finished, http
from taskmanager import (
    MAX_ERROR,
    BadSetting,
    Config,
    Failed,
    OneLine,
    Retry,
    Worker,
    describe,
    new_task,
    redact,
    truncate,
)

pytestmark = pytest.mark.sqlite


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch):
    """What a test's settings hold is forgotten at its end."""
    monkeypatch.setattr(taskmanager, "_secrets", set())


# Time: four times as long, at most 3 * 3 times as slow. What is quadratic takes sixteen times as long.


def took(call, text):
    """Seconds of the processor, the least of three runs."""
    spans = []
    for _ in range(3):
        began = time.thread_time()
        call(text)
        spans.append(time.thread_time() - began)
    return min(spans)


def is_linear(call, text_of, short=1000):  # texts so short that memory costs nothing
    few, many = text_of(short), text_of(4 * short)
    few_took, many_took = took(call, few), took(call, many)
    for _ in range(20):  # on a busy machine the least of many runs is what it takes
        # what is quadratic takes 16 times as long, and longer
        if many_took < 0.0005 or many_took <= 9 * few_took:
            return True
        few_took, many_took = min(few_took, took(call, few)), min(many_took, took(call, many))
    return False


# These are given our own texts only.
OURS = {r"comment on table tasks is '.* (\d+)'": "schema.sql"}


def patterns():
    """Line, pattern and call of every regular expression in the two programs."""
    for module in taskmanager, worker_program:
        source = Path(module.__file__).read_text()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func)
            if name == "_match" or re.fullmatch(
                r"re\.(compile|match|fullmatch|search|sub|findall|split|finditer)", name
            ):
                how = {"_match": "fullmatch"}.get(name, name[3:])
                if how == "compile":        # used as its name is, below
                    known_as = source.splitlines()[node.lineno - 1].split()[0]
                    how = re.search(rf"\b{known_as}\.(\w+)\(", source)[1]
                try:
                    pattern = eval(compile(ast.Expression(node.args[0]), "", "eval"), vars(module))
                except NameError:
                    # In _match, and what pattern_of() makes, which has nothing that repeats.
                    if ast.unparse(node) in ("re.fullmatch(pattern, text)", "re.search(pattern, text)"):
                        continue
                    pattern = None
                if pattern not in OURS:
                    yield f"{Path(module.__file__).name}:{node.lineno}", pattern, how


def attacks(pattern):
    """Beginnings and what is repeated behind them, of the characters and the words that the pattern names."""
    words = re.findall(r"[A-Za-z]{2,}[:/ =]*|[:/]{2,}", re.sub(r"\\[a-zA-Z]|\(\?\w+\)", "", pattern))[:4]
    letters = [each for each in ":/@\"'?,=%&;.-[+\\" if each in pattern]
    pieces = ["a", "1", " ", *letters, *words, *([] if "://" not in pattern else ["://"])]
    for head in {
        "",
        *words[:1],
        "".join(words[:1]) + pattern[0] * (pattern[0] == '"'),
        pattern[0] * (pattern[0] == '"'),
    }:
        for one in pieces:
            for other in ["", *pieces]:
                yield head, one + other


@pytest.mark.parametrize("where, pattern, how", list(patterns()), ids=lambda value: str(value)[:30])
def test_a_pattern_takes_time_in_proportion_to_the_text(where, pattern, how):
    assert pattern is not None, "a pattern that is no constant can't be tried here"
    compiled = re.compile(pattern)
    is_binary = isinstance(pattern, bytes)
    pattern = pattern.decode("latin-1") if is_binary else pattern

    def call(text):
        if is_binary:
            text = text.encode()
        if how == "sub":
            return compiled.sub(text[:0], text)
        found = getattr(compiled, how)(text)
        return list(found) if how == "finditer" else found

    for head, pump in attacks(pattern):
        assert is_linear(call, lambda length: head + pump * (length // len(pump)) + "\n\0"), (
            where,
            head,
            pump,
        )


PUMPS = [
    "://",
    "://a@",
    "//a:",
    "://?",
    "://a?'",
    "@",
    "://@",
    " ://",
    "://a ",
    "password=",
    "password='",
    "password=' ",
    "\\",
    '"',
    '\\"',
    "a ",
    "\n",
    "://\n",
    "'://x?",
    "x@y://",
    "\0",
    "\ud800",
    "é",
    "[",
    '\\"[',
    '{"a":',
    "USER:PASSWORD@",
    "://USER:PASSWORD@ ",
    ":1",
    "a,",
]


def logged(text):
    return OneLine("%(message)s").format(
        logging.LogRecord("handler", logging.INFO, "", 0, "%s", (text,), None)
    )


def refused(name):
    return lambda text: str(BadSetting(name, text, text))


def encoded(text):
    with contextlib.suppress(taskmanager.Invalid):
        taskmanager.encode_json(text)


@pytest.mark.parametrize(
    "call",
    [
        redact,
        truncate,
        encoded,
        taskmanager.retry_after,
        taskmanager.request_id,
        logged,
        refused("DATABASE_URL"),
        refused("HANDLER"),
        lambda text: describe(ValueError(text)),
        lambda text: taskmanager.parse_output(text.encode("utf-8", "replace")),
    ],
    ids=[
        "redact",
        "truncate",
        "encode_json",
        "retry_after",
        "request_id",
        "log",
        "database",
        "handler",
        "describe",
        "parse_output",
    ],
)
def test_nothing_that_is_said_takes_longer_than_its_length(call):
    taskmanager._secrets |= {"Hunter2Secret7x", "aaaaaaaaab"}
    for pump in PUMPS:
        assert is_linear(call, lambda length: pump * (length // len(pump)), short=2000), pump


def test_no_more_is_searched_than_is_kept(monkeypatch):
    searched = []
    monkeypatch.setattr(taskmanager, "redact", lambda text: searched.append(len(text)) or text)
    describe(ValueError("x" * 1_000_000))
    truncate("y" * 1_000_000)
    assert max(searched) <= 2 * MAX_ERROR


@pytest.mark.parametrize("payload", ["://" * 300_000, "://a@" * 200_000, " ://" * 250_000])
def test_one_task_keeps_no_other_waiting(store, payload):
    """A handler that quotes what it was given: float('://://…')."""
    worker = Worker(store, Config(**QUICK, max_attempts=1), lambda task: float(task.payload))
    worker.start()
    ids = store.create([new_task({"payload": payload}), new_task({"payload": "1"})])
    assert [finished(store, id).status for id in ids] == ["Failed", "Completed"]
    worker.stop(0)


def test_an_answer_keeps_no_other_waiting(run, store, receiver):
    receiver.answers = [(400, {}, b"://" * 21_000)]
    assert finished(store, run(receiver.url)).error.startswith("answered 400: ")


# Passwords

SECRET = "Hunter2", "Secret7x"  # the two parts of each password here


def shown(error):
    """What a log may show of an exception: its words, those of its causes, and the lines of its traceback."""
    texts = []
    while error:
        texts += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def assert_hidden(text):
    for part in SECRET:
        assert part not in text, text


BETWEEN = [
    "@",
    "/",
    "%",
    "#",
    "?",
    " ",
    ":",
    "[",
    "]",
    "&",
    "=",
    "+",
    "\\",
    "'",
    '"',
    "%zz",
    "@/",
    "/@",
    "?x=",
    "%40",
    "ж",
    "@h:1/",
    "://",
    ",",
    ";",
    "\t",
]
FORMS = {
    "database": ("DATABASE_URL", "postgresql://app:{}@127.0.0.1:1/name"),
    "port": ("DATABASE_URL", "postgresql://app:{}@db.invalid:x/name"),
    "several hosts": (
        "DATABASE_URL",
        "postgres://app:{}@127.0.0.1:1,127.0.0.1:2/name?target_session_attrs=read-write",
    ),
    "query": ("DATABASE_URL", "postgresql://127.0.0.1:1/name?user=app&password={}"),
    "query first": ("DATABASE_URL", "postgresql://127.0.0.1:1/name?password={}&user=app@x"),
    "keywords": ("DATABASE_URL", "host=db.invalid user=app password={}"),
    "no host": ("DATABASE_URL", "postgresql://app:{}"),
    "other scheme": ("DATABASE_URL", "mysql://app:{}@db.invalid/name"),
    "no scheme": ("DATABASE_URL", "app:{}@db.invalid/name"),
    "broker": ("RABBITMQ_URL", "amqp://app:{}@mq.invalid/"),
    "broker's port": ("RABBITMQ_URL", "amqps://app:{}@mq.invalid:x/"),
    "broker's query": ("RABBITMQ_URL", "amqp://app:{}@mq.invalid/?heartbeat=x"),
    "no host of the broker": ("RABBITMQ_URL", "amqp://app:{}"),
    "no scheme of the broker": ("RABBITMQ_URL", "app:{}@mq.invalid"),
    "address": ("HANDLER", "https://app:{}@tasks.invalid/hook"),
    "address's port": ("HANDLER", "https://app:{}@tasks.invalid:x/"),
    "token": ("HANDLER", "https://{}@tasks.invalid/"),
    "token in the query": ("HANDLER", "https://tasks.invalid/hook?token={}"),
    "program": ("HANDLER", "exec:/no/such/program --password {}"),
    "program's variable": ("HANDLER", "exec:PASSWORD={} program"),
    "token of the API": ("API_TOKEN", "{} \u20ac"),
    "its reader's": ("READ_TOKEN", "{}"),
}


def use(name, value):
    """What a program does with a setting at its start."""
    config = Config.from_env({name: value})
    if name == "DATABASE_URL":
        taskmanager.open_store(config.database_url)
    elif name == "RABBITMQ_URL":
        taskmanager.amqp_parameters(config.rabbitmq_url, "test")
    elif name == "HANDLER":
        taskmanager.load_handler(config.handler)


@pytest.mark.parametrize("form", FORMS)
def test_no_part_of_a_password_is_said_at_the_start(monkeypatch, caplog, form):
    """A password with a special character that nobody has percent-encoded: libraries quote a half of it."""
    monkeypatch.setattr(taskmanager, "CONNECT_SECONDS", 1)
    name, text = FORMS[form]
    caplog.set_level(logging.DEBUG)
    for between in BETWEEN:
        if form.startswith("no host") and "@" in between:
            continue  # then what follows is a host
        value = text.format(between.join(SECRET))
        error = None
        try:
            use(name, value)
        except (BadSetting, taskmanager.Unavailable) as e:
            error = e
        assert_hidden(shown(error) + logged(shown(error)))
        if isinstance(error, BadSetting) and "_TOKEN" not in name and not value.startswith("exec:"):
            assert "%40" in str(error) or "expected" in str(error)      # what to do about it
        assert_hidden(caplog.text)
        assert_hidden(taskmanager.show_setting(name, value))


@pytest.mark.parametrize(
    "name, value",
    [
        ("DATABASE_URL", "sqlite://app:Hunter2Secret7x@h/db"),  # the password of a server that was changed
        ("RABBITMQ_URL", "sqlite://h/#Hunter2Secret7x"),
        ("ALLOWED_ORIGINS", "https://app:Hunter2Secret7x@h"),
        ("PUBLIC_URL", "https://h/#Hunter2Secret7x"),
    ],
)
def test_no_password_in_a_setting_that_should_have_none_is_said(name, value):
    with pytest.raises(BadSetting) as error:
        Config.from_env({name: value})
    assert_hidden(str(error.value))


@pytest.mark.parametrize(
    "name, value",
    [
        ("DATABASE_URL", "postgresql://app:Hunter2%Secret7x@h/db"),
        ("DATABASE_URL", "postgresql://app:Hunter2@Secret7x@h/db"),
        ("DATABASE_URL", "postgresql://app:Hunter2/Secret7x@h/db"),
        ("RABBITMQ_URL", "amqp://u:Hunter2/Secret7x@h/"),
        ("HANDLER", "https://u:Hunter2/Secret7x@h/"),
    ],
)
def test_the_error_says_what_is_to_be_encoded(name, value):
    with pytest.raises(BadSetting) as error:
        use(name, value)
    said = str(error.value)
    assert f"{name}=" in said
    assert "percent-encoded (@ is %40, / is %2F, % is %25" in said
    assert "@h/" in said        # so that it is clear which of several addresses is meant


def test_what_libraries_take_is_still_taken():
    for url in (
        "postgresql://app:a?b@h/db",
        "postgres://app:a#b@h:5/db",
        "postgresql://h/db?user=a@b&password=x",
        "postgresql://u:p@h1:1,h2:2/db",
        "postgresql:///db?host=/run",
        "postgresql://u:p%40@[::1]:5432/db",
        "postgresql://%2Frun%2Fpostgresql/db",
        "postgresql://",
    ):
        taskmanager.PostgresStore(url)
    for url in (
        "amqp://h",
        "amqp://u:a@b@h/",
        "amqp://u:p%2F@[::1]:5672/%2f?heartbeat=30",
        "amqps://h:1?heartbeat=1",
    ):
        taskmanager.amqp_parameters(url, "test")
    for url in ("https://h", "HTTP://u:a@b@h:1/@me?x=a@b#c", "http://[::1]:1", "http://:p@h/"):
        taskmanager.load_handler(url)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        (
            "DATABASE_URL",
            "postgresql://app:Hunter2Secret7x@h1:1,[::1]:2/db?sslmode=require",
            "postgresql://***@h1:1,[::1]:2/db?***",
        ),
        ("DATABASE_URL", "sqlite:////var/a@b/tasks.db", "sqlite:////var/a@b/tasks.db"),
        ("DATABASE_URL", "tasks.db", "tasks.db"),
        ("RABBITMQ_URL", "amqp://rabbitmq", "amqp://rabbitmq"),
        ("HANDLER", "handlers:work", "handlers:work"),
        ("HANDLER", "exec:python3 work.py Hunter2", "exec:python3 ***"),
        ("HANDLER", "exec:./work.sh", "exec:./work.sh"),
        ("HANDLER", "https://hooks.example/services/Hunter2", "https://hooks.example/***"),
        ("PORT", "http", "http"),
    ],
)
def test_what_is_no_secret_of_a_setting_is_shown(name, value, expected):
    assert taskmanager.show_setting(name, value) == expected


def test_a_printed_configuration_hides_its_secrets():
    """A traceback that shows values, as some services for errors make them."""
    assert_hidden(
        repr(Config(database_url="postgresql://u:Hunter2Secret7x@h/db", api_token="Hunter2Secret7x"))
    )


@pytest.mark.parametrize(
    "script, name, value",
    [
        ("taskmanager.py", "DATABASE_URL", "postgresql://app:Hunter2%Secret7x@h/db"),
        ("taskmanager.py", "DATABASE_URL", "postgresql://app:Hunter2@Secret7x@h/db"),
        ("worker.py", "RABBITMQ_URL", "amqp://u:Hunter2/Secret7x@h/"),
        ("worker.py", "HANDLER", "https://u:Hunter2/Secret7x@h/"),
    ],
)
def test_the_programs_say_no_part_of_a_password(start, sqlite_database, script, name, value):
    program = start(script, **{"DATABASE_URL": sqlite_database, "LOG_LEVEL": "DEBUG", name: value})
    assert program.process.wait(20) == 1
    assert f"{name}=" in program.log()
    assert "%40" in program.log()
    assert "Traceback" not in program.log()
    assert_hidden(program.log())


def test_a_server_that_is_away_is_named_without_its_password(start, tmp_path):
    """The log is what a user sends to somebody for help."""
    url = "postgresql://app:Hunter2%40Secret7x@127.0.0.1:1/db"
    program = start(
        "taskmanager.py",
        DATABASE_URL=url,
        RABBITMQ_URL="amqp://app:Hunter2%40Secret7x@127.0.0.1:1/",
        LOG_LEVEL="DEBUG",
    )
    program.logged("waiting for database error=.*refused")
    assert_hidden(program.log())


def urls(password):
    return [
        f"postgresql://app:{password}@db/name",
        f"https://{password}@host/x",
        f"https://{password}:x-oauth-basic@host/",
        f"could not open 'https://host/x?token={password}'",
        f"git clone https://{password}@host/, then stop",
        f"host=db user=app password={password} dbname=x",
        f"PGPASSWORD={password}",
        f"password = '{password}'",
        f"amqp://a:b@h,amqp://u:{password}@h2",
    ]


@pytest.mark.parametrize(
    "text",
    urls("Hunter2Secret7x") + urls("Hunter2@Secret7x") + urls("Hunter2/Secret7x")[:3],
    ids=lambda text: text[:25],
)
def test_what_a_handler_says_holds_no_password(text):
    for said in (
        text,
        f"before {text} after",
        f"({text})",
        f"'{text}'",
        f'{{"url":"{text}","more":"x"}}',
        "x" * 5000 + " " + text,
        text + " " + "x" * 1900,
    ):
        assert_hidden(redact(said) + truncate(said) + describe(ValueError(said)) + logged(said))


def test_what_surrounds_an_address_stays():
    assert (
        redact("could not reach https://ann:pw@host:8080/x for task 7 at 12:30")
        == "could not reach https://***@host:8080/x for task 7 at 12:30"
    )
    assert (
        redact("mail to ann@example.com, see http://host/x") == "mail to ann@example.com, see http://host/x"
    )
    assert (
        redact("expected postgresql://USER:PASSWORD@HOST:PORT/NAME")
        == "expected postgresql://USER:PASSWORD@HOST:PORT/NAME"
    )


@pytest.mark.parametrize("length", [MAX_ERROR - 10, 2 * MAX_ERROR - 10, 2 * MAX_ERROR + 10])
def test_no_cut_goes_through_a_password(length):
    """The end of an error is kept; a client chooses by its payload where that begins."""
    for n in range(40):
        for filler in ("x", "x ", "://x@ "):
            said = f"postgresql://app:Hunter2Secret7x@db/name refused {filler * length}"[: length + n + 30]
            kept = truncate(said)
            assert not re.search("unter2|Secret7|cret7x|Hunter", kept)
            assert len(kept) <= MAX_ERROR
            said = f"{filler * length}"[: length - n] + " postgresql://app:Hunter2Secret7x@db/name refused"
            kept = truncate(said, beginning=True)
            assert not re.search("unter2|Secret7|cret7x|Hunter", kept)
            assert len(kept) <= MAX_ERROR


def program(code):
    return f'exec:{sys.executable} -c "{code}"'


@pytest.fixture
def settings(monkeypatch):
    values = {
        "API_TOKEN": "Hunter2-Secret7x",
        "READ_TOKEN": "Secret7x-Hunter2",
        "RABBITMQ_URL": "amqp://app:Hunter2%20Secret7x@mq/",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return {name.lower(): value for name, value in values.items()}


def test_programs_do_not_get_the_tokens(run, store, settings):
    names = ("API_TOKEN", "READ_TOKEN", "RABBITMQ_URL")
    code = f"import os, json; print(json.dumps([os.environ.get(name) for name in {names}]))"
    row = finished(store, run(program(code), settings))
    assert json.loads(row.result) == [None, None, os.environ["RABBITMQ_URL"]]


ECHO = "import os, sys; sys.exit('can not open ' + os.environ['RABBITMQ_URL'] + ' with Hunter2 Secret7x')"


def say(kind):
    def handler(task):
        raise kind(
            f"can not open {os.environ['RABBITMQ_URL']} with {os.environ['API_TOKEN']}, Hunter2 Secret7x"
        )

    return handler


@pytest.mark.parametrize(
    "handler",
    [program(ECHO), say(Failed), say(Retry), say(ValueError), "address"],
    ids=["program", "Failed", "Retry", "exception", "address"],
)
def test_no_setting_is_quoted_in_an_error(store, receiver, settings, caplog, handler):
    """A program that says which address it could not open; a server that sends back what it got."""
    caplog.set_level(logging.DEBUG)
    if handler == "address":
        handler = receiver.url.replace("//", "//ann:Hunter2%2FSecret7x@")
        receiver.answers = [
            (
                400,
                {},
                lambda request: (
                    f"no: {request.headers} {os.environ['RABBITMQ_URL']} Hunter2/Secret7x".encode()
                ),
            )
        ]
    worker = Worker(
        store,
        Config(**QUICK, **settings, max_attempts=2, handler=handler if isinstance(handler, str) else None),
        None if isinstance(handler, str) else handler,
    )
    worker.start()
    [id] = store.create()
    error = finished(store, id).error
    worker.stop(0)
    assert "***" in error and ("can not open" in error or "no: " in error)
    assert_hidden(error)
    assert "SHVudGVy" not in error and not re.search(r"Basic \w", error)
    for record in caplog.records:
        assert_hidden(OneLine("%(message)s").format(record))


def test_what_a_worker_over_http_says_holds_no_password(store, serve):
    api = serve(store)
    [id] = store.create()
    [claim] = http("POST", f"{api}/tasks/claim").json
    said = {
        "attempt": claim["attempt"],
        "error": "no answer from https://Hunter2Secret7x@host/",
        "final": True,
    }
    for _ in range(2):  # and it is the same when it is said once more
        assert (
            http("POST", f"{api}/tasks/{id}/fail", said).json["error"] == "no answer from https://***@host/"
        )


def test_a_traceback_in_the_log_holds_no_password():
    try:
        try:
            raise OSError(
                "no route to postgresql://app:Hunter2/Secret7x@db/name\n2026-01-01T00:00:00.000Z INFO forged"
            )
        except OSError as e:
            raise ValueError("as told") from e
    except ValueError:
        record = logging.LogRecord("handler", logging.ERROR, "", 0, "went wrong", (), sys.exc_info())
    text = OneLine("%(message)s").format(record)
    assert "ValueError: as told" in text
    assert "no route to postgresql://***@db/name" in text
    assert not re.search(r"(?m)^2026", text)
    assert_hidden(text)


# Files


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_nobody_else_can_read_the_tasks_and_the_log(start, tmp_path, usual_umask):
    """Another user of the same machine."""
    program = start(
        "taskmanager.py", DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db", LOG_FILE=f"{tmp_path}/log"
    )
    assert http("POST", f"{program.url}/tasks").status == 201
    files = eventually(lambda: len(found := [*tmp_path.glob("tasks.db*"), tmp_path / "log"]) == 4 and found)
    names = ("tasks.db", "tasks.db-wal", "tasks.db-shm", "log")
    assert {path.name: oct(mode(path)) for path in files} == dict.fromkeys(names, "0o600")


def test_the_next_files_of_the_log_are_as_private(tmp_path, usual_umask):
    handler = taskmanager.PrivateLogFile(tmp_path / "log", maxBytes=100, backupCount=2, encoding="utf-8")
    for _ in range(10):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "x" * 60, (), None))
    handler.close()
    assert sorted((path.name, mode(path)) for path in tmp_path.iterdir()) == [
        (name, 0o600) for name in ("log", "log.1", "log.2")
    ]


def test_the_mode_that_somebody_chose_is_kept(tmp_path, usual_umask):
    """A group that makes the backups."""
    taskmanager.open_store(f"sqlite:///{tmp_path}/tasks.db").close()
    (tmp_path / "tasks.db").chmod(0o640)
    taskmanager.open_store(f"sqlite:///{tmp_path}/tasks.db").close()
    assert mode(tmp_path / "tasks.db") == 0o640
