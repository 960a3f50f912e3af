from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.control.states import DIGEST, desired_states, digits, selectors, state
from worker.control import edits
from worker.control.documents import parse_state
from worker.control.edits import Terms
from worker.control.messages import (
    Action,
    DesiredState,
    Hold,
    Mode,
    ModelState,
    Phase,
    PinOrder,
    Rollout,
    Selector,
    encode_state,
    frozen,
)
from worker.errors import CommandError, SettingsError
from worker.models.router import Match, Rule

NEW = "f" * 64
TERMS = Terms("r-1", 1000, timeout_s=60, max_preparing=2, quorum=3)
ZONE_A = Selector(labels=frozen({"zone": "a"}))
W_1 = Selector("w-1")
STATE = state()


def two_models(**changes: Any) -> DesiredState:
    cats = ModelState(frozen({"7": DIGEST, "8": DIGEST}), "8", previous="7", activated=5)
    return STATE.with_model("cats", cats._replace(**changes))


def rolling_out(before: DesiredState = STATE) -> DesiredState:
    """Return generation 8, in which digits/2 is prepared."""
    return edits.activate(before, "digits", "2", sha256=None, terms=TERMS)


def the(state: DesiredState) -> ModelState:
    return state.models["digits"]


def running(state: DesiredState) -> Rollout:
    assert state.rollout is not None
    return state.rollout


# First state


def test_the_first_command_edits_the_settings_versions_and_makes_generation_1() -> None:
    known = {"digits": {"1": DIGEST, "2": NEW}, "other": {"1": DIGEST}}
    first = edits.first_state("default", "e-1", {"digits": "1"}, "digits", versions=known)
    assert the(first) == ModelState({"1": DIGEST, "2": NEW}, "1")
    assert list(first.models) == ["digits"]
    following = edits.activate(first, "digits", "2", sha256=None)
    assert following.generation == 1
    assert parse_state(encode_state(following)) == following


def test_a_version_that_the_repository_lacks_has_no_digest() -> None:
    first = edits.first_state("default", "e-1", {"digits": "1"}, "digits", versions={})
    assert the(first).versions == {"1": None}


def test_a_default_that_is_not_active_begins_no_fleet() -> None:
    with pytest.raises(SettingsError, match="cats"):
        edits.first_state("default", "e-1", {"digits": "1"}, "cats", versions={})


# Activate


def test_activate_switches_at_once_and_keeps_a_way_back() -> None:
    after = edits.activate(STATE, "digits", "2", sha256=None, new_heads=True)
    assert after.generation == 8
    assert the(after) == the(STATE)._replace(active="2", previous="1", activated=8, new_heads=True)
    assert after.rollout is None


def test_activate_names_a_version_that_only_the_repository_has() -> None:
    after = edits.activate(STATE, "digits", "3", sha256=NEW)
    assert the(after).active == "3"
    assert the(after).versions == {"1": DIGEST, "2": DIGEST, "3": NEW}


def test_activate_in_two_phases_changes_nothing_but_begins_a_rollout() -> None:
    after = edits.activate(STATE, "digits", "3", sha256=NEW, terms=TERMS, new_heads=True)
    assert after.generation == 8
    assert the(after) == the(STATE)._replace(versions={**the(STATE).versions, "3": NEW})
    assert running(after) == Rollout(
        "r-1", "digits", "3", Mode.TWO_PHASE, Phase.PREPARE, 1000, 60, 2, 3, new_heads=True
    )


@pytest.mark.parametrize("terms", [None, TERMS])
def test_what_is_active_already_is_no_change(terms: Terms | None) -> None:
    assert edits.activate(STATE, "digits", "1", sha256=None, terms=terms) is STATE
    assert edits.activate(STATE, "digits", "1", sha256=DIGEST, terms=terms) is STATE


def test_a_digest_that_the_fleet_did_not_know_yet_is_a_change() -> None:
    before = digits(versions=frozen({"1": None}))
    after = edits.activate(before, "digits", "1", sha256=NEW)
    assert after.generation == 8
    assert the(after) == the(before)._replace(versions={"1": NEW})


def test_what_is_active_at_once_of_one_model_does_not_wait_for_the_rollout_of_another() -> None:
    before = rolling_out(two_models())
    after = edits.activate(before, "cats", "7", sha256=None)
    assert after.models["cats"].active == "7"
    assert after.rollout == before.rollout


def test_a_rollout_that_has_ended_makes_room_for_the_next() -> None:
    over = edits.abort(rolling_out())
    after = edits.activate(over, "digits", "2", sha256=None, terms=TERMS._replace(id="r-2"))
    assert running(after).id == "r-2"


# Reload


def test_reload_begins_a_rolling_one_with_a_number_above_any_before() -> None:
    before = digits(reload=5)
    after = edits.reload(before, "digits", terms=TERMS._replace(quorum=None))
    assert the(after) == the(before)
    assert running(after) == Rollout(
        "r-1", "digits", "1", Mode.ROLLING, Phase.PREPARE, 1000, 60, 2, reload=8
    )
    again = edits.reload(edits.abort(after), "digits", terms=TERMS)
    assert running(again).reload > running(after).reload


# Pins


def test_a_pin_of_the_same_workers_is_replaced_and_others_stay() -> None:
    after = edits.pin(STATE, "digits", "1", sha256=None, workers=ZONE_A)
    after = edits.pin(after, "digits", "2", sha256=None, workers=W_1)
    after = edits.pin(after, "digits", "3", sha256=NEW, workers=ZONE_A, strict=False)
    assert after.generation == 10
    assert the(after).pins == (PinOrder("2", W_1), PinOrder("3", ZONE_A, strict=False))
    assert the(after).versions["3"] == NEW
    assert edits.pin(after, "digits", "3", sha256=None, workers=ZONE_A, strict=False) is after


def test_unpin_takes_one_pin_back_or_all() -> None:
    before = digits(pins=(PinOrder("1"), PinOrder("2", ZONE_A), PinOrder("2", W_1)))
    after = edits.unpin(before, "digits", ZONE_A)
    assert the(after).pins == (PinOrder("1"), PinOrder("2", W_1))
    assert the(edits.unpin(before, "digits", Selector())).pins == ()
    assert edits.unpin(STATE, "digits", ZONE_A) is STATE


# Roll back


def test_rollback_swaps_active_and_previous_and_back_again() -> None:
    before = edits.activate(STATE, "digits", "2", sha256=None)
    after = edits.rollback(before, "digits")
    assert the(after)._replace(versions={}) == ModelState(
        {}, "1", previous="2", activated=9, new_heads=True
    )
    again = edits.rollback(after, "digits")
    assert (the(again).active, again.generation) == ("2", 10)


def test_rollback_without_a_model_is_of_the_one_activated_last() -> None:
    before = two_models()
    assert edits.rollback(before, None).models["cats"].active == "7"
    later = edits.activate(before, "digits", "2", sha256=None)
    after = edits.rollback(later, None)
    assert the(after).active == "1"
    assert after.models["cats"] == later.models["cats"]


def test_rollback_gives_up_the_rollout_of_its_model_in_the_same_generation() -> None:
    before = rolling_out(digits(previous="2", activated=5))
    after = edits.rollback(before, None)
    assert after.generation == (before.generation or 0) + 1
    assert running(after) == running(before)._replace(
        phase=Phase.ABORTED, reason="digits was rolled back"
    )
    assert the(after).active == "2"


def test_rollback_leaves_the_rollout_of_another_model_alone() -> None:
    before = rolling_out(two_models())
    assert running(edits.rollback(before, "cats")) == running(before)


# Holds


def test_a_hold_of_the_same_workers_is_replaced_and_others_stay() -> None:
    after = edits.pause(edits.pause(STATE, Selector()), W_1)
    after = edits.drain(after, Selector())
    assert after.holds == (Hold(Action.PAUSE, W_1), Hold(Action.DRAIN))
    assert edits.drain(after, Selector()) is after


def test_resume_takes_one_hold_back_or_all() -> None:
    before = edits.pause(edits.drain(STATE, ZONE_A), W_1)
    assert edits.resume(before, ZONE_A).holds == (Hold(Action.PAUSE, W_1),)
    assert edits.resume(before, Selector()).holds == ()
    assert edits.resume(STATE, W_1) is STATE


# Abort


def test_abort_ends_the_rollout_and_changes_nothing_else() -> None:
    before = rolling_out()
    after = edits.abort(before)
    assert after.models == before.models
    ended = running(before)._replace(phase=Phase.ABORTED, reason="aborted by command")
    assert running(after) == ended


# Forget


def test_what_a_failed_change_left_behind_can_be_forgotten() -> None:
    failed = edits.activate(STATE, "digits", "3", sha256=NEW)
    after = edits.forget(edits.rollback(failed, "digits"), "digits", "3")
    assert after.generation == 10
    assert (the(after).versions, the(after).previous) == (the(STATE).versions, None)
    again = edits.activate(after, "digits", "3", sha256=DIGEST)
    assert the(again).versions["3"] == DIGEST


def test_an_aborted_rollout_is_forgotten_with_its_version() -> None:
    aborted = edits.abort(edits.activate(STATE, "digits", "3", sha256=NEW, terms=TERMS))
    assert edits.forget(aborted, "digits", "2").rollout == aborted.rollout
    after = edits.forget(aborted, "digits", "3")
    assert after.rollout is None
    assert parse_state(encode_state(after)) == after


# What cannot be done

Edit = Callable[[DesiredState], DesiredState]
CHANGED = (
    "a version never changes; publish the new content as another one (where the fleet's digest is a"
    " mistake, let it forget the version)"
)
NO_WAY_BACK = (
    "digits has no version to go back to but 1, which is active: activate the one that you want"
)
NEEDED = (
    "digits 2 is needed: it is active, stable is its alias, label zone=a is pinned to it, rule"
    " premium leads to it, it is in the split; change that first"
)
GOING = "a rollout of digits 2 is under way (r-1): wait for its end, or abort it"


@pytest.mark.parametrize(
    ("before", "edit", "why"),
    [
        (
            two_models(),
            lambda s: edits.activate(s, "digit", "1", sha256=NEW),
            "the fleet has no model digit; it has: cats, digits",
        ),
        (
            STATE,
            lambda s: edits.activate(s, "digits", "3", sha256=None),
            "digits has no version 3; the fleet knows: 1, 2",
        ),
        (
            STATE,
            lambda s: edits.pin(s, "digits", "3", sha256=None, workers=W_1),
            "digits has no version 3; the fleet knows: 1, 2",
        ),
        (
            STATE,
            lambda s: edits.activate(s, "digits", "2", sha256=NEW),
            f"digits/2 is named with sha256 {NEW}, and the fleet has it as {DIGEST}: {CHANGED}",
        ),
        (
            digits(aliases=frozen({"stable": "2"})),
            lambda s: edits.activate(s, "digits", "stable", sha256=NEW),
            "stable is an alias of digits, for version 2: name that",
        ),
        (rolling_out(), lambda s: edits.activate(s, "digits", "2", sha256=None), GOING),
        (rolling_out(), lambda s: edits.activate(s, "digits", "1", sha256=None), GOING),
        (
            rolling_out(two_models()),
            lambda s: edits.activate(s, "cats", "7", sha256=None, terms=TERMS),
            GOING,
        ),
        (rolling_out(two_models()), lambda s: edits.reload(s, "cats", terms=TERMS), GOING),
        (
            digits(pins=(PinOrder("1"), PinOrder("2", ZONE_A))),
            lambda s: edits.unpin(s, "digits", W_1),
            (
                "digits is pinned on the whole fleet; label zone=a: not on worker w-1 by itself;"
                " name one of those, or no workers for all"
            ),
        ),
        (
            STATE._replace(holds=(Hold(Action.PAUSE),)),
            lambda s: edits.resume(s, W_1),
            (
                "records are held on the whole fleet: not on worker w-1 by itself;"
                " name one of those, or no workers for all"
            ),
        ),
        (
            STATE,
            lambda s: edits.rollback(s, None),
            "nothing was activated yet, so there is nothing to roll back",
        ),
        (
            STATE,
            lambda s: edits.rollback(s, "digits"),
            NO_WAY_BACK,
        ),
        (
            digits(previous="1", activated=5),
            lambda s: edits.rollback(s, None),
            NO_WAY_BACK,
        ),
        (
            STATE,
            lambda s: edits.forget(s, "digits", "3"),
            "digits has no version 3; the fleet knows: 1, 2",
        ),
        (rolling_out(), lambda s: edits.forget(s, "digits", "2"), GOING),
        (
            digits(
                active="2",
                aliases=frozen({"stable": "2"}),
                pins=(PinOrder("2", ZONE_A),),
                rules=(Rule("premium", Match(topic="t"), "2"),),
                split=frozen({"2": 1}),
            ),
            lambda s: edits.forget(s, "digits", "2"),
            NEEDED,
        ),
        (STATE, edits.abort, "no rollout is under way, so there is none to abort"),
        (
            edits.abort(rolling_out()),
            edits.abort,
            "no rollout is under way, so there is none to abort",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    before: DesiredState, edit: Edit, why: str
) -> None:
    with pytest.raises(CommandError) as caught:
        edit(before)
    assert str(caught.value) == why


@given(before=desired_states(), workers=selectors, data=st.data())
def test_every_edit_of_every_state_is_the_next_generation_or_no_change(
    before: DesiredState, workers: Selector, data: st.DataObject
) -> None:
    before = before._replace(generation=7)
    name = data.draw(st.sampled_from(sorted(before.models)))
    version = data.draw(st.sampled_from([*before.models[name].versions, "new"]))
    sha256 = None if version in before.models[name].versions else NEW
    edit = data.draw(
        st.sampled_from(
            [
                lambda s: edits.activate(s, name, version, sha256=sha256),
                lambda s: edits.activate(s, name, version, sha256=sha256, terms=TERMS),
                lambda s: edits.reload(s, name, terms=TERMS),
                lambda s: edits.pin(s, name, version, sha256=sha256, workers=workers),
                lambda s: edits.unpin(s, name, workers),
                lambda s: edits.rollback(s, name),
                lambda s: edits.forget(s, name, version),
                lambda s: edits.pause(s, workers),
                lambda s: edits.drain(s, workers),
                lambda s: edits.resume(s, workers),
                edits.abort,
            ]
        )
    )
    try:
        after = edit(before)
    except CommandError:
        return
    assert (after is before) == (after == before)
    if after is not before:
        assert after.generation == 8
        assert parse_state(encode_state(after)) == after
