"""One engine: a started peer, its channel and its page, from the load of a model to its end."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

from worker.errors import ChannelError, DeviceError, EngineFault, ModelError, SettingsError
from worker.inference.process import EngineEnd, Peer, Spawn
from worker.protocol.async_channel import AsyncChannel
from worker.protocol.channel import socket_pair
from worker.protocol.messages import (
    Bye,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Profiled,
    Row,
    SetLimits,
    StartProfile,
    Submit,
)
from worker.protocol.page import RUN_LANES, Page, Phase
from worker.types import Limits, ModelRef

LOAD_DEADLINE_S = 600.0
"""A load that takes longer is a hang. Loading reads gigabytes and warms every batch size."""
_MAX_IDS = 4096
"""The largest `batch.max_size`: the page must name every row of a batch."""
_LAST_WORDS_S = 2.0
"""How long an engine that closed its channel may take to end by itself (a core dump)."""
_KILL_S = 10.0
_PROFILED_S = 60.0
"""How long an engine may take for a profile beyond its window: it opens the model once more."""


class EngineSpec(NamedTuple):
    """What makes an engine: it is the same for every respawn."""

    ref: ModelRef
    load: Load
    watchdog_s: float | None
    """Age of a lane's work above which it hangs; None: by the measured service times."""
    device: str | None = None
    """UUID of the GPU that it is given; None: it sees none, whatever the policy."""
    fallback: bool = False
    """It serves for a device that was lost."""


class Engine:
    """A warm engine. Made by `start`; must be destroyed."""

    def __init__(self, peer: Peer, channel: AsyncChannel, page: Page, loaded: Loaded) -> None:
        self._peer = peer
        self._channel = channel
        self._page = page
        self.loaded = loaded
        self.started_s = time.monotonic()
        self.condemned: str | None = None
        """Why it was killed by us, if it was."""
        self._profiled: asyncio.Future[Profiled] | None = None

    @classmethod
    async def start(
        cls, spec: EngineSpec, spawn: Spawn, *, deadline_s: float = LOAD_DEADLINE_S
    ) -> Self:
        """Start an engine and load its version.

        Raises ModelError, DeviceError or SettingsError as the engine reports, EngineFault when it
        dies or hangs while it loads, OSError when no process can be started. Nothing is left
        behind.
        """
        lanes, pixels = spec.load.lanes, spec.load.limits.image_max_pixels
        with contextlib.ExitStack() as undo:
            ours, theirs = socket_pair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            page = Page.make(lanes=lanes + RUN_LANES, max_ids=_MAX_IDS)
            undo.callback(page.close)
            channel = await AsyncChannel.open(ours)
            undo.callback(channel.close)
            quiet = spec.load.quiet
            end = EngineEnd(theirs, page, page.lanes, _MAX_IDS, pixels, spec.device, quiet)
            peer = spawn(end)
            undo.pop_all()
        try:
            channel.send(spec.load)
            async with asyncio.timeout(deadline_s):
                return cls(peer, channel, page, _loaded(await channel.receive()))
        except EngineFault:
            how = await _end(peer, channel, page)
            raise EngineFault(f"the engine of {spec.ref} died while it loaded: {how}") from None
        except TimeoutError:
            peer.kill()
            how = await _end(peer, channel, page)
            raise EngineFault(
                f"the engine of {spec.ref} did not load within {deadline_s:g} s: {how}"
            ) from None
        except BaseException:
            peer.kill()
            await _end(peer, channel, page)
            raise

    @property
    def pid(self) -> int | None:
        return self._peer.pid

    def submit(self, rows: Sequence[Row], *, behind_s: float) -> None:
        self._channel.send(Submit(tuple(rows), behind_s))

    def set_limits(self, limits: Limits) -> None:
        self._channel.send(SetLimits(limits))

    def say_bye(self) -> None:
        self._channel.send(Bye())

    async def receive(self) -> Message | None:
        """Wait for the next message about records; None when the engine has gone."""
        while isinstance(message := await self._channel.receive(), Profiled):
            self._answered(message)
        return message

    async def profile(self, ask: StartProfile) -> Profiled:
        """Have a profile taken, one at a time; somebody must `receive` meanwhile."""
        self._profiled = asyncio.get_running_loop().create_future()
        self._channel.send(ask)
        try:
            async with asyncio.timeout(ask.seconds + _PROFILED_S):
                return await self._profiled
        except TimeoutError:
            return Profiled("it did not answer in time")

    def condemn(self, why: str) -> None:
        """Kill it; `receive` then returns None."""
        self.condemned = self.condemned or why
        self._peer.kill()

    def held(self) -> frozenset[int]:
        """Return the rows that its lanes are working on, or were when it died."""
        return frozenset(row for lane in self._page.read() for row in lane.ids)

    def held_longer_than(self, age_s: float) -> frozenset[int]:
        """Return the rows of the lanes that have been at them for longer than this."""
        since_s = time.monotonic() - age_s
        return frozenset(
            row
            for lane in self._page.read()
            if lane.phase is not Phase.IDLE and lane.since_s < since_s
            for row in lane.ids
        )

    async def destroy(self) -> str:
        """End it if it still lives, reap it, free what it had; return how it ended."""
        how = await _end(self._peer, self._channel, self._page)
        self._answered(Profiled("it ended meanwhile"))
        return f"{self.condemned}: {how}" if self.condemned else how

    def _answered(self, message: Profiled) -> None:
        if self._profiled is not None and not self._profiled.done():
            self._profiled.set_result(message)


def _loaded(answer: Message | None) -> Loaded:
    match answer:
        case Loaded():
            return answer
        case LoadFailed("device", message):
            raise DeviceError(message)
        case LoadFailed("settings", message):
            raise SettingsError(message)
        case LoadFailed(_, message, file, field):
            raise ModelError(message, file=file, field=field)
        case None:
            raise EngineFault("it died")
        case _:
            raise ChannelError(f"{type(answer).__name__} in answer to Load")


async def _end(peer: Peer, channel: AsyncChannel, page: Page) -> str:
    """Close the channel, on which an engine ends by itself; kill it when it does not."""
    channel.close()
    try:
        how = await peer.ended(_LAST_WORDS_S)
        peer.kill()
        return how or await peer.ended(_KILL_S) or "it could not be killed"
    finally:
        peer.kill()
        page.close()
