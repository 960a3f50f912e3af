"""Which model version serves a request, and why: one table, one pure function.

It knows nothing of engines: what the table says is served, whoever serves it.

A pin decides first, then the version that the record asks for, then rules, then the split, then
what is active. A record that asks for a version gets that version or a refusal, never another
one; one that names no version may be served by the fallback model, whatever decided.
"""

from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from math import log
from types import MappingProxyType
from typing import NamedTuple

from worker.errors import RecordFault, RecordSkipped
from worker.types import Headers, ModelRef, Reason, Record, Request, SkipReason

NOTHING: Mapping[str, str] = MappingProxyType({})

_SHOWN = 10
"""Names in a message, which goes into a result: a fleet may have a thousand."""


class Match(NamedTuple):
    """What a record must say for a rule to hold: all of it."""

    topic: str | None = None
    tags: Mapping[str, str] = NOTHING
    headers: Mapping[str, str] = NOTHING
    """By lower-case name; of a repeated header the last value counts, a null one is absent."""


class Rule(NamedTuple):
    """Records that match go to a version; the first rule that holds decides."""

    name: str
    when: Match
    version: str
    """A version or an alias."""


class Pin(NamedTuple):
    """This worker serves one version of the model, whatever rollouts and rules say."""

    version: str
    strict: bool = True
    """A record that asks for another version is skipped; else it is served what it asks for."""


class Routes(NamedTuple):
    """How records find their version of one model on this worker; replaced whole.

    Whoever makes it sees to it that what it names is one of `versions`, through aliases too.
    """

    serving: str | None
    """What is served to a record that nothing else decides of; None: no version yet."""
    versions: frozenset[str]
    """All that the fleet has of this model; others are unknown."""
    aliases: Mapping[str, str] = NOTHING
    pin: Pin | None = None
    rules: tuple[Rule, ...] = ()
    split: tuple[tuple[str, int], ...] = ()
    """(version or alias, weight), weights above 0; keys stay where they are while others grow."""
    fallback_model: str | None = None
    """Serves while the version is not to be had (its breaker is open, it cannot be loaded)."""
    generation: int | None = None
    """Of the desired state that these routes are of; None when that comes from the settings."""


class RoutingTable(NamedTuple):
    """What the router looks at, replaced whole."""

    default: str
    """Serves a request that names no model."""
    models: Mapping[str, Routes]
    down: frozenset[ModelRef] = frozenset()
    """Versions whose breaker is open: their model's fallback serves where there is one."""


class Route(NamedTuple):
    model: ModelRef
    reason: str
    """`pin`, `asked`, `rule:NAME`, `split`, `active` or `fallback`."""
    generation: int | None
    """Of the routes that name this version: the fallback model's where that one serves."""


class Explanation(NamedTuple):
    """How a request finds its version, or why it finds none."""

    outcome: Route | RecordFault | RecordSkipped
    steps: tuple[str, ...]
    """What was looked at, in this order, in words."""


Note = Callable[..., None]
"""Takes a step as a format and its fields: words are made for those alone who read them."""

_DIFFERS = "rule {0}: {1} is {2!r}, not {3!r}"
_LACKS = "rule {0}: there is no {1}, {3!r} is wanted"


def route(request: Request, table: RoutingTable) -> Route:
    """Return the version that serves this request.

    Raises RecordFault for what the desired state does not name (the record's fault), and
    RecordSkipped for what it names but this worker does not serve now (the moment's).
    """
    return _decide(request, table, _unheard)


def explain(request: Request, table: RoutingTable) -> Explanation:
    """Return what `route` returns or raises, and the steps that lead there."""
    steps: list[str] = []

    def note(step: str, *fields: object) -> None:
        steps.append(step.format(*map(_readable, fields)))

    outcome: Route | RecordFault | RecordSkipped
    try:
        outcome = _decide(request, table, note)
    except (RecordFault, RecordSkipped) as refusal:
        outcome = refusal
    return Explanation(outcome, tuple(steps))


def _readable(field: object) -> object:
    return field.decode(errors="replace") if isinstance(field, bytes) else field


def _unheard(step: str, *fields: object) -> None:
    pass


def _decide(request: Request, table: RoutingTable, note: Note) -> Route:
    name = request.model
    if name is None:
        name = table.default
        note("model: none asked for, {!r} is the default", name)
    else:
        note("model: {!r} asked for", name)
    routes = table.models.get(name)
    if routes is None:
        raise _unknown_model(name, table)
    if request.version is not None:
        return _asked(request.version, name, routes, note)
    chosen = _own(request, name, routes, note)
    if chosen is not None:
        if chosen.model not in table.down:
            return chosen
        note("breaker: open for {}", chosen.model)
    found = _fallback(request, routes.fallback_model, table, note) or chosen
    if found is None:
        raise _nothing_served(name)
    return found


def _asked(asked: str, name: str, routes: Routes, note: Note) -> Route:
    """Return the route of a record that asks for a version."""
    pin = routes.pin
    version = routes.aliases.get(asked, asked)
    if pin is None:
        note("pin: none")
    else:
        note("pin: {!r}" if pin.strict else "pin: {!r}, not strict", pin.version)
    note("asked: {!r}" if version == asked else "asked: {!r}, an alias of {!r}", asked, version)
    if version not in routes.versions:
        raise _unknown_version(asked, name, routes)
    if routes.serving is None:
        raise _nothing_served(name)
    pinned = pin is not None and pin.version == version
    if pin is not None and pin.strict and not pinned:
        raise RecordSkipped(
            SkipReason.VERSION_UNAVAILABLE,
            f"this worker is pinned to {name}/{pin.version}, the record asks for {name}/{version}",
        )
    return Route(ModelRef(name, version), "pin" if pinned else "asked", routes.generation)


def _own(request: Request, name: str, routes: Routes, note: Note) -> Route | None:
    """Return the model's route of a record that asks for no version; None: it serves none yet."""
    serving, generation = routes.serving, routes.generation
    if serving is None:
        note("active: no version yet")
        return None
    if routes.pin is not None:
        note("pin: {!r}", routes.pin.version)
        return Route(ModelRef(name, routes.pin.version), "pin", generation)
    note("pin: none")
    note("asked: no version asked for")
    for rule in routes.rules:
        missed = _missed(rule, request)
        if missed is None:
            note("rule {}: holds, to {!r}", rule.name, rule.version)
            version = routes.aliases.get(rule.version, rule.version)
            return Route(ModelRef(name, version), f"rule:{rule.name}", generation)
        note(*missed)
    if routes.split:
        drawn = _drawn(name, routes.split, request.record, note)
        return Route(ModelRef(name, routes.aliases.get(drawn, drawn)), "split", generation)
    note("active: {!r}", serving)
    return Route(ModelRef(name, serving), "active", generation)


def _missed(rule: Rule, request: Request) -> tuple[object, ...] | None:
    """Return the step that says what the record lacks for a rule; None: the rule holds."""
    when, record = rule.when, request.record
    topic = record.position.topic
    if when.topic is not None and when.topic != topic:
        return _DIFFERS, rule.name, "topic", topic, when.topic
    for name, wanted in when.tags.items():
        tag = request.tags.get(name)
        if tag != wanted:
            return _LACKS if tag is None else _DIFFERS, rule.name, f"tag {name}", tag, wanted
    for name, wanted in when.headers.items():
        header = _last_value(record.headers, name)
        if header != wanted.encode():
            step = _LACKS if header is None else _DIFFERS
            return step, rule.name, f"header {name}", header, wanted
    return None


def _last_value(headers: Headers, name: str) -> bytes | None:
    for key, value in reversed(headers):
        if key.lower() == name:
            return value
    return None


def _drawn(name: str, split: tuple[tuple[str, int], ...], record: Record, note: Note) -> str:
    """Return which part of the split a record's key falls to: weighted rendezvous hashing.

    Each part draws from the exponential distribution of its weight, by a hash of the key and of
    its own name, and the least draw wins (Schindelhauer and Schomaker, "Weighted distributed hash
    tables", 2005). A part's draws depend on no other, so a weight that grows only wins keys, and
    a part that goes loses only its own. A record without a key falls by its position, so that it
    goes the same way when it is delivered again.
    """
    key, spread = record.key, "key"
    if key is None:
        key, spread = "\0".join(map(str, record.position)).encode(), "position (it has no key)"
    drawn, _ = min(split, key=lambda part: _draw(name, part[0], key) / part[1])
    note("split: its {} hashes to {!r} of {}", spread, drawn, dict(split))
    return drawn


def _draw(name: str, part: str, key: bytes) -> float:
    salted = f"{name}\0{part}\0".encode() + key
    number = int.from_bytes(blake2b(salted, digest_size=8).digest(), "big")
    return -log((number + 1) / 2**64)


def _fallback(request: Request, name: str | None, table: RoutingTable, note: Note) -> Route | None:
    """Return the fallback model's own route; None: there is none, or that is not to be had."""
    if name is None:
        note("fallback: none")
        return None
    note("fallback: model {!r}", name)
    routes = table.models.get(name)
    own = None if routes is None else _own(request, name, routes, note)
    if own is None or own.model in table.down:
        note("fallback: {!r} is not to be had either", name)
        return None
    return Route(own.model, "fallback", own.generation)


def _unknown_model(name: str, table: RoutingTable) -> RecordFault:
    return RecordFault(
        Reason.MODEL_UNKNOWN, f"there is no model {name!r}; models known: {_listed(table.models)}"
    )


def _unknown_version(asked: str, name: str, routes: Routes) -> RecordFault:
    known = _listed(routes.versions | routes.aliases.keys())
    return RecordFault(
        Reason.MODEL_VERSION_UNKNOWN,
        f"model {name!r} has no version {asked!r}; versions and aliases known: {known}",
    )


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN]) or "none"
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _nothing_served(name: str) -> RecordSkipped:
    return RecordSkipped(
        SkipReason.VERSION_UNAVAILABLE, f"this worker serves no version of model {name!r} yet"
    )
