"""The page where it has a hard time: in an old browser, in one that keeps nothing, behind a proxy."""

import base64
import contextlib
import re
import threading
from http import client, server
from urllib.parse import urlsplit

import pytest

from helpers import http
from steps import create, rows, views

LOGIN = b"<!DOCTYPE html><title>Sign in</title><form><input type=password></form>"
HTML = {"Content-Type": "text/html; charset=utf-8"}


class Proxy(server.ThreadingHTTPServer):
    """Stands before the service.

    says:    says(path, headers) returns a status, headers and a body, which are sent instead of the service's
    prefix:  is cut from each path
    adds:    headers that replace those of the browser
    """

    daemon_threads = True

    def __init__(self, target: str, prefix: str = "", adds: dict[str, str] | None = None):
        self.target, self.prefix, self.adds = urlsplit(target), prefix, adds or {}
        self.says = lambda path, headers: None
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def place(self):
        return f"127.0.0.1:{self.server_port}{self.prefix}/"

    @property
    def url(self):
        return f"http://{self.place}"


class Handler(server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_all(self):
        proxy, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, data = proxy.says(self.path, self.headers) or self.forward(body)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):      # the page waits no longer
            self.wfile.write(data)

    do_GET = do_POST = do_DELETE = handle_all

    def forward(self, body):
        proxy = self.server
        assert self.path.startswith(proxy.prefix + "/")
        connection = client.HTTPConnection(proxy.target.netloc, timeout=20)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path[len(proxy.prefix):], body or None, headers | proxy.adds)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

    def log_message(self, *args):
        pass


@pytest.fixture
def proxy():
    """proxy(url, prefix, adds): a Proxy."""
    proxies = []

    def proxy(*args, **kwargs):
        proxies.append(Proxy(*args, **kwargs))
        return proxies[-1]

    yield proxy
    for each in proxies:
        each.shutdown()
        each.server_close()


def look(browser):
    """Make the page look now, and not in up to ten seconds."""
    browser.js("dispatchEvent(new Event('online'))")


def is_asked(path):
    """Whether a script of the page asks for this, not the browser."""
    return re.search(r"/(metrics|tasks)(/|\?|$)", path)


def basic(headers, user="ann", password="secret"):
    """The answer to a client that has not signed in; None to one that has."""
    expected = base64.b64encode(f"{user}:{password}".encode()).decode()
    if headers["Authorization"] == f"Basic {expected}":
        return None
    return 401, {"WWW-Authenticate": 'Basic realm="proxy"', **HTML}, b"<h1>401 Unauthorized</h1>"


def use(browser, place):
    """Create a task, look at it, and come back."""
    browser.shows("#empty", f"curl -X POST http://{place}tasks")
    browser.click("#new")
    browser.click("#create .primary")
    browser.until(lambda: rows(browser) == ["1"])
    browser.click("#rows a")
    browser.shows("#task", "Task 1", "New")
    browser.click("#back")
    browser.until(lambda: rows(browser) == ["1"] and not browser.text("#task"))
    browser.click("#tiles [data-status='Failed']")
    browser.shows("#empty", "There are no such tasks now.")
    assert not browser.text("#trouble")


def try_swagger(browser):
    browser.click("footer a")
    browser.click("#operations-tasks-createTask button.opblock-summary-control")
    browser.click("#operations-tasks-createTask .execute")
    browser.shows("#operations-tasks-createTask .live-responses-table", "201")


# --- browsers

# What was new after Chrome 92, Firefox 98 and Safari 15.4, the oldest that README names.
# (chromedriver itself needs Object.hasOwn.)
NEWER = """
  for (const path of [
      "URLSearchParams.prototype.size", "AbortSignal.timeout", "AbortSignal.any",
      "AbortSignal.prototype.throwIfAborted", "Element.prototype.checkVisibility",
      "HTMLFormElement.prototype.requestSubmit", "JSON.rawJSON", "JSON.isRawJSON", "Object.groupBy",
      "Map.groupBy", "Array.fromAsync", "Array.prototype.findLast", "Array.prototype.findLastIndex",
      "Array.prototype.toSorted", "Array.prototype.toReversed", "Array.prototype.toSpliced",
      "Array.prototype.with", "Promise.withResolvers", "Promise.try", "Set.prototype.union",
      "Set.prototype.difference", "Set.prototype.intersection", "URL.canParse", "URL.parse", "Response.json",
      "structuredClone", "navigation", "scheduler", "reportError", "requestIdleCallback",
      "Element.prototype.setHTML", "HTMLElement.prototype.showPopover",
      "HTMLElement.prototype.togglePopover", "HTMLDialogElement.prototype.requestClose",
      "Crypto.prototype.randomUUID", "String.prototype.isWellFormed", "Iterator.prototype.map",
      "Intl.DurationFormat", "Intl.ListFormat", "Intl.Segmenter", "Intl.supportedValuesOf",
      "Document.prototype.startViewTransition",
      "CSS.registerProperty"]) {
    const names = path.split("."), last = names.pop();
    delete names.reduce((owner, name) => owner?.[name] ?? {}, window)[last];
  }
  for (const type of [Document, Element, DocumentFragment]) {
    for (const name of ["querySelector", "querySelectorAll", "matches", "closest"]) {
      const own = type.prototype[name];
      if (own) type.prototype[name] = function (selector) {
        if (selector.includes(":has(")) throw new SyntaxError(selector);
        return own.call(this, selector);
      };
    }
  }"""


def test_browsers_of_2022_are_enough(browser, service):
    """Firefox 98 and Safari 15.4 have no URLSearchParams.size: all links led to the list of all tasks."""
    url = service()
    browser.cdp("Page.addScriptToEvaluateOnNewDocument", source=NEWER)
    browser.open(f"{url}/")
    assert browser.js("[typeof new URLSearchParams().size, typeof AbortSignal.timeout]") == ["undefined"] * 2
    use(browser, f"{urlsplit(url).netloc}/")
    assert http("DELETE", f"{url}/tasks/1").status == 204
    for view in views(browser, url):
        assert not browser.text("#start"), view
    browser.click("#new")
    browser.type("#payload", '"typed"')
    browser.press("Control", "Enter")
    browser.until(lambda: not browser.text("#create"))


def test_a_browser_that_keeps_no_site_data_will_do(new_browser, service):
    url = service(API_TOKEN="open-sesame")
    browser = new_browser(**{"profile.default_content_setting_values.cookies": 2})      # 2: blocked
    create(url, {}, authorization="Bearer open-sesame")
    for _ in range(2):
        browser.open(f"{url}/")
        browser.shows("#token", "need it again after a reload")
        browser.type("#token-value", "open-sesame")
        browser.press("Enter")
        browser.until(lambda: rows(browser) == ["1"] and not browser.text("#token"))
    with pytest.raises(RuntimeError, match="denied"):
        browser.js("sessionStorage.length")
    browser.click("footer a")
    browser.shows("#operations-tasks-createTask", "/tasks")


def test_an_address_with_user_and_password_works_and_is_not_shown(browser, service, proxy):
    """fetch refuses relative addresses in such a page."""
    front = proxy(service())
    front.says = lambda path, headers: basic(headers)
    browser.open(f"http://ann:secret@{front.place}")
    use(browser, front.place)
    try_swagger(browser)
    assert "secret" not in browser.text("body")


# --- proxies

def test_a_proxy_with_a_login_adds_the_token_itself(browser, service, proxy):
    front = proxy(service(API_TOKEN="open-sesame"), adds={"Authorization": "Bearer open-sesame"})
    front.says = lambda path, headers: basic(headers)
    browser.open(f"http://ann:secret@{front.place}")
    use(browser, front.place)
    try_swagger(browser)


def test_it_says_that_a_browser_sends_one_login_only(browser, service, proxy):
    """Basic authentication of a proxy that hands its password on, beside API_TOKEN."""
    front = proxy(service(API_TOKEN="open-sesame"))
    front.says = lambda path, headers: basic(headers)
    browser.open(f"http://ann:secret@{front.place}")
    browser.shows("#token", "This service needs a token")
    browser.type("#token-value", "open-sesame")
    browser.press("Enter")
    browser.shows("#token-value-error", "needs its own login (HTTP 401).", "has to add the token itself")
    front.adds = {"Authorization": "Bearer open-sesame"}        # the operator follows the advice
    browser.do("POST", "refresh")
    use(browser, front.place)


STRANGERS = [
    ((302, {"Location": "http://127.0.0.1:1/?next=tasks"}, b""), "probably to its login: reload the page"),
    ((303, {"Location": "/login"}, b""), "A proxy in front of the service redirects the requests"),
    ((200, HTML, LOGIN), "Something other than the service answers (HTTP 200, text/html)."),
    ((401, HTML, LOGIN), "A proxy in front of the service needs its own login (HTTP 401)"),
    ((403, HTML, b"<h1>403 Forbidden</h1>"), "A proxy in front of the service refuses this (HTTP 403)."),
    ((404, HTML, b"<h1>404 Not Found</h1>"), "Something other than the service answers (HTTP 404"),
    ((429, {}, b""), "Something other than the service answers (HTTP 429)."),
    ((502, HTML, b"<h1>502 Bad Gateway</h1>"), "A proxy answers, but can't reach the service (HTTP 502)."),
    ((503, {"Content-Type": "text/plain"}, b"no healthy upstream"), "can't reach the service (HTTP 503)."),
    ((504, {"Content-Type": "application/json"}, b'{"a": "late"}'), "can't reach the service (HTTP 504)."),
]


def test_it_says_what_a_proxy_answers_instead_of_the_service(browser, service, proxy):
    url = service()
    front = proxy(url)
    browser.open(front.url)
    use(browser, front.place)
    for answer, words in STRANGERS:
        front.says = lambda path, headers: answer if is_asked(path) else None
        look(browser)
        browser.shows("#trouble", words, "and keeps trying.")
        browser.click("#new")
        browser.click("#create .primary")
        browser.shows("#create-error", words)
        front.says = lambda path, headers: None
        browser.click("#create .primary")
        browser.until(lambda: not browser.text("#create") and not browser.text("#trouble"))
    assert len(http("GET", f"{url}/tasks").json) == len(STRANGERS) + 1       # and none was made twice


def test_it_says_that_a_proxy_takes_less_than_the_service(browser, service, proxy):
    """A limit of its own, and an answer in HTML beyond that."""
    front, too_large = proxy(service()), (413, HTML, b"<h1>413 Request Entity Too Large</h1>")
    front.says = lambda path, headers: too_large if int(headers["Content-Length"] or 0) > 1000 else None
    browser.open(front.url)
    browser.click("#new")
    browser.type("#payload", f'"{"x" * 1000}"')
    browser.click("#create .primary")
    browser.shows("#create-error", "is too large for a proxy in front of the service (HTTP 413)", "1 MiB")
    assert not browser.text("#trouble")


def test_it_says_that_the_server_is_slow(browser, service, proxy):
    front, goes_on = proxy(service()), threading.Event()
    front.says = lambda path, headers: is_asked(path) and goes_on.wait(20) and None
    browser.cdp("Page.addScriptToEvaluateOnNewDocument", source="""
        window.setTimeout = (own => (act, span) => own(act, span === 8000 ? 200 : span))(setTimeout)""")
    browser.open(front.url)
    browser.shows("#trouble", "The server has not answered within 8 seconds.")
    goes_on.set()
    browser.shows("#empty", "There are no tasks yet.")


@pytest.mark.parametrize("broken", ["page.js", "words.js", "page.css"])
def test_it_says_that_it_has_not_started(browser, service, proxy, broken):
    """A login that has run out answers for the scripts, too, or a browser is older than they are."""
    front = proxy(service())
    front.says = lambda path, headers: (403, HTML, LOGIN) if path.endswith(broken) else None
    browser.open(front.url)
    if broken == "page.css":        # ugly, but at work
        browser.shows("#empty", "There are no tasks yet.")
        assert not browser.text("#start")
    else:
        browser.js("document.getAnimations().map(each => each.finish())")      # 4 seconds later
        assert not browser.text("#new")
        browser.shows("#start", "This page has not started.", "Firefox 98", "Страница не запустилась.")


def test_it_works_under_a_prefix_that_the_proxy_cuts_off(browser, service, proxy):
    front = proxy(service(), "/team/jobs")
    browser.open(front.url)
    use(browser, front.place)
    assert browser.js("location.pathname") == "/team/jobs/"
    browser.click("#metrics")
    browser.shows("body", "taskmanager_tasks")
    browser.do("POST", "back")
    try_swagger(browser)
    assert browser.js("location.pathname") == "/team/jobs/swagger"


def test_a_proxy_that_cuts_long_requests_does_no_harm(browser, service, proxy):
    url = service()
    create(url)
    front, cut = proxy(url), []

    def says(path, headers):
        if "Prefer" not in headers:
            return None
        cut.append(path)
        return 504, HTML, b"<h1>504 Gateway Timeout</h1>"

    front.says = says
    browser.open(f"{front.url}?task=1")
    browser.shows("#task-status", "New")
    browser.until(lambda: cut)
    http("POST", f"{url}/tasks/claim")
    browser.shows("#task-status", "In Progress")
    assert not browser.text("#trouble")
    browser.js("new Promise(done => setTimeout(done, 2000))")
    assert len(cut) == 1, "it tries again and again"
