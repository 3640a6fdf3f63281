"""A real Chromium, and the service that its pages belong to."""

from urllib.parse import urlsplit

import pytest

import taskmanager
import webdriver
from steps import requests


@pytest.fixture(scope="session")
def driver():
    driver = webdriver.Driver()
    yield driver
    driver.close()


@pytest.fixture
def new_browser(driver):
    """new_browser(language, **prefs): a window; watched until the test ends."""
    browsers = []

    def new_browser(language="en-US", **prefs):
        browsers.append(driver.browser(language, **prefs))
        return browsers[-1]

    yield new_browser
    wrong = []
    for browser in browsers:
        # Chromium itself notes each answer of 400 and more, and each missing one; the tests cause those.
        wrong += [
            entry["message"]
            for entry in browser.log("browser")
            if entry["level"] != "INFO" and entry["source"] != "network"
        ]
        wrong += [
            url
            for url, _ in requests(browser)
            if urlsplit(url).scheme not in ("data", "blob", "chrome", "about")
            and urlsplit(url).hostname not in ("localhost", "127.0.0.1")
        ]
        browser.close()
    assert not wrong


@pytest.fixture
def browser(new_browser):
    return new_browser()


@pytest.fixture
def service(start, sqlite_database):
    """service(**settings): its address. On SQLite, and no worker takes tasks."""
    def service(**settings):
        program = start("taskmanager.py", DATABASE_URL=sqlite_database, **{"CONCURRENCY": "0"} | settings)
        service.program = program
        return program.url
    return service


@pytest.fixture
def url(service):
    return service()


@pytest.fixture
def store_under_prefix(sqlite_database, serve):
    import bottle
    store = taskmanager.open_store(sqlite_database)
    app = bottle.Bottle()
    app.mount("/jobs/", taskmanager.create_app(store))
    return f"{serve(app)}/jobs/"
