"""Whether one more version fits: places within `models.max_loaded`, and memory. Ends nothing.

It must not know why a version is wanted, nor what it serves.
"""

import os
from collections.abc import Callable, Iterable, Sequence

from worker.inference.budget import resident_bytes
from worker.inference.memory import ENGINE_BYTES
from worker.models.repository import Version

_MIB = 1 << 20


class Room:
    """The places and the memory that all versions share."""

    def __init__(
        self,
        max_loaded: int,
        memory_bytes: int,
        *,
        resident: Callable[[Iterable[int]], int] = resident_bytes,
    ) -> None:
        self._max_loaded = max_loaded
        self._memory_bytes = memory_bytes
        self._resident = resident

    def lack(self, need_bytes: int, versions: int, pids: Sequence[int]) -> str | None:
        """Return what is missing for one version more, in words; None: there is room.

        `versions`: how many there are; `pids`: their engines, as far as they are running.
        """
        if versions >= self._max_loaded:
            count = "1 version is" if versions == 1 else f"{versions} versions are"
            return f"{count} loaded, models.max_loaded is {self._max_loaded}"
        used = self._resident((os.getpid(), *pids))
        # The first version is never refused by a guess: there is nothing to protect, and nothing
        # else to serve.
        if versions and used + need_bytes > self._memory_bytes:
            return (
                f"it needs about {need_bytes // _MIB} MiB; {used // _MIB} MiB of"
                f" {self._memory_bytes // _MIB} MiB are in use"
            )
        return None


def expected_bytes(by_files: int, like: Iterable[int]) -> int:
    """Return what an engine of a version will need: as the largest of those alike.

    `like`: bytes of engines of the same model, 0 for those that are not known; where none is, it is
    a guess `by_files`: bytes for the version's own. So it is where these are more than those had.
    """
    measured = max(like, default=0)
    return max(measured, by_files) if measured else ENGINE_BYTES + by_files


def files_bytes(version: Version) -> int:
    """Return the size of a version's files; blocks. What is absent the engine will complain of."""
    files = (version.folder / name for name in version.manifest.files)
    return sum(file.stat().st_size for file in files if file.is_file())
