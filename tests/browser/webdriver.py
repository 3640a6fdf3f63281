"""Chromium, driven through WebDriver (https://www.w3.org/TR/webdriver/): JSON over HTTP to chromedriver.

`python tests/browser/webdriver.py` says what is missing; on Debian and Ubuntu, as root, it installs it.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"     # the name under which an element's id travels
KEYS = {
    "Tab": "\ue004",
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "Space": "\ue00d",
    "Shift": "\ue008",
    "Control": "\ue009",
    "Backspace": "\ue003",
}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Missing(Exception):
    """A program is not installed; the message says what to install."""


def programs() -> tuple[str, str]:
    """The browser and its driver."""
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        missing = "chromedriver" if browser else "Chromium"
        raise Missing(
            f"{missing} is not installed: sudo apt-get install chromium chromium-driver,"
            " or what your system calls them"
        )
    return browser, driver


def install() -> None:
    """Installs what is missing, on Debian and Ubuntu as root; raises Missing elsewhere."""
    with contextlib.suppress(Missing):
        programs()
        return
    if os.getuid() == 0 and shutil.which("apt-get"):
        print(
            "Chromium or its driver is not installed; installing: apt-get install chromium chromium-driver",
            flush=True,
        )
        for arguments in ("update", "install -y --no-install-recommends chromium chromium-driver"):
            done = subprocess.run(
                ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", *arguments.split()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode:
                raise Missing(
                    f"apt-get {arguments.split()[0]} failed ({' '.join(done.stdout.split())[-300:]})"
                )
    programs()


def call(method: str, url: str, body: dict | None = None):
    """One command; its value. An error of the browser is a RuntimeError that begins with its name."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as e:
        value = json.load(e)["value"]
        raise RuntimeError(f"{value['error']}: {value['message']}") from None


class Driver:
    """chromedriver; each browser() is a new one, with a profile of its own."""

    def __init__(self):
        self.chromium, driver = programs()
        self.process = subprocess.Popen(
            [driver, "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        for line in self.process.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                break
        self.url = f"http://127.0.0.1:{found[1]}"

    def browser(self, language: str = "en-US", **prefs) -> "Browser":
        options = {
            "binary": self.chromium,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--window-size=1200,1000",
                f"--lang={language}",
                "--disable-background-networking",
                "--force-prefers-reduced-motion",
            ],
            "prefs": {"intl.accept_languages": language, **prefs},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        return Browser(
            f"{self.url}/session",
            call("POST", f"{self.url}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"],
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()


class Browser:
    """A window. CSS selectors name elements; every act waits until its element is there and can be used."""

    def __init__(self, sessions: str, id: str):
        self.url = f"{sessions}/{id}"

    def do(self, method: str, path: str, body: dict | None = None):
        return call(method, f"{self.url}/{path}", {} if body is None and method == "POST" else body)

    def open(self, url: str) -> None:
        self.do("POST", "url", {"url": url})

    def js(self, script: str, *args):
        """The value of a JavaScript expression; args[0], args[1], … are in its reach."""
        return self.do(
            "POST", "execute/sync", {"script": f"const args = arguments; return ({script})", "args": args}
        )

    def cdp(self, command: str, **params):
        """What WebDriver has no word for: colour schemes, and a phone's width."""
        return self.do("POST", "goog/cdp/execute", {"cmd": command, "params": params})

    def until(self, look, seconds: float = 15):
        """What look() returns, as soon as it is true; it may stumble over what is not there yet."""
        deadline, value = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                if value := look():
                    return value
            except RuntimeError as e:
                value = e
            time.sleep(0.03)
        raise AssertionError(
            f"not within {seconds} s; the last value was {value!r}, and the page says:\n{self.text('body')}"
        )

    def _element(self, selector: str) -> str:
        return f"element/{self.do('POST', 'element', {'using': 'css selector', 'value': selector})[ELEMENT]}"

    def _act(self, selector: str, act: str, body: dict | None = None) -> None:
        self.until(lambda: [self.do("POST", f"{self._element(selector)}/{act}", body)])

    def click(self, selector: str) -> None:
        self._act(selector, "click")

    def point_at(self, selector: str) -> None:
        """Move the mouse there."""
        origin = self.until(lambda: self.do("POST", "element", {"using": "css selector", "value": selector}))
        self.do(
            "POST",
            "actions",
            {
                "actions": [
                    {
                        "type": "pointer",
                        "id": "mouse",
                        "actions": [{"type": "pointerMove", "origin": origin, "x": 0, "y": 0}],
                    }
                ]
            },
        )

    def type(self, selector: str, text: str) -> None:
        """In place of what is in a field."""
        self._act(selector, "clear")
        if text:
            self._act(selector, "value", {"text": text})

    def press(self, *names: str) -> None:
        """One key, with others held down before it, such as press("Shift", "Tab"); or a text."""
        keys = [KEYS.get(name, name) for name in names]
        moves = [{"type": "keyDown", "value": key} for key in keys] + [
            {"type": "keyUp", "value": key} for key in reversed(keys)
        ]
        self.do("POST", "actions", {"actions": [{"type": "key", "id": "keyboard", "actions": moves}]})

    def text(self, selector: str) -> str:
        """As it is seen: nothing of what is hidden."""
        return self.js("""(element => element?.getClientRects().length ? element.innerText.trim() : '')
                          (document.querySelector(args[0]))""", selector)

    def shows(self, selector: str, *texts: str) -> str:
        """Wait until an element shows all of the texts."""
        return self.until(
            lambda: all(text in self.text(selector) for text in texts) and (self.text(selector) or " ")
        )

    def log(self, kind: str) -> list[dict]:
        """What was logged since one last asked: "browser" is the console, "performance" has each request."""
        return self.do("POST", "se/log", {"type": kind})

    def screenshot(self, path) -> None:
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.do("GET", "screenshot")))

    def close(self) -> None:
        call("DELETE", self.url)


if __name__ == "__main__":      # `make browser-test` begins with this
    try:
        install()
    except Missing as missing:
        sys.exit(str(missing))
