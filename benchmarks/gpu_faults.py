"""Faults for gpu.py: an engine is struck in its work; the CPU serves, then the device again.

An engine must end by itself: who has to be killed has not been struck, or does not know that it is.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

from benchmarks import gpu_cases, gpu_inside
from benchmarks.gpu_cases import Version
from benchmarks.gpu_engines import Feed, Setup, answer_of, beside
from benchmarks.report import Figure
from worker.errors import DarkroomError
from worker.inference.engines import Engine

ENDS_S = 15.0
"""How long an engine that was struck may take to end."""
_TAKEN_S = 30.0
_CROWDED_S = 3.0
_MARK = b"struck by gpu.py"


class Strike(NamedTuple):
    """What befalls an engine."""

    name: str
    act: Callable[[Engine, Feed], None]
    failpoint: str | None = None
    """Of this engine alone."""


def _kill(engine: Engine, _: Feed) -> None:
    psutil.Process(engine.pid).kill()


def _marked(engine: Engine, feed: Feed) -> None:
    """Submit a sound picture with the failpoint's mark behind its end."""
    feed.add(engine, gpu_cases.picture(0) + _MARK)


KILLED = Strike("engine killed", _kill)
ILLEGAL = Strike("illegal access", _marked, f"before_run=gpu-fault@{_MARK.decode()}")
"""A kernel in the engine's own context writes to address 0."""
SEGFAULT = Strike("segmentation fault", _marked, f"before_run=segfault@{_MARK.decode()}")
"""What stands for it on a CPU."""


async def fault(setup: Setup, version: Version, strike: Strike) -> bool:
    """Strike an engine in its work. Did it end by itself, and is nothing lost?"""
    feed = _feed(setup)
    engine = await setup.engine(version, failpoint=strike.failpoint)
    await feed.serve(engine, min(2.0, setup.seconds))
    struck_s = time.monotonic()
    strike.act(engine, feed)
    by_itself = await ends(engine, feed, within_s=ENDS_S)
    seen_s = time.monotonic() - struck_s
    if not by_itself:
        engine.condemn("it did not end by itself")
    how = await setup.end(engine)
    times = {"seen": seen_s, **await _recovered(setup, version, feed, struck_s)}
    return _tell(setup, strike.name, feed, times, f"it ended by {how}") and by_itself


async def crowded(setup: Setup, version: Version) -> bool:
    """Let another process take the rest of the memory. Is a new engine refused, nothing lost?"""
    feed = _feed(setup)
    engine = await setup.engine(version)
    await feed.serve(engine, min(2.0, setup.seconds))
    with contextlib.ExitStack() as hog:
        answers = hog.enter_context(beside(setup.device, gpu_inside.free_memory_taken))
        taken = answer_of(answers, "taking all memory", within_s=_TAKEN_S)
        struck_s = time.monotonic()
        ended = await ends(engine, feed, within_s=_CROWDED_S)
        asked_s = time.monotonic()
        refused = await _refused(setup, version)
        times = {"a new engine is refused": time.monotonic() - asked_s}
        await setup.end(engine)
        times |= await _recovered(setup, version, feed, struck_s, undo=hog.close)
    went = "ended" if ended else "went on"
    told = f"{taken / 1e9:.1f} GB taken; the engine that served {went}; a new one: {refused}"
    sound = _tell(setup, "memory taken by others", feed, times, told)
    return sound and refused is not None


async def ends(engine: Engine, feed: Feed, *, within_s: float) -> bool:
    """Feed an engine until it has gone; False: it still lives after so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while await feed.take(engine):
                if not feed.retried:
                    feed.submit(engine)
            return True
    return False


async def _refused(setup: Setup, version: Version) -> str | None:
    try:
        engine = await setup.engine(version)
    except DarkroomError as error:
        return str(error)
    await setup.end(engine)
    return None


async def _recovered(
    setup: Setup,
    version: Version,
    feed: Feed,
    struck_s: float,
    *,
    undo: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Let the CPU serve what is left, then the device again; return when each did."""
    feed.retried.clear()
    cpu = await setup.engine(version, policy="cpu")
    feed.again(cpu)
    feed.submit(cpu)
    await feed.served(cpu)
    cpu_s = time.monotonic() - struck_s
    undo()
    back = asyncio.create_task(setup.engine(version))  # while the CPU serves
    try:
        while not back.done():
            feed.submit(cpu)
            await feed.served(cpu)
    except BaseException:
        back.cancel()
        raise
    await feed.drain(cpu)
    await setup.end(cpu)
    engine = back.result()
    feed.submit(engine)
    await feed.served(engine)
    back_s = time.monotonic() - struck_s
    await feed.drain(engine)
    await setup.end(engine)
    return {"the CPU serves": cpu_s, "the device again": back_s}


def _feed(setup: Setup) -> Feed:
    return Feed([gpu_cases.picture(n) for n in range(8)], window=4 * setup.cap)


def _tell(setup: Setup, name: str, feed: Feed, times: dict[str, float], told: str) -> bool:
    """Tell what came of it; False when a record was lost, ended twice or was found guilty."""
    report, lost = setup.report, len(feed.pending)
    report.table((name, "s after"), list(times.items()))
    for trouble in feed.troubles:
        report.say(f"an engine said {trouble}")
    report.say(told)
    report.say(
        f"{feed.ended} records, {feed.faults} found guilty, {lost} lost, {feed.twice} twice\n"
    )
    report.add(*(Figure(name, what, seconds, "s") for what, seconds in times.items()))
    wrong = lost + feed.twice + feed.faults
    report.add(Figure(name, "lost, twice or found guilty", wrong, "records"))
    return wrong == 0
