"""How a benchmark ends that is asked to: soon, with what it measured, and with all that it started.

SIGTERM, SIGINT (Ctrl-C) and the end of its time raise `Ended` on the main thread, so every `with`
and `finally` on the way out ends what it began. Nothing interrupts that a second time; but after
`CLEAN_S` it is not waited for any more. Every process that is still below this one then is killed:
one that was just being started, when nothing had taken charge of it, too.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import psutil

from benchmarks.report import Report

CLEAN_S = 15.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


class Ended(SystemExit):
    """The benchmark was asked to end, or its time is up; the exit code is a shell's, 128 + N."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        name = signal.Signals(number).name
        self.why = "its time was up" if number == signal.SIGALRM else f"ended by {name}"


@contextlib.contextmanager
def ending(report: Report, *, limit_s: float | None = None) -> Iterator[None]:
    """Let the block be ended from outside, or after so many seconds; finish the report either way.

    For the outermost block of a process: it takes the signals for good.
    """
    for number in _SIGNALS:
        signal.signal(number, _asked)
    if limit_s is not None:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    except Ended as end:
        report.say(f"PARTIAL: {end.why}; the figures above are all that was measured until then")
        report.finish(partial=end.why)
        _kill_below()
        raise
    report.finish()


def _asked(number: int, _: FrameType | None) -> NoReturn:
    for each in _SIGNALS:
        signal.signal(each, _heard)
    cut = threading.Timer(CLEAN_S, _cut, (128 + number,))
    cut.daemon = True
    cut.start()
    raise Ended(number)


def _heard(_: int, __: FrameType | None) -> None:
    """Do nothing: it is ending. (What is ignored, a process started now would ignore too.)"""


def _cut(code: int) -> None:
    """End all at once; files of the benchmark in the folder for temporary ones may stay."""
    pids = ", ".join(str(process.pid) for process in _kill_below())
    print(
        f"not ended after {CLEAN_S:g} s; killed: {pids or 'nothing'}", file=sys.stderr, flush=True
    )
    os._exit(code)


def _kill_below() -> list[psutil.Process]:
    """Kill every process below this one; return them."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return below
