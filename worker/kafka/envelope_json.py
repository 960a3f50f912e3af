"""The JSON forms of an input record: Darkroom's envelope, and a CloudEvent around it.

Pure; written by hand for speed and for messages, proven equal to `schemas/`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from worker.errors import RecordFault
from worker.kafka.fields import (
    TEXT_MAX_CHARS,
    check_members,
    check_ms,
    check_object,
    check_sha256,
    check_tags,
    check_text,
    check_url,
    decode_image,
    schema_fault,
    shown,
    too_large,
)
from worker.types import Image, Reason, Reference

ENVELOPE_SCHEMA = "darkroom.envelope.v1"
CLOUDEVENTS_VERSION = "1.0"

_MEMBERS = ("schema", "image", "model", "version", "tags", "request_id", "deadline_ms")
_IMAGE_MEMBERS = ("base64", "ref", "sha256")
_SLACK_BYTES = 1 << 20  # what an envelope may hold beside its image
_SEARCHED_MAX_BYTES = 16 << 20


class Asked(NamedTuple):
    """What a producer asks beside the image, in headers or in an envelope; None = not said."""

    model: str | None = None
    version: str | None = None
    tags: Mapping[str, str] | None = None
    request_id: str | None = None
    deadline_ms: int | None = None
    """After the record's timestamp."""


NOTHING_ASKED = Asked()


class Body(NamedTuple):
    """What a record's value says."""

    image: Image
    asked: Asked = NOTHING_ASKED
    event_id: str | None = None
    """The CloudEvent's id."""


def load_json(value: bytes, image_max_bytes: int) -> Any:
    """Load the JSON of a value. Raises RecordFault: `image.too-large`, `request.json`."""
    # Base64 is 4/3 of the image and escapes make it longer: twice is above every honest envelope.
    if len(value) > 2 * image_max_bytes + _SLACK_BYTES:
        raise too_large("the envelope", len(value), image_max_bytes)
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise RecordFault(Reason.REQUEST_JSON, f"the value is not JSON: {error}") from error


def read_envelope(document: object, image_max_bytes: int, at: str = "") -> Body:
    """Read an envelope (`schemas/envelope.v1`); `at` opens the names of its fields in messages.

    Raises RecordFault: `request.schema`, `image.empty`, `image.too-large`.
    """
    envelope = check_object(document, at.rstrip(".") or "envelope")
    check_members(envelope, _MEMBERS, at)
    _check_constant(envelope, "schema", ENVELOPE_SCHEMA, at)
    request_id = envelope.get("request_id")
    asked = Asked(
        model=check_text(envelope.get("model"), f"{at}model"),
        version=check_text(envelope.get("version"), f"{at}version"),
        tags=check_tags(envelope.get("tags"), f"{at}tags"),
        request_id=check_text(request_id, f"{at}request_id", TEXT_MAX_CHARS),
        deadline_ms=check_ms(envelope.get("deadline_ms"), f"{at}deadline_ms"),
    )
    if "image" not in envelope:
        raise schema_fault(f"{at}image", "is missing")
    return Body(_read_image(envelope["image"], f"{at}image", image_max_bytes), asked)


def read_event(document: object, image_max_bytes: int) -> Body:
    """Read a CloudEvent in structured mode (CloudEvents 1.0, JSON format).

    Its data is an envelope, or its data_base64 or dataref is the image itself; extensions are
    allowed and unread. Raises as `read_envelope`.
    """
    event = check_object(document, "event")
    _check_constant(event, "specversion", CLOUDEVENTS_VERSION, "")
    for name in ("id", "source", "type"):
        if check_text(event.get(name), name, TEXT_MAX_CHARS) is None:
            raise schema_fault(name, "is missing")
    event_id: str = event["id"]
    url = check_url(event.get("dataref"), "dataref")
    data, data_base64 = event.get("data"), event.get("data_base64")
    if data is not None and data_base64 is not None:
        raise schema_fault("data_base64", "stands beside data; give one of the two")
    if data is not None:
        return read_envelope(data, image_max_bytes, "data.")._replace(event_id=event_id)
    if data_base64 is not None:
        image = decode_image(data_base64, "data_base64", image_max_bytes)
        return Body(image, event_id=event_id)
    if url is None:
        raise schema_fault("data", "is missing, and so are data_base64 and dataref")
    return Body(Reference(url, None), event_id=event_id)


def request_id_in(value: bytes) -> str | None:
    """Find the request id in a value that was refused, unless it is huge. Never raises."""
    if len(value) > _SEARCHED_MAX_BYTES:
        return None
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    data = document.get("data")
    inner = data.get("request_id") if isinstance(data, dict) else None
    found = document.get("request_id") or inner or document.get("id")
    return found if isinstance(found, str) and len(found) <= TEXT_MAX_CHARS else None


def _check_constant(members: dict[str, Any], name: str, expected: str, at: str) -> None:
    if name not in members:
        raise schema_fault(f"{at}{name}", f'is missing, must be "{expected}"')
    if members[name] != expected:
        raise schema_fault(f"{at}{name}", f'must be "{expected}", got {shown(members[name])}')


def _read_image(document: object, at: str, image_max_bytes: int) -> Image:
    image = check_object(document, at)
    check_members(image, _IMAGE_MEMBERS, f"{at}.")
    if "base64" in image:
        for name in ("ref", "sha256"):
            if name in image:
                raise schema_fault(f"{at}.{name}", "stands beside base64; it belongs to a ref")
        return decode_image(image["base64"], f"{at}.base64", image_max_bytes)
    url = check_url(image.get("ref"), f"{at}.ref")
    if url is None:
        raise schema_fault(f"{at}.ref", "is missing, and so is base64; give one of the two")
    return Reference(url, check_sha256(image.get("sha256"), f"{at}.sha256"))
