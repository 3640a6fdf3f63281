"""Procrastinate on PostgreSQL: `procrastinate --app=procrastinate_app.app worker`."""

import os

import procrastinate

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=f"{os.environ['BENCH_POSTGRES']}/procrastinate"))


@app.task
async def noop():
    pass
