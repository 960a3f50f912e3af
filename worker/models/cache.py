"""Model versions on this machine's disk: whole, private, by the sha256 of their manifest.

A version is a folder of that name, complete or not there: it is fetched into `.new` beside it and
renamed. All workers on a data folder fetch one at a time (`.lock`), so what lies in `.new` is ours,
or left by the dead. Whoever uses a version holds a shared lock on its folder; only what nobody
holds is evicted. It must not know what versions are called.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from worker.config import Settings
from worker.errors import ModelError
from worker.models.files import names_below, verify_files
from worker.models.manifest import MANIFEST_NAME, Manifest, load_manifest
from worker.models.regular import create_private
from worker.models.sources import Source
from worker.types import ModelRef

_NEW: Final = ".new"
_OLD: Final = ".old"
_LOCK: Final = ".lock"
_LOOK_S: Final = 0.05
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_log = structlog.get_logger()


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


class Kept(NamedTuple):
    """A version in the cache."""

    folder: Path
    manifest: Manifest


class Cache:
    """The versions in `folder`, of at most `max_bytes`; safe for many threads and processes."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._held: dict[str, list[int]] = {}
        self._guard = threading.Lock()

    def take(self, sha256: str, *, verify: bool = False) -> Kept | None:
        """Return a version if it is here, and as it must be; it is kept until `release`.

        With `verify` every file is held to its digest, without it to what the disk says of it.
        """
        folder = self._folder / sha256
        with contextlib.ExitStack() as undo:
            try:
                descriptor = os.open(folder, _FOLDER)
                undo.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if not os.path.samestat(os.fstat(descriptor), folder.lstat()):
                    return None  # evicted while we waited
                manifest = _checked(folder, sha256)
                if verify:
                    verify_files(folder, manifest)
                now_ns = time.time_ns()  # finer than the kernel's own
                os.utime(descriptor, ns=(now_ns, now_ns))
            except FileNotFoundError:
                return None
            except (OSError, ModelError) as error:
                _log.warning("model.cache.unsound", sha256=sha256, error=str(error))
                return None
            with self._guard:
                self._held.setdefault(sha256, []).append(descriptor)
            undo.pop_all()
        return Kept(folder, manifest)

    def release(self, sha256: str) -> None:
        """Give up one `take` or `fetch`: what nobody holds may be evicted for others."""
        with self._guard:
            if held := self._held.get(sha256):
                os.close(held.pop())

    def fetch(
        self, order: Order, *, cancelled: Cancelled, watcher: Watcher, verify: bool = False
    ) -> Kept:
        """Return a version, from its source if it is not here; it is kept until `release`.

        Raises ModelError and leaves nothing behind: a file is absent (`model.absent`) or not as
        the manifest says; it does not fit, the source or the disk fails, or it was cancelled
        (`model.fetch`). `cancelled` is asked between pieces of at most a megabyte.
        """
        folder, new = self._folder / order.sha256, self._folder / _NEW
        try:
            with self._alone(order, cancelled):
                kept = self.take(order.sha256, verify=verify)
                if kept is None:
                    self._remove(folder)
                    room = partial(self._make_room, ref=order.ref)
                    _Fetch(order, room, cancelled=cancelled, watcher=watcher).run(new)
                    new.rename(folder)
                    _sync(self._folder)
                    _log.info("model.fetched", model=order.ref.name, version=order.ref.version)
                    kept = self.take(order.sha256)
        except OSError as error:
            raise ModelError(
                f"{order.ref} cannot be kept here: {error.strerror}",
                file=str(error.filename or self._folder),
                code="model.fetch",
            ) from error
        if kept is None:
            raise ModelError(
                f"{order.ref} does not stay as it was written; the log says what was found",
                file=str(folder),
                code="model.fetch",
            )
        return kept

    @contextlib.contextmanager
    def _alone(self, order: Order, cancelled: Cancelled) -> Iterator[None]:
        """Keep others from fetching and evicting, and clean up after the dead, and after us."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(self._folder, self._folder.stat())
        with (self._folder / _LOCK).open("a") as lock:
            while not _locked(lock.fileno()):
                _go_on(order, cancelled)
                time.sleep(_LOOK_S)
            try:
                self._sweep()
                yield
            finally:
                self._sweep()

    def _sweep(self) -> None:
        _delete(self._folder / _NEW)
        _delete(self._folder / _OLD)

    def _remove(self, folder: Path) -> None:
        """Take a version out at once; then its files may go one by one."""
        with contextlib.suppress(FileNotFoundError):
            _delete(folder.rename(self._folder / _OLD))

    def _make_room(self, needed: int, *, ref: ModelRef) -> int:
        """Evict what must go for so many bytes, and return how many there is room for.

        Only for who is alone. Raises ModelError, and evicts nothing, when they cannot fit.
        """
        kept = sorted(_Entry.of(folder) for folder in self._folder.iterdir() if _is_version(folder))
        room = self._max_bytes - sum(entry.size_bytes for entry in kept)
        if needed <= room:
            return room
        with contextlib.ExitStack() as claims:
            idle = [entry for entry in kept if _claimed(entry.folder, claims)]
            could = room + sum(entry.size_bytes for entry in idle)
            if needed > could:
                raise ModelError(
                    f"{ref} needs {needed} bytes, and models.cache_bytes ({self._max_bytes}) has"
                    f" {max(could, 0)} beside the versions in use",
                    file=str(self._folder),
                    code="model.fetch",
                )
            for entry in idle:
                if needed <= room:
                    break
                self._remove(entry.folder)
                room += entry.size_bytes
                _log.info("model.evicted", sha256=entry.folder.name, bytes=entry.size_bytes)
        return room


def cache_of(settings: Settings) -> Cache:
    """Return the cache of all workers on the data folder."""
    folder = settings.data_dir / "cache" / "models"
    return Cache(folder, max_bytes=settings.models.cache_bytes)


class _Entry(NamedTuple):
    """A cached version as a candidate for eviction: these sort by least recent use."""

    used_ns: int
    folder: Path
    size_bytes: int

    @classmethod
    def of(cls, folder: Path) -> "_Entry":
        sizes = ((folder / name).lstat().st_size for name in names_below(folder))
        return cls(folder.lstat().st_mtime_ns, folder, sum(sizes))


class _Fetch:
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
                _sync(Path(parent))
        finally:
            self._watcher.end()

    def _size(self, name: str) -> int | None:
        _go_on(self._order, self._cancelled)
        return self._order.source.size(self._order.name(name))

    def _copy(self, new: Path, name: str, size: int | None) -> None:
        """Copy a file, held to its size where that is known, and to its digest."""
        order = self._order
        file = order.source.where(order.name(name))
        digest, count = hashlib.sha256(), 0
        chunks = order.source.chunks(order.name(name))
        with create_private(new, name) as stream, contextlib.closing(chunks):
            for chunk in chunks:
                _go_on(order, self._cancelled)
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


def _checked(folder: Path, sha256: str) -> Manifest:
    """Hold a cached version to what the disk says of it, and take others' rights away.

    Raises ModelError or OSError for what is not ours, not alone under its name, or not listed.
    """
    manifest, found = load_manifest(folder)
    if found != sha256:
        raise ModelError(f"has sha256 {found}", file=str(folder / MANIFEST_NAME))
    names = {*manifest.files, MANIFEST_NAME}
    if strange := names ^ names_below(folder):
        raise ModelError(
            f"{', '.join(sorted(strange))}: not as the manifest says", file=str(folder)
        )
    _make_private(folder, folder.lstat())
    for name in names:
        facts = (folder / name).lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise ModelError("is no regular file of one name", file=str(folder / name))
        _make_private(folder / name, facts)
    return manifest


def _make_private(path: Path, facts: os.stat_result) -> None:
    if facts.st_uid != os.geteuid():
        raise ModelError("belongs to another user", file=str(path), code="model.fetch")
    if others := facts.st_mode & 0o077:  # Kubernetes gives an `fsGroup` rights in a volume
        path.chmod(stat.S_IMODE(facts.st_mode) & ~others)


def _is_version(path: Path) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", path.name) is not None and path.is_dir()


def _claimed(folder: Path, claims: contextlib.ExitStack) -> bool:
    """Keep everybody from taking a version, until the claims are closed; False: it is in use."""
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:
        return False
    claims.callback(os.close, descriptor)
    return _locked(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _go_on(order: Order, cancelled: Cancelled) -> None:
    if cancelled():
        raise ModelError(f"the fetch of {order.ref} was cancelled", code="model.fetch")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(stream: BufferedWriter) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
