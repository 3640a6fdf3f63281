"""A clock that is wrong: with this folder on PYTHONPATH, CHAOS_CLOCK=300 sets a process five minutes ahead.

It shifts what Python code asks for the time of day: time.time(), time.time_ns(), datetime.now() and the like.
So it shows that no decision of Task Manager's own code depends on that clock; the durations that the system
itself measures (sleeping, time.monotonic(), timeouts of sockets) are no matter of the time of day.
"""

import datetime
import os
import time

SHIFT = float(os.environ.get("CHAOS_CLOCK", "0"))
real_time, real_datetime = time.time, datetime.datetime


class ShiftedDatetime(real_datetime):
    @classmethod
    def now(cls, tz=None):
        return super().fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return super().fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)

    @classmethod
    def today(cls):
        return cls.now()


if SHIFT:
    time.time = lambda: real_time() + SHIFT
    time.time_ns = lambda: int(time.time() * 1e9)
    datetime.datetime = ShiftedDatetime
