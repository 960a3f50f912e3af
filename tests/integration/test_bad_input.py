"""One table: what a worker answers to input that is broken, hostile, odd or late."""

import os
import struct
import time
import zlib
from typing import Any, NamedTuple

import pytest

from tests.broker import Feed, Headers, Published, Topics, make_topics, read_all
from tests.contract.oracle import problems
from tests.integration.pictures import HTML, digit, png, with_chunk, zeros
from tests.integration.traffic import wait_served
from tests.unit.vision.pictures import animated, corners, exif_segment, flat_jpeg, jpeg_with
from tests.workers import Crew, crew_in, peak_kb
from worker.local.stack import Stack

pytestmark = pytest.mark.kafka

MAX_BYTES = 1_000_000
HOSTILE_KB = 64 << 10
"""How much the engine's peak may grow by all of this table; a bomb decoded takes 768 MB."""
JSON: Headers = (("content-type", b"application/json"),)
PNG = digit(3)
SIGNATURE = PNG[:8]


class Case(NamedTuple):
    """What is sent, and how it must end: `ok`, or a reason."""

    name: str
    value: bytes | None
    ends: str
    headers: Headers = ()
    timestamp_ms: int = 0


def huge_idat() -> bytes:
    """79 bytes that declare 4 GB of pixels behind them."""
    header = png(4096, 4096, b"", bits=8, color=2)[:33]
    return header + struct.pack(">I", 0xFFFF_FFF0) + b"IDAT" + bytes(38)


def with_flipped_bits(data: bytes) -> bytes:
    middle = data.index(b"IDAT") + 12
    return (
        data[:middle]
        + bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
        + data[middle + 8 :]
    )


def jpeg() -> bytes:
    return flat_jpeg(128, 128, 128)


CASES = (
    Case("null", None, "image.empty"),
    Case("empty", b"", "image.empty"),
    Case("text", b"this is no picture", "image.type"),
    Case("html", HTML, "image.type"),
    Case("pdf", b"%PDF-1.7\n", "image.type"),
    Case("pdf-named-png", b"%PDF-1.7\n", "image.type", (("content-type", b"image/png"),)),
    Case("truncated-png", PNG[: len(PNG) // 2], "image.corrupt"),
    Case("truncated-jpeg", jpeg()[:-40], "image.corrupt"),
    Case("signature-alone", SIGNATURE, "image.corrupt"),
    Case("flipped-bits", with_flipped_bits(PNG), "image.corrupt"),
    Case("79-bytes", huge_idat(), "image.corrupt"),
    Case("65535-square", png(65_535, 65_535, b""), "image.too-many-pixels"),
    Case("16000-square", png(16_000, 16_000, zeros(16_000 * 16_001)), "image.too-many-pixels"),
    Case("too-large", with_chunk(PNG, b"tEXt", bytes(MAX_BYTES)), "image.too-large"),
    Case("unknown-model", PNG, "model.unknown", (("darkroom-model", b"cats"),)),
    Case("unknown-version", PNG, "model.version-unknown", (("darkroom-version", b"99"),)),
    Case("unknown-header", PNG, "request.schema", (("darkroom-modell", b"digits"),)),
    Case("bad-deadline", PNG, "request.schema", (("darkroom-deadline-ms", b"soon"),)),
    Case("broken-json", b'{"schema": ', "request.json", JSON),
    Case("missing-field", b'{"schema": "darkroom.envelope.v1"}', "request.schema", JSON),
    Case("late", PNG, "expired", (("darkroom-deadline-ms", b"5"),), 1_700_000_000_000),
    Case("in-time", PNG, "ok", (("darkroom-deadline-ms", b"600000"),)),
    Case("asked-version", PNG, "ok", (("darkroom-model", b"digits"), ("darkroom-version", b"1"))),
    Case("gray-16-bit", png(2, 2, zlib.compress(b"\0\x80\0\x80\0" * 2), bits=16), "ok"),
    Case("cmyk", flat_jpeg(10, 20, 30, 40), "ok"),
    Case("huge-exif", jpeg_with(jpeg(), *[exif_segment(6, padding=65_000)] * 10), "ok"),
    Case("animation", animated(".gif", [corners(), corners()[::-1]]), "ok"),
    Case("named-jpeg-is-png", PNG, "ok", (("content-type", b"image/jpeg"),)),
    Case("trailing-garbage", PNG + b"garbage" * 100, "ok"),
)


class Answers(NamedTuple):
    results: dict[str, dict[str, Any]]
    letters: dict[str, Published]
    mates: list[dict[str, Any]]
    peak_kb: tuple[int, int]
    """Of the engine: when it was warm, and when everything was answered."""


@pytest.fixture(scope="module")
def answers(kafka: Stack, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Everything at once through one worker, each case with healthy mates around it."""
    topics = make_topics(kafka, f"bad-input-{os.getpid()}", partitions=2)
    with crew_in(tmp_path_factory.mktemp("bad-input")) as crew:
        worker = crew.start(topics, {"limits": {"image_max_bytes": MAX_BYTES}}).wait_ready()
        assert worker.engine is not None
        warm_kb = peak_kb(worker.engine.pid)
        feed = Feed(topics)
        for number, case in enumerate(CASES):
            feed.send(b"mate-%d" % number, digit(number))
            feed.send(
                case.name.encode(),
                case.value,
                headers=case.headers,
                timestamp_ms=case.timestamp_ms or int(time.time() * 1000),
            )
        feed.flush()
        wait_served(crew, topics)
        engine = worker.engine
        assert engine is not None
        assert worker.events("engine.ended") == [], "no case may cost an engine"
        peaks_kb = (warm_kb, peak_kb(engine.pid))
        assert worker.stop() == 0
    results = [(record.key or b"", record.json) for record in read_all(topics, topics.output)]
    return Answers(
        {key.decode(): result for key, result in results if not key.startswith(b"mate")},
        {(letter.key or b"").decode(): letter for letter in read_all(topics, topics.dead)},
        [result for key, result in results if key.startswith(b"mate")],
        peaks_kb,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_ends_as_the_table_says(answers: Answers, case: Case) -> None:
    result = answers.results[case.name]
    status = {"ok": "ok", "expired": "skipped"}.get(case.ends, "failed")
    assert (result["status"], result.get("reason", "ok")) == (status, case.ends), result
    assert problems("result", result) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_failed_one_alone_is_a_dead_letter_as_it_came(answers: Answers, case: Case) -> None:
    if case.ends in ("ok", "expired"):
        assert case.name not in answers.letters
        return
    letter, result = answers.letters[case.name], answers.results[case.name]
    assert letter.value == case.value
    assert letter.headers[: len(case.headers)] == case.headers
    assert letter.timestamp_ms == result["source"]["timestamp_ms"]
    assert letter.header("darkroom-reason") == case.ends
    assert letter.header("darkroom-id") == result["id"]
    source = result["source"]
    for name in ("topic", "partition", "offset"):
        assert letter.header(f"__connect.errors.{name}") == str(source[name])
    assert letter.header("__connect.errors.exception.message") == result["message"]
    assert letter.header("__connect.errors.exception.class.name")


def test_every_mate_is_served(answers: Answers) -> None:
    assert [mate["status"] for mate in answers.mates] == ["ok"] * len(CASES)


def test_the_engines_memory_stays_within_its_bound(answers: Answers) -> None:
    warm_kb, after_kb = answers.peak_kb
    assert after_kb - warm_kb < HOSTILE_KB


@pytest.mark.long  # as test_outbox has it
def test_failures_may_be_left_out_of_the_results(topics: Topics, crew: Crew) -> None:
    feed = Feed(topics)
    for key, value, headers in (
        (b"good", PNG, ()),
        (b"bad", HTML, ()),
        (b"late", PNG, (("darkroom-deadline-ms", b"5"),)),
        (b"fine", PNG, ()),
    ):
        feed.send(key, value, headers=headers, timestamp_ms=int(time.time() * 1000) - 10_000)
    feed.flush()

    worker = crew.start(topics, {"results": {"failures": "omit"}})
    wait_served(crew, topics)

    assert [record.key for record in read_all(topics, topics.output)] == [b"good", b"fine"]
    assert [record.key for record in read_all(topics, topics.dead)] == [b"bad"]
    assert worker.stop() == 0
