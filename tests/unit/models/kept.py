"""Versions in a cache: how tests have them fetched, by this process or another, and spoil them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.unit.models.shelves import FISH
from worker.models.cache import Cache
from worker.models.repository import Repository, Version
from worker.types import ModelRef

MIB = 1 << 20
FIND = """\
import sys
from pathlib import Path
from worker.models.cache import Cache
from worker.models.repository import Repository
from worker.telemetry.logs import configure
from worker.types import ModelRef
configure("error")
cache = Cache(Path(sys.argv[2]), max_bytes=int(sys.argv[3]))
version = Repository(sys.argv[1], cache=cache, seen_file=None).find(ModelRef("fish", "1"))
print(version.folder, flush=True)
"""


def find(shelf: Path | str, root: Path, ref: ModelRef = FISH, *, max_bytes: int = MIB) -> Version:
    return repository(shelf, root, max_bytes).find(ref)


def repository(shelf: Path | str, root: Path, max_bytes: int = MIB) -> Repository:
    return Repository(shelf, cache=Cache(root, max_bytes=max_bytes), seen_file=None)


def left(root: Path) -> list[str]:
    """What is in the cache, beside its lock."""
    return sorted(path.name for path in root.glob("*") if path.name != ".lock")


def finder(
    shelf: Path | str, root: Path, *, first: str = "", then: str = ""
) -> subprocess.Popen[str]:
    """Start another process that finds the version."""
    command = [sys.executable, "-c", first + FIND + then, str(shelf), str(root), str(MIB)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def symlink(path: Path) -> None:
    shutil.copy(path, path.parent / "other")
    path.unlink()
    path.symlink_to("other")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
