"""How much an engine has under way at once, and how fast it is, by what it said of itself.

It must not know what is in flight, nor how much of it there may be.
"""

from typing import NamedTuple, Self

from worker.protocol.messages import Loaded
from worker.protocol.page import RUN_LANES


class Capacity(NamedTuple):
    """Of one engine."""

    lanes: int
    """Those that decode; where runs are not bound they run batches too."""
    batches: int
    """Under way at once."""
    rate: float
    """Rows a second that it can run by the times of the warm-up, decoding aside; 0: not known."""

    @classmethod
    def of(cls, loaded: Loaded | None, lanes: int) -> Self:
        """Return that of an engine; None: it has not loaded yet.

        Where runs are bound one goes at a time; the next batch is copied meanwhile, and another
        one is being filled by all the lanes that decode.
        """
        if loaded is None:
            return cls(lanes, lanes, 0.0)
        batches, runs = (RUN_LANES + 1, 1) if loaded.bound else (lanes, lanes)
        row_ms = min((ms / int(size) for size, ms in loaded.service_ms.items()), default=0.0)
        return cls(lanes, batches, runs / row_ms * 1e3 if row_ms else 0.0)

    def rows(self, cap: int) -> int:
        """Return how many rows keep it busy, with so many in a batch; each lane has one of them."""
        return max(self.lanes, self.batches * cap)
