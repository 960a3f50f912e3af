"""The worker as a process: what signals ask of it, and how its memory behaves."""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator

import structlog

NOT_DRAINED = 7
"""Exit code of the contract: stopped before it was drained; nothing is lost."""

_ONE_SIGNAL_S = 0.5
_EXIT_SLACK_S = 15.0
_THREADS_S = 2.0
_GC_ALLOCATIONS = 20_000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BUFFER_BYTES = 32 << 20
_KEPT_BYTES = 64 << 20

log = structlog.get_logger(__name__)


def settle_memory() -> None:
    """Tune this process's memory for records that come and go."""
    # What is alive now lives as long as the worker: the collector need not look at it again,
    # nor so often at what records leave (measured: 1.4 to 3.9 us a record).
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 50)
    # Buffers of megabytes are needed again at once: giving them back to the system each time costs
    # their page faults (measured: 100 us for a picture of 120 kB, a sixth of the worker's CPU).
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BUFFER_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@contextlib.contextmanager
def signals(stop: asyncio.Event, *, deadline_s: float) -> Iterator[None]:
    """Drain at the first SIGTERM or SIGINT; end at once at a second, or when the drain hangs."""
    loop = asyncio.get_running_loop()
    last: list[threading.Timer] = []
    asked_s = 0.0

    def asked(name: str) -> None:
        nonlocal asked_s
        if stop.is_set():
            if time.monotonic() - asked_s < _ONE_SIGNAL_S:
                return  # the same one, sent to us and to our process group
            log.warning("second signal: stopping at once", signal=name)
            os._exit(NOT_DRAINED)
        asked_s = time.monotonic()
        log.info("draining", signal=name)
        stop.set()
        timer = threading.Timer(deadline_s + _EXIT_SLACK_S, os._exit, (NOT_DRAINED,))
        timer.daemon = True
        timer.start()
        last.append(timer)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number.name)
    try:
        yield
    finally:
        for timer in last:
            timer.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def end_soon(code: int, *, within_s: float = _THREADS_S) -> None:
    """Say that this process is done: it ends by itself, or by force when it has not in time.

    Python waits for its threads for ever, and one may read a disk or a network that hangs.
    """
    timer = threading.Timer(within_s, os._exit, (code,))
    timer.daemon = True
    timer.start()
