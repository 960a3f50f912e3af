from collections.abc import Callable

import orjson
import pytest
from hypothesis import given

from tests.unit.control.states import ack, acks, desired_states, digits, state
from worker.control.answers import Ack, Answer, Code, encode_ack
from worker.control.documents import parse_ack, parse_state
from worker.control.messages import DesiredState, LiveLimits, digest, encode_state, frozen
from worker.errors import StateError
from worker.models.document import PROBLEMS_MAX


def refused(data: bytes, parse: Callable[[bytes], object] = parse_state) -> str:
    with pytest.raises(StateError) as caught:
        parse(data)
    assert caught.value.code == Code.STATE_INVALID
    return str(caught.value)


@given(desired_states())
def test_every_valid_state_is_read_as_it_was_written(state: DesiredState) -> None:
    read = parse_state(encode_state(state))
    assert read == state
    assert digest(read) == digest(state)


@given(acks())
def test_every_valid_answer_is_read_as_it_was_written(ack: Ack) -> None:
    assert parse_ack(encode_ack(ack)) == ack


def test_a_state_is_the_same_in_whatever_order_and_spacing_it_is_written() -> None:
    document = orjson.loads(encode_state(state()))
    by_hand = dict(reversed(document.items()))
    read = parse_state(orjson.dumps(by_hand, option=orjson.OPT_INDENT_2))
    assert digest(read) == digest(state())


def test_how_a_number_was_written_does_not_change_the_digest() -> None:
    whole = digits(limits=LiveLimits(max_wait_ms=5, thresholds=frozen({"digit": 1})))
    assert digest(parse_state(encode_state(whole))) == digest(whole)
    document = orjson.loads(encode_state(whole))
    document["models"]["digits"]["limits"]["max_wait_ms"] = 5
    document["generation"] = 7.0
    assert digest(parse_state(orjson.dumps(document))) == digest(whole)


def test_what_is_read_cannot_be_changed() -> None:
    read = parse_state(encode_state(digits(aliases=frozen({"stable": "1"}))))
    for mapping in (read.models, read.models["digits"].versions, read.models["digits"].aliases):
        with pytest.raises(TypeError):
            mapping["digits"] = "2"  # type: ignore[index]  # that it cannot be written is shown


def test_every_field_that_is_wrong_is_named_on_a_line_of_its_own() -> None:
    document = orjson.loads(encode_state(state()))
    document |= {"generation": 0, "default": "dogs", "written": 5}
    document["models"]["digits"] |= {"active": "4", "pins": [{"version": "stable"}]}
    assert refused(orjson.dumps(document)).splitlines() == [
        "desired state: 5 problems",
        "  written: unknown key; did you mean written_by?",
        "  generation: must be from 1 to 9007199254740991, is 0",
        "  default: 'dogs' is not there; known are digits",
        "  models.digits.active: '4' is not there; known are 1, 2",
        "  models.digits.pins[0].version: 'stable' is not there; known are 1, 2",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"active": "../2"}, "models.digits.active: must be 1 to 128 of A-Z a-z 0-9 . _ + ! -"),
        ({"active": 2}, "models.digits.active: must be a text, is 2: put it in quotes"),
        ({"aliases": {"2": "1"}}, 'models.digits.aliases["2"]: is the name of a version'),
        ({"fallback_model": "digits"}, "models.digits.fallback_model: leads back to this model"),
        ({"limits": {"max_size": 0}}, "models.digits.limits.max_size: must be from 1 to 4096"),
        ({"split": {"1": 0}}, 'models.digits.split["1"]: must be from 1 to 1000000, is 0'),
        ({"versions": {"1": "12"}}, 'models.digits.versions["1"]: must be 64 digits of 0-9 a-f'),
        (
            {"pins": [{"version": "1", "workers": {}}]},
            "models.digits.pins[0].workers: must have either worker or labels; leave it out",
        ),
        (
            {"pins": [{"version": "1", "workers": {"worker": "w", "labels": {"a": "b"}}}]},
            "models.digits.pins[0].workers: must have either worker or labels; leave it out",
        ),
        (
            {"limits": {"max_size": "big", "min_size": 4096}},
            "models.digits.limits.max_size: must be a whole number, is 'big'",
        ),
    ],
)
def test_one_thing_that_is_wrong_is_one_sentence(changes: dict[str, object], said: str) -> None:
    document = orjson.loads(encode_state(state()))
    document["models"]["digits"] |= changes
    message = refused(orjson.dumps(document))
    assert message.startswith(f"desired state: {said}")
    assert "\n" not in message


def test_a_ring_of_fallbacks_is_refused_at_each_of_its_models_and_nowhere_else() -> None:
    document = orjson.loads(encode_state(state()))
    models = document["models"]
    for name, fallback in (("digits", "cats"), ("cats", "dogs"), ("dogs", "cats")):
        models[name] = {**models["digits"], "fallback_model": fallback}
    assert refused(orjson.dumps(document)).splitlines()[1:] == [
        f"  models.{name}.fallback_model: leads back to this model, which cannot take its own place"
        for name in ("cats", "dogs")
    ]


def test_a_thousand_models_in_one_ring_are_refused_in_good_time() -> None:
    document = orjson.loads(encode_state(state()))
    model = document["models"]["digits"]
    document["models"] = {
        f"m{index}": {**model, "fallback_model": f"m{(index + 1) % 1000}"} for index in range(1000)
    }
    document["default"] = "m0"
    lines = refused(orjson.dumps(document)).splitlines()
    assert lines[0] == "desired state: 1000 problems"
    assert len(lines) == 1 + PROBLEMS_MAX + 1
    assert lines[-1] == f"  and {1000 - PROBLEMS_MAX} more"


@pytest.mark.parametrize("parse", [parse_state, parse_ack])
def test_what_is_larger_than_any_honest_document_is_not_even_looked_at(
    parse: Callable[[bytes], object],
) -> None:
    message = refused(b"[" * 1_048_577, parse)
    assert "has 1,048,577 bytes, may have at most 1,048,576" in message


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b'{"schema": NaN}', b'"\\ud800"', b"[" * 100_000],
    ids=["empty", "truncated", "no-utf8", "nan", "half-a-character", "too-deep"],
)
def test_what_is_no_json_is_refused_with_its_place(data: bytes) -> None:
    assert refused(data).startswith("desired state: not JSON: ")
    assert refused(data, parse_ack).startswith("answer: not JSON: ")


def test_a_message_shows_what_is_huge_or_unprintable_in_short() -> None:
    document = orjson.loads(encode_state(state()))
    document["x" * 5000] = 1
    document["new\nline\x1b[31m"] = 1
    document["epoch"] = "e" * 5000
    message = refused(orjson.dumps(document))
    assert len(message) < 1000
    assert len(message.splitlines()) == 4
    assert "\x1b" not in message


# Answers


def test_an_answer_of_a_later_release_is_still_an_answer() -> None:
    document = orjson.loads(encode_ack(ack(answer=Answer.NACK, code=Code.ENGINE, reason="died")))
    document |= {"code": "model.unsigned", "proof": "shadowed", "state": "standby", "canary": 1}
    read = parse_ack(orjson.dumps(document))
    assert (read.answer, read.code, read.reason) == (Answer.NACK, "model.unsigned", "died")
    assert (read.proof, read.state) == (None, "standby")


def test_a_code_that_is_known_is_read_as_one() -> None:
    read = parse_ack(encode_ack(ack(answer=Answer.NACK, code="headroom", reason="no memory")))
    assert read.code is Code.HEADROOM


@pytest.mark.parametrize(
    ("nack", "field"),
    [
        (ack(answer=Answer.NACK, reason="died"), "code"),
        (ack(answer=Answer.NACK, code=Code.ENGINE), "reason"),
    ],
)
def test_a_nack_must_say_why(nack: Ack, field: str) -> None:
    message = refused(encode_ack(nack), parse_ack)
    assert message == f"answer: {field}: missing: a nack says why"


def test_every_member_of_an_answer_that_is_wrong_is_named() -> None:
    document = orjson.loads(encode_ack(ack()))
    document |= {"worker": "", "answer": "maybe", "lag": -1, "models": {"digits": {"loaded": "1"}}}
    assert refused(orjson.dumps(document), parse_ack).splitlines() == [
        "answer: 5 problems",
        "  answer: must be ack or pending or nack, is 'maybe'",
        "  worker: is empty",
        "  models.digits.active: missing",
        "  models.digits.loaded: must be a list, is '1'",
        "  lag: must be from 0 to 9007199254740991, is -1",
    ]
