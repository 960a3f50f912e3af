import pytest

from worker.errors import RecordFault, RecordSkipped
from worker.models.router import Route, RoutingTable, route
from worker.types import ModelRef, Position, Reason, Record, Request, SkipReason

TABLE = RoutingTable(
    default="digits",
    named={"digits": "2", "cats": "1", "slow": "7"},
    active={"digits": "1", "cats": "1"},
)
"""digits: version 2 is wanted, 1 still serves. slow: named, and not loaded yet."""


def request(model: str | None, version: str | None) -> Request:
    record = Record(Position("images", 0, 1), 1, None, b"image", (), 0, 0.0)
    return Request(record, b"image", model, version, {}, None, None, None, ())


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        (None, None, Route(ModelRef("digits", "1"), "active")),
        ("digits", None, Route(ModelRef("digits", "1"), "active")),
        ("cats", None, Route(ModelRef("cats", "1"), "active")),
        ("digits", "1", Route(ModelRef("digits", "1"), "asked")),
        (None, "1", Route(ModelRef("digits", "1"), "asked")),
    ],
)
def test_a_request_is_routed_with_the_reason(
    model: str | None, version: str | None, expected: Route
) -> None:
    assert route(request(model, version), TABLE) == expected


@pytest.mark.parametrize(
    ("model", "version", "reason", "text"),
    [
        ("dogs", None, Reason.MODEL_UNKNOWN, "no model 'dogs'; models served here: cats, digits"),
        ("dogs", "1", Reason.MODEL_UNKNOWN, "no model 'dogs'"),
        ("", None, Reason.MODEL_UNKNOWN, "no model ''"),
        ("cats", "3", Reason.MODEL_VERSION_UNKNOWN, "no version '3'; the version served is '1'"),
        ("slow", "3", Reason.MODEL_VERSION_UNKNOWN, "no version '3'"),
        ("cats", "", Reason.MODEL_VERSION_UNKNOWN, "no version ''"),
    ],
)
def test_what_the_state_does_not_name_is_the_records_fault(
    model: str, version: str | None, reason: Reason, text: str
) -> None:
    with pytest.raises(RecordFault, match=text) as raised:
        route(request(model, version), TABLE)
    assert raised.value.reason is reason


@pytest.mark.parametrize(("model", "version"), [("slow", None), ("slow", "7"), ("digits", "2")])
def test_what_the_state_names_and_this_worker_has_not_yet_is_the_moments_fault(
    model: str, version: str | None
) -> None:
    with pytest.raises(RecordSkipped, match="cannot serve") as raised:
        route(request(model, version), TABLE)
    assert raised.value.reason is SkipReason.VERSION_UNAVAILABLE
