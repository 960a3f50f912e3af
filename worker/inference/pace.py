"""What a run may take, by the times of the warm-up: when it hangs, when its device became slow."""

from collections.abc import Mapping

_HANGING_FLOOR_S = 30.0
"""The largest picture allowed takes about 2 s to decode; ten times that on a starved machine."""
_HANGING_RUNS = 20
"""A run is hanging when it takes so many times the slowest one measured while warming."""
_RUNS = 200
_SLOW_RUNS = 3
"""More than 1 % of the runs: their 99th percentile is too slow."""
_SLOWER = 10
_FLOOR_MS = 100.0
"""What is faster may have waited for a core of a busy machine."""


def hanging_s(service_ms: Mapping[str, float]) -> float:
    """Return after how long a lane hangs; `service_ms` as for `Pace`."""
    slowest_s = max(service_ms.values(), default=0.0) / 1e3
    return max(_HANGING_FLOOR_S, _HANGING_RUNS * slowest_s)


class Pace:
    """The runs of one engine. `service_ms`: batch size -> milliseconds of a run when it loaded."""

    def __init__(self, service_ms: Mapping[str, float]) -> None:
        self._table = sorted((int(size), ms) for size, ms in service_ms.items())
        self._runs = 0
        self._slow = 0

    def jumped(self, rows: int, run_ms: float) -> bool:
        """Take a run of so many rows; tell whether too many of the last ones were far too slow."""
        usual_ms = self._usual_ms(rows)
        if usual_ms is None:
            return False
        self._runs += 1
        self._slow += run_ms > max(_FLOOR_MS, _SLOWER * usual_ms)
        if self._slow >= _SLOW_RUNS:
            return True
        if self._runs == _RUNS:
            self._runs = self._slow = 0
        return False

    def _usual_ms(self, rows: int) -> float | None:
        """Return the time of the next larger size that was measured, or more than the largest's."""
        for size, ms in self._table:
            if size >= rows:
                return ms
        if not self._table:
            return None
        size, ms = self._table[-1]
        return ms * rows / size
