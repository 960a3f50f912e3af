"""All engines of one model version: one for each device and instance; the CPU's where those fail.

They share the dispatcher, so that whoever comes or goes takes part between two records. An engine
on a device that is out of use waits for the device's next trial; while none of the devices has one,
the CPU serves for them, if it may, until one of them is back.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from worker.errors import DarkroomError, DeviceError
from worker.inference.device import Device
from worker.inference.dispatcher import Dispatcher
from worker.inference.engines import EngineSpec
from worker.inference.process import Spawn
from worker.inference.status import Status
from worker.inference.supervisor import OnEngine, Supervisor
from worker.types import Limits

_DRAIN_S = 30.0
"""How long an engine of the CPU may take for what it still has when a device is back."""


class PoolSpec(NamedTuple):
    """What makes a pool."""

    engines: tuple[EngineSpec, ...]
    on_cpu: tuple[EngineSpec, ...] = ()
    """What serves while no device of theirs can; empty: nothing may."""


class Pool:
    """The engines of one version. `start`, then `stop`. `devices`: those of this worker by UUID."""

    def __init__(
        self,
        spec: PoolSpec,
        dispatcher: Dispatcher,
        *,
        spawn: Spawn,
        on_engine: OnEngine,
        devices: Mapping[str, Device],
    ) -> None:
        self._spec = spec
        self._dispatcher = dispatcher
        self._make = partial(Supervisor, dispatcher=dispatcher, spawn=spawn, on_engine=self._heard)
        self._on_engine = on_engine
        self._devices = [devices[each.device] for each in spec.engines if each.device is not None]
        self._engines = [
            self._make(each, device=devices.get(each.device or "")) for each in spec.engines
        ]
        self._on_cpu: list[Supervisor] = []
        self._ending: dict[asyncio.Task[None], Supervisor] = {}
        self._crash: BaseException | None = None
        self._stopping = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of its engines, as far as they run."""
        return tuple(each.pid for each in self._all if each.pid is not None)

    @property
    def size(self) -> int:
        """How many engines it has when all of them run."""
        return len(self._engines)

    @property
    def up(self) -> bool:
        """An engine is there to take records."""
        return any(each.up for each in self._all)

    @property
    def ready(self) -> bool:
        return self.up and self._dispatcher.ready

    @property
    def capacity_rows(self) -> int:
        """Rows in its engines that keep them busy."""
        return sum(each.capacity_rows for each in self._on_cpu or self._engines)

    @property
    def capacity_rate(self) -> float:
        """Rows a second that its engines can run, by what was measured while warming."""
        return sum(each.capacity_rate for each in self._on_cpu or self._engines)

    @property
    def running(self) -> tuple[Supervisor, ...]:
        """The engines that take records now."""
        return tuple(each for each in self._all if each.up)

    @property
    def status(self) -> Status:
        """What there is to say of its engines together, and of those that run."""
        every = [each.status for each in self._all]
        shown = [each.status for each in self._all if each.up] or every[:1]
        devices = dict.fromkeys(each.device for each in shown if each.device)
        reasons = [each.reason for each in every if each not in shown and each.reason]
        return shown[0]._replace(
            device=", ".join(devices) or None,
            lanes=sum(each.lanes for each in shown),
            restarts=sum(each.restarts for each in every),
            reason=next(iter(reasons), shown[0].reason),
            lost=self._lost,
        )

    def problem(self) -> str | None:
        """Return what makes the worker itself unwell; see `Supervisor.problem`."""
        if self._crash is not None:
            return f"an engine could not be ended: {self._crash!r}"
        return next(filter(None, (each.problem() for each in self._all)), None)

    async def start(self) -> None:
        """Load the version with all engines, and serve when one has; the others go on trying.

        Raises as `Supervisor.start` does when none has loaded, the CPU's neither; then nothing is
        left behind.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop(0.0)
            raise
        for device in self._devices:
            device.listeners.add(self._look)
        self._look()

    def set_limits(self, limits: Limits) -> None:
        """Replace the limits, in these engines and in those that follow them."""
        changed = [
            tuple(each._replace(load=each.load._replace(limits=limits)) for each in specs)
            for specs in self._spec
        ]
        self._spec = PoolSpec(*changed)
        for each in self._all:
            each.set_limits(limits)

    async def stop(self, deadline_s: float) -> None:
        """Let the engines finish what they have, then end them; after the deadline kill them."""
        self._stopping = True
        for device in self._devices:
            device.listeners.discard(self._look)
        async with asyncio.TaskGroup() as group:
            for each in (*self._all, *self._ending.values()):
                group.create_task(each.stop(deadline_s))

    @property
    def _all(self) -> list[Supervisor]:
        return [*self._engines, *self._on_cpu]

    @property
    def _out(self) -> bool:
        """No engine of a device runs, and none may be started: all of them are out of use."""
        out = all(not device.usable for device in self._devices)
        return bool(self._devices) and out and not any(each.up for each in self._engines)

    @property
    def _lost(self) -> str | None:
        if self._spec.on_cpu or not self._out:
            return None
        return "; ".join(dict.fromkeys(f"{each.uuid}: {each.why}" for each in self._devices))

    async def _start(self) -> None:
        errors: dict[Supervisor, DarkroomError | OSError] = {}
        async with asyncio.TaskGroup() as group:
            for each in self._engines:
                group.create_task(_try(each, errors))
        if len(errors) == len(self._engines):
            # A version that its own fault keeps from loading is no better on the CPU.
            own = [error for error in errors.values() if not isinstance(error, DeviceError)]
            if own or not self._spec.on_cpu:
                raise next(iter(own or errors.values()))
            self._on_cpu = [self._make(each) for each in self._spec.on_cpu]
            for each in self._on_cpu:
                await each.start()
        for each, error in errors.items():
            each.keep_trying(str(error))

    def _heard(self, why: str | None) -> None:
        self._look()
        self._on_engine(why)

    def _look(self) -> None:
        """Have the CPU serve, or no longer, as the devices are."""
        if self._stopping or not self._spec.on_cpu:
            return
        if self._on_cpu and any(each.up for each in self._engines):
            on_cpu, self._on_cpu = self._on_cpu, []
            for each in on_cpu:
                task = asyncio.create_task(each.stop(_DRAIN_S), name="end on the CPU")
                self._ending[task] = each
                task.add_done_callback(self._has_ended)
        elif not self._on_cpu and self._out:
            self._on_cpu = [self._make(each) for each in self._spec.on_cpu]
            for each in self._on_cpu:
                each.keep_trying(None)

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._ending.pop(task, None)
        if not task.cancelled():
            self._crash = self._crash or task.exception()


async def _try(engine: Supervisor, errors: dict[Supervisor, DarkroomError | OSError]) -> None:
    try:
        await engine.start()
    except (DarkroomError, OSError) as error:
        errors[engine] = error
