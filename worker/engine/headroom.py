"""How many rows a batch may have where there was no memory for more: halved at once, grown slowly.

For what took the memory may have gone. It must not know sessions or lanes.
"""

import threading

_FIRST_BATCHES = 64
_MOST_BATCHES = 4096
"""So many batches must find their memory before the cap is doubled; from one time to the next twice
as many, for a device that really has no more gets an error each time."""


class Headroom:
    """The cap by memory. `rows` is None while there has always been enough. Safe for any thread."""

    def __init__(self) -> None:
        self.rows: int | None = None
        self._lock = threading.Lock()
        self._found = 0
        self._wanted = _FIRST_BATCHES

    def lacked(self, rows: int) -> None:
        """Note that there was no memory for so many rows."""
        half = max(1, rows // 2)
        with self._lock:
            self._hold(min(half, self.rows or half))

    def hold(self, rows: int) -> None:
        """Let no batch be larger, until it has been found to fit often enough."""
        with self._lock:
            self._hold(rows)

    def found(self, rows: int) -> None:
        """Note a batch that found its memory. Half of a full one may be all that is ever run."""
        with self._lock:
            if self.rows is None or 2 * rows <= self.rows:
                return
            self._found += 1
            if self._found >= self._wanted:
                self._wanted = min(_MOST_BATCHES, 2 * self._wanted)
                self._hold(2 * self.rows)

    def _hold(self, rows: int) -> None:
        self.rows, self._found = rows, 0
