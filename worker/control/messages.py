"""What the fleet should be: one immutable value, from the settings or the control channel.

Types and their canonical bytes; `documents.py` reads them, `wanted.py` says what one worker makes
of them. JSON Schema: `schemas/desired.v1.schema.json`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from worker.errors import SettingsError
from worker.models.router import NOTHING, Match, Rule
from worker.types import ModelRef

DESIRED_SCHEMA = "darkroom.desired.v1"
NO_THRESHOLDS: Mapping[str, float] = MappingProxyType({})


class Selector(NamedTuple):
    """Which workers are meant: one, those that have all these labels, or (neither) all."""

    worker: str | None = None
    labels: Mapping[str, str] = NOTHING

    def matches(self, worker: str, labels: Mapping[str, str]) -> bool:
        if self.worker is not None:
            return self.worker == worker
        return all(labels.get(name) == value for name, value in self.labels.items())

    @property
    def rank(self) -> int:
        """How narrowly it selects: a worker before labels before the fleet."""
        return 2 if self.worker is not None else 1 if self.labels else 0


class PinOrder(NamedTuple):
    """Some workers hold a model at a version until it is unpinned; the narrowest order counts."""

    version: str
    workers: Selector = Selector()
    strict: bool = True


class LiveLimits(NamedTuple):
    """What changes live of a model's limits; None, or a head not named: as settings, manifest."""

    max_size: int | None = None
    min_size: int | None = None
    max_wait_ms: float | None = None
    thresholds: Mapping[str, float] = NO_THRESHOLDS
    """Head -> least score that is reported."""
    slo_ms: float | None = None


class ModelState(NamedTuple):
    """What the fleet should be of one model."""

    versions: Mapping[str, str | None]
    """Every version that exists for the fleet -> sha256 of its manifest (None: of settings)."""
    active: str
    previous: str | None = None
    """What was active before; a roll back goes there."""
    activated: int = 0
    """The generation that made `active` so."""
    reload: int = 0
    """Raised by a reload; engines loaded under a lower number are replaced."""
    new_heads: bool = False
    """The active version may lack heads that the one before had."""
    aliases: Mapping[str, str] = NOTHING
    pins: tuple[PinOrder, ...] = ()
    rules: tuple[Rule, ...] = ()
    split: Mapping[str, int] = MappingProxyType({})
    fallback_model: str | None = None
    limits: LiveLimits = LiveLimits()


class Action(StrEnum):
    PAUSE = "pause"
    """Take nothing in; stay in the group, keep the partitions."""
    DRAIN = "drain"
    """Finish what is in flight and leave the group; stay alive."""


class Hold(NamedTuple):
    """Some workers take no records until they are resumed."""

    action: Action
    workers: Selector = Selector()


class Mode(StrEnum):
    TWO_PHASE = "two_phase"
    """Prepare everywhere; activate only when all live members (or the quorum) are prepared."""
    ROLLING = "rolling"
    """Each worker, when its turn comes, replaces the engines of the active version."""

    @property
    def done(self) -> str:
        """What a worker is, in words, that has done its part."""
        return "prepared" if self is Mode.TWO_PHASE else "reloaded"


class Phase(StrEnum):
    PREPARE = "prepare"
    DONE = "done"
    ABORTED = "aborted"


class Rollout(NamedTuple):
    """A change that the workers carry out together, one step at a time (`rollout.py`)."""

    id: str
    model: str
    version: str
    mode: Mode
    phase: Phase
    started_at_ms: int
    """Redis's clock."""
    timeout_s: float = 600.0
    max_preparing: int = 1
    """Members that load at a time."""
    quorum: int | None = None
    """Prepared members that suffice; None: all that are alive."""
    admitted: tuple[str, ...] = ()
    """Members whose turn has come, in that order."""
    reload: int = 0
    """Of a rolling one: what `ModelState.reload` becomes."""
    new_heads: bool = False
    reason: str | None = None
    """Why it was aborted."""


class DesiredState(NamedTuple):
    """What the fleet should be. Nobody can change it: every change is another generation."""

    fleet: str
    epoch: str
    """Of this history of generations; "" when the state comes from the settings."""
    generation: int | None
    """Its number on the control channel; None when it comes from the settings."""
    default: str
    """Serves a record that names no model."""
    models: Mapping[str, ModelState]
    supersedes: tuple[str, ...] = ()
    """Other epochs that this one takes the place of; else a worker of those refuses it."""
    holds: tuple[Hold, ...] = ()
    rollout: Rollout | None = None
    """The last one, also when it has ended."""
    written_by: str = ""
    written_at_ms: int = 0

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """The active versions."""
        return tuple(ModelRef(name, model.active) for name, model in self.models.items())

    def with_model(self, name: str, model: ModelState) -> "DesiredState":
        """Return the same state with one model replaced or added."""
        return self._replace(models=MappingProxyType({**self.models, name: model}))


def settings_state(models: Mapping[str, str], default: str, *, fleet: str = "") -> DesiredState:
    """Return the desired state of the settings' active versions.

    Raises SettingsError when the default is not one of them.
    """
    if default not in models:
        names = ", ".join(sorted(models)) or "none"
        raise SettingsError(
            f"models.default: {default!r} has no active version; models.active names: {names}"
        )
    states = {
        name: ModelState(MappingProxyType({version: None}), version)
        for name, version in models.items()
    }
    return DesiredState(fleet, "", None, default, MappingProxyType(states))


def encode_state(state: DesiredState) -> bytes:
    """Return the canonical JSON: sorted keys, no spaces, floats as floats, no empty members."""
    document = {
        "schema": DESIRED_SCHEMA,
        "fleet": state.fleet,
        "epoch": state.epoch,
        "generation": state.generation,
        "default": state.default,
        "models": {name: _model(model) for name, model in state.models.items()},
        "written_by": state.written_by,
        "written_at_ms": state.written_at_ms,
        **_some(
            supersedes=list(state.supersedes) or None,
            holds=[_hold(hold) for hold in state.holds] or None,
            rollout=_rollout(state.rollout),
        ),
    }
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def digest(state: DesiredState) -> str:
    """Return the sha256 (hex) of the canonical JSON: what a generation's content is known by."""
    return hashlib.sha256(encode_state(state)).hexdigest()


def _model(model: ModelState) -> dict[str, Any]:
    limits = model.limits
    return {
        "versions": dict(model.versions),
        "active": model.active,
        "activated": model.activated,
        "reload": model.reload,
        **_some(
            previous=model.previous,
            new_heads=model.new_heads or None,
            aliases=dict(model.aliases) or None,
            pins=[_pin(pin) for pin in model.pins] or None,
            rules=[_rule(rule) for rule in model.rules] or None,
            split=dict(model.split) or None,
            fallback_model=model.fallback_model,
            limits=_some(
                max_size=limits.max_size,
                min_size=limits.min_size,
                max_wait_ms=None if limits.max_wait_ms is None else float(limits.max_wait_ms),
                thresholds={name: float(least) for name, least in limits.thresholds.items()}
                or None,
                slo_ms=None if limits.slo_ms is None else float(limits.slo_ms),
            )
            or None,
        ),
    }


def _some(**members: Any) -> dict[str, Any]:
    """Leave out what is None: absent says the same."""
    return {name: value for name, value in members.items() if value is not None}


def _selector(workers: Selector) -> dict[str, Any] | None:
    return _some(worker=workers.worker, labels=dict(workers.labels) or None) or None


def _pin(pin: PinOrder) -> dict[str, Any]:
    return {
        "version": pin.version,
        "strict": pin.strict,
        **_some(workers=_selector(pin.workers)),
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {"name": rule.name, "when": _match(rule.when), "version": rule.version}


def _match(when: Match) -> dict[str, Any]:
    return _some(topic=when.topic, tags=dict(when.tags) or None, headers=dict(when.headers) or None)


def _hold(hold: Hold) -> dict[str, Any]:
    return {"action": hold.action.value, **_some(workers=_selector(hold.workers))}


def _rollout(rollout: Rollout | None) -> dict[str, Any] | None:
    if rollout is None:
        return None
    given = {
        **rollout._asdict(),
        "mode": rollout.mode.value,
        "phase": rollout.phase.value,
        "timeout_s": float(rollout.timeout_s),
        "admitted": list(rollout.admitted),
        "new_heads": rollout.new_heads or None,
    }
    return _some(**given)


def frozen(items: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    """Return a mapping that nobody can change."""
    return MappingProxyType(dict(items))
