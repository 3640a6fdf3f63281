#!/usr/bin/env python3
"""chaos/fuzz.py: send both doors what no client should send, and check that the service bears it.

`make fuzz` runs it; MINUTES=10 is how long, SEED=1 and CASE=1234 name what to send once more, DOOR=http or
DOOR=amqp chooses one. It works on sockets, below what openapi.yaml describes: bytes that are not HTTP, not
JSON or not UTF-8, headers and AMQP properties of every size and type, bodies of up to 16 MB. What must hold:

- an answer is what openapi.yaml says, and an error is a problem document; no 5xx but 501 and 505
- what was refused has changed nothing: the rows are compared before and after each case
- each message that the broker has confirmed becomes one row, or is rejected, with a reason
- the log has no error and no traceback, and no connection to a server is lost
- good requests and messages are served meanwhile, and memory, threads and open files stay the same

Each case is made from seed and number alone. One that fails is made as small as it still fails, and printed.
"""

import contextlib
import itertools
import json
import os
import random
import re
import select
import socket
import statistics
import struct
import sys
import time
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import pika
import psycopg2

import servers
import taskmanager
from chaos.own import Own, Wrong, check_log, require, resources
from helpers import ROOT, http

SHRINK_SECONDS = 60  # for making a case that fails smaller
RSS_MB = 48  # growth of a process's memory that is not yet a leak: bodies of 16 MB pass through it
SLOWEST = 2.0  # seconds that a good request may take, in the long form


# ----------------------------------------------------------------------------
# Making cases

OPENAPI = (ROOT / "openapi.yaml").read_text(encoding="utf-8")
[_codes] = re.findall(r"    ProblemCode:.*?enum: \[(.*?)\]", OPENAPI, re.DOTALL)
CODES = set(re.split(r",\s*", _codes))
STATUSES = {200, 201, 202, 204, 302, 304, 307, 400, 401, 403, 404, 405, 409, 412, 413, 414, 415, 422, 431,
            501, 505}

PATHS = ["/tasks", "/tasks/1", "/tasks/2/attempts", "/tasks/3/cancel", "/tasks/4/retry", "/tasks/claim",
         "/tasks/cancel", "/tasks/retry", "/tasks/1/extend", "/tasks/1/progress", "/tasks/1/complete",
         "/tasks/1/fail", "/tasks/1/release", "/summary", "/finished", "/token", "/livez", "/readyz",
         "/metrics", "/swagger", "/swagger/", "/", "/openapi.yaml", "/static/page.js", "*", "//", "/tasks/",
         "http://h/tasks", "http://[/", "/%00", "/%ff%fe", "/tasks/99999999999999999999", "/tasks/-1",
         "/tasks/١", "/../../etc/passwd", "/static/%2e%2e/taskmanager.py"]
QUERIES = ["status", "kind", "q", "after", "limit", "order", "created_after", "created_before", "hours",
           "x", ""]
METHODS = ["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "get", "BREW", ""]
HEADERS = ["Prefer", "If-Match", "If-None-Match", "Idempotency-Key", "Content-Type", "Content-Encoding",
           "Expect", "Host", "X-Request-Id", "Origin", "Authorization", "Connection", "Range",
           "Transfer-Encoding", "Content-Length", "Accept", "Accept-Encoding", "Cookie", "Upgrade", "TE",
           "Trailer", "Sec-Fetch-Site", "Forwarded", "X-Forwarded-For", "X_Request_Id", "Date",
           "User-Agent", "Access-Control-Request-Method"]
HEADER_VALUES = ["wait=1", "wait=99999999999999999999", "wait=", '"', '"a', '"\\"', "*", "W/\"x\"",
                 "application/json", "application/json; charset=utf-16", "text/plain", "gzip",
                 "100-continue", "localhost", "127.0.0.1:1", "evil.example", "null", "http://evil.example",
                 "Bearer x", "Basic =", "close", "keep-alive", "bytes=0-0", "chunked", "chunked, chunked",
                 "gzip, chunked", "0", "-1", "1e3", "+5", "18446744073709551616", "cross-site", "h2c", "",
                 " ", "\t"]
FIELDS = ["payload", "priority", "kind", "run_at", "delay", "max_attempts", "timeout", "repeat", "timezone",
          "status", "attempt", "result", "error", "limit", "lease", "kinds", "worker", "progress", "id", "",
          "__proto__", "é", "\0"]
SCALARS = [None, True, False, 0, -1, 1, 2**31, 2**63, -2**63 - 1, 10**400, 0.1, 1e308, -0.0, "", "New",
           "default", "UTC", "Europe/Berlin", "* * * * *", "*/0 * * * *", "@daily", "2030-01-31T12:00:00Z",
           "9999-12-31T23:59:59-23:59", "0000-00-00", "\0", "\ud800", "é" * 100, "a" * 70, [], {},
           "../../etc/passwd", "' or 1=1 --", "%s", "%(id)s"]
ROUTES = [(route.method, route.path) for route in taskmanager.ROUTES]
ROUTES += 10 * [("POST", "/tasks"), ("DELETE", "/tasks?status=New")]
FRAMING = {"Host", "Transfer-Encoding", "Content-Length", "Expect"}
TAME = [name for name in HEADERS if name not in FRAMING]
SAFE = "/?&=%*:"
PROTOCOLS = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
             b"AMQP\0\0\x09\x01", b"\0\0\0\x08\x04\xd2\x16\x2f", b"SSH-2.0-OpenSSH_9.2\r\n",
             b"*1\r\n$4\r\nPING\r\n", b"\x04\x01\0\x50\x7f\0\0\x01\0", b"\x05\x01\0", b"GET\r\n\r\n",
             b"HELO x\r\n", b"<policy-file-request/>\0", b"\xffSMBr\0\0\0\0"]


def size(rng, most):
    """A number from 0 on, small ones as often as large ones."""
    return min(most, int(2 ** rng.uniform(0, most.bit_length() + 0.5)) - 1)


def some_json(rng, depth=0):
    """A JSON value of any form, in text; often one that nearly is a task."""
    kind = rng.random()
    if kind < 0.5 or depth > 5:
        value = rng.choice(SCALARS)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        return rng.choice(
            [text] * 8 + ["NaN", "-Infinity", "01", "1.", "'a'", "tru", '"\\x"', '"\n"', "1e999", "-"]
        )
    number = size(rng, 12)
    if kind < 0.6:
        return "[" + ", ".join(some_json(rng, depth + 1) for _ in range(number)) + "]"
    if kind < 0.62:
        levels = rng.choice([99, 100, 101, 2000, 100_000])
        return rng.choice(["[", '{"payload":']) * levels + rng.choice(["", "1" + "]" * levels])
    names = [json.dumps(rng.choice(FIELDS)) for _ in range(number)]
    return "{" + ", ".join(f"{name}: {some_json(rng, depth + 1)}" for name in names) + "}"


def some_body(rng, most=16_000_000):
    """Bytes that stand where a task should stand."""
    kind = rng.random()
    if kind < 0.3:
        body = some_task(rng)
    elif kind < 0.6:
        body = some_json(rng).encode("utf-8", "surrogatepass")
    elif kind < 0.65:
        body = json.dumps({"payload": "x" * size(rng, 100_000)}).encode(
            rng.choice(["utf-16", "utf-8-sig", "utf-32", "utf-8"])
        )
    elif kind < 0.8:
        body = rng.randbytes(size(rng, 10_000))
    elif kind < 0.83:
        body = rng.choice([b"x", b"\0", b'{"payload": 1}', b"[", b" "]) * size(rng, most)
        body = body[:most]
    elif kind < 0.9:
        body = b'{"payload": %d}' % rng.randrange(10**9)
    else:
        body = b""
    return mutate(rng, body) if rng.random() < 0.3 else body


def mutate(rng, data):
    """The same with some of it changed, left out, doubled or put elsewhere."""
    data = bytearray(data)
    for _ in range(1 + size(rng, 6)):
        at, length = rng.randrange(len(data) + 1), size(rng, 64)
        change = rng.randrange(5)
        if change == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at : at + length] = b""
        elif change == 2:
            data[at:at] = rng.randbytes(length)
        elif change == 3:
            data[at:at] = data[at : at + length] * rng.choice([1, 2, 100])
        else:
            data[at:at] = rng.choice(
                [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"\xff", b"%", b"chunked"]
            )
    return bytes(data)


def some_address(rng):
    path = rng.choice(PATHS)
    if rng.random() < 0.1:
        path = "/tasks/" + "".join(
            rng.choice("0123456789%abcdef/.;\xff\x7f+-") for _ in range(size(rng, 9000))
        )
    if rng.random() < 0.4:
        values = [
            "New",
            "Failed",
            "default",
            "1",
            "-1",
            "",
            "%00",
            "%ff",
            "%ED%A0%80",
            "a" * 300,
            "2024-01-01",
            "*",
            "é",
        ]
        path += "?" + "&".join(f"{rng.choice(QUERIES)}={rng.choice(values)}" for _ in range(size(rng, 150)))
    return path.encode("utf-8")


def some_chunks(rng, body):
    """A body in chunks, not always right."""
    sent, at = b"", 0
    while at < len(body):
        piece = body[at : at + 1 + size(rng, 100_000)]
        at += len(piece)
        extension = rng.choice([b""] * 20 + [b";x=y", b" ;", b"; \xff", b"\n"])
        length = rng.choice([b"%x", b"%X", b"00%x"]) % len(piece) if rng.random() < 0.97 else b"-1"
        sent += length + extension + b"\r\n" + piece + b"\r\n"
    return sent + rng.choice(
        [b"0\r\n\r\n"] * 5 + [b"0\r\nX: y\r\n\r\n", b"", b"0\r\n", b"0\r\n" + b"X: y\r\n" * 2000]
    )


def some_task(rng):
    """A body that is right, or nearly."""
    given = {
        "payload": rng.choice(SCALARS),
        "priority": rng.choice([0, 5, -32768, 32768]),
        "delay": rng.choice([0, 60, -1]),
        "kind": rng.choice(["default", "mail", "UP", "a" * 63]),
        "max_attempts": rng.choice([1, 3, 0]),
        "timeout": rng.choice([0.5, 60, 0]),
        "repeat": rng.choice([60, "@daily", "61 * * * *"]),
        "status": "New",
        "attempt": rng.choice([0, 1, 2]),
        "result": rng.choice(SCALARS),
        "error": rng.choice(["no", ""]),
        "kinds": rng.choice([["default"], []]),
        "limit": 1,
        "progress": rng.choice([0.5, 2]),
    }
    fields = {name: given[name] for name in rng.sample(list(given), rng.choice([0, 1, 1, 1, 2, 3]))}
    return json.dumps(rng.choice([fields] * 9 + [[fields, {}]])).encode()


def some_head(rng):
    """The lines of a head that is HTTP, whatever it asks for."""
    method, address = rng.choice(["GET", "POST", "DELETE"]), some_address(rng)
    if rng.random() < 0.7:
        method, address = rng.choice(ROUTES)
        address = address.replace("{id}", str(rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 2**62]))).encode()
    lines = [f"{method} {quote(address, safe=SAFE)[:7000]} HTTP/1.1".encode(), b"Host: localhost"]
    for name in rng.sample(TAME, rng.choice([0, 1, 1, 2, 3])):
        value = rng.choice(HEADER_VALUES) if rng.random() < 0.9 else "x" * size(rng, 9000)
        lines.append(f"{name}: {value}".encode())
    return lines


def some_wild_head(rng):
    """The lines of a head that nearly is HTTP."""
    version = rng.choice([b"HTTP/1.1"] * 9 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/11"])
    lines = [b" ".join([rng.choice(METHODS).encode(), some_address(rng), version])]
    if rng.random() < 0.97:
        lines.append(b"Host: localhost")
    for _ in range(rng.choice([0, 1, 2, 3, size(rng, 150)])):
        name, value = rng.choice(HEADERS).encode(), rng.choice(HEADER_VALUES).encode()
        if rng.random() < 0.1:
            name = bytes(rng.choice(b"abcXYZ09-_!#$%&'*+.^`|~ :\xff\0") for _ in range(size(rng, 300)))
        if rng.random() < 0.2:
            value = rng.choice([rng.randbytes, lambda n: b"x" * n, lambda n: b"," * n])(size(rng, 40_000))
        lines.append(name + rng.choice([b": "] * 20 + [b":", b" : ", b"\t:", b""]) + value)
    return lines


def some_request(rng):
    """A request of which some part is strange, or each, or none."""
    is_wild = rng.random() < 0.3
    lines = some_wild_head(rng) if is_wild else some_head(rng)
    body = some_body(rng, 2_000_000) if lines[0][:3] != b"GET" or rng.random() < 0.1 else b""
    framing = rng.random()
    if framing < 0.7 or not is_wild and framing < 0.9:
        lines.append(
            b"Content-Length: %d" % (size(rng, 2**62) if is_wild and rng.random() < 0.05 else len(body))
        )
    elif framing < 0.95 and body:
        lines.append(b"Transfer-Encoding: chunked")
        body = some_chunks(rng, body)
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return (mutate(rng, head) if is_wild and rng.random() < 0.3 else head) + body


def http_case(rng):
    """What one client sends on one connection."""
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(size(rng, 70_000))
    if kind < 0.15:
        return rng.choice(PROTOCOLS) + rng.randbytes(size(rng, 1000))
    if kind < 0.16:
        body = b'{"payload": "' + b"x" * size(rng, 16_000_000)
        return b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    if kind < 0.25:
        return b"".join(some_request(rng) for _ in range(rng.randrange(2, 6)))
    request = some_request(rng)
    return mutate(rng, request) if kind < 0.3 else request


# ----------------------------------------------------------------------------
# Watching the programs


class Watched:
    """A program of the service: its log, and what it uses."""

    def __init__(self, program):
        self.program, self.begin = program, None
        self.read = 0

    def check_log(self):
        self.read = check_log(self.program, self.read)

    def check_use(self):
        now = resources(self.program.process.pid)
        self.begin = self.begin or now
        if now:
            memory, threads, files = (each - begin for each, begin in zip(now, self.begin, strict=True))
            require(memory <= RSS_MB, f"the memory has grown by {memory} MB to {now[0]} MB")
            require(threads <= 10 and files <= 30, f"{threads} more threads and {files} more open files")


# ----------------------------------------------------------------------------
# HTTP


def exchange(url, data):
    """Send bytes, and no more; return what comes back until the server closes, and whether that was orderly.

    When it closes while more is sent, the system may drop what it had answered.
    """
    address, received, sent = urlsplit(url), b"", memoryview(data)
    with socket.create_connection((address.hostname, address.port), 20) as connection:
        connection.settimeout(0)
        deadline, ended = time.monotonic() + 40, False
        while time.monotonic() < deadline:
            readable, writable, _ = select.select([connection], [] if ended else [connection], [], 5)
            try:
                if writable and sent:
                    sent = sent[connection.send(sent[:262144]):]
                if not sent and not ended:
                    connection.shutdown(socket.SHUT_WR)
                    ended = True
                if readable:
                    piece = connection.recv(262144)
                    if not piece:
                        return received, True
                    received += piece
            except BlockingIOError:
                continue
            except OSError:
                return received, False
    raise Wrong(f"the connection is still open after 40 s; so far came {received[:200]!r}")


def split_answers(received):
    """[(status, headers, body)]: an answer to HEAD has none, whatever its Content-Length says."""
    answers = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        match = re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [ -~]*", line)
        require(match and end, f"no answer: {received[:200]!r}")
        status = int(match[1])
        headers = {}
        for each in fields:
            field = re.fullmatch(rb"([A-Za-z-]+): ?([\t -~\x80-\xff]*)", each)
            require(field, f"no header field: {each[:200]!r}")
            headers[field[1].decode().lower()] = field[2].decode("latin-1")
        length = int(headers.get("content-length", 0))
        has_body = status >= 200 and status not in (204, 304) and not rest[:7] == b"HTTP/1." and rest
        body, received = (rest[:length], rest[length:]) if has_body else (b"", rest)
        if status >= 200:
            answers.append((status, headers, body))
    return answers


def check_answer(status, headers, body):
    require(
        status in STATUSES or status == 503 and b'"overloaded"' in body, f"status {status}: {body[:300]!r}"
    )
    require(
        re.fullmatch(r"[A-Za-z0-9._:+/=@~-]{1,128}", headers.get("x-request-id", "")),
        f"no X-Request-Id: {headers}",
    )
    if status >= 400 and body:
        require(
            headers.get("content-type") == "application/problem+json",
            f"{status} as {headers.get('content-type')}",
        )
        problem = json.loads(body)
        known = {"type", "title", "status", "code", "detail", "instance", "task_status", "maximum", "errors"}
        require(
            {"type", "title", "status", "code", "detail", "instance"} <= problem.keys() <= known,
            f"problem {problem}",
        )
        require(problem["status"] == status and problem["code"] in CODES, f"problem {problem}")
    elif headers.get("content-type") == "application/json" and body:
        json.loads(body)


class HttpDoor:
    """The API on PostgreSQL, with no worker: nothing but what we send changes a row."""

    name = "http"

    def __init__(self, start, make_database):
        self.database = make_database()
        taskmanager.open_store(self.database)
        self.connection = psycopg2.connect(self.database)
        self.connection.autocommit = True
        self.watched = Watched(start("taskmanager.py", DATABASE_URL=self.database, WORKER="off"))
        self.url = self.watched.program.url
        self.seconds, self.count, self.answers, self.resets = [], 0, 0, 0

    def sql(self, statement):
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def make(self, seed, number):
        return http_case(random.Random(f"http {seed} {number}"))

    def rows(self):
        return self.sql(
            "select md5(coalesce(string_agg(cast(tasks as text), '' order by id), '')) from tasks"
            " where kind <> 'good'"
        )

    def begin(self):
        """Few rows in every status, so that there is something to change."""
        self.sql("""
            truncate tasks restart identity;
            insert into tasks (status, attempt, lease_until, payload, error)
            select (array['New', 'In Progress', 'Completed', 'Failed'])[n % 4 + 1],
                   case n % 4 when 0 then 0 else 1 end,
                   case n % 4 when 1 then now() + interval '1 day' end,
                   json_build_object('n', n), case n % 4 when 3 then 'as told' end
            from   generate_series(1, 20) as n""")

    def try_case(self, data):
        """Send it and check what comes of it; raise Wrong."""
        if self.sql("select count(*) > 200 from tasks") == [(True,)]:
            self.begin()
        before = self.rows()
        received, is_complete = exchange(self.url, data)
        if not is_complete:
            self.resets += 1
            return
        answers = split_answers(received)
        for each in answers:
            check_answer(*each)
        self.answers += len(answers)
        if all(status >= 400 or status in (304, 307) for status, *_ in answers):
            require(
                self.rows() == before, f"refused, {[each[0] for each in answers]}, but the rows have changed"
            )

    def serve_good(self):
        """What a good client gets meanwhile, and the seconds that it waits."""
        began = time.monotonic()
        created = http("POST", f"{self.url}/tasks", {"kind": "good", "payload": 1})
        require(created.status == 201, f"a good request was answered {created.status}")
        require(
            http("GET", f"{self.url}{urlsplit(created.headers['Location']).path}").status == 200,
            "it can't be read",
        )
        self.seconds.append((time.monotonic() - began) / 2)

    def run(self, seed, numbers):
        """Try the cases; raise Wrong with the smallest one found that fails."""
        self.begin()
        self.serve_good()
        for number in numbers:
            data = self.make(seed, number)
            try:
                self.try_case(data)
                self.watched.check_log()
            except Wrong as e:
                smallest = shrink(data, self.fails)
                raise Wrong(
                    f"{e}\n{self.name} case {number} of seed {seed}, {len(data)} bytes; these are enough "
                    f"({len(smallest)} bytes):\n{smallest[:3000]!r}"
                ) from None
            self.count += 1
            if self.count % 20 == 0:
                self.serve_good()
            if self.count % 500 == 100:
                self.watched.check_use()
        self.serve_good()
        self.watched.check_log()

    def fails(self, data):
        try:
            self.try_case(data)
            self.watched.check_log()
        except Wrong:
            return True
        return False

    def close(self):
        self.watched.program.end()
        self.connection.close()
        return f"{self.count:,} cases, {self.answers:,} answers, {self.resets:,} cut off while it was sent"


def shrink(data, fails):
    """The shortest part of it that was found to fail as well, or else itself."""
    deadline, length = time.monotonic() + SHRINK_SECONDS, len(data) // 2
    if not fails(data):
        return data
    while length:
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            shorter = data[:at] + data[at + length :]
            if fails(shorter):
                data = shorter
            else:
                at += length
        length //= 2
    return data


# ----------------------------------------------------------------------------
# AMQP: properties are encoded here, because pika encodes only what is right.


def short(data):
    return bytes([len(data)]) + data


def long(data):
    return struct.pack(">L", len(data)) + data


def some_value(rng, depth=0):
    """A value of any type of the field table, with the letter of its type."""
    kind = rng.choice("tbBsuIilfdDSATFVxSS")
    if kind == "S" or kind == "x":
        return kind.encode() + long(rng.randbytes(size(rng, 2000)))
    if kind == "F":
        return b"F" + some_table(rng, depth + 1)
    if kind == "A":
        return b"A" + long(
            b"".join(some_value(rng, depth + 1) for _ in range(size(rng, 5) if depth < 6 else 0))
        )
    sizes = {
        "t": 1,
        "b": 1,
        "B": 1,
        "s": 2,
        "u": 2,
        "I": 4,
        "i": 4,
        "l": 8,
        "f": 4,
        "d": 8,
        "D": 5,
        "T": 8,
        "V": 0,
    }
    return kind.encode() + rng.randbytes(sizes[kind])


def some_table(rng, depth=0):
    names = [
        b"",
        b"x",
        b"x-death",
        b"x-delay",
        b"BCC",
        b"reason",
        b"content_type",
        b"\xff\xfe",
        "ключ".encode(),
        b"a" * 255,
    ]
    number = size(rng, 20) if depth < 6 else 0
    fields = [(rng.choice(names), some_value(rng, depth)) for _ in range(number)]
    # BCC would send a copy to a queue; with any other type than a list the broker refuses it.
    table = b"".join(short(name) + value for name, value in fields if name != b"BCC" or value[:1] == b"A")
    if rng.random() < 0.02:
        for _ in range(rng.choice([100, 1000, 3000])):
            table = short(b"n") + b"F" + long(table)
    return long(table)


def some_text(rng):
    texts = [
        b"",
        b"New",
        b"application/json",
        b"utf-8",
        b"gzip",
        b"\xff" * 10,
        "ё".encode() * 20,
        b"a" * 255,
        b"\0",
        b" ",
        b"\n",
    ]
    return short(rng.choice(texts))


def some_properties(rng, keys):
    """The flags and the properties that they announce, each in some way strange, or none."""
    flags, encoded, key = 0, b"", None
    for bit in range(15, 1, -1):
        if rng.random() < (0.5 if bit == 7 else 0.3):
            value = some_text(rng)
            if bit == 13:
                value = some_table(rng)
            elif bit in (12, 11):  # delivery mode, of which the broker knows two; priority
                value = bytes([rng.choice([1, 2]) if bit == 12 else rng.choice([0, 1, 9, 255])])
            elif bit == 8:  # expiration: not so short that the broker may drop it
                value = short(rng.choice([b"86400000", b"1000000000"]))
            elif bit == 7:  # message id
                key = rng.choice([next(keys), next(keys), next(keys), some_text(rng)[1:]])
                value = short(key)
                with contextlib.suppress(UnicodeDecodeError):
                    key = key.decode()
            elif bit == 6:
                value = rng.randbytes(8)
            elif bit == 4:  # user id: the broker refuses any other
                value = short(b"guest")
            flags |= 1 << bit
            encoded += value
    return struct.pack(">H", flags) + encoded, key


def frame(kind, payload):
    return struct.pack(">BHL", kind, 1, len(payload)) + payload + b"\xce"


class Publication(NamedTuple):
    """A message, its properties encoded; its key is the message id, in bytes if that is no text."""

    properties: bytes
    key: str | bytes | None
    body: bytes
    exchange: bytes


def frames_of(message, rng, frame_max=131072):
    """The frames of a message, its body cut anywhere."""
    data = frame(1, struct.pack(">HHH", 60, 40, 0) + short(message.exchange) + short(b"task_queue") + b"\0")
    data += frame(2, struct.pack(">HHQ", 60, 0, len(message.body)) + message.properties)
    at = 0
    while at < len(message.body):
        most = frame_max - 8
        piece = message.body[at : at + rng.choice([most, most, 1 + size(rng, most - 1)])]
        data += frame(3, piece)
        at += len(piece)
    return data


class Raw:
    """A connection whose channel 1 confirms, and on which frames of our own are sent."""

    def __init__(self, url):
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port), 20)
        self.socket.settimeout(20)
        self.buffer, self.tag = b"", 0
        self.send(b"AMQP\0\0\x09\x01")
        self.wait(10, 10)
        self.method(
            0,
            10,
            11,
            long(b"")
            + short(b"PLAIN")
            + long(f"\0{address.username}\0{address.password}".encode())
            + short(b"C"),
        )
        self.wait(10, 30)
        self.method(0, 10, 31, struct.pack(">HLH", 10, 131072, 0))
        self.method(0, 10, 40, short(b"/") + b"\0\0")
        self.wait(10, 41)
        self.method(1, 20, 10, b"\0")
        self.wait(20, 11)
        self.method(1, 85, 10, b"\0")
        self.wait(85, 11)

    def send(self, data):
        self.socket.sendall(data)

    def method(self, channel, class_id, method_id, arguments):
        payload = struct.pack(">HH", class_id, method_id) + arguments
        self.send(struct.pack(">BHL", 1, channel, len(payload)) + payload + b"\xce")

    def wait(self, *method):
        """The arguments of the next method, if it is this one; None when the broker closes instead."""
        while True:
            while len(self.buffer) < 7 or len(self.buffer) < 8 + struct.unpack_from(">L", self.buffer, 3)[0]:
                piece = self.socket.recv(65536)
                if not piece:
                    return None
                self.buffer += piece
            kind, _, length = struct.unpack_from(">BHL", self.buffer)
            payload, self.buffer = self.buffer[7 : 7 + length], self.buffer[8 + length :]
            if kind != 1:  # a heartbeat
                continue
            if struct.unpack_from(">HH", payload) == method:
                return payload[4:]
            if payload[:4] in (struct.pack(">HH", 10, 50), struct.pack(">HH", 20, 40)):
                return None  # close, of the connection or the channel

    def publish(self, data):
        """Send a message; whether the broker has taken it."""
        self.tag += 1
        try:
            self.send(data)
            while answer := self.wait(60, 80):
                if struct.unpack_from(">Q", answer)[0] >= self.tag:
                    return True
        except OSError:
            pass
        return False

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()


QUEUES = {
    "transient": {},
    "durable": {"durable": True},
    "quorum": {"durable": True, "arguments": {"x-queue-type": "quorum"}},
}


class AmqpDoor:
    """A worker on PostgreSQL and RabbitMQ. Cases come in batches, so that good ones stand among them."""

    batch = 25

    def __init__(self, start, make_database, broker, queue="transient"):
        self.name = f"amqp, {queue} queue"
        self.broker, self.database = broker, make_database()
        taskmanager.open_store(self.database)
        self.good = pika.BlockingConnection(pika.URLParameters(broker + "/?heartbeat=0"))
        self.channel = self.good.channel()
        for name in ("task_queue", "task_queue.rejected"):
            self.good.channel().queue_delete(name)
        self.channel.queue_declare("task_queue", **QUEUES[queue])
        self.channel.confirm_delivery()
        self.raw = Raw(broker)
        self.watched = Watched(start("worker.py", DATABASE_URL=self.database, RABBITMQ_URL=broker))
        self.watched.program.logged("started intake")
        self.connection = psycopg2.connect(self.database)
        self.connection.autocommit = True
        self.seconds, self.count, self.kept, self.rejected, self.refused = [], 0, 0, 0, 0
        self.patience = 60  # seconds for a batch to be in its place
        self.before = []  # the messages of the batch before

    def sql(self, statement, *params):
        with self.connection.cursor() as cursor:
            cursor.execute(statement, params)
            return cursor.fetchall() if cursor.description else []

    def make(self, seed, number):
        rng = random.Random(f"amqp {seed} {number}")
        keys = (b"%d-%d-%d" % (seed, number, n) for n in itertools.count())
        properties, key = some_properties(rng, keys)
        body = some_body(rng)
        if (
            rng.random() < 0.02 and not properties[0] & 1
        ):  # not an expiration; properties that are cut off, or go on; mostly the broker refuses them
            properties = properties[:2] + mutate(rng, properties[2:])
        exchange = b"task_queue.notifications" if rng.random() < 0.05 else b""
        return Publication(properties, key, body, exchange)

    def publish(self, case, seed=0):
        """Whether the broker has taken it."""
        data = frames_of(case, random.Random(seed))
        taken = self.raw.publish(data)
        if not taken:
            self.raw.close()
            self.raw = Raw(self.broker)
        return taken

    def try_cases(self, cases):
        """Publish them, and account for each that the broker has taken; raise Wrong."""
        self.sql("delete from tasks")  # so that each row that there will be is of one of them
        taken = [case for case in cases if self.publish(case)]
        sent = [case for case in taken if not case.exchange]
        number = self.serve_good()
        rejected, deadline = [], time.monotonic() + self.patience
        while not self._account(sent, rejected, number):
            if time.monotonic() > deadline:
                rows = self.sql("select idempotency_key from tasks")
                raise Wrong(
                    f"of {len(sent)} messages {len(rows) - 1} became rows, {len(rejected)} were rejected"
                )
            time.sleep(0.005)
            while (found := self.channel.basic_get("task_queue.rejected", auto_ack=True))[0]:
                rejected.append(found[1:])
        self.before = sent
        self.refused += len(cases) - len(taken)
        self.rejected += len(rejected)
        self.kept += len(sent) - len(rejected)

    def _account(self, sent, rejected, number):
        """Whether each message has a row or was rejected; raise Wrong for what should not be."""
        left, before = list(sent), list(self.before)
        for properties, body in rejected:
            headers = properties.headers or {}
            require(headers.get("reason") and headers.get("code"), f"rejected without a reason: {headers}")
            require(headers["code"] != "internal-error", f"rejected by a fault of ours: {headers['reason']}")
            same = [case for case in left if case.body == body]
            late = [case for case in before if case.body == body]  # of a key that was used before
            require(same or late, f"a rejected message was never sent: {body[:200]!r}")
            same.sort(key=lambda case: case.key == properties.message_id)
            (left if same else before).remove((same or late)[-1])
        keys = [key for (key,) in self.sql("select idempotency_key from tasks")]
        require(f"good-{number}" in keys, "the good message among them has lost its row")
        bare = [case for case in left if case.key is None or case.key not in keys]
        others = set(keys) - {case.key for case in sent} - {f"good-{number}", None}
        return len(bare) == keys.count(None) + len(others)

    def serve_good(self):
        """A good message, and the seconds until it has its row; its number."""
        number, began = f"{os.getpid()}-{time.monotonic_ns()}", time.monotonic()
        self.channel.basic_publish(
            "", "task_queue", b'{"payload": 1}', pika.BasicProperties(message_id=f"good-{number}")
        )
        while not self.sql("select 1 from tasks where idempotency_key = %s", f"good-{number}"):
            if time.monotonic() > began + 60:
                raise Wrong("a good message has no row after 60 s")
            self.watched.check_log()
            time.sleep(0.005)
        self.seconds.append(time.monotonic() - began)
        return number

    def run(self, seed, numbers):
        """Try the cases; raise Wrong with those found that fail alone."""
        numbers = iter(numbers)
        while batch := list(itertools.islice(numbers, self.batch)):
            cases = [self.make(seed, number) for number in batch]
            try:
                self.try_cases(cases)
                self.watched.check_log()
            except Wrong as e:
                alone = [number for number, case in zip(batch, cases, strict=True) if self.fails(case)]
                text = "\n".join(
                    f"case {number}: properties={case.properties[:1500]!r} "
                    f"body={shrink(case.body, self._same(case))[:1500]!r}"
                    for number, case in zip(batch, cases, strict=True)
                    if number in alone[:3]
                )
                raise Wrong(
                    f"{e}\n{self.name}: cases {batch[0]} to {batch[-1]} of seed {seed}; "
                    f"alone fail: {alone}\n{text}"
                ) from None
            self.count += len(batch)
            if self.count % 500 == 100:
                self.watched.check_use()
        self.watched.check_log()

    def fails(self, case):
        self.patience = 5
        try:
            self.try_cases([case])
            self.watched.check_log()
        except Wrong:
            return True
        return False

    def _same(self, case):
        """fails() for the same message with another body."""
        return lambda body: self.fails(case._replace(body=body))

    def close(self):
        self.watched.program.end()      # or it would take the messages of the next one
        self.raw.close()
        self.good.close()
        self.connection.close()
        return (f"{self.count:,} messages: {self.kept:,} rows, {self.rejected:,} rejected, "
                f"{self.refused:,} refused by the broker")


# ----------------------------------------------------------------------------

def try_door(door, seed, numbers):
    """Run the cases and print what came of them; whether all is well."""
    try:
        door.run(seed, numbers)
        door.watched.check_use()
        require(max(door.seconds) <= SLOWEST, f"a good one took {max(door.seconds):.1f} s")
        verdict = "ok"
    except Wrong as e:
        verdict = f"WRONG: {e}"
    begin, end = door.watched.begin, resources(door.watched.program.process.pid)
    median, slowest = statistics.median(door.seconds or [0]), max(door.seconds or [0])
    print(f"{door.name}: {door.close()}; {verdict}\n"
          f"    good ones meanwhile: median {median:.3f} s, at most {slowest:.3f} s\n"
          f"    MB, threads, open files: {begin} at the begin, {end} at the end", flush=True)
    return verdict == "ok"


def main():
    minutes = float(os.environ.get("MINUTES") or 10)
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    chosen, case = os.environ.get("DOOR") or "http,amqp", os.environ.get("CASE")
    print(f"make fuzz SEED={seed} MINUTES={minutes:g} DOOR={chosen}", flush=True)
    with Own() as own:
        new_database, doors = own.new_database(own.server(servers.Postgres)), []
        if "http" in chosen:
            doors.append(lambda: HttpDoor(own.start, new_database))
        if "amqp" in chosen:
            broker = own.server(servers.RabbitMQ).url
            for queue in QUEUES:
                doors.append(lambda queue=queue: AmqpDoor(own.start, new_database, broker, queue))
        results = []
        for make in doors:
            end = time.monotonic() + 60 * minutes / len(doors)
            numbers = itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())
            results.append(try_door(make(), seed, [int(case)] if case else numbers))
    return not all(results)


if __name__ == "__main__":
    sys.exit(main())
