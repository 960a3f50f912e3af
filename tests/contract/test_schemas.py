import base64
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.contract.oracle import (
    SCHEMAS,
    examples,
    load_schema,
    named_fields,
    problems,
)
from worker.errors import RecordFault
from worker.kafka.deadletter import encode_dead_letter
from worker.kafka.envelope import parse
from worker.kafka.ledger import DeadLetter
from worker.kafka.results import encode_result
from worker.types import (
    EngineStamp,
    Failed,
    ModelRef,
    ModelStamp,
    Outcome,
    Position,
    Predicted,
    Reason,
    Record,
    Reference,
    Request,
    Skipped,
    SkipReason,
    Ticket,
    Timing,
)

CONTROL = ("desired", "ack", "nudge", "audit")
SHAPES = ("envelope", "cloudevent", "result", "deadletter", "stub", *CONTROL)
PARSED = {"envelope": b"application/json", "cloudevent": b"application/cloudevents+json"}
LIMIT_BYTES = 1 << 20


def record(value: bytes | None, *headers: tuple[str, bytes | None], **changes: Any) -> Record:
    position = Position("images", 3, 1234)
    made = Record(position, 1, b"scanner-7", value, headers, 1_795_353_364_250, 5.0)
    return made._replace(**changes)


def read(shape: str, value: bytes) -> Request:
    source = record(value, ("content-type", PARSED[shape]))
    return parse(source, image_max_bytes=LIMIT_BYTES, forward_headers=frozenset())


def refusal(shape: str, value: bytes) -> RecordFault | None:
    try:
        read(shape, value)
    except RecordFault as fault:
        return fault
    return None


def each(verdict: str, *shapes: str) -> pytest.MarkDecorator:
    found = [(shape, path) for shape in shapes for path in examples(shape, verdict)]
    ids = [f"{shape}-{path.stem}" for shape, path in found]
    return pytest.mark.parametrize(("shape", "path"), found, ids=ids)


# The schemas themselves


def undescribed(schema: Any, at: str = "") -> list[str]:
    """Name the members, however deep, of which a schema does not say what they are."""
    if not isinstance(schema, dict):
        return []
    members = schema.get("properties", {})
    found = [
        f"{at}.{name}"
        for name, member in members.items()
        if not {"description", "$ref"} & {*member}
    ]
    below = {**members, **schema.get("$defs", {}), "[]": schema.get("items")}
    return found + [name for key in below for name in undescribed(below[key], f"{at}.{key}")]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_schema_is_a_schema_and_describes_every_member(shape: str) -> None:
    schema = load_schema(shape)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:darkroom:{shape}:v1"
    assert not undescribed(schema)


def test_every_folder_of_examples_is_tested() -> None:
    folders = {path.name for path in (SCHEMAS / "examples").iterdir()}
    assert folders == {*SHAPES, "manifest", "fleet"}


@each("valid", *SHAPES)
def test_a_schema_takes_its_valid_examples(shape: str, path: Path) -> None:
    assert problems(shape, orjson.loads(path.read_bytes())) == []


@each("invalid", *SHAPES)
def test_a_schema_refuses_its_invalid_examples(shape: str, path: Path) -> None:
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        assert path.stem == "truncated"
    else:
        assert problems(shape, document)


def test_the_reasons_of_the_schemas_are_those_of_the_code() -> None:
    definitions = load_schema("result")["$defs"]
    assert definitions["reason"]["enum"] == [reason.value for reason in Reason]
    assert definitions["skip_reason"]["enum"] == [reason.value for reason in SkipReason]


# The parser against the schemas


@each("valid", *PARSED)
def test_the_parser_takes_what_the_schema_takes(shape: str, path: Path) -> None:
    document = orjson.loads(path.read_bytes())
    request = read(shape, path.read_bytes())
    envelope = document if shape == "envelope" else document.get("data") or {}
    assert request.model == envelope.get("model")
    assert request.version == envelope.get("version")
    assert request.tags == (envelope.get("tags") or {})
    assert request.request_id == (envelope.get("request_id") or document.get("id"))
    image = envelope.get("image", {})
    encoded = image.get("base64") or document.get("data_base64")
    if encoded:
        assert request.image == base64.b64decode(encoded)
    else:
        digest = image.get("sha256") and image["sha256"].lower()
        assert request.image == Reference(image.get("ref") or document["dataref"], digest)


@each("invalid", *PARSED)
def test_the_parser_refuses_what_the_schema_refuses_by_the_same_field(
    shape: str, path: Path
) -> None:
    with pytest.raises(RecordFault) as caught:
        read(shape, path.read_bytes())
    if path.stem == "truncated":
        assert caught.value.reason is Reason.REQUEST_JSON
        assert "line 1 column" in str(caught.value) or "line 2 column" in str(caught.value)
        return
    empty = path.stem in {"base64-empty", "data-base64-empty"}
    assert caught.value.reason is (Reason.IMAGE_EMPTY if empty else Reason.REQUEST_SCHEMA)
    field = str(caught.value).partition(": ")[0]
    named = named_fields(shape, orjson.loads(path.read_bytes()))
    if field in ("envelope", "event"):
        assert "" in named
    else:
        assert any(name == field or name.startswith(f"{field}.") for name in named), named


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["QUJD", "QUI=", "QQ==", "QQ=", "s3://b/k", "1.0", "", "a" * 64])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
MEMBERS = ("schema", "image", "model", "version", "tags", "request_id", "deadline_ms")
images = st.dictionaries(st.sampled_from(["base64", "ref", "sha256", "bse64"]), scalars, max_size=3)


@st.composite
def envelopes(draw: st.DrawFn) -> Any:
    """Envelopes with some members replaced, left out or added."""
    document: dict[str, Any] = {"schema": "darkroom.envelope.v1", "image": {"base64": "QUJD"}}
    changes = st.dictionaries(
        st.sampled_from(MEMBERS) | st.text(max_size=8), anything | images, max_size=3
    )
    document |= draw(changes)
    for name in draw(st.lists(st.sampled_from(MEMBERS), max_size=1)):
        document.pop(name, None)
    return document


@st.composite
def events(draw: st.DrawFn) -> Any:
    document: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    carriers = st.sampled_from(["data", "data_base64", "dataref"])
    document |= draw(st.dictionaries(carriers, envelopes() | scalars, min_size=1, max_size=2))
    names = st.sampled_from([*document, "subject", "extension"])
    return document | draw(st.dictionaries(names, anything, max_size=1))


def agree(shape: str, document: object) -> None:
    value = orjson.dumps(document)
    seen = orjson.loads(value)
    fault = refusal(shape, value)
    against = problems(shape, seen)
    assert bool(fault) == bool(against), (fault, against)


@given(envelopes() | anything)
def test_parser_and_schema_agree_on_every_envelope(document: Any) -> None:
    agree("envelope", document)


@given(events() | anything)
def test_parser_and_schema_agree_on_every_event(document: Any) -> None:
    agree("cloudevent", document)


@given(st.text(alphabet="QUJD+/=_ \n", max_size=12) | st.binary(max_size=40).map(base64.b64encode))
def test_parser_and_schema_agree_on_base64(text: str | bytes) -> None:
    text = text if isinstance(text, str) else text.decode()
    agree("envelope", {"schema": "darkroom.envelope.v1", "image": {"base64": text}})


@given(st.binary(max_size=60), st.sampled_from(sorted(PARSED)))
def test_any_bytes_are_read_or_refused_and_nothing_else(value: bytes, shape: str) -> None:
    fault = refusal(shape, value)
    expected = {Reason.IMAGE_EMPTY, Reason.REQUEST_JSON, Reason.REQUEST_SCHEMA}
    assert fault is None or fault.reason in expected


# Results and dead letters against the schemas

STAMP = ModelStamp("digits", "1", "a" * 64, "b" * 64)
ENGINE = EngineStamp("CPUExecutionProvider", "cpu", "fp32", fallback=False)
OUTCOMES: list[Outcome] = [
    Predicted(
        b'{"digit":[{"label":"7","index":7,"score":0.98}]}',
        640,
        480,
        16,
        Timing(1.2, 2.0, 0.8, 9.1, 0.1),
        STAMP,
        ENGINE,
    ),
    *(Failed(reason, "what was wrong") for reason in Reason),
    *(Skipped(reason, "what was not to be had") for reason in SkipReason),
]


def test_every_kind_of_outcome_stands_among_the_outcomes_tested() -> None:
    assert {type(outcome) for outcome in OUTCOMES} == {*get_args(Outcome)}


TICKET = Ticket(Position("images", 3, 1234), 1, ModelRef("digits", "1"), "active", None)
ROUTES = ("pin", "asked", "rule:premium", "split", "active", "fallback")
ENDINGS = [
    *((outcome, TICKET) for outcome in OUTCOMES),
    *((outcome, None) for outcome in OUTCOMES if not isinstance(outcome, Predicted)),
    *((OUTCOMES[0], TICKET._replace(route=route, generation=12)) for route in ROUTES),
]


@pytest.mark.parametrize(("outcome", "ticket"), ENDINGS)
def test_a_result_is_what_its_schema_says(outcome: Outcome, ticket: Ticket | None) -> None:
    request = Request(record(b"x"), b"x", None, None, {}, "id-1", None, None, ())
    value, _ = encode_result(request, ticket, outcome, worker="w-1", now_ms=1_795_353_364_271)
    assert problems("result", orjson.loads(value)) == []


texts = st.text(max_size=40)
optional_headers = st.lists(st.tuples(texts, st.none() | st.binary(max_size=20)), max_size=3)


@given(
    message=st.text(alphabet=st.characters(codec=None), max_size=3000),
    request_id=texts,
    timestamp_ms=st.integers(-1, 2**41),
    now_ms=st.integers(0, 2**41),
)
def test_no_message_and_no_clock_breaks_a_result(
    message: str, request_id: str, timestamp_ms: int, now_ms: int
) -> None:
    source = record(b"x", timestamp_ms=timestamp_ms)
    request = Request(source, b"x", None, None, {}, request_id, None, None, ())
    outcome = Failed(Reason.RECORD_POISON, message)
    value, _ = encode_result(request, None, outcome, worker="w-1", now_ms=now_ms)
    document = orjson.loads(value)
    assert problems("result", document) == []
    assert document["request_id"] == request_id


def as_json(letter: DeadLetter) -> dict[str, Any]:
    """Write a dead letter as `schemas/deadletter.v1` does."""
    headers = {
        name: None if content is None else content.decode(errors="replace")
        for name, content in letter.headers
    }
    stub = headers.get("content-type") == "application/vnd.darkroom.stub+json"
    value: Any = None if letter.value is None else base64.b64encode(letter.value).decode()
    return {
        "key": None if letter.key is None else base64.b64encode(letter.key).decode(),
        "value": orjson.loads(letter.value or b"") if stub else value,
        "headers": headers,
        "timestamp_ms": letter.timestamp_ms,
    }


@given(
    key=st.none() | st.binary(max_size=400),
    value=st.none() | st.binary(max_size=400),
    headers=optional_headers,
    reason=st.sampled_from(Reason),
    max_bytes=st.integers(0, 2000),
)
def test_a_dead_letter_of_whatever_size_is_what_its_schema_says(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    reason: Reason,
    max_bytes: int,
) -> None:
    source = record(value, *headers, key=key)
    failed = Failed(reason, "what was wrong")
    letter = encode_dead_letter(source, failed, worker="w-1", max_bytes=max_bytes)
    assert problems("deadletter", as_json(letter)) == []
