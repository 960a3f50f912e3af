"""Which model version serves a request, and why: one table, one pure function.

It knows nothing of engines: what the table calls active is served, whoever serves it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from worker.errors import RecordFault, RecordSkipped
from worker.types import ModelRef, Reason, Request, SkipReason


class RoutingTable(NamedTuple):
    """What the router looks at, replaced whole. Pins, rules and splits will be fields of it."""

    default: str
    """Serves a request that names no model."""
    named: Mapping[str, str]
    """Model name -> version that the desired state names, whether this worker has it or not."""
    active: Mapping[str, str]
    """Model name -> version that this worker serves."""
    generation: int | None = None
    """Of the desired state; None when that comes from the settings."""


class Route(NamedTuple):
    model: ModelRef
    reason: str


def route(request: Request, table: RoutingTable) -> Route:
    """Return the version that serves this request.

    Raises RecordFault for what the desired state does not name (the record's fault), and
    RecordSkipped for what it names but this worker cannot serve now (the moment's).
    """
    name = request.model if request.model is not None else table.default
    active = table.active.get(name)
    if active is not None and request.version in (None, active):
        return Route(ModelRef(name, active), "active" if request.version is None else "asked")
    raise _refusal(name, request.version, table)


def _refusal(name: str, version: str | None, table: RoutingTable) -> RecordFault | RecordSkipped:
    named = table.named.get(name)
    active = table.active.get(name)
    if named is None and active is None:
        known = ", ".join(sorted(table.named)) or "none"
        return RecordFault(
            Reason.MODEL_UNKNOWN, f"there is no model {name!r}; models served here: {known}"
        )
    if version in (None, named):
        return RecordSkipped(
            SkipReason.VERSION_UNAVAILABLE, f"this worker cannot serve {name}/{named} now"
        )
    return RecordFault(
        Reason.MODEL_VERSION_UNKNOWN,
        f"model {name!r} has no version {version!r}; the version served is {active or named!r}",
    )
