"""The pure parts: the spec, how long to wait, how many at once, where a sample ends."""

import json
import subprocess
import sys

import pytest

from branchwise.backends.openai import OpenAI
from branchwise.backends.remote.ending import Sample, ended
from branchwise.backends.remote.limiter import Limiter
from branchwise.backends.remote.reply import MalformedReply, parse
from branchwise.backends.remote.retry import LONGEST, asked_wait, pause


def test_the_key_is_not_written_out():
    spec = OpenAI(model="m", api_key="secret")
    assert "secret" not in spec.model_dump_json() + repr(spec)
    assert OpenAI.model_validate_json(spec.model_dump_json()).api_key is None


@pytest.mark.parametrize(
    "fields", [{"base_url": "localhost:80"}, {"base_url": "http://a", "base_urls": ("http://b",)}]
)
def test_wrong_addresses_are_refused(fields):
    with pytest.raises(ValueError, match="base_url"):
        OpenAI(model="m", **fields)


def test_addresses_come_from_the_environment_at_last(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://env/v1/")
    assert OpenAI(model="m").urls == ("http://env/v1",)
    assert OpenAI(model="m", base_urls=("http://a", "http://b/")).urls == ("http://a", "http://b")


def test_the_spec_does_not_import_the_sdk():
    code = "import branchwise.backends.openai, sys; print('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1m", 60.0),
        ("89", 89.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", LONGEST),
        ("3600", LONGEST),
        ("2h", LONGEST),
        ("9" * 400, None),
        ("1e400", None),
        ("inf", None),
        ("nan", None),
        ("-1", None),
        ("", None),
        ("soon", None),
        ("1_0", None),
    ],
)
def test_what_a_server_asks_to_wait(told, expected):
    assert asked_wait({"retry-after": told}, wall=40.0) == expected


def test_milliseconds_go_first():
    assert asked_wait({"retry-after-ms": "250", "retry-after": "9"}, wall=0.0) == 0.25
    assert asked_wait({}, wall=0.0) is None


def test_pauses_fill_a_doubling_window_up_to_a_bound():
    assert [pause(tries, None, 1.0) for tries in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert pause(1, None, 0.0) == 0.0
    assert pause(10_000, None, 1.0) == LONGEST / 2


def test_what_is_asked_is_waited_in_full_before_the_jitter():
    assert pause(1, 10.0, 0.0) == 10.0
    assert pause(2, 10.0, 1.0) == 11.0
    assert pause(10_000, 10.0, 1.0) == 20.0


def run(limiter, count):
    """So many successes while others wait for every slot."""
    for _ in range(count):
        while limiter.free:
            limiter.take()
        limiter.grow()
        limiter.release()


def test_the_limit_doubles_a_round_up_to_the_most():
    limiter = Limiter(100, start=10)
    run(limiter, 10)
    assert limiter.limit == 20
    run(limiter, 1000)
    assert limiter.limit == 100


def test_the_limit_stays_where_it_is_not_used():
    limiter = Limiter(100)
    for _ in range(50):
        limiter.take()
        limiter.grow()
        limiter.release()
    assert limiter.limit == 16


def test_a_round_is_cut_once_and_the_limit_ends_at_the_least():
    limiter = Limiter(100, start=64)
    rounds = [limiter.take() for _ in range(64)]
    for round_ in rounds:
        limiter.cut(round_)
        limiter.release()
    assert limiter.limit == 32
    for _ in range(20):
        limiter.cut(limiter.round)
    assert limiter.limit == 4
    run(limiter, 4)
    assert limiter.limit == pytest.approx(5, abs=0.1)


def test_a_dead_endpoint_gets_one_request_at_a_time():
    limiter = Limiter(100, start=32)
    limiter.cut(limiter.round, to_one=True)
    limiter.take()
    assert not limiter.free
    limiter.grow()
    assert limiter.limit == 2


def end(text, stop, matched=None, *, finish="stop", pieces=()):
    sample = Sample(
        text,
        tuple(piece.encode() for piece in pieces),
        tuple(range(len(pieces))),
        tuple(-1.0 for _ in pieces),
        finish,
    )
    found = ended(sample, stop, matched=matched, note=print)
    return found.text, found.finish, len(found.logprobs)


@pytest.mark.parametrize(
    ("text", "stop", "matched", "expected"),
    [
        ("a", (), None, ("a", "end")),
        ("a", ("#",), False, ("a", "end")),
        ("a", ("#",), "#", ("a#", "stop")),
        ("a", ("#",), "</s>", ("a", "end")),
        ("a#", ("#",), "#", ("a#", "stop")),
        ("a", ("#",), None, ("a#", "stop")),
        ("a", ("#", ";"), None, ("a", "stop")),
        ("", ("#",), None, ("", "end")),
        ("", ("#",), "#", ("#", "stop")),
        ("a;b#c", ("#", ";"), None, ("a;", "stop")),
    ],
)
def test_the_text_holds_the_stop_string_that_ended_it(text, stop, matched, expected):
    assert end(text, stop, matched)[:2] == expected


def test_the_text_runs_to_the_end_of_the_token_that_completed_the_stop_string():
    pieces = ("one", " two", "\n\n- ", "three")
    assert end("one two\n\n- three", ("\n\n",), pieces=pieces) == ("one two\n\n- ", "stop", 3)
    assert end("one two", ("\n\n",), pieces=pieces[:3]) == ("one two\n\n- ", "stop", 3)
    assert end("one two", ("\n\n",), finish="length", pieces=pieces[:2]) == ("one two", "length", 2)


def test_a_character_of_several_tokens_is_not_torn():
    sample = Sample("né", (b"n", b"\xc3", b"\xa9"), (1, 2, 3), (-1.0, -1.0, -1.0))
    assert ended(sample, ("é",), matched=None, note=print).tokens == (1, 2, 3)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("<html>", "the body"),
        ('{"choices": [', "the body"),
        ('{"choices": []}', "choices"),
        ('{"object": "error"}', "choices"),
        ('{"error": {"message": "upstream"}}', "upstream"),
        ('{"choices": [{"index": 0}]}', "without text"),
        ('{"choices": [{"text": 5}]}', r"choices\.0\.text"),
        ('{"choices": [{"text": "par", "finish_reason": "abort"}]}', "broke"),
    ],
)
def test_malformed_replies_say_where(body, where):
    with pytest.raises(MalformedReply, match=where):
        parse(body)


def test_unknown_fields_and_nulls_are_tolerated():
    choice = {"text": "a", "finish_reason": None, "logprobs": None, "new": {"deep": [1]}}
    reply = parse(json.dumps({"choices": [choice], "usage": None, "id": None, "x": 1}))
    assert reply.choices[0].text == "a"
