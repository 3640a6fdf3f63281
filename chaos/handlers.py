"""What the tasks do: HANDLER=chaos.handlers:{kind}. Each attempt writes two lines into a log of its own.

A line is one write to a file opened with O_APPEND, so those of many processes do not mix, and a line that was
written stands even when the process is killed: `begin` or `end`, task, attempt, process, time.
"""

import os
import resource
import signal
import time

import taskmanager
from taskmanager import Retry

__all__ = ["default", "deadly", "hungry", "long"]

LOG = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
BLOCK = 64 * 2**20      # bytes

# So that the short form need not wait.
if "CHAOS_STATEMENT_SECONDS" in os.environ:
    taskmanager.STATEMENT_SECONDS = float(os.environ["CHAOS_STATEMENT_SECONDS"])
if "CHAOS_BACKOFF_SECONDS" in os.environ:
    usual_backoff, limit = taskmanager.backoff, float(os.environ["CHAOS_BACKOFF_SECONDS"])
    taskmanager.backoff = lambda tries, first, longest: usual_backoff(tries, first, min(longest, limit))


def note(word, task):
    # The time of the machine itself, even where the clock of this process is shifted.
    now = time.clock_gettime(time.CLOCK_REALTIME)
    os.write(LOG, f"{word} {task.id} {task.attempt} {os.getpid()} {now:.3f}\n".encode())


def ended(task):
    note("end", task)
    return {"attempt": task.attempt}


def default(task):
    note("begin", task)
    time.sleep((task.payload or {}).get("sleep", 0))
    return ended(task)


def long(task):
    """Work for seconds, and stop when told to."""
    note("begin", task)
    until = time.monotonic() + task.payload["sleep"]
    while time.monotonic() < until and not task.canceled:
        time.sleep(0.02)
    return ended(task)


def deadly(task):
    """Kill the process, every time, as the system does when its memory is used up."""
    note("begin", task)
    os.kill(os.getpid(), signal.SIGKILL)


def hungry(task):
    """Take all the memory that the process may have, at the first attempt."""
    note("begin", task)
    if task.attempt == 1:
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            raise Retry("this process has no limit", delay=0)
        taken, size = [], BLOCK
        while size > 2**16:
            try:
                taken.append(bytes(size))       # these pages are never touched: only the limit is used up
            except MemoryError:
                size //= 2
        time.sleep(0.5)                         # meanwhile the other threads have none
        raise MemoryError
    return ended(task)
