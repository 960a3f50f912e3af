"""What is published for an outcome, and what becomes of what its topic would not take."""

from typing import Any

import orjson
import pytest

from tests.unit.kafka.records import TIMESTAMP_MS, record, request
from tests.unit.kafka.test_results import PREDICTED, TICKET
from worker.kafka.ledger import Entry, Outgoing
from worker.kafka.outbox import Outbox
from worker.kafka.results import record_bytes
from worker.kafka.topics import TopicFacts
from worker.types import Failed, Outcome, Reason, Record, Request, Skipped, SkipReason

FAILED = Failed(Reason.IMAGE_TYPE, "no image")
SKIPPED = Skipped(SkipReason.EXPIRED, "too late")
LARGE = PREDICTED._replace(predictions=b'{"digit":"%s"}' % (b"x" * 9000))


def encoded(
    outcome: Outcome,
    *,
    asked: Request | None = None,
    source: Record | None = None,
    max_bytes: int = 10**6,
    omit: bool = False,
) -> Outgoing:
    outbox = Outbox(
        TopicFacts("predictions", 2, max_bytes, "images.dead", 2, 10**6),
        worker="w-1",
        omit_failures=omit,
        forward_headers=frozenset({"traceparent"}),
    )
    entry = Entry(source or (asked.record if asked else record()))
    entry.request = asked
    return outbox.encode(entry, TICKET if asked else None, outcome, now_ms=TIMESTAMP_MS + 21)


def status(item: Outgoing) -> Any:
    assert item.value is not None
    return orjson.loads(item.value)["status"]


@pytest.mark.parametrize(
    ("outcome", "said", "dead"),
    [(PREDICTED, "ok", None), (FAILED, "failed", "image.type"), (SKIPPED, "skipped", None)],
    ids=["ok", "failed", "skipped"],
)
def test_every_outcome_is_a_result_and_only_a_failed_one_a_dead_letter_too(
    outcome: Outcome, said: str, dead: str | None
) -> None:
    item = encoded(outcome, asked=request(record()))
    assert status(item) == said
    assert item.key == b"scanner-7"
    assert (item.dead_letter and item.dead_letter.reason) == dead


@pytest.mark.parametrize(
    ("outcome", "result", "dead"),
    [(PREDICTED, True, False), (FAILED, False, True), (SKIPPED, False, False)],
    ids=["ok", "failed", "skipped"],
)
def test_omitted_failures_still_have_their_dead_letters(
    outcome: Outcome,
    result: bool,  # noqa: FBT001 - a table
    dead: bool,  # noqa: FBT001 - a table
) -> None:
    item = encoded(outcome, asked=request(record()), omit=True)
    assert (item.value is not None, item.dead_letter is not None) == (result, dead)


def test_a_result_that_its_topic_would_not_take_is_failed_and_a_dead_letter() -> None:
    item = encoded(LARGE, asked=request(record()), max_bytes=5000)
    assert orjson.loads(item.value or b"")["reason"] == "result.too-large"
    assert item.dead_letter is not None
    assert item.dead_letter.reason == "result.too-large"
    assert item.dead_letter.value == record().value, "the image, to be sent again"


@pytest.mark.parametrize(
    ("key", "trace", "kept"),
    [
        (b"k", b"t" * 9000, (b"k", False)),
        (b"k" * 9000, b"t", (None, False)),
        (b"k", b"t", (b"k", True)),
    ],
    ids=["large trace", "large key", "both small"],
)
def test_what_the_producer_sent_along_is_left_out_only_where_it_does_not_fit(
    key: bytes, trace: bytes, kept: tuple[bytes | None, bool]
) -> None:
    asked = request(record(key=key), trace=(("traceparent", trace),))
    item = encoded(FAILED if len(key + trace) > 9000 else PREDICTED, asked=asked, max_bytes=5000)
    assert (item.key, "traceparent" in dict(item.headers)) == kept
    assert record_bytes(item.key, item.value, item.headers) <= 5000


def test_nothing_is_published_where_not_even_the_smallest_result_fits() -> None:
    item = encoded(PREDICTED, asked=request(record()), max_bytes=100)
    assert item.value is None
    assert item.dead_letter is not None


def test_a_record_that_was_never_understood_keeps_what_can_be_salvaged() -> None:
    source = record(b"{", ("traceparent", b"00-1"), ("darkroom-request-id", b"r-1"))
    item = encoded(FAILED, source=source)
    assert dict(item.headers)["traceparent"] == b"00-1"
    assert orjson.loads(item.value or b"")["request_id"] == "r-1"
