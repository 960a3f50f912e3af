"""The desired state as one worker must carry it out: pure, and the same wherever it is asked."""

from collections.abc import Mapping
from typing import NamedTuple

from worker.control.messages import (
    Action,
    DesiredState,
    LiveLimits,
    Mode,
    ModelState,
    Phase,
    PinOrder,
    Rollout,
    frozen,
)
from worker.models.router import Pin, Routes
from worker.types import ModelRef


class WantedModel(NamedTuple):
    """What one worker should do with one model."""

    routes: Routes
    """As they should be; `serving` is the version that must be loaded for that."""
    load: tuple[str, ...]
    """Every version that these routes need loaded, the serving one first."""
    digests: Mapping[str, str | None]
    """Version -> sha256 of its manifest."""
    keep: str | None
    """Kept warm for a roll back, where it is loaded and there is room."""
    reload: int
    new_heads: bool
    limits: LiveLimits


class Preparation(NamedTuple):
    """A rollout's part for one worker, before it is activated."""

    rollout: str
    ref: ModelRef
    sha256: str | None
    new_heads: bool
    turn: bool
    """Whether this worker may load it now."""


class Wanted(NamedTuple):
    """What one worker should be."""

    default: str
    models: Mapping[str, WantedModel]
    hold: Action | None
    preparation: Preparation | None
    prepared: str | None
    """Id of a rollout that asks nothing more of this worker than what stands above."""
    prepared_by: str | None = None
    """Model that must be as wanted for that; None: nothing must."""

    @property
    def refs(self) -> frozenset[ModelRef]:
        """Every version that should be loaded here, or may have to be soon."""
        refs = {ModelRef(n, version) for n, model in self.models.items() for version in model.load}
        return frozenset(refs | ({self.preparation.ref} if self.preparation else set()))


def wanted(state: DesiredState, worker: str, labels: Mapping[str, str]) -> Wanted:
    """Return what this worker should be by this state."""
    models = {
        name: _model(name, model, state, worker, labels) for name, model in state.models.items()
    }
    actions = {hold.action for hold in state.holds if hold.workers.matches(worker, labels)}
    hold = Action.DRAIN if Action.DRAIN in actions else Action.PAUSE if actions else None
    return Wanted(state.default, frozen(models), hold, *_part(state, models, worker))


def pin_of(model: ModelState, worker: str, labels: Mapping[str, str]) -> PinOrder | None:
    """Return the pin that holds for a worker: the narrowest, of equals the last."""
    pins = [pin for pin in model.pins if pin.workers.matches(worker, labels)]
    return max(reversed(pins), key=lambda pin: pin.workers.rank, default=None)


def _model(
    name: str, model: ModelState, state: DesiredState, worker: str, labels: Mapping[str, str]
) -> WantedModel:
    order = pin_of(model, worker, labels)
    pin = None if order is None else Pin(order.version, order.strict)
    routes = Routes(
        serving=model.active if pin is None else pin.version,
        versions=frozenset(model.versions),
        aliases=model.aliases,
        pin=pin,
        rules=model.rules,
        split=tuple(model.split.items()),
        fallback_model=model.fallback_model,
        generation=state.generation,
    )
    return WantedModel(
        routes,
        load=_needed(routes),
        digests=model.versions,
        keep=model.previous if pin is None else None,
        reload=_reload(name, model, state.rollout, worker),
        new_heads=model.new_heads,
        limits=model.limits,
    )


def _needed(routes: Routes) -> tuple[str, ...]:
    """Return what must be loaded: what is only ever asked for by name is loaded when it is."""
    needed = [routes.serving or ""]
    if routes.pin is None:
        meant = [rule.version for rule in routes.rules] + [name for name, _ in routes.split]
        needed += [routes.aliases.get(version, version) for version in meant]
    return tuple(dict.fromkeys(needed))


def _reload(name: str, model: ModelState, rollout: Rollout | None, worker: str) -> int:
    if (
        rollout is not None
        and (rollout.model, rollout.mode, rollout.phase) == (name, Mode.ROLLING, Phase.PREPARE)
        and worker in rollout.admitted
    ):
        return rollout.reload
    return model.reload


def _part(
    state: DesiredState, models: Mapping[str, WantedModel], worker: str
) -> tuple[Preparation | None, str | None, str | None]:
    rollout = state.rollout
    if rollout is None or rollout.phase is not Phase.PREPARE:
        return None, None, None
    routes = models[rollout.model].routes
    if rollout.mode is Mode.ROLLING:  # a pinned worker too has engines to replace
        turn = worker in rollout.admitted
        return None, rollout.id if turn else None, rollout.model
    if routes.pin is not None and rollout.version != routes.pin.version:
        return None, rollout.id, None  # a rollout does not pass a pin
    ref = ModelRef(rollout.model, rollout.version)
    return (
        Preparation(
            rollout.id,
            ref,
            state.models[rollout.model].versions.get(rollout.version),
            rollout.new_heads,
            worker in rollout.admitted,
        ),
        None,
        None,
    )
