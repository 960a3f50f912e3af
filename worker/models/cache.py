"""Model versions on this machine's disk: whole, private, by the sha256 of their manifest.

A version is a folder of that name, complete or not there: it is fetched into `.new` beside it and
renamed. All workers on a data folder fetch one at a time (`.lock`), so what lies in `.new` is ours,
or left by the dead. Whoever uses a version holds a shared lock on its folder; only what nobody
holds is evicted. It must not know where versions come from.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from worker.config_sections import Settings
from worker.errors import ModelError
from worker.models.fetch import Cancelled, Fetch, Order, Watcher, go_on, sync_folder
from worker.models.files import names_below, verify_files
from worker.models.manifest import MANIFEST_NAME, Manifest, load_manifest
from worker.types import ModelRef

_NEW: Final = ".new"
_OLD: Final = ".old"
_LOCK: Final = ".lock"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LOOK_S: Final = 0.05
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_log = structlog.get_logger()


class Kept(NamedTuple):
    """A version in the cache."""

    folder: Path
    manifest: Manifest


class Cache:
    """The versions in `folder`, of at most `max_bytes`; safe for many threads and processes."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._held: dict[tuple[str, ModelRef], int] = {}
        self._guard = threading.Lock()

    def take(self, sha256: str, ref: ModelRef, *, verify: bool = False) -> Kept | None:
        """Return a version if it is here, and as it must be; it stays here until `release`.

        With `verify` every file is held to its digest, without it to what the disk says of it.
        """
        folder = self._folder / sha256
        if not _DIGEST.fullmatch(sha256):
            return None
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
            undo.pop_all()
        with self._guard:
            before = self._held.pop((sha256, ref), None)
            self._held[sha256, ref] = descriptor
        if before is not None:
            os.close(before)
        return Kept(folder, manifest)

    def release(self, sha256: str, ref: ModelRef) -> None:
        """Let go what was taken or fetched under this name: nobody's may be evicted for others."""
        with self._guard:
            descriptor = self._held.pop((sha256, ref), None)
        if descriptor is not None:
            os.close(descriptor)

    def fetch(
        self, order: Order, *, cancelled: Cancelled, watcher: Watcher, verify: bool = False
    ) -> Kept:
        """Return a version, from its source if it is not here; it stays here until `release`.

        Raises ModelError and leaves nothing behind: a file is absent (`model.absent`) or not as
        the manifest says; it does not fit, the source or the disk fails, or it was cancelled
        (`model.fetch`). `cancelled` is asked between pieces of at most a megabyte.
        """
        folder, new = self._folder / order.sha256, self._folder / _NEW
        try:
            with self._alone(order, cancelled):
                kept = self.take(order.sha256, order.ref, verify=verify)
                if kept is None:
                    self._remove(folder)
                    room = partial(self._make_room, ref=order.ref)
                    Fetch(order, room, cancelled=cancelled, watcher=watcher).run(new)
                    new.rename(folder)
                    sync_folder(self._folder)
                    _log.info("model.fetched", model=order.ref.name, version=order.ref.version)
                    kept = self.take(order.sha256, order.ref)
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
                go_on(order, cancelled)
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
    return _DIGEST.fullmatch(path.name) is not None and path.is_dir()


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


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
