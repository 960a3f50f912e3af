"""What one worker makes of a desired state, as tables."""

from typing import Any

import pytest

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
    frozen,
)
from worker.control.wanted import Preparation, wanted
from worker.models.router import Match, Pin, Rule
from worker.types import ModelRef

ME, LABELS = "w-1", {"zone": "a"}
OTHERS = Selector(worker="w-2")
MINE, ZONE, ALL = Selector(worker=ME), Selector(labels=frozen({"zone": "a"})), Selector()
PHASES = Rollout("r", "digits", "2", Mode.TWO_PHASE, Phase.PREPARE, 0)
ROLLING = Rollout("r", "digits", "1", Mode.ROLLING, Phase.PREPARE, 0, reload=5)


def state(*holds: Hold, rollout: Rollout | None = None, **changes: Any) -> DesiredState:
    digits = ModelState(frozen({"1": "a", "2": "b", "3": "c"}), "1", **changes)
    models = frozen({"digits": digits})
    return DesiredState("f", "e", 7, "digits", models, holds=holds, rollout=rollout)


@pytest.mark.parametrize(
    ("pins", "pin"),
    [
        ((), None),
        ((PinOrder("2", OTHERS),), None),
        ((PinOrder("2", ALL),), Pin("2")),
        ((PinOrder("2", ALL), PinOrder("3", ZONE)), Pin("3")),
        ((PinOrder("2", MINE), PinOrder("3", ZONE)), Pin("2")),
        ((PinOrder("2", ZONE, strict=False), PinOrder("3", OTHERS)), Pin("2", strict=False)),
        ((PinOrder("2", Selector(labels=frozen({"zone": "b"}))),), None),
    ],
)
def test_the_narrowest_pin_holds(pins: tuple[PinOrder, ...], pin: Pin | None) -> None:
    routes = wanted(state(pins=pins), ME, LABELS).models["digits"].routes
    assert (routes.pin, routes.serving) == (pin, pin.version if pin else "1")


@pytest.mark.parametrize(
    ("changes", "load"),
    [
        ({}, ("1",)),
        ({"rules": (Rule("gold", Match(topic="t"), "2"),)}, ("1", "2")),
        ({"split": frozen({"1": 9, "next": 1}), "aliases": frozen({"next": "3"})}, ("1", "3")),
        ({"split": frozen({"1": 9, "3": 1}), "pins": (PinOrder("2"),)}, ("2",)),
        ({"aliases": frozen({"next": "3"})}, ("1",)),
    ],
    ids=["active", "rule", "split by alias", "a pin passes over all others", "only asked for"],
)
def test_what_routes_lead_to_is_to_be_loaded(
    changes: dict[str, Any], load: tuple[str, ...]
) -> None:
    want = wanted(state(**changes), ME, LABELS)
    assert want.models["digits"].load == load
    assert want.refs == {ModelRef("digits", version) for version in load}


@pytest.mark.parametrize(
    ("holds", "action"),
    [
        ((), None),
        ((Hold(Action.PAUSE, OTHERS),), None),
        ((Hold(Action.PAUSE, ZONE),), Action.PAUSE),
        ((Hold(Action.DRAIN, MINE), Hold(Action.PAUSE, ALL)), Action.DRAIN),
    ],
)
def test_the_stronger_hold_counts(holds: tuple[Hold, ...], action: Action | None) -> None:
    assert wanted(state(*holds), ME, LABELS).hold is action


@pytest.mark.parametrize("turn", [True, False])
def test_a_rollout_in_two_phases_is_prepared_when_it_is_our_turn(turn: bool) -> None:  # noqa: FBT001 - a table
    rollout = PHASES._replace(admitted=(ME,) if turn else ("w-2",), new_heads=True)
    want = wanted(state(rollout=rollout), ME, LABELS)
    ref = ModelRef("digits", "2")
    assert want.preparation == Preparation("r", ref, "b", new_heads=True, turn=turn)
    assert want.prepared is None
    assert ref in want.refs, "it is not thrown out as nobody's"


@pytest.mark.parametrize(
    ("rollout", "changes", "prepared"),
    [
        (PHASES, {"pins": (PinOrder("1"),)}, "r"),
        (PHASES._replace(phase=Phase.DONE), {}, None),
        (PHASES._replace(phase=Phase.ABORTED), {}, None),
        (ROLLING, {}, None),
        (ROLLING._replace(admitted=(ME,)), {}, "r"),
    ],
    ids=["pinned elsewhere", "done", "aborted", "rolling: not our turn", "rolling: our turn"],
)
def test_a_rollout_that_asks_nothing_more_of_us_is_prepared_as_we_are(
    rollout: Rollout, changes: dict[str, Any], prepared: str | None
) -> None:
    want = wanted(state(rollout=rollout, **changes), ME, LABELS)
    assert (want.preparation, want.prepared) == (None, prepared)


@pytest.mark.parametrize(
    ("rollout", "number"),
    [
        (None, 4),
        (ROLLING, 4),
        (ROLLING._replace(admitted=(ME,)), 5),
        (ROLLING._replace(admitted=(ME,), phase=Phase.ABORTED), 4),
    ],
)
def test_engines_are_reloaded_when_it_is_our_turn(rollout: Rollout | None, number: int) -> None:
    want = wanted(state(rollout=rollout, reload=4), ME, LABELS)
    assert want.models["digits"].reload == number
