"""Make what is served what should be served: a pure plan, then its steps through the registry.

The only way a model is ever loaded. Models do not wait for each other's faults: one whose new
version cannot be had keeps what it has, and is reported; the others change.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from worker.control.answers import Code, Proof
from worker.control.messages import LiveLimits
from worker.control.wanted import Wanted, WantedModel
from worker.errors import DarkroomError, DeviceError, EngineFault, ModelError
from worker.models.router import Routes, RoutingTable
from worker.types import ModelRef

_log = structlog.get_logger()


class Actual(NamedTuple):
    """What a worker has now."""

    loaded: Mapping[ModelRef, int]
    """Versions with an engine -> the reload number that it was loaded under."""
    routes: Mapping[str, Routes]
    """What the router looks at."""


class Load(NamedTuple):
    """Load a version beside what is served."""

    ref: ModelRef
    sha256: str | None
    reload: int
    replaces: str | None
    """The version whose heads it must offer."""
    new_heads: bool


class Reload(NamedTuple):
    """Replace the engine of a version by a new one of the same version."""

    ref: ModelRef
    sha256: str | None
    number: int


class Switch(NamedTuple):
    """Route a model so from the next record on."""

    name: str
    routes: Routes

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.name, self.routes.serving or "")


class Prepare(NamedTuple):
    """Load a version that a rollout may activate later."""

    rollout: str
    load: Load

    @property
    def ref(self) -> ModelRef:
        return self.load.ref


Step = Load | Reload | Switch | Prepare
"""A closed union, matched exhaustively."""


class Failure(NamedTuple):
    """A step that failed; what was served before goes on."""

    ref: ModelRef
    error: DarkroomError
    preparing: bool = False

    @property
    def code(self) -> Code:
        match self.error:
            case ModelError(code=code):
                return Code(code)
            case EngineFault():
                return Code.ENGINE
            case DeviceError():
                return Code.DEVICE
            case _:
                return Code.MODEL_INVALID


class Report(NamedTuple):
    """What came of a pass; without failures what was wanted is what is served."""

    failures: tuple[Failure, ...]
    prepared: str | None
    """Id of the rollout that this worker is prepared for."""
    proof: Proof | None


class Served(Protocol):
    """What the reconciler needs of the registry."""

    @property
    def table(self) -> RoutingTable: ...

    @property
    def numbers(self) -> Mapping[ModelRef, int]: ...

    def names(
        self,
        default: str,
        models: Mapping[str, Mapping[str, str | None]],
        *,
        wanted: Collection[ModelRef] = (),
    ) -> None: ...

    async def load(
        self,
        ref: ModelRef,
        *,
        sha256: str | None,
        reload: int = 0,
        replaces: str | None = None,
        new_heads: bool = False,
    ) -> str: ...

    async def reload(self, ref: ModelRef, *, sha256: str | None, number: int) -> None: ...

    def switch(self, name: str, routes: Routes) -> None: ...

    async def replace(
        self,
        name: str,
        routes: Routes,
        *,
        sha256: str | None,
        reload: int = 0,
        new_heads: bool = False,
    ) -> None: ...

    def drop(self, name: str) -> None: ...

    def set_limits(self, name: str, limits: LiveLimits) -> None: ...


def plan(want: Wanted, actual: Actual, *, max_loaded: int) -> tuple[Step, ...]:
    """Return the steps from actual to wanted: for each model its loads, then its switch.

    The default model comes first; what is more than `max_loaded` versions is loaded when records
    ask for it. What a rollout prepares comes last.
    """
    room = max_loaded
    steps: list[Step] = []
    for name, model in _in_order(want):
        eager = model.load[: max(0, room)]
        room -= len(eager)
        steps += _model_steps(name, model, actual, eager)
    part = want.preparation
    if part is not None and part.turn and part.ref not in actual.loaded:
        model = want.models[part.ref.name]
        replaces = model.routes.serving
        load = Load(part.ref, part.sha256, model.reload, replaces, part.new_heads)
        steps.append(Prepare(part.rollout, load))
    return tuple(steps)


def _in_order(want: Wanted) -> Iterator[tuple[str, WantedModel]]:
    yield want.default, want.models[want.default]
    for name in sorted(want.models.keys() - {want.default}):
        yield name, want.models[name]


def _model_steps(
    name: str, model: WantedModel, actual: Actual, eager: tuple[str, ...]
) -> Iterator[Step]:
    now = actual.routes.get(name)
    before = None if now is None else now.serving
    for version in eager:
        ref = ModelRef(name, version)
        sha256 = model.digests.get(version)
        if ref not in actual.loaded:
            if before == version:
                continue  # unloaded while nobody asked for it; a record brings it back
            replaces = before if version == model.routes.serving and version != before else None
            yield Load(ref, sha256, model.reload, replaces, model.new_heads)
        elif version == model.routes.serving and actual.loaded[ref] < model.reload:
            yield Reload(ref, sha256, model.reload)
    if now != model.routes:
        yield Switch(name, model.routes)


class Reconciler:
    """Carries plans out, one pass at a time.

    A pass may be cancelled at any time by one with a newer state: an unfinished load goes on when
    that one wants it too, else it is cancelled.
    """

    def __init__(self, registry: Served, *, max_loaded: int) -> None:
        self._registry = registry
        self._max_loaded = max_loaded
        self._loads: list[tuple[Load | Reload, asyncio.Task[str]]] = []
        """The one that is under way, and ended ones whose turn in the plan has not come."""

    async def apply(self, want: Wanted) -> Report:
        """Make one pass; return what failed and for which rollout the worker is prepared."""
        registry = self._registry
        digests = {name: model.digests for name, model in want.models.items()}
        registry.names(want.default, digests, wanted=want.refs)
        for name in registry.table.models.keys() - want.models.keys():
            registry.drop(name)
        for name, model in want.models.items():
            registry.set_limits(name, model.limits)
        actual = Actual(registry.numbers, registry.table.models)
        steps = plan(want, actual, max_loaded=self._max_loaded)
        await self._give_up_unless(steps)
        failures: list[Failure] = []
        verified: set[ModelRef] = set()
        for step in steps:
            failed = any(f.ref.name == step.ref.name for f in failures)
            if failed and not isinstance(step, Prepare):
                continue  # this model keeps what it has; what may mend it is prepared
            try:
                await self._carry_out(step, want, verified)
            except DarkroomError as error:
                _log.error(
                    "model.refused", step=type(step).__name__, ref=str(step.ref), why=str(error)
                )
                failures.append(Failure(step.ref, error, isinstance(step, Prepare)))
        # What ended and was passed over must be seen anew by the next pass.
        await self._give_up_unless([step for step, task in self._loads if not task.done()])
        return Report(tuple(failures), *self._prepared(want, failures, verified))

    async def close(self) -> None:
        """Cancel the load that is under way."""
        await self._give_up_unless(())

    async def _carry_out(self, step: Step, want: Wanted, verified: set[ModelRef]) -> None:
        match step:
            case Load() | Prepare(load=Load()):
                load = step.load if isinstance(step, Prepare) else step
                if await self._loaded(load) == Proof.VERIFIED:
                    verified.add(load.ref)
            case Reload():
                await self._loaded(step)
            case Switch(name, routes) if step.ref in verified:
                model = want.models[name]
                await self._registry.replace(
                    name,
                    routes,
                    sha256=model.digests.get(step.ref.version),
                    reload=model.reload,
                    new_heads=model.new_heads,
                )
            case Switch(name, routes):
                self._registry.switch(name, routes)

    async def _loaded(self, step: Load | Reload) -> str:
        """Load, or go on waiting for the same load of a pass that was cancelled."""
        task = next((task for load, task in self._loads if _same(load, step)), None)
        if task is None:
            if others := [task for _, task in self._loads]:
                await asyncio.wait(others)  # this plan wants them too: their turn will come
            task = asyncio.create_task(self._work(step), name=f"load {step.ref}")
            self._loads.append((step, task))
        await asyncio.wait((task,))  # our own cancellation does not reach it
        self._loads = [each for each in self._loads if each[1] is not task]
        return task.result()

    async def _work(self, step: Load | Reload) -> str:
        match step:
            case Load(ref, sha256, number, replaces, new_heads):
                return await self._registry.load(
                    ref, sha256=sha256, reload=number, replaces=replaces, new_heads=new_heads
                )
            case Reload(ref, sha256, number):
                await self._registry.reload(ref, sha256=sha256, number=number)
                return Proof.LOADED

    async def _give_up_unless(self, steps: Sequence[Step]) -> None:
        wanted = [step.load if isinstance(step, Prepare) else step for step in steps]
        kept = [each for each in self._loads if any(_same(each[0], step) for step in wanted)]
        given_up = [task for load, task in self._loads if (load, task) not in kept]
        self._loads = kept
        for task in given_up:
            task.cancel()
        if given_up:
            await asyncio.wait(given_up)
        for task in given_up:
            if not task.cancelled():
                task.exception()  # it ended by itself; whatever came of it, nobody wants it now

    def _prepared(
        self, want: Wanted, failures: list[Failure], verified: set[ModelRef]
    ) -> tuple[str | None, Proof | None]:
        part = want.preparation
        if part is None:
            lacking = any(failure.ref.name == want.prepared_by for failure in failures)
            done = None if lacking else want.prepared
            return done, Proof.LOADED if done else None
        if part.ref in self._registry.numbers:
            return part.rollout, Proof.LOADED
        return (part.rollout, Proof.VERIFIED) if part.ref in verified else (None, None)


def _same(one: Load | Reload, other: Step) -> bool:
    """Whether two steps load the same content of the same version, for whatever reason."""
    match one, other:
        case (Load(), Load()):
            return (one.ref, one.sha256, one.reload) == (other.ref, other.sha256, other.reload)
        case _:
            return one == other
