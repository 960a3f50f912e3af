"""Named failpoints: places where a test makes a process fail for real. Free when off.

DARKROOM_FAILPOINT = `NAME=ACTION[@MARK][?FILE]`, several with `;`. Names: after_fetch after_decode
before_run after_run after_send before_commit. Actions: `kill` (SIGKILL of the process that meets
it: what the kernel does to one that is out of memory), `abort`, `segfault`, `hang` (that thread
sleeps for ever), `freeze` (it sleeps and holds the interpreter: no thread of Python goes on),
`spin` (it never ends and keeps a core busy), `allocate` (it takes memory, and fills it, until the
kernel or a limit ends that; a gigabyte at most), `gpu-fault` (a kernel on the GPU writes where no
memory is: `gpu_fault.py`), `raise`. MARK: act only for data that contain these bytes (an image, a
key); without it always. FILE: act once, while there is such a file; it is removed first, so that
the next process does not meet it again.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from worker.protocol.gpu_fault import write_astray

Buffer = bytes | bytearray | memoryview

_ALLOCATED_BYTES = 1 << 30
_PIECE_BYTES = 1 << 24


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


def _segfault() -> None:
    ctypes.string_at(0)


def _freeze() -> None:
    while True:
        ctypes.PyDLL(None).sleep(3600)


def _spin() -> None:
    while True:
        pass


def _allocate() -> None:
    pieces = range(0, _ALLOCATED_BYTES, _PIECE_BYTES)
    taken = [b"x" * _PIECE_BYTES for _ in pieces]
    raise MemoryError(f"failpoint: allocate had all of its {len(taken)} pieces")


def _raise() -> None:
    raise RuntimeError("failpoint: raise")


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "abort": os.abort,
    "segfault": _segfault,
    "hang": _hang,
    "freeze": _freeze,
    "spin": _spin,
    "allocate": _allocate,
    "gpu-fault": write_astray,
    "raise": _raise,
}


class _Armed(NamedTuple):
    act: Callable[[], None]
    mark: bytes
    once: Path | None

    def goes_off(self, data: tuple[Buffer, ...]) -> bool:
        if self.mark and not any(self.mark in bytes(item) for item in data):
            return False
        if self.once is None:
            return True
        try:
            self.once.unlink()
        except FileNotFoundError:
            return False
        return True


class Failpoints:
    """The failpoints of one process. Falsy when none is set, so that a hot path asks one bool."""

    def __init__(self, spec: str | None = None) -> None:
        self._points: dict[Failpoint, list[_Armed]] = {}
        for part in filter(None, (spec or "").split(";")):
            name, _, action = part.partition("=")
            action, _, file = action.partition("?")
            verb, _, mark = action.partition("@")
            if name not in set(Failpoint) or verb not in _ACTIONS:
                raise ValueError(
                    f"failpoint {part!r}: expected NAME=ACTION[@MARK][?FILE] with NAME one of "
                    f"{', '.join(Failpoint)} and ACTION one of {', '.join(_ACTIONS)}"
                )
            armed = _Armed(_ACTIONS[verb], mark.encode(), Path(file) if file else None)
            self._points.setdefault(Failpoint(name), []).append(armed)

    def __bool__(self) -> bool:
        return bool(self._points)

    def hit(self, point: Failpoint, *data: Buffer) -> None:
        """Act where this point is set and, if it has a mark, one of the data contains it."""
        for armed in self._points.get(point, ()):
            if armed.goes_off(data):
                armed.act()
