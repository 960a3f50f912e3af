"""One at a time, between processes: an advisory lock on a file."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from worker.errors import CommandError

POLL_S = 0.05


@contextlib.contextmanager
def locked(path: Path, *, deadline_s: float) -> Iterator[None]:
    """Hold the lock of `path`; it falls with the process that holds it.

    Raises CommandError when somebody else keeps it beyond the deadline.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end_s = time.monotonic() + deadline_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end_s:
                    raise CommandError(
                        f"{path}: held by another darkroom for more than {deadline_s:.0f} s"
                    ) from None
                time.sleep(POLL_S)
        yield
