"""make bench: Task Manager beside what one would take instead, and beside what its parts can do.

Every round gives each peer of each measure a turn, alone on the machine, with its server started anew; a
ratio is of the turns of one round, and the table has the medians of all rounds. Variables of make:

    ONLY=post,get   these measures only; all of them: post get list pages arrays end_to_end sqlite
                    intake latency_post latency_publish
    ROUNDS=3        turns of each peer
    DURATION=2      seconds of a turn, about
"""

import os
import shutil
import statistics
import subprocess
import sys

import servers
import web
import workers
from machine import Machine

MEASURES = {
    "post": ("POST /tasks", "requests/s", web.post),
    "get": ("GET one", "requests/s", web.get),
    "list": ("list of 100, the same page", "requests/s", web.list_100),
    "pages": ("list of 100, any page", "requests/s", web.pages),
    "arrays": ("POST of arrays of 1,000", "tasks/s", web.arrays),
    "end_to_end": ("no-op tasks, PostgreSQL or RabbitMQ", "tasks/s", workers.end_to_end),
    "sqlite": ("no-op tasks, SQLite", "tasks/s", workers.sqlite),
    "intake": ("messages of RabbitMQ, to Completed", "tasks/s", workers.intake),
    "latency_post": ("from POST to Completed", "ms", workers.latency_post),
    "latency_publish": ("from publishing to Completed", "ms", workers.latency_publish),
}


def number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def main() -> None:
    names = os.environ.get("ONLY", "").replace(",", " ").split() or list(MEASURES)
    if unknown := set(names) - set(MEASURES):
        sys.exit(f"ONLY={' '.join(unknown)}: expected some of {' '.join(MEASURES)}")
    rounds, duration = number("ROUNDS", 3), number("DURATION", 2)
    install()

    results = {}        # (measure, peer): what each turn gave
    with Machine() as machine:
        for n in range(rounds):
            for name in names:
                for peer, turn in MEASURES[name][2](duration):
                    result = turn(machine)
                    results.setdefault((name, peer), []).append(result)
                    print(f"round {n + 1}: {name}, {peer}: {show(result)}", file=sys.stderr)
        about = machine.describe()

    print(table(names, results))
    print(f"\nMedians of {rounds} rounds, and the least and the most; about {duration} s a turn. {about}")


def install() -> None:
    servers.install()
    if not shutil.which("wrk"):
        if os.getuid() or not shutil.which("apt-get"):
            raise servers.Missing("wrk is not installed")
        subprocess.run(["apt-get", "install", "-y", "-qq", "wrk"], check=True, stdout=subprocess.DEVNULL)


def table(names, results) -> str:
    lines = ["| | | Task Manager ÷ it |", "|---|---:|---:|"]
    for name in names:
        title, unit, _ = MEASURES[name]
        peers = [peer for measure, peer in results if measure == name]
        lines.append(f"| **{title}**, {unit} | | |")
        for peer in peers:
            ratio = ratios(results[name, peers[0]], results[name, peer]) if peer != peers[0] else ""
            lines.append(f"| {peer} | {show_all(results[name, peer])} | {ratio} |")
    return "\n".join(lines)


def ratios(ours, theirs) -> str:
    found = statistics.median(middle(our) / middle(their) for our, their in zip(ours, theirs, strict=True))
    return f"{found:.2f}" if found < 10 else f"{found:.0f}"


def middle(result) -> float:
    """Return a rate as it is, and of latencies the median."""
    return statistics.median(result) if isinstance(result, list) else result


def show_all(turns) -> str:
    if isinstance(turns[0], list):
        return show([each for turn in turns for each in turn])
    return f"{show(statistics.median(turns))} ({show(min(turns))} to {show(max(turns))})"


def show(result) -> str:
    if isinstance(result, list):
        p99 = statistics.quantiles(result, n=100)[98]
        return f"{statistics.median(result):.1f}, 99%: {p99:.1f}"
    return f"{result:,.0f}"


if __name__ == "__main__":
    main()
