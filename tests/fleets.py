"""A fleet under command: what operators do, done in a test, and what became of its records."""

import asyncio
import contextlib
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.workers import POLL_S, Settings, Worker
from worker.config_sections import ControlSettings
from worker.control import edits
from worker.control.channel import Channel
from worker.control.documents import parse_state
from worker.control.messages import DesiredState
from worker.control.operator import Edit, Operator
from worker.control.progress import Look, Outcome, Progress
from worker.local.stack import Stack
from worker.models.repository import Repository, demo_repository
from worker.types import ModelRef

T = TypeVar("T")

CONVERGED_S = 60.0


class Fleet:
    """One fleet's control channel on a Redis, and a model repository of its own."""

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self.url = url
        self.name = name
        self.models = folder / "models"
        shutil.copytree(demo_repository(), self.models)

    def settings(self, **control: Any) -> Settings:
        """What its workers have in their settings."""
        return {
            "control": {"url": self.url, "fleet": self.name, "poll_s": 1.0, **control},
            "models": {"repository": str(self.models)},
            "engine": {"policy": "cpu", "lanes": 1},
        }

    def run(self, work: Callable[[Operator], Coroutine[Any, Any, T]]) -> T:
        """Do something as an operator."""

        async def connected() -> T:
            control = ControlSettings(url=self.url, fleet=self.name)
            async with contextlib.aclosing(Channel(control)) as channel:
                return await work(Operator(channel, by="tester", first=self._first))

        return asyncio.run(connected())

    def change(self, edit: Edit, *, supersede: bool = False) -> Progress:
        """Write a change and wait until it is decided."""

        async def changed(operator: Operator) -> Progress:
            change = await operator.change(edit, "test", supersede=supersede)
            return await operator.wait(change, deadline_s=CONVERGED_S)

        return self.run(changed)

    def activate(self, version: str, *, model: str = "digits", **terms: Any) -> Progress:
        """Activate a version; with terms in two phases."""

        def edit(state: DesiredState, now_ms: int) -> DesiredState:
            two_phase = edits.Terms(uuid.uuid4().hex, now_ms, **terms) if terms else None
            sha256 = self.sha256(version, model=model)
            return edits.activate(state, model, version, sha256=sha256, terms=two_phase)

        return self.change(edit)

    def converges(self, edit: Edit) -> None:
        progress = self.change(edit)
        assert progress.outcome is Outcome.CONVERGED, progress.reasons

    def sha256(self, version: str, *, model: str = "digits") -> str:
        repository = Repository(self.models, cache=None, seen_file=None)
        return repository.manifest_sha256(ModelRef(model, version))

    @property
    def look(self) -> Look:
        return self.run(lambda operator: operator.look())

    def until(self, condition: Callable[[Look], bool], what: str, deadline_s: float = 30.0) -> Look:
        """Look until the condition holds."""
        end_s = time.monotonic() + deadline_s
        while not condition(look := self.look):
            assert time.monotonic() < end_s, f"not in {deadline_s} s: {what}; {look}"
            time.sleep(POLL_S)
        return look

    def history(self) -> dict[int, DesiredState]:
        """Every state that was written, by its generation."""
        entries = self.run(lambda operator: operator.history(100_000))
        states = [parse_state(entry.document) for entry in entries]
        return {state.generation or 0: state for state in states}

    def add_version(self, version: str, *, of: str = "2", broken: bool = False) -> None:
        """Put another version into the repository: the same content under another number."""
        folder = self.models / "digits" / version
        shutil.copytree(self.models / "digits" / of, folder)
        if broken:  # it claims what its own golden sample does not say
            file = folder / "manifest.yaml"
            manifest = yaml.safe_load(file.read_text())
            manifest["golden"][0]["expect"]["score"] = 0.123
            file.write_text(yaml.safe_dump(manifest))

    def _first(self) -> DesiredState:
        active, known = {"digits": "1"}, {"digits": {"1": self.sha256("1")}}
        return edits.first_state(self.name, uuid.uuid4().hex, active, "digits", versions=known)


def fleet_on(stack: Stack, name: str, folder: Path) -> Fleet:
    assert stack.redis_url is not None
    return Fleet(stack.redis_url, name, folder)


def worker_id(worker: Worker) -> str:
    """The name under which a worker answers."""
    return str(worker.events("worker starting")[0]["worker"])


def held_to_history(results: Iterable[dict[str, Any]], fleet: Fleet) -> None:
    """Hold each result to the state that it says it was made by."""
    states = fleet.history()
    for result in results:
        if result["generation"] is not None:
            model = states[result["generation"]].models[result["model"]["name"]]
            assert result["model"]["version"] == model.active, result


def whole_batches(results: Iterable[dict[str, Any]]) -> None:
    """Hold batches to one version: all rows of a batch are results of its version, none is missing.

    Rows of a batch have its timings in common; other batches may have the same ones by chance, so
    what is told is that they are no multiple of the batch's size.
    """
    rows: Counter[tuple[str, str, float, float, int]] = Counter()
    for result in {result["id"]: result for result in results}.values():
        timing, size = result["timing_ms"], result["engine"]["batch_size"]
        version = result["model"]["version"]
        rows[result["worker"], version, timing["run"], timing["heads"], size] += 1
    torn = {batch: count for batch, count in rows.items() if count % batch[-1]}
    assert not torn, f"batches of which rows have another version, or are missing: {torn}"
