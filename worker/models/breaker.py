"""Whether to go on with what has failed: a pure state machine, the clock given with each call.

Closed while it works; open after so many failures in a row; half open when its time is over: one
trial then says whether it closes or opens again. It must not know what is tried.
"""

from enum import StrEnum


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

    def state(self, now_s: float) -> BreakerState:
        if self._opened_s is None:
            return BreakerState.CLOSED
        over = now_s - self._opened_s >= self._reset_timeout_s
        return BreakerState.HALF_OPEN if over else BreakerState.OPEN

    def passed(self) -> None:
        """Tell that it worked: closed, whatever was before."""
        self._in_a_row = 0
        self._opened_s = None

    def failed(self, now_s: float) -> None:
        """Tell that it failed. What fails while open was begun before, and prolongs nothing."""
        self._in_a_row += 1
        if self._in_a_row >= self._max_failures and self.state(now_s) is not BreakerState.OPEN:
            self._opened_s = now_s
