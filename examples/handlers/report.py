r"""Adds up a column of a CSV text by the values of another one. HANDLER names a function.

    HANDLER=examples.handlers.report:summarize make run

    {"payload": {"csv": "city,amount\nOslo,12.50\nRome,8\nOslo,0.25\n", "group": "city", "sum": "amount"}}

It only computes, so it may run any number of times.
"""

import csv
import io
from collections import Counter
from decimal import Decimal, InvalidOperation

from taskmanager import Failed, Task

FIELDS = ("csv", "group", "sum")


def summarize(task: Task) -> dict | None:
    """The number of rows and, for each group, its rows and its total."""
    payload = task.payload
    if not isinstance(payload, dict) or not all(isinstance(payload.get(name), str) for name in FIELDS):
        raise Failed("expected a payload with the texts csv, group and sum")
    group, column = payload["group"], payload["sum"]
    try:
        reader = csv.DictReader(io.StringIO(payload["csv"], newline=""), restval="", strict=True)
        rows = list(reader)
    except csv.Error as e:
        raise Failed(f"can't be read as CSV: {e}") from e
    header = reader.fieldnames or []
    for name in (group, column):
        if name not in header:
            raise Failed(f"no column {name!r} among {', '.join(header) or 'none'}")

    counts, totals = Counter(), Counter()
    for done, row in enumerate(rows, 1):
        if task.canceled:
            return None     # whatever a handler says after it was told to stop does not count
        counts[row[group]] += 1
        totals[row[group]] += number(row[column], f"row {done}, column {column!r}")
        task.progress(done / len(rows))
    return {
        "rows": len(rows),
        "groups": {key: {"rows": counts[key], "total": float(totals[key])} for key in counts},
    }


def number(text: str, where: str) -> Decimal:
    """An exact decimal number, so that 0.1 + 0.2 is 0.3."""
    try:
        value = Decimal(text)
        if value.is_finite():
            return value
    except InvalidOperation:
        pass
    raise Failed(f"{where}: expected a number, not {text!r}")
