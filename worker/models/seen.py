"""What this data folder has seen of model versions: a version never changes.

One JSON file for all workers on the folder. It must not know where versions come from.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import orjson

from worker.errors import ModelError
from worker.types import ModelRef

SCHEMA: Final = "darkroom.seen.v1"


class Seen:
    """Version -> sha256 of its manifest, in a file; without one nothing is known, nor kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def get(self, ref: ModelRef) -> str | None:
        """Return the digest that a version had. Raises ModelError when the file is broken."""
        return None if self._file is None else _read(self._file).get(str(ref))

    def check(self, ref: ModelRef, sha256: str, *, file: str) -> None:
        """Hold a version to what was seen of it; `file` is what errors call its manifest.

        Raises ModelError (`model.changed`) with both digests.
        """
        known = self.get(ref)
        if known not in {None, sha256}:
            raise ModelError(
                f"version {ref} was seen with manifest sha256 {known}, now it has {sha256}: a"
                f" version never changes; publish the new content as a new version (or, if nothing"
                f" was ever served from the old one, take {str(ref)!r} out of {self._file})",
                file=file,
                code="model.changed",
            )

    def remember(self, ref: ModelRef, sha256: str, *, file: str) -> None:
        """Check, and keep the digest of a version that was not seen before."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._file.with_name(f"{self._file.name}.lock")):
                self.check(ref, sha256, file=file)
                seen = _read(self._file)
                if str(ref) not in seen:
                    _write(self._file, {**seen, str(ref): sha256})
        except OSError as error:
            raise ModelError(
                f"cannot remember what was seen of {ref}: {error.strerror}",
                file=str(self._file),
                code="model.fetch",
            ) from error


@contextmanager
def _locked(lock_file: Path) -> Iterator[None]:
    """Keep other workers on this data folder out; the kernel lets go if we die."""
    with lock_file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read(file: Path) -> dict[str, str]:
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _corrupt(file, error.strerror or "it cannot be opened") from error
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _corrupt(file, f"line {error.lineno}: {error.msg}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise _corrupt(file, f"its schema is not {SCHEMA}")
    versions = document.get("versions")
    if not isinstance(versions, dict):
        raise _corrupt(file, "versions is no mapping")
    for ref, sha256 in versions.items():
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise _corrupt(file, f"versions[{ref!r}] is no sha256")
    return versions


def _corrupt(file: Path, what: str) -> ModelError:
    return ModelError(
        f"what was seen of model versions cannot be read: {what}; restore the file, or remove it"
        " to trust the repository as it is now",
        file=str(file),
        code="model.fetch",
    )


def _write(file: Path, versions: dict[str, str]) -> None:
    """Replace the file whole: after a crash there is the old or the new one, never a part."""
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as stream:
        stream.write(
            orjson.dumps(
                {"schema": SCHEMA, "versions": versions},
                option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE,
            )
        )
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
