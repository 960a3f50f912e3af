"""What commands print: documents on standard output, everything else on standard error."""

import os
import sys
from pathlib import Path
from typing import Any, TextIO

from worker.errors import CommandError

_STREAMS = 2
"""The numbers of the streams are those up to it."""


def hold_streams() -> None:
    """Let what is written to a stream that was closed before we began go nowhere.

    And let no socket get the number of one, that of standard input either.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STREAMS:
        os.set_inheritable(number, True)  # noqa: FBT003 - that is its form; children get it
    os.close(number)
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()


def say(text: str) -> None:
    """Tell people something; standard output stays for documents."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - cli is the one place that prints


def write(text: str) -> None:
    """Write a line of a document; flushed, because readers follow. Raises CommandError."""
    try:
        print(text, flush=True)  # noqa: T201 - cli is the one place that prints
    except BrokenPipeError:
        raise  # a reader that has seen enough, like head: typer ends quietly
    except OSError as error:
        sys.stdout = _nowhere()  # else what is left is tried again, and told of, at the end
        raise CommandError(f"standard output cannot be written: {error.strerror}") from error


def write_json(document: Any, *, indent: bool = True) -> None:
    """Write one JSON document: over several lines for one, on one line for one of many."""
    import orjson

    option = orjson.OPT_INDENT_2 if indent else 0
    write(orjson.dumps(document, option=option, default=str).decode())


def for_people() -> bool:
    """Say whether progress bars make sense: standard error is a terminal."""
    return sys.stderr.isatty()


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w")
