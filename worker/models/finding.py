"""Versions found in the repository, and held to what is asked. It must not know engines."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

import structlog

from worker.errors import ModelError
from worker.models.berth import Berth
from worker.models.berths import Berths
from worker.models.files import verify_files
from worker.models.manifest import Manifest
from worker.models.repository import Version
from worker.models.room import files_bytes
from worker.types import ModelRef

_READERS = 4
"""Reads of the repository at a time: they block for as long as its disk or network does."""

_log = structlog.get_logger()


class Finder(Protocol):
    """What is needed of the model repository."""

    def find(
        self, ref: ModelRef, *, sha256: str | None, cancelled: Callable[[], bool]
    ) -> Version: ...

    def release(self, version: Version) -> None:
        """Let go what was found, however often."""


class Ask(NamedTuple):
    """What is asked of a load."""

    sha256: str | None = None
    """Of the manifest; None: whatever the repository has."""
    number: int = 0
    replaces: ModelRef | None = None
    """The version whose heads it must offer, and which is not ended to make room."""
    new_heads: bool = False
    patient: bool = False
    """Records wait for it: others give way when their turn is over."""


class Found(NamedTuple):
    """A version on this disk."""

    version: Version
    files_bytes: int


class Finding:
    """Looks for versions on threads of its own."""

    def __init__(self, repository: Finder, berths: Berths) -> None:
        self._repository = repository
        self._berths = berths
        # Not the loop's own: a disk that hangs would keep dead engines from being buried there.
        self._readers = ThreadPoolExecutor(_READERS, "repository")

    def close(self) -> None:
        """Begin no other look; those under way may end when they do."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def find(self, ref: ModelRef, ask: Ask) -> Found:
        """Return a version as it lies on this disk. Raises ModelError."""
        cancelled = threading.Event()
        looking = asyncio.get_running_loop().run_in_executor(
            self._readers, self._look_up, ref, ask.sha256, cancelled.is_set
        )
        looking.add_done_callback(partial(self._looked_up, self._berths.of(ref)))
        try:
            found = await asyncio.shield(looking)
        finally:
            cancelled.set()
        await self.check(found.version, ask)
        return found

    async def verified(self, ref: ModelRef, ask: Ask) -> Found:
        """Return a version of which all files are as its manifest says. Raises ModelError."""
        found = await self.find(ref, ask)
        with _readable(found.version):
            await asyncio.to_thread(verify_files, found.version.folder, found.version.manifest)
        return found

    async def check(self, version: Version, ask: Ask) -> None:
        """Hold a version to what is asked. Raises ModelError: other content, or heads it lacks."""
        ref, sha256 = version.ref, version.manifest_sha256
        if ask.sha256 is not None and ask.sha256 != sha256:
            raise ModelError(
                f"{ref} is loaded with manifest sha256 {sha256}, {ask.sha256} is asked for: a"
                " version never changes; publish the new content as a new version",
                code="model.changed",
            )
        if ask.replaces in {None, ref} or ask.new_heads:
            return
        assert ask.replaces is not None
        before = await self._manifest(ask.replaces)
        if before is not None and (heads := _lacking(before, version.manifest)):
            raise ModelError(
                f"{ref} lacks what {ask.replaces} offers: {', '.join(heads)}; give it these heads,"
                " or ask for it with new heads allowed",
                code="model.signature",
            )

    def _look_up(self, ref: ModelRef, sha256: str | None, cancelled: Callable[[], bool]) -> Found:
        version = self._repository.find(ref, sha256=sha256, cancelled=cancelled)
        with _readable(version):
            return Found(version, files_bytes(version))

    def _looked_up(self, berth: Berth, looking: asyncio.Future[Found]) -> None:
        """Note what the repository keeps for a version, also when nobody waits for it any more."""
        if not looking.cancelled() and looking.exception() is None:
            berth.found = looking.result().version
            berth.let_go()

    async def _manifest(self, ref: ModelRef) -> Manifest | None:
        """Return a version's manifest; None: it cannot be had any more, and holds nobody back."""
        berth = self._berths.get(ref)
        if berth is not None and berth.version is not None:
            return berth.version.manifest
        berth = berth or self._berths.of(ref)
        try:
            with berth.kept():
                return (await self.find(ref, Ask())).version.manifest
        except ModelError as error:
            _log.warning("model.heads-unknown", model=str(ref), why=str(error))
            return None


@contextmanager
def _readable(version: Version) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error}", file=str(version.folder), code="model.fetch"
        ) from error


def _lacking(before: Manifest, after: Manifest) -> list[str]:
    """Return the heads that another version has, by name and type, and this one does not."""
    return [
        f"head {name!r} ({type(head).__name__.removesuffix('Head').lower()})"
        for name, head in before.heads.items()
        if type(after.heads.get(name)) is not type(head)
    ]
