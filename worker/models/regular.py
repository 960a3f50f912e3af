"""Opening files of a model only as what they are: regular, inside their folder, no symbolic links.

A link count above one is allowed: package installers and `cp -al` make hard links, and every
file is held to its digest anyway.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path

from worker.errors import ModelError


def open_regular(folder: Path, name: str, *, field: str | None = None) -> BufferedReader:
    """Open `name` (with `/` between its parts) under `folder`; the caller closes it.

    Raises ModelError, naming the file, when it is absent, not regular, or reached by a symbolic
    link below `folder`.
    """
    path = folder
    for part in name.split("/"):
        if part in {"", ".", ".."}:
            raise ModelError(f"{name!r} is no plain relative name", file=str(folder), field=field)
        path /= part
        if path.is_symlink():
            raise ModelError(
                "is a symbolic link: put the file itself there", file=str(path), field=field
            )
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelError(
            f"cannot be opened: {error.strerror}", file=str(path), field=field
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError("is not a regular file", file=str(path), field=field)
    return os.fdopen(descriptor, "rb")
