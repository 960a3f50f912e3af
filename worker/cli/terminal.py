"""What commands print: documents on standard output, everything else on standard error."""

import sys
from typing import Any


def say(text: str) -> None:
    """Tell people something; standard output stays for documents."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - cli is the one place that prints


def write(text: str) -> None:
    """Write a line of a document; flushed, because readers follow."""
    print(text, flush=True)  # noqa: T201 - cli is the one place that prints


def write_json(document: Any, *, indent: bool = True) -> None:
    """Write one JSON document: over several lines for one, on one line for one of many."""
    import orjson

    option = orjson.OPT_INDENT_2 if indent else 0
    write(orjson.dumps(document, option=option, default=str).decode())


def for_people() -> bool:
    """Say whether progress bars make sense: standard error is a terminal."""
    return sys.stderr.isatty()
