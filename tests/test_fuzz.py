"""A short form of `make fuzz`: what no client should send, at both doors."""

import os
import random

import pytest

from chaos import fuzz

SEED = int(os.environ.get("SEED") or 15)




def test_a_fuzz_of_the_api_finds_nothing(start, empty_database):
    door = fuzz.HttpDoor(start, empty_database)
    try:
        door.run(SEED, range(400))
        assert door.answers > 400
    finally:
        door.close()


@pytest.mark.parametrize("queue", ["transient", "quorum"])
def test_a_fuzz_of_the_messages_finds_nothing(start, empty_database, broker, queue):
    door = fuzz.AmqpDoor(start, empty_database, broker, queue)
    try:
        door.run(SEED, range(50))
        assert door.kept > 5 and door.rejected > 5
    finally:
        door.close()


def test_a_case_is_made_from_seed_and_number_alone():
    for number in range(50):
        first, second = (fuzz.http_case(random.Random(f"http 1 {number}")) for _ in range(2))
        assert first == second


def test_what_fails_is_made_smaller():
    assert fuzz.shrink(b"a" * 50 + b"xy" + b"b" * 50, lambda data: b"xy" in data) == b"xy"


def test_answers_are_split_as_they_came():
    two = (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
           b"HTTP/1.1 204 No Content\r\n\r\n")
    assert [(status, body) for status, _, body in fuzz.split_answers(two)] == [(200, b"ok"), (204, b"")]
    with pytest.raises(fuzz.Wrong, match="no answer"):
        fuzz.split_answers(b"hello")
