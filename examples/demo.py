"""`make demo`: the service with a trickle of tasks of several kinds, and a repeating one, for a first look.

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

# HANDLER=examples.demo:{kind} makes a kind of task of each of these functions, and of nothing else here.
__all__ = ["default", "report", "mail", "cleanup"]


def default(task):
    """Be quick."""
    time.sleep(random.uniform(0.05, 0.5))
    return {"words": len(task.payload["text"].split())} if task.payload else None


def report(task):
    """Take a while, and tell the progress."""
    steps = (task.payload or {}).get("steps")
    if not isinstance(steps, int):
        raise taskmanager.Failed('expected a payload such as {"steps": 30}')
    for step in range(steps):
        if task.canceled:
            return None
        task.progress(step / steps)
        time.sleep(0.5)
    return {"steps": steps}


def mail(task):
    """Fail more often than not, so that attempts are used up."""
    time.sleep(0.2)
    if random.random() < 0.6:
        raise ConnectionError("the mail server hung up")
    return "sent"


def cleanup(task):
    """Run again and again."""
    time.sleep(1)
    return {"removed": random.randint(0, 20)}


def some_task():
    """A task as a client would post it."""
    names = ["ann@example.com", "bob@example.com", "eve@example.com"]
    return random.choice([
        {"payload": {"text": "the quick brown fox jumps over the lazy dog"}},
        {"payload": {"text": "hello"}, "priority": 5},
        {"payload": {"text": "later"}, "delay": random.randint(20, 120)},
        {"kind": "report", "payload": {"steps": random.randint(10, 60)}},
        {"kind": "mail", "payload": {"to": random.choice(names)}, "max_attempts": 4},
        {"kind": "mail", "payload": {"to": random.choice(names)}, "max_attempts": 2},
        {"kind": "report", "payload": {"steps": "many"}},
    ])


def post(port, body, **headers):
    """Create tasks; return whether that was possible."""
    headers["Content-Type"] = "application/json"
    if token := os.environ.get("API_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    address = f"http://localhost:{port}/tasks"
    try:
        urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)).close()
    except OSError:
        return False        # not there yet, or just stopping
    return True


def trickle(port):
    # Its key makes it one task, however often the demo is started.
    repeating = {"kind": "cleanup", "repeat": 20}
    while not post(port, repeating, **{"Idempotency-Key": "demo-cleanup"}):
        time.sleep(0.3)
    while True:
        post(port, [some_task() for _ in range(random.choice([1, 1, 1, 2, 8]))])
        time.sleep(random.uniform(0.3, 3))


def main():
    os.environ.setdefault("DATABASE_URL", "sqlite:///demo.db")
    os.environ.setdefault("PORT", "5000")
    # Two long reports at the same time, so that they leave room for the others.
    os.environ.update(HANDLER="examples.demo:{kind}", KINDS="default,report:2,mail,cleanup", WORKER="on")
    threading.Thread(target=trickle, args=(os.environ["PORT"],), daemon=True).start()
    taskmanager.main()


if __name__ == "__main__":
    taskmanager.run(main)
