"""A failed record -> its dead letter: the original, and why it could not be served.

Pure. The error headers are those of Kafka Connect's `DeadLetterQueueReporter`, which tools for
dead letters know. Ours stand behind the original ones: of a name given twice the last counts.
"""

from hashlib import sha256

import orjson

from worker.errors import RecordFault
from worker.kafka.envelope import CONTENT_TYPE, ID, REASON
from worker.kafka.ledger import DeadLetter
from worker.kafka.results import plain_message, record_bytes, result_id
from worker.types import Failed, Headers, Record

STUB_SCHEMA = "darkroom.stub.v1"
STUB_CONTENT_TYPE = b"application/vnd.darkroom.stub+json"

_CONNECT = "__connect.errors."
_EXCEPTION = f"{RecordFault.__module__}.{RecordFault.__qualname__}".encode()


def encode_dead_letter(
    record: Record, failed: Failed, *, worker: str, max_bytes: int
) -> DeadLetter:
    """Keep key, value, headers and timestamp of a record, and say what was wrong with it.

    A letter that takes more than `max_bytes` on the wire gets a stub (`schemas/stub.v1`) for its
    value; if its headers, and then its key, are still too much they are left out as well.
    """
    ours = _error_headers(record, failed, worker)
    whole = DeadLetter(
        record.key, record.value, record.headers + ours, record.timestamp_ms, failed.reason
    )
    if _fits(whole, max_bytes):
        return whole
    stub_type = (CONTENT_TYPE, STUB_CONTENT_TYPE)
    dropped = ["value"]
    stub = whole._replace(
        value=_encode_stub(record, dropped), headers=(*record.headers, stub_type, *ours)
    )
    if not _fits(stub, max_bytes):
        dropped.append("headers")
        stub = stub._replace(value=_encode_stub(record, dropped), headers=(stub_type, *ours))
    if not _fits(stub, max_bytes):
        dropped.append("key")
        stub = stub._replace(value=_encode_stub(record, dropped), key=None)
    return stub


def _error_headers(record: Record, failed: Failed, worker: str) -> Headers:
    position = record.position
    return (
        (f"{_CONNECT}topic", position.topic.encode()),
        (f"{_CONNECT}partition", b"%d" % position.partition),
        (f"{_CONNECT}offset", b"%d" % position.offset),
        (f"{_CONNECT}connector.name", b"darkroom"),
        (f"{_CONNECT}task.id", worker.encode()),
        (f"{_CONNECT}exception.class.name", _EXCEPTION),
        (f"{_CONNECT}exception.message", plain_message(failed.message).encode()),
        (REASON, failed.reason.encode()),
        (ID, result_id(record).encode()),
    )


def _fits(letter: DeadLetter, max_bytes: int) -> bool:
    return record_bytes(letter.key, letter.value, letter.headers) <= max_bytes


def _encode_stub(record: Record, dropped: list[str]) -> bytes:
    topic, partition, offset = record.position
    value = record.value
    stub = {
        "schema": STUB_SCHEMA,
        "id": result_id(record),
        "source": {
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "timestamp_ms": record.timestamp_ms,
        },
        "dropped": dropped,
        "key_bytes": None if record.key is None else len(record.key),
        "value_bytes": None if value is None else len(value),
        "sha256": None if value is None else sha256(value).hexdigest(),
    }
    return orjson.dumps(stub)
