"""All versions of this worker: whose engine ends, and for whom room is made at whose cost.

It must not know how an engine is loaded, nor why a version has its role.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Coroutine, Iterator
from functools import partial
from typing import Any

import structlog

from worker.errors import ModelError
from worker.inference.budget import own_bytes
from worker.inference.dispatcher import Dispatcher
from worker.inference.memory import PER_FILE_BYTE
from worker.inference.pool import Pool
from worker.models.berth import Berth, Role
from worker.models.room import Room, expected_bytes
from worker.types import ModelRef

_DRAIN_S = 30.0
"""How long an engine that ends may take for what it still has."""
_UNUSED_S = 30.0
"""A version that serves and was not used for so long gives way to a load that was ordered."""
_REST_S = 1.0
"""... and to one that records wait for."""
_TURN_S = 10.0
"""Where records wait for more versions than have room, each serves at least so long in its turn."""

_log = structlog.get_logger()


class Berths:
    """The berths by their version. `ended` is told of each that has lost its engines for good.

    `per_file_byte`: memory that an engine may need for each byte of its version's files.
    """

    def __init__(
        self,
        room: Room,
        *,
        make: Callable[[ModelRef], Berth],
        ended: Callable[[Berth], None],
        clock_s: Callable[[], float],
        per_file_byte: int = PER_FILE_BYTE,
    ) -> None:
        self._room = room
        self._per_file_byte = per_file_byte
        self._make = make
        self._ended = ended
        self._clock_s = clock_s
        self._berths: dict[ModelRef, Berth] = {}
        self._stopping: dict[asyncio.Task[None], Pool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._crash: BaseException | None = None
        self.turn = asyncio.Lock()
        """Held by who makes room and loads: what is free is measured, and then taken."""

    def __iter__(self) -> Iterator[Berth]:
        return iter(tuple(self._berths.values()))

    def of(self, ref: ModelRef) -> Berth:
        """Return the berth of a version; it is made when there is none."""
        berth = self._berths.get(ref)
        if berth is None:
            berth = self._berths[ref] = self._make(ref)
        return berth

    def get(self, ref: ModelRef) -> Berth | None:
        return self._berths.get(ref)

    def forget(self, berth: Berth) -> None:
        """Forget a version, unless something is still going on with it."""
        if berth.pool is None and not berth.in_use:
            berth.let_go()
            self._berths.pop(berth.ref, None)

    @property
    def loaded(self) -> dict[ModelRef, Pool]:
        return {b.ref: b.pool for b in self if b.pool is not None and b.loaded}

    @property
    def problem(self) -> str | None:
        """Return what went wrong here that must not; None: nothing."""
        return None if self._crash is None else f"the registry failed: {self._crash!r}"

    def poke(self) -> None:
        """Let who waits for room look again."""
        self._moved.set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Do work in the background; an error of it is told to liveness: it is a bug."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def end(self, berth: Berth, *, hurry: bool = False) -> None:
        """Begin to end a version's engine; what it has may finish first.

        With `hurry`, only what is inside the engine: what waits here goes on waiting.
        """
        if berth.loaded:
            assert berth.pool is not None
            berth.seen_bytes = max(map(own_bytes, berth.pool.pids), default=0)
            berth.ending = self.retire(berth, berth.pool, berth.dispatcher, hurry=hurry)

    def retire(
        self, berth: Berth, pool: Pool, dispatcher: Dispatcher, *, hurry: bool
    ) -> asyncio.Task[None]:
        """End an engine; what its dispatcher then still has goes to the berth's own."""
        stopping = self._stop(berth, pool, dispatcher, hurry=hurry)
        task = self.start(stopping, f"end {berth.ref}")
        self._stopping[task] = pool
        return task

    async def ended(self, berth: Berth, *, hurry: bool = False) -> None:
        """End a version's engine, or wait until it has ended."""
        self.end(berth, hurry=hurry)
        await self.settled(berth)

    async def settled(self, berth: Berth) -> bool:
        """Wait until a version's engine has ended, if it is ending; say whether it is loaded."""
        while berth.ending is not None:
            await asyncio.wait((berth.ending,))
        return berth.loaded

    async def make_room(
        self,
        berth: Berth,
        files_bytes: int,
        *,
        engines: int,
        spared: Berth | None,
        patient: bool,
    ) -> None:
        """End engines until there is room for so many of this version.

        Held versions go first, then those that were not used for a while. `patient`: records wait
        for it, so that others must give way when their turn is over, and it waits for that;
        `spared` never does. Raises ModelError(headroom).
        """
        lacks = partial(self.lack, berth, files_bytes, engines)
        while (lack := lacks()) is not None:
            self._moved.clear()
            others = [b for b in self if b.loaded and b not in {berth, spared}]
            victim = _victim(others, self._clock_s(), patient=patient)
            if self._stopping:
                await asyncio.wait(self._stopping, return_when=asyncio.FIRST_COMPLETED)
            elif victim is not None and (patient or self._suffices(lacks, others)):
                self.end(victim, hurry=victim.role is not Role.HELD)
            elif patient and others:
                await self._look_again(others)
            else:
                raise ModelError(
                    f"no room for {berth.ref} beside what is loaded: {lack}; raise"
                    " models.max_loaded or give the worker memory, whichever it is, or set"
                    " models.swap: stop-first",
                    code="headroom",
                )

    def lack(
        self, berth: Berth, files_bytes: int, engines: int, *, without: Collection[ModelRef] = ()
    ) -> str | None:
        """Return what is missing for so many engines of a version beside what runs; None: nothing.

        `without`: versions that are taken to have ended.
        """
        loaded = [b for b in self if b.loaded and b.ref not in without]
        running = [b.pool for b in loaded if b.pool is not None]
        running += self._stopping.values()
        alike = [b for b in self if b.ref.name == berth.ref.name]
        pools_alike = [b.pool for b in alike if b.pool is not None]
        measured = [b.seen_bytes for b in alike]
        measured += [own_bytes(pid) for pool in pools_alike for pid in pool.pids]
        by_files = self._per_file_byte * files_bytes
        need_bytes = engines * expected_bytes(by_files, measured)
        pids = [pid for pool in running for pid in pool.pids]
        return self._room.lack(need_bytes, len(running), pids)

    async def close(self, deadline_s: float) -> None:
        """End all engines: what they have may finish until the deadline, then they are killed."""
        for task in self._tasks - self._stopping.keys():
            task.cancel()
        async with asyncio.TaskGroup() as group:
            for pool in self.loaded.values():
                group.create_task(pool.stop(deadline_s))
            if stopping := tuple(self._stopping):
                group.create_task(_wait(stopping, deadline_s))
        for task, pool in tuple(self._stopping.items()):
            task.cancel()
            await pool.stop(0.0)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._berths.clear()

    async def _stop(self, berth: Berth, pool: Pool, dispatcher: Dispatcher, *, hurry: bool) -> None:
        try:
            if not hurry:
                await dispatcher.drained(_DRAIN_S)
            await pool.stop(_DRAIN_S)
        finally:  # whatever came of it, nobody must wait for this end for ever
            if berth.dispatcher is not dispatcher:
                berth.dispatcher.submit(dispatcher.withdraw(suspects=True))
            if berth.pool is pool:
                berth.pool = None
                berth.ending = None
                berth.let_go()
        self._ended(berth)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._stopping.pop(task, None)
        self.poke()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = error
            _log.error("registry.failed", task=task.get_name(), exc_info=error)

    def _suffices(self, lacks: Callable[..., str | None], others: Collection[Berth]) -> bool:
        """Whether there is room when all have given way that do now: else none is ended for it."""
        now_s = self._clock_s()
        going = {b.ref for b in others if _rank(b, now_s, patient=False) is not None}
        return lacks(without=going) is None

    async def _look_again(self, others: Collection[Berth]) -> None:
        """Wait until something moves, or until the next one's rest or turn is over."""
        due_s = min(min(_unused_s(b, patient=True), b.loaded_s + _TURN_S) for b in others)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due_s - self._clock_s())):
                await self._moved.wait()


async def _wait(tasks: Collection[asyncio.Task[None]], deadline_s: float) -> None:
    await asyncio.wait(tasks, timeout=deadline_s)


def _victim(others: Collection[Berth], now_s: float, *, patient: bool) -> Berth | None:
    """Return who gives way first; None: nobody does now."""
    ranked = [(rank, berth) for berth in others if (rank := _rank(berth, now_s, patient=patient))]
    return min(ranked, key=lambda each: each[0])[1] if ranked else None


def _rank(berth: Berth, now_s: float, *, patient: bool) -> tuple[int, float] | None:
    """Return how soon a version gives way, the lowest first; None: not now."""
    if berth.role is Role.HELD:
        return 0, max(berth.left_s, berth.used_s)
    if now_s >= _unused_s(berth, patient=patient):
        return 1 if berth.role is Role.ASKED else 2, berth.used_s
    if patient and now_s >= berth.loaded_s + _TURN_S:
        return 4 if berth.role is Role.WANTED else 3, berth.loaded_s
    return None


def _unused_s(berth: Berth, *, patient: bool) -> float:
    """Return from when on a version counts as unused."""
    if berth.in_flight or berth.role is Role.WANTED:
        return math.inf
    return berth.used_s + (_REST_S if patient else _UNUSED_S)
