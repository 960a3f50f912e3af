from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from tests.unit.control.states import DIGEST, desired_states, digits, state
from worker.control import edits
from worker.control.changes import change
from worker.control.edits import Terms
from worker.control.messages import (
    Action,
    DesiredState,
    Hold,
    LiveLimits,
    ModelState,
    Phase,
    PinOrder,
    Selector,
    frozen,
)
from worker.models.router import Match, Rule

STATE = state()
ZONE_A = Selector(labels=frozen({"zone": "a", "rack": "4"}))
TERMS = Terms("r-1", 0)
ROLLING_OUT = edits.activate(STATE, "digits", "2", sha256=None, terms=TERMS)
PREMIUM = Rule("premium", Match(tags={"user_tier": "premium"}), "2")
NIGHTLY = Rule("nightly", Match("nightly", {}, {"source": "cam-1"}), "1")
QUORUM = "2 at a time, at least 3 reloaded, within 60 s"


def admitted(state: DesiredState, **changes: Any) -> DesiredState:
    assert state.rollout is not None
    return state._replace(rollout=state.rollout._replace(**changes))


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (STATE, digits(active="2", previous="1"), ["digits: active 1 -> 2"]),
        (
            STATE,
            digits(active="2", new_heads=True),
            ["digits: active 1 -> 2 (which may lack heads of the one before)"],
        ),
        (
            STATE,
            digits(versions=frozen({"1": "f" * 64, "2": DIGEST, "3": None})),
            [
                "digits: version 1: sha256 0123456789ab -> sha256 ffffffffffff",
                "digits: version 3 added: whatever the repository has",
            ],
        ),
        (STATE, digits(reload=8), ["digits: engines reloaded (number 0 -> 8)"]),
        (
            digits(aliases=frozen({"stable": "1", "old": "1"})),
            digits(aliases=frozen({"stable": "2", "candidate": "2"})),
            [
                "digits: alias stable: 1 -> 2",
                "digits: alias old removed (was 1)",
                "digits: alias candidate added: 2",
            ],
        ),
        (
            digits(pins=(PinOrder("1"), PinOrder("1", Selector("w-1")))),
            digits(pins=(PinOrder("2"), PinOrder("1", ZONE_A, strict=False))),
            [
                "digits: unpinned on worker w-1 (was 1)",
                "digits: pinned to 2 on the whole fleet",
                "digits: pinned to 1 on label rack=4,zone=a, unless a record asks for another",
            ],
        ),
        (
            digits(pins=(PinOrder("1", ZONE_A), PinOrder("1", Selector("w-1")))),
            digits(pins=(PinOrder("1", Selector("w-1")), PinOrder("1", ZONE_A))),
            ["digits: pins in another order"],
        ),
        (
            digits(rules=(PREMIUM._replace(version="1"), NIGHTLY._replace(name="gone"))),
            digits(rules=(PREMIUM, NIGHTLY)),
            [
                "digits: rule gone removed",
                "digits: rule premium: tags user_tier=premium -> 2",
                "digits: rule nightly: topic nightly, headers source=cam-1 -> 1",
            ],
        ),
        (
            digits(rules=(PREMIUM, NIGHTLY)),
            digits(rules=(NIGHTLY, PREMIUM)),
            ["digits: rules in another order"],
        ),
        (
            digits(split=frozen({"1": 9, "2": 1})),
            digits(split=frozen({"1": 5})),
            ["digits: split 1: 9 -> 5", "digits: split 2 removed (was 1)"],
        ),
        (
            STATE,
            digits(limits=LiveLimits(8, None, 2.5, frozen({"label": 0.5}))),
            [
                "digits: max_size as the settings say -> 8",
                "digits: max_wait_ms as the settings say -> 2.5",
                "digits: threshold label added: 0.5",
            ],
        ),
        (STATE, digits(fallback_model="cats"), ["digits: fallback model None -> cats"]),
        (
            STATE,
            STATE.with_model(
                "cats", ModelState(frozen({"7": None}), "7", aliases=frozen({"stable": "7"}))
            )._replace(default="cats"),
            [
                "default model digits -> cats",
                "cats: new, active 7",
                "cats: alias stable added: 7",
            ],
        ),
        (STATE.with_model("cats", ModelState({"7": None}, "7")), STATE, ["cats: gone"]),
        (
            STATE._replace(holds=(Hold(Action.PAUSE, ZONE_A),)),
            STATE._replace(holds=(Hold(Action.DRAIN),)),
            ["no longer paused: label rack=4,zone=a", "drained: the whole fleet"],
        ),
        (
            STATE,
            STATE._replace(epoch="e-2", supersedes=("e-1",)),
            ["epoch e-1 -> e-2", "supersedes epoch e-1"],
        ),
        (
            STATE,
            ROLLING_OUT,
            ["rollout r-1: digits to 2 in two phases (1 at a time, all prepared, within 600 s)"],
        ),
        (
            STATE,
            edits.reload(STATE, "digits", terms=Terms("r", 0, 60, 2, 3)),
            [f"rollout r: new engines for digits, in turns ({QUORUM})"],
        ),
        (
            admitted(ROLLING_OUT, admitted=("a",)),
            admitted(ROLLING_OUT, admitted=("a", "b", "c")),
            ["rollout r-1: it is the turn of b, c"],
        ),
        (
            ROLLING_OUT,
            admitted(ROLLING_OUT, phase=Phase.ABORTED, reason="refused by w-1"),
            ["rollout r-1: aborted: refused by w-1"],
        ),
        (
            ROLLING_OUT,
            admitted(ROLLING_OUT, phase=Phase.DONE).with_model(
                "digits", ROLLING_OUT.models["digits"]._replace(active="2")
            ),
            ["digits: active 1 -> 2", "rollout r-1: done"],
        ),
        (ROLLING_OUT, STATE, ["rollout r-1 forgotten"]),
    ],
)
def test_what_differs_is_said_a_line_for_each(
    before: DesiredState, after: DesiredState, lines: list[str]
) -> None:
    assert change(before, after) == lines


@given(desired_states())
def test_who_wrote_what_when_is_no_difference(state: DesiredState) -> None:
    other = state._replace(generation=1, written_by="somebody", written_at_ms=5)
    assert change(state, other) == []


EDITS: list[Callable[[DesiredState], DesiredState]] = [
    lambda s: edits.activate(s, "digits", "2", sha256=None),
    lambda s: edits.activate(s, "digits", "2", sha256=None, terms=TERMS),
    lambda s: edits.reload(s, "digits", terms=TERMS),
    lambda s: edits.pin(s, "digits", "1", sha256=None, workers=ZONE_A),
    lambda s: edits.unpin(s, "digits", Selector("w-1")),
    lambda s: edits.rollback(s, None),
    lambda s: edits.pause(s, ZONE_A),
    lambda s: edits.resume(s, Selector()),
]


@pytest.mark.parametrize("edit", EDITS)
def test_every_command_that_changes_something_says_so(
    edit: Callable[[DesiredState], DesiredState],
) -> None:
    before = digits(pins=(PinOrder("2", Selector("w-1")),), previous="2", activated=5)
    before = before._replace(holds=(Hold(Action.PAUSE),))
    after = edit(before)
    assert after is not before
    assert change(before, after)
