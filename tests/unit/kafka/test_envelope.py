import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kafka.records import TIMESTAMP_MS, record
from worker.errors import RecordFault
from worker.kafka.envelope import parse, salvage
from worker.types import Reason, Record, Reference, Request

LIMIT_BYTES = 1000
FORWARD = frozenset({"traceparent", "baggage"})
JSON = ("content-type", b"application/json")
EVENT = ("content-type", b"application/cloudevents+json")


def read(source: Record) -> Request:
    return parse(source, image_max_bytes=LIMIT_BYTES, forward_headers=FORWARD)


def refused(source: Record) -> RecordFault:
    with pytest.raises(RecordFault) as caught:
        read(source)
    return caught.value


def envelope(image: bytes = b"\xff\xd8", **members: Any) -> bytes:
    inline = {"base64": base64.b64encode(image).decode()}
    return orjson.dumps({"schema": "darkroom.envelope.v1", "image": inline, **members})


def event(**members: Any) -> bytes:
    required = {"specversion": "1.0", "id": "event-1", "source": "/s", "type": "t"}
    return orjson.dumps(required | members)


def test_raw_bytes_without_headers_are_an_image_and_ask_nothing() -> None:
    source = record(b"\xff\xd8")
    assert read(source) == Request(source, b"\xff\xd8", None, None, {}, None, None, None, ())


@pytest.mark.parametrize(
    ("header", "field", "expected"),
    [
        (("darkroom-model", b"digits"), "model", "digits"),
        (("darkroom-version", b"2"), "version", "2"),
        (("darkroom-request-id", "größe".encode()), "request_id", "größe"),
        (("darkroom-origin", b"images/0/1@2"), "origin", "images/0/1@2"),
        (("darkroom-deadline-ms", b"1500"), "deadline_ms", TIMESTAMP_MS + 1500),
        (("darkroom-tags", b"a=1"), "tags", {"a": "1"}),
        (("darkroom-tags", b" user_tier = premium , x=,q=a=b"), "tags",
         {"user_tier": "premium", "x": "", "q": "a=b"}),
        (("darkroom-tags", b""), "tags", {}),
        (("ce_id", b"event-1"), "request_id", "event-1"),
        (("Darkroom-Model", b"digits"), "model", "digits"),
        (("darkroom-model", None), "model", None),
        (("darkroom-id", b"images/0/1@2"), "origin", None),
    ],
)  # fmt: skip
def test_a_header_says_what_the_contract_says_of_it(
    header: tuple[str, bytes | None], field: str, expected: object
) -> None:
    assert getattr(read(record(b"\xff\xd8", header)), field) == expected


@pytest.mark.parametrize(
    "content_type",
    [b"image/jpeg", b"text/html", b"application/json2", b"application/octet-stream", b"", None,
     b"x" * 5000],
)  # fmt: skip
def test_a_content_type_that_is_no_json_leaves_the_word_to_the_magic(
    content_type: bytes | None,
) -> None:
    assert read(record(b"{}", ("content-type", content_type))).image == b"{}"


@pytest.mark.parametrize(
    "content_type",
    [b"application/json", b"Application/JSON", b"application/json; charset=utf-8",
     b" application/json ;x=y" + b" " * 300],
)  # fmt: skip
def test_json_is_known_by_its_media_type_whatever_its_parameters(content_type: bytes) -> None:
    assert read(record(envelope(b"img"), ("content-type", content_type))).image == b"img"


def test_of_a_repeated_header_the_last_one_counts() -> None:
    source = record(b"x", ("darkroom-version", b"1"), ("darkroom-version", b"2"))
    assert read(source).version == "2"


def test_forwarded_headers_are_kept_as_they_came_and_need_not_be_text() -> None:
    kept = (("traceparent", b"00-ab"), ("baggage", None), ("baggage", b"\xff"))
    source = record(b"x", ("other", b"1"), *kept, ("Traceparent", b"2"))
    assert read(source).trace == kept


def test_an_envelope_and_headers_complete_each_other() -> None:
    source = record(envelope(model="digits"), JSON, ("darkroom-version", b"2"), ("ce_id", b"e"))
    made = read(source)
    assert (made.model, made.version, made.request_id) == ("digits", "2", "e")


def test_an_envelope_may_repeat_what_the_headers_say() -> None:
    source = record(envelope(tags={"a": "1"}), JSON, ("darkroom-tags", b"a=1"))
    assert read(source).tags == {"a": "1"}


def test_headers_and_envelope_that_disagree_are_refused() -> None:
    fault = refused(record(envelope(version="1"), JSON, ("darkroom-version", b"2")))
    assert fault.reason is Reason.REQUEST_SCHEMA
    assert str(fault) == "version: the headers say '2', the envelope '1'"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (record(event(data_base64="QUJD"), EVENT), "event-1"),
        (record(event(data_base64="QUJD"), EVENT, ("darkroom-request-id", b"mine")), "mine"),
        (record(event(data=orjson.loads(envelope(request_id="inner"))), EVENT), "inner"),
        (record(b"x", ("ce_id", b"event-2"), ("darkroom-request-id", b"mine")), "mine"),
    ],
)
def test_the_id_of_a_cloudevent_is_the_request_id_where_nothing_else_is(
    source: Record, expected: str
) -> None:
    assert read(source).request_id == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (record(b"", ("darkroom-ref", b"s3://b/k")), Reference("s3://b/k", None)),
        (record(None, ("darkroom-ref", b"s3://b/k"), ("darkroom-ref-sha256", b"AB" * 32)),
         Reference("s3://b/k", "ab" * 32)),
        (record(b"", JSON, ("darkroom-ref", b"s3://b/k")), Reference("s3://b/k", None)),
        (record(None, ("ce_dataref", b"https://h/k")), Reference("https://h/k", None)),
        (record(b"img", ("ce_dataref", b"not read")), b"img"),
        (record(event(dataref="https://h/k"), EVENT), Reference("https://h/k", None)),
    ],
)  # fmt: skip
def test_a_claim_check_stands_in_for_an_empty_value(source: Record, expected: object) -> None:
    assert read(source).image == expected


def test_a_deadline_counts_from_the_records_timestamp_in_an_envelope_too() -> None:
    assert read(record(envelope(deadline_ms=7), JSON)).deadline_ms == TIMESTAMP_MS + 7


@pytest.mark.parametrize(
    ("source", "reason", "opening"),
    [
        (record(b""), Reason.IMAGE_EMPTY, "the record's value is empty"),
        (record(None), Reason.IMAGE_EMPTY, "the record's value is empty"),
        (record(None, JSON), Reason.IMAGE_EMPTY, "the record's value is empty"),
        (record(b"", ("traceparent", b"00")), Reason.IMAGE_EMPTY, "the record's value is empty"),
        (record(b"x" * 1001), Reason.IMAGE_TOO_LARGE,
         "the record's value has 1,001 bytes, limits.image_max_bytes is 1,000"),
        (record(envelope(b"x" * 1001), JSON), Reason.IMAGE_TOO_LARGE,
         "image.base64: the image has 1,001 bytes"),
        (record(b" " * 1_100_000, JSON), Reason.IMAGE_TOO_LARGE,
         "the envelope has 1,100,000 bytes"),
        (record(event(data_base64="QUJD" * 400), EVENT), Reason.IMAGE_TOO_LARGE, "data_base64: "),
        (record(b'{"a": 1,}', JSON), Reason.REQUEST_JSON,
         "the value is not JSON: trailing comma is not allowed: line 1 column 8"),
        (record(b"\xff\xd8", JSON), Reason.REQUEST_JSON, "the value is not JSON"),
        (record(b"[" * 2000, JSON), Reason.REQUEST_JSON, "the value is not JSON"),
        (record(envelope(versoin="2"), JSON), Reason.REQUEST_SCHEMA,
         "versoin: is unknown; did you mean version?"),
        (record(event(data={"schema": "darkroom.envelope.v1"}), EVENT), Reason.REQUEST_SCHEMA,
         "data.image: is missing"),
        (record(b"x", ("darkroom-versoin", b"2")), Reason.REQUEST_SCHEMA,
         "header darkroom-versoin: is unknown; did you mean darkroom-version?"),
        (record(b"x", ("darkroom-model", b"a\xff")), Reason.REQUEST_SCHEMA,
         "header darkroom-model: is not UTF-8 at byte 1"),
        (record(b"x", ("content-type", b"\xff")), Reason.REQUEST_SCHEMA,
         "header content-type: is not UTF-8 at byte 0"),
        (record(b"x", ("ce_id", b"\xff")), Reason.REQUEST_SCHEMA, "header ce_id: is not UTF-8"),
        (record(b"x", ("darkroom-model", b"")), Reason.REQUEST_SCHEMA,
         "header darkroom-model: must have 1 to 255 characters"),
        (record(b"x", ("darkroom-request-id", b"r" * 1025)), Reason.REQUEST_SCHEMA,
         "header darkroom-request-id: must have 1 to 1024 characters"),
        (record(b"x", ("darkroom-tags", b"premium")), Reason.REQUEST_SCHEMA,
         "header darkroom-tags: 'premium' is not name=value"),
        (record(b"x", ("darkroom-tags", b"a=1,")), Reason.REQUEST_SCHEMA,
         "header darkroom-tags: '' is not name=value"),
        (record(b"x", ("darkroom-tags", b"a=1,a=2")), Reason.REQUEST_SCHEMA,
         "header darkroom-tags: gives 'a' twice"),
        (record(b"x", ("darkroom-tags", b"=1")), Reason.REQUEST_SCHEMA, "header darkroom-tags: "),
        (record(b"x", ("darkroom-ref", b"s3://b/k")), Reason.REQUEST_SCHEMA,
         "header darkroom-ref: stands beside a value"),
        (record(b"", ("darkroom-ref", b"b/k")), Reason.REQUEST_SCHEMA,
         "header darkroom-ref: must be an absolute URL"),
        (record(b"x", ("darkroom-ref-sha256", b"ab" * 32)), Reason.REQUEST_SCHEMA,
         "header darkroom-ref-sha256: needs header darkroom-ref"),
        (record(b"", ("darkroom-ref", b"s3://b"), ("darkroom-ref-sha256", b"ab")),
         Reason.REQUEST_SCHEMA, "header darkroom-ref-sha256: must have 64 hexadecimal digits"),
        (record(b"x", ("darkroom-deadline-ms", b"5"), timestamp_ms=-1), Reason.REQUEST_SCHEMA,
         "deadline_ms: the record has no timestamp"),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused_with_its_reason_and_the_field(
    source: Record, reason: Reason, opening: str
) -> None:
    fault = refused(source)
    assert fault.reason is reason
    assert str(fault).startswith(opening)


@pytest.mark.parametrize(
    "deadline",
    [b"", b"soon", b"-1", b"1.5", b"1_000", b" 7", "\u0667".encode(), b"1" * 16, b"\xff"],
)
def test_a_deadline_that_is_no_whole_number_is_refused(deadline: bytes) -> None:
    fault = refused(record(b"x", ("darkroom-deadline-ms", deadline)))
    assert fault.reason is Reason.REQUEST_SCHEMA
    assert str(fault).startswith("header darkroom-deadline-ms: ")


def test_a_message_stays_short_however_long_the_value() -> None:
    for source in (
        record(orjson.dumps({"m" * 500_000: 1}), JSON),
        record(envelope(deadline_ms="9" * 500_000), JSON),
        record(b"x", ("darkroom-" + "v" * 500_000, b"1")),
        record(b"x", ("darkroom-tags", b"t" * 500_000)),
    ):
        assert len(str(refused(source))) < 300


names = st.sampled_from(
    ["content-type", "darkroom-model", "darkroom-tags", "darkroom-deadline-ms", "darkroom-ref",
     "darkroom-ref-sha256", "darkroom-origin", "ce_id", "ce_dataref", "traceparent"]
) | st.text(max_size=12)  # fmt: skip
contents = (
    st.none()
    | st.binary(max_size=12)
    | st.sampled_from([b"application/json", b"a=1", b"7", b"s3://b/k"])
)


@given(
    st.lists(st.tuples(names, contents), max_size=5),
    st.none() | st.binary(max_size=20) | st.just(envelope()) | st.just(event(data_base64="QUJD")),
)
def test_whatever_headers_say_a_record_is_read_or_refused_and_can_be_reported(
    headers: list[tuple[str, bytes | None]], value: bytes | None
) -> None:
    source = record(value, *headers)
    left = salvage(source, forward_headers=FORWARD)
    assert left.image == b""
    try:
        made = read(source)
    except RecordFault:
        return
    assert made.image != b""
    assert (made.trace, made.origin) == (left.trace, left.origin)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (record(envelope(versoin="2", request_id="mine"), JSON), "mine"),
        (record(event(data={"request_id": "inner"}), EVENT), "inner"),
        (record(event(data=7), EVENT), "event-1"),
        (record(envelope(request_id=7), JSON, ("ce_id", b"event-2")), "event-2"),
        (record(b"{", JSON, ("darkroom-request-id", b"mine")), "mine"),
        (record(b"[]", JSON), None),
        (record(envelope(request_id="mine")), None),
        (record(b"", ("darkroom-request-id", b"\xff")), None),
    ],
)
def test_a_refused_record_keeps_its_request_id_where_it_can_be_read(
    source: Record, expected: str | None
) -> None:
    assert salvage(source, forward_headers=FORWARD).request_id == expected
