"""`make demo`: the service with a trickle of tasks of several kinds, for a first look.

The tasks are in demo.db; delete the file to begin anew.
"""

import json
import os
import random
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import taskmanager


def work(task):
    """The handler: does what the task's `kind` says."""
    kind = (task.payload or {}).get("kind", "quick")
    if kind == "quick":
        time.sleep(random.uniform(0.05, 0.5))
        return {"words": len(task.payload.get("text", "").split())} if task.payload else None
    if kind == "slow":
        steps = task.payload["steps"]
        for step in range(steps):
            if task.canceled:
                return None
            task.progress(step / steps)
            time.sleep(0.5)
        return {"steps": steps}
    if kind == "flaky":
        time.sleep(0.2)
        if random.random() < 0.6:
            raise ConnectionError("the mail server hung up")
        return "sent"
    raise taskmanager.Failed(f"no such kind: {kind!r}")


def some_task():
    """A task as a client would post it."""
    names = ["ann@example.com", "bob@example.com", "eve@example.com"]
    return random.choice([
        {"payload": {"kind": "quick", "text": "the quick brown fox jumps over the lazy dog"}},
        {"payload": {"kind": "quick", "text": "hello"}, "priority": 5},
        {"payload": {"kind": "slow", "steps": random.randint(10, 60)}},
        {"payload": {"kind": "flaky", "to": random.choice(names)}, "max_attempts": 4},
        {"payload": {"kind": "flaky", "to": random.choice(names)}, "max_attempts": 2},
        {"payload": {"kind": "quick", "text": "later"}, "delay": random.randint(20, 120)},
        {"payload": {"kind": "mistyped"}},
    ])


def trickle(port):
    while True:
        body = json.dumps([some_task() for _ in range(random.choice([1, 1, 1, 2, 8]))]).encode()
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("API_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        try:
            urllib.request.urlopen(
                urllib.request.Request(f"http://localhost:{port}/tasks", body, headers)
            ).close()
        except OSError:
            pass        # not there yet, or just stopping
        time.sleep(random.uniform(0.3, 3))


def main():
    os.environ.setdefault("DATABASE_URL", "sqlite:///demo.db")
    os.environ.setdefault("PORT", "5000")
    os.environ.update(HANDLER="examples.demo:work", WORKER="on")
    threading.Thread(target=trickle, args=(os.environ["PORT"],), daemon=True).start()
    taskmanager.main()


if __name__ == "__main__":
    taskmanager.run(main)
