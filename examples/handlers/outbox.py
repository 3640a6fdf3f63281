"""Writes e-mails into a folder, from where something else may send them. HANDLER names an address.

    python3 examples/handlers/outbox.py /tmp/outbox
    HANDLER=http://127.0.0.1:8000/outbox make run

    {"payload": {"to": "ann@example.com", "subject": "Hello", "text": "How are you?"}}

A task is posted as {"id": …, "attempt": …, "kind": …, "payload": …}. It may come more than once, and every
time with the same Idempotency-Key: that names the file, so nobody gets a mail twice.
"""

import contextlib
import hashlib
import json
import re
import sys
import threading
from email.message import EmailMessage
from email.utils import localtime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_BODY = 2 * 1024 * 1024
ADDRESS = r"[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*"
LOCK = threading.Lock()


class Outbox(BaseHTTPRequestHandler):
    folder: Path
    timeout = 30        # seconds that a client may keep silent

    def do_POST(self):
        try:
            status, text = 200, json.dumps(self.accept())
        except ValueError as e:     # 4xx: the task has failed, and is not tried again
            status, text = 400, str(e)
        except OSError as e:        # 5xx (no space left, say): the task is tried again, after a minute
            status, text = 503, str(e)
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        if status == 503:
            self.send_header("Retry-After", "60")
        self.end_headers()
        self.wfile.write(text.encode())

    def accept(self) -> dict:
        size, key = self.headers.get("Content-Length", ""), self.headers.get("Idempotency-Key")
        if self.path != "/outbox" or not key or not size.isdecimal() or int(size) > MAX_BODY:
            raise ValueError(
                f"expected a POST to /outbox with an Idempotency-Key, of at most {MAX_BODY} bytes"
            )
        task = json.loads(self.rfile.read(int(size)))
        return deliver(task.get("payload") if isinstance(task, dict) else None, key, self.folder)


def deliver(payload: object, key: str, folder: Path) -> dict:
    """Write the mail that a payload asks for, unless that was done under this key. Raise ValueError."""
    mail = compose(payload)
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.eml"
    mail["Message-ID"] = f"<{file.stem}@outbox.invalid>"
    with LOCK:
        new = not file.exists()
        if new:     # under another name until it is whole
            file.with_suffix(".part").write_bytes(bytes(mail))
            file.with_suffix(".part").replace(file)
    return {"mail": file.name, "new": new}


def compose(payload: object) -> EmailMessage:
    """The mail that a payload asks for. Raise ValueError."""
    if not isinstance(payload, dict) or not all(
        isinstance(payload.get(name), str) for name in ("to", "subject", "text")
    ):
        raise ValueError("expected a payload with the texts to, subject and text")
    if not re.fullmatch(ADDRESS, payload["to"]):
        raise ValueError(f"{payload['to']!r} is not an address such as ann@example.com")
    mail = EmailMessage()
    mail["To"], mail["Subject"], mail["Date"] = payload["to"], payload["subject"], localtime()
    mail.set_content(payload["text"])
    return mail


if __name__ == "__main__":
    Outbox.folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outbox").resolve()
    Outbox.folder.mkdir(parents=True, exist_ok=True)
    print(f"waiting for tasks at http://127.0.0.1:8000/outbox; mails go to {Outbox.folder}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        ThreadingHTTPServer(("127.0.0.1", 8000), Outbox).serve_forever()
