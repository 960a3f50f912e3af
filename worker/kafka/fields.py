"""One value of a header or of an envelope: checked, or refused by the field's name.

Pure. Must not know where a value stands; the limits are those of `schemas/envelope.v1`.
"""

import re
from binascii import a2b_base64
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from worker.errors import RecordFault
from worker.types import Reason

NAME_MAX_CHARS = 255
TEXT_MAX_CHARS = 1024
URL_MAX_CHARS = 4096
TAGS_MAX = 64
DEADLINE_MAX_MS = 999_999_999_999_999

_NAME = re.compile(r"[\w.-]{1,60}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_SHOWN_CHARS = 60
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}


def schema_fault(field: str, problem: str) -> RecordFault:
    """Make a `request.schema` fault; its message opens with the field's name."""
    return RecordFault(Reason.REQUEST_SCHEMA, f"{field}: {problem}")


def too_large(what: str, size_bytes: int, image_max_bytes: int) -> RecordFault:
    """Make an `image.too-large` fault for encoded bytes."""
    limit = f"limits.image_max_bytes is {image_max_bytes:,}"
    return RecordFault(Reason.IMAGE_TOO_LARGE, f"{what} has {size_bytes:,} bytes, {limit}")


def shown(value: object) -> str:
    """Show a value of unknown kind and size in a message."""
    if isinstance(value, dict | list) or value is None:
        return kind(value)
    text = repr(value[: _SHOWN_CHARS + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def shown_name(name: str) -> str:
    """Show a name of unknown size: as it is when it is a plain one."""
    return name if _NAME.fullmatch(name) else shown(name)


def kind(value: object) -> str:
    """Name a JSON value's kind."""
    return "null" if value is None else _KINDS.get(type(value), "a number")


def guess(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, or nothing."""
    close = get_close_matches(name[:NAME_MAX_CHARS], sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_object(value: object, field: str) -> dict[str, Any]:
    """Check that a value is a JSON object."""
    if not isinstance(value, dict):
        raise schema_fault(field, f"must be a JSON object, got {kind(value)}")
    return value


def check_members(names: Iterable[str], known: Collection[str], at: str) -> None:
    """Refuse a member that is not known: a typo in `versoin` must not serve another version."""
    for name in names:
        if name not in known:
            raise schema_fault(f"{at}{shown_name(name)}", f"is unknown{guess(name, known)}")


def check_text(value: object, field: str, max_chars: int = NAME_MAX_CHARS) -> str | None:
    """Check an optional text of 1 to `max_chars` characters."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise schema_fault(field, f"must be a string, got {kind(value)}")
    if not 0 < len(value) <= max_chars:
        problem = f"must have 1 to {max_chars} characters, has {len(value):,}"
        raise schema_fault(field, problem)
    return value


def check_tags(value: object, field: str) -> dict[str, str] | None:
    """Check an optional map of at most 64 tags, texts to texts (which may be empty)."""
    if value is None:
        return None
    tags = check_object(value, field)
    if len(tags) > TAGS_MAX:
        raise schema_fault(field, f"has {len(tags):,} members, at most {TAGS_MAX} are allowed")
    for name, text in tags.items():
        check_text(name, f"{field}: name of a tag")
        if not isinstance(text, str) or len(text) > TEXT_MAX_CHARS:
            problem = f"{shown_name(name)} must be a string of at most {TEXT_MAX_CHARS} characters"
            raise schema_fault(field, f"{problem}, got {shown(text)}")
    return tags


def check_ms(value: object, field: str) -> int | None:
    """Check an optional whole number of milliseconds; 1000.0 is one, as in JSON Schema."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = int(value)
        if whole == value and 0 <= whole <= DEADLINE_MAX_MS:
            return whole
    problem = f"must be a whole number of milliseconds from 0 to {DEADLINE_MAX_MS}"
    raise schema_fault(field, f"{problem}, got {shown(value)}")


def check_url(value: object, field: str) -> str | None:
    """Check an optional absolute URL (`scheme://...`, printable ASCII)."""
    url = check_text(value, field, URL_MAX_CHARS)
    if url is not None and not _URL.fullmatch(url):
        raise schema_fault(field, "must be an absolute URL (scheme://...) in printable ASCII")
    return url


def check_sha256(value: object, field: str) -> str | None:
    """Check an optional SHA-256 digest in hexadecimal; give it in lower case."""
    digest = check_text(value, field)
    if digest is None:
        return None
    if not _SHA256.fullmatch(digest):
        raise schema_fault(field, f"must have 64 hexadecimal digits, got {shown(digest)}")
    return digest.lower()


def decode_image(value: object, field: str, image_max_bytes: int) -> bytes:
    """Decode an image from standard base64 (RFC 4648 section 4, padded, without line breaks).

    Raises RecordFault: `image.empty`, `image.too-large` before decoding, `request.schema`.
    """
    if not isinstance(value, str):
        raise schema_fault(field, f"must be a string, got {kind(value)}")
    if not value:
        raise RecordFault(Reason.IMAGE_EMPTY, f"{field}: is empty")
    padding = value.endswith("=") + value.endswith("==")
    size_bytes = len(value) * 3 // 4 - padding
    if size_bytes > image_max_bytes:
        raise too_large(f"{field}: the image", size_bytes, image_max_bytes)
    # Python's strict mode lets one `=` too many pass.
    if len(value) % 4 or value.endswith("==="):
        raise schema_fault(field, "is not base64: its length or its padding is wrong")
    try:
        return a2b_base64(value, strict_mode=True)
    except ValueError as error:
        raise schema_fault(field, f"is not base64: {error}") from error
