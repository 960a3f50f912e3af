"""Opening and making files of a model only as what they are: regular, in their folder, no links.

A file that is opened may have other names (a link count above one): package installers and
`cp -al` make hard links, and every file is held to its digest anyway.
"""

import os
import stat
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter
from pathlib import Path

from worker.errors import ModelError


def open_regular(folder: Path, name: str, *, field: str | None = None) -> BufferedReader:
    """Open `name` (with `/` between its parts) under `folder`; the caller closes it.

    Raises ModelError, naming the file, when it is absent (`model.absent`), cannot be opened
    (`model.fetch`), is not regular, or is reached by a symbolic link below `folder`.
    """
    path = folder
    try:
        for path in _steps(folder, name, field=field):
            if path.is_symlink():
                raise ModelError(
                    "is a symbolic link: put the file itself there", file=str(path), field=field
                )
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise ModelError(
            f"cannot be opened: {error.strerror}",
            file=str(path),
            field=field,
            code="model.absent" if absent else "model.fetch",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError("is not a regular file", file=str(path), field=field)
    return os.fdopen(descriptor, "rb")


def create_private(folder: Path, name: str) -> BufferedWriter:
    """Make `name` under `folder`, and the folders between, for this user alone.

    Raises ModelError for a name that leads elsewhere, OSError for what the disk says; a file of
    that name is never opened.
    """
    *parents, path = _steps(folder, name)
    for parent in parents:
        parent.mkdir(mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def _steps(folder: Path, name: str, *, field: str | None = None) -> Iterator[Path]:
    """Yield each folder on the way from `folder` to the file, then the file."""
    path = folder
    for part in name.split("/"):
        if part in {"", ".", ".."}:
            raise ModelError(f"{name!r} is no plain relative name", file=str(folder), field=field)
        path /= part
        yield path
