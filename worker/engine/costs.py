"""What a batch costs, by its size: measured while warming and at every run, and the best size.

Pure: no clock, no threads, nothing imported but the standard library. Sizes are rows, times are
seconds. The rules are Nexus's and Clockwork's: a table of recent service times for each size, and
the smallest batch that is nearly as efficient as the best and fits the service level objective.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_ALPHA = 0.1
"""Weight of the newest run in a running mean."""
_STALE_RUNS = 10
"""A size that has not run for so many runs moves with those that have: the machine became slower
or unsteady, not they alone. Left as it was it would look better than it is."""
_EVERY_SIZE = 16
"""Where any size can be run, each up to here is a bucket of its own; above, powers of two."""

_KNEE = 0.05
_KNEE_OF_BACKLOG = 0.01
"""What a batch may be less efficient than the best: as little as matters, for less waiting."""
GAIN = 0.02
"""What four times the rows must gain at least for still larger ones to be warmed."""
BESIDE_S = 0.25e-3
"""What a batch costs beside its run: two messages, and the turns of lanes and of the worker's loop.
Measured, CPU of both processes for a record of mnist8 by the size of its batches (2, 4, 8, 16): 0.3
ms a batch. Without it a batch of three tiny rows looks as efficient as one of sixty."""
_SHARE = 0.5
"""Of the objective that a run may take: a record waits for one run, and is in the next."""


class Took(NamedTuple):
    """What a batch took, from its rows to its predictions."""

    seconds: float
    work_s: float
    """Of these, what a lane computed by itself: not while others had its core. Where it is the
    device, or a pool of threads, that computes: all of them."""


@dataclass(slots=True)
class _Cost:
    """Of one bucket: running means."""

    mean_s: float
    work_s: float
    """What is efficient goes by this: on a busy machine a batch of 1 ms takes 1 or 4, and the size
    that was lucky of late would look best."""
    deviation_s: float = 0.0
    """Mean absolute deviation."""
    ran: int = -_STALE_RUNS
    """Number of the run that it was last in."""


class Costs:
    """Service time of each bucket of batch sizes. `exact`: any size can be run as it is.

    Else only buckets can, and fewer rows are padded: a graph of a fixed batch, or a device that
    prepares itself anew for every shape. `first` is the smallest bucket. `beside_s`: what a batch
    costs beside its run; it counts for what is efficient, not for how long a batch may take.
    """

    def __init__(self, *, exact: bool = True, first: int = 1, beside_s: float = 0.0) -> None:
        self._exact = exact
        self._first = first
        self._beside_s = beside_s
        self._table: dict[int, _Cost] = {}
        self._sizes: list[int] = []
        self._runs = 0

    @property
    def largest(self) -> int:
        """The largest bucket that was warmed; 0: none."""
        return self._sizes[-1] if self._sizes else 0

    @property
    def times_s(self) -> dict[int, float]:
        """Buckets -> seconds of one run."""
        return {size: self._table[size].mean_s for size in self._sizes}

    def next_size(self, most: int, *, slo_s: float | None, gain: float = GAIN) -> int | None:
        """Return the bucket to warm next; None: those that may be used are all there.

        `slo_s`: sizes are chosen by their cost, so that it ends where larger ones have no use: not
        even a backlog may run longer than this, or the largest does not gain so much over sizes of
        up to a quarter of it.
        """
        top = self.largest
        if not top:
            return self._first
        if top >= most or (slo_s is not None and self._is_enough(slo_s, gain)):
            return None
        return min(most, 2 * top)

    def seed(self, size: int, took: Took) -> None:
        """Note what a run took while warming; sizes come in their order.

        Buckets between the one before and this one are taken to lie on the line between both.
        """
        below = self.largest
        if below and self._exact:
            start = self._table[below]
            for between in range(below + 1, min(size, _EVERY_SIZE + 1)):
                far = (between - below) / (size - below)
                self._put(
                    between,
                    start.mean_s + far * (took.seconds - start.mean_s),
                    start.work_s + far * (took.work_s - start.work_s),
                )
        self._put(size, *took)

    def observe(self, rows: int, took: Took) -> None:
        """Note what a run took; a size that is no bucket teaches nothing."""
        cost = self._table.get(self.whole(rows))
        if cost is None or took.seconds <= 0:
            return
        mean_s, work_s = cost.mean_s, cost.work_s
        cost.mean_s += _ALPHA * (took.seconds - mean_s)
        cost.work_s += _ALPHA * (max(took.work_s, 1e-9) - work_s)
        cost.deviation_s += _ALPHA * (abs(took.seconds - mean_s) - cost.deviation_s)
        self._runs += 1
        cost.ran = self._runs
        stale = [o for o in self._table.values() if self._runs - o.ran >= _STALE_RUNS]
        # Each of those that run sees the machine become slower: together they tell of it once.
        weight = 1 / (len(self._table) - len(stale))
        pace, pace_of_work = (cost.mean_s / mean_s) ** weight, (cost.work_s / work_s) ** weight
        shakiness = cost.deviation_s / cost.mean_s
        for other in stale:
            other.mean_s *= pace
            other.work_s *= pace_of_work
            other.deviation_s = other.mean_s * shakiness

    def whole(self, rows: int) -> int:
        """Return how many rows really run when so many are asked for."""
        if self._exact:
            return rows
        at = bisect_right(self._sizes, rows - 1)
        return self._sizes[at] if at < len(self._sizes) else rows

    def knee(self, most: int, *, backlog: bool = False) -> int:
        """Return the smallest size that is nearly as efficient as the best of at most `most`."""
        sizes = self._upto(most)
        less = _KNEE_OF_BACKLOG if backlog else _KNEE
        wanted = (1 - less) * max(map(self._rate, sizes), default=0.0)
        return min(most, next((size for size in sizes if self._rate(size) >= wanted), most))

    def cap(self, most: int, *, slo_s: float, backlog: bool) -> int:
        """Return how many rows a batch shall have at most: the knee, or what the objective allows.

        A backlog beyond the objective is served sooner by larger batches, never by smaller ones.
        """
        sizes = self._upto(most)
        bound_s = slo_s * (1.0 if backlog else _SHARE)
        short = [size for size in sizes if self._surely_s(size) <= bound_s]
        return min(self.knee(most, backlog=backlog), max(short, default=self._first))

    def probe(self, cap: int, most: int, *, slo_s: float) -> int:
        """Return a size above the cap that should be tried, or the cap: none may take that long.

        What is above the cap never runs, and would for ever be what it was by one bad measurement.
        """
        larger = [size for size in self._upto(most) if size >= 2 * cap]
        return next((size for size in larger if self._table[size].mean_s <= slo_s), cap)

    def takes(self, cap: int) -> tuple[int, ...]:
        """Return how many rows to run, by how many are ready (up to `cap`); empty: all of them.

        Down to a bucket, unless all of them padded up to the next one are more efficient.
        """
        return () if self._exact else tuple(self._take(ready, cap) for ready in range(cap + 1))

    def _take(self, ready: int, cap: int) -> int:
        sizes = self._upto(cap)
        at = bisect_right(sizes, ready)
        if at == 0:  # less than the smallest bucket
            return ready
        down = sizes[at - 1]
        if at == len(sizes):
            return down
        padded = ready / self._batch_s(sizes[at])
        return down if self._rate(down) >= padded else ready

    def _put(self, size: int, seconds: float, work_s: float) -> None:
        self._table[size] = _Cost(max(seconds, 1e-9), max(work_s, 1e-9))
        self._sizes.append(size)

    def _upto(self, most: int) -> Sequence[int]:
        """Return the buckets up to `most`; the smallest one always."""
        return self._sizes[: max(1, bisect_right(self._sizes, most))]

    def _rate(self, size: int) -> float:
        return size / self._batch_s(size)

    def _batch_s(self, size: int) -> float:
        return self._table[size].work_s + self._beside_s

    def _surely_s(self, size: int) -> float:
        cost = self._table[size]
        return cost.mean_s + 2 * cost.deviation_s

    def _is_enough(self, slo_s: float, gain: float) -> bool:
        top = self.largest
        if self._table[top].mean_s > slo_s:
            return True
        smaller = [self._rate(size) for size in self._sizes if size <= top // 4]
        return bool(smaller) and self._rate(top) < (1 + gain) * max(smaller)
