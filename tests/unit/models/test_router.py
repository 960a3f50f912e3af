"""The router: every way to a version, as tables."""

import pytest

from tests.unit.models.routing import CATS, FALLS_BACK, digits, outcome, request, table
from worker.errors import RecordFault, RecordSkipped
from worker.models.router import Match, Pin, Route, Routes, Rule, explain, route
from worker.types import Headers, ModelRef, Reason, SkipReason

PREMIUM = Rule("premium", Match(tags={"user_tier": "premium"}), "next")
PINNED = digits("2", pin=Pin("2"), fallback_model="cats")
SKIPPED = ("RecordSkipped", "model.version-unavailable")
UNKNOWN = ("RecordFault", "model.version-unknown")
BELOW = ("", "what rules, split and active say")

PIN_AND_ASKED = {
    # asked for: nothing, the pinned one, another one, each by an alias, one that is not known
    "none": [BELOW, *[("digits/2", "asked"), ("digits/3", "asked")] * 2, UNKNOWN],
    "strict": [("digits/2", "pin"), *[("digits/2", "pin"), SKIPPED] * 2, UNKNOWN],
    "lax": [("digits/2", "pin"), *[("digits/2", "pin"), ("digits/3", "asked")] * 2, UNKNOWN],
}
PINS = {"none": None, "strict": Pin("2"), "lax": Pin("2", strict=False)}
RULES = {"none": (), "miss": (PREMIUM,), "hold": (PREMIUM,)}


@pytest.mark.parametrize("split", [(), (("held", 1),)], ids=["no split", "split"])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    ("pin", "asked", "expected"),
    [
        pytest.param(pin, asked, expected, id=f"pin {pin}, asked {asked}")
        for pin, row in PIN_AND_ASKED.items()
        for asked, expected in zip([None, "2", "3", "held", "next", "9"], row, strict=True)
    ],
)
def test_a_pin_comes_before_what_is_asked_and_that_before_rules_split_and_active(
    pin: str,
    asked: str | None,
    expected: tuple[str, str],
    rules: str,
    split: tuple[tuple[str, int], ...],
) -> None:
    serving = "1" if pin == "none" else "2"
    routes = digits(serving, pin=PINS[pin], rules=RULES[rules], split=split)
    tags = {"user_tier": "premium" if rules == "hold" else "free"}
    if expected == BELOW:
        unruled = ("digits/2", "split") if split else ("digits/1", "active")
        expected = ("digits/3", "rule:premium") if rules == "hold" else unruled
    assert outcome(request(version=asked, tags=tags), table(routes)) == expected


def test_a_route_says_of_which_generation_it_is() -> None:
    assert route(request(), table(digits())) == Route(ModelRef("digits", "1"), "active", 7)
    assert route(request(), table(digits(generation=None))).generation is None


@pytest.mark.parametrize("model", [None, "digits"])
@pytest.mark.parametrize("asked", ["1", "stable"])
def test_what_is_active_can_be_asked_for_too(model: str | None, asked: str) -> None:
    routes = digits(aliases={"stable": "1"})
    assert outcome(request(model, asked), table(routes)) == ("digits/1", "asked")


@pytest.mark.parametrize("asked", ["3", "next"])
def test_the_skip_of_a_pinned_worker_names_both_versions(asked: str) -> None:
    with pytest.raises(RecordSkipped) as raised:
        route(request(version=asked), table(digits("2", pin=Pin("2"))))
    assert str(raised.value) == "this worker is pinned to digits/2, the record asks for digits/3"


@pytest.mark.parametrize(
    ("model", "version", "reason", "text"),
    [
        ("dogs", None, Reason.MODEL_UNKNOWN, "no model 'dogs'; models known: cats, digits$"),
        ("dogs", "1", Reason.MODEL_UNKNOWN, "no model 'dogs'"),
        ("", None, Reason.MODEL_UNKNOWN, "no model ''"),
        (
            "digits",
            "9",
            Reason.MODEL_VERSION_UNKNOWN,
            "'digits' has no version '9'; versions and aliases known: 1, 2, 3, held, next$",
        ),
        ("digits", "", Reason.MODEL_VERSION_UNKNOWN, "no version ''"),
        ("cats", "9", Reason.MODEL_VERSION_UNKNOWN, "no version '9'"),
    ],
)
def test_what_the_state_does_not_name_is_the_records_fault(
    model: str, version: str | None, reason: Reason, text: str
) -> None:
    asked = request(model, version)
    with pytest.raises(RecordFault, match=text) as raised:
        route(asked, table(digits(), cats=digits(None)))
    assert raised.value.reason is reason


def test_a_message_names_a_few_of_many_versions() -> None:
    many = frozenset(f"1.{minor}" for minor in range(1000))
    with pytest.raises(RecordFault, match=r"known: 1\.0, 1\.1, .* and 992 more$") as raised:
        route(request(version="2"), table(digits("1.0", versions=many)))
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("asked", [None, "1", "next"])
def test_a_model_that_serves_nothing_yet_is_the_moments_fault(asked: str | None) -> None:
    with pytest.raises(RecordSkipped, match="serves no version of model 'digits' yet") as raised:
        route(request(version=asked), table(digits(None)))
    assert raised.value.reason is SkipReason.VERSION_UNAVAILABLE


BOTH = Match("images", {"user_tier": "premium", "ab_group": "v2"}, {"tenant": "é"})
SAYS_BOTH = {"user_tier": "premium", "ab_group": "v2"}
TENANT = (("Tenant", "é".encode()),)


@pytest.mark.parametrize(
    ("when", "tags", "headers", "step"),
    [
        (Match("images"), {}, (), "holds, to 'next'"),
        (Match("photos"), {}, (), "topic is 'images', not 'photos'"),
        (Match(tags={"tier": "a"}), {"tier": "a", "more": "b"}, (), "holds, to 'next'"),
        (Match(tags={"tier": "a"}), {"tier": "A"}, (), "tag tier is 'A', not 'a'"),
        (Match(tags={"tier": "a"}), {}, (), "there is no tag tier, 'a' is wanted"),
        (Match(tags={"tier": ""}), {}, (), "there is no tag tier, '' is wanted"),
        (Match(tags={"tier": ""}), {"tier": ""}, (), "holds, to 'next'"),
        (Match(headers={"h": "a"}), {}, (("H", b"a"),), "holds, to 'next'"),
        (Match(headers={"h": "a"}), {"h": "a"}, (), "there is no header h, 'a' is wanted"),
        (Match(headers={"h": "a"}), {}, (("h", b"b"),), "header h is 'b', not 'a'"),
        (Match(headers={"h": "a"}), {}, (("h", b"a"), ("h", b"b")), "header h is 'b', not 'a'"),
        (Match(headers={"h": "a"}), {}, (("h", b"b"), ("H", b"a")), "holds, to 'next'"),
        (Match(headers={"h": "a"}), {}, (("h", b"a"), ("h", None)), "there is no header h"),
        (Match(headers={"h": "a"}), {}, (("h", b"\xff"),), "header h is '\ufffd', not 'a'"),
        (BOTH, SAYS_BOTH, TENANT, "holds, to 'next'"),
        (BOTH, {**SAYS_BOTH, "ab_group": "v1"}, TENANT, "tag ab_group is 'v1', not 'v2'"),
        (BOTH, SAYS_BOTH, (), "there is no header tenant, 'é' is wanted"),
    ],
)  # fmt: skip
def test_a_rule_holds_when_the_record_says_all_that_it_names(
    when: Match, tags: dict[str, str], headers: Headers, step: str
) -> None:
    routing = table(digits(rules=(Rule("r", when, "next"),)))
    asked = request(tags=tags, headers=headers)
    assert explain(asked, routing).steps[3].startswith(f"rule r: {step}")
    holds = step.startswith("holds")
    expected = ("digits/3", "rule:r") if holds else ("digits/1", "active")
    assert outcome(asked, routing) == expected


def test_the_first_rule_that_holds_decides() -> None:
    rules = (
        PREMIUM,
        Rule("tagged", Match(tags={"ab_group": "v2"}), "held"),
        Rule("here", Match("images"), "1"),
    )
    routing = table(digits(rules=rules, split=(("3", 1),)))
    for tags, expected in [
        ({"user_tier": "premium", "ab_group": "v2"}, ("digits/3", "rule:premium")),
        ({"ab_group": "v2"}, ("digits/2", "rule:tagged")),
        ({}, ("digits/1", "rule:here")),
    ]:
        assert outcome(request(tags=tags), routing) == expected


@pytest.mark.parametrize(
    ("case", "routes", "down", "cats", "expected"),
    [
        ("up", FALLS_BACK, ["cats/5"], CATS, ("digits/1", "active")),
        ("no fallback: its records wait", digits(), ["digits/1"], CATS, ("digits/1", "active")),
        ("down", FALLS_BACK, ["digits/1"], CATS, ("cats/5", "fallback")),
        ("another is down", FALLS_BACK, ["digits/2"], CATS, ("digits/1", "active")),
        ("both down", FALLS_BACK, ["digits/1", "cats/5"], CATS, ("digits/1", "active")),
        ("fallback unknown", FALLS_BACK, ["digits/1"], None, ("digits/1", "active")),
        ("serves nothing yet", FALLS_BACK, ["digits/1"], digits(None), ("digits/1", "active")),
        (
            "its pin counts",
            FALLS_BACK,
            ["digits/1"],
            CATS._replace(pin=Pin("4")),
            ("cats/4", "fallback"),
        ),
        (
            "its rules count",
            FALLS_BACK,
            ["digits/1"],
            CATS._replace(rules=(Rule("here", Match("images"), "4"),)),
            ("cats/4", "fallback"),
        ),
        (
            "one hop only",
            FALLS_BACK,
            ["digits/1", "cats/5"],
            CATS._replace(fallback_model="dogs"),
            ("digits/1", "active"),
        ),
        (
            "itself",
            digits(fallback_model="digits"),
            ["digits/1"],
            CATS,
            ("digits/1", "active"),
        ),
        ("a pin is down", PINNED, ["digits/2"], CATS, ("cats/5", "fallback")),
        (
            "what a rule names is down",
            FALLS_BACK._replace(rules=(Rule("here", Match("images"), "next"),)),
            ["digits/3"],
            CATS,
            ("cats/5", "fallback"),
        ),
        (
            "what the split names is down",
            FALLS_BACK._replace(split=(("next", 1),)),
            ["digits/3"],
            CATS,
            ("cats/5", "fallback"),
        ),
        (
            "nothing served yet",
            digits(None, fallback_model="cats"),
            [],
            CATS,
            ("cats/5", "fallback"),
        ),
        (
            "nothing served yet, fallback down",
            digits(None, fallback_model="cats"),
            ["cats/5"],
            CATS,
            SKIPPED,
        ),
        (
            "nothing served yet, fallback unknown",
            digits(None, fallback_model="cats"),
            [],
            None,
            SKIPPED,
        ),
    ],
)
def test_a_version_that_is_not_to_be_had_falls_back(
    case: str,
    routes: Routes,
    down: list[str],
    cats: Routes | None,
    expected: tuple[str, str],
) -> None:
    others = {} if cats is None else {"cats": cats}
    dogs = Routes("6", frozenset({"6"}))
    assert outcome(request(), table(routes, down, dogs=dogs, **others)) == expected, case


@pytest.mark.parametrize(
    ("routes", "asked", "expected"),
    [
        (FALLS_BACK, "2", ("digits/2", "asked")),
        (FALLS_BACK, "held", ("digits/2", "asked")),
        (PINNED, "2", ("digits/2", "pin")),
        (PINNED, "3", SKIPPED),
        (digits(None, fallback_model="cats"), "2", SKIPPED),
    ],
)
def test_a_record_that_asks_for_a_version_never_gets_another_one(
    routes: Routes, asked: str, expected: tuple[str, str]
) -> None:
    routing = table(routes, ["digits/2", "digits/3"], cats=CATS)
    assert outcome(request(version=asked), routing) == expected


def test_a_record_that_falls_back_is_of_the_generation_that_names_its_version() -> None:
    assert route(request(), table(FALLS_BACK, ["digits/1"], cats=CATS)).generation == 8
