"""The registry under any sequence of what may happen to it, over scripted engines."""

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.models.stage import Stage, stage
from worker.errors import DarkroomError
from worker.types import ModelRef, Predicted

REFS = tuple(ModelRef(name, version) for name in "ab" for version in "123")
FAULTS = ("refusing", "dying", "ending", "holding", "mute")
versions = st.sampled_from(REFS)
models = st.sampled_from("ab")


class RegistryMachine(RuleBasedStateMachine):
    """Two models of three versions, places for two engines; b falls back on a."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.context = stage(*REFS, max_loaded=2, hold_s=100.0)
        self.on: Stage = self.loop.run_until_complete(self.context.__aenter__())
        self.tasks: list[asyncio.Task[Any]] = []
        self.generation = 0
        self.reloads = 0

    def run(self, act: Callable[[], Any]) -> None:
        """Do something on the loop, and let it turn a few times."""

        async def go() -> None:
            act()
            for _ in range(5):
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)

        self.loop.run_until_complete(go())

    def begin(self, work: Callable[[], Any]) -> None:
        self.run(lambda: self.tasks.append(asyncio.ensure_future(work())))

    @initialize()
    def serve(self) -> None:
        for name in "ab":
            self.switch(ModelRef(name, "1"))

    @rule(ref=versions)
    def switch(self, ref: ModelRef) -> None:
        self.generation += 1
        fallback = "a" if ref.name == "b" else None
        changes = {"generation": self.generation, "fallback_model": fallback}
        self.run(lambda: self.on.switch(ref, **changes))

    @rule(ref=versions)
    def load(self, ref: ModelRef) -> None:
        self.begin(lambda: self.on.models.load(ref, sha256=None))

    @rule(ref=versions)
    def reload(self, ref: ModelRef) -> None:
        self.reloads += 1
        number = self.reloads
        self.begin(lambda: self.on.models.reload(ref, sha256=None, number=number))

    @rule(ref=versions)
    def replace(self, ref: ModelRef) -> None:
        self.generation += 1
        routes = self.on.routes(ref.version, ref.name, generation=self.generation)
        self.begin(lambda: self.on.models.replace(ref.name, routes, sha256=None))

    @rule(ref=versions)
    def unload(self, ref: ModelRef) -> None:
        self.begin(lambda: self.on.models.unload(ref))

    @rule()
    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()

    @rule(name=models, many=st.integers(1, 60))
    def send(self, name: str, many: int) -> None:
        self.run(lambda: self.on.send(name, many))

    @rule(ref=versions, many=st.integers(1, 20))
    def ask(self, ref: ModelRef, many: int) -> None:
        self.run(lambda: self.on.send(ref.name, many, version=ref.version))

    @rule(ref=versions, fault=st.sampled_from(FAULTS))
    def break_(self, ref: ModelRef, fault: str) -> None:
        getattr(self.on.engines, fault).add(ref)

    @rule(name=models, many=st.integers(20, 60))
    def pile_up(self, name: str, many: int) -> None:
        """Let records wait behind others, until something is mended."""
        serving = self.on.models.table.models[name].serving
        self.on.engines.holding.add(ModelRef(name, serving or ""))
        self.send(name, many)

    @rule()
    def mend(self) -> None:
        for fault in FAULTS:
            getattr(self.on.engines, fault).clear()

    @rule(seconds=st.sampled_from([0.5, 5.0, 11.0, 31.0, 61.0, 101.0]))
    def pass_(self, seconds: float) -> None:
        self.loop.run_until_complete(self.on.pass_s(seconds))

    @invariant()
    def no_more_engines_than_have_places(self) -> None:
        assert self.on.engines.most <= 2
        assert len(self.on.models.loaded) <= 2

    @invariant()
    def nothing_went_wrong_that_must_not(self) -> None:
        assert self.on.models.health() == ()

    def teardown(self) -> None:
        """Mend everything: every record must end, once, as it was routed."""
        self.mend()
        try:
            self.loop.run_until_complete(self._end())
        finally:
            self.loop.run_until_complete(self.context.__aexit__(None, None, None))
            self.loop.close()

    async def _end(self) -> None:
        async with asyncio.timeout(20):
            while not all(task.done() for task in self.tasks):
                await self.on.pass_s(0.5)
                await asyncio.sleep(0.001)
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        allowed = DarkroomError | asyncio.CancelledError
        assert [
            r for r in results if isinstance(r, BaseException) and not isinstance(r, allowed)
        ] == []
        await self.on.moving()
        assert self.on.models.in_flight == 0
        for end in self.on.ends.of.values():
            if isinstance(end.outcome, Predicted):
                assert end.ticket.model == end.outcome.model[:2]


RegistryMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestRegistry = RegistryMachine.TestCase
