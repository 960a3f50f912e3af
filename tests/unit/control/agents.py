"""Agents over registries of names alone, on a Redis in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.channels import FakeChannel, FakeRedis
from tests.fakes import eventually
from tests.unit.control.shelf import Shelf
from worker.config_sections import ControlSettings
from worker.control.agent import Agent, Identity
from worker.control.answers import Ack, Answer
from worker.control.documents import parse_ack, parse_state
from worker.control.memory import Memory
from worker.control.messages import (
    Action,
    DesiredState,
    ModelState,
    encode_state,
    frozen,
    settings_state,
)
from worker.control.reconciler import Reconciler
from worker.types import ModelRef

D2 = ModelRef("digits", "2")
DIGEST = "0" * 64
SOON_S = 10.0


class Host:
    """A worker that only notes what it is told."""

    def __init__(self) -> None:
        self.held: Action | None = None
        self.why: str | None = None
        self.whys: list[str | None] = []
        """All that it was told of the control channel, each change once."""
        self.changes = 0
        self.devices: dict[str, str] = {}

    def vitals(self, ack: Ack) -> Ack:
        return ack._replace(state="serving", devices=dict(self.devices))

    def hold(self, action: Action | None) -> None:
        self.held = action

    def applied(self) -> None:
        self.changes += 1

    def unreachable(self, why: str | None) -> None:
        self.why = why
        if self.whys[-1:] != [why]:
            self.whys.append(why)


class Rig:
    """One worker's agent, and what it works with."""

    def __init__(
        self, redis: FakeRedis, folder: Path, name: str = "w-1", *, start_wait_s: float = 60.0
    ) -> None:
        self.redis, self.name = redis, name
        self.shelf, self.host = Shelf(), Host()
        self.memory = Memory(folder / name, "test")
        self.agent = Agent(
            Identity(name, "0"),
            FakeChannel(redis),
            Reconciler(self.shelf, max_loaded=3),
            self.host,
            memory=self.memory,
            settings_state=settings_state({"digits": "1"}, "digits", fleet="test"),
            settings=ControlSettings(
                fleet="test", labels={"zone": "a"}, poll_s=0.1, start_wait_s=start_wait_s
            ),
        )

    def complaint(self) -> str | None:
        """Why it says that Redis cannot be had."""
        return self.host.why

    def held(self) -> Action | None:
        return self.host.held

    @property
    def said(self) -> Ack:
        """What it answered last."""
        return parse_ack(self.redis.answers[self.name][1])

    async def says(self, condition: Callable[[Ack], bool]) -> Ack:
        """Wait for an answer of which this holds."""
        await eventually(lambda: self.name in self.redis.answers and condition(self.said), SOON_S)
        return self.said

    async def acks(self, generation: int) -> Ack:
        return await self.says(lambda ack: (ack.answer, ack.generation) == (Answer.ACK, generation))


@contextlib.asynccontextmanager
async def running(*rigs: Rig) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(rig.agent.run()) for rig in rigs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for rig in rigs:
            await rig.agent.leave()


def state(generation: int = 1, active: str = "1", **changes: Any) -> DesiredState:
    digits = ModelState(frozen({"1": DIGEST, "2": DIGEST}), active)
    models = frozen({"digits": digits})
    return DesiredState("test", "e", generation, "digits", models)._replace(**changes)


async def write(redis: FakeRedis, new: DesiredState) -> None:
    """Write as an operator does, over whatever generation is stored."""
    expected = parse_state(redis.document).generation if redis.document else None
    assert await FakeChannel(redis).write(encode_state(new), expected=expected, command="", by="")
