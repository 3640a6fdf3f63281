"""What a task may be: the validation that HTTP and RabbitMQ share."""

import json
from datetime import datetime

import pytest

from taskmanager import (
    MAX_BODY,
    MAX_DEPTH,
    Invalid,
    NewTask,
    TooLarge,
    encode_json,
    is_json,
    new_task,
    new_tasks,
    parse_task,
)


def nested(levels):
    return b'{"payload": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    "body",
    [b"", b" \r\n", b"{}", b'{"status": "New"}'],
    ids=["nothing", "white space", "empty object", "the document's message"],
)
def test_a_body_that_says_nothing_is_a_bare_task(body):
    assert parse_task(body) == NewTask()


@pytest.mark.parametrize(
    "payload",
    [
        None,
        True,
        0,
        -1.5,
        "",
        "naïve ☃ 𝄞",
        [],
        {},
        [[[1]]],
        {"a": {"b": [1, "two", None]}},
        "\\u0000",
        "a\\\\u0000",
        10**300,
        {"": 0},
    ],
    ids=repr,
)
def test_any_json_is_a_payload(payload):
    task = parse_task(json.dumps({"payload": payload}).encode())
    assert json.loads(task.payload) == payload


def test_all_fields_of_a_task_are_read():
    task = parse_task(
        b'{"payload": {"a": 1}, "priority": -5, "run_at": "2999-01-02T03:04:05+02:00",'
        b' "max_attempts": 7, "timeout": 0.5}'
    )
    assert task == NewTask(payload='{"a": 1}', priority=-5, run_at=datetime(2999, 1, 2, 1, 4, 5),
                           max_attempts=7, timeout=0.5)


def test_a_whole_number_may_be_written_with_a_point():
    task = parse_task(b'{"priority": 3.0, "max_attempts": 1e1}')
    assert (task.priority, task.max_attempts) == (3, 10)


@pytest.mark.parametrize(
    "text",
    [
        "2999-01-31T12:00:00",
        "2999-01-31T12:00:00Z",
        "2999-01-31t12:00:00z",
        "2999-01-31T14:00:00+02:00",
        "2999-01-31T12:00:00.000000000Z",
    ],
)
def test_run_at_is_converted_to_utc(text):
    assert new_task({"run_at": text}).run_at == datetime(2999, 1, 31, 12)


def test_delay_is_counted_by_the_database():
    task = new_task({"delay": 60})
    assert (task.run_at, task.delay) == (None, 60)


@pytest.mark.parametrize("body, said", [
    (b"nonsense", "not JSON"),
    (b"[]", "expected an object"),
    (b'"New"', "expected an object"),
    (b"null", "expected an object"),
    (b'{"payload": NaN}', "not JSON: NaN"),
    (b'{"payload": -Infinity}', "not JSON: -Infinity"),
    (b'{"payload": 1e999}', "/payload"),
    (b'{"payload": "a\\u0000b"}', "/payload: expected text without the character NUL"),
    (b'{"payload": {"a\\\\\\u0000": 1}}', "/payload: expected text without the character NUL"),
    (b'{"payload": "\\ud800"}', "/payload: expected text without lone surrogates"),
    (b'{"payload": "\xff"}', "not UTF-8"),
    (b"\xef\xbb\xbf{}", "not JSON"),
    ("{}".encode("utf-16"), "not UTF-8"),
    (b'{"payload": ' + b"9" * 5000 + b"}", "not JSON"),
    (nested(MAX_DEPTH + 1), "expected at most 100 levels of nesting"),
    (nested(100_000), "expected at most 100 levels of nesting"),
    (b"[" * 1_000_000, "expected at most 100 levels of nesting"),
    (b'{"status": "Completed"}', '/status: expected "New"'),
    (b'{"status": null}', "/status"),
    (b'{"id": 7}', "/id: unknown; expected kind"),
    (b'{"a/b~\\ud800": 7}', "unknown; expected"),
    (b'{"priority": "1"}', "/priority: expected a whole number from -32768 to 32767"),
    (b'{"priority": true}', "/priority"),
    (b'{"priority": 1.5}', "/priority"),
    (b'{"priority": 32768}', "/priority"),
    (b'{"priority": 1e400}', "/priority"),
    (b'{"priority": null}', "/priority"),
    (b'{"max_attempts": 0}', "/max_attempts: expected a whole number from 1 to 1000"),
    (b'{"timeout": 0}', "/timeout: expected a number of seconds from 0.001"),
    (b'{"timeout": "5s"}', "/timeout"),
    (b'{"timeout": false}', "/timeout"),
    (b'{"delay": -1}', "/delay: expected a number of seconds from 0"),
    (b'{"delay": 1, "run_at": "2999-01-01T00:00:00Z"}', "/delay: expected run_at or delay, not both"),
    (b'{"timezone": "Europe/Berlin"}', "/timezone: expected a cron expression as repeat"),
    (b'{"timezone": "UTC", "repeat": 60}', "/timezone: expected a cron expression as repeat"),
    (b'{"timezone": null, "repeat": null}', "/timezone: expected a cron expression as repeat"),
    (b'{"timezone": "Europe/Atlantis", "repeat": "@daily"}', "/timezone: expected the name of a time zone"),
    (b'{"repeat": 0.5}', "/repeat: expected a cron expression"),
    (b'{"repeat": "sometimes"}', "/repeat: expected a cron expression"),
    (b'{"repeat": "0 0 30 2 *"}', "/repeat: expected a date that exists"),
    (b'{"kind": "Mail"}', "/kind: expected up to 63 lower-case letters"),
    (b'{"run_at": "tomorrow"}', '/run_at: expected a time such as "2030-01-31T12:00:00Z"'),
    (b'{"run_at": "2030-02-30T12:00:00Z"}', "/run_at"),
    (b'{"run_at": "2030-01-31"}', "/run_at"),
    (b'{"run_at": 1900000000}', "/run_at"),
    (b'{"run_at": "2030-01-31T12:00:0099999Z"}', "/run_at"),
    (b'{"run_at": "2030-01-31T12:00:00+00:99"}', "/run_at"),
    (b'{"priority": 1, "priority": 2}', "duplicate key"),
    (b'{"payload": [{"a": 1, "a": 1}]}', "duplicate key"),
    (b'{"run_at": "9999-12-31T23:59:59-23:59"}', "/run_at"),
    ('{"run_at": "２０３０-01-31T12:00:00Z"}'.encode(), "/run_at"),
    (b'{"priority": "high", "timeout": -1, "colour": 0}', "/priority: "),
], ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else None)
def test_what_is_wrong_is_named(body, said):
    with pytest.raises(Invalid) as error:
        parse_task(body)
    assert said in str(error.value)


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(Invalid) as error:
        parse_task(b'{"priority": "high", "timeout": -1, "colour": 0}')
    assert [each.where for each in error.value.errors] == ["/priority", "/timeout", "/colour"]


def test_a_time_zone_without_a_cron_expression_is_a_conflict_in_an_array_too():
    for parse in (lambda task: parse_task(json.dumps(task).encode()), lambda task: new_tasks([{}, task])):
        for task in ({"timezone": "UTC"}, {"timezone": "UTC", "repeat": 60, "delay": 1, "run_at": "2030"}):
            with pytest.raises(Invalid) as error:
                parse(task)
            codes = {each.where.rpartition("/")[2]: each.code for each in error.value.errors}
            assert codes["timezone"] == "conflicting-fields"
            assert codes.get("delay", "conflicting-fields") == codes["timezone"] and len(codes) in (1, 3)
        task = {"timezone": "UTC", "repeat": "0 0  * * *", "delay": 1, "kind": "mail"}
        parsed = parse(task)
        task = parsed[1] if isinstance(parsed, list) else parsed
        assert (task.kind, task.repeat, task.timezone) == ("mail", '"0 0 * * *"', "UTC")


def test_an_answer_to_nonsense_stays_short():
    with pytest.raises(Invalid) as error:
        parse_task(
            json.dumps(
                {"x" * 50_000 + str(n): n for n in range(9)} | {str(n): n for n in range(20_000)}
            ).encode()
        )
    assert len(error.value.errors) == 20 and len(str(error.value)) < 5_000


def test_a_payload_may_be_as_deep_as_the_limit():
    assert parse_task(nested(MAX_DEPTH)).payload == "[" * MAX_DEPTH + "]" * MAX_DEPTH
    brackets = b'"' + b"[" * 500 + b'"'     # which are text there
    assert parse_task(b'{"payload": ' + brackets + b"}").payload == brackets.decode()


def test_a_body_may_be_as_large_as_the_limit():
    frame = b'{"payload": ""}'
    text = "x" * (MAX_BODY - len(frame))
    assert parse_task(frame[:-2] + text.encode() + frame[-2:]).payload == f'"{text}"'
    with pytest.raises(TooLarge, match="expected at most 1048576"):
        parse_task(b" " * (MAX_BODY + 1))


@pytest.mark.parametrize("key", ["x" * 256, "a\nb", "a\0b"], ids=["long", "line", "NUL"])
def test_an_idempotency_key_is_short_and_printable(key):
    with pytest.raises(Invalid, match="Idempotency-Key"):
        parse_task(b"", key)


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), float("nan"), b"bytes"], ids=["set", "object", "NaN", "bytes"]
)
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(Invalid, match="can't be written as JSON"):
        encode_json(value)


def test_a_value_that_holds_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(Invalid):
        encode_json(value)


@pytest.mark.parametrize("content_type, expected", [
    ("application/json", True), ("Application/JSON; charset=utf-8", True), ("application/problem+json", True),
    ("application/vnd.api.v1+json ;q=1", True), ("text/json", False), ("application/json-seq", False),
    ("application/jsonp", False), ("application/+json", False), ("", False),
])
def test_a_content_type_says_json(content_type, expected):
    assert is_json(content_type) == expected
