"""The ceiling of an API on Bottle and waitress: no database, no checks, fixed answers."""

import os

import bottle
import waitress

app = bottle.Bottle()


@app.post("/tasks")
def create():
    bottle.response.status = 201
    bottle.response.content_type = "application/json"
    return '{"id": 1}'


@app.get("/tasks/<id>")
def read(id):
    bottle.response.content_type = "application/json"
    return ('{"id": 500, "status": "New", "created_at": "2024-12-17T10:00:00",'
            ' "updated_at": "2024-12-17T10:00:00"}')


if "ONE_CORE" in os.environ:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
waitress.serve(app, host="127.0.0.1", port=int(os.environ["PORT"]), threads=16)
