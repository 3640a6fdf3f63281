"""Packs a folder into a .tar.gz and tells its SHA-256. HANDLER names a program.

    HANDLER="exec:python3 examples/handlers/archive.py /usr /tmp/archives" make run

    {"payload": {"folder": "share/doc"}}

The program knows nothing of Task Manager, and could be written in any language: the payload is JSON on stdin,
the result is JSON on stdout, and a failure is an exit status with the reason on stderr. The operator says in
the command where folders are read and where archives go; a payload only names a folder in there.

It may run any number of times: the archive is written under a name of its own and takes its place when it is
whole, and the same files give the same bytes. What a killed attempt leaves behind ends in .part.
"""

import gzip
import hashlib
import json
import os
import signal
import sys
import tarfile
from pathlib import Path


def pack(payload: object, source: Path, archives: Path, attempt: str) -> dict:
    """Pack the folder that a payload names; `attempt` is the name of no other attempt. Raise ValueError."""
    name = payload.get("folder") if isinstance(payload, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError('expected a payload such as {"folder": "share/doc"}')
    folder = (source / name).resolve()
    if not folder.is_dir() or source not in folder.parents:
        raise ValueError(f"{name!r} is not a folder in {source}")
    if archives.is_relative_to(folder):
        raise ValueError(f"{name!r} holds the archives themselves")
    archive = archives / f"{folder.relative_to(source)}.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)

    part = Path(f"{archive}.{attempt}.part")
    try:
        with open(part, "w+b") as file:
            with (
                gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped,
                tarfile.open(fileobj=zipped, mode="w") as tar,
            ):
                tar.add(folder, arcname=folder.name)
            file.seek(0)
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            os.fsync(file.fileno())
        size = part.stat().st_size
        part.replace(archive)
    finally:
        part.unlink(missing_ok=True)
    return {"archive": str(archive), "bytes": size, "sha256": digest.hexdigest()}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))     # so that `finally` runs
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} SOURCE ARCHIVES")
    source, archives = (Path(folder).resolve() for folder in sys.argv[1:])
    attempt = f"{os.environ['TASK_ID']}-{os.environ['TASK_ATTEMPT']}"
    try:
        print(json.dumps(pack(json.load(sys.stdin), source, archives, attempt)))
    except ValueError as e:
        sys.exit(str(e))
    except (OSError, tarfile.TarError) as e:
        sys.exit(f"could not pack it: {e}")
