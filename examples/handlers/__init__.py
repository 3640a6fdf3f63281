"""One service for three kinds of tasks: each public function runs the tasks of the kind that has its name.

    HANDLER="examples.handlers:{kind}" make run

    {"kind": "summarize", "payload": {"csv": "city,amount\\nOslo,12\\n", "group": "city", "sum": "amount"}}
    {"kind": "pack", "payload": {"folder": "swagger"}}
    {"kind": "mail", "payload": {"to": "ann@example.com", "subject": "Hello", "text": "How are you?"}}

Only functions that are defined here, and stand in __all__, can be reached by a task. In the same way
`HANDLER="exec:examples/handlers/{kind}"` runs the executable files of this folder: there is `checksum`.
"""

import tempfile
from pathlib import Path

from examples.handlers import archive, outbox, report
from taskmanager import Failed, Task

__all__ = ["summarize", "pack", "mail"]

SOURCE = Path(__file__).resolve().parent.parent.parent / "static"       # folders in here may be packed
TARGET = Path(tempfile.gettempdir()).resolve() / "taskmanager-examples"


def summarize(task: Task) -> dict | None:
    """Add up a column of a CSV text."""
    return report.summarize(task)


def pack(task: Task) -> dict:
    """Pack a folder into a .tar.gz."""
    try:
        return archive.pack(task.payload, SOURCE, TARGET / "archives", f"{task.id}-{task.attempt}")
    except ValueError as e:
        raise Failed(str(e)) from e


def mail(task: Task) -> dict:
    """Write an e-mail into a folder."""
    folder = TARGET / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return outbox.deliver(task.payload, task.idempotency_key, folder)
    except ValueError as e:
        raise Failed(str(e)) from e
