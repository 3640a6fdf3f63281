"""The files of the page and of Swagger UI: their types, what a browser that has them is told, and that no
others are served."""

import mimetypes
import os
import re
import shutil

import pytest

import taskmanager
from helpers import ROOT, http, is_problem, raw

pytestmark = pytest.mark.sqlite

TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".png": "image/png", ".yaml": "application/yaml",
    ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8", "": "text/plain; charset=utf-8"}
FILES = sorted(file.relative_to(ROOT) for file in (ROOT / "static").rglob("*") if file.is_file())
OURS = [file for file in FILES if file.suffix in (".html", ".css", ".js") and "swagger-ui" not in file.name]
ADDRESSES = {"static/index.html": "", "static/swagger/index.html": "swagger"}       # where it is not the path


def address(file):
    return ADDRESSES.get(str(file), str(file).replace("static/swagger", "swagger"))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A copy of the files, which a test may change, where the application looks for them."""
    folder = tmp_path / "installed"
    shutil.copytree(ROOT / "static", folder / "static")
    shutil.copy(ROOT / "openapi.yaml", folder)
    (folder / "taskmanager.py").write_text("secret")
    (tmp_path / "secret.js").write_text("secret")
    monkeypatch.setattr(taskmanager, "HERE", folder)
    return folder


# --- types

@pytest.mark.parametrize("file", [*FILES, "openapi.yaml", "asyncapi.yaml"], ids=str)
def test_a_file_has_its_type_and_is_whole(api, file):
    answer = http("GET", f"{api}/{address(file)}")
    assert answer.status == 200 and answer.body == (ROOT / file).read_bytes()
    assert answer.headers["Content-Type"] == TYPES[os.path.splitext(file)[1]]


def test_a_type_is_ours_whatever_the_system_says(api, monkeypatch):
    """Windows asks its registry, and other programs write text/plain there for `.js`: no script runs then."""
    mimetypes.init()
    for suffix in (".js", ".css", ".svg", ".html"):
        monkeypatch.setitem(mimetypes.types_map, suffix, "application/x-other")
        monkeypatch.setitem(mimetypes._db.types_map[True], suffix, "application/x-other")
    assert mimetypes.guess_type("page.js")[0] == "application/x-other"
    for path in ("", "swagger", "static/page.js", "static/page.css", "static/icon.svg"):
        assert "x-other" not in http("GET", f"{api}/{path}").headers["Content-Type"]


# --- what has changed

def test_a_browser_that_has_a_file_is_told_so(api):
    for path in ("", "swagger", "static/page.js", "swagger/swagger-ui-bundle.js", "openapi.yaml"):
        answer = http("GET", f"{api}/{path}")
        tag = answer.headers["ETag"]
        assert re.fullmatch('"[0-9a-f]+"', tag)
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):     # W/: a proxy compresses
            same = http("GET", f"{api}/{path}", If_None_Match=known)
            assert (same.status, same.body, same.headers["ETag"]) == (304, b"", tag)
        assert http("GET", f"{api}/{path}", If_None_Match='"other"').status == 200
        head = http("HEAD", f"{api}/{path}")
        assert (head.status, head.body, head.headers["ETag"]) == (200, b"", tag)
        assert head.headers["Content-Type"] == answer.headers["Content-Type"]
        assert head.headers["Content-Length"] == str(len(answer.body))


def test_an_older_file_after_a_rollback_is_sent(api, installed):
    """The newer version was served first; what it is rolled back to has an older time, or the same one."""
    script = installed / "static" / "page.js"
    new = http("GET", f"{api}/static/page.js")
    for text in ("// old, and short", "// rolled, as long", "// other, as long!"):
        script.write_text(text)
        os.utime(script, (1_500_000_000, 1_500_000_000))
        answer = http("GET", f"{api}/static/page.js", If_None_Match=new.headers["ETag"],
                      If_Modified_Since=new.headers["Last-Modified"] or "Fri, 01 Jan 2100 00:00:00 GMT")
        assert answer.status == 200 and answer.body.decode() == text
        new = answer


def test_a_file_with_another_time_is_the_same(api, installed):
    """Two machines behind one name, each with the files unpacked at another time."""
    tag = http("GET", f"{api}/static/page.js").headers["ETag"]
    os.utime(installed / "static" / "page.js", (1, 1))
    assert http("GET", f"{api}/static/page.js", If_None_Match=tag).status == 304


# --- nothing else

OUTSIDE = [
    "/static/../taskmanager.py", "/static/..%2ftaskmanager.py", "/static/%2e%2e/taskmanager.py",
    "/static/%2e%2e%2ftaskmanager.py", "/static/%252e%252e%252ftaskmanager.py",
    "/static/..%5ctaskmanager.py", "/static/..\\taskmanager.py", "/swagger/..%2f..%2ftaskmanager.py",
    "/swagger/..%5c..%5ctaskmanager.py", "/swagger/%2e%2e%2fpage.js", "/static//etc/passwd",
    "/static/%2fetc%2fpasswd", "/static///etc/passwd", "/static/C:taskmanager.py",
    "/static/C:%5cwindows%5cwin.ini", "/static/page.js%00", "/static/page.js%00.png", "/static/%00",
    "/static/.", "/static/..", "/static/%2e", "/static/", "/static", "/static/swagger",
    "/static/swagger/index.html", "/static/swagger%2findex.html", "/static/%c0%ae%c0%ae%c0%aftaskmanager.py",
    "/static/%ff", "/static/page.js%20", "/static/page.js.", "/static/page.js::$DATA", "/static/page.js/",
    "/static/*", "/static/~root", "/taskmanager.py", "/schema.sql", "/.env", "/tasks.db",
    "/static/" + "x" * 5000, "/static/" + "%2e%2e%2f" * 500]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path[:40])
def test_nothing_but_the_files_of_the_folder_is_served(api, path):
    answer = raw(api, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert re.match(rb"HTTP/1\.1 40[04] ", answer)
    assert b"application/problem+json" in answer


def test_links_lead_where_the_operator_put_them_and_nowhere_else(api, installed, tmp_path):
    """Some installers make every file a link into a store of theirs, and some copies cut links off."""
    (installed / "static" / "ours.js").symlink_to(installed / "static" / "page.js")
    (installed / "static" / "gone.js").symlink_to(installed / "nothing")
    (installed / "static" / "loop.js").symlink_to("loop.js")
    (installed / "static" / "up").symlink_to(tmp_path)
    assert http("GET", f"{api}/static/ours.js").body == (ROOT / "static" / "page.js").read_bytes()
    for path in ("gone.js", "loop.js", "up", "up%2fsecret.js", "up/secret.js"):
        is_problem(http("GET", f"{api}/static/{path}"), 404)


def test_a_file_that_is_new_or_gone_is_so_at_once(api, installed):
    """An upgrade in place while the service runs."""
    is_problem(http("GET", f"{api}/static/new.js"), 404)
    (installed / "static" / "new.js").write_text("1")
    assert http("GET", f"{api}/static/new.js").body == b"1"
    shutil.rmtree(installed / "static")
    for path in ("static/new.js", "", "swagger"):
        is_problem(http("GET", f"{api}/{path}"), 404)


# --- in any browser of 2022, under any prefix

def test_the_style_sheet_has_nothing_newer_than_its_browsers():
    """Chrome 92, Firefox 98 and Safari 15.4 drop a whole rule when they do not know its selector."""
    css = (ROOT / "static" / "page.css").read_text(encoding="utf-8")
    newer = r":has\(|:dir\(|@(layer|container|scope|property)|color-mix|light-dark|oklch|subgrid|\n\s*&"
    assert not re.search(newer, css)
    after_what_all_know = re.findall(r"(\S+: calc\(100)vh([^;]+;) \1dvh\2", css)
    assert css.count("dvh") == len(after_what_all_know) > 0


@pytest.mark.parametrize("file", OURS, ids=str)
def test_every_address_in_a_file_is_relative(file):
    text = (ROOT / file).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")      # a name
    text = re.sub(r"^ *//.*?$|/\*.*?\*/|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"""["'`(]/[a-z]|https?://""", text)
