import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.control.shelf import Shelf
from worker.control.answers import Code, Proof
from worker.control.messages import (
    DesiredState,
    LiveLimits,
    Mode,
    ModelState,
    Phase,
    PinOrder,
    Rollout,
    Selector,
    settings_state,
)
from worker.control.reconciler import (
    Actual,
    Load,
    Prepare,
    Reconciler,
    Reload,
    Step,
    Switch,
    plan,
)
from worker.control.wanted import Wanted, wanted
from worker.errors import DarkroomError, EngineFault, ModelError
from worker.models.router import Match, Routes, Rule
from worker.types import ModelRef

D1, D2, D3 = (ModelRef("digits", version) for version in "123")
C1 = ModelRef("cats", "1")
NOTHING = Actual({}, {})
ME = "worker-1"


def digits(active: str, **more: Any) -> ModelState:
    return ModelState({"1": "a", "2": "b", "3": "c"}, active, **more)


def state(
    generation: int = 1, /, rollout: Rollout | None = None, **models: ModelState
) -> DesiredState:
    return DesiredState("test", "e", generation, next(iter(models)), models, rollout=rollout)


def want(desired: DesiredState) -> Wanted:
    return wanted(desired, ME, {"zone": "a"})


def routes(desired: DesiredState, name: str = "digits") -> Routes:
    return want(desired).models[name].routes


def having(desired: DesiredState, *loaded: ModelRef, number: int = 0) -> Actual:
    """What a worker has that serves by this state."""
    serving = {name: model.routes for name, model in want(desired).models.items()}
    return Actual(dict.fromkeys(loaded, number), serving)


ONE, TWO = state(1, digits=digits("1")), state(2, digits=digits("2"))
BOTH = state(1, digits=digits("1"), cats=ModelState({"1": None}, "1"))
ROLLOUT = Rollout("r", "digits", "2", Mode.TWO_PHASE, Phase.PREPARE, 0)
PREPARING = state(2, rollout=ROLLOUT._replace(admitted=(ME,)), digits=digits("1"))
RULED = state(2, digits=digits("1", rules=(Rule("gold", Match(topic="gold"), "3"),)))
PINNED = state(2, digits=digits("2", pins=(PinOrder("1", Selector(labels={"zone": "a"})),)))
RELOADED = state(2, digits=digits("1", reload=1))


@pytest.mark.parametrize(
    ("desired", "actual", "steps"),
    [
        pytest.param(
            ONE, NOTHING, (Load(D1, "a", 0, None, False), Switch("digits", routes(ONE))), id="first"
        ),
        pytest.param(ONE, having(ONE, D1), (), id="nothing to do"),
        pytest.param(
            TWO,
            having(ONE, D1),
            (Load(D2, "b", 0, "1", False), Switch("digits", routes(TWO))),
            id="a swap",
        ),
        pytest.param(TWO, having(ONE, D1, D2), (Switch("digits", routes(TWO)),), id="held warm"),
        pytest.param(
            PREPARING,
            having(ONE, D1),
            (Switch("digits", routes(PREPARING)), Prepare("r", Load(D2, "b", 0, "1", False))),
            id="a rollout's turn: the switch is to the routes of the new generation",
        ),
        pytest.param(
            state(2, rollout=ROLLOUT, digits=digits("1")),
            having(state(2, digits=digits("1")), D1),
            (),
            id="not our turn",
        ),
        pytest.param(
            RULED,
            having(ONE, D1),
            (Load(D3, "c", 0, None, False), Switch("digits", routes(RULED))),
            id="a rule's version is loaded before the rule holds",
        ),
        pytest.param(
            PINNED, having(ONE, D1), (Switch("digits", routes(PINNED)),), id="a pin is not passed"
        ),
        pytest.param(
            RELOADED,
            having(ONE, D1),
            (Reload(D1, "a", 1), Switch("digits", routes(RELOADED))),
            id="a reload",
        ),
        pytest.param(RELOADED, having(RELOADED, D1, number=1), (), id="reloaded already"),
    ],
)
def test_the_plan_goes_from_actual_to_wanted(
    desired: DesiredState, actual: Actual, steps: tuple[Step, ...]
) -> None:
    assert plan(want(desired), actual, max_loaded=3) == steps


def test_what_is_more_than_there_is_room_for_is_switched_to_and_loaded_on_demand() -> None:
    steps = plan(want(BOTH), NOTHING, max_loaded=1)
    assert [type(step).__name__ for step in steps] == ["Load", "Switch", "Switch"]
    assert steps[0].ref == D1, "the default model comes first"


async def test_what_fails_is_reported_and_the_old_version_serves_on() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    await reconciler.apply(want(BOTH))
    shelf.broken[D2] = ModelError("golden sample differs", file="digits/2")
    after = state(2, digits=digits("2"), cats=ModelState({"1": None}, "1"))
    report = await reconciler.apply(want(after))
    (failure,) = report.failures
    assert (failure.ref, failure.code) == (D2, Code.MODEL_INVALID)
    assert shelf.serving == {"digits": "1", "cats": "1"}
    assert shelf.table.models["cats"].generation == 2, "one model does not wait for another"
    shelf.broken.clear()
    assert (await reconciler.apply(want(after))).failures == ()
    assert shelf.serving["digits"] == "2"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelError("not there", code="model.absent"), Code.MODEL_ABSENT),
        (ModelError("full", code="headroom"), Code.HEADROOM),
        (EngineFault("it died"), Code.ENGINE),
    ],
)
async def test_a_failure_has_the_code_of_its_error(error: DarkroomError, code: Code) -> None:
    shelf = Shelf()
    shelf.broken[D1] = error
    report = await Reconciler(shelf, max_loaded=3).apply(want(ONE))
    assert [failure.code for failure in report.failures] == [code]


async def test_a_prepared_version_is_loaded_and_not_served() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    await reconciler.apply(want(ONE))
    report = await reconciler.apply(want(PREPARING))
    assert (report.prepared, report.proof) == ("r", Proof.LOADED)
    assert (shelf.serving, set(shelf.numbers)) == ({"digits": "1"}, {D1, D2})
    assert shelf.wanted == {D1, D2}


async def test_what_else_is_broken_here_stops_neither_a_preparation_nor_a_turn_to_reload() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    shelf.broken[C1] = ModelError("no")
    cats = ModelState({"1": None}, "1")
    for rollout in (
        ROLLOUT._replace(admitted=(ME,)),
        ROLLOUT._replace(mode=Mode.ROLLING, version="1", reload=3, admitted=(ME,)),
    ):
        desired = state(2, rollout=rollout, digits=digits("1"), cats=cats)
        report = await reconciler.apply(want(desired))
        assert (report.prepared, len(report.failures)) == ("r", 1)


async def test_a_rollout_may_mend_a_model_whose_active_version_is_broken() -> None:
    shelf = Shelf()
    shelf.broken[D1] = ModelError("no")
    report = await Reconciler(shelf, max_loaded=3).apply(want(PREPARING))
    assert (report.prepared, [failure.ref for failure in report.failures]) == ("r", [D1])


async def test_without_room_files_are_verified_and_the_old_version_is_stopped_at_the_switch() -> (
    None
):
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    await reconciler.apply(want(ONE))
    shelf.no_room.add(D2)
    report = await reconciler.apply(want(PREPARING))
    assert (report.prepared, report.proof) == ("r", Proof.VERIFIED)
    assert set(shelf.numbers) == {D1}
    await reconciler.apply(want(TWO))
    assert (shelf.serving, set(shelf.numbers)) == ({"digits": "2"}, {D2})


async def started(reconciler: Reconciler, desired: DesiredState) -> "asyncio.Task[Any]":
    task = asyncio.create_task(reconciler.apply(want(desired)))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait((task,))


async def test_a_newer_state_cancels_an_unfinished_load_that_it_does_not_want() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    await reconciler.apply(want(ONE))
    shelf.gates[D2] = asyncio.Event()
    await cancelled(await started(reconciler, TWO))
    assert shelf.cancelled == [], "until it is known what the newer one wants"
    await reconciler.apply(want(state(3, digits=digits("3"))))
    assert (shelf.cancelled, shelf.serving) == ([D2], {"digits": "3"})


async def test_a_newer_state_goes_on_with_an_unfinished_load_that_it_wants_too() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    await reconciler.apply(want(ONE))
    gate = shelf.gates[D2] = asyncio.Event()
    await cancelled(await started(reconciler, PREPARING))
    again = await started(reconciler, state(3, digits=digits("2")))
    gate.set()
    await again
    assert shelf.loads == [D1, D2]
    assert (shelf.cancelled, shelf.serving) == ([], {"digits": "2"})


async def test_what_came_of_a_load_is_not_lost_on_another_that_waits_for_it() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    await reconciler.apply(want(BOTH))
    cats = ModelRef("cats", "2")
    gate = shelf.gates[cats] = asyncio.Event()
    moved = ModelState({"1": None, "2": None}, "2")
    await cancelled(await started(reconciler, state(2, digits=digits("1"), cats=moved)))
    again = await started(reconciler, state(3, digits=digits("2"), cats=moved))
    shelf.broken[cats] = ModelError("no")
    gate.set()
    report = await again
    assert shelf.loads[2:] == [cats, D2], "each once"
    assert [failure.ref for failure in report.failures] == [cats]
    assert shelf.serving == {"digits": "2", "cats": "1"}
    await reconciler.apply(want(state(3, digits=digits("2"), cats=moved)))
    assert shelf.loads[4:] == [cats], "a pass that begins anew tries again"


async def test_closing_cancels_what_is_under_way() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    shelf.gates[D1] = asyncio.Event()
    await cancelled(await started(reconciler, ONE))
    await reconciler.close()
    assert shelf.cancelled == [D1]


async def test_a_model_that_the_state_names_no_more_is_dropped() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=3)
    await reconciler.apply(want(BOTH))
    await reconciler.apply(want(TWO))
    assert shelf.serving == {"digits": "2"}


async def test_limits_reach_the_registry_with_the_state() -> None:
    shelf = Shelf()
    limits = LiveLimits(max_size=4, thresholds={"digit": 0.5})
    await Reconciler(shelf, max_loaded=3).apply(want(state(1, digits=digits("1", limits=limits))))
    assert shelf.limits == {"digits": limits}


async def test_the_settings_are_a_desired_state_too() -> None:
    shelf = Shelf()
    desired = settings_state({"digits": "1"}, "digits")
    assert (await Reconciler(shelf, max_loaded=3).apply(want(desired))).failures == ()
    assert shelf.table.models["digits"].generation is None


VERSIONS = ("1", "2", "3")
models = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(VERSIONS), min_size=1)


def all_known(number: int, active: Mapping[str, str]) -> DesiredState:
    """Return a state in which every model has every version."""
    states = {n: ModelState(dict.fromkeys(VERSIONS), version) for n, version in active.items()}
    return DesiredState("test", "e", number, next(iter(active)), states)


@given(
    history=st.lists(st.tuples(models, st.sets(st.sampled_from(VERSIONS)), st.booleans())),
    last=models,
)
async def test_whatever_fails_or_is_cut_short_what_is_served_was_wanted_once_and_ends_as_wanted(
    history: list[tuple[dict[str, str], set[str], bool]], last: dict[str, str]
) -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf, max_loaded=9)
    asked: set[tuple[str, str | None]] = {(name, None) for name in "abc"}
    for number, (active, broken, cut) in enumerate(history, 1):
        asked.update(active.items())
        shelf.broken = {ModelRef(n, v): ModelError("no") for n in "abc" for v in broken}
        if not cut:
            shelf.open_gates()
        elif not shelf.gates:
            shelf.gates = {ModelRef(n, v): asyncio.Event() for n in "abc" for v in VERSIONS}
        task = await started(reconciler, all_known(number, active))
        if cut:
            await cancelled(task)
        else:
            failed = {failure.ref.name for failure in (await task).failures}
            assert all(shelf.serving[name] == active[name] for name in active.keys() - failed)
        assert asked.issuperset(shelf.serving.items())
        served = {ModelRef(name, v) for name, v in shelf.serving.items() if v is not None}
        assert served <= shelf.numbers.keys()
    shelf.broken.clear()
    shelf.open_gates()
    # The first pass may wait for a load that had begun while its version was broken.
    await reconciler.apply(want(all_known(len(history) + 1, last)))
    report = await reconciler.apply(want(all_known(len(history) + 1, last)))
    assert (report.failures, shelf.serving) == ((), last)
