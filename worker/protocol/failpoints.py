"""Named failpoints: places where a test makes a process fail for real. Free when off.

DARKROOM_FAILPOINT = `NAME=ACTION[@MARK]`, several with `;`. Names: after_fetch after_decode
before_run after_run after_send before_commit. Actions: `kill` (SIGKILL of the process that meets
it), `abort`, `hang` (that thread sleeps for ever), `raise`. MARK: act only for data that contain
these bytes (an image, a key); without it always.
"""

import os
import signal
import time
from collections.abc import Callable
from enum import StrEnum

Buffer = bytes | bytearray | memoryview


class Failpoint(StrEnum):
    AFTER_FETCH = "after_fetch"
    AFTER_DECODE = "after_decode"
    BEFORE_RUN = "before_run"
    AFTER_RUN = "after_run"
    AFTER_SEND = "after_send"
    BEFORE_COMMIT = "before_commit"


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    while True:
        time.sleep(3600)


def _raise() -> None:
    raise RuntimeError("failpoint: raise")


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "abort": os.abort,
    "hang": _hang,
    "raise": _raise,
}


class Failpoints:
    """The failpoints of one process. Falsy when none is set, so that a hot path asks one bool."""

    def __init__(self, spec: str | None = None) -> None:
        self._points: dict[Failpoint, tuple[Callable[[], None], bytes]] = {}
        for part in filter(None, (spec or "").split(";")):
            name, _, action = part.partition("=")
            verb, _, mark = action.partition("@")
            if name not in set(Failpoint) or verb not in _ACTIONS:
                raise ValueError(
                    f"failpoint {part!r}: expected NAME=ACTION[@MARK] with NAME one of "
                    f"{', '.join(Failpoint)} and ACTION one of {', '.join(_ACTIONS)}"
                )
            self._points[Failpoint(name)] = (_ACTIONS[verb], mark.encode())

    def __bool__(self) -> bool:
        return bool(self._points)

    def hit(self, point: Failpoint, *data: Buffer) -> None:
        """Act if this point is set and, where it has a mark, one of the data contains it."""
        if point not in self._points:
            return
        act, mark = self._points[point]
        if not mark or any(mark in bytes(item) for item in data):
            act()
