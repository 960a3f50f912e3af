"""Model versions at rest: `NAME/VERSION/manifest.yaml` in a folder or at a URL, and in the cache.

It reads manifests only; the files that they list are held to their digests on the way into the
cache, and again in the engine that opens them.
"""

import contextlib
import re
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
from packaging.version import InvalidVersion
from packaging.version import Version as Pep440

from worker.errors import ModelError
from worker.models.cache import Cache
from worker.models.fetch import SILENT, Cancelled, Order, Watcher, never
from worker.models.manifest import MANIFEST_MAX_BYTES, MANIFEST_NAME, Manifest, read_manifest
from worker.models.seen import Seen
from worker.models.sources import Folder, source_of
from worker.types import ModelRef

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,127}")
"""What can be a model or a version: one part of a path, on every disk and in every URL."""

_log = structlog.get_logger()


class Version(NamedTuple):
    """One model version, ready to be loaded from its folder."""

    ref: ModelRef
    folder: Path
    manifest_sha256: str
    manifest: Manifest


class Repository:
    """The versions at a location: a folder, or a URL that fsspec reads.

    With a cache, `find` fetches; without one it answers with the folder of the repository itself,
    which must be local then. With `seen_file`, a version that changed is refused.
    """

    def __init__(
        self, location: str | Path, *, cache: Cache | None, seen_file: Path | None
    ) -> None:
        """Raise SettingsError when there is no driver for the URL."""
        self._source = source_of(location)
        self._cache = cache
        self._seen = Seen(seen_file)

    @property
    def where(self) -> str:
        """What people call it; no secrets in it."""
        return self._source.where("")

    def versions(self) -> list[ModelRef]:
        """List all versions, by name, then in the order of PEP 440 (others, as text, before them).

        Raises ModelError when the repository cannot be listed; many web servers cannot.
        """
        return [
            ModelRef(model, version)
            for model in sorted(self._names(""))
            for version in self._names(model)
            if self._source.has(f"{model}/{version}/{MANIFEST_NAME}")
        ]

    def manifest_sha256(self, ref: ModelRef) -> str:
        """Return the digest of a version's manifest, which says what all its files must be.

        Raises ModelError: `model.absent`, `model.fetch`, `model.changed` (by what was seen), or a
        broken manifest.
        """
        order = self._read(ref)
        self._seen.check(ref, order.sha256, file=self._file(ref))
        return order.sha256

    def find(
        self,
        ref: ModelRef,
        *,
        sha256: str | None = None,
        cancelled: Cancelled = never,
        watcher: Watcher = SILENT,
        verify: bool = False,
    ) -> Version:
        """Return a version whose folder is in the cache; it is fetched where it was not.

        `sha256` is what its manifest must have: then the cache is asked first, and the repository
        only for what is not there. A repository that cannot be read is done without for a version
        that was seen and is in the cache. With `verify` a cached version is held to all its
        digests, and fetched again if it differs. What was found stays on this disk until `release`.

        Raises ModelError: `model.absent` (no such version, or not all of it yet), `model.changed`
        (another digest than asked for, or than seen before), `model.fetch` (repository, network or
        disk fail, or `cancelled`, which is asked between pieces of a megabyte), `model.invalid`
        (the manifest or a file is not as it must be).
        """
        version = self._cached(ref, sha256, verify=verify)
        if version is None:
            version = self._fetched(
                ref, sha256, cancelled=cancelled, watcher=watcher, verify=verify
            )
        try:
            self._seen.remember(ref, version.manifest_sha256, file=self._file(ref))
        except ModelError:
            self.release(version)
            raise
        return version

    def release(self, version: Version) -> None:
        """Let go what was found, however often: the cache may evict it when it needs room."""
        if self._cache is not None:
            self._cache.release(version.manifest_sha256, version.ref)

    def _cached(self, ref: ModelRef, sha256: str | None, *, verify: bool) -> Version | None:
        if self._cache is None or sha256 is None:
            return None
        self._seen.check(ref, sha256, file=self._file(ref))
        kept = self._cache.take(sha256, ref, verify=verify)
        return None if kept is None else Version(ref, kept.folder, sha256, kept.manifest)

    def _fetched(
        self,
        ref: ModelRef,
        sha256: str | None,
        *,
        cancelled: Cancelled,
        watcher: Watcher,
        verify: bool,
    ) -> Version:
        try:
            order = self._read(ref)
        except ModelError as error:
            version = None
            if error.code == "model.fetch" and sha256 is None:
                version = self._cached(ref, self._seen.get(ref), verify=verify)
            if version is None:
                raise
            _log.warning("model.repository.unreadable", used="cache", error=str(error))
            return version
        file = self._file(ref)
        if sha256 not in {None, order.sha256}:
            raise ModelError(
                f"has sha256 {order.sha256}, asked for was {sha256}: a version never changes;"
                " publish other content as a new version",
                file=file,
                code="model.changed",
            )
        self._seen.check(ref, order.sha256, file=file)
        if self._cache is None:
            assert isinstance(self._source, Folder), "what is remote needs a cache"
            folder, manifest = self._source.root / str(ref), order.manifest
        else:
            folder, manifest = self._cache.fetch(
                order, cancelled=cancelled, watcher=watcher, verify=verify
            )
        return Version(ref, folder, order.sha256, manifest)

    def _read(self, ref: ModelRef) -> Order:
        """Read a version's manifest, without listing anything."""
        file = self._file(ref)
        if not (_NAME.fullmatch(ref.name) and _NAME.fullmatch(ref.version)):
            raise self._absent(ref)
        document = b""
        try:
            with contextlib.closing(self._source.chunks(f"{ref}/{MANIFEST_NAME}")) as chunks:
                for chunk in chunks:
                    document += chunk
                    if len(document) > MANIFEST_MAX_BYTES:
                        break  # enough to say so
        except ModelError as error:
            if error.code != "model.absent":
                raise
            raise self._absent(ref) from error
        manifest, sha256 = read_manifest(document, file=file)
        return Order(ref, self._source, document, manifest, sha256)

    def _absent(self, ref: ModelRef) -> ModelError:
        """Say what there is instead, as far as the repository can be listed."""
        versions: list[str] = []
        said = f"no version {ref}"
        try:
            models = sorted(self._names(""))
            if ref.name in models:
                versions = self._names(ref.name)
            elif models:
                said = f"no model {ref.name!r}; there are {', '.join(models)}"
        except ModelError as error:
            said = f"{said}; what there is cannot be listed: {error}"
        if ref.version in versions:
            said = f"version {ref} has no {MANIFEST_NAME} yet"
        elif versions:
            said = f"{said}; there are {', '.join(versions)}"
        return ModelError(said, file=f"model repository {self.where}", code="model.absent")

    def _names(self, folder: str) -> list[str]:
        names = [name for name in self._source.folders(folder) if _NAME.fullmatch(name)]
        return sorted(names, key=_release)

    def _file(self, ref: ModelRef) -> str:
        return self._source.where(f"{ref}/{MANIFEST_NAME}")


def demo_repository() -> Path:
    """Folder of the demo's own models, which are part of the package."""
    return Path(str(resources.files("worker.demo").joinpath("models")))


def _release(version: str) -> tuple[Any, ...]:
    """Sort texts that PEP 440 does not know before those that it orders."""
    try:
        return 1, Pep440(version), version
    except InvalidVersion:
        return 0, version
