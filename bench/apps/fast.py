"""The document's service on FastAPI and asyncpg: one pool of connections, answers declared by their types."""

import contextlib
import os
from datetime import datetime

import asyncpg
import fastapi
import pydantic


class NewTask(pydantic.BaseModel):
    status: str = "New"


class Id(pydantic.BaseModel):
    id: int


class Task(Id):
    status: str
    created_at: datetime
    updated_at: datetime


@contextlib.asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=16, max_size=16) as app.state.pool:
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/tasks", status_code=201)
async def create() -> Id:
    return Id(id=await app.state.pool.fetchval("insert into tasks default values returning id"))


@app.post("/tasks/many", status_code=201)
async def create_many(tasks: list[NewTask]) -> list[Id]:
    rows = await app.state.pool.fetch(
        "insert into tasks (status) select unnest($1::text[]) returning id", [task.status for task in tasks])
    return [Id(**row) for row in rows]


@app.get("/tasks/{id}")
async def read(id: int) -> Task:
    row = await app.state.pool.fetchrow(
        "select id, status, created_at, updated_at from tasks where id = $1", id)
    if not row:
        raise fastapi.HTTPException(404)
    return Task(**row)


@app.get("/tasks")
async def list_tasks(after: int = 0, limit: int = 100) -> list[Task]:
    rows = await app.state.pool.fetch(
        "select id, status, created_at, updated_at from tasks where id > $1 order by id limit $2",
        after, limit)
    return [Task(**row) for row in rows]
