"""How long to wait before an engine is started once more."""

import random
from collections.abc import Callable

_MAX_DELAY_S = 30.0


class Backoff:
    """Seconds to wait before the next engine: 0, 1, 2, 4 ... 30, each with up to a half less."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        """Return how long to wait after one more failure."""
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return min(_MAX_DELAY_S, 2.0 ** min(self._failures - 2, 10)) * (1 - self._jitter() / 2)
