"""The breaker against what it promises, whatever passes, fails or is never heard of again."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from worker.models.breaker import Breaker, BreakerState

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker(max_failures=3, reset_timeout_s=60.0)
    for _ in range(3):
        breaker.failed(at_s)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(max_failures=3, reset_timeout_s=60.0)
    breaker.failed(0.0)
    breaker.failed(1.0)
    assert breaker.state(1.0) is CLOSED
    breaker.failed(2.0)
    assert breaker.state(2.0) is OPEN


def test_a_pass_between_failures_begins_the_row_anew() -> None:
    breaker = Breaker(max_failures=2, reset_timeout_s=60.0)
    for now_s in range(5):
        breaker.failed(now_s)
        breaker.passed()
    assert breaker.state(5.0) is CLOSED


@pytest.mark.parametrize(
    ("now_s", "state"), [(100.0, OPEN), (159.9, OPEN), (160.0, HALF_OPEN), (9999.0, HALF_OPEN)]
)
def test_it_is_half_open_when_its_time_is_over(now_s: float, state: BreakerState) -> None:
    assert opened(at_s=100.0).state(now_s) is state


def test_a_trial_that_passes_closes_it_and_one_failure_more_does_not_open_it() -> None:
    breaker = opened()
    breaker.passed()
    breaker.failed(61.0)
    assert breaker.state(61.0) is CLOSED


def test_a_trial_that_fails_opens_it_for_another_timeout() -> None:
    breaker = opened()
    breaker.failed(65.0)
    assert [breaker.state(124.9), breaker.state(125.0)] == [OPEN, HALF_OPEN]


def test_what_fails_while_it_is_open_prolongs_nothing() -> None:
    breaker = opened()
    breaker.failed(59.0)
    assert breaker.state(60.0) is HALF_OPEN


class Trials(RuleBasedStateMachine):
    """The model is the whole history: failures since the last pass, and openings."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(max_failures=3, reset_timeout_s=10.0)
        self.now_s = 0
        self.failures: list[int] = []
        """Since the last pass."""
        self.openings: list[int] = []
        """Since the last pass."""

    def half_open(self) -> bool:
        return bool(self.openings) and self.now_s >= self.openings[-1] + 10

    @rule(seconds=st.sampled_from([0, 1, 4, 9, 10, 25]))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule()
    def it_works(self) -> None:
        self.breaker.passed()
        self.failures, self.openings = [], []

    @rule()
    def it_fails(self) -> None:
        self.breaker.failed(self.now_s)
        self.failures.append(self.now_s)
        if len(self.failures) == 3 or self.half_open():
            self.openings.append(self.now_s)

    @invariant()
    def its_state_is_that_of_the_history(self) -> None:
        expected = CLOSED if len(self.failures) < 3 else HALF_OPEN if self.half_open() else OPEN
        assert self.breaker.state(self.now_s) is expected


TestTrials = Trials.TestCase
TestTrials.settings = settings(deadline=None)
