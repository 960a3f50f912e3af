"""How many records an engine has at a time: enough to keep it busy, no more.

What is inside an engine cannot be routed elsewhere, and is run again when the engine dies.
"""

import time
from collections.abc import Callable

WINDOW_BYTES = 64 << 20
"""Encoded bytes inside an engine, at most, but for one record that is larger."""
_AHEAD_S = 0.1
"""Work that an engine has ahead of it: longer than any pause of the loop that feeds it."""
_MEASURE_S = 0.25


class Window:
    """Counts what one engine serves; it has room for so many batches at least.

    Twice as many as it has under way at once. `cap`: rows of a batch, as the engine says at first;
    `least`: rows, however small its batches are.
    """

    def __init__(
        self,
        batches: int,
        *,
        cap: int = 1,
        least: int = 0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batches = batches
        self._least = least
        self.cap = cap
        """As it said last."""
        self._clock_s = clock_s
        self._rate = 0.0
        self._ahead_rows = 0
        self._served = 0
        self._since_s = clock_s()

    @property
    def rows(self) -> int:
        """Records that may be inside at a time."""
        return max(self._batches * self.cap, self._least, self._ahead_rows)

    def seconds(self, rows: int) -> float:
        """Return how long so many records take at the rate of late; 0 before there is one."""
        return rows / self._rate if self._rate else 0.0

    def served(self, rows: int) -> None:
        """Count records that were served; the window follows the measured rate."""
        self._served += rows
        elapsed_s = self._clock_s() - self._since_s
        if elapsed_s < _MEASURE_S:
            return
        self._rate = (self._rate + self._served / elapsed_s) / 2
        self._served = 0
        self._since_s += elapsed_s
        self._ahead_rows = round(self._rate * _AHEAD_S)

    def worth_filling(self, inside: int) -> bool:
        """Say whether a quarter is free: below that it is busy, and a message costs more."""
        rows = self.rows
        return rows - inside >= rows // 4

    def has_room(self, inside: int, inside_bytes: int) -> bool:
        """Say whether another record may go in; into an empty engine always."""
        return inside == 0 or (inside < self.rows and inside_bytes < WINDOW_BYTES)
