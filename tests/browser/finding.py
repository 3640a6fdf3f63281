"""The page's list where it is limited: by kind, text and time; and all tasks of a list changed at once."""

import sqlite3

import pytest

from helpers import http
from steps import claim, create, fail, fill, focused, requests, rows, slow_down


def search(browser, **fields):
    """Fill in the fields of the search, by their ids, and press Enter."""
    for name, text in fields.items():
        browser.type(f"#{name}", text)
    browser.press("Enter")


def query(browser):
    return browser.js("location.search")


# --- kinds

def test_the_kind_of_a_task_is_shown_and_limits_the_list(browser, url):
    create(url, {"kind": "mail"}, {"kind": "report"}, {}, {"kind": "mail", "payload": {"to": "ann"}})
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["4", "3", "2", "1"])
    browser.shows("#rows tr:nth-child(1)", "mail", "ann")
    assert browser.text("#rows tr:nth-child(2)").count("mail") == 0
    search(browser, kinds="mail")
    browser.until(lambda: rows(browser) == ["4", "1"])
    assert query(browser) == "?kind=mail"
    browser.shows("#list-title", "All, kind mail, newest first")
    search(browser, kinds="report, mail")
    browser.until(lambda: rows(browser) == ["4", "2", "1"])
    assert query(browser) == "?kind=report&kind=mail"
    browser.open(f"{url}/?task=2")
    browser.shows("#facts", "Kind", "report")
    browser.click("#facts a")
    browser.until(lambda: rows(browser) == ["2"] and query(browser) == "?kind=report")


def test_the_kinds_that_are_known_are_suggested(browser, url):
    create(url, {"kind": "mail"}, {"kind": "report"})
    browser.open(f"{url}/")
    browser.until(lambda: browser.js(
        "[...document.querySelectorAll('#known-kinds option')].map(each => each.value)"
    ) == ["report", "mail"])


def test_a_kind_that_is_none_is_refused_with_words(new_browser, url):
    create(url)
    for language, words in (("en-US", "expected up to 63 lower-case letters"), ("ru-RU", "ожидается до 63")):
        browser = new_browser(language)
        browser.open(f"{url}/")
        browser.until(lambda: rows(browser) == ["1"])
        search(browser, kinds="Mail!")
        browser.shows("#list-error", words)
        assert not browser.text("#table") and not browser.text("#empty")
        browser.click("#clear")
        browser.until(lambda: browser.text("#table") and not browser.text("#list-error"))


# --- searching

def test_a_text_is_found_and_the_address_tells_it(new_browser, url):
    fail(url, {"to": "Ann"}, "the mail server is away")
    create(url, {"payload": "anna"}, {"payload": "bob"}, {"payload": '"&=?#%'})
    browser = new_browser()
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["4", "3", "2", "1"])
    search(browser, q="ANN")
    browser.until(lambda: rows(browser) == ["2", "1"])
    assert query(browser) == "?q=ANN" and focused(browser) == "q"
    browser.until(lambda: "Tasks shown: 2" in browser.js("document.querySelector('#found').textContent"))
    search(browser, q="SERVER is")
    browser.until(lambda: rows(browser) == ["1"])
    # A status goes with it, a reload and another window show the same, and so does the way back from a task.
    browser.click("#tiles [data-status='Failed']")
    browser.until(lambda: query(browser) == "?status=Failed&q=SERVER+is" and rows(browser) == ["1"])
    browser.shows("#list-title", "Failed, with “SERVER is”, newest first")
    other = new_browser()
    other.open(browser.js("location.href"))
    other.until(lambda: rows(other) == ["1"])
    assert other.js("document.querySelector('#q').value") == "SERVER is"
    other.click("#rows a")
    other.shows("#task", "Task 1")
    other.click("#back")
    other.until(lambda: query(other) == "?status=Failed&q=SERVER+is" and rows(other) == ["1"])
    other.click("#clear")
    other.until(lambda: query(other) == "?status=Failed")
    assert not other.text("#clear")
    search(browser, q='&=?#%')
    browser.click("#tiles [data-status='All']")
    browser.until(lambda: rows(browser) == ["4"])


def test_a_time_is_that_of_the_browser_and_utc_in_the_address(browser, url, sqlite_database):
    create(url, {}, {}, {})
    with sqlite3.connect(sqlite_database.removeprefix("sqlite:///"), timeout=20) as database:
        database.execute("update tasks set created_at = 1577836800 + 3600 * id")      # 2020-01-01 and hours
    browser.cdp("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")     # UTC+9
    browser.open(f"{url}/")
    browser.until(lambda: rows(browser) == ["3", "2", "1"])
    browser.click("#range summary")
    for name, time in (("created_after", "2020-01-01T11:00"), ("created_before", "2020-01-01T12:00")):
        browser.js(f"[document.querySelector('#{name}').value = '{time}']")
    browser.click("#search button")
    browser.until(lambda: rows(browser) == ["2"])
    assert query(browser) == "?created_after=2020-01-01T02%3A00%3A00Z&created_before=2020-01-01T03%3A00%3A00Z"
    browser.shows("#list-title", "created from Jan 1, 2020, 11:00:00 AM, created before")
    browser.do("POST", "refresh")
    browser.until(lambda: rows(browser) == ["2"])
    assert browser.js("document.querySelector('#created_after').value") == "2020-01-01T11:00"
    assert browser.text("#range .two"), "a limit that is there is seen"


def test_a_search_goes_on_until_something_is_found(browser, url, sqlite_database):
    fill(sqlite_database, 35_000, {"payload": "case n when 1 then '\"needle\"' else null end"})
    browser.open(f"{url}/?status=New")
    browser.until(lambda: len(rows(browser)) == 50)
    requests(browser)
    slow_down(browser, 0.3)
    search(browser, q="needle")
    browser.shows("#searching", "Searching… nothing found yet, now at task", "Stop")
    browser.until(lambda: rows(browser) == ["1"])
    assert not browser.text("#searching")
    assert len([path for path, _ in requests(browser) if "q=needle" in path]) >= 4


def test_a_search_can_be_stopped_and_continued(browser, url, sqlite_database):
    fill(sqlite_database, 35_000, {"payload": "case n when 1 then '\"needle\"' else null end"})
    browser.open(f"{url}/")
    browser.until(lambda: len(rows(browser)) == 50)
    slow_down(browser, 1)
    search(browser, q="needle")
    browser.click("#stop")
    browser.shows("#empty", "Stopped at task", "nothing found so far")
    assert not browser.text("#searching") and focused(browser) == "list-title"
    slow_down(browser, 0)
    requests(browser)
    browser.js("new Promise(done => setTimeout(done, 2500))")
    assert not [path for path, _ in requests(browser) if "q=needle" in path], "it has not stopped"
    browser.click("#older")
    browser.until(lambda: rows(browser) == ["1"])
    browser.click("#newer")
    browser.until(lambda: rows(browser) == ["1"] and query(browser) == "?q=needle")


# --- all tasks of a list

def test_what_failed_is_retried_after_a_question(browser, url):
    for n in range(3):
        fail(url, "away" if n else "here", "broken")
    create(url, {"payload": "away"})
    browser.open(f"{url}/")
    browser.until(lambda: len(rows(browser)) == 4)
    assert not browser.text("#bulk-actions"), "nobody may change everything by one press"
    search(browser, q="away")
    browser.until(lambda: rows(browser) == ["4", "3", "2"])
    browser.click("#retry-all")
    browser.shows("#confirm", "Retry all that failed (2)?", "Failed, with “away”", "They become New")
    assert focused(browser) == "Go back"
    browser.press("Escape")
    browser.until(lambda: focused(browser) == "retry-all")
    assert not browser.text("#bulk")
    browser.click("#retry-all")
    browser.click("#confirm [value=yes]")
    browser.shows("#bulk", "Tasks to be run again: 2.")
    browser.until(lambda: browser.text("#rows").count("New") == 3)
    assert [http("GET", f"{url}/tasks/{id}").json["status"] for id in (1, 2, 3)] == ["Failed", "New", "New"]
    browser.click("#bulk-stop")
    browser.until(lambda: not browser.text("#bulk") and focused(browser) == "list-title")


def test_what_waits_and_what_runs_is_canceled(browser, url):
    create(url, {"kind": "mail"}, {"kind": "mail"}, {"kind": "report"})
    claim(url, kinds=["mail"])
    browser.open(f"{url}/?kind=mail")
    browser.click("#cancel-all")
    browser.shows("#confirm", "Cancel all (2)?", "New, In Progress, kind mail", "are asked to stop")
    browser.click("#confirm [value=yes]")
    browser.shows("#bulk", "Canceled tasks: 2.")
    browser.shows("#rows", "Failed: canceled", "In Progress, to be canceled")
    assert http("GET", f"{url}/tasks/3").json["status"] == "New"


def test_all_of_a_list_are_deleted_but_those_in_progress(browser, url):
    create(url, *[{"kind": "mail"}] * 60, {})
    claim(url, kinds=["mail"])
    browser.open(f"{url}/?kind=mail")
    browser.until(lambda: len(rows(browser)) == 50)
    browser.click("#delete-all")
    browser.shows("#confirm", "Delete all (at least 50)?", "New, Completed, Failed, kind mail", "permanently")
    browser.click("#confirm [value=yes]")
    browser.shows("#bulk", "Deleted tasks: 59.")
    browser.until(lambda: rows(browser) == ["1"])
    assert [task["id"] for task in http("GET", f"{url}/tasks").json] == [1, 61]


def test_thousands_are_changed_with_one_request_after_the_other(browser, url, sqlite_database):
    fill(sqlite_database, 3500, {"status": "'Failed'", "error": "'away'"})
    browser.open(f"{url}/?status=Failed")
    browser.shows("[data-status='Failed'] strong", "3,500")
    requests(browser)
    slow_down(browser, 0.5)
    browser.click("#retry-all")
    browser.shows("#confirm", "Retry all that failed (3,500)?")
    browser.click("#confirm [value=yes]")
    browser.shows("#bulk", "Retrying… tasks so far: 1,000")
    browser.shows("#bulk", "Tasks to be run again: 3,500.", "Close")
    assert len([path for path, _ in requests(browser) if "/tasks/retry" in path]) >= 4


def test_it_is_stopped_before_the_end(browser, url, sqlite_database):
    fill(sqlite_database, 3500, {"status": "'Failed'", "error": "'away'"})
    browser.open(f"{url}/?status=Failed")
    browser.until(lambda: len(rows(browser)) == 50)
    slow_down(browser, 1)
    browser.click("#retry-all")
    browser.click("#confirm [value=yes]")
    browser.click("#bulk-stop")
    browser.shows("#bulk", "Stopped before the end.", "Close")
    slow_down(browser, 0)
    browser.shows("[data-status='New'] strong", ",000")


@pytest.mark.parametrize("status, offered", [
    ("New", ["Cancel all…", "Delete all…"]),
    ("In+Progress", ["Cancel all…"]),
    ("Completed", ["Delete all…"]),
    ("Failed", ["Retry all failed…", "Delete all…"]),
])
def test_only_what_is_possible_is_offered(browser, url, status, offered):
    browser.open(f"{url}/?status={status}")
    browser.until(lambda: browser.js(
        "[...document.querySelectorAll('#bulk-actions button')]"
        ".filter(each => each.getClientRects().length).map(each => each.textContent)"
    ) == offered)


def test_an_error_in_the_middle_is_told_with_what_was_done(browser, service, sqlite_database):
    url = service()
    fill(sqlite_database, 2500, {"status": "'Failed'", "error": "'away'"})
    browser.open(f"{url}/?status=Failed")
    browser.until(lambda: len(rows(browser)) == 50)
    slow_down(browser, 1)
    browser.click("#retry-all")
    browser.click("#confirm [value=yes]")
    browser.shows("#bulk", "tasks so far: 1,000")
    service.program.stop()
    browser.shows("#bulk", ",000. Then it stopped: The server can't be reached.", "Close")
