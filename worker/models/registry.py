"""What this worker serves: the router's table, and the versions behind it.

Versions are loaded when they are told to be, and when records ask for them; what leaves service
stays warm for a while. All of it runs on the loop's thread, which must be the main thread. How an
engine is loaded is `loading`'s, for whom room is made `berths'`, who waits for it `waiting`'s.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import structlog

from worker.errors import ModelError
from worker.inference.budget import Budget, Share
from worker.inference.device import Device
from worker.inference.dispatcher import Dispatcher, Finished
from worker.inference.feed import Job
from worker.inference.process import Spawn
from worker.inference.status import Status
from worker.inference.supervisor import Supervisor
from worker.models.berth import Berth, Role
from worker.models.berths import Berths
from worker.models.breaker import Breaker, BreakerState
from worker.models.finding import Ask, Finder
from worker.models.gaps import SwitchGaps
from worker.models.loading import Loader, Terms
from worker.models.options import (
    LOADED,
    VERIFIED,
    Listeners,
    Overrides,
    RegistryOptions,
    overridden,
)
from worker.models.room import Room
from worker.models.router import Routes, RoutingTable
from worker.models.table import Table
from worker.models.waiting import Waiting
from worker.protocol.messages import Outcomes
from worker.telemetry.metrics import Metrics
from worker.types import Limits, ModelRef, Skipped, SkipReason

_log = structlog.get_logger()


class Registry:
    """The versions of this worker."""

    def __init__(
        self,
        repository: Finder,
        budget: Budget,
        *,
        options: RegistryOptions,
        spawn: Spawn,
        tell: Listeners,
        metrics: Metrics,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._options = options
        self._tell = tell
        self._metrics = metrics
        self._clock_s = clock_s
        self._table = Table()
        self._limits: dict[str, Limits] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._gaps = SwitchGaps(lambda name, s: metrics.switch_gap_seconds.labels(name).set(s))
        self._release = repository.release
        self._berths = Berths(
            Room(options.max_loaded, budget.memory_bytes),
            make=self._new_berth,
            ended=self._ended,
            clock_s=clock_s,
            per_file_byte=options.per_file_byte,
        )
        self.devices = {uuid: Device(uuid, to_cpu=options.to_cpu) for uuid in options.uuids}
        """Those that versions have engines on; none where no device was chosen."""
        terms = Terms(self._limits_of, self._shares, self._new_dispatcher, self.devices)
        self._loader = Loader(
            repository, self._berths, options=options, spawn=spawn, terms=terms, metrics=metrics
        )
        self._waiting = Waiting(
            self._table, self._berths, self._loader, on_withdrawn=tell.on_withdrawn
        )

    @property
    def table(self) -> RoutingTable:
        """What the router looks at now."""
        return self._table.now

    @property
    def numbers(self) -> Mapping[ModelRef, int]:
        """Versions that are loaded -> the reload number that they were loaded under."""
        return {berth.ref: berth.number for berth in self._berths if berth.loaded}

    @property
    def loaded(self) -> frozenset[ModelRef]:
        return frozenset(self._berths.loaded)

    @property
    def engines(self) -> list[tuple[ModelRef, Supervisor]]:
        """Return every engine that runs, with its version."""
        return [(ref, each) for ref, pool in self._berths.loaded.items() for each in pool.running]

    @property
    def serving(self) -> Mapping[str, str]:
        """Models -> the version that each serves to records of which nothing else decides."""
        models = self.table.models
        return {name: each.serving for name, each in models.items() if each.serving is not None}

    @property
    def ready(self) -> bool:
        """Every model is served: by an engine, by one that comes on demand, or by its fallback."""
        return bool(self.table.models) and all(map(self._waiting.served, self.table.models))

    @property
    def capacity_rows(self) -> int:
        """Rows in the engines that keep all of them busy."""
        return sum(pool.capacity_rows for pool in self._berths.loaded.values())

    @property
    def capacity_rate(self) -> float:
        """Rows a second that the engines can run, decoding aside; 0: not known."""
        return sum(pool.capacity_rate for pool in self._berths.loaded.values())

    @property
    def in_flight(self) -> int:
        """Jobs that have no outcome yet."""
        return self._waiting.returning + sum(berth.in_flight for berth in self._berths)

    def health(self) -> tuple[str, ...]:
        """Return what should make the worker be restarted; empty: it is alive."""
        problems = [pool.problem() for pool in self._berths.loaded.values()]
        return tuple(problem for problem in (self._berths.problem, *problems) if problem)

    def describe(self) -> dict[ModelRef, Status]:
        """Return what there is to say of every loaded version."""
        return {ref: pool.status for ref, pool in self._berths.loaded.items()}

    def names(
        self,
        default: str,
        models: Mapping[str, Mapping[str, str | None]],
        *,
        wanted: Collection[ModelRef] = (),
    ) -> None:
        """Take note of what the desired state names: for each model its versions and their digests.

        `wanted`: versions that it wants warm, whether routes name them yet or not; others that no
        route names are kept for a while only. Routes stay as they are.
        """
        self._table.name(default, models, wanted)
        for berth in self._berths:
            self._settle(berth)
            if not self._table.knows(berth.ref):
                self._berths.forget(berth)
        self.look()

    async def load(
        self,
        ref: ModelRef,
        *,
        sha256: str | None,
        reload: int = 0,
        replaces: str | None = None,
        new_heads: bool = False,
    ) -> str:
        """Load a version beside what is served; return LOADED or, with stop-first, VERIFIED.

        `replaces`: the version whose heads it must offer, unless `new_heads`. When the last who
        waits is cancelled so is the load, and nothing is left of it. Raises ModelError,
        DeviceError, SettingsError or EngineFault; what was served goes on.
        """
        before = None if replaces is None else ModelRef(ref.name, replaces)
        ask = Ask(sha256, reload, before, new_heads)
        berth = self._berths.of(ref)
        try:
            await self._loader.load(berth, ask)
        except ModelError as error:
            if error.code != "headroom" or not self._options.stop_first:
                raise
            await self._loader.verify(berth, ask)
            return VERIFIED
        return LOADED

    async def reload(self, ref: ModelRef, *, sha256: str | None, number: int) -> None:
        """Replace a version's engine by a new one, between two records. Raises as `load` does."""
        berth = self._berths.of(ref)
        ask = Ask(sha256, number)
        if await self._berths.settled(berth):
            await self._loader.reload(berth, ask)
        else:
            await self._loader.load(berth, ask)

    def switch(self, name: str, routes: Routes) -> None:
        """Route a model so from the next record on; what leaves service is kept for a while.

        A version that is named and not loaded is loaded when a record comes for it.
        """
        if routes == self.table.models.get(name):
            return
        old = self._table.serving(name)
        self._table.route(name, routes)
        for berth in self._berths:
            if berth.ref.name == name:
                self._settle(berth)
                self._waiting.turn_away(berth)
        new = self._table.serving(name)
        if new is not None and new != old:
            self._switched(old, new)
        self.look()

    async def replace(
        self,
        name: str,
        routes: Routes,
        *,
        sha256: str | None,
        reload: int = 0,
        new_heads: bool = False,
    ) -> None:
        """Load a version for which there is no room beside the one that serves, and switch to it.

        The old one is stopped first; records that come meanwhile wait, and are routed anew. When
        the new one fails the old one is loaded again and the error raised (as by `load`).
        """
        old, new = self._table.serving(name), ModelRef(name, routes.serving or "")
        if old is None or old == new:
            await self.load(new, sha256=sha256, reload=reload, new_heads=new_heads)
            self.switch(name, routes)
            return
        left = self._berths.of(old)
        try:
            ask = Ask(sha256, reload, old, new_heads)
            await self._loader.replace(self._berths.of(new), left, ask)
            self.switch(name, routes)
            if left.stopped:
                self._waiting.give_back(left.dispatcher.withdraw(suspects=True))
        finally:
            left.stopped = False
            self._waiting.demand(left)

    async def unload(self, ref: ModelRef) -> None:
        """Let a version finish what it has and end its engine; it comes back on demand."""
        berth = self._berths.get(ref)
        if berth is not None:
            await self._berths.ended(berth)

    def drop(self, name: str) -> None:
        """Route nothing to a model any more; its engines finish what they have and end."""
        self._table.drop(name)
        self._limits.pop(name, None)
        for berth in self._berths:
            if berth.ref.name != name:
                continue
            self._berths.end(berth)
            if berth.demand is not None:
                berth.demand.cancel()
            if berth.pool is None:
                self._waiting.abandon(berth, f"model {name!r} was dropped")
        self.look()

    def set_limits(self, name: str, limits: Overrides) -> None:
        """Change the limits of a model: of what is loaded of it, and of what will be."""
        changed = overridden(self._options.limits, limits)
        if changed == self._limits_of(name):
            return
        self._limits[name] = changed
        for ref, pool in self._berths.loaded.items():
            if ref.name == name:
                pool.set_limits(changed)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Give each job to its version. Never blocks; every job has one outcome, later."""
        groups: dict[ModelRef, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.ticket.model, []).append(job)
        now_s = self._clock_s()
        for ref, group in groups.items():
            if self._table.knows(ref):
                self._waiting.admit(self._berths.of(ref), group, now_s)
                continue
            skip = Skipped(SkipReason.VERSION_UNAVAILABLE, f"{ref} was dropped meanwhile")
            finished = [Finished(job.ticket, skip) for job in group]
            asyncio.get_running_loop().call_soon(self._tell.on_outcomes, finished)

    def look(self) -> None:
        """Do what has come due. Its own timer calls it; whoever moves the clock must too."""
        now_s = self._clock_s()
        due: list[float] = []
        for berth in self._berths:
            if berth.role is Role.HELD and berth.loaded:
                until_s = max(berth.left_s, berth.used_s) + self._options.hold_s
                if now_s >= until_s:
                    self._berths.end(berth)
                else:
                    due.append(until_s)
            if berth.state is BreakerState.OPEN:
                due.append(berth.opened_s + self._options.reset_timeout_s)
        self._waiting.pass_over()
        self._berths.poke()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, min(due) - now_s), self.look)

    async def close(self, deadline_s: float) -> None:
        """End all engines: what they have may finish until the deadline, then they are killed."""
        await self._loader.close()
        await self._berths.close(deadline_s)
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self, berth: Berth) -> None:
        """Give a version its role by the table."""
        role = self._table.role(berth.ref, berth.role)
        if role is Role.HELD and berth.role is not Role.HELD:
            berth.left_s = self._clock_s()
        berth.role = role

    def _switched(self, old: ModelRef | None, new: ModelRef) -> None:
        _log.info("model.switched", model=new.name, version=new.version, before=old and old.version)
        if old is not None:
            busy = self._berths.of(old).in_flight > 0
            self._gaps.switched(new, self._clock_s(), busy=busy)
            self._metrics.model_switches.labels(new.name).inc()

    def _measured(self, name: str, gap_s: float) -> None:
        self._metrics.switch_gap_seconds.labels(name).set(gap_s)

    def _ended(self, berth: Berth) -> None:
        """Hear that an engine of a version has ended, as it was asked to."""
        if berth.pool is None:
            _log.info("model.unloaded", model=str(berth.ref))
            self._metrics.forget_engine(*berth.ref)
            if self._table.knows(berth.ref):
                self._waiting.demand(berth)
            else:
                self._waiting.abandon(berth, f"{berth.ref} was unloaded")
                self._berths.forget(berth)
        self._changed(berth)

    def _changed(self, berth: Berth) -> None:
        """Hear that an engine of a version has come or gone, or what its breaker makes of it."""
        self._settle(berth)
        self._waiting.turn_away(berth)
        self._metrics.models_loaded.set(len(self._berths.loaded))
        self.look()

    def _observed(self, berth: Berth, ref: ModelRef, message: Outcomes) -> None:
        if message.done:
            berth.passed()
            self._gaps.served(ref, self._clock_s())
        self._tell.observe(ref, message)

    def _finished(self, berth: Berth, finished: Sequence[Finished]) -> None:
        self._tell.on_outcomes(finished)
        if not berth.in_flight:
            self._berths.poke()
            if berth.trial:  # its trial ended and told nothing of the version: a broken picture
                berth.trial = False
                self.look()

    def _limits_of(self, name: str) -> Limits:
        return self._limits.get(name, self._options.limits)

    def _shares(self, name: str, engines: int | None) -> tuple[Share, ...]:
        names = list(self.table.models)
        models = max(1, min(len(names), self._options.max_loaded))
        at = names.index(name) % models if name in names else 0
        return self._budget.split(self._budget.share(models, at), engines)

    def _new_berth(self, ref: ModelRef) -> Berth:
        berth = Berth(
            ref,
            dispatch=self._new_dispatcher,
            breaker=Breaker(self._options.max_failures, self._options.reset_timeout_s),
            clock_s=self._clock_s,
            changed=self._changed,
            release=self._release,
        )
        berth.role = self._table.role(ref, Role.ASKED)
        return berth

    def _new_dispatcher(self, berth: Berth) -> Dispatcher:
        return Dispatcher(
            berth.ref,
            on_outcomes=partial(self._finished, berth),
            observe=partial(self._observed, berth),
            numbers=self._numbers,
            defer=asyncio.get_running_loop().call_soon,
            priorities=self._options.topic_priorities,
        )
