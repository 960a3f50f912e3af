"""Requests and routing tables for the tests of the router, and what becomes of a request."""

from collections.abc import Mapping, Sequence
from typing import Any

from worker.errors import RecordFault, RecordSkipped
from worker.models.router import NOTHING, Route, Routes, RoutingTable, explain, route
from worker.types import Headers, ModelRef, Position, Record, Request

VERSIONS = frozenset({"1", "2", "3"})
ALIASES = {"held": "2", "next": "3"}
POSITION = Position("images", 0, 1)


def request(
    model: str | None = None,
    version: str | None = None,
    *,
    key: bytes | None = b"a key",
    position: Position = POSITION,
    tags: Mapping[str, str] = NOTHING,
    headers: Headers = (),
) -> Request:
    record = Record(position, 1, key, b"image", headers, 0, 0.0)
    return Request(record, b"image", model, version, tags, None, None, None, ())


def digits(serving: str | None = "1", **given: Any) -> Routes:
    return Routes(serving, VERSIONS, ALIASES, generation=7)._replace(**given)


CATS = Routes("5", frozenset({"4", "5"}), generation=8)
FALLS_BACK = digits(fallback_model="cats")


def table(routes: Routes, down: Sequence[str] = (), **others: Routes) -> RoutingTable:
    refs = frozenset(ModelRef(*ref.split("/")) for ref in down)
    return RoutingTable("digits", {"digits": routes, **others}, refs)


def routed(asked: Request, routing: RoutingTable) -> Route | RecordFault | RecordSkipped:
    """Return what `route` returns or raises, once `explain` has said the same."""
    found: Route | RecordFault | RecordSkipped
    try:
        found = route(asked, routing)
    except (RecordFault, RecordSkipped) as refusal:
        found = refusal
    assert _told(explain(asked, routing).outcome) == _told(found)
    return found


def _told(found: Route | RecordFault | RecordSkipped) -> tuple[object, ...]:
    return found if isinstance(found, Route) else (type(found), found.reason, str(found))


def outcome(asked: Request, routing: RoutingTable) -> tuple[str, str]:
    """Return what a route or a refusal comes down to."""
    found = routed(asked, routing)
    if isinstance(found, Route):
        return str(found.model), found.reason
    return type(found).__name__, found.reason
