"""The bounds of one engine's batches, by what its runs cost: sizes are warmed, measured, chosen.

It must not know lanes, records or the channel; how a size is run, and who applies the bounds, is
given.
"""

import threading
from collections.abc import Callable

from worker.engine.batcher import Bounds
from worker.engine.costs import GAIN, Costs, Took
from worker.engine.session import RUN_ERRORS
from worker.types import Limits

_EVERY_RUNS = 20
"""Bounds are chosen anew so often, and whenever the limits change."""
_PROBE_EVERY = 100
"""Of these choices one is a probe, for a hundredth of the batches."""
_GAIN_WHILE_SERVING = 0.10
"""What the largest size must gain for larger ones to be warmed while serving: no mere noise."""


def bounds(
    costs: Costs, most: int, limits: Limits, *, backlog: bool, probing: bool = False
) -> Bounds:
    """Return what bounds batches of at most `most` rows; `probing`: larger ones than are best."""
    slo_s = limits.slo_ms / 1e3
    if limits.adaptive:
        cap = costs.cap(most, slo_s=slo_s, backlog=backlog)
        cap = enough = costs.probe(cap, most, slo_s=slo_s) if probing else cap
    else:
        cap, enough = most, costs.knee(most)
    return Bounds(cap, limits.min_size, limits.max_wait_ms / 1e3, enough, costs.takes(cap))


def start_aside(work: Callable[[], None]) -> None:
    """Do work on a thread that does not keep the engine from ending."""
    threading.Thread(target=work, name="warm", daemon=True).start()


class Sizing:
    """Chooses the bounds of an engine's batches. Safe for any thread.

    `allowed`: rows that limits allow. `warm`: what a batch of so many rows takes. `tell` is
    given new bounds, on the thread that brought them about; it must not call back, nor wait: all
    lanes would. `warmed` may: it is called when sizes have been warmed, before they are used.
    """

    def __init__(
        self,
        costs: Costs,
        limits: Limits,
        *,
        allowed: Callable[[Limits], int],
        warm: Callable[[int], Took],
        tell: Callable[[Bounds], None],
        warmed: Callable[[], None] = lambda: None,
        aside: Callable[[Callable[[], None]], None] = start_aside,
    ) -> None:
        self._costs = costs
        self._limits = limits
        self._allowed = allowed
        self._warm = warm
        self._tell = tell
        self._warmed = warmed
        self._aside = aside
        self._lock = threading.Lock()
        self._runs = 0
        self._behind_s = 0.0
        self._refused: int | None = None
        """A size that could not be run."""
        self._widening = False
        self._closed = False
        self._usable = costs.largest
        """The largest size that was warmed, and told of."""
        self.bounds = self._chosen()
        """The latest ones."""

    @property
    def most(self) -> int:
        """Rows of a batch, at most, whatever is measured: warmed, and within all limits."""
        return min(self._allowed(self._limits), self._usable or 1)

    def ran(self, rows: int, took: Took) -> None:
        """Note what a batch took."""
        with self._lock:
            self._costs.observe(rows, took)
            self._runs += 1
            choices, rest = divmod(self._runs, _EVERY_RUNS)
        if rest == 0:
            self.choose(probing=choices % _PROBE_EVERY == 0)

    def behind(self, seconds: float) -> None:
        """Note how long what waits in the worker will take."""
        self._behind_s = seconds

    def limit(self, limits: Limits) -> None:
        """Keep to these limits from now on; sizes that they allow and are new are warmed aside."""
        self._limits = limits
        self.choose()

    def widen(self) -> None:
        """Warm the sizes that batches may have, smallest first, while they may be of use.

        Raises one of RUN_ERRORS when one cannot be run.
        """
        try:
            while (size := self._next_size()) is not None:
                took = self._warm(size)
                with self._lock:
                    self._costs.seed(size, took)
        finally:
            self._warmed()
            self._usable = self._costs.largest

    def close(self) -> None:
        """Warm nothing more."""
        self._closed = True

    def choose(self, *, probing: bool = False) -> None:
        """Choose anew: what is allowed, or what runs cost, has changed."""
        with self._lock:
            chosen = self._chosen(probing=probing)
            if chosen != self.bounds:
                self.bounds = chosen
                self._tell(chosen)
            start = not self._widening and self._next_size(_GAIN_WHILE_SERVING) is not None
            self._widening = self._widening or start
        if start:
            self._aside(self._widen)

    def _chosen(self, *, probing: bool = False) -> Bounds:
        limits = self._limits
        backlog = self._behind_s > limits.slo_ms / 1e3
        return bounds(self._costs, self.most, limits, backlog=backlog, probing=probing)

    def _next_size(self, gain: float = GAIN) -> int | None:
        limits = self._limits
        slo_s = limits.slo_ms / 1e3 if limits.adaptive else None
        size = self._costs.next_size(self._allowed(limits), slo_s=slo_s, gain=gain)
        return None if self._closed or size == self._refused else size

    def _widen(self) -> None:
        try:
            self.widen()
        except RUN_ERRORS:  # what was warmed before is served as it was
            self._refused = self._next_size()
        with self._lock:
            self._widening = False
        self.choose()
