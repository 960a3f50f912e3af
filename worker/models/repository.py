"""Models at rest: a folder of `NAME/VERSION/manifest.yaml`, and what was once seen of them.

It reads manifests only; the files they list are checked where they are opened, in the engine.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from packaging.version import InvalidVersion
from packaging.version import Version as Pep440

from worker.errors import ModelError
from worker.models.manifest import MANIFEST_NAME, Manifest, load_manifest
from worker.types import ModelRef

SEEN_SCHEMA: Final = "darkroom.seen.v1"


class Version(NamedTuple):
    """One model version as it lies in the repository."""

    ref: ModelRef
    folder: Path
    manifest_sha256: str
    manifest: Manifest


class Repository:
    """A folder of model versions. With `seen_file`, a version that changed is refused."""

    def __init__(self, folder: Path, seen_file: Path | None) -> None:
        self._folder = folder
        self._seen_file = seen_file

    @property
    def folder(self) -> Path:
        return self._folder

    def versions(self) -> list[ModelRef]:
        """All versions, by name, then in the order of PEP 440 (others, as text, before them).

        Raises ModelError when the repository cannot be read.
        """
        refs = [
            ModelRef(model, version)
            for model in _folders(self._folder)
            for version in _folders(self._folder / model)
            if (self._folder / model / version / MANIFEST_NAME).is_file()
        ]
        return sorted(refs, key=_order)

    def find(self, ref: ModelRef) -> Version:
        """Read a version's manifest and hold it to what was seen of the version before.

        Raises ModelError: no such model, no such version, a broken manifest, or other content
        than the version had.
        """
        versions = self.versions()
        if ref not in versions:
            same = [known.version for known in versions if known.name == ref.name]
            if same:
                raise ModelError(f"no version {ref}; there are {', '.join(same)}", file=self._name)
            names = ", ".join(dict.fromkeys(known.name for known in versions)) or "none"
            raise ModelError(f"no model {ref.name!r}; there are {names}", file=self._name)
        folder = self._folder / ref.name / ref.version
        manifest, sha256 = load_manifest(folder)
        if self._seen_file is not None:
            _remember(self._seen_file, ref, sha256, folder)
        return Version(ref, folder, sha256, manifest)

    @property
    def _name(self) -> str:
        return f"model repository {self._folder}"


def demo_repository() -> Path:
    """Folder of the demo's own models, which are part of the package."""
    return Path(str(resources.files("worker.demo").joinpath("models")))


def _folders(folder: Path) -> list[str]:
    """Names of the real folders in `folder` that can be a model or a version."""
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,127}", entry.name)
            ]
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", file=str(folder)) from error


def _order(ref: ModelRef) -> tuple[Any, ...]:
    try:
        return ref.name, 1, Pep440(ref.version), ref.version
    except InvalidVersion:
        return ref.name, 0, ref.version


def _remember(seen_file: Path, ref: ModelRef, sha256: str, folder: Path) -> None:
    try:
        seen_file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(seen_file.with_name(f"{seen_file.name}.lock")):
            seen = _read_seen(seen_file)
            known = seen.get(str(ref))
            if known is None:
                _write_seen(seen_file, {**seen, str(ref): sha256})
    except OSError as error:
        raise ModelError(
            f"cannot remember what was seen of {ref}: {error.strerror}", file=str(seen_file)
        ) from error
    if known not in {None, sha256}:
        raise ModelError(
            f"version {ref} was seen with manifest sha256 {known}, now it has {sha256}: a version"
            f" never changes; publish the new content as a new version (or, if nothing was ever"
            f" served from the old one, take {str(ref)!r} out of {seen_file})",
            file=str(folder / MANIFEST_NAME),
        )


@contextmanager
def _locked(lock_file: Path) -> Iterator[None]:
    """Keep other workers on this data folder out; the kernel lets go if we die."""
    with lock_file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read_seen(seen_file: Path) -> dict[str, str]:
    try:
        data = seen_file.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _corrupt(seen_file, f"line {error.lineno}: {error.msg}") from error
    if not isinstance(document, dict) or document.get("schema") != SEEN_SCHEMA:
        raise _corrupt(seen_file, f"its schema is not {SEEN_SCHEMA}")
    versions = document.get("versions")
    if not isinstance(versions, dict):
        raise _corrupt(seen_file, "versions is no mapping")
    for ref, sha256 in versions.items():
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise _corrupt(seen_file, f"versions[{ref!r}] is no sha256")
    return versions


def _corrupt(seen_file: Path, what: str) -> ModelError:
    return ModelError(
        f"what was seen of model versions cannot be read: {what}; restore the file, or remove it"
        " to trust the repository as it is now",
        file=str(seen_file),
    )


def _write_seen(seen_file: Path, versions: dict[str, str]) -> None:
    """Replace the file whole: after a crash there is the old or the new one, never a part."""
    new = seen_file.with_name(f"{seen_file.name}.new")
    with new.open("wb") as stream:
        stream.write(
            orjson.dumps(
                {"schema": SEEN_SCHEMA, "versions": versions},
                option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE,
            )
        )
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(seen_file)
    folder = os.open(seen_file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
