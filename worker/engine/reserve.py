"""One counter of bytes that lanes reserve before they decode: a bound that one can state."""

import threading
from collections import deque

from worker.errors import RecordFault
from worker.types import Reason


class Reserve:
    """Bytes for decoding, first come, first served: small pictures never starve a big one."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._free_bytes = total_bytes
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[object] = deque()

    def take(self, needed_bytes: int) -> None:
        """Take so many bytes, waiting until they can be had; `give` them back.

        Raises RecordFault for a picture that needs more than there are in all.
        """
        if needed_bytes > self.total_bytes:
            raise RecordFault(
                Reason.IMAGE_TOO_MANY_PIXELS,
                f"decoding it needs {needed_bytes} bytes, "
                f"more than limits.decode_bytes = {self.total_bytes}",
            )
        with self._lock:
            if self._waiting or self._free_bytes < needed_bytes:
                self._queue(needed_bytes)
            self._free_bytes -= needed_bytes

    def give(self, taken_bytes: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._free_bytes += taken_bytes
            if self._waiting:
                self._changed.notify_all()

    def _queue(self, needed_bytes: int) -> None:
        turn = object()
        self._waiting.append(turn)
        self._changed.wait_for(
            lambda: self._waiting[0] is turn and self._free_bytes >= needed_bytes
        )
        self._waiting.popleft()
        self._changed.notify_all()
