import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.inference.jobs import Ends
from tests.unit.inference.scripted import Script, Spawner, loads, outcomes, serves, submits
from worker.control.messages import desired
from worker.control.reconciler import Load, reconcile
from worker.errors import EngineFault, ModelError
from worker.inference.budget import Budget
from worker.inference.dispatcher import Job
from worker.inference.process import EngineEnd, Peer
from worker.models.manifest import Manifest
from worker.models.registry import EngineOptions, Registry
from worker.models.repository import Version
from worker.protocol.channel import Channel
from worker.protocol.messages import Load as LoadMessage
from worker.protocol.messages import SetLimits, Submit
from worker.protocol.page import Page
from worker.types import Limits, ModelRef, Position, Predicted, Ticket

BUDGET = Budget(lanes=3, decode_bytes=3000, largest_bytes=1000, memory_bytes=1 << 34)
LIMITS = Limits(4, 1, 5.0, 1 << 20, 1 << 20, 1 << 20)
D1_FOLDER = os.path.realpath("models/digits/1")
D1, D2, C1 = ModelRef("digits", "1"), ModelRef("digits", "2"), ModelRef("cats", "1")


class Shelf:
    """A repository that has everything but what is `absent`."""

    absent = ModelRef("digits", "9")

    def find(self, ref: ModelRef) -> Version:
        if ref == self.absent:
            raise ModelError(f"no version {ref}", file="repository")
        return Version(ref, Path("models") / ref.name / ref.version, "beef", MANIFEST)


MANIFEST = Manifest(files={}, batch_max_size=None, inputs={}, heads={}, golden=())


def registry(ends: Ends, *scripts: Script, max_loaded: int = 3) -> Registry:
    return Registry(
        Shelf(),
        BUDGET,
        options=EngineOptions(LIMITS, "cpu", {"intra": "1"}, None, max_loaded, "before_run=kill"),
        spawn=Spawner(*(scripts or (serves,))),
        on_outcomes=ends,
        observe=lambda _ref, _message: None,
    )


def jobs(ref: ModelRef, *offsets: int) -> list[Job]:
    return [
        Job(Ticket(Position("images", 0, offset), 1, ref, "active", None), b"image", None)
        for offset in offsets
    ]


def ready(models: Registry) -> bool:
    """Ask anew: to mypy, what was asserted of a property stays so."""
    return models.ready


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a thread's doing sets no event
            await asyncio.sleep(0.001)


async def test_reconciled_versions_are_in_the_table_ready_and_serve() -> None:
    ends = Ends()
    models = registry(ends)
    assert not ready(models)
    assert await reconcile(desired({"digits": "1", "cats": "1"}, "cats"), models) == ()
    assert models.table.default == "cats"
    assert models.table.active == models.table.named == {"digits": "1", "cats": "1"}
    assert ready(models)
    assert models.capacity_rows == (2 + 1) * 4
    models.submit([*jobs(D1, 0, 1), *jobs(C1, 2), *jobs(D1, 3)])
    assert models.in_flight == 4
    await until(lambda: len(ends.of) == 4)
    made_by = {
        end.outcome.model.name for end in ends.of.values() if isinstance(end.outcome, Predicted)
    }
    assert made_by == {"digits", "cats"}
    assert models.health() == ()
    await models.close(5.0)


async def test_an_engine_is_told_its_share_of_the_budget_and_what_to_load() -> None:
    told: list[LoadMessage] = []

    def listens(channel: Channel, _: Page) -> None:
        told.append(loads(channel))
        list(submits(channel))

    models = registry(Ends(), listens)
    await reconcile(desired({"digits": "1", "cats": "1"}, "digits"), models)
    await models.close(5.0)
    digits, cats = told
    assert digits == LoadMessage(
        D1_FOLDER, "beef", 2, LIMITS, 1500, "cpu",
        {"intra": "1"}, "before_run=kill",
    )  # fmt: skip
    assert (cats.lanes, cats.decode_bytes) == (1, 1500)


async def test_a_swap_serves_with_the_old_version_until_the_new_one_is_warm() -> None:
    ends = Ends()
    models = registry(ends)
    await reconcile(desired({"digits": "1"}, "digits"), models)
    models.expect({"digits": "2"}, "digits", generation=7)
    assert models.table.generation == 7
    await models.load(D2)
    assert models.table.active == {"digits": "1"}
    assert not ready(models), "the version that is named is not active yet"
    models.activate(D2)
    assert models.table.active == {"digits": "2"}
    assert ready(models)
    models.submit(jobs(D1, 0))  # routed just before the switch
    await models.unload(D1)
    assert ends.count() == {"Predicted": 1}
    assert models.loaded == {D2}
    models.submit(jobs(D1, 1))  # a straggler
    models.submit(jobs(D2, 2))
    await until(lambda: len(ends.of) == 3)
    assert ends.count() == {"Predicted": 2, "model.version-unavailable": 1}
    await models.close(5.0)


async def test_unloading_drains_what_the_version_still_has() -> None:
    ends = Ends()

    def slow(channel: Channel, _: Page) -> None:
        loads(channel)
        held: list[Submit] = []
        for submit in submits(channel):
            held.append(submit)
            if len(held) == 2:
                for each in held:
                    channel.send(outcomes(each))

    models = registry(ends, slow)
    await reconcile(desired({"digits": "1"}, "digits"), models)
    models.submit(jobs(D1, 0))
    unloading = asyncio.create_task(models.unload(D1))
    await asyncio.sleep(0)
    assert models.table.active == {}
    models.submit(jobs(D1, 1))
    await unloading
    assert ends.count() == {"Predicted": 2}
    await models.unload(D1)


async def test_a_version_that_is_not_in_the_repository_is_reported_and_the_old_one_serves() -> None:
    models = registry(Ends())
    await reconcile(desired({"digits": "1"}, "digits"), models)
    (failure,) = await reconcile(desired({"digits": "9"}, "digits"), models)
    assert failure.step == Load(Shelf.absent)
    assert models.table.active == {"digits": "1"}
    assert models.table.named == {"digits": "9"}
    assert not ready(models)
    await models.close(5.0)


async def test_no_more_versions_are_loaded_than_the_settings_allow() -> None:
    models = registry(Ends(), max_loaded=1)
    models.expect({"digits": "1"}, "digits")
    await models.load(D1)
    await models.load(D1)
    with pytest.raises(ModelError, match=r"one more than models\.max_loaded; loaded: digits/1"):
        await models.load(C1)
    await models.close(5.0)


def test_only_what_is_loaded_can_be_active() -> None:
    with pytest.raises(ModelError, match="digits/1 is not loaded"):
        registry(Ends()).activate(D1)


async def test_it_describes_every_version_that_it_has() -> None:
    models = registry(Ends())
    await reconcile(desired({"digits": "1"}, "digits"), models)
    status = models.describe()[D1]
    assert (status.state, status.lanes, status.max_size, status.in_flight) == ("serving", 3, 4, 0)
    await models.close(5.0)
    assert models.describe() == {}


async def test_limits_that_change_while_a_version_loads_reach_it() -> None:
    told: list[object] = []
    models = registry(Ends())

    def loads_late(channel: Channel, _: Page) -> None:
        loads(channel)
        told.append(channel.receive())
        list(submits(channel))

    def spawn(end: EngineEnd) -> Peer:
        models.set_limits(LIMITS._replace(max_size=2))
        return Spawner(loads_late)(end)

    models._spawn = spawn
    await models.load(D1)
    await until(lambda: bool(told))
    assert told == [SetLimits(LIMITS._replace(max_size=2))]
    await models.close(5.0)


async def test_a_process_that_cannot_be_had_is_a_failure_of_that_model_alone() -> None:
    models = registry(Ends())

    def refuses(_: EngineEnd) -> Peer:
        raise BlockingIOError(11, "fork: no more processes")

    models._spawn = refuses
    [failure] = await reconcile(desired({"digits": "1"}, "digits"), models)
    assert isinstance(failure.error, EngineFault)
    assert "no engine of digits/1 can be started" in str(failure.error)
    await models.close(5.0)


async def test_new_limits_reach_loaded_versions_and_those_loaded_later() -> None:
    told: list[Limits] = []

    def listens(channel: Channel, _: Page) -> None:
        told.append(loads(channel).limits)
        list(submits(channel))

    models = registry(Ends(), listens)
    models.expect({"digits": "1", "cats": "1"}, "digits")
    await models.load(D1)
    models.set_limits(LIMITS._replace(max_size=2))
    await models.load(C1)
    assert [limits.max_size for limits in told] == [4, 2]
    await models.close(5.0)
