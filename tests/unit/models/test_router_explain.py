"""What an explanation tells, and that it and the route are one for any request and any table."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.models.routing import CATS, FALLS_BACK, digits, request, routed, table
from worker.models.router import Match, Pin, Route, Routes, RoutingTable, Rule, explain
from worker.types import ModelRef, Position, Request

PREMIUM = Rule("premium", Match(tags={"user_tier": "premium"}), "next")
PINNED = digits("2", pin=Pin("2"), fallback_model="cats")


def test_an_explanation_tells_every_step_in_order() -> None:
    rules = (PREMIUM, Rule("group", Match(headers={"ab_group": "v2"}), "next"))
    routes = FALLS_BACK._replace(rules=rules, split=(("held", 90), ("1", 10)))
    asked = request(tags={"user_tier": "free"}, key=None)
    explained = explain(asked, table(routes, ["digits/2"], cats=CATS))
    assert explained.steps == (
        "model: none asked for, 'digits' is the default",
        "pin: none",
        "asked: no version asked for",
        "rule premium: tag user_tier is 'free', not 'premium'",
        "rule group: there is no header ab_group, 'v2' is wanted",
        "split: its position (it has no key) hashes to 'held' of {'held': 90, '1': 10}",
        "breaker: open for digits/2",
        "fallback: model 'cats'",
        "pin: none",
        "asked: no version asked for",
        "active: '5'",
    )
    assert explained.outcome == Route(ModelRef("cats", "5"), "fallback", 8)


@pytest.mark.parametrize(
    ("routes", "version", "down", "steps"),
    [
        (PINNED, None, [], ["pin: '2'"]),
        (PINNED, "held", [], ["pin: '2'", "asked: 'held', an alias of '2'"]),
        (
            digits("2", pin=Pin("2", strict=False)),
            "3",
            [],
            ["pin: '2', not strict", "asked: '3'"],
        ),
        (digits(), "9", [], ["pin: none", "asked: '9'"]),
        (digits(None), None, [], ["active: no version yet", "fallback: none"]),
        (
            PINNED,
            None,
            ["digits/2"],
            [
                "pin: '2'",
                "breaker: open for digits/2",
                "fallback: model 'cats'",
                "fallback: 'cats' is not to be had either",
            ],
        ),
    ],
)
def test_an_explanation_ends_where_the_route_is_decided(
    routes: Routes, version: str | None, down: list[str], steps: list[str]
) -> None:
    explained = explain(request("digits", version), table(routes, down))
    assert explained.steps == ("model: 'digits' asked for", *steps)


NAMES = st.sampled_from(["digits", "cats", "dogs"])
TEXTS = st.sampled_from(["a", "b", ""])
TAGS = st.dictionaries(st.sampled_from(["tier", "group"]), TEXTS)
ASKED = st.sampled_from(["1", "2", "3", "stable", "candidate", "9", ""])
VALUES = st.sampled_from([b"a", b"b", b"\xff", None])
HEADERS = st.lists(st.tuples(st.sampled_from(["tier", "TIER", "group", "x"]), VALUES), max_size=3)
POSITIONS = st.builds(
    Position, st.sampled_from(["images", "photos"]), st.integers(0, 9), st.integers(0, 10**6)
)
REQUESTS = st.builds(
    request,
    st.none() | NAMES,
    st.none() | ASKED,
    key=st.none() | st.binary(max_size=8),
    position=POSITIONS,
    tags=TAGS,
    headers=HEADERS.map(tuple),
)


@st.composite
def all_routes(draw: st.DrawFn) -> Routes:
    """Draw routes as a valid state gives them: all that is named is there."""
    versions = draw(st.frozensets(st.sampled_from(["1", "2", "3"]), min_size=1))
    known = st.sampled_from(sorted(versions))
    aliases = draw(st.dictionaries(st.sampled_from(["stable", "candidate"]), known))
    meant = st.sampled_from([*sorted(versions), *aliases])
    match = st.builds(Match, st.none() | st.just("images"), TAGS, TAGS)
    return Routes(
        draw(st.none() | known),
        versions,
        aliases,
        draw(st.none() | st.builds(Pin, known, st.booleans())),
        tuple(draw(st.lists(st.builds(Rule, st.just("r"), match, meant), max_size=3))),
        tuple(draw(st.dictionaries(meant, st.integers(1, 100))).items()),
        draw(st.none() | NAMES),
        draw(st.none() | st.integers(1, 9)),
    )


REFS = st.builds(ModelRef, NAMES, st.sampled_from(["1", "2", "3"]))
TABLES = st.builds(
    RoutingTable, NAMES, st.dictionaries(NAMES, all_routes()), st.frozensets(REFS, max_size=6)
)


@settings(deadline=None)
@given(asked=REQUESTS, routing=TABLES)
def test_every_request_is_routed_to_a_version_that_exists_or_refused_and_explained_so(
    asked: Request, routing: RoutingTable
) -> None:
    found = routed(asked, routing)
    if not isinstance(found, Route):
        return
    routes = routing.models[found.model.name]
    assert found.model.version in routes.versions
    assert found.generation == routes.generation
    if asked.version is not None:
        assert found.model.version == routes.aliases.get(asked.version, asked.version)
