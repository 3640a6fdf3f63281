"""What the tests of the page do with it, and with the service behind it."""

import json
import sqlite3

from helpers import http


def create(url, *tasks, **headers):
    return http("POST", f"{url}/tasks", json.dumps(tasks or [{}]).encode(), **headers).json


def claim(url, number=1, kinds=("default",), **more):
    body = {"limit": number, "kinds": list(kinds), **more}
    return [task["id"] for task in http("POST", f"{url}/tasks/claim", body).json]


def say(url, id, verb, attempt=1, **more):
    answer = http("POST", f"{url}/tasks/{id}/{verb}", {"attempt": attempt, **more})
    assert answer.status == 200, answer.body


def fail(url, payload, error):
    """A task that has failed; its id."""
    [id] = create(url, {"payload": payload})
    assert claim(url) == [id]
    say(url, id, "fail", error=error, final=True)
    return id


def fill(database, rows, columns):
    """Insert many tasks with ids from 1 on. `columns`: SQL by column, in which `n` is the id."""
    with sqlite3.connect(database.removeprefix("sqlite:///"), timeout=20) as connection:
        connection.execute(
            f"with recursive ids(n) as (select 1 union all select n + 1 from ids where n < {rows})"
            f" insert into tasks (id, {', '.join(columns)}) select n, {', '.join(columns.values())} from ids"
        )


def slow_down(browser, seconds):
    """Let each answer take so much longer."""
    browser.cdp("Network.enable")
    browser.cdp(
        "Network.emulateNetworkConditions",
        offline=False, latency=seconds * 1000, downloadThroughput=-1, uploadThroughput=-1,
    )


def requests(browser):
    """The address and the status of each request since one last asked; 0 as long as there is no answer."""
    found = {}
    for entry in browser.log("performance"):
        message = json.loads(entry["message"])["message"]
        params = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            found[params["requestId"]] = params["request"]["url"], 0
        elif message["method"] == "Network.responseReceived":
            found[params["requestId"]] = params["response"]["url"], params["response"]["status"]
    return list(found.values())


def waits(browser):
    """Whether the page has sent a request that may wait since the log was last read."""
    return any('"Prefer":"wait=' in entry["message"] for entry in browser.log("performance"))


def has_aborted(browser):
    """Whether the page has aborted a request since the log was last read."""
    return any("net::ERR_ABORTED" in entry["message"] for entry in browser.log("performance"))


def rows(browser):
    return browser.js(
        "[...document.querySelectorAll('#rows tr')].map(row => row.querySelector('a').textContent)"
    )


def hide(browser):
    """Hide the window: Chromium without a screen calls each of its windows visible."""
    browser.js(
        "[Object.defineProperty(document, 'hidden', {value: true, configurable: true}),"
        " document.dispatchEvent(new Event('visibilitychange'))]"
    )


def focused(browser):
    """What has the focus: its id, or else its text."""
    return browser.js("document.activeElement.id || document.activeElement.textContent.trim()")


def tab_to(browser, name):
    """Press Tab until it is there, and is seen to be there."""
    for _ in range(60):
        browser.press("Tab")
        if focused(browser) == name:
            has_outline = browser.js(
                "['', '::after'].some(part =>"
                " getComputedStyle(document.activeElement, part).outlineStyle != 'none')"
            )
            assert has_outline, f"the focus on {name} is not to be seen"
            return
    raise AssertionError(f"Tab does not lead to {name}")


def views(browser, url):
    """Everything that the page can show, one after the other."""
    browser.open(f"{url}/")
    browser.shows("#empty", "There are no tasks yet.")
    yield "empty"
    failed = fail(
        url, {"to": "x" * 300, "text": "word " * 300, "list": list(range(30))}, "Traceback\n  " + "y" * 400
    )
    create(url, {"payload": "p"}, {"delay": 3000, "payload": 1}, {"payload": "z" * 400}, *[{}] * 60)
    [running] = claim(url)
    say(url, running, "progress", progress=0.4)
    browser.open(f"{url}/")
    browser.shows("#rows", "New")
    browser.shows("#states", "running")
    yield "list"
    browser.click("#older")
    browser.shows("#rows", "In Progress", "40%", "Failed", "yyy")
    yield "second page"
    often = {"repeat": "*/5 * * * *", "timezone": "Europe/Berlin"}
    create(url, {"kind": "m" * 63, "payload": "p" * 300, **often})
    browser.open(f"{url}/?q=ppp&created_after=2024-01-01T00:00:00Z")
    browser.shows("#rows", "mmm")
    yield "filtered"
    browser.click("#delete-all")
    browser.shows("#confirm", "Delete all")
    yield "question before many are deleted"
    browser.click("#confirm [value=yes]")
    browser.shows("#bulk", "Deleted tasks: 1.")
    yield "many deleted"
    browser.open(f"{url}/")
    browser.click("#ranges label:last-child")
    browser.shows("#chart-sum", "1 failed")
    yield "finished on a day"
    browser.open(f"{url}/?task={failed}")
    browser.shows("#task", "Failed", "Error", "Payload")
    browser.click("#attempts summary")
    browser.shows("#attempts", "failed", "Traceback")
    yield "failed"
    browser.click("#delete")
    browser.shows("#confirm", "Delete task")
    yield "question"
    browser.open(f"{url}/?task={running}")
    browser.shows("#task-progress", "40%")
    browser.click("#new")
    browser.type("#priority", "high")
    browser.click("#more summary")
    browser.type("#repeat", "never")
    browser.click("#create .primary")
    browser.shows("#priority-error", "expected")
    browser.shows("#repeat-error", "expected")
    yield "form"
    browser.open(f"{url}/?task=999")
    browser.shows("#task-error", "There is no task")
    yield "missing"
