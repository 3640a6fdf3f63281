"""Huey on SQLite, results kept: `huey_consumer huey_app.huey`."""

import os

import huey as package

huey = package.SqliteHuey(filename=f"{os.environ['BENCH_FOLDER']}/huey.db", store_none=True)


@huey.task()
def noop():
    pass
