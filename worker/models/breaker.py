"""Whether to go on with what has failed: a pure state machine, the clock given with each call.

Closed while it works; open after so many failures in a row; half open when its time is over: one
trial then says whether it closes or opens again. It must not know what is tried.
"""

from enum import StrEnum
from math import inf


class BreakerState(StrEnum):
    CLOSED = "closed"
    """Go on."""
    OPEN = "open"
    """Do not try."""
    HALF_OPEN = "half_open"
    """Try once."""


class Breaker:
    """One thing that may fail. Times are seconds of one clock that does not go back."""

    def __init__(self, max_failures: int, reset_timeout_s: float) -> None:
        self._max_failures = max_failures
        self._reset_timeout_s = reset_timeout_s
        self._in_a_row = 0
        self._opened_s: float | None = None
        self._tried_s = -inf
        """The last trial; when it opens anew, that is over before the next half-open time."""

    def state(self, now_s: float) -> BreakerState:
        if self._opened_s is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._over(self._opened_s, now_s) else BreakerState.OPEN

    def allows(self, now_s: float) -> bool:
        """Tell whether to try now. Half open, a yes is the one trial: only ask to act on it.

        A trial that nobody hears of again makes room for another after the same timeout.
        """
        state = self.state(now_s)
        if state is BreakerState.HALF_OPEN and self._over(self._tried_s, now_s):
            self._tried_s = now_s
            return True
        return state is BreakerState.CLOSED

    def passed(self) -> None:
        """Tell that it worked: closed, whatever was before."""
        self._in_a_row = 0
        self._opened_s = None

    def failed(self, now_s: float) -> None:
        """Tell that it failed. What fails while open was begun before, and prolongs nothing."""
        self._in_a_row += 1
        if self._in_a_row >= self._max_failures and self.state(now_s) is not BreakerState.OPEN:
            self._opened_s = now_s

    def _over(self, since_s: float, now_s: float) -> bool:
        return now_s - since_s >= self._reset_timeout_s
