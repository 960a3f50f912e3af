from hashlib import sha256

import orjson
import pytest

from tests.unit.kafka.records import TIMESTAMP_MS, record
from worker.kafka.deadletter import encode_dead_letter
from worker.kafka.ledger import DeadLetter
from worker.kafka.results import record_bytes
from worker.types import Failed, Reason, Record

FAILED = Failed(Reason.IMAGE_TYPE, "not an image,\nbut HTML")
ORIGINAL = (("content-type", b"text/html"), ("x", b"\xff"), ("x", None))


def letter(source: Record, max_bytes: int = 1 << 20, failed: Failed = FAILED) -> DeadLetter:
    return encode_dead_letter(source, failed, worker="w-1", max_bytes=max_bytes)


def test_a_dead_letter_is_the_original_and_why_it_could_not_be_served() -> None:
    made = letter(record(b"<html>", *ORIGINAL))
    assert made == DeadLetter(
        key=b"scanner-7",
        value=b"<html>",
        headers=(
            *ORIGINAL,
            ("__connect.errors.topic", b"images"),
            ("__connect.errors.partition", b"3"),
            ("__connect.errors.offset", b"1234"),
            ("__connect.errors.connector.name", b"darkroom"),
            ("__connect.errors.task.id", b"w-1"),
            ("__connect.errors.exception.class.name", b"worker.errors.RecordFault"),
            ("__connect.errors.exception.message", b"not an image, but HTML"),
            ("darkroom-reason", b"image.type"),
            ("darkroom-id", b"images/3/1234@1795353364250"),
        ),
        timestamp_ms=TIMESTAMP_MS,
        reason="image.type",
    )


@pytest.mark.parametrize("key", [None, b""])
@pytest.mark.parametrize("value", [None, b""])
def test_null_and_empty_stay_what_they_were(key: bytes | None, value: bytes | None) -> None:
    made = letter(record(value, key=key))
    assert (made.key, made.value) == (key, value)


def test_a_letter_that_just_fits_is_kept_whole() -> None:
    source = record(b"x" * 5000)
    whole = letter(source)
    size = record_bytes(whole.key, whole.value, whole.headers)
    assert letter(source, max_bytes=size) == whole
    assert letter(source, max_bytes=size - 1).value != whole.value


@pytest.mark.parametrize(
    ("source", "dropped"),
    [
        (record(b"x" * 5000, *ORIGINAL), ["value"]),
        (record(b"x" * 5000, ("big", b"h" * 3000)), ["value", "headers"]),
        (record(None, ("big", b"h" * 3000)), ["value", "headers"]),
        (record(b"x", key=b"k" * 3000), ["value", "headers", "key"]),
    ],
)
def test_what_does_not_fit_leaves_a_stub_that_says_what_it_was(
    source: Record, dropped: list[str]
) -> None:
    made = letter(source, max_bytes=2000)
    assert record_bytes(made.key, made.value, made.headers) <= 2000
    assert orjson.loads(made.value or b"") == {
        "schema": "darkroom.stub.v1",
        "id": "images/3/1234@1795353364250",
        "source": {
            "topic": "images", "partition": 3, "offset": 1234, "timestamp_ms": TIMESTAMP_MS,
        },
        "dropped": dropped,
        "key_bytes": len(source.key or b""),
        "value_bytes": None if source.value is None else len(source.value),
        "sha256": None if source.value is None else sha256(source.value).hexdigest(),
    }  # fmt: skip
    assert dict(made.headers)["content-type"] == b"application/vnd.darkroom.stub+json"
    kept = () if "headers" in dropped else source.headers
    assert made.headers[: len(made.headers) - 10] == kept
    assert made.key == (None if "key" in dropped else source.key)
    assert dict(made.headers)["darkroom-reason"] == b"image.type"


def test_the_longest_message_leaves_room_for_a_stub_in_a_small_topic() -> None:
    failed = Failed(Reason.IMAGE_CORRUPT, "写" * 100_000)
    made = letter(record(b"x" * 20_000), max_bytes=8 << 10, failed=failed)
    assert record_bytes(made.key, made.value, made.headers) <= 8 << 10
