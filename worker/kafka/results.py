"""Outcome -> result record: exactly the JSON of `schemas/result.v1`, and its headers.

Pure; runs for every record, so what repeats (model, engine, headers) is built once and kept.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
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
    record = request.record
    topic, partition, offset = record.position
    timestamp_ms = record.timestamp_ms
    identity = result_id(record)
    ending = _ending(ticket, outcome)
    served = outcome if isinstance(outcome, Predicted) else None
    result = {
        "schema": RESULT_SCHEMA,
        "status": ending.status,
        **ending.fault,
        "id": identity,
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
        "image": served and {"width": served.width_px, "height": served.height_px},
        "predictions": served and orjson.Fragment(served.predictions),
        "engine": served and _engine_json(served.engine, served.batch_size),
        "timing_ms": served and _timing_json(served.timing),
        "age_ms": float(now_ms - timestamp_ms) if timestamp_ms >= 0 else None,
        "worker": worker,
    }
    headers = (_CONTENT_TYPE, (ID, identity.encode()), *ending.headers, *request.trace)
    return orjson.dumps(result), headers


class _Ending(NamedTuple):
    """What a result says of how its record ended; equal for many records."""

    status: str
    headers: Headers
    model: orjson.Fragment | dict[str, str | None] | None
    fault: Mapping[str, str] = MappingProxyType({})


def _ending(ticket: Ticket | None, outcome: Outcome) -> _Ending:
    if isinstance(outcome, Predicted):
        return _served(outcome.model)
    status = "failed" if isinstance(outcome, Failed) else "skipped"
    fault = {"reason": outcome.reason.value, "message": plain_message(outcome.message)}
    if ticket is None:
        return _Ending(status, ((STATUS, status.encode()),), None, fault)
    name, version = ticket.model
    model = {"name": name, "version": version, "sha256": None, "manifest_sha256": None}
    return _Ending(status, _ending_headers(status, name, version), model, fault)


@lru_cache(maxsize=64)
def _served(model: ModelStamp) -> _Ending:
    headers = _ending_headers("ok", model.name, model.version)
    return _Ending("ok", headers, orjson.Fragment(orjson.dumps(model._asdict())))


def _ending_headers(status: str, model: str, version: str) -> Headers:
    return ((STATUS, status.encode()), (MODEL, model.encode()), (VERSION, version.encode()))


@lru_cache(maxsize=4096)
def _engine_json(engine: EngineStamp, batch_size: int) -> orjson.Fragment:
    members = {
        "provider": engine.provider,
        "device": engine.device,
        "precision": engine.precision,
        "batch_size": batch_size,
        "fallback": engine.fallback,
    }
    return orjson.Fragment(orjson.dumps(members))


def _timing_json(timing: Timing) -> dict[str, float]:
    wait, decode, preprocess, run, heads = timing
    return {
        "wait": round(wait, 3),
        "decode": round(decode, 3),
        "preprocess": round(preprocess, 3),
        "run": round(run, 3),
        "heads": round(heads, 3),
    }
