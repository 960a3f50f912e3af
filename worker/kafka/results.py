"""Outcome -> result record: exactly the JSON of `schemas/result.v1`, and its headers.

Pure; runs for every record, so what repeats (model, engine, headers) is built once and kept.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from typing import NamedTuple

import orjson

from worker.kafka.envelope import CONTENT_TYPE, ID, MODEL, STATUS, VERSION
from worker.types import (
    EngineStamp,
    Failed,
    Headers,
    ModelStamp,
    Outcome,
    Predicted,
    Record,
    Request,
    Skipped,
    Ticket,
    Timing,
)

RESULT_SCHEMA = "darkroom.result.v1"
MESSAGE_MAX_CHARS = 2000

_CONTENT_TYPE = (CONTENT_TYPE, b"application/json")
# Kafka's record format v2: a batch of one record, every varint at its longest.
_BATCH_BYTES = 61
_RECORD_BYTES = 31
_HEADER_BYTES = 10

# Control characters, line ends of Unicode, and halves of surrogate pairs (which are not UTF-8).
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def result_id(record: Record) -> str:
    """Name a record for ever: a repeat of it has the same id, another record never has."""
    topic, partition, offset = record.position
    return f"{topic}/{partition}/{offset}@{record.timestamp_ms}"


def plain_message(message: str) -> str:
    """Make a message fit for a result or a header: one line, at most 2,000 characters."""
    line = _UNPRINTABLE.sub(" ", message[: MESSAGE_MAX_CHARS + 1]).strip()
    return line if len(line) <= MESSAGE_MAX_CHARS else f"{line[: MESSAGE_MAX_CHARS - 1]}…"


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Give an upper bound of what a record takes alone on the wire, against `max.message.bytes`."""
    size = _BATCH_BYTES + _RECORD_BYTES + len(key or b"") + len(value or b"")
    for name, content in headers:
        size += _HEADER_BYTES + len(name.encode()) + len(content or b"")
    return size


def encode_result(
    request: Request, ticket: Ticket | None, outcome: Outcome, *, worker: str, now_ms: int
) -> tuple[bytes, Headers]:
    """Write the value and the headers of the result record.

    `ticket` is None for a record that was not routed; `now_ms` are epoch milliseconds.
    """
    if isinstance(outcome, Predicted):
        assert ticket is not None
        return _served(request, ticket, outcome, worker=worker, now_ms=now_ms)
    identity = result_id(request.record).encode()
    value, ending = _unserved(request, ticket, outcome, worker=worker, now_ms=now_ms)
    return value, (_CONTENT_TYPE, (ID, identity), *ending, *request.trace)


# Filled in by `%`, which takes a third of the time that a dictionary takes with `orjson.dumps`:
# first (where a percent sign stands twice) with what the results of a batch have in common.
_SERVED = (
    b'{"schema":"darkroom.result.v1","status":"ok","id":"%%b","request_id":%%b,"origin":%%b,'
    b'"source":{"topic":"%%b","partition":%%d,"offset":%%d,"timestamp_ms":%%d},"model":%b,'
    b'"route":%b,"generation":%b,"image":{"width":%%d,"height":%%d},"predictions":%%b,"engine":%b,'
    b'"timing_ms":%%b,'
    b'"age_ms":%%b,"worker":%b}'
)


class _Form(NamedTuple):
    """What the results of a batch have in common."""

    value: bytes
    ending: Headers


@lru_cache(maxsize=4096)
def _form(
    model: ModelStamp,
    engine: EngineStamp,
    batch_size: int,
    ticket: tuple[str, int | None],
    worker: str,
) -> _Form:
    route, generation = ticket
    parts = (
        orjson.dumps(model._asdict()),
        _json(route),
        _json(generation),
        _engine_json(engine, batch_size),
        _json(worker),
    )
    value = _SERVED % tuple(part.replace(b"%", b"%%") for part in parts)
    return _Form(value, _ending_headers("ok", model.name, model.version))


def _served(
    request: Request, ticket: Ticket, outcome: Predicted, *, worker: str, now_ms: int
) -> tuple[bytes, Headers]:
    record = request.record
    timestamp_ms = record.timestamp_ms
    predictions, width_px, height_px, batch_size, timing, model, engine = outcome
    name, partition, offset = record.position
    topic = name.encode()  # no character of a topic's name needs an escape
    identity = b"%b/%d/%d@%d" % (topic, partition, offset, timestamp_ms)
    form, ending = _form(model, engine, batch_size, ticket[3:], worker)
    value = form % (
        identity,
        _json(request.request_id),
        _json(request.origin),
        topic,
        partition,
        offset,
        timestamp_ms,
        width_px,
        height_px,
        predictions,
        _timing_json(timing),
        b"%d.0" % (now_ms - timestamp_ms) if timestamp_ms >= 0 else b"null",
    )
    return value, (_CONTENT_TYPE, (ID, identity), *ending, *request.trace)


def _json(value: str | int | None) -> bytes:
    return b"null" if value is None else orjson.dumps(value)


def _unserved(
    request: Request,
    ticket: Ticket | None,
    outcome: Failed | Skipped,
    *,
    worker: str,
    now_ms: int,
) -> tuple[bytes, Headers]:
    record = request.record
    topic, partition, offset = record.position
    timestamp_ms = record.timestamp_ms
    ending = _ending(ticket, outcome)
    result = {
        "schema": RESULT_SCHEMA,
        "status": ending.status,
        **ending.fault,
        "id": result_id(record),
        "request_id": request.request_id,
        "origin": request.origin,
        "source": {
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "timestamp_ms": timestamp_ms,
        },
        "model": ending.model,
        "route": None if ticket is None else ticket.route,
        "generation": None if ticket is None else ticket.generation,
        "image": None,
        "predictions": None,
        "engine": None,
        "timing_ms": None,
        "age_ms": float(now_ms - timestamp_ms) if timestamp_ms >= 0 else None,
        "worker": worker,
    }
    return orjson.dumps(result), ending.headers


class _Ending(NamedTuple):
    """What a result says of how its record ended without being served."""

    status: str
    headers: Headers
    model: dict[str, str | None] | None
    fault: Mapping[str, str]


def _ending(ticket: Ticket | None, outcome: Failed | Skipped) -> _Ending:
    status = "failed" if isinstance(outcome, Failed) else "skipped"
    fault = {"reason": outcome.reason.value, "message": plain_message(outcome.message)}
    if ticket is None:
        return _Ending(status, ((STATUS, status.encode()),), None, fault)
    name, version = ticket.model
    model = {"name": name, "version": version, "sha256": None, "manifest_sha256": None}
    return _Ending(status, _ending_headers(status, name, version), model, fault)


def _ending_headers(status: str, model: str, version: str) -> Headers:
    return ((STATUS, status.encode()), (MODEL, model.encode()), (VERSION, version.encode()))


def _engine_json(engine: EngineStamp, batch_size: int) -> bytes:
    members = {
        "provider": engine.provider,
        "device": engine.device,
        "precision": engine.precision,
        "batch_size": batch_size,
        "fallback": engine.fallback,
    }
    return orjson.dumps(members)


_TIMING = b'{"wait":%.3f,"decode":%.3f,"preprocess":%.3f,"run":%.3f,"heads":%.3f}'


def _timing_json(timing: Timing) -> bytes:
    if isfinite(sum(timing)):
        return _TIMING % timing
    return orjson.dumps(
        {
            name: round(value, 3) if isfinite(value) else None
            for name, value in timing._asdict().items()
        }
    )
