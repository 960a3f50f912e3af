"""A registry of names alone, for tests of whoever tells it what to load."""

import asyncio
from collections.abc import Collection, Mapping

from worker.control.answers import Proof
from worker.control.messages import LiveLimits
from worker.errors import DarkroomError
from worker.models.router import Routes, RoutingTable
from worker.types import ModelRef


class Shelf:
    """A registry of names alone; versions in `broken` do not load, those in `gated` wait."""

    def __init__(self) -> None:
        self.numbers: dict[ModelRef, int] = {}
        self.table = RoutingTable("", {})
        self.broken: dict[ModelRef, DarkroomError] = {}
        self.no_room: set[ModelRef] = set()
        self.gates: dict[ModelRef, asyncio.Event] = {}
        self.limits: dict[str, LiveLimits] = {}
        self.loads: list[ModelRef] = []
        self.cancelled: list[ModelRef] = []
        self.wanted: set[ModelRef] = set()

    def names(
        self,
        default: str,
        models: Mapping[str, Mapping[str, str | None]],
        *,
        wanted: Collection[ModelRef] = (),
    ) -> None:
        known = self.table.models
        self.wanted = set(wanted)
        self.table = RoutingTable(
            default,
            {
                **known,
                **{
                    n: known[n]._replace(versions=frozenset(v))
                    if n in known
                    else Routes(None, frozenset(v))
                    for n, v in models.items()
                },
            },
        )

    async def load(
        self,
        ref: ModelRef,
        *,
        sha256: str | None,
        reload: int = 0,
        replaces: str | None = None,
        new_heads: bool = False,
    ) -> str:
        del sha256, replaces, new_heads
        self.loads.append(ref)
        try:
            if ref in self.gates:
                await self.gates[ref].wait()
        except asyncio.CancelledError:
            self.cancelled.append(ref)
            raise
        if ref in self.broken:
            raise self.broken[ref]
        if ref in self.no_room:
            return Proof.VERIFIED
        self.numbers[ref] = reload
        return Proof.LOADED

    async def reload(self, ref: ModelRef, *, sha256: str | None, number: int) -> None:
        await self.load(ref, sha256=sha256, reload=number)

    def switch(self, name: str, routes: Routes) -> None:
        assert ModelRef(name, routes.serving or "") in self.numbers
        self.table = self.table._replace(models={**self.table.models, name: routes})

    async def replace(
        self,
        name: str,
        routes: Routes,
        *,
        sha256: str | None,
        reload: int = 0,
        new_heads: bool = False,
    ) -> None:
        del sha256, new_heads
        old = self.table.models[name].serving
        self.numbers.pop(ModelRef(name, old or ""), None)
        self.numbers[ModelRef(name, routes.serving or "")] = reload
        self.switch(name, routes)

    def drop(self, name: str) -> None:
        self.table = self.table._replace(
            models={n: r for n, r in self.table.models.items() if n != name}
        )

    def set_limits(self, name: str, limits: LiveLimits) -> None:
        self.limits[name] = limits

    def open_gates(self) -> None:
        for gate in self.gates.values():
            gate.set()
        self.gates = {}

    @property
    def serving(self) -> dict[str, str | None]:
        return {name: routes.serving for name, routes in self.table.models.items()}
