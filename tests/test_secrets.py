"""No password in a log, an answer or an error, and no text that takes longer than its length."""

import logging
import os
import stat

import pytest

import taskmanager
from conftest import eventually, http


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
    assert {path.name: oct(mode(path)) for path in files} == {
        name: "0o600" for name in ("tasks.db", "tasks.db-wal", "tasks.db-shm", "log")
    }


def test_the_next_files_of_the_log_are_as_private(tmp_path, usual_umask):
    handler = taskmanager.PrivateLogFile(tmp_path / "log", maxBytes=100, backupCount=2, encoding="utf-8")
    for n in range(10):
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
