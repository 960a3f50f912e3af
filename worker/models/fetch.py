"""One model version on its way from its source into a new folder, held to its manifest.

It must not know what else lies beside that folder.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from worker.errors import ModelError
from worker.models.manifest import MANIFEST_NAME, Manifest
from worker.models.regular import create_private
from worker.models.sources import Source
from worker.types import ModelRef


class Watcher(Protocol):
    """Is told how a fetch gets on, on the thread that fetches."""

    def begin(self, ref: ModelRef, total_bytes: int | None) -> None:
        """Learn what comes; None: the repository does not say how much."""

    def advance(self, count_bytes: int) -> None: ...

    def end(self) -> None: ...


class Silent:
    """Watches nothing."""

    def begin(self, ref: ModelRef, total_bytes: int | None) -> None: ...

    def advance(self, count_bytes: int) -> None: ...

    def end(self) -> None: ...


SILENT: Final = Silent()
Cancelled = Callable[[], bool]


def never() -> bool:
    """Say that a fetch is not cancelled."""
    return False


class Order(NamedTuple):
    """A version to have in the cache."""

    ref: ModelRef
    source: Source
    document: bytes
    """Its manifest, as it came."""
    manifest: Manifest
    sha256: str
    """Of the document."""

    def name(self, file: str) -> str:
        """Return what the source calls one of its files."""
        return f"{self.ref}/{file}"


class Fetch:
    """One version on its way into a new folder."""

    def __init__(
        self,
        order: Order,
        make_room: Callable[[int], int],
        *,
        cancelled: Cancelled,
        watcher: Watcher,
    ) -> None:
        self._order = order
        self._make_room = make_room
        self._cancelled = cancelled
        self._watcher = watcher
        self._room_bytes = 0
        self._written_bytes = 0

    def run(self, new: Path) -> None:
        """Make the folder, with the manifest and every file that it lists, all on the disk."""
        order = self._order
        sizes = {name: self._size(name) for name in order.manifest.files}
        known = [size for size in sizes.values() if size is not None]
        self._room_bytes = self._make_room(len(order.document) + sum(known))
        self._watcher.begin(order.ref, sum(known) if len(known) == len(sizes) else None)
        try:
            new.mkdir(mode=0o700)
            with create_private(new, MANIFEST_NAME) as stream:
                self._write(stream, order.document)
                _flush(stream)
            for name, size in sizes.items():
                self._copy(new, name, size)
            for parent, _, _ in os.walk(new):
                sync_folder(Path(parent))
        finally:
            self._watcher.end()

    def _size(self, name: str) -> int | None:
        go_on(self._order, self._cancelled)
        return self._order.source.size(self._order.name(name))

    def _copy(self, new: Path, name: str, size: int | None) -> None:
        """Copy a file, held to its size where that is known, and to its digest."""
        order = self._order
        file = order.source.where(order.name(name))
        digest, count = hashlib.sha256(), 0
        chunks = order.source.chunks(order.name(name))
        with create_private(new, name) as stream, contextlib.closing(chunks):
            for chunk in chunks:
                go_on(order, self._cancelled)
                count += len(chunk)
                if size is not None and count > size:
                    raise ModelError(f"has more than its {size} bytes", file=file)
                self._write(stream, chunk)
                digest.update(chunk)
                self._watcher.advance(len(chunk))
            _flush(stream)
        if size is not None and count < size:
            raise ModelError(f"ended after {count} of {size} bytes", file=file, code="model.fetch")
        if digest.hexdigest() != order.manifest.files[name]:
            raise ModelError(
                f"has sha256 {digest.hexdigest()}, the manifest says {order.manifest.files[name]}:"
                " a file changed on purpose wants a new version and manifest",
                file=file,
            )

    def _write(self, stream: BufferedWriter, data: bytes) -> None:
        self._written_bytes += len(data)
        if self._written_bytes > self._room_bytes:  # of files whose size nobody said
            self._room_bytes = self._make_room(self._written_bytes)
        stream.write(data)


def go_on(order: Order, cancelled: Cancelled) -> None:
    """Raise ModelError when nobody wants the version any more."""
    if cancelled():
        raise ModelError(f"the fetch of {order.ref} was cancelled", code="model.fetch")


def _flush(stream: BufferedWriter) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk remember which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
