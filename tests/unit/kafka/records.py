"""Records for the tests of the wire contracts."""

from typing import Any

from worker.types import Position, Record, Request

TIMESTAMP_MS = 1_795_353_364_250


def record(value: bytes | None = b"\xff\xd8", *headers: tuple[str, Any], **changes: Any) -> Record:
    position = Position("images", 3, 1234)
    made = Record(position, 7, b"scanner-7", value, headers, TIMESTAMP_MS, 1.0)
    return made._replace(**changes)


def request(source: Record, **changes: Any) -> Request:
    plain = Request(source, source.value or b"", None, None, {}, None, None, None, ())
    return plain._replace(**changes)
