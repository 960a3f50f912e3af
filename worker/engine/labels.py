"""The labels of a head: a text file, one a line, in the order of the classes."""

from pathlib import Path

from worker.errors import ModelError


def read_labels(path: Path) -> tuple[str, ...]:
    """Read labels; a line break at the end of the last line is no empty label.

    Raises ModelError for a file that is not UTF-8 text, or that has an empty line.
    """
    try:
        labels = tuple(path.read_text("utf-8").removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise ModelError(f"is not UTF-8 at byte {error.start}", file=str(path)) from error
    for number, label in enumerate(labels, start=1):
        if not label.strip():
            raise ModelError(f"line {number} is empty: every class needs a label", file=str(path))
    return labels
