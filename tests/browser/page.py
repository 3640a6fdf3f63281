"""The page, used in a real Chromium: `make browser-test`.

Nobody works on tasks but the tests themselves, over HTTP, so a task is in exactly the state that a test
wants. After each test the console must be free of errors, and no request may have gone to another host.
"""

import importlib.util
import json
import re
import sqlite3
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import taskmanager
from helpers import http
from steps import (
    claim,
    create,
    fail,
    focused,
    has_aborted,
    hide,
    requests,
    rows,
    say,
    tab_to,
    views,
    waits,
)

AXE = (Path(importlib.util.find_spec("axe_playwright_python").origin).parent / "axe.min.js").read_text(
    encoding="utf-8"
)
MARKUP = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


# --- looking

def test_an_empty_table_says_what_to_do_first(browser, url):
    browser.open(f"{url}/")
    browser.shows("#empty", "There are no tasks yet.", f"curl -X POST {url}/tasks")
    assert not browser.text("#table")
    browser.click("#copy-curl")
    browser.until(
        lambda: (
            "copied" in browser.text("#message").lower()
            or browser.js("getSelection().toString()") == f"curl -X POST {url}/tasks"
        )
    )
    create(url)
    browser.until(lambda: rows(browser) == ["1"])
    assert not browser.text("#empty")


def test_the_figures_are_those_of_the_service(browser, url):
    create(url, *[{}] * 5)
    claim(url, 3)
    browser.open(f"{url}/")
    browser.shows("[data-status='New'] strong", "2")
    browser.shows("[data-status='In Progress'] strong", "3")
    browser.shows("#states", "Oldest waiting task", "sec", "connected", "not used", "running, 3 in progress")
    say(url, 1, "complete")
    say(url, 2, "fail", error="too late", final=True)
    browser.shows("[data-status='Completed'] strong", "1")
    browser.shows("[data-status='Failed'] strong", "1")
    browser.shows("#chart-sum", "1 completed", "1 failed")
    assert browser.text("[data-status='All'] strong") == "5"
    for status in ("Completed", "Failed"):
        assert browser.js(f"document.querySelectorAll('#chart rect.{status}').length"), status


def test_it_says_when_nobody_takes_tasks(browser, url, sqlite_database):
    create(url)
    with sqlite3.connect(sqlite_database.removeprefix("sqlite:///"), timeout=20) as database:
        database.execute("update tasks set created_at = created_at - 3600")
    browser.open(f"{url}/")
    browser.shows("#states", "60 min", "tasks are waiting, checking…")
    browser.js("[Date.now = (now => () => now() + 60_000)(Date.now)]")      # a minute later
    browser.shows("#states", "no worker takes tasks")
    claim(url)
    browser.shows("#states", "running, 1 in progress")


def test_the_list_is_filtered_and_the_address_tells_how(browser, url):
    create(url, *[{}] * 4)
    claim(url, 2)
    say(url, 1, "complete")
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["4", "3", "2", "1"])
    browser.click("#tiles [data-status='New']")
    browser.until(lambda: rows(browser) == ["4", "3"])
    assert browser.js("location.search") == "?status=New"
    assert browser.js("document.title").startswith("New · ")
    assert browser.js("document.querySelector('[aria-current]').dataset.status") == "New"
    browser.click("#tiles [data-status='Completed']")
    browser.until(lambda: rows(browser) == ["1"])
    browser.click("#rows a")
    browser.shows("#task", "Task 1", "Completed")
    assert browser.js("location.search") == "?status=Completed&task=1"
    browser.do("POST", "back")
    browser.until(lambda: rows(browser) == ["1"] and focused(browser) == "1" and not browser.text("#task"))
    browser.do("POST", "back")
    browser.until(lambda: rows(browser) == ["4", "3"])
    browser.do("POST", "forward")
    browser.until(lambda: rows(browser) == ["1"])
    browser.open(f"{url}/?status=New&status=In+Progress")
    browser.until(lambda: rows(browser) == ["4", "3", "2"])
    browser.click("#tiles [data-status='Failed']")
    browser.shows("#empty", "There are no such tasks now.")


def test_the_list_is_paged_both_ways(browser, url):
    create(url, *[{}] * 120)
    pages = [[f"{id}" for id in range(top, max(top - 50, 0), -1)] for top in (120, 70, 20)]
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == pages[0])
    assert not browser.text("#newer") and not browser.text("#newest")
    browser.click("#older")
    browser.until(lambda: rows(browser) == pages[1])
    assert browser.js("location.search") == "?after=71"
    browser.click("#older")
    browser.until(lambda: rows(browser) == pages[2])
    assert not browser.text("#older")
    browser.click("#newer")
    browser.until(lambda: rows(browser) == pages[1])
    browser.click("#newer")
    browser.until(lambda: rows(browser) == pages[0] and not browser.js("location.search"))
    browser.do("POST", "back")
    browser.until(lambda: rows(browser) == pages[1])
    browser.click("#newest")
    browser.until(lambda: rows(browser) == pages[0])


def test_a_task_is_found_by_its_id(browser, url):
    create(url, *[{}] * 3)
    browser.open(f"{url}/?status=New")
    browser.type("#find-id", "two")
    browser.press("Enter")
    assert browser.js("document.querySelector('#find-id:invalid') && location.search") == "?status=New"
    browser.type("#find-id", "2")
    browser.press("Enter")
    browser.shows("#task", "Task 2", "New")
    assert browser.js("location.search") == "?status=New&task=2"
    assert focused(browser) == "task-title"
    browser.do("POST", "back")
    browser.until(lambda: rows(browser) == ["3", "2", "1"])
    assert browser.js("document.querySelector('#find-id').value") == ""


def test_a_task_shows_all_that_it_has(browser, url):
    create(
        url,
        {
            "payload": {"to": "ann@example.com", "n": 12345678901234567890},
            "priority": 5,
            "max_attempts": 4,
            "timeout": 90,
        },
        idempotency_key="order-17",
    )
    browser.open(f"{url}/?task=1")
    browser.shows("#task", "New", "Attempts", "0 of at most 4")
    claim(url)
    say(url, 1, "fail", error="the mail server is away", delay=3000)
    browser.open(f"{url}/?task=1")
    browser.shows(
        "#task",
        "New",
        "Error of the last attempt",
        "the mail server is away",
        "12345678901234567890",
        "ann@example.com",
        "Not before",
        "in 49 min",
        "Attempts",
        "1 of at most 4",
        "Priority",
        "5",
        "order-17",
        "90 sec",
    )
    browser.open(f"{url}/?task=77")
    browser.shows("#task-error", "There is no task 77.")


def test_the_attempts_of_a_task_are_shown_when_it_is_open(browser, url):
    create(url, {"max_attempts": 3})
    claim(url, worker="crane")
    say(url, 1, "fail", error="Traceback:\n  line 7\nOSError: disk full", delay=0)
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["1"])
    assert not [address for address, _ in requests(browser) if "attempts" in address]
    browser.click("#rows a")
    browser.shows("#attempts", "Outcome", "Duration", "failed, tried again", "crane", "sec")
    browser.shows("#attempts", "OSError: disk full")
    assert "line 7" not in browser.text("#attempts")
    browser.click("#attempts summary")
    browser.shows("#attempts", "line 7")
    browser.until(lambda: claim(url) == [1])
    browser.shows("#attempts", "running")
    assert "line 7" in browser.text("#attempts"), "what is open stays so"
    browser.shows("#attempt-rows tr:nth-child(2) .took", "2 sec")       # it counts
    say(url, 1, "complete", 2)
    browser.shows("#attempts", "completed")
    assert browser.js("document.querySelectorAll('#attempt-rows .bar').length") == 2
    create(url)
    browser.open(f"{url}/?task=2")
    browser.shows("#task", "New")
    assert not browser.text("#attempts")


def test_it_shows_what_repeats_and_when_next(browser, url):
    create(url, {"repeat": 7200}, {"repeat": "0 9 * * mon-fri", "timezone": "Europe/Berlin"})
    assert claim(url) == [1]
    say(url, 1, "complete", result="done")
    browser.open(f"{url}/")
    browser.shows("#rows tr:nth-child(2)", "Completed", "in 119 min", "Next run · every 2 hr")
    browser.shows("#rows tr:nth-child(1)", "New", "0 9 * * mon-fri (Europe/Berlin)")
    browser.open(f"{url}/?task=2")
    browser.shows("#facts", "Repeats", "0 9 * * mon-fri (Europe/Berlin)", "Not before")
    browser.open(f"{url}/?task=1")
    browser.shows("#facts", "Repeats", "every 2 hr", "Next run", "in 119 min")
    browser.click("#retry")
    browser.shows("#message", "Task 1 will be run again.")
    browser.shows("#task-status", "New")
    assert claim(url) == [1]
    say(url, 1, "complete", 2)
    browser.shows("#cancel", "Stop repeating")
    assert browser.text("#retry") == "Run now"
    browser.click("#cancel")
    browser.shows("#message", "Task 1 will not be repeated.")
    browser.until(lambda: "Repeats" not in browser.text("#facts") and not browser.text("#cancel"))
    assert browser.text("#task-status") == "Completed"


@pytest.mark.parametrize("seconds, words", [(3600, "1 hour ago"), (86400, "1 day ago")])
def test_what_finished_in_the_last_hour_and_day_is_there_after_a_reload(browser, url, seconds, words):
    create(url, *[{}] * 3)
    claim(url, 3)
    say(url, 1, "complete")
    say(url, 2, "complete")
    say(url, 3, "fail", error="too late", final=True)
    browser.open(f"{url}/")
    browser.until(lambda: browser.js("document.querySelectorAll('#chart rect').length"))
    browser.js(f"document.querySelector('#ranges [value=\"{seconds}\"]').click()")
    for _ in range(2):
        browser.shows("#chart-sum", "2 completed (above the line), 1 failed (below it).")
        browser.shows(".chart", words, "on average", "per second", "peak")
        assert browser.js("document.querySelectorAll('#chart rect.Completed').length") == 1
        assert browser.js(f"document.querySelector('#ranges [value=\"{seconds}\"]').checked")
        browser.do("POST", "refresh")


def test_the_last_minutes_are_there_when_the_page_opens(browser, url):
    create(url, {}, {})
    claim(url, 2)
    say(url, 1, "complete")
    say(url, 2, "fail", error="too late", final=True)
    browser.js("new Promise(done => setTimeout(done, 12_000))")     # longer than the rate looks back
    browser.open(f"{url}/")
    browser.shows("#chart-sum", "1 completed", "1 failed")
    for status in ("Completed", "Failed"):
        assert browser.js(f"document.querySelectorAll('#chart rect.{status}').length"), status


# --- acting

def test_a_task_is_created_and_watched_until_it_is_completed(browser, url):
    browser.open(f"{url}/")
    browser.click("#new")
    browser.type("#payload", '{"numbers": [1, 2, 12345678901234567890]}')
    browser.type("#priority", "7")
    browser.click("#create .primary")
    browser.shows("#message", "Task 1 was created.")
    assert http("GET", f"{url}/tasks/1").json["payload"] == {"numbers": [1, 2, 12345678901234567890]}
    browser.until(lambda: rows(browser) == ["1"])
    browser.click("#rows a")
    browser.shows("#task", "Task 1", "New", "12345678901234567890", "Priority", "7")
    claim(url)
    browser.shows("#task-status", "In Progress")
    say(url, 1, "progress", progress=0.25)
    browser.shows("#task-progress", "25%")
    assert browser.js("document.querySelector('progress').value") == 0.25
    say(url, 1, "complete", result={"sum": 6})
    browser.shows("#task", "Completed", "Result", '"sum": 6')
    assert not browser.text("#task-progress")
    assert not browser.text("#cancel")
    assert not browser.text("#retry")


def test_a_bare_task_and_a_later_one_can_be_created(browser, url):
    browser.open(f"{url}/")
    browser.click("#new")
    browser.click("#create .primary")
    browser.shows("#message", "Task 1 was created.")
    browser.click("#new")
    browser.type("#delay", "3600")
    browser.press("Control", "Enter")
    browser.shows("#message", "Task 2 was created.")
    browser.shows("#rows tr", "2", "New", "in 59 min")
    assert "payload" not in http("GET", f"{url}/tasks/1").json
    browser.click("#message a")
    browser.shows("#task", "Task 2", "Not before")


def test_an_error_is_shown_at_its_field(browser, url):
    browser.open(f"{url}/")
    browser.click("#new")
    browser.type("#payload", '{"to":\n  ann}')
    browser.click("#create .primary")
    browser.shows("#payload-error", "This is not valid JSON: see line 2, column 3.")
    assert focused(browser) == "payload"
    assert browser.js("document.querySelector('#payload').ariaInvalid") == "true"
    assert (f"{url}/tasks", 400) not in requests(browser), "it was sent all the same"
    browser.type("#payload", '{"to": "ann"}')
    browser.type("#priority", "high")
    browser.type("#delay", "-1")
    browser.click("#create .primary")
    browser.shows("#priority-error", "expected a whole number from -32768 to 32767")
    browser.shows("#delay-error", "expected a number of seconds from 0 to 315360000")
    assert focused(browser) == "priority"
    assert not browser.text("#payload-error")
    browser.type("#priority", "")
    browser.type("#delay", "")
    browser.type("#payload", '{"a": 1, "a": 2}')
    browser.click("#create .primary")
    browser.shows("#payload-error", "expected an object without duplicate keys")
    browser.type("#payload", '{"a": 1}')
    browser.click("#create .primary")
    browser.shows("#message", "Task 1 was created.")


def test_a_new_task_is_canceled_and_a_failed_one_retried(browser, url):
    create(url)
    browser.open(f"{url}/?task=1")
    browser.click("#cancel")
    browser.shows("#message", "Task 1 was canceled.")
    browser.shows("#task-status", "Failed: canceled")
    assert focused(browser) == "task-title", "the focus went with the button"
    browser.click("#retry")
    browser.shows("#message", "Task 1 will be run again.")
    browser.shows("#task-status", "New")


def test_a_task_in_progress_is_canceled_by_its_worker(browser, url):
    create(url)
    claim(url)
    browser.open(f"{url}/?task=1")
    browser.click("#cancel")
    browser.shows("#message", "its worker was asked to stop")
    browser.shows("#task-status", "In Progress, to be canceled")
    assert not browser.text("#cancel") and not browser.text("#delete")
    say(url, 1, "fail", error="stopped")
    browser.shows("#task-status", "Failed: canceled")


def test_a_task_is_deleted_after_a_question(browser, url):
    create(url, {}, {})
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["2", "1"])
    browser.click("#rows a")
    browser.click("#delete")
    browser.shows("#confirm", "Delete task 2?")
    assert focused(browser) == "Keep task"
    browser.press("Escape")
    browser.until(lambda: not browser.text("#confirm") and focused(browser) == "delete")
    assert http("GET", f"{url}/tasks/2").status == 200
    browser.click("#delete")
    browser.click("#confirm .danger")
    browser.shows("#message", "Task 2 was deleted.")
    browser.until(lambda: rows(browser) == ["1"])
    assert http("GET", f"{url}/tasks/2").status == 404


def test_the_error_stands_above_the_payload(browser, url):
    create(url, {"payload": {"n": 1}, "priority": -1}, {"payload": {"n": 2}})
    browser.open(f"{url}/?task=2")
    browser.shows("#texts", "Payload")
    claim(url)
    say(url, 2, "fail", error="too late", final=True)
    browser.shows("#texts", "too late")
    assert browser.js("[...document.querySelectorAll('#texts > div')].map(part => part.dataset.name)") == [
        "error",
        "payload",
    ]


def test_the_focus_is_never_lost(browser, url):
    create(url, *[{}] * 60)
    browser.open(f"{url}/?after=11")
    for link in ("#newest", "#older", "#newer"):
        browser.click(link)
        browser.until(lambda: rows(browser) and focused(browser) == "list-title")
    for task in ("1", "77"):
        browser.open(f"{url}/?task={task}")
        browser.shows("#task", f"ask {task}")
        browser.click("#back")
        browser.until(lambda: rows(browser) and focused(browser) == "list-title")


def test_a_refused_action_says_why(browser, url):
    fail(url, None, "too late")
    browser.open(f"{url}/?task=1")
    browser.shows("#task-status", "Failed")
    hide(browser)       # so that the page does not see what comes
    http("POST", f"{url}/tasks/1/retry")
    browser.click("#retry")
    browser.shows("#task-error", "task 1 is New: only one that is Failed can be retried")


def test_a_task_of_a_kind_that_repeats_can_be_created(browser, url):
    browser.open(f"{url}/")
    browser.click("#new")
    browser.shows("#create", "More: kind, repeating")
    assert not browser.text("#kind")
    browser.click("#more summary")
    browser.type("#kind", "7")
    browser.type("#repeat", "300")
    browser.click("#create .primary")
    browser.shows("#message", "Task 1 was created.")
    created = http("GET", f"{url}/tasks/1").json
    assert (created["kind"], created["repeat"]) == ("7", 300)
    browser.click("#new")
    browser.type("#repeat", "0 9 * * *")
    browser.type("#timezone", "Europe/Nowhere")
    browser.type("#kind", "Mail")
    browser.click("#more summary")
    browser.click("#create .primary")
    browser.shows("#timezone-error", "expected the name of a time zone")        # which opens that part again
    browser.shows("#kind-error", "expected up to 63 lower-case letters")
    browser.type("#timezone", "Europe/Berlin")
    browser.type("#kind", "mail")
    browser.click("#create .primary")
    browser.shows("#message", "Task 2 was created.")
    created = http("GET", f"{url}/tasks/2").json
    assert (created["kind"], created["repeat"], created["timezone"]) == ("mail", "0 9 * * *", "Europe/Berlin")


# --- what may go wrong

def test_the_server_goes_and_comes_back(browser, service):
    url = service()
    create(url)
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["1"])
    service.program.stop()
    browser.shows("#trouble", "The server can't be reached. No answer from the service since")
    assert rows(browser) == ["1"] and "unknown" in browser.text("#states")
    browser.click("#tiles [data-status='Failed']")      # which nobody knows now
    browser.shows("#list-title", "Failed, newest first")
    assert not browser.text("#rows") and not browser.text("#empty")
    browser.click("#tiles [data-status='Failed']")
    browser.shows("#rows", "1", "New")
    browser.click("#new")
    browser.type("#payload", '"kept"')
    browser.click("#create .primary")
    browser.shows("#create", "The server can't be reached.")
    service(PORT=urlsplit(url).port)
    browser.shows("#message", "The server answers again.")
    browser.until(lambda: not browser.text("#trouble"))
    browser.click("#create .primary")       # what was typed is still there
    browser.until(lambda: rows(browser) == ["2", "1"])
    assert http("GET", f"{url}/tasks/2").json["payload"] == "kept"


def test_it_says_when_database_and_rabbitmq_are_away(browser, service, sqlite_database):
    def rename(table, name):
        with sqlite3.connect(sqlite_database.removeprefix("sqlite:///"), timeout=20) as database:
            database.execute(f"alter table {table} rename to {name}")

    url = service(RABBITMQ_URL="amqp://127.0.0.1:1")
    create(url)
    browser.open(f"{url}/")
    browser.shows("#state-rabbitmq", "not connected")
    browser.shows("#state-database", "connected")
    rename("tasks", "away")
    browser.shows("#trouble", "The server answers, but can't process the request: the database can't be used")
    browser.shows("#state-database", "not connected")
    browser.shows("#state-workers", "unknown")
    rename("away", "tasks")
    browser.shows("#state-database", "connected")
    browser.until(lambda: not browser.text("#trouble"))


def test_markup_in_a_task_is_text(browser, url):
    fail(url, {MARKUP: MARKUP}, f"ValueError: {MARKUP}")
    create(url, {"payload": MARKUP})
    claim(url)
    say(url, 2, "complete", result=[MARKUP])
    browser.open(f"{url}/")
    browser.shows("#rows", MARKUP, MARKUP)
    browser.open(f"{url}/?task=1")
    browser.shows("#task", f"ValueError: {MARKUP}", json.dumps(MARKUP))
    browser.open(f"{url}/?task=2")
    browser.shows("#texts", json.dumps(MARKUP))
    browser.open(f"{url}/?task={MARKUP}&status={MARKUP}&after={MARKUP}")
    browser.until(lambda: rows(browser) == ["2", "1"])
    assert browser.js("document.title") == "Task Manager"
    assert not browser.js("document.querySelectorAll('main img, main script').length")


def test_the_token_is_asked_for_once_a_session(new_browser, service):
    url, browser = service(API_TOKEN="open-sesame"), new_browser()
    bearer = {"authorization": "Bearer open-sesame"}
    create(url, {}, **bearer)
    browser.open(f"{url}/")
    browser.shows("#token", "This service needs a token")
    assert focused(browser) == "token-value"
    assert not browser.text("#shown")
    assert not browser.text("#new")
    browser.type("#token-value", "wrong")
    browser.press("Enter")
    browser.shows("#token-value-error", "The service does not accept this token.")
    browser.type("#token-value", "open-sesame")
    browser.press("Enter")
    browser.until(lambda: rows(browser) == ["1"] and not browser.text("#token"))
    browser.click("#new")
    browser.click("#create .primary")
    browser.until(lambda: rows(browser) == ["2", "1"])
    browser.do("POST", "refresh")
    browser.until(lambda: rows(browser) == ["2", "1"])
    assert browser.js("[localStorage.length, document.cookie.length, sessionStorage.length]") == [0, 0, 1]
    browser.click("#metrics")
    browser.shows("body", "taskmanager_tasks")
    other = new_browser()
    other.open(f"{url}/")
    other.shows("#token", "This service needs a token")
    other.type("#token-value", "open-sesame")
    other.press("Enter")
    other.until(lambda: rows(other) == ["2", "1"] and focused(other) == "list-title")
    # One that is changed meanwhile is asked for, too, and nothing that was typed is lost.
    other.click("#new")
    other.type("#payload", '"kept"')
    service.program.stop()
    service(API_TOKEN="another", PORT=urlsplit(url).port)
    other.shows("#token", "does not accept")
    other.type("#token-value", "another")
    other.press("Enter")
    other.until(lambda: rows(other) == ["2", "1"])
    other.click("#new")
    assert other.js("document.querySelector('#payload').value") == '"kept"'


def test_with_a_token_that_may_only_read_nothing_is_offered_that_would_be_refused(new_browser, service):
    url = service(API_TOKEN="open-sesame", READ_TOKEN="look-only")
    bearer = {"authorization": "Bearer open-sesame"}
    create(url, {"kind": "mail", "payload": "p"}, **bearer)
    browser = new_browser()
    browser.open(f"{url}/")
    browser.shows("#token-hint", "READ_TOKEN to look only")
    browser.type("#token-value", "look-only")
    browser.press("Enter")
    browser.until(lambda: rows(browser) == ["1"])
    browser.open(f"{url}/?kind=mail")
    browser.until(lambda: rows(browser) == ["1"])
    browser.click("#rows a")
    browser.shows("#task", "Task 1", "New", "Payload")
    http("POST", f"{url}/tasks/1/cancel", **bearer)
    browser.shows("#task-status", "Failed: canceled")
    for place in ("", "?kind=mail", "?task=1", "?status=Completed"):
        browser.open(f"{url}/{place}")
        browser.shows("#states" if "task" not in place else "#task", "")
        browser.until(lambda: browser.text("#list-title") or browser.text("#task-status"))
        for button in ("#new", "#cancel", "#retry", "#delete", "#bulk-actions", "#curl"):
            assert not browser.text(button), button
    assert not [status for _, status in requests(browser) if status == 403]
    # That token is changed, and the other one entered.
    browser.open(f"{url}/?task=1")
    browser.shows("#task-status", "Failed: canceled")
    service.program.stop()
    service(API_TOKEN="open-sesame", READ_TOKEN="another", PORT=urlsplit(url).port)
    browser.shows("#token", "does not accept")
    browser.type("#token-value", "open-sesame")
    browser.press("Enter")
    browser.shows("#retry", "Retry")
    browser.shows("#new", "New task")


# --- what it costs

def test_an_open_task_is_waited_for_and_not_polled(browser, url):
    create(url, {})
    browser.open(f"{url}/?task=1")
    browser.shows("#task-status", "New")
    browser.until(lambda: waits(browser))
    browser.js("new Promise(done => setTimeout(done, 3000))")
    assert not [address for address, _ in requests(browser) if address == f"{url}/tasks/1"]
    claim(url)
    began = time.monotonic()
    browser.shows("#task-status", "In Progress")
    assert time.monotonic() - began < 2
    say(url, 1, "progress", progress=0.5)
    browser.shows("#task-progress", "50%")
    # Whatever is left ends the request, and a hidden page begins no other.
    browser.until(lambda: waits(browser))
    browser.click("#back")
    browser.until(lambda: has_aborted(browser))
    browser.click("#rows a")
    browser.until(lambda: waits(browser))
    hide(browser)
    browser.until(lambda: has_aborted(browser))
    say(url, 1, "complete")
    browser.js("new Promise(done => setTimeout(done, 2000))")
    assert requests(browser) == []
    assert "In Progress" in browser.text("#task-status")
    browser.js("[delete document.hidden, document.dispatchEvent(new Event('visibilitychange'))]")
    browser.shows("#task-status", "Completed")


def test_an_open_task_is_polled_where_no_request_may_wait(browser, service):
    url = service(WAITERS="0")
    create(url, {})
    browser.open(f"{url}/?task=1")
    browser.shows("#task-status", "New")
    requests(browser)
    browser.js("new Promise(done => setTimeout(done, 3000))")
    assert 1 <= len([address for address, _ in requests(browser) if address == f"{url}/tasks/1"]) <= 4
    claim(url)
    browser.shows("#task-status", "In Progress")


def test_nothing_new_is_answered_with_304_and_a_hidden_page_asks_nothing(browser, url):
    create(url)
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["1"])
    browser.until(lambda: [status for address, status in requests(browser) if "/tasks?" in address] == [304])
    hide(browser)
    browser.js("new Promise(done => setTimeout(done, 500))")
    requests(browser)
    browser.js("new Promise(done => setTimeout(done, 2500))")
    assert requests(browser) == []
    create(url)
    browser.js("[delete document.hidden, document.dispatchEvent(new Event('visibilitychange'))]")
    browser.until(lambda: rows(browser) == ["2", "1"])
    browser.click("#pause")
    browser.js("new Promise(done => setTimeout(done, 500))")
    requests(browser)
    create(url)
    browser.js("new Promise(done => setTimeout(done, 2500))")
    assert requests(browser) == [] and rows(browser) == ["2", "1"]
    browser.click("#pause")
    browser.until(lambda: rows(browser) == ["3", "2", "1"])


# --- for everybody

def test_the_keyboard_alone_suffices(browser, url):
    browser.open(f"{url}/")
    browser.shows("#empty", "There are no tasks yet.")
    browser.press("Tab")
    assert focused(browser) == "Skip to the tasks"
    tab_to(browser, "new")
    browser.press("Enter")
    browser.until(lambda: focused(browser) == "payload")
    for key in "[1]":
        browser.press(key)
    tab_to(browser, "Create")
    browser.press("Enter")
    browser.until(lambda: rows(browser) == ["1"] and focused(browser) == "new")
    claim(url)
    say(url, 1, "fail", error="no", final=True)
    browser.shows("#rows", "Failed")
    tab_to(browser, "1")
    browser.press("Enter")
    browser.until(lambda: focused(browser) == "task-title")
    tab_to(browser, "retry")
    browser.press("Space")
    browser.shows("#task-status", "New")
    tab_to(browser, "delete")
    browser.press("Enter")
    browser.shows("#confirm", "Delete task 1?")
    tab_to(browser, "Delete")
    browser.press("Enter")
    browser.shows("#empty", "There are no tasks yet.")
    assert focused(browser) == "list-title"
    # What has the focus keeps it, and its place, while the list moves on.
    create(url, {}, {})
    browser.until(lambda: rows(browser) == ["3", "2"])
    tab_to(browser, "2")
    create(url)
    browser.shows("#fresh", "New tasks appear")
    claim(url, 3)
    browser.shows("[data-id='2']:focus", "2")
    browser.until(lambda: browser.text("#rows").count("In Progress") == 2)
    assert rows(browser) == ["3", "2"]
    browser.press("Shift", "Tab")
    browser.press("Shift", "Tab")
    browser.until(lambda: rows(browser) == ["4", "3", "2"] and not browser.text("#fresh"))
    assert focused(browser) == "find-id"


def test_no_row_moves_away_under_the_mouse(browser, url):
    create(url, {}, {})
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["2", "1"])
    browser.point_at("#rows a")
    create(url)
    browser.shows("#fresh", "New tasks appear")
    assert rows(browser) == ["2", "1"]
    browser.point_at("header")
    browser.until(lambda: rows(browser) == ["3", "2", "1"] and not browser.text("#fresh"))


@pytest.mark.parametrize("width", [360, 640])       # a phone, and a window of 1280 pixels at 200%
def test_it_fits_without_scrolling_sideways(browser, service, width):
    url = service()
    browser.cdp(
        "Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=1, mobile=True
    )
    for view in views(browser, url):
        assert browser.js("document.documentElement.scrollWidth <= innerWidth && innerWidth") == width, (
            f"{view} is too wide"
        )
        beyond = browser.js("""[...document.querySelectorAll('body *')]
            .filter(element => element.checkVisibility() && !element.closest('.unseen, thead'))
            .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
            .map(element => element.outerHTML.slice(0, 200))""")
        assert beyond == [], f"{view} is too wide"
    service.program.stop()
    browser.shows("#trouble", "can't be reached")
    assert browser.js("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_passes_the_accessibility_checks_of_axe(new_browser, service, scheme):
    def audit(view):
        browser.js(f"(() => {{ {AXE} }})()")
        passes, violations = browser.js("""axe.run(document, {resultTypes: ['violations']})
            .then(({violations, passes}) => [passes.length, violations.map(({id, help, nodes}) =>
                [id, help, nodes.map(node => node.html + node.failureSummary)])])""")
        assert passes > 10, view
        assert violations == [], view

    def window():
        browser = new_browser()
        browser.cdp(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        return browser

    url, browser = service(), window()
    for view in views(browser, url):
        assert browser.js("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
        audit(view)
    browser.cdp("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    browser.open(f"{url}/")
    browser.shows("#rows", "New")
    audit("phone")
    service.program.stop()
    browser.shows("#trouble", "can't be reached")
    audit("server away")
    url, browser = service(API_TOKEN="secret"), window()
    browser.open(f"{url}/")
    browser.type("#token-value", "wrong")
    browser.press("Enter")
    browser.shows("#token-value-error", "does not accept")
    audit("token")


def test_it_speaks_russian(new_browser, url):
    browser = new_browser("ru-RU")
    fail(url, 1, "нет")
    browser.open(f"{url}/")
    browser.shows("#rows", "Ошибка", "нет")
    browser.shows("body", "Новая задача", "В работе", "Воркеры", "Завершено в секунду")
    assert browser.js("document.documentElement.lang") == "ru"
    browser.click("#new")
    browser.type("#priority", "высокий")
    browser.click("#create .primary")
    browser.shows("#priority-error", "ожидается число от -32768 до 32767")


def test_every_text_of_the_page_has_both_languages():
    words = (taskmanager.HERE / "static" / "words.js").read_text(encoding="utf-8")
    table = re.search(r"const WORDS = \{\n(.*?)\n\};", words, re.DOTALL)[1]
    known = dict(re.findall(r'^  "?([\w ]+)"?: (\[".+", ".+"\]),$', table, re.MULTILINE))
    assert len(known) == len([line for line in table.splitlines() if line])
    for name, both in known.items():
        english, russian = json.loads(both)
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", russian)), name
    page = (taskmanager.HERE / "static" / "index.html").read_text(encoding="utf-8")
    for name, text in re.findall(r'data-t="(\w+)"[^>]*>([^<]+)<', page):
        assert json.loads(known[name])[0] == text
    for name, text in re.findall(r'data-label="(\w+)" aria-label="([^"]+)"', page):
        assert json.loads(known[name])[0] == text


# --- where it lives

def test_the_page_works_under_a_prefix(browser, store_under_prefix):
    browser.open(store_under_prefix)
    browser.shows("#empty", f"curl -X POST {store_under_prefix}tasks")
    browser.click("#new")
    browser.click("#create .primary")
    browser.until(lambda: rows(browser) == ["1"])
    browser.click("#rows a")
    browser.shows("#task", "Task 1")
    assert browser.js("location.href") == f"{store_under_prefix}?task=1"
    browser.click("#back")
    browser.until(lambda: browser.js("location.href") == store_under_prefix)
    browser.click("footer a")
    browser.until(lambda: browser.js("location.href") == f"{store_under_prefix}swagger")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_swagger_ui_tries_it_out_with_the_token(browser, service, scheme):
    url = service(API_TOKEN="secret")
    browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(f"{url}/swagger")
    browser.click(".auth-wrapper .authorize")
    browser.type(".auth-container input", "secret")
    browser.click(".auth-btn-wrapper .authorize")
    browser.click(".btn-done")
    browser.click("#operations-tasks-createTask button.opblock-summary-control")
    browser.click("#operations-tasks-createTask .execute")
    browser.shows("#operations-tasks-createTask .live-responses-table", "201")
    assert http("GET", f"{url}/tasks/1", authorization="Bearer secret").status == 200
    if scheme == "dark":        # in light, the colours are as Swagger UI wants them
        browser.js(f"(() => {{ {AXE} }})()")
        too_faint = browser.js("""axe.run(document, {runOnly: ['color-contrast']})
            .then(({violations}) => violations.flatMap(({nodes}) => nodes)
                .filter(({any}) => any[0].data.contrastRatio < 3)
                .map(({html, any}) => [html, any[0].data.contrastRatio]))""")
        assert too_faint == []


def test_it_translates_an_error_by_its_code(new_browser, service):
    url, browser = service(CONCURRENCY="0"), new_browser("ru-RU")
    http("POST", f"{url}/tasks")
    browser.open(f"{url}/?task=1")
    browser.shows("#task-status", "Новая")
    hide(browser)       # so that the page does not see what comes
    http("POST", f"{url}/tasks/claim")
    browser.click("#delete")
    browser.click("#confirm .danger")
    browser.shows("#task-error", "сейчас это невозможно: статус задачи — «В работе»")
