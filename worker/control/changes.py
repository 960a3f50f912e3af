"""What differs between two desired states, in words: for dry runs, the history and logs."""

from collections.abc import Iterator, Mapping

from worker.control.messages import (
    Action,
    DesiredState,
    LiveLimits,
    Mode,
    ModelState,
    Phase,
    PinOrder,
    Rollout,
    Selector,
)
from worker.models.router import Match, Rule

_HELD = {Action.PAUSE: "paused", Action.DRAIN: "drained"}


def change(before: DesiredState, after: DesiredState) -> list[str]:
    """Return a line for each thing that differs, but for who wrote what when."""
    return [
        *_value("epoch", before.epoch, after.epoch),
        *(
            f"supersedes epoch {epoch}"
            for epoch in after.supersedes
            if epoch not in before.supersedes
        ),
        *_value("default model", before.default, after.default),
        *_models(before.models, after.models),
        *_holds(before, after),
        *_rollout(before.rollout, after.rollout),
    ]


def in_words(workers: Selector) -> str:
    """Name the workers that are meant."""
    if workers.worker is not None:
        return f"worker {workers.worker}"
    if workers.labels:
        return f"label {_pairs(workers.labels)}"
    return "the whole fleet"


def _value(what: str, before: object, after: object) -> Iterator[str]:
    if before != after:
        yield f"{what} {before} -> {after}"


def _models(before: Mapping[str, ModelState], after: Mapping[str, ModelState]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if new is None:
            yield f"{name}: gone"
        elif old is None:
            yield f"{name}: new, active {new.active}"
            blank = ModelState(new.versions, new.active)
            yield from (f"{name}: {line}" for line in _model(blank, new))
        else:
            yield from (f"{name}: {line}" for line in _model(old, new))


def _model(old: ModelState, new: ModelState) -> Iterator[str]:
    yield from _entries("version", _digests(old), _digests(new))
    if old.active != new.active:
        heads = " (which may lack heads of the one before)" if new.new_heads else ""
        yield f"active {old.active} -> {new.active}{heads}"
    if old.reload != new.reload:
        yield f"engines reloaded (number {old.reload} -> {new.reload})"
    yield from _entries("alias", old.aliases, new.aliases)
    yield from _pins(old.pins, new.pins)
    yield from _rules(old.rules, new.rules)
    yield from _entries("split", old.split, new.split)
    yield from _value("fallback model", old.fallback_model, new.fallback_model)
    yield from _limits(old.limits, new.limits)


def _digests(model: ModelState) -> dict[str, str]:
    return {
        version: f"sha256 {digest[:12]}" if digest else "whatever the repository has"
        for version, digest in model.versions.items()
    }


def _entries(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    for key in (*old, *(key for key in new if key not in old)):
        if key not in new:
            yield f"{what} {key} removed (was {old[key]})"
        elif key not in old:
            yield f"{what} {key} added: {new[key]}"
        else:
            yield from _value(f"{what} {key}:", old[key], new[key])


def _pins(old: tuple[PinOrder, ...], new: tuple[PinOrder, ...]) -> Iterator[str]:
    held = [order.workers for order in new]
    for order in old:
        if order.workers not in held:
            yield f"unpinned on {in_words(order.workers)} (was {order.version})"
    for order in new:
        if order not in old:
            strict = "" if order.strict else ", unless a record asks for another"
            yield f"pinned to {order.version} on {in_words(order.workers)}{strict}"
    yield from _order("pins", old, new)


def _rules(old: tuple[Rule, ...], new: tuple[Rule, ...]) -> Iterator[str]:
    names = {rule.name for rule in new}
    yield from (f"rule {rule.name} removed" for rule in old if rule.name not in names)
    for rule in new:
        if rule not in old:
            yield f"rule {rule.name}: {_match(rule.when)} -> {rule.version}"
    yield from _order("rules", old, new)


def _order(what: str, old: tuple[object, ...], new: tuple[object, ...]) -> Iterator[str]:
    """Say when those that stay stand in another order, which decides between them."""
    if [item for item in old if item in new] != [item for item in new if item in old]:
        yield f"{what} in another order"


def _match(when: Match) -> str:
    topic = [f"topic {when.topic}"] if when.topic else []
    tags = [f"tags {_pairs(when.tags)}"] if when.tags else []
    headers = [f"headers {_pairs(when.headers)}"] if when.headers else []
    return ", ".join(topic + tags + headers)


def _limits(old: LiveLimits, new: LiveLimits) -> Iterator[str]:
    for name in ("max_size", "min_size", "max_wait_ms", "slo_ms"):
        given = [getattr(limits, name) for limits in (old, new)]
        yield from _value(name, *("as the settings say" if n is None else n for n in given))
    yield from _entries("threshold", old.thresholds, new.thresholds)


def _holds(before: DesiredState, after: DesiredState) -> Iterator[str]:
    for hold in before.holds:
        if hold not in after.holds:
            yield f"no longer {_HELD[hold.action]}: {in_words(hold.workers)}"
    for hold in after.holds:
        if hold not in before.holds:
            yield f"{_HELD[hold.action]}: {in_words(hold.workers)}"


def _rollout(old: Rollout | None, new: Rollout | None) -> Iterator[str]:
    if new is None:
        if old is not None:
            yield f"rollout {old.id} forgotten"
        return
    if old is None or old.id != new.id:
        yield f"rollout {new.id}: {_terms(new)}"
        old = new._replace(admitted=(), phase=Phase.PREPARE, reason=None)
    admitted = [worker for worker in new.admitted if worker not in old.admitted]
    if admitted:
        yield f"rollout {new.id}: it is the turn of {', '.join(admitted)}"
    if new.phase is not old.phase:
        yield f"rollout {new.id}: {new.phase.value}" + (f": {new.reason}" if new.reason else "")


def _terms(rollout: Rollout) -> str:
    what = {
        Mode.TWO_PHASE: f"{rollout.model} to {rollout.version} in two phases",
        Mode.ROLLING: f"new engines for {rollout.model}, in turns",
    }[rollout.mode]
    enough = "all" if rollout.quorum is None else f"at least {rollout.quorum}"
    return (
        f"{what} ({rollout.max_preparing} at a time, {enough} {rollout.mode.done}, "
        f"within {rollout.timeout_s:g} s)"
    )


def _pairs(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(pairs.items()))
