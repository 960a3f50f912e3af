"""Which model version serves a request, and why: one table, one pure function.

It knows nothing of engines: what the table says is served, whoever serves it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from worker.types import ModelRef

NOTHING: Mapping[str, str] = MappingProxyType({})


class Match(NamedTuple):
    """What a record must say for a rule to hold: all of it."""

    topic: str | None = None
    tags: Mapping[str, str] = NOTHING
    headers: Mapping[str, str] = NOTHING
    """By lower-case name; the last value of a repeated header counts."""


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
    """How records find their version of one model on this worker; replaced whole."""

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
