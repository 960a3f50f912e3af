"""The ladder's table: states, what happens, and what follows; the clock is in the test's hand."""

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.inference.ladder import (
    FIRST_PAUSE_S,
    LAST_PAUSE_S,
    MAX_FAULTS,
    WINDOW_S,
    DeviceState,
    Ladder,
)

OK, SUSPECT, RESTARTING, FALLBACK, PROBING = DeviceState
NOW_S = 1000.0
DUE_S = NOW_S + FIRST_PAUSE_S

Step = Callable[[Ladder], None]


def fails(ladder: Ladder, now_s: float = NOW_S) -> None:
    ladder.failed(now_s)


def is_suspect(ladder: Ladder) -> None:
    ladder.failed(NOW_S, suspect=True)


def loads(ladder: Ladder, now_s: float = NOW_S) -> None:
    ladder.loaded(now_s)


def starts(ladder: Ladder) -> None:
    ladder.starting()


def gives_up(ladder: Ladder) -> None:
    ladder.given_up()


def out(*, to_cpu: bool = True) -> Ladder:
    ladder = Ladder(to_cpu=to_cpu)
    for _ in range(MAX_FAULTS):
        fails(ladder)
    return ladder


def at(state: DeviceState) -> Ladder:
    """Return a device in a state."""
    if state in {FALLBACK, PROBING}:
        ladder = out()
        if state is PROBING:
            ladder.starting()
    else:
        ladder = Ladder(to_cpu=True)
        if state is not OK:
            ladder.failed(NOW_S, suspect=state is SUSPECT)
    assert ladder.state is state
    return ladder


@pytest.mark.parametrize(
    ("before", "step", "after"),
    [
        (OK, starts, OK),
        (OK, loads, OK),
        (OK, gives_up, OK),
        (OK, fails, RESTARTING),
        (OK, is_suspect, SUSPECT),
        (SUSPECT, starts, SUSPECT),
        (SUSPECT, loads, OK),
        (SUSPECT, gives_up, SUSPECT),
        (SUSPECT, fails, RESTARTING),
        (SUSPECT, is_suspect, SUSPECT),
        (RESTARTING, starts, RESTARTING),
        (RESTARTING, loads, OK),
        (RESTARTING, gives_up, RESTARTING),
        (RESTARTING, fails, RESTARTING),
        (RESTARTING, is_suspect, SUSPECT),
        (FALLBACK, starts, PROBING),
        (FALLBACK, loads, FALLBACK),
        (FALLBACK, gives_up, FALLBACK),
        (FALLBACK, fails, FALLBACK),
        (FALLBACK, is_suspect, FALLBACK),
        (PROBING, starts, PROBING),
        (PROBING, loads, OK),
        (PROBING, gives_up, FALLBACK),
        (PROBING, fails, FALLBACK),
        (PROBING, is_suspect, FALLBACK),
    ],
)
def test_every_state_has_an_answer_to_everything(
    before: DeviceState, step: Step, after: DeviceState
) -> None:
    ladder = at(before)
    step(ladder)
    assert ladder.state is after


@pytest.mark.parametrize("step", [fails, is_suspect])
def test_the_third_fault_within_ten_minutes_puts_a_device_out_of_use(step: Step) -> None:
    ladder = Ladder(to_cpu=True)
    fails(ladder, NOW_S - WINDOW_S + 1)
    loads(ladder, NOW_S - WINDOW_S + 2)
    fails(ladder, NOW_S - 1)
    loads(ladder, NOW_S - 1)
    assert ladder.usable
    step(ladder)
    assert (ladder.state, ladder.usable, ladder.wait_s(NOW_S)) == (FALLBACK, False, FIRST_PAUSE_S)


def test_faults_that_are_long_ago_do_not_count() -> None:
    ladder = Ladder(to_cpu=True)
    for number in range(10):
        fails(ladder, NOW_S + number * WINDOW_S / 2)
        assert ladder.usable


def test_a_device_in_use_is_never_waited_for() -> None:
    for state in (OK, SUSPECT, RESTARTING):
        assert at(state).wait_s(NOW_S) == 0.0


def test_out_of_use_there_is_one_trial_at_a_time() -> None:
    ladder = out()
    assert [ladder.wait_s(now_s) for now_s in (NOW_S, DUE_S - 1, DUE_S + 1)] == [60.0, 1.0, 0.0]
    starts(ladder)
    assert ladder.wait_s(DUE_S + 1) == inf
    gives_up(ladder)
    assert ladder.wait_s(DUE_S + 1) == 0.0, "another may try at once: nothing was shown"


def test_the_pause_doubles_with_every_trial_that_fails_up_to_ten_minutes() -> None:
    ladder, pauses, now_s = out(), [], DUE_S
    for _ in range(6):
        starts(ladder)
        fails(ladder, now_s)
        pauses.append(ladder.wait_s(now_s))
        now_s += pauses[-1]
    assert pauses == [120.0, 240.0, 480.0, LAST_PAUSE_S, LAST_PAUSE_S, LAST_PAUSE_S]


def test_a_device_that_is_back_begins_anew_unless_it_falls_out_soon_again() -> None:
    ladder = out()
    starts(ladder)
    loads(ladder, DUE_S)
    for _ in range(MAX_FAULTS):
        assert ladder.usable
        fails(ladder, DUE_S + 1)
    assert ladder.wait_s(DUE_S + 1) == 2 * FIRST_PAUSE_S
    back_s = DUE_S + 1000
    starts(ladder)
    loads(ladder, back_s)
    for _ in range(MAX_FAULTS):
        fails(ladder, back_s + WINDOW_S)
    assert ladder.wait_s(back_s + WINDOW_S) == FIRST_PAUSE_S


def test_engines_that_end_one_after_the_other_do_not_put_off_the_trial() -> None:
    ladder = out()
    fails(ladder, DUE_S - 1)
    assert ladder.wait_s(DUE_S) == 0.0


def test_where_the_cpu_may_not_serve_it_goes_on_probing() -> None:
    ladder = out(to_cpu=False)
    assert ladder.state is PROBING
    starts(ladder)
    fails(ladder, DUE_S)
    assert (ladder.state, ladder.wait_s(DUE_S)) == (PROBING, 120.0)
    starts(ladder)
    loads(ladder, DUE_S + 120)
    assert ladder.state is OK


steps = st.lists(st.tuples(st.sampled_from(range(5)), st.floats(0, 400)), max_size=40)


@given(steps=steps)
def test_whatever_happens_a_device_can_come_back(steps: list[tuple[int, float]]) -> None:
    ladder, now_s = Ladder(to_cpu=True), NOW_S
    for kind, later_s in steps:
        now_s += later_s
        match kind:
            case 0 if ladder.wait_s(now_s) == 0.0:
                ladder.starting()
            case 1:
                ladder.loaded(now_s)
            case 2 | 3:
                ladder.failed(now_s, suspect=kind == 2)
            case 4:
                ladder.given_up()
        assert ladder.usable == (ladder.state not in {FALLBACK, PROBING})
        assert ladder.wait_s(now_s) <= LAST_PAUSE_S or ladder.state is PROBING
    ladder.given_up()
    now_s += LAST_PAUSE_S
    assert ladder.wait_s(now_s) == 0.0
    ladder.starting()
    ladder.loaded(now_s)
    assert ladder.state is OK
