"""The versions that this worker has loaded: starts, switches, drains and ends their engines.

Only the reconciler asks it to load anything. It spends one budget, and keeps the router's table.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import structlog

from worker.errors import EngineFault, ModelError
from worker.inference.budget import Budget
from worker.inference.dispatcher import Dispatcher, Finished, Job, Observer, OnOutcomes
from worker.inference.engines import EngineSpec
from worker.inference.process import Spawn
from worker.inference.supervisor import Status, Supervisor
from worker.models.repository import Version
from worker.models.router import RoutingTable
from worker.protocol.messages import Load
from worker.types import Limits, ModelRef, Skipped, SkipReason

_DRAIN_S = 30.0
"""How long a version that was replaced may take for what it still has."""

_log = structlog.get_logger()


class Finder(Protocol):
    """What the registry needs of the model repository."""

    def find(self, ref: ModelRef) -> Version: ...


class EngineOptions(NamedTuple):
    """How engines are made, by the settings."""

    limits: Limits
    policy: str
    session: Mapping[str, str]
    watchdog_s: float | None
    """None: by the measured service times."""
    max_loaded: int
    failpoint: str | None = None


class Registry:
    """The loaded versions. All of it runs on the loop's thread, which must be the main thread."""

    def __init__(
        self,
        repository: Finder,
        budget: Budget,
        *,
        options: EngineOptions,
        spawn: Spawn,
        on_outcomes: OnOutcomes,
        observe: Observer,
    ) -> None:
        self._repository = repository
        self._budget = budget
        self._options = options
        self._spawn = spawn
        self._on_outcomes = on_outcomes
        self._observe = observe
        self._numbers = itertools.count(1)
        self._loaded: dict[ModelRef, Supervisor] = {}
        self._table = RoutingTable("", MappingProxyType({}), MappingProxyType({}))

    @property
    def table(self) -> RoutingTable:
        """What the router looks at now."""
        return self._table

    @property
    def loaded(self) -> frozenset[ModelRef]:
        return frozenset(self._loaded)

    @property
    def active(self) -> Mapping[str, str]:
        return self._table.active

    @property
    def ready(self) -> bool:
        """Every version that is named is active, and its engine serves."""
        return bool(self._table.named) and all(
            self._table.active.get(name) == version and self._loaded[ModelRef(name, version)].ready
            for name, version in self._table.named.items()
        )

    @property
    def capacity_rows(self) -> int:
        """Rows in the engines that keep all lanes busy."""
        return sum(supervisor.capacity_rows for supervisor in self._loaded.values())

    @property
    def in_flight(self) -> int:
        """Jobs that have no outcome yet."""
        return sum(supervisor.dispatcher.in_flight for supervisor in self._loaded.values())

    def health(self) -> tuple[str, ...]:
        """Return what should make the worker be restarted; empty: it is alive."""
        problems = (supervisor.problem() for supervisor in self._loaded.values())
        return tuple(problem for problem in problems if problem)

    def describe(self) -> dict[ModelRef, Status]:
        """Return what there is to say of every loaded version."""
        return {ref: supervisor.status for ref, supervisor in self._loaded.items()}

    def expect(
        self, models: Mapping[str, str], default: str, *, generation: int | None = None
    ) -> None:
        """Take note of what the desired state names; nothing is loaded by this."""
        named = MappingProxyType(dict(models))
        self._table = self._table._replace(default=default, named=named, generation=generation)

    async def load(self, ref: ModelRef) -> None:
        """Start an engine for a version; it has proved itself and is warm when this returns.

        Raises ModelError (the version is at fault, or too many are loaded), DeviceError, or
        EngineFault (its engine died or hung while loading, or no process can be had).
        """
        if ref in self._loaded:
            return
        if len(self._loaded) >= self._options.max_loaded:
            names = ", ".join(map(str, self._loaded))
            raise ModelError(f"{ref} would be one more than models.max_loaded; loaded: {names}")
        # Reading a folder blocks for as long as its disk does; the loop must go on.
        version = await asyncio.to_thread(self._repository.find, ref)
        dispatcher = Dispatcher(
            ref,
            on_outcomes=self._on_outcomes,
            observe=self._observe,
            numbers=self._numbers,
            defer=asyncio.get_running_loop().call_soon,
        )
        options = self._options
        supervisor = Supervisor(self._spec(version), dispatcher, spawn=self._spawn)
        try:
            await supervisor.start()
        except OSError as error:
            raise EngineFault(f"no engine of {ref} can be started: {error}") from error
        if self._options != options:
            supervisor.set_limits(self._options.limits)
        self._loaded[ref] = supervisor

    def activate(self, ref: ModelRef) -> None:
        """Serve this version from the next record on. Raises ModelError when it is not loaded."""
        if ref not in self._loaded:
            raise ModelError(f"{ref} is not loaded and cannot be active")
        before = self._table.active.get(ref.name)
        active = MappingProxyType({**self._table.active, ref.name: ref.version})
        self._table = self._table._replace(active=active)
        _log.info("model.active", model=ref.name, version=ref.version, before=before)

    async def unload(self, ref: ModelRef) -> None:
        """Route nothing to a version any more, let it finish what it has, end its engine."""
        supervisor = self._loaded.get(ref)
        if supervisor is None:
            return
        if self._table.active.get(ref.name) == ref.version:
            rest = {name: v for name, v in self._table.active.items() if name != ref.name}
            self._table = self._table._replace(active=MappingProxyType(rest))
        await supervisor.dispatcher.drained(_DRAIN_S)
        await supervisor.stop(_DRAIN_S)
        del self._loaded[ref]
        left = supervisor.dispatcher.abandon()
        _log.info("model.unloaded", model=ref.name, version=ref.version, skipped=left)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Give each job to its version. Never blocks; every job has one outcome, later."""
        groups: dict[ModelRef, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.ticket.model, []).append(job)
        for ref, group in groups.items():
            supervisor = self._loaded.get(ref)
            if supervisor is not None:
                supervisor.dispatcher.submit(group)
                continue
            skip = Skipped(SkipReason.VERSION_UNAVAILABLE, f"{ref} was unloaded meanwhile")
            finished = [Finished(job.ticket, skip) for job in group]
            asyncio.get_running_loop().call_soon(self._on_outcomes, finished)

    def set_limits(self, limits: Limits) -> None:
        """Replace the limits of all engines, those that are loaded later too."""
        self._options = self._options._replace(limits=limits)
        for supervisor in self._loaded.values():
            supervisor.set_limits(limits)

    async def close(self, deadline_s: float) -> None:
        """End all engines: what they have may finish until the deadline, then they are killed."""
        async with asyncio.TaskGroup() as group:
            for supervisor in self._loaded.values():
                group.create_task(supervisor.stop(deadline_s))
        self._loaded.clear()

    def _spec(self, version: Version) -> EngineSpec:
        names = list(self._table.named)
        index = names.index(version.ref.name) if version.ref.name in names else 0
        share = self._budget.share(max(1, len(names)), index)
        load = Load(
            folder=str(version.folder.resolve()),
            manifest_sha256=version.manifest_sha256,
            lanes=share.lanes,
            limits=self._options.limits,
            decode_bytes=share.decode_bytes,
            policy=self._options.policy,
            session=dict(self._options.session),
            failpoint=self._options.failpoint,
        )
        return EngineSpec(version.ref, load, self._options.watchdog_s)
