"""Eviction as a state machine: several workers on one cache, versions of all sizes, one bound."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.models.shelves import put
from worker.errors import ModelError
from worker.models.cache import Cache
from worker.models.files import names_below, verify_files
from worker.models.manifest import load_manifest
from worker.models.repository import Repository, Version
from worker.types import ModelRef

CAP = 8000
REFS = [ModelRef("fish", str(number)) for number in range(1, 6)]
WORKERS = st.integers(0, 1)


class Workers(RuleBasedStateMachine):
    """Two workers find and release versions of 1 to 5 kB, and end without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "cache"
        shelf = self.folder / "shelf"
        for number, ref in enumerate(REFS, 1):
            put(shelf, ref, model=b"x" * (number * 1000 - 700))
        self.sizes = {ref: size(shelf / str(ref)) for ref in REFS}
        self.digests = {ref: load_manifest(shelf / str(ref))[1] for ref in REFS}
        self.shelf = shelf
        self.workers = [self.started() for _ in range(2)]
        self.uses: list[dict[ModelRef, Version]] = [{}, {}]
        self.kept: list[ModelRef] = []
        """The least recently used first."""

    def started(self) -> Repository:
        return Repository(self.shelf, cache=Cache(self.root, max_bytes=CAP), seen_file=None)

    def used(self) -> set[ModelRef]:
        return {ref for uses in self.uses for ref in uses}

    def room(self) -> int:
        return CAP - sum(self.sizes[ref] for ref in self.kept)

    @rule(worker=WORKERS, ref=st.sampled_from(REFS))
    def find(self, worker: int, ref: ModelRef) -> None:
        if ref not in self.kept and not self.could_fit(ref):
            with pytest.raises(ModelError, match=r"models\.cache_bytes"):
                self.workers[worker].find(ref)
            return
        self.uses[worker][ref] = self.workers[worker].find(ref)
        if ref in self.kept:
            self.kept.remove(ref)
        for old in [old for old in self.kept if old not in self.used()]:
            if self.room() < self.sizes[ref]:
                self.kept.remove(old)
        self.kept.append(ref)

    def could_fit(self, ref: ModelRef) -> bool:
        return sum(self.sizes[used] for used in self.used()) + self.sizes[ref] <= CAP

    @precondition(lambda self: any(self.uses))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([index for index in range(2) if self.uses[index]]))
        ref = data.draw(st.sampled_from(sorted(self.uses[worker])))
        self.workers[worker].release(self.uses[worker].pop(ref))

    @rule(worker=WORKERS)
    def restart(self, worker: int) -> None:
        for version in self.uses[worker].values():
            self.workers[worker].release(version)  # as the kernel does
        self.uses[worker] = {}
        self.workers[worker] = self.started()

    @invariant()
    def exactly_what_should_be_kept_is_there_and_whole(self) -> None:
        folders = [path for path in self.root.glob("*") if path.name != ".lock"]
        there = {path.name for path in folders}
        assert there == {self.digests[ref] for ref in self.kept}
        assert sum(map(size, folders)) <= CAP
        for folder in folders:
            verify_files(folder, load_manifest(folder)[0])

    def teardown(self) -> None:
        for worker in range(2):
            self.restart(worker)
        shutil.rmtree(self.folder)


def size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in names_below(folder))


TestEviction = Workers.TestCase
TestEviction.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
