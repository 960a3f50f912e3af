"""An engine whose other side is a script on a thread: the real channel and page, no process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from worker.inference.process import EngineEnd, Peer
from worker.protocol.channel import Channel
from worker.protocol.messages import (
    Bye,
    Done,
    Load,
    Loaded,
    Outcomes,
    Stopped,
    Submit,
    Trouble,
)
from worker.protocol.page import Page, Phase

Script = Callable[[Channel, Page], None]

LOADED = Loaded(
    sha256="cafe",
    provider="CPUExecutionProvider",
    device="cpu",
    precision="fp32",
    fallback=False,
    max_size=4,
    row_bytes=64,
    load_ms=1.0,
    service_ms={"1": 1.0, "4": 2.0},
    signature={},
    bound=False,
)


class _Thread:
    def __init__(self, script: Script, end: EngineEnd) -> None:
        self._channel = Channel(end.sock)
        self._page = end.page
        self._script = script
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        return self._thread.ident

    def kill(self) -> None:
        self._channel.close()

    async def ended(self, timeout_s: float) -> str | None:
        await asyncio.to_thread(self._thread.join, timeout_s)
        return None if self._thread.is_alive() else "the script ended"

    def _run(self) -> None:
        # OSError: a killed channel; everything else is a mistake in the script and shows itself.
        with contextlib.suppress(OSError):
            self._script(self._channel, self._page)
        self._channel.close()


class Spawner:
    """Starts the scripts that it is given, one for each engine; the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.started = 0

    def __call__(self, end: EngineEnd) -> Peer:
        self.started += 1
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        return _Thread(script, end)


def loads(channel: Channel, loaded: Loaded = LOADED) -> Load:
    """Load, as every script does first."""
    load = channel.receive()
    assert isinstance(load, Load)
    channel.send(loaded)
    return load


def submits(channel: Channel) -> Iterator[Submit]:
    """Yield what is submitted until Bye, which is answered, or until the worker has gone."""
    while (message := channel.receive()) is not None:
        if isinstance(message, Bye):
            channel.send(Stopped())
            return
        if isinstance(message, Submit):
            yield message


def serves(channel: Channel, _: Page) -> None:
    loads(channel)
    for submit in submits(channel):
        channel.send(outcomes(submit))


def outcomes(submit: Submit) -> Outcomes:
    rows = [Done(row.id, 8, 8, 0.0, 0.0, 0.0, b"{}") for row in submit.rows]
    return Outcomes(tuple(rows), (), (), 1.0, 0.0, len(rows))


def dies_of_first_row(channel: Channel, page: Page) -> None:
    loads(channel)
    for submit in submits(channel):
        page.begin(0, Phase.RUN, [submit.rows[0].id])
        return


def loses_its_device(channel: Channel, _: Page) -> None:
    """Tell of it at the first rows, and end, as the real engine does; the page names nobody."""
    loads(channel)
    for _submit in submits(channel):
        channel.send(Trouble("sticky", "CUDA failure 700: an illegal memory access"))
        return


def hangs_at_first_row(channel: Channel, page: Page) -> None:
    loads(channel)
    for submit in submits(channel):
        page.begin(0, Phase.RUN, [submit.rows[0].id])
        page.begin(1, Phase.IDLE, ())
