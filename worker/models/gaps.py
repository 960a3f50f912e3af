"""How long nothing came out of a model when its version changed.

That is from the old's last to the new's first outcome, where the old had something to do: else
nobody waited.
"""

from collections.abc import Callable

from worker.types import ModelRef


class SwitchGaps:
    """The switches under way, by model; `measured` is told the seconds of each."""

    def __init__(self, measured: Callable[[str, float], None]) -> None:
        self._measured = measured
        self._open: dict[str, tuple[ModelRef, float]] = {}

    def switched(self, to: ModelRef, now_s: float, *, busy: bool) -> None:
        """Begin to measure; `busy`: the version before has records in flight."""
        if busy:
            self._open[to.name] = to, now_s
        else:
            self._open.pop(to.name, None)

    def served(self, ref: ModelRef, now_s: float) -> None:
        """Take note of outcomes of a version."""
        under_way = self._open.get(ref.name)
        if under_way is None:
            return
        to, last_s = under_way
        if ref == to:
            del self._open[ref.name]
            self._measured(ref.name, now_s - last_s)
        else:
            self._open[ref.name] = to, now_s
