"""make bench-scale: each statement with few rows and with many, and what an hour's work leaves behind.

Two tables alike, of which a tenth is ready and a tenth is scheduled, and 200 rows are in progress. The
store's methods take turns on them; what a method needs is prepared outside of its time. Then the larger table
gets as many tasks as come in an hour, and they are created, claimed and completed as fast as that goes, with
autovacuum's defaults. Variables of make:

    ROWS=10000000   rows of the larger table; of the smaller one 10,000
    CHURN=100       tasks a second, of that hour
    REPEATS=20      turns of each method
"""

import logging
import os
import random
import statistics
import sys
import time
from functools import partial

import servers
import taskmanager
from machine import DurablePostgres, query
from taskmanager import NOW, Filters, NewTask

SMALL = 10_000
RUNNING = 200       # however many rows there are: as many as the workers have slots

# The rows of 30 days.
FILL = """
insert into tasks (status, created_at, updated_at, kind, payload, result, error, attempt, run_at, lease_until,
                   worker)
select status, made_at, made_at,
       (array['default', 'default', 'mail', 'report'])[1 + n % 4],
       case when n % 2 = 0 then '{{"to": "a@example.com", "subject": "hello"}}'::json end,
       case when status = 'Completed' and n % 2 = 0 then '{{"sent": true}}'::json end,
       case when status = 'Failed' then 'ValueError: no such address' end,
       case when status = 'New' then 0 else 1 end,
       case when status = 'New' and n % 10 = 1 then made_at + interval '365 days' end,
       case when status = 'In Progress' then made_at + interval '365 days' end,
       case when status = 'In Progress' then 'w' || n % 25 end
from   (select n,
               timezone('utc', now()) - ({rows} - n) * (interval '30 days' / {rows}) as made_at,
               case when n > {rows} - {running} then 'In Progress'
                    when n % 10 < 2             then 'New'
                    when n % 100 = 99           then 'Failed'
                    else                             'Completed' end as status
        from   generate_series({first}, {last}) as n) as made"""

# What is changed before something is measured
DUE = f"""
update tasks set run_at = {NOW} - interval '1 s'
where  id in (select id from tasks where status = 'New' order by id desc limit 100)"""
EXPIRED = f"""
update tasks set lease_until = {NOW} - interval '1 s'
where  id in (select id from tasks where status = 'In Progress' order by id limit 8)"""
OLD = f"""
update tasks set updated_at = {NOW} - interval '400 days'
where  id in (select id from tasks where status = 'Completed' order by updated_at desc limit 100)"""


class Table:
    """A table of so many rows, and the store on it; `times` has the milliseconds of each measure."""

    def __init__(self, url: str, rows: int):
        self.url, self.rows = url, rows
        self.times: dict[str, list[float]] = {}
        self.made: list[int] = []       # by the last create()
        self.store = taskmanager.open_store(url)
        for first in range(1, rows + 1, 1_000_000):
            last = min(first + 999_999, rows)
            query(url, FILL.format(rows=rows, first=first, last=last, running=RUNNING))
        query(url, "vacuum analyze tasks")

    def measure(self, name: str) -> None:
        call = MEASURES[name](self)
        began = time.perf_counter()
        call()
        self.times.setdefault(name, []).append((time.perf_counter() - began) * 1000)

    # What is not measured

    def any_id(self) -> int:
        return random.randrange(1, self.rows - RUNNING)

    def failed_id(self) -> int:
        return query(self.url, "select id from tasks where status = 'Failed' order by id desc limit 1")[0][0]

    def held(self, limit: int = 8) -> list[tuple[int, int]]:
        return [(row.id, row.attempt) for row in self.store.claim(limit, 3600, "bench")]

    def create(self, tasks: int):
        """Return what creates so many tasks, after those of the last time were deleted."""
        query(self.url, "delete from tasks where id = any(%s)", [self.made])

        def run():
            self.made = self.store.create([NewTask()] * tasks)
        return run

    def all_of_new(self, change, status: str):
        """Return what changes a hundred tasks at once, which have this status and were just created."""
        self.create(100)()
        query(self.url, "update tasks set status = %s where id = any(%s)", [status, self.made])
        return partial(change, Filters(statuses=(status,)), after=self.made[0] - 1)

    def after(self, sql: str, call):
        query(self.url, sql)
        return call

    def anew(self, call):
        """Return what measures a figure, instead of returning the last one."""
        self.store._state.figures.clear()
        return call


def ended(table: Table, end):
    """Return what ends eight attempts."""
    held = table.held()
    return lambda: end(held)


# Each prepares something, and returns what is measured. In the order of a task's life.
MEASURES = {
    "CREATE, 1": lambda t: t.create(1),
    "CREATE, 1,000": lambda t: t.create(1000),
    "READ": lambda t: partial(t.store.read, t.any_id()),
    "LIST, 100": lambda t: partial(t.store.list_tasks, after=t.any_id(), limit=100),
    "LIST, the newest 100": lambda t: partial(t.store.list_tasks, limit=100, order="desc"),
    "LIST_STATUS, New or Failed, 100":
        lambda t: partial(t.store.list_tasks, "New", "Failed", after=t.any_id(), limit=100),
    "LIST_STATUS, In Progress, the newest 100":
        lambda t: partial(t.store.list_tasks, "In Progress", limit=100, order="desc"),
    "SEARCH, a kind, the newest 100":
        lambda t: partial(t.store.find_tasks, Filters(kinds=("mail",)), limit=100, order="desc"),
    "SEARCH, a text that is nowhere": lambda t: partial(t.store.find_tasks, Filters(q="needle"), limit=100),
    "PROMOTE, nothing": lambda t: t.store.promote,
    "PROMOTE, 100": lambda t: t.after(DUE, t.store.promote),
    "REPEAT, nothing": lambda t: t.store.repeat,
    "UNSCHEDULED": lambda t: t.store.unscheduled,
    "CLAIM, 8": lambda t: t.held,
    "CLAIM, of a kind without tasks": lambda t: partial(t.store.claim, 8, 30, kind="sync"),
    "READY_KINDS": lambda t: partial(t.store.ready_kinds, ["default", "mail", "report", "sync"]),
    "HELD_BY": lambda t: partial(t.store.held_by, "w1"),
    "EXTEND, 8": lambda t: ended(t, lambda held: t.store.extend([(*each, None) for each in held], 3600)),
    "COMPLETE, 8": lambda t: ended(t, lambda held: t.store.complete([(*each, None) for each in held])),
    "RETRY, 8": lambda t: ended(t, lambda held: t.store.retry([(*each, "why", 3600) for each in held])),
    "FAIL, 8": lambda t: ended(t, lambda held: t.store.fail([(*each, "why") for each in held])),
    "RELEASE, 8": lambda t: ended(t, t.store.release),
    "RECLAIM, nothing": lambda t: partial(t.store.reclaim, 3),
    "RECLAIM, 8": lambda t: t.after(EXPIRED, partial(t.store.reclaim, 3)),
    "CANCEL_REQUESTED, 8": lambda t: ended(t, t.store.cancel_requests),
    "CANCEL": lambda t: partial(t.store.cancel, t.store.create()[0]),
    "RETRY_BY_HAND": lambda t: partial(t.store.retry_by_hand, t.failed_id()),
    "DELETE": lambda t: partial(t.store.delete, t.store.create()[0]),
    "ATTEMPTS": lambda t: partial(t.store.attempts, t.any_id()),
    "CANCEL_ALL, 100": lambda t: t.all_of_new(t.store.cancel_all, "New"),
    "RETRY_ALL, 100": lambda t: t.all_of_new(t.store.retry_all, "Failed"),
    "DELETE_ALL, 100": lambda t: t.all_of_new(t.store.delete_all, "Failed"),
    "DELETE_OLD, 100": lambda t: t.after(OLD, partial(t.store.delete_old, "Completed", 365, 100)),
    "OLDEST_READY": lambda t: t.anew(t.store.oldest_ready_seconds),
    "FINISHED, 10 seconds": lambda t: t.anew(partial(t.store.finished_per_second, "Completed")),
    "FINISHED_BINS, an hour*": lambda t: t.anew(partial(t.store.finished_bins, 3600, 60)),
    "READY, of a kind*": lambda t: t.anew(partial(t.store.ready_tasks, "mail")),
    "COUNT, Completed*": lambda t: t.anew(partial(t.store.count, "Completed")),
}


def main() -> None:
    rows, per_second, repeats = (int(os.environ.get(name) or default) for name, default in (
        ("ROWS", 10_000_000), ("CHURN", 100), ("REPEATS", 20)))
    servers.install()
    logging.disable()
    postgres = DurablePostgres()
    postgres.start()
    try:
        began = time.monotonic()
        small, large = (Table(postgres.create_database(f"rows{n}"), n) for n in (SMALL, rows))
        print(f"made {rows:,} rows in {time.monotonic() - began:.0f} s", file=sys.stderr)
        compare(small, large, repeats)
        churn(large, 3600 * per_second)
        version = query(postgres.url, "show server_version")[0][0]
    finally:
        postgres.close()
    print(f"\nMedians of {repeats} turns. {os.cpu_count()} cores; PostgreSQL {version} with its defaults.")


def compare(small: Table, large: Table, repeats: int) -> None:
    """Print what each measure takes on both tables, and the ratio."""
    print(f"| | {small.rows:,} rows, ms | {large.rows:,} rows, ms | ratio |\n|---|---:|---:|---:|")
    for name in MEASURES:
        for _ in range(repeats):
            for table in small, large:
                table.measure(name)
        few, many = (statistics.median(table.times[name]) for table in (small, large))
        print(f"| {name} | {few:.2f} | {many:.2f} | {many / few:.2f} |", flush=True)
    print("\n*Counts all these rows. It is repeated only after a hundred times as long as it took.")


def churn(table: Table, tasks: int) -> None:
    """Take so many tasks through their life, and print what they leave behind."""
    before, began = sizes(table), time.monotonic()
    for _ in range(0, tasks, 100):
        table.store.create([NewTask(kind="sync")] * 100)
        held = [(row.id, row.attempt) for row in table.store.claim(100, 30, "bench", kind="sync")]
        table.store.complete([(*each, None) for each in held])
    print(f"\n{tasks:,} tasks created, claimed and completed in {time.monotonic() - began:.0f} s.\n")
    after = sizes(table)
    print("| | before, MB | after, MB |\n|---|---:|---:|")
    for name, size in after.items():
        print(f"| {name} | {before[name] / 1e6:,.1f} | {size / 1e6:,.1f} |")
    [(live, dead, vacuums)] = query(table.url, "select n_live_tup, n_dead_tup, autovacuum_count "
                                               "from pg_stat_user_tables where relname = 'tasks'")
    print(f"\n{live:,} live rows, {dead:,} dead ones; autovacuum came {vacuums} times.")


def sizes(table: Table) -> dict[str, int]:
    """Return the bytes of the table and of each index."""
    return dict(query(table.url, """
        select 'the table', pg_table_size('tasks')
        union all
        select * from (select cast(indexrelname as text), pg_relation_size(indexrelid)
                       from   pg_stat_user_indexes order by 1) as indexes"""))


if __name__ == "__main__":
    main()
