"""Make what is served what should be served: a pure plan, then its steps through the registry.

The only way a model is ever loaded. What fails is reported, and what was served before goes on.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import structlog

from worker.control.messages import DesiredState
from worker.errors import DarkroomError
from worker.types import ModelRef

_log = structlog.get_logger()


class Actual(NamedTuple):
    """What a worker has now."""

    loaded: frozenset[ModelRef]
    active: Mapping[str, str]
    """Model name -> version."""


class Load(NamedTuple):
    ref: ModelRef


class Activate(NamedTuple):
    ref: ModelRef


class Unload(NamedTuple):
    ref: ModelRef


Step = Load | Activate | Unload
"""A closed union, matched exhaustively."""


class Failure(NamedTuple):
    """A step that failed, and so did not change what is served."""

    step: Step
    error: DarkroomError


class Served(Protocol):
    """What the reconciler needs of the registry."""

    @property
    def loaded(self) -> frozenset[ModelRef]: ...

    @property
    def active(self) -> Mapping[str, str]: ...

    def expect(
        self, models: Mapping[str, str], default: str, *, generation: int | None = None
    ) -> None: ...

    async def load(self, ref: ModelRef) -> None: ...

    def activate(self, ref: ModelRef) -> None: ...

    async def unload(self, ref: ModelRef) -> None: ...


def plan(state: DesiredState, actual: Actual) -> tuple[Step, ...]:
    """Return the steps from actual to desired: all loads, then the switches, then the unloads.

    A version is never unloaded before the one that takes its place is active.
    """
    wanted = state.refs
    loads = [Load(ref) for ref in wanted if ref not in actual.loaded]
    switches = [Activate(ref) for ref in wanted if actual.active.get(ref.name) != ref.version]
    unloads = [Unload(ref) for ref in sorted(actual.loaded.difference(wanted))]
    return (*loads, *switches, *unloads)


async def reconcile(state: DesiredState, registry: Served) -> tuple[Failure, ...]:
    """Carry out the plan; return what failed (nothing: the state is applied).

    A model whose new version cannot be loaded keeps the version that it has.
    """
    registry.expect(state.models, state.default, generation=state.generation)
    failures: list[Failure] = []
    lost: set[str] = set()
    for step in plan(state, Actual(registry.loaded, registry.active)):
        if step.ref.name in lost:
            continue
        try:
            await _carry_out(step, registry)
        except DarkroomError as error:
            _log.error("model.refused", step=type(step).__name__, ref=str(step.ref), why=str(error))
            failures.append(Failure(step, error))
            lost.add(step.ref.name)
    return tuple(failures)


async def _carry_out(step: Step, registry: Served) -> None:
    match step:
        case Load(ref):
            await registry.load(ref)
        case Activate(ref):
            registry.activate(ref)
        case Unload(ref):
            await registry.unload(ref)
