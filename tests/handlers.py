"""Handlers that the tests' workers run: HANDLER=tests.handlers:…"""

import ctypes
import os
import time

import taskmanager


def echo(task):
    return {"id": task.id, "attempt": task.attempt, "payload": task.payload}


async def never(task):
    """Handlers are plain functions."""


def cores(task):
    return len(os.sched_getaffinity(0))


def heaps(task):
    """Have glibc print its heaps."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_stats"):
        libc.malloc_stats()


def obey(task):
    """Do what the payload says."""
    order = task.payload or {}
    if "file" in order:         # leave a trace: a line for each time it began
        with open(order["file"], "a") as file:
            file.write(f"{task.id} {task.attempt} {os.getpid()}\n")
    if "die" in order:
        os._exit(order["die"])
    if "sleep" in order:        # stops when it is told to
        end = time.monotonic() + order["sleep"]
        while time.monotonic() < end and not task.canceled:
            time.sleep(0.01)
    if "deaf" in order:         # does not
        time.sleep(order["deaf"])
    if "progress" in order:
        task.progress(order["progress"])
        time.sleep(0.5)
    if "raise" in order:
        raise {
            "ValueError": ValueError,
            "Failed": taskmanager.Failed,
            "exit": SystemExit,
            "Retry": taskmanager.Retry,
        }[order["raise"]](order.get("say", "as told"))
    if "until" in order and task.attempt < order["until"]:
        raise RuntimeError(f"attempt {task.attempt} is too early")
    return order.get("return")
