import pytest
from hypothesis import given

from tests.unit.control.states import DIGEST, desired_states, digits, state
from worker.control import edits
from worker.control.content import Content, ModelContent, dump_content, parse_content
from worker.control.documents import parse_state
from worker.control.edits import Terms
from worker.control.messages import (
    DesiredState,
    LiveLimits,
    ModelState,
    PinOrder,
    Selector,
    encode_state,
    frozen,
)
from worker.errors import CommandError
from worker.models.router import Match, Rule

NEW = "f" * 64
W_1 = Selector("w-1")
STATE = state()
TWO_MODELS = STATE.with_model("cats", ModelState(frozen({"7": DIGEST}), "7"))
RULE = Rule("premium", Match(tags={"user_tier": "premium"}), "stable")
PLAIN = ModelContent("1", ("1",), frozen({}), (), frozen({}), None, LiveLimits())
FULL = ModelContent(
    "2",
    ("2", "3"),
    frozen({"stable": "3"}),
    (RULE,),
    frozen({"2": 9, "stable": 1}),
    "cats",
    LiveLimits(max_size=8),
)


def test_apply_makes_the_models_that_a_file_names_what_it_says_and_leaves_the_others() -> None:
    before = edits.pin(TWO_MODELS, "digits", "1", sha256=None, workers=W_1)
    content = Content("cats", frozen({"digits": FULL}))
    after = edits.apply(before, content, versions={"digits": {"3": NEW}})
    assert after.generation == 9
    assert after.default == "cats"
    assert after.models["cats"] == before.models["cats"]
    assert after.models["digits"] == ModelState(
        {"1": DIGEST, "2": DIGEST, "3": NEW},
        "2",
        previous="1",
        activated=9,
        aliases={"stable": "3"},
        pins=(PinOrder("1", W_1),),
        rules=(RULE,),
        split={"2": 9, "stable": 1},
        fallback_model="cats",
        limits=LiveLimits(max_size=8),
    )
    assert parse_state(encode_state(after)) == after


def test_apply_takes_away_what_a_file_leaves_out_of_a_model() -> None:
    before = digits(
        aliases=frozen({"stable": "1"}), rules=(RULE,), split=frozen({"1": 1}), activated=3
    )
    after = edits.apply(before, Content("digits", frozen({"digits": PLAIN})), versions={})
    assert after.models["digits"] == STATE.models["digits"]._replace(activated=3)


def test_apply_adds_a_model() -> None:
    content = Content("digits", frozen({"dogs": PLAIN._replace(fallback_model="digits")}))
    after = edits.apply(STATE, content, versions={"dogs": {"1": NEW}})
    assert after.models["dogs"] == ModelState({"1": NEW}, "1", activated=8, fallback_model="digits")
    assert parse_state(encode_state(after)) == after
    with pytest.raises(CommandError, match="dogs has no version to go back to but 1"):
        edits.rollback(after, None)


def test_apply_of_what_is_there_is_no_change() -> None:
    content = parse_content(dump_content(STATE), file="fleet.yaml")
    assert edits.apply(STATE, content, versions={}) is STATE


@given(desired_states())
def test_what_any_state_declares_changes_nothing_of_it(state: DesiredState) -> None:
    content = parse_content(dump_content(state), file="fleet.yaml")
    assert edits.apply(state, content, versions={}) is state


def test_apply_waits_for_the_rollout_of_a_model_only_to_change_its_active_version() -> None:
    before = edits.activate(TWO_MODELS, "digits", "2", sha256=None, terms=Terms("r-1", 0))
    same = Content("digits", frozen({"digits": FULL._replace(active="1")}))
    after = edits.apply(before, same, versions={"digits": {"3": NEW}})
    assert after.rollout == before.rollout
    other = Content("digits", frozen({"digits": FULL}))
    with pytest.raises(CommandError, match="a rollout of digits 2 is under way"):
        edits.apply(before, other, versions={"digits": {"3": NEW}})


@pytest.mark.parametrize(
    ("content", "default", "why"),
    [
        (FULL, "digits", "digits has no version 3; the fleet knows: 1, 2"),
        (
            PLAIN._replace(fallback_model="dogs"),
            "digits",
            "the fleet has no model dogs; it has: digits",
        ),
        (PLAIN, "dogs", "the fleet has no model dogs; it has: digits"),
        (
            PLAIN._replace(aliases=frozen({"2": "1"})),
            "digits",
            "2 cannot be an alias of digits: it is one of its versions",
        ),
    ],
)
def test_a_file_that_does_not_fit_the_fleet_is_refused_in_one_sentence(
    content: ModelContent, default: str, why: str
) -> None:
    with pytest.raises(CommandError) as caught:
        edits.apply(STATE, Content(default, frozen({"digits": content})), versions={})
    assert str(caught.value) == why
