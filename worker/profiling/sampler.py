"""Samples the Python stacks of all threads of this process, by the clock.

A thread that waits is found waiting: what is counted is time, not work.
"""

import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType

from worker.profiling.recording import Samples

_EVERY_S = 0.01


def sampled(seconds: float, stopped: threading.Event) -> Samples:
    """Sample all threads but the calling one, for so long or until stopped; blocks."""
    sampler = _Sampler()
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0 and not stopped.wait(min(_EVERY_S, left_s)):
        sampler.take()
    return sampler.samples()


def function_names(frame: FrameType | None) -> list[str]:
    """Return `module.qualname` of a frame and of those that called it, in this order."""
    return [
        f"{each.f_globals.get('__name__', '?')}.{each.f_code.co_qualname}"
        for each in _callers(frame)
    ]


class _Sampler:
    def __init__(self) -> None:
        self._own = threading.get_ident()
        self._threads: dict[int, str] = {}
        self._index: dict[tuple[int, ...], int] = {}
        self._stacks: list[list[str]] = []
        self._codes: list[list[CodeType]] = []
        """Kept, so that the identity of a function is not used again for another one."""
        self._taken: list[tuple[float, int, int]] = []

    def take(self) -> None:
        now_s = time.monotonic()
        for thread, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way
            if thread != self._own:
                self._name(thread)
                self._taken.append((now_s, thread, self._stack(frame)))

    def samples(self) -> Samples:
        names = {str(thread): name for thread, name in self._threads.items()}
        return Samples(names, self._stacks, self._taken)

    def _name(self, thread: int) -> None:
        if thread not in self._threads:
            alive = {each.ident: each.name for each in threading.enumerate()}
            self._threads[thread] = alive.get(thread, "native")

    def _stack(self, frame: FrameType) -> int:
        """Return the index of a stack: most were seen before, and are not written out again."""
        codes = [each.f_code for each in _callers(frame)]
        key = tuple(map(id, codes))
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self._stacks)
            self._stacks.append(function_names(frame)[::-1])
            self._codes.append(codes)
        return index


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
