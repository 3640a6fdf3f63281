"""What the project is built from and runs in: the tests' runner, packages, vendored files, containers."""

import hashlib
import json
import re
import subprocess
import sys

import pytest

import servers
from helpers import ROOT

# The runner of the tests


def test_the_runner_shares_out_the_tests_and_fails_when_one_of_them_does(tmp_path):
    # A failure in one process of several must not get lost in the sum of the others.
    (tmp_path / "test_some.py").write_text("""
import pytest

@pytest.mark.parametrize("number", range(20))
def test_number(number):
    assert number != 7

@pytest.mark.skip("why not")
def test_left_out():
    pass
""")
    done = subprocess.run(
        [sys.executable, ROOT / "tests/run", f"--rootdir={tmp_path}", tmp_path / "test_some.py"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "assert 7 != 7" in done.stdout and "why not" in done.stdout
    assert done.stdout.splitlines()[-1] == "19 passed, 1 failed, 1 skipped"


def test_the_tests_take_the_postgresql_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTGRES_BIN", str(tmp_path))
    with pytest.raises(RuntimeError, match="expected a folder with the programs initdb and postgres"):
        servers.postgres_binaries()     # and not another PostgreSQL, nor a skipped test
    for program in ("initdb", "postgres"):
        (tmp_path / program).touch()
    assert servers.postgres_binaries() == tmp_path


# Packages

REQUIREMENTS = [
    "requirements-sqlite.txt",
    "requirements.txt",
    "requirements-test.txt",
    "tests/browser/requirements.txt",
]


def pins(file):
    """name: (version, hashes) of the packages in a requirements file; a line in any other form fails."""
    text = re.sub(r"\\\n", " ", (ROOT / file).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "-r "))]
    found = [
        re.fullmatch(r"([a-z0-9-]+)==(\S+)( ; [^;]*?)?((?: +--hash=sha256:[0-9a-f]{64})+)", line)
        for line in lines
    ]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match[1]: (match[2], re.findall("sha256:(.*?)(?: |$)", match[4])) for match in found}


@pytest.mark.parametrize("file", REQUIREMENTS)
def test_every_package_is_pinned_to_files_by_their_hashes(file):
    # A release that somebody else took over, or a mirror that serves something else, is refused by pip.
    found = pins(file)
    assert found
    for name, (_, hashes) in found.items():
        assert len(hashes) == len(set(hashes)), name
        assert len(hashes) >= (1 if name == "tomli" else 2), name


def test_the_driver_can_be_installed_on_every_machine():
    # Where a hash is missing, `make run` fails on an ARM machine, on Alpine or on a Mac, and nowhere else:
    # eleven wheels for each Python, and the source.
    _, hashes = pins("requirements.txt")["psycopg2-binary"]
    assert len(hashes) >= 4 * 11 + 1


def test_sqlite_needs_the_two_packages_in_python_alone():
    assert list(pins("requirements-sqlite.txt")) == ["bottle", "waitress"]
    assert "-r requirements-sqlite.txt\n" in (ROOT / "requirements.txt").read_text()
    assert "-r requirements.txt\n" in (ROOT / "requirements-test.txt").read_text()


def test_no_package_is_installed_without_its_hash():
    for file in ("Makefile", "Dockerfile"):
        commands = re.findall(r"(?:pip|\$\(PIP\)) install .*", (ROOT / file).read_text())
        assert commands, (file, commands)
        assert all("--require-hashes" in command for command in commands), (file, commands)


def test_the_other_versions_of_postgresql_are_pinned_to_files_by_their_hashes():
    wanted = json.loads((ROOT / "tests/versions/package.json").read_text())["dependencies"]
    locked = json.loads((ROOT / "tests/versions/package-lock.json").read_text())["packages"]
    assert locked.pop("")["dependencies"] == wanted and len(locked) == len(wanted)
    for name, package in wanted.items():
        found = locked[f"node_modules/{name}"]
        assert f"npm:{found['name']}@{found['version']}" == package
        assert found["integrity"].startswith("sha512-")
    assert "npm ci " in (ROOT / "tests/versions/run").read_text()       # installs what is locked, or nothing


# The vendored Swagger UI

def test_the_vendored_files_are_those_of_the_release():
    folder = ROOT / "static/swagger"
    readme = (folder / "README.md").read_text()
    checksums = {
        name: checksum for checksum, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", readme, re.MULTILINE)
    }
    assert checksums == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in checksums}
    ours = {"README.md", "index.html", "ours.css", "swagger-initializer.js"}
    assert {file.name for file in folder.iterdir()} == checksums.keys() | ours
    [version] = re.findall(r"swagger-ui-dist ([\d.]+)\*\*", readme)
    assert json.dumps(version) in (folder / "swagger-ui-bundle.js").read_text(encoding="utf-8")


# Containers, as far as the texts say; what an engine makes of them, CI looks at

COMPOSE = (ROOT / "docker-compose.yml").read_text()


def blocks(text, indent):
    """name: text of the blocks that begin at this indentation."""
    parts = re.split(rf"^ {{{indent}}}([\w-]+):(?=\s)", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_container_of_compose_has_few_rights():
    common = blocks(COMPOSE, 0)
    assert "<<: *service" in common["x-app"]
    for line in (
        "cap_drop: [ALL]",
        "security_opt: [no-new-privileges:true]",
        "read_only: true",
        'tmpfs: ["/tmp:size=',
    ):
        assert COMPOSE.count(line) == common["x-service"].count(line) == 1, line
    services = blocks(common["services"], 2)
    assert list(services) == ["postgres", "rabbitmq", "api", "worker"]
    for name, text in services.items():
        assert re.search(r"^    <<: \*(service|app)$", text, re.MULTILINE), name
        assert re.search(r"^    mem_limit: ", text, re.MULTILINE), name
        assert not re.search("cap_add|privileged|devices:|network_mode|pid:", text), name
    # The image's own user is a number; postgres and rabbitmq would else start as root and need capabilities.
    assert re.search(r"^USER \d+:\d+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert [re.findall("^    user: (.*?)(?:  #.*)?$", services[name], re.MULTILINE) for name in services] == [
        ["postgres"],
        ["rabbitmq"],
        [],
        [],
    ]


def test_continuous_integration_installs_the_servers_without_starting_them():
    # Debian starts what it installs: its RabbitMQ would find its port taken by the container's, and fail.
    jobs = blocks((ROOT / ".github/workflows/ci.yml").read_text().partition("\njobs:")[2], 2)
    tested = [name for name, text in jobs.items() if "- run: make test" in text]
    assert tested == ["own-servers", "services"]
    for name in tested:
        assert jobs[name].index("- run: sudo python3 tests/servers.py") < jobs[name].index("- run: make test")
        assert "apt-get" not in jobs[name]


def test_every_variable_of_compose_is_in_env_example():
    names = set(re.findall(r"\$\{(\w+)", COMPOSE))
    assert names
    assert names <= set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


# Other WSGI servers

def test_readmes_application_is_one_for_any_wsgi_server(sqlite_database, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"### Another WSGI server\n.*?```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "application.py").write_text(code)
    use = """
import wsgiref.util, application
environ = {"PATH_INFO": "/tasks", "REQUEST_METHOD": "POST", "HTTP_HOST": "localhost:8000"}
wsgiref.util.setup_testing_defaults(environ)
print(b"".join(application.application(environ, lambda status, *_: print(status))).decode())
"""
    done = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "DATABASE_URL": sqlite_database})
    assert (done.stdout, done.returncode) == ('201 Created\n{"id": 1}\n', 0), done.stderr
