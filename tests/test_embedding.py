"""taskmanager.py beside bottle.py, and nothing else: what runs, and what says clearly that it can't."""

import contextlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import bottle
import pytest
import waitress

import taskmanager
from helpers import ROOT, eventually, http, is_problem
from servers import free_port

# The whole service with the standard library's server; as README shows it, but for the port and the handler.
SERVICE = """
import importlib.util, socketserver
from wsgiref.simple_server import WSGIServer, make_server

import taskmanager


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


assert not any(map(importlib.util.find_spec, ["waitress", "psycopg2", "pika"]))
store = taskmanager.open_store("sqlite:///tasks.db")
worker = taskmanager.Worker(store, handler=lambda task: task.payload)
worker.start()
with make_server("127.0.0.1", PORT, taskmanager.create_app(store), Server) as server:
    server.serve_forever()
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with two files in it."""
    shutil.copy(ROOT / "taskmanager.py", tmp_path)
    shutil.copy(bottle.__file__, tmp_path)
    return tmp_path


def command(*arguments):
    """A Python that finds no packages but those in its script's folder."""
    return [sys.executable, "-E", "-s", "-S", *arguments]


@contextlib.contextmanager
def running(folder, *arguments, **environ):
    """The lines that a program writes to stdout and stderr, while it runs."""
    lines = []
    with subprocess.Popen(command(*arguments), cwd=folder, env=environ, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as program:
        reader = threading.Thread(target=lambda: lines.extend(iter(program.stdout.readline, "")))
        reader.start()
        try:
            yield lines
        finally:
            program.terminate()
            reader.join()


def test_two_files_are_the_whole_service_on_sqlite(folder):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "service.py").write_text(SERVICE.replace("PORT", str(port)))
    with running(folder, "service.py") as lines:
        def answers():
            with contextlib.suppress(OSError):
                return http("GET", f"{url}/readyz").status == 200
        try:
            eventually(answers)
        except AssertionError:
            pytest.fail("".join(lines))

        created = http("POST", f"{url}/tasks", {"payload": {"a": [1]}})
        assert (created.status, created.json) == (201, {"id": 1})
        [task] = eventually(lambda: http("GET", f"{url}/tasks?status=Completed").json)
        assert http("GET", f"{url}/tasks/1").json == task
        assert task["result"] == {"a": [1]}
        assert "taskmanager_database_up 1" in http("GET", f"{url}/metrics").body.decode()

        pages = ["/", "/static/page.js", "/swagger", "/swagger/ours.css", "/openapi.yaml", "/asyncapi.yaml"]
        for path in pages:      # which are files of their own
            assert is_problem(http("GET", url + path), 404) == "there is nothing at this address"


def test_without_waitress_the_program_says_in_one_line_what_to_install(folder):
    done = subprocess.run(command("taskmanager.py"), cwd=folder, env={}, capture_output=True, text=True)
    said = "taskmanager.py: No module named 'waitress': pip install waitress\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert not (folder / "tasks.db").exists()


def test_help_needs_two_files(folder):
    asked = command("taskmanager.py", "--help")
    done = subprocess.run(asked, cwd=folder, env={}, capture_output=True, text=True)
    assert done.returncode == 0 and "DATABASE_URL" in done.stdout, done.stderr


@pytest.mark.parametrize("there", [False, True], ids=["without its pages", "with its pages"])
def test_the_start_names_no_page_that_is_not_there(folder, there):
    shutil.copytree(Path(waitress.__file__).parent, folder / "waitress")
    if there:
        shutil.copytree(ROOT / "static", folder / "static")
    with running(folder, "taskmanager.py", PORT="0") as lines:
        eventually(lambda: any("Ctrl-C" in line for line in list(lines)))
    text = "".join(lines)
    assert "curl -X POST http://localhost:" in text
    assert ("look at it" in text, "/swagger" in text) == (there, there)


def test_postgresql_without_schema_sql_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(taskmanager, "HERE", tmp_path)
    with pytest.raises(taskmanager.BadSetting, match=r"PostgreSQL needs \S+/schema.sql: No such file"):
        taskmanager.open_store(f"postgresql://127.0.0.1:{free_port()}/none")
