"""make bench-memory: how soon a small service answers, and how much memory it keeps.

That is the API on SQLite with a worker inside, as `make run` starts it. Variables of make:

    TASKS=100000    to be created, run and read while its memory is looked at ten times
"""

import contextlib
import http.client
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import servers
from machine import Machine, wait_until


def main() -> None:
    tasks = int(os.environ.get("TASKS") or 100_000)
    with tempfile.TemporaryDirectory(prefix="taskmanager-bench-") as folder:
        machine = Machine()
        machine.folder = Path(folder)
        port = servers.free_port()
        began = time.monotonic()
        with machine.running(sys.executable, "-m", "taskmanager", PORT=str(port), LOG_LEVEL="WARNING",
                             DATABASE_URL=f"sqlite:///{folder}/tasks.db") as process:
            wait_until(lambda: answers(port), every=0.002)
            used = cpu(process.pid)
            print(f"first answer after {time.monotonic() - began:.2f} s, {used:.2f} s of CPU")
            time.sleep(2)
            start = memory(process.pid)
            print(f"after the start     {start:6.1f} MB")

            connection = http.client.HTTPConnection("127.0.0.1", port)
            for n in range(1, 11):
                for _ in range(tasks // 1000):
                    create(connection, 100)
                    ask(connection, "GET", "/tasks?limit=100&order=desc")
                print(f"{n * tasks // 10:9,} tasks     {memory(process.pid):6.1f} MB")
            for _ in range(10):
                create(connection, 10_000)
            print(f"10 arrays of 10,000 {memory(process.pid):6.1f} MB")
            time.sleep(90)      # by then connections to the database that are idle are closed
            end = memory(process.pid)
            print(f"90 seconds later    {end:6.1f} MB, {end - start:.1f} more than after the start")


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        return ask(connection, "GET", "/livez") == 200
    return False


def ask(connection, method: str, path: str, body: bytes | None = None) -> int:
    connection.request(method, path, body, {"Content-Type": "application/json"})
    with connection.getresponse() as response:
        response.read()
        return response.status


def create(connection, number: int) -> None:
    if ask(connection, "POST", "/tasks", json.dumps([{}] * number).encode()) != 201:
        raise RuntimeError("the tasks were not created")


def memory(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
