"""What each command makes of the desired state: pure functions from one state to the next.

An edit that changes nothing returns the state that it was given; every other one returns the next
generation. Who writes it says so in it (`written_by`, `written_at_ms`). What cannot be done raises
CommandError. Must not know where states are kept, nor what time it is.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from worker.control.changes import in_words
from worker.control.content import Content, ModelContent
from worker.control.messages import (
    Action,
    DesiredState,
    Hold,
    Mode,
    ModelState,
    Phase,
    PinOrder,
    Rollout,
    Selector,
    frozen,
    settings_state,
)
from worker.control.rollout import aborted, following, switched
from worker.errors import CommandError

Order = TypeVar("Order", bound=Hold | PinOrder)


class Terms(NamedTuple):
    """On which terms a rollout goes."""

    id: str
    """No other rollout of the fleet ever has it."""
    started_at_ms: int
    """Redis's clock."""
    timeout_s: float = 600.0
    max_preparing: int = 1
    quorum: int | None = None


def first_state(
    fleet: str,
    epoch: str,
    active: Mapping[str, str],
    default: str,
    *,
    versions: Mapping[str, Mapping[str, str]],
) -> DesiredState:
    """Return what the first command of a fleet edits, where there is no state: generation 0.

    `active` and `default` are the settings', `versions` are those of the repository: model ->
    version -> sha256 of its manifest. Raises SettingsError when the default is not active.
    """
    state = settings_state(active, default, fleet=fleet)._replace(epoch=epoch, generation=0)
    for name, model in state.models.items():
        known = frozen({**model.versions, **versions.get(name, {})})
        state = state.with_model(name, model._replace(versions=known))
    return state


def activate(
    state: DesiredState,
    name: str,
    version: str,
    *,
    sha256: str | None,
    new_heads: bool = False,
    terms: Terms | None = None,
) -> DesiredState:
    """Make a version the one that is served by default: at once, or (with terms) in two phases.

    `sha256` is of the version's manifest in the repository; None: only what the fleet knows.
    """
    _stop_for_rollout(state, None if terms else name)
    model = _with_version(name, _model(state, name), version, sha256)
    if version == model.active:
        return _with_model(state, name, model)
    if terms is None:
        new = following(state)
        model = switched(model, version, generation=new.generation, new_heads=new_heads)
        return new.with_model(name, model)
    rollout = _rollout(name, version, Mode.TWO_PHASE, terms)._replace(new_heads=new_heads)
    return following(state.with_model(name, model))._replace(rollout=rollout)


def reload(state: DesiredState, name: str, *, terms: Terms) -> DesiredState:
    """Let every worker in its turn replace the engines of what it serves of a model."""
    _stop_for_rollout(state)
    new = following(state)
    assert new.generation is not None
    # The generation: above the number of every reload before it, also of one that was aborted.
    rollout = _rollout(name, _model(state, name).active, Mode.ROLLING, terms)
    return new._replace(rollout=rollout._replace(reload=new.generation))


def pin(
    state: DesiredState,
    name: str,
    version: str,
    *,
    sha256: str | None,
    workers: Selector,
    strict: bool = True,
) -> DesiredState:
    """Hold some workers at a version; a pin of the same workers is replaced."""
    model = _with_version(name, _model(state, name), version, sha256)
    pins = _replaced(model.pins, PinOrder(version, workers, strict))
    return _with_model(state, name, model._replace(pins=pins))


def unpin(state: DesiredState, name: str, workers: Selector) -> DesiredState:
    """Take back the pin of these workers; of the whole fleet: all pins of the model."""
    model = _model(state, name)
    pins = _released(model.pins, workers, f"{name} is pinned")
    return _with_model(state, name, model._replace(pins=pins))


def rollback(state: DesiredState, name: str | None) -> DesiredState:
    """Make the version before active again, at once; None: of the model activated last.

    A rollout of the model is given up.
    """
    if name is None:
        name, last = max(state.models.items(), key=lambda item: item[1].activated)
        if not last.activated:
            raise CommandError("nothing was activated yet, so there is nothing to roll back")
    model = _model(state, name)
    if model.previous in {None, model.active}:
        raise CommandError(
            f"{name} has no version to go back to but {model.active}, which is active:"
            " activate the one that you want"
        )
    assert model.previous is not None
    reason = f"{name} was rolled back"
    new = aborted(state, reason) if _running(state, name) else following(state)
    # An older version may lack heads: no reason to stay with what somebody wants to leave.
    model = switched(model, model.previous, generation=new.generation, new_heads=True)
    return new.with_model(name, model)


def forget(state: DesiredState, name: str, version: str) -> DesiredState:
    """Name a version no more, for which nothing has any use; a roll back does not go there.

    An ended rollout of it is forgotten with it.
    """
    _stop_for_rollout(state, name)
    model = _model(state, name)
    if version not in model.versions:
        raise _unknown(name, version, model)
    if uses := _uses(model, version):
        raise CommandError(f"{name} {version} is needed: {', '.join(uses)}; change that first")
    left = frozen((each, sha256) for each, sha256 in model.versions.items() if each != version)
    previous = None if model.previous == version else model.previous
    new = following(state).with_model(name, model._replace(versions=left, previous=previous))
    ended = new.rollout
    gone = ended is not None and (ended.model, ended.version) == (name, version)
    return new._replace(rollout=None) if gone else new


def pause(state: DesiredState, workers: Selector) -> DesiredState:
    """Let some workers take no records, and keep their partitions."""
    return _with_holds(state, _replaced(state.holds, Hold(Action.PAUSE, workers)))


def drain(state: DesiredState, workers: Selector) -> DesiredState:
    """Let some workers finish what they have and leave their group."""
    return _with_holds(state, _replaced(state.holds, Hold(Action.DRAIN, workers)))


def resume(state: DesiredState, workers: Selector) -> DesiredState:
    """Take back the pause or drain of these workers; of the whole fleet: all of them."""
    return _with_holds(state, _released(state.holds, workers, "records are held"))


def apply(
    state: DesiredState, content: Content, *, versions: Mapping[str, Mapping[str, str]]
) -> DesiredState:
    """Make the models that a file names what it says of them; others stay as they are.

    `versions` are digests as for `first_state`: of versions that the fleet may not know yet.
    """
    new = following(state)
    models = {
        name: _declared(new, name, model, versions.get(name, {}))
        for name, model in content.models.items()
    }
    new = new._replace(default=content.default, models=frozen({**state.models, **models}))
    _model(new, new.default)
    for model in models.values():
        if model.fallback_model is not None:
            _model(new, model.fallback_model)
    return state if new == following(state) else new


def abort(state: DesiredState) -> DesiredState:
    """Give up the rollout that is under way."""
    if not _running(state):
        raise CommandError("no rollout is under way, so there is none to abort")
    return aborted(state, "aborted by command")


def _model(state: DesiredState, name: str) -> ModelState:
    model = state.models.get(name)
    if model is None:
        known = ", ".join(sorted(state.models))
        raise CommandError(f"the fleet has no model {name}; it has: {known}")
    return model


def _with_version(name: str, model: ModelState, version: str, sha256: str | None) -> ModelState:
    """Return the model with a version named, which it may know already."""
    if version in model.aliases:
        raise CommandError(
            f"{version} is an alias of {name}, for version {model.aliases[version]}: name that"
        )
    stored = model.versions.get(version)
    if sha256 is None:
        if version not in model.versions:
            raise _unknown(name, version, model)
        return model
    if stored is not None and stored != sha256:
        raise CommandError(
            f"{name}/{version} is named with sha256 {sha256}, and the fleet has it as {stored}: "
            "a version never changes; publish the new content as another one (where the fleet's"
            " digest is a mistake, let it forget the version)"
        )
    return model._replace(versions=frozen({**model.versions, version: sha256}))


def _unknown(name: str, version: str, model: ModelState) -> CommandError:
    known = ", ".join(model.versions) or "none"
    return CommandError(f"{name} has no version {version}; the fleet knows: {known}")


def _uses(model: ModelState, version: str) -> list[str]:
    """Return what names a version, in words."""
    return [
        *(["it is active"] if model.active == version else []),
        *(f"{alias} is its alias" for alias, meant in model.aliases.items() if meant == version),
        *(
            f"{in_words(pin.workers)} is pinned to it"
            for pin in model.pins
            if pin.version == version
        ),
        *(f"rule {rule.name} leads to it" for rule in model.rules if rule.version == version),
        *(["it is in the split"] if version in model.split else []),
    ]


def _declared(
    state: DesiredState, name: str, content: ModelContent, digests: Mapping[str, str]
) -> ModelState:
    """Return what a model becomes in a new generation by what a file says of it."""
    model = state.models.get(name, ModelState(frozen({}), "", activated=state.generation or 0))
    for alias in content.aliases:
        if alias in model.versions:
            raise CommandError(f"{alias} cannot be an alias of {name}: it is one of its versions")
    model = model._replace(aliases=content.aliases)
    for version in content.versions:
        model = _with_version(name, model, version, digests.get(version))
    if not model.active:
        model = model._replace(active=content.active)
    elif model.active != content.active:
        _stop_for_rollout(state, name)
        model = switched(model, content.active, generation=state.generation, new_heads=False)
    return model._replace(
        rules=content.rules,
        split=content.split,
        fallback_model=content.fallback_model,
        limits=content.limits,
    )


def _running(state: DesiredState, name: str | None = None) -> bool:
    rollout = state.rollout
    if rollout is None or rollout.phase is not Phase.PREPARE:
        return False
    return name is None or rollout.model == name


def _stop_for_rollout(state: DesiredState, name: str | None = None) -> None:
    """Refuse while a rollout (of this model) is under way."""
    if _running(state, name):
        assert state.rollout is not None
        raise CommandError(
            f"a rollout of {state.rollout.model} {state.rollout.version} is under way "
            f"({state.rollout.id}): wait for its end, or abort it"
        )


def _rollout(name: str, version: str, mode: Mode, terms: Terms) -> Rollout:
    return Rollout(
        terms.id,
        name,
        version,
        mode,
        Phase.PREPARE,
        terms.started_at_ms,
        terms.timeout_s,
        terms.max_preparing,
        terms.quorum,
    )


def _with_model(state: DesiredState, name: str, model: ModelState) -> DesiredState:
    """Return the next generation with the model; the same state when it is as it was."""
    return state if model == state.models[name] else following(state).with_model(name, model)


def _with_holds(state: DesiredState, holds: tuple[Hold, ...]) -> DesiredState:
    return state if holds == state.holds else following(state)._replace(holds=holds)


def _replaced(orders: tuple[Order, ...], order: Order) -> tuple[Order, ...]:
    """Return the orders with this one last, in the place of that of the same workers."""
    others = tuple(other for other in orders if other.workers != order.workers)
    return (*others, order)


def _released(orders: tuple[Order, ...], workers: Selector, what: str) -> tuple[Order, ...]:
    """Return the orders without that of these workers; of the whole fleet: without any."""
    if workers == Selector() or not orders:
        return ()
    left = tuple(order for order in orders if order.workers != workers)
    if left == orders:
        held = "; ".join(in_words(order.workers) for order in orders)
        raise CommandError(
            f"{what} on {held}: not on {in_words(workers)} by itself; name one of those, or no"
            " workers for all"
        )
    return left
