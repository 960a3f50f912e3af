"""From text to checked values: strict YAML, and a reader that collects every problem.

It must not know what a manifest or a desired state is.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable
from typing import Any, Final, TypeVar

import yaml

from worker.errors import ModelError

ABSENT: Final = object()
"""What an optional or missing member reads as; every reading of it is silent."""

PROBLEMS_MAX: Final = 50
"""Problems that one error tells; of more only the number."""
_SHOWN_CHARS: Final = 60

Member = TypeVar("Member", bound=str)


def load_yaml(text: str, *, file: str) -> Any:
    """Parse one YAML document of plain values.

    Raises ModelError with line and column: bad syntax, a key given twice, anchors and aliases.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise ModelError(f"not YAML: {where}: {error.problem}", file=file) from error
    except yaml.YAMLError as error:
        raise ModelError(f"not YAML: {' '.join(str(error).split())}", file=file) from error
    except RecursionError as error:
        raise ModelError("not YAML that can be read: nested too deeply", file=file) from error
    except ValueError as error:  # of a date or a number that only looks like one
        raise ModelError(f"not YAML: a value cannot be read: {error}", file=file) from error


def dump_yaml(document: Any) -> str:
    """Write plain values as YAML that `load_yaml` reads back, members in their order.

    What is not ASCII is escaped: PyYAML does not read back every line break of Unicode's.
    """
    text: str = yaml.safe_dump(document, sort_keys=False, width=100)
    return text


class Reader:
    """Reads members of a document; what is wrong is collected, and an empty value stands in."""

    def __init__(self) -> None:
        self._problems: list[tuple[str, str]] = []

    def wrong(self, field: str, message: str) -> None:
        self._problems.append((field, message))

    def finish(self, file: str) -> None:
        """Raise one ModelError for all problems, one a line, if there are any."""
        if not self._problems:
            return
        if len(self._problems) == 1:
            field, message = self._problems[0]
            raise ModelError(message, file=file, field=field)
        told = [f"{field}: {message}" for field, message in self._problems[:PROBLEMS_MAX]]
        if more := len(self._problems) - len(told):
            told.append(f"and {more} more")
        lines = "".join(f"\n  {line}" for line in told)
        raise ModelError(f"{len(self._problems)} problems{lines}", file=file)

    def mapping(self, value: Any, field: str, *, empty: bool = False) -> dict[str, Any]:
        """Read any keys, all of them texts; at least one, unless it may be `empty`."""
        if value is ABSENT:
            return {}
        if not isinstance(value, dict):
            self.wrong(field, f"must be a mapping, is {_shown(value)}")
            return {}
        if not value and not empty:
            self.wrong(field, "is empty, must name at least one")
        for key in value:
            if not isinstance(key, str):
                self.wrong(field, f"the key {_shown(key)} is no text: put it in quotes")
        return {key: member for key, member in value.items() if isinstance(key, str)}

    def members(
        self,
        value: Any,
        field: str,
        *,
        required: Collection[str],
        optional: Collection[str] = (),
        closed: bool = True,
    ) -> dict[str, Any]:
        """Read a mapping with known keys; the answer has every one, ABSENT if not given.

        Others are wrong, or passed over where it is not `closed`.
        """
        known = [*required, *optional]
        members: dict[str, Any] = dict.fromkeys(known, ABSENT)
        if value is ABSENT:
            return members
        if not isinstance(value, dict):
            self.wrong(field or "(document)", f"must be a mapping, is {_shown(value)}")
            return members
        for key, member in value.items():
            if key in members:
                members[key] = member
            elif closed:
                self.wrong(below(field, str(key)), f"unknown key{_meant(str(key), known)}")
        for key in required:
            if key not in value:
                self.wrong(below(field, key), "missing")
        return members

    def items(self, value: Any, field: str, *, empty: bool = False) -> list[tuple[str, Any]]:
        """Items of a list, each with its field; at least one, unless it may be `empty`."""
        if value is ABSENT:
            return []
        if not isinstance(value, list):
            self.wrong(field, f"must be a list, is {_shown(value)}")
            return []
        if not value and not empty:
            self.wrong(field, "is empty, must have at least one item")
        return [(f"{field}[{index}]", item) for index, item in enumerate(value)]

    def text(self, value: Any, field: str) -> str:
        if value is ABSENT:
            return ""
        if not isinstance(value, str):
            self.wrong(field, f"must be a text, is {_shown(value)}: put it in quotes")
            return ""
        if not value:
            self.wrong(field, "is empty")
        return value

    def choice(
        self, value: Any, field: str, among: Iterable[Member], *, default: Member | None = None
    ) -> Member:
        """One of `among`; `default` (or the first) stands in for what is absent or wrong."""
        choices = tuple(among)
        fallback = choices[0] if default is None else default
        if value is ABSENT:
            return fallback
        for choice in choices:
            if value == choice:
                return choice
        self.wrong(field, f"must be {' or '.join(choices)}, is {_shown(value)}")
        return fallback

    def flag(self, value: Any, field: str, *, default: bool = False) -> bool:
        if value is ABSENT:
            return default
        if not isinstance(value, bool):
            self.wrong(field, f"must be true or false, is {_shown(value)}")
            return default
        return value

    def integer(
        self, value: Any, field: str, *, least: int, most: int, default: int | None = None
    ) -> int:
        """Read a whole number within bounds; 8.0 is one too, as in JSON Schema.

        `default` (or `least`) stands in for what is absent or wrong.
        """
        fallback = least if default is None else default
        if value is ABSENT:
            return fallback
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            self.wrong(field, f"must be a whole number, is {_shown(value)}")
            return fallback
        if not least <= value <= most:
            self.wrong(field, f"must be from {least} to {most}, is {_shown(value)}")
            return fallback
        return int(value)

    def number(self, value: Any, field: str, *, default: float = 0.0) -> float:
        if value is ABSENT:
            return default
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            self.wrong(field, f"is the text {value!r} to YAML: write {float(value):.1e}")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(field, f"must be a number, is {_shown(value)}")
            return default
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.wrong(field, f"must be finite, is {_shown(value)}")
            return default
        return number


def below(field: str, key: str) -> str:
    """Name the member `key` of `field`: `heads.label`, or `files["model.onnx"]`."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", key):
        return f"{field}.{key}" if field else key
    shown = "".join(char if char.isprintable() else "?" for char in _cut(key))
    return f'{field}["{shown}"]'


class _StrictLoader(yaml.SafeLoader):
    """Refuses what YAML would silently resolve: a key given twice, aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call] # PyYAML's stubs
            raise yaml.composer.ComposerError(
                None, None, "aliases are not read here: write the value out", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return "a huge number"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def _meant(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(known)}"
