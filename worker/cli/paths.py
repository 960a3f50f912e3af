"""The files that a user means by paths: files, folders with all below them, and globs."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.errors import CommandError


def expand(paths: Sequence[str]) -> list[Path]:
    """Return the files meant, in the order given, those of a folder or glob sorted.

    Hidden files are left out unless they are named. Raises CommandError naming every path that
    means no file.
    """
    found: list[Path] = []
    nothing: list[str] = []
    for path in paths:
        files = list(_files(path))
        found += files
        if not files:
            nothing.append(path)
    if nothing:
        raise CommandError(f"no such file, folder with files, or glob: {', '.join(nothing)}")
    return list(dict.fromkeys(found))


def _files(path: str) -> Iterator[Path]:
    named = Path(path)
    if named.is_dir():
        yield from _below(named)
    elif named.exists():
        yield named
    else:
        for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
            place = Path(match)
            if place.is_file():
                yield place


def _below(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden:
            yield file
