"""The members that documents of the control channel share: names, texts, selectors, rules, limits.

Each is read by a `Reader`, which collects what is wrong; bounds are those of `schemas/`. What one
member says of another is checked by those who have the whole.
"""

import re
from collections.abc import Mapping, Sized
from typing import Any, Final, NamedTuple

from worker.control.messages import NO_THRESHOLDS, LiveLimits, Selector, frozen
from worker.models.document import ABSENT, Reader, below
from worker.models.router import NOTHING, Match, Rule

DOCUMENT_MAX_BYTES: Final = 1_048_576
INTEGER_MAX: Final = 2**53 - 1
"""What every reader of JSON can count to."""
ITEMS_MAX: Final = 1000
MEMBERS_MAX: Final = 10_000
"""Workers of a fleet."""
TEXT_MAX_CHARS: Final = 255
VALUE_MAX_CHARS: Final = 1024
"""Of a tag or a header, as in `schemas/envelope.v1`."""
REASON_MAX_CHARS: Final = 2000
BATCH_MAX_SIZE: Final = 4096
WAIT_MAX_MS: Final = 60_000.0
SLO_MIN_MS: Final = 1.0
WEIGHT_MAX: Final = 1_000_000


class Form(NamedTuple):
    """What a text must look like."""

    pattern: re.Pattern[str]
    words: str


NAME: Final = Form(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,127}"),
    "1 to 128 of A-Z a-z 0-9 . _ + ! -, the first a letter or a digit",
)
"""Of a model, a version, an alias, a rule: as a folder of the repository may be called."""
FLEET: Final = Form(re.compile(r"[A-Za-z0-9._-]{1,64}"), "1 to 64 of A-Z a-z 0-9 . _ -")
EPOCH: Final = Form(re.compile(r"[A-Za-z0-9-]{1,64}"), "1 to 64 of A-Z a-z 0-9 -")
SHA256: Final = Form(re.compile(r"[0-9a-f]{64}"), "64 digits of 0-9 a-f")
TOPIC: Final = Form(re.compile(r"[A-Za-z0-9._-]{1,249}"), "1 to 249 of A-Z a-z 0-9 . _ -")
HEAD: Final = Form(
    re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}"),
    "1 to 64 of A-Z a-z 0-9 _ -, not first a digit or -",
)
LOWER: Final = Form(re.compile(r"[^A-Z]*"), "in lower case")


def check_form(reader: Reader, text: str, field: str, form: Form) -> bool:
    fits = form.pattern.fullmatch(text) is not None
    if not fits:
        reader.wrong(field, f"must be {form.words}, is {text[:60]!r}")
    return fits


def check_count(reader: Reader, items: Sized, field: str, most: int = ITEMS_MAX) -> None:
    if len(items) > most:
        reader.wrong(field, f"has {len(items)} items, may have at most {most}")


def read_form(reader: Reader, value: Any, field: str, form: Form = NAME) -> str:
    """Read a text of a form; "" stands in for what is absent or wrong."""
    text = reader.text(value, field)
    return text if text and check_form(reader, text, field, form) else ""


def read_text(reader: Reader, value: Any, field: str, *, most: int = TEXT_MAX_CHARS) -> str:
    """Read any text that is not empty; "" stands in for what is absent or wrong."""
    return _short(reader, reader.text(value, field), field, most)


def read_count(
    reader: Reader, value: Any, field: str, *, least: int = 0, most: int = INTEGER_MAX
) -> int:
    return reader.integer(value, field, least=least, most=most)


def read_number(
    reader: Reader, value: Any, field: str, *, least: float, most: float, default: float = 0.0
) -> float:
    number = reader.number(value, field, default=max(least, default))
    if not least <= number <= most:
        reader.wrong(field, f"must be from {least:g} to {most:g}, is {number:g}")
    return number


def read_names(reader: Reader, value: Any, field: str, *, empty: bool = True) -> dict[str, Any]:
    """Read a mapping from names to values that are still to be read."""
    members = reader.mapping(value, field, empty=empty)
    check_count(reader, members, field)
    for name in members:
        check_form(reader, name, below(field, name), NAME)
    return members


def read_texts(
    reader: Reader,
    value: Any,
    field: str,
    *,
    most: int = TEXT_MAX_CHARS,
    form: Form | None = None,
    empty: bool = False,
) -> Mapping[str, str]:
    """Read a mapping from texts (of a form) to texts, which may be empty."""
    texts = {}
    for name, member in reader.mapping(value, field, empty=empty).items():
        at = below(field, name)
        if not name:
            reader.wrong(at, "is no name")
        _short(reader, name, at, TEXT_MAX_CHARS)
        if form is not None:
            check_form(reader, name, at, form)
        texts[name] = "" if member == "" else read_text(reader, member, at, most=most)
    check_count(reader, texts, field)
    return frozen(texts) if texts else NOTHING


def read_selector(reader: Reader, value: Any, field: str) -> Selector:
    members = reader.members(value, field, required=(), optional=("worker", "labels"))
    if isinstance(value, dict) and (members["worker"] is ABSENT) == (members["labels"] is ABSENT):
        reader.wrong(field, "must have either worker or labels; leave it out for the whole fleet")
    return Selector(
        worker=read_text(reader, members["worker"], f"{field}.worker") or None,
        labels=read_texts(reader, members["labels"], f"{field}.labels"),
    )


def read_aliases(reader: Reader, value: Any, field: str) -> Mapping[str, str]:
    aliases = {
        name: read_form(reader, version, below(field, name))
        for name, version in read_names(reader, value, field).items()
    }
    return frozen(aliases)


def read_rules(reader: Reader, value: Any, field: str) -> tuple[Rule, ...]:
    items = reader.items(value, field, empty=True)
    check_count(reader, items, field)
    return tuple(_rule(reader, at, item) for at, item in items)


def read_split(reader: Reader, value: Any, field: str) -> Mapping[str, int]:
    weights = {
        name: read_count(reader, weight, below(field, name), least=1, most=WEIGHT_MAX)
        for name, weight in read_names(reader, value, field).items()
    }
    return frozen(weights)


def read_limits(reader: Reader, value: Any, field: str) -> LiveLimits:
    names = ("max_size", "min_size", "max_wait_ms", "thresholds", "slo_ms")
    members = reader.members(value, field, required=(), optional=names)

    def size(name: str, default: int) -> int | None:
        given, at = members[name], f"{field}.{name}"
        size = reader.integer(given, at, least=1, most=BATCH_MAX_SIZE, default=default)
        return None if given is ABSENT else size

    def milliseconds(name: str, least: float) -> float | None:
        given, at = members[name], f"{field}.{name}"
        ms = read_number(reader, given, at, least=least, most=WAIT_MAX_MS)
        return None if given is ABSENT else ms

    return LiveLimits(
        max_size=size("max_size", BATCH_MAX_SIZE),
        min_size=size("min_size", 1),
        max_wait_ms=milliseconds("max_wait_ms", 0.0),
        thresholds=_thresholds(reader, members["thresholds"], f"{field}.thresholds"),
        slo_ms=milliseconds("slo_ms", SLO_MIN_MS),
    )


def _thresholds(reader: Reader, value: Any, field: str) -> Mapping[str, float]:
    thresholds = {}
    for head, score in reader.mapping(value, field, empty=True).items():
        check_form(reader, head, below(field, head), HEAD)
        thresholds[head] = reader.number(score, below(field, head))
    check_count(reader, thresholds, field)
    return frozen(thresholds) if thresholds else NO_THRESHOLDS


def _rule(reader: Reader, field: str, value: Any) -> Rule:
    members = reader.members(value, field, required=("name", "when", "version"))
    return Rule(
        name=read_form(reader, members["name"], f"{field}.name"),
        when=_match(reader, members["when"], f"{field}.when"),
        version=read_form(reader, members["version"], f"{field}.version"),
    )


def _match(reader: Reader, value: Any, field: str) -> Match:
    names = ("topic", "tags", "headers")
    members = reader.members(value, field, required=(), optional=names)
    if isinstance(value, dict) and not value:
        reader.wrong(field, f"must say at least one of {', '.join(names)}: all records would match")
    headers = members["headers"]
    return Match(
        topic=read_form(reader, members["topic"], f"{field}.topic", TOPIC) or None,
        tags=read_texts(reader, members["tags"], f"{field}.tags", most=VALUE_MAX_CHARS),
        headers=read_texts(reader, headers, f"{field}.headers", most=VALUE_MAX_CHARS, form=LOWER),
    )


def _short(reader: Reader, text: str, field: str, most: int) -> str:
    if len(text) <= most:
        return text
    reader.wrong(field, f"has {len(text)} characters, may have at most {most}")
    return ""
