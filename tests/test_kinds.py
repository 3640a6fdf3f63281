"""Kinds of tasks: what a client can reach with one and what not, and how a worker shares its slots out."""

import json
import os
import sys
import threading
import time

import pytest

import taskmanager
from helpers import QUICK, ROOT, create, eventually, finished, http, raising, sql
from taskmanager import BadSetting, Config, Invalid, NewTask, Worker, load_handlers, new_task

MODULE = '''
import os
from os.path import basename
from functools import partial, wraps
from json import dumps as imported

def default(task):
    return task.kind

def mail(task):
    return [task.kind, task.payload]

def _private(task): ...
def __dunder__(task): ...
def Upper(task): ...
def upperCase(task): ...
def \u043c\u0430\u0438l(task): ...
async def later(task): ...
class worker: ...
alias = os.system
part = partial(mail)
text = "text"

def decorate(function):
    @wraps(function)
    def decorated(task):
        return function(task)
    return decorated

@decorate
def wrapped(task):
    return "wrapped"
'''
# What a client may try to reach.
EVIL = [
    "", "os", "basename", "imported", "alias", "part", "text", "worker", "later", "partial",
    "_private", "__dunder__", "__init__", "__import__", "__class__", "__builtins__", "__getattr__",
    "Upper", "MAIL", "Mail", "upperCase", "\u043c\u0430\u0438l", "mai\u217c", "ma\u0131l", "mail\u200b",
    "ｍａｉｌ", "../mail", "./mail", "/mail", "mail/", "a/mail", "a\\mail", "..", ".", ".hidden", "mail.sh",
    "mail\n", " mail", "mail ", "mail\0", "mail;id", "$(id)", "{kind}", "{}", "%2e%2e", "-rf", "--help",
    "x" * 64, "mail.__globals__", "mail:2", "*",
]
NO_KIND = [kind for kind in EVIL if not taskmanager.KIND.fullmatch(kind)]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(text): the name of a new module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(text, name="own_kinds"):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path):
    """A folder of programs, and what else may stand there."""
    folder = tmp_path / "programs"
    (folder / "sub").mkdir(parents=True)

    def write(name, mode=0o755, text='#!/bin/sh\necho "\\"$TASK_KIND $*\\""\n'):
        (folder / name).write_text(text)
        (folder / name).chmod(mode)

    for name in ("default", "mail", "send-mail", "Upper", ".hidden", "mail.sh", "_x", "-rf",
                 "\u043c\u0430\u0438l", "sub/inner", "../outside"):
        write(name)
    write("plain", 0o644)
    (folder / "to-plain").symlink_to("plain")
    (folder / "out").symlink_to("../outside")
    (folder / "sh").symlink_to("/bin/sh")
    (folder / "far").symlink_to("sub/../../outside")
    (folder / "dangling").symlink_to("nothing")
    (folder / "loop").symlink_to("loop")
    (folder / "within").symlink_to("mail")
    (folder / "inner").symlink_to("sub/inner")
    (folder / "dir").symlink_to("sub")
    os.mkfifo(folder / "fifo", 0o755)
    return folder


PROGRAMS = ["default", "inner", "mail", "send-mail", "within"]


# What a handler of each form finds

def test_of_a_module_a_kind_reaches_its_own_public_functions_alone(module):
    handlers = load_handlers(Config(handler=f"{module(MODULE)}:{{kind}}"))
    assert sorted(handlers) == ["decorate", "default", "mail", "wrapped"]


def test_of_a_module_with_all_a_kind_reaches_those_of_it(module):
    text = MODULE + "\n__all__ = ['mail', 'basename', 'alias', 'worker', '_private', 'nothing']\n"
    assert list(load_handlers(Config(handler=f"{module(text)}:{{kind}}"))) == ["mail"]


def test_of_a_folder_a_kind_reaches_its_own_executable_files_alone(folder):
    assert list(load_handlers(Config(handler=f"exec:{folder}/{{kind}}"))) == PROGRAMS


def test_a_folder_is_found_by_a_relative_path_and_under_a_link(folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for path in ("programs", "./programs", "link", "programs/sub/.."):
        assert list(load_handlers(Config(handler=f"exec:{path}/{{kind}}"))) == PROGRAMS
    monkeypatch.chdir(folder)
    assert list(load_handlers(Config(handler="exec:./{kind}"))) == PROGRAMS


def test_an_address_is_that_of_the_kinds_which_are_named(receiver):
    handler = f"{receiver.url}/work/{{kind}}?for={{kind}}"
    assert list(load_handlers(Config(handler=handler))) == ["default"]
    handlers = load_handlers(Config(handler=handler, kinds="mail,report:2"))
    assert {kind: each.target for kind, each in handlers.items()} == {
        "mail": "/work/mail?for=mail", "report": "/work/report?for=report"}


@pytest.mark.parametrize("handler", [
    "{kind}", "{kind}:work", "own_kinds.{kind}", "own_kinds:{kind}.x", "own_kinds:a{kind}",
    "own_kinds:{kind}{kind}", "no_such_module:{kind}", "own_kinds:{Kind}",
    "exec:{kind}", "exec:/bin{kind}", "exec:/bin/sh {kind}", "exec:/bin/{kind} {kind}", "exec:/{kind}/sh",
    "exec:/bin/x{kind}",
    "exec:/bin/{kind}x", "exec:/bin/{kind}/{kind}", "exec:/no/such/folder/{kind}", "exec:/dev/null/{kind}",
    "https://{kind}/work", "https://{kind}.example/work", "https://a.example:{kind}/",
    "https://{kind}@a.example/", "https://a:{kind}@a.example/", "{kind}://a.example/",
])
def test_a_handler_that_has_the_kind_elsewhere_stops_the_start(module, handler):
    module(MODULE)
    with pytest.raises(BadSetting, match="HANDLER="):
        load_handlers(Config(handler=handler, kinds="default"))


def test_a_module_and_a_folder_without_any_stop_the_start(module, tmp_path):
    for handler in (f"{module('import os')}:{{kind}}", f"exec:{tmp_path}/{{kind}}"):
        with pytest.raises(BadSetting, match="expected"):
            load_handlers(Config(handler=handler))


# KINDS

@pytest.mark.parametrize("text", [
    "", ",", "mail,", ",mail", "mail,mail", "mail:1,mail:2", "mail:", "mail:0", "mail:-1", "mail:x",
    "mail:1.5",
    "mail:1:2", "mail:10000", "Mail", "_mail", "mail;report", "mail report", "../mail", "\u043c", ":2",
    "mail:\u0662", "x" * 64,
])
def test_kinds_that_can_not_be_used_stop_the_start(text):
    if text:
        with pytest.raises(BadSetting, match="KINDS=.*names of kinds"):
            Config.from_env({"KINDS": text})
    else:
        assert Config.from_env({"KINDS": text}).kinds is None


def test_kinds_are_named_with_their_slots():
    text = " default, mail:2,send-mail , r_1:1"
    assert Config.from_env({"KINDS": text}).kinds == "default,mail:2,send-mail,r_1:1"


def test_a_kind_that_has_no_handler_stops_the_start(module, folder):
    for handler in (f"{module(MODULE)}:{{kind}}", f"exec:{folder}/{{kind}}"):
        with pytest.raises(BadSetting, match="KINDS='mail,x,y'.* x, y; .*among.*default.*mail"):
            load_handlers(Config(handler=handler, kinds="mail,x,y"))
        assert list(load_handlers(Config(handler=handler, kinds="mail,default"))) == ["mail", "default"]


def test_more_slots_than_a_worker_may_have_stop_the_start():
    with pytest.raises(BadSetting, match="KINDS='a:600,b:393'.*CONCURRENCY=8.*1001 slots"):
        load_handlers(Config(kinds="a:600,b:393"))
    assert list(load_handlers(Config(kinds="a:600,b:392"))) == ["a", "b"]


@pytest.mark.parametrize("script", ["worker.py", "taskmanager.py"])
def test_the_programs_end_with_a_line_that_says_why(start, sqlite_database, script):
    program = start(
        script, DATABASE_URL=sqlite_database, HANDLER="tests.handlers:{kind}", KINDS="echo,nothing")
    assert program.process.wait(20) == 1
    assert program.log().splitlines()[-1] == (
        f"{script}: KINDS='echo,nothing' can't be used: HANDLER has nothing for nothing; "
        "expected kinds among echo, cores, heaps, obey")


def test_a_start_says_which_kinds_it_takes_and_with_how_many_slots(start, sqlite_database):
    program = start("worker.py", DATABASE_URL=sqlite_database, HANDLER="tests.handlers:{kind}", CONCURRENCY=3,
                    KINDS="obey,echo:2")
    program.logged(r"started worker handler='tests.handlers:\{kind\}' kinds=obey,echo:2 slots=5\n")


# What runs

def test_a_function_knows_its_kind(store, run, module):
    run(f"{module(MODULE)}:{{kind}}")
    assert json.loads(finished(store, create(store, kind="mail", payload=1)).result) == ["mail", 1]
    assert json.loads(finished(store, create(store)).result) == "default"


def test_a_program_knows_its_kind(store, run, folder):
    run(f"exec:{folder}/{{kind}} --to 'a b'")
    for kind in PROGRAMS:
        assert json.loads(finished(store, create(store, kind=kind)).result) == f"{kind} --to a b"


def test_an_address_is_told_the_kind(store, run, receiver):
    other = run(f"{receiver.url}/work/{{kind}}", {"kinds": "mail,default"})
    finished(store, other)
    id = create(store, kind="mail", payload=[1])
    finished(store, id)
    assert [(path, json.loads(body)) for path, _, body in receiver.requests] == [
        ("/work/default", {"id": other, "attempt": 1, "kind": "default", "payload": None}),
        ("/work/mail", {"id": id, "attempt": 1, "kind": "mail", "payload": [1]})]


def test_one_handler_may_run_several_kinds(store, work):
    work(lambda task: task.kind, kinds="mail,report")
    assert finished(store, create(store, kind="mail")).result == '"mail"'
    assert finished(store, create(store, kind="report")).result == '"report"'


def test_an_application_may_give_a_handler_for_each_kind(store, work):
    work({"mail": lambda task: 1, "report": lambda task: 2})
    assert finished(store, create(store, kind="mail")).result == "1"
    assert finished(store, create(store, kind="report")).result == "2"
    with pytest.raises(BadSetting, match="other"):
        Worker(store, Config(kinds="mail,other"), {"mail": len})


def test_a_task_of_a_kind_that_nobody_takes_waits(store, run, module):
    run(f"{module(MODULE)}:{{kind}}")
    ids = [create(store, kind=kind) for kind in EVIL if kind not in NO_KIND]
    assert len(ids) > 5
    for _ in range(3):
        finished(store, create(store))
    assert {store.read(id).status for id in ids} == {"New"}


def test_a_program_is_reached_by_no_other_name(store, run, folder):
    run(f"exec:{folder}/{{kind}}")
    kinds = ("plain", "to-plain", "out", "sh", "far", "dangling", "loop", "dir", "sub", "fifo", "x")
    ids = [create(store, kind=kind) for kind in kinds]
    finished(store, create(store))
    assert {store.read(id).status for id in ids} == {"New"}


@pytest.mark.parametrize("kind", [*NO_KIND, None, 1, True, ["mail"], {"mail": 1}], ids=ascii)
def test_what_is_no_kind_is_refused_at_creation(kind):
    with pytest.raises(Invalid, match="kind"):
        new_task({"kind": kind})


def test_what_is_no_kind_is_refused_by_the_table(store):
    for kind in NO_KIND:
        if "\0" in kind:
            continue
        with pytest.raises(Invalid):
            sql(store, "insert into tasks (kind) values (%(kind)s)", kind=kind)


def test_a_program_that_is_gone_fails_its_tasks_and_no_other(store, run, folder):
    run(f"exec:{folder}/{{kind}}")
    (folder / "mail").unlink()
    row = finished(store, create(store, kind="mail", max_attempts=1))
    assert row.status == "Failed" and row.error.startswith("FileNotFoundError")
    assert finished(store, create(store)).status == "Completed"


def test_without_a_handler_only_the_default_kind_is_completed(store):
    other, mine = create(store, kind="mail"), create(store)
    worker = Worker(store, Config(**QUICK))
    worker.start()
    assert finished(store, mine).status == "Completed"
    worker.stop()
    assert store.read(other).status == "New"


def test_without_a_handler_all_named_kinds_are_completed(store):
    ids = store.create([NewTask(kind=kind) for kind in ("mail", "report", "default") for _ in range(600)])
    worker = Worker(store, Config(kinds="mail:1,report,default", **QUICK))
    worker.start()
    for id in ids[::100] + ids[-1:]:
        assert finished(store, id).status == "Completed"
    worker.stop()


# Slots and turns

class Gate:
    """A handler that notes what runs at the same time, and goes on when it is told to."""

    def __init__(self):
        self.lock, self.running, self.most, self.began = threading.Lock(), [], {}, []
        self.open = threading.Event()

    def __call__(self, task):
        with self.lock:
            self.running.append(task.kind)
            self.began.append((task.kind, task.id, list(self.running)))
            for kind in set(self.running):
                self.most[kind] = max(self.most.get(kind, 0), self.running.count(kind))
            self.most["all"] = max(self.most.get("all", 0), len(self.running))
        self.open.wait(20)
        with self.lock:
            self.running.remove(task.kind)


def test_kinds_have_their_own_slots_or_share_the_others(store, work):
    gate = Gate()
    kinds = ("default", "news", "mail", "report")
    ids = store.create([NewTask(kind=kind) for kind in kinds for _ in range(6)])
    worker = work(gate, kinds="default,news,mail:2,report:1", concurrency=3)
    eventually(lambda: len(gate.running) == worker.slots == 6)
    time.sleep(0.3)
    assert len(gate.running) == 6
    gate.open.set()
    for id in ids:
        finished(store, id)
    assert gate.most["mail"] == 2 and gate.most["report"] == 1
    assert gate.most["all"] == 6
    assert max(sum(kind in ("default", "news") for kind in running) for *_, running in gate.began) == 3


def test_without_shared_slots_only_kinds_with_their_own_run(store, work):
    work(lambda task: None, kinds="default,mail:1", concurrency=0)
    ids = create(store), create(store, kind="mail")
    assert finished(store, ids[1]).status == "Completed"
    assert store.read(ids[0]).status == "New"


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_no_backlog_of_one_kind_keeps_another_waiting(store, work, concurrency):
    """However slow the machine: few tasks of the backlog begin after the other one was created."""
    began, lock = [], threading.Lock()

    def note(task):
        with lock:
            began.append(task.kind)
        time.sleep(0.003)

    store.create([NewTask(kind="flood")] * 6000)
    work(note, kinds="flood,other,third", concurrency=concurrency, poll_seconds=0.1)
    eventually(lambda: len(began) > 20)
    for kind in ("other", "third") * 3:
        with lock:
            before = len(began)
        id = create(store, kind=kind)
        row = finished(store, id)
        assert row.status == "Completed"
        where = began.index(kind, before) - before
        assert began[-1] == "flood" or len(began) < 6000, "the backlog was over before the test was"
        assert where < 1500
    assert began.count("flood") < 6000


def test_kinds_with_a_backlog_take_turns(store, work, monkeypatch):
    monkeypatch.setattr(taskmanager, "CLAIM_AHEAD_SECONDS", 0)      # so one task is claimed at a time
    began, lock = [], threading.Lock()

    def note(task):
        with lock:
            began.append(task.kind)
    kinds = ("a", "b", "c")
    ids = store.create([NewTask(kind=kind) for kind in kinds for _ in range(40)])
    work(note, kinds="a,b,c", concurrency=1)
    for id in ids:
        finished(store, id)
    assert began == list(kinds) * 40


def test_only_kinds_with_ready_tasks_are_claimed_however_many_there_are(store, monkeypatch):
    claims, looks = [], []
    claim, ready_kinds = store.claim, store.ready_kinds

    def count(limit, lease, worker=None, busy=0.0, single=False, kind="default"):
        claims.append(kind)
        return claim(limit, lease, worker, busy, single, kind)

    def look(kinds):
        looks.append(len(kinds))
        return ready_kinds(kinds)

    monkeypatch.setattr(store, "claim", count)
    monkeypatch.setattr(store, "ready_kinds", look)
    ids = store.create([NewTask(kind="full")] * 100)
    settings = {"poll_seconds": 3600, "lease_seconds": 86400, "concurrency": 1}
    kinds = ",".join(f"empty{n}" for n in range(40))
    worker = Worker(store, Config(kinds=f"full,{kinds},other", **settings), lambda task: None)
    worker.start()
    try:
        for id in ids:
            finished(store, id)
        assert set(claims) == {"full"} and looks == [42]
        finished(store, create(store, kind="other"))
        assert set(claims) == {"full", "other"} and set(looks) == {42}
    finally:
        worker.stop()


def test_a_kind_that_can_not_be_claimed_keeps_no_other_waiting(store, work, monkeypatch):
    claim = store.claim

    def fail(limit, lease, worker=None, busy=0.0, single=False, kind="default"):
        if kind == "broken":
            raise taskmanager.Locked("another transaction keeps the task locked")
        return claim(limit, lease, worker, busy, single, kind)

    monkeypatch.setattr(store, "claim", fail)
    work(lambda task: None, kinds="broken,a,b")
    for kind in ("a", "b", "a"):
        assert finished(store, create(store, kind=kind)).status == "Completed"


def test_when_the_kinds_with_ready_tasks_can_not_be_found_all_are_claimed_and_the_sweeps_go_on(
        store, work, monkeypatch, caplog):
    monkeypatch.setattr(store, "ready_kinds", raising(taskmanager.invalid("refused", "too strange")))
    work(lambda task: None, kinds="a,b")
    for kind in ("a", "b", "a"):
        assert finished(store, create(store, kind=kind, delay=0.01)).status == "Completed"
    assert caplog.text.count("could not find the kinds with ready tasks") == 1


# Tasks that are to run alone

def alone(store, id):
    sql(store, "update tasks set alone = true where id = %(id)s", id=id)


def test_a_task_that_is_to_run_alone_runs_beside_no_task_of_another_kind(store, work):
    """And its turn comes, although one task of the other kind ends only after the next has begun."""
    began, running, beside, done = [], set(), [], threading.Event()
    changed = threading.Condition()

    def note(task):
        with changed:
            began.append(task.id)
            running.add(task.id)
            if suspect in running:
                beside.append(set(running))
            changed.notify_all()
            before = len(began)
            changed.wait_for(lambda: len(began) > before, 0.5)      # several polls
        time.sleep(0.01)
        with changed:
            running.remove(task.id)
        if task.id == suspect:
            done.set()

    store.create([NewTask(kind="flood")] * 5000)
    suspect = create(store, kind="other")
    alone(store, suspect)
    work(note, kinds="flood,other", concurrency=3, poll_seconds=0.1)
    assert done.wait(20)
    assert beside == [{suspect}]
    assert store.list_tasks("New", limit=1) != []


def test_the_kinds_with_ready_tasks_and_those_whose_first_one_is_to_run_alone(store):
    front = create(store, kind="a", priority=1)
    alone(store, create(store, kind="a"))
    alone(store, create(store, kind="b"))
    create(store, kind="c", delay=60)
    sql(store, "insert into tasks (kind, attempt) values ('d', 2147483647)")       # gets no further attempt
    found = store.ready_kinds("abcd")
    assert {kind: is_alone for kind, (is_alone, _) in found.items()} == {"a": False, "b": True}
    assert all(0 <= seconds < 60 for _, seconds in found.values())
    sql(store, "delete from tasks where id = %(id)s", id=front)
    assert [is_alone for is_alone, _ in store.ready_kinds("ab").values()] == [True, True]


def test_a_backlog_that_is_to_run_alone_takes_turns_with_the_others(store, work):
    """After a worker died that held hundreds of tasks, each of them runs alone."""
    began, running, lock = [], set(), threading.Lock()

    def note(task):
        with lock:
            running.add(task.id)
            began.append((task.kind, len(running)))
        time.sleep(0.005)
        with lock:
            running.remove(task.id)

    ids = store.create([NewTask(kind=kind) for kind in ("alone", "flood") for _ in range(30)])
    sql(store, "update tasks set alone = true where kind = 'alone'")
    work(note, kinds="alone,flood", concurrency=3)
    for id in ids:
        finished(store, id)
    kinds = [kind for kind, _ in began]
    assert kinds.index("flood") < 5 and kinds[-5:] != ["flood"] * 5
    assert {together for kind, together in began if kind == "alone"} == {1}


def test_when_another_worker_took_the_task_that_is_to_run_alone_the_others_go_on(store, monkeypatch):
    worker = Worker(store, Config(kinds="b,a", poll_seconds=3600, lease_seconds=86400), lambda task: None)
    monkeypatch.setattr(store, "ready_kinds", lambda kinds: {"b": (True, 1.0), "a": (False, 1.0)})
    id = create(store, kind="a")
    worker.start()
    try:
        assert finished(store, id).status == "Completed"
    finally:
        worker.stop()


# Metrics

def test_metrics_tell_the_ready_tasks_of_the_kinds_that_are_named(store, serve):
    for kind in ("mail", "mail", "report", "default", "other"):
        create(store, kind=kind)
    create(store, kind="mail", delay=1000)
    store.claim(1, 30, kind="report")

    def ready(**settings):
        text = http("GET", f"{serve(store, **settings)}/metrics").body.decode()
        return [line for line in text.splitlines() if line.startswith("taskmanager_ready_tasks")]
    assert ready() == []
    assert ready(kinds="mail,report:2") == [
        'taskmanager_ready_tasks{kind="mail"} 2', 'taskmanager_ready_tasks{kind="report"} 0']


# The examples

def test_the_examples_are_one_service(store, run, tmp_path, monkeypatch):
    import examples.handlers
    monkeypatch.setattr(examples.handlers, "TARGET", tmp_path)
    run("examples.handlers:{kind}")

    def result(kind, payload, status="Completed"):
        row = finished(store, create(store, kind=kind, payload=payload))
        assert row.status == status
        return json.loads(row.result) if row.result else row.error

    csv = {"csv": "city,amount\nOslo,12.50\nRome,8\n", "group": "city", "sum": "amount"}
    assert result("summarize", csv)["rows"] == 2
    assert result("pack", {"folder": "swagger"})["archive"] == str(tmp_path / "archives/swagger.tar.gz")
    assert "is not a folder in" in result("pack", {"folder": "../tests"}, "Failed")
    mail = result("mail", {"to": "ann@example.com", "subject": "Hello", "text": "How are you?"})
    assert (tmp_path / "outbox" / mail["mail"]).is_file()
    assert "is not an address" in result("mail", {"to": "ann", "subject": "", "text": ""}, "Failed")


def test_the_example_of_a_program_runs_by_its_kind(store, run):
    run(f"exec:{ROOT}/examples/handlers/{{kind}}")
    row = finished(store, create(store, kind="checksum", payload="hello"))
    assert json.loads(row.result) == "5aa762ae383fbb727af3c7a36d4940a5b8c40a989452d2304fc958ff3f354e7a"


# What a worker does for tasks that repeat

def ended(store, id):
    """The repeating task as soon as it has ended and has its next time."""
    return eventually(lambda: (row := finished(store, id)).run_at and row)


def no_sweep(store, monkeypatch):
    monkeypatch.setattr(store, "unscheduled", lambda limit=500: [])


def test_an_outcome_is_written_with_the_next_time(store, work, monkeypatch):
    no_sweep(store, monkeypatch)
    work(lambda task: 1 / task.payload, max_attempts=1)
    done, failed, once = (
        create(store, payload=1, repeat=3600),
        create(store, payload=0, repeat="@daily", delay=0),
        create(store, payload=1),
    )
    assert ended(store, done).result == "1.0"
    assert ended(store, failed).error.startswith("ZeroDivisionError")
    assert ended(store, failed).run_at.endswith("T00:00:00")
    assert finished(store, once).run_at is None


def test_a_task_repeats_again_and_again(store, work):
    ran = []
    work(lambda task: ran.append(task.attempt))
    create(store, repeat=1)
    eventually(lambda: len(ran) == 3)
    assert ran == [1, 2, 3]


def test_without_a_handler_a_task_repeats_too(store, monkeypatch):
    no_sweep(store, monkeypatch)
    worker = Worker(store, Config(**QUICK))
    id = create(store, repeat=3600)
    worker.start()
    assert ended(store, id).status == "Completed"
    worker.stop()


def test_a_result_that_can_not_be_stored_ends_no_repetition(store, work, monkeypatch):
    no_sweep(store, monkeypatch)
    monkeypatch.setattr(store, "complete", raising(taskmanager.invalid("refused", "too strange")))
    work(lambda task: None)
    row = ended(store, create(store, repeat=3600))
    assert row.status == "Failed" and "can't be stored" in row.error


def test_what_ended_without_its_worker_gets_its_next_time(store, work):
    sql(store, "insert into tasks (status, repeat) values ('Completed', '60')")
    work(lambda task: None)
    assert ended(store, 1).status == "Completed"
