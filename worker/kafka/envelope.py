"""Record -> request: what the producer asks, read from headers and value.

Pure. Must not know brokers, models or pixels: whether the bytes are an image is the engine's word.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from worker.errors import RecordFault
from worker.kafka.envelope_json import (
    NOTHING_ASKED,
    Asked,
    Body,
    load_json,
    read_envelope,
    read_event,
    request_id_in,
)
from worker.kafka.fields import (
    DEADLINE_MAX_MS,
    NAME_MAX_CHARS,
    TEXT_MAX_CHARS,
    URL_MAX_CHARS,
    check_members,
    check_sha256,
    check_tags,
    check_text,
    check_url,
    schema_fault,
    shown,
    too_large,
)
from worker.types import Headers, Reason, Record, Reference, Request

# Headers of an input record, all optional. Case does not matter; of a repeated name the last one
# counts, as with Kafka's own `lastHeader`; a null value is an absent header. An unknown name that
# begins with `darkroom-` is refused: a typo must not serve another version.
CONTENT_TYPE = "content-type"
MODEL = "darkroom-model"
VERSION = "darkroom-version"
TAGS = "darkroom-tags"  # user_tier=premium,ab_group=v2
REQUEST_ID = "darkroom-request-id"
DEADLINE_MS = "darkroom-deadline-ms"  # counted from the record's timestamp
REF = "darkroom-ref"  # claim check: the value is empty, the image is at this URL
REF_SHA256 = "darkroom-ref-sha256"
ORIGIN = "darkroom-origin"  # set by a redrive: id of the first record
CE_ID = "ce_id"  # CloudEvents binary mode: the request id where nothing else gives one
CE_DATAREF = "ce_dataref"  # CloudEvents' own claim check, used where the value is empty
# Headers of results and dead letters; on an input record (a plain copy back) they say nothing.
ID = "darkroom-id"
STATUS = "darkroom-status"
REASON = "darkroom-reason"

NO_TAGS: Mapping[str, str] = MappingProxyType({})

_JSON = "application/json"
_CLOUDEVENT = "application/cloudevents+json"
_OURS = "darkroom-"
_KNOWN = (MODEL, VERSION, TAGS, REQUEST_ID, DEADLINE_MS, REF, REF_SHA256, ORIGIN)
_KNOWN_OR_IDLE = frozenset((*_KNOWN, ID, STATUS, REASON))
_READ_TOO = frozenset((CONTENT_TYPE, CE_ID, CE_DATAREF))


def parse(record: Record, *, image_max_bytes: int, forward_headers: frozenset[str]) -> Request:
    """Understand a record.

    Raises RecordFault: `image.empty`, `image.too-large` (encoded bytes above `image_max_bytes`),
    `request.json` with the position, `request.schema` with the name of the header or member.
    """
    trace: Headers = ()
    if record.headers:
        found, trace = _scan(record.headers, forward_headers)
        if found and not _says_nothing(found):
            return _parse_asked(record, found, trace, image_max_bytes)
    image = _raw(record.value, image_max_bytes)
    return Request(record, image, None, None, NO_TAGS, None, None, None, trace)


def salvage(record: Record, *, forward_headers: frozenset[str]) -> Request:
    """Keep what the failed result of a record that `parse` refused can still say. Never raises.

    The image is empty; request id, origin and trace are there where they can be read.
    """
    found, trace = _scan(record.headers, forward_headers)
    request_id = _readable(found, REQUEST_ID)
    if request_id is None and _readable(found, CONTENT_TYPE) is not None and _media_type(found):
        request_id = request_id_in(record.value or b"")
    request_id = request_id or _readable(found, CE_ID)
    origin = _readable(found, ORIGIN)
    return Request(record, b"", None, None, NO_TAGS, request_id, origin, None, trace)


def _scan(
    headers: Headers, forward_headers: frozenset[str]
) -> tuple[dict[str, bytes | None], Headers]:
    """Split headers into those that we read, by lower-case name, and those that go on."""
    found: dict[str, bytes | None] = {}
    trace: list[tuple[str, bytes | None]] = []
    for name, value in headers:
        if name in forward_headers:
            trace.append((name, value))
        key = name.lower()
        if key.startswith(_OURS) or key in _READ_TOO:
            found[key] = value
    return found, tuple(trace)


def _says_nothing(found: dict[str, bytes | None]) -> bool:
    """Tell a record that has a content type alone, and not one of the JSON forms': an image."""
    return len(found) == 1 and CONTENT_TYPE in found and _media_type(found) == ""


def _parse_asked(
    record: Record, found: dict[str, bytes | None], trace: Headers, image_max_bytes: int
) -> Request:
    asked = _read_headers(found)
    origin = _text(found, ORIGIN, TEXT_MAX_CHARS)
    ce_id = _text(found, CE_ID, TEXT_MAX_CHARS)
    body = _read_value(record.value, found, image_max_bytes)
    if body.asked is not NOTHING_ASKED:
        asked = _agreed(asked, body.asked)
    return Request(
        record=record,
        image=body.image,
        model=asked.model,
        version=asked.version,
        tags=asked.tags or NO_TAGS,
        request_id=asked.request_id or body.event_id or ce_id,
        origin=origin,
        deadline_ms=_deadline(asked.deadline_ms, record.timestamp_ms),
        trace=trace,
    )


def _read_headers(found: dict[str, bytes | None]) -> Asked:
    ours = [name for name in found if name.startswith(_OURS) and name not in _KNOWN_OR_IDLE]
    check_members(ours, _KNOWN, "header ")
    return Asked(
        model=_text(found, MODEL),
        version=_text(found, VERSION),
        tags=_parse_tags(found.get(TAGS)),
        request_id=_text(found, REQUEST_ID, TEXT_MAX_CHARS),
        deadline_ms=_parse_deadline(found.get(DEADLINE_MS)),
    )


def _read_value(value: bytes | None, found: dict[str, bytes | None], image_max_bytes: int) -> Body:
    media_type = _media_type(found)
    reference = _read_reference(found, empty=not value)
    if reference is not None:
        return Body(reference)
    if value and media_type == _JSON:
        return read_envelope(load_json(value, image_max_bytes), image_max_bytes)
    if value and media_type == _CLOUDEVENT:
        return read_event(load_json(value, image_max_bytes), image_max_bytes)
    return Body(_raw(value, image_max_bytes))


def _raw(value: bytes | None, image_max_bytes: int) -> bytes:
    if not value:
        raise RecordFault(Reason.IMAGE_EMPTY, "the record's value is empty")
    if len(value) > image_max_bytes:
        raise too_large("the record's value", len(value), image_max_bytes)
    return value


def _media_type(found: dict[str, bytes | None]) -> str:
    """Give the media type when it is one of the JSON forms', else "": the magic decides."""
    content_type = found.get(CONTENT_TYPE)
    if content_type is None:
        return ""
    short = len(content_type) <= NAME_MAX_CHARS  # what is kept must stay small
    return _kept_json_type(content_type) if short else _json_type(content_type)


def _json_type(content_type: bytes) -> str:
    """Read `Application/JSON; charset=utf-8` as JSON; raise RecordFault for what is not UTF-8."""
    media_type = _decode(content_type, CONTENT_TYPE).partition(";")[0].strip().lower()
    return media_type if media_type in (_JSON, _CLOUDEVENT) else ""


_kept_json_type = lru_cache(maxsize=256)(_json_type)


def _text(found: dict[str, bytes | None], name: str, max_chars: int = NAME_MAX_CHARS) -> str | None:
    value = found.get(name)
    return None if value is None else check_text(_decode(value, name), f"header {name}", max_chars)


def _decode(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise schema_fault(f"header {name}", f"is not UTF-8 at byte {error.start}") from error


def _readable(found: dict[str, bytes | None], name: str) -> str | None:
    try:
        return _text(found, name, TEXT_MAX_CHARS)
    except RecordFault:
        return None


def _parse_tags(header: bytes | None) -> Mapping[str, str] | None:
    """Read `user_tier=premium,ab_group=v2`; spaces around names and values do not count."""
    if header is None or not header.strip():
        return None
    field = f"header {TAGS}"
    text = _decode(header, TAGS)
    tags: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise schema_fault(field, f"{shown(pair)} is not name=value")
        if name in tags:
            raise schema_fault(field, f"gives {shown(name)} twice")
        tags[name] = value
    return check_tags(tags, field)


def _parse_deadline(header: bytes | None) -> int | None:
    if header is None:
        return None
    text = _decode(header, DEADLINE_MS)
    # int() alone would also take "1_000", " 7" and digits of other scripts.
    if not header.isdigit() or len(header) > len(str(DEADLINE_MAX_MS)):
        problem = f"must be a whole number of milliseconds, got {shown(text)}"
        raise schema_fault(f"header {DEADLINE_MS}", problem)
    return int(text)


def _read_reference(found: dict[str, bytes | None], *, empty: bool) -> Reference | None:
    url = _url(found, REF)
    digest = _text(found, REF_SHA256)
    if url is not None:
        if not empty:
            raise schema_fault(f"header {REF}", "stands beside a value; leave the value empty")
        return Reference(url, check_sha256(digest, f"header {REF_SHA256}"))
    if digest is not None:
        raise schema_fault(f"header {REF_SHA256}", f"needs header {REF}")
    # A CloudEvent may carry its data and a dataref to the same data: then the data serves.
    dataref = _url(found, CE_DATAREF) if empty else None
    return None if dataref is None else Reference(dataref, None)


def _url(found: dict[str, bytes | None], name: str) -> str | None:
    return check_url(_text(found, name, URL_MAX_CHARS), f"header {name}")


def _agreed(headers: Asked, body: Asked) -> Asked:
    """Take each word from whoever says it; two different words are refused."""
    for name, one, other in zip(Asked._fields, headers, body, strict=True):
        if one is not None and other is not None and one != other:
            problem = f"the headers say {shown(one)}, the envelope {shown(other)}"
            raise schema_fault(name, problem)
    said = {name: word for name, word in body._asdict().items() if word is not None}
    return headers._replace(**said)


def _deadline(after_ms: int | None, timestamp_ms: int) -> int | None:
    if after_ms is None:
        return None
    if timestamp_ms < 0:
        raise schema_fault("deadline_ms", "the record has no timestamp to count from")
    return timestamp_ms + after_ms
