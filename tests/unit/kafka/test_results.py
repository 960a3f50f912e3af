import json
from typing import Any

import orjson
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kafka.records import TIMESTAMP_MS, record, request
from worker.kafka.results import encode_result, plain_message, record_bytes, result_id
from worker.types import (
    EngineStamp,
    Failed,
    Headers,
    ModelRef,
    ModelStamp,
    Outcome,
    Position,
    Predicted,
    Reason,
    Request,
    Skipped,
    SkipReason,
    Ticket,
    Timing,
)

NOW_MS = TIMESTAMP_MS + 21
TICKET = Ticket(Position("images", 3, 1234), 7, ModelRef("digits", "1"), "active", None)
PREDICTED = Predicted(
    predictions=b'{"digit":[{"label":"7","index":7,"score":0.98}]}',
    width_px=640,
    height_px=480,
    batch_size=16,
    timing=Timing(wait=1.2, decode=2.0, preprocess=0.8, run=9.1, heads=0.1),
    model=ModelStamp("digits", "1", "aa", "bb"),
    engine=EngineStamp("CUDAExecutionProvider", "GPU-1", "fp32", fallback=False),
)


def encoded(
    outcome: Outcome, ticket: Ticket | None = TICKET, asked: Request | None = None
) -> tuple[dict[str, Any], Headers]:
    asked = request(record()) if asked is None else asked
    value, headers = encode_result(asked, ticket, outcome, worker="w-1", now_ms=NOW_MS)
    return orjson.loads(value), headers


def test_a_result_is_the_contracts_json_member_for_member_in_its_order() -> None:
    value, _ = encode_result(request(record()), TICKET, PREDICTED, worker="w-1", now_ms=NOW_MS)
    contract = """
    {"schema": "darkroom.result.v1", "status": "ok", "id": "images/3/1234@1795353364250",
     "request_id": null, "origin": null,
     "source": {"topic": "images", "partition": 3, "offset": 1234, "timestamp_ms": 1795353364250},
     "model": {"name": "digits", "version": "1", "sha256": "aa", "manifest_sha256": "bb"},
     "route": "active", "generation": null,
     "image": {"width": 640, "height": 480},
     "predictions": {"digit": [{"label": "7", "index": 7, "score": 0.98}]},
     "engine": {"provider": "CUDAExecutionProvider", "device": "GPU-1", "precision": "fp32",
                "batch_size": 16, "fallback": false},
     "timing_ms": {"wait": 1.2, "decode": 2.0, "preprocess": 0.8, "run": 9.1, "heads": 0.1},
     "age_ms": 21.0, "worker": "w-1"}
    """
    assert json.loads(value, object_pairs_hook=list) == json.loads(contract, object_pairs_hook=list)


def test_a_result_names_its_record_in_its_headers_and_passes_the_trace_on() -> None:
    asked = request(record(), trace=(("traceparent", b"00-ab"), ("baggage", None)))
    _, headers = encoded(PREDICTED, asked=asked)
    assert headers == (
        ("content-type", b"application/json"),
        ("darkroom-id", b"images/3/1234@1795353364250"),
        ("darkroom-status", b"ok"),
        ("darkroom-model", b"digits"),
        ("darkroom-version", b"1"),
        ("traceparent", b"00-ab"),
        ("baggage", None),
    )


def test_results_of_one_engine_differ_where_their_records_do() -> None:
    encoded(PREDICTED)
    other = PREDICTED._replace(
        batch_size=3,
        model=ModelStamp("digits", "2", "cc", "dd"),
        engine=PREDICTED.engine._replace(fallback=True),
    )
    document, headers = encoded(other)
    assert document["model"]["sha256"] == "cc"
    assert (document["engine"]["batch_size"], document["engine"]["fallback"]) == (3, True)
    assert ("darkroom-version", b"2") in headers


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (Failed(Reason.IMAGE_CORRUPT, "ends early"), "failed", "image.corrupt"),
        (Skipped(SkipReason.EXPIRED, "ends early"), "skipped", "expired"),
    ],
)
def test_what_was_not_served_says_why_and_has_the_same_members(
    outcome: Outcome, status: str, reason: str
) -> None:
    document, headers = encoded(outcome)
    served, _ = encoded(PREDICTED)
    assert list(document) == ["schema", "status", "reason", "message", *list(served)[2:]]
    told = [document[name] for name in ("status", "reason", "message")]
    assert told == [status, reason, "ends early"]
    assert [document[name] for name in ("image", "predictions", "engine", "timing_ms")] == [
        None
    ] * 4
    assert document["model"] == {
        "name": "digits", "version": "1", "sha256": None, "manifest_sha256": None,
    }  # fmt: skip
    assert dict(headers)["darkroom-status"] == status.encode()
    assert dict(headers)["darkroom-model"] == b"digits"


def test_what_was_not_routed_names_no_model() -> None:
    document, headers = encoded(Failed(Reason.REQUEST_JSON, "not JSON"), ticket=None)
    assert (document["model"], document["route"]) == (None, None)
    assert not {"darkroom-model", "darkroom-version"} & {*dict(headers)}


def test_a_result_tells_request_origin_route_and_generation() -> None:
    asked = request(record(), request_id="größe\x00", origin="images/0/1@2")
    document, _ = encoded(PREDICTED, TICKET._replace(route="rule:a", generation=12), asked)
    told = [document[name] for name in ("request_id", "origin", "route", "generation")]
    assert told == ["größe\x00", "images/0/1@2", "rule:a", 12]


@pytest.mark.parametrize(("timestamp_ms", "age_ms"), [(NOW_MS + 5, -5.0), (0, NOW_MS), (-1, None)])
def test_an_age_is_told_where_the_record_has_a_timestamp(
    timestamp_ms: int, age_ms: float | None
) -> None:
    asked = request(record(timestamp_ms=timestamp_ms))
    assert encoded(PREDICTED, asked=asked)[0]["age_ms"] == age_ms


def test_percent_signs_in_names_are_only_that() -> None:
    stamp = ModelStamp("50%d", "%b", "aa", "bb")
    outcome = PREDICTED._replace(model=stamp, predictions=b'{"digit":"100%"}')
    value, _ = encoded(outcome, TICKET._replace(route="rule:%s"))
    assert (value["model"]["name"], value["model"]["version"]) == ("50%d", "%b")
    assert value["route"] == "rule:%s"
    assert value["predictions"] == {"digit": "100%"}


def test_no_number_can_break_the_json() -> None:
    odd = PREDICTED._replace(timing=Timing(float("nan"), float("inf"), -0.0, 1e300, 0.1234567))
    document, _ = encoded(odd)
    assert document["timing_ms"] == {
        "wait": None, "decode": None, "preprocess": 0.0, "run": 1e300, "heads": 0.123,
    }  # fmt: skip


def test_records_have_different_ids_and_repeats_the_same() -> None:
    one = record()
    assert result_id(one) == result_id(record(b"other", epoch=9, polled_s=2.0))
    others = [
        record(position=Position("images", 3, 1235)),
        record(position=Position("images", 4, 1234)),
        record(position=Position("image", 3, 1234)),
        record(timestamp_ms=1),
    ]
    assert len({result_id(each) for each in (one, *others)}) == 5


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("one\r\n\ttwo\x00\x1b[31m", "one two [31m"),
        ("half \ud800 pair\u2028", "half   pair"),
        ("x" * 2000, "x" * 2000),
        ("x" * 2001, "x" * 1999 + "…"),
    ],
)
def test_a_message_is_one_bounded_printable_line(message: str, expected: str) -> None:
    assert plain_message(message) == expected


header = st.tuples(st.text(max_size=100), st.none() | st.binary(max_size=100))
wire_headers = st.lists(header, max_size=4).map(tuple) | header.map(lambda one: (one,) * 40)


@given(st.none() | st.binary(max_size=300), st.none() | st.binary(max_size=300), wire_headers)
def test_a_record_never_takes_more_on_the_wire_than_reckoned(
    key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    batch = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=1, producer_epoch=0,
        base_sequence=0, batch_size=1 << 20,
    )  # fmt: skip
    assert batch.append(0, TIMESTAMP_MS, key, value, headers=list(headers))
    reckoned = record_bytes(key, value, headers)
    assert len(batch.build()) <= reckoned <= len(batch.build()) + 31 + 10 * len(headers)
    assert DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, list(headers)) <= reckoned
