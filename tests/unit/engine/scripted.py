"""A device that does what a script says, served by the real engine host, its channel and lanes."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.contract.engines import DEADLINE_S, load
from tests.unit.engine import graphs
from worker.engine.binding import Bound
from worker.engine.headroom import Headroom
from worker.engine.host import serve
from worker.engine.loader import load_model
from worker.engine.model import Array, Model
from worker.engine.providers import CUDA
from worker.engine.session import Session
from worker.protocol.channel import Channel, socket_pair
from worker.protocol.messages import (
    Bye,
    Done,
    Fault,
    Load,
    Loaded,
    Message,
    Outcomes,
    Retry,
    Row,
    Stopped,
    Submit,
    Trouble,
)
from worker.protocol.page import RUN_LANES, Page, Phase

BRIGHT = graphs.png(graphs.BRIGHT)

Act = Callable[[Array], Exception | float | None]
"""What a run of these rows does: raise, or add to all outputs (NaN), or nothing."""


class Scripted:
    """A session on a device that does what a script says, and otherwise what the CPU computes."""

    def __init__(self, real: Session, provider: str) -> None:
        self._real = real
        self.signature, self.nodes, self.refused = real.signature, real.nodes, real.refused
        self.stamp = real.stamp._replace(provider=provider)
        self.bound, self.waited_s, self.path = real.bound, 0.0, real.path
        self.in_lane = real.in_lane
        self.act: Act = lambda _: None
        self.sizes: list[int] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        [batch] = feeds.values()
        self.sizes.append(len(batch))
        done = self.act(batch)
        if isinstance(done, Exception):
            raise done
        return [array + np.float32(done or 0) for array in self._real.run(outputs, feeds)]

    def shrink(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> None:
        self._real.shrink(outputs, feeds)


class ScriptedTurn:
    """The same where runs are bound: stands where ONNX Runtime's session does, inside the turn."""

    def __init__(self, bound: Bound) -> None:
        self._real, self._turn = bound._session, bound._turn
        self.act: Act = lambda _: None
        self.sizes: list[int] = []

    def io_binding(self) -> Any:
        bound = self._real.io_binding()
        bind = bound.bind_cpu_input

        def noting(name: str, batch: Array) -> None:
            bound.batch = batch
            bind(name, batch)

        bound.bind_cpu_input = noting
        return bound

    def run_with_iobinding(self, bound: Any) -> None:
        assert self._turn.locked()
        self.sizes.append(len(bound.batch))
        done = self.act(bound.batch)
        if isinstance(done, Exception):
            raise done
        assert done is None
        self._real.run_with_iobinding(bound)


def turns(*acts: Exception | float | None) -> Act:
    """Do one after the other, then nothing."""
    left = iter(acts)
    return lambda _: next(left, None)


class Engine:
    """A real host on a thread, one lane, with a model that is loaded once."""

    def __init__(self, model: Model, asked: Load) -> None:
        model.headroom = Headroom()
        self.troubles: list[Trouble] = []
        self.ends: dict[int, Done | Fault | Retry] = {}
        self.messages: list[Message] = []
        self._page, (ours, theirs) = Page.make(lanes=1 + RUN_LANES, max_ids=16), socket_pair()
        ours.settimeout(DEADLINE_S)
        self._channel = Channel(ours)
        self._pool = ThreadPoolExecutor(1)
        self._ended = self._pool.submit(serve, theirs, self._page)
        self._channel.send(asked)
        assert isinstance(self._channel.receive(), Loaded)

    def run(self, images: Sequence[bytes], *, first: int = 0) -> None:
        rows = [Row(n, image, alone=False) for n, image in enumerate(images, start=first)]
        self._channel.send(Submit(tuple(rows)))
        while len(self.ends) < first + len(images):
            message = self._channel.receive()
            if message is None:
                return
            self._take(message)

    def end(self) -> BaseException | None:
        """End it, if it has not ended; return what it died of."""
        try:
            self._channel.send(Bye())
            while not isinstance(message := self._channel.receive(), Stopped | None):
                self._take(message)
        except OSError:
            pass  # it has gone
        error = self._ended.exception(DEADLINE_S)
        assert all(lane.phase is Phase.IDLE for lane in self._page.read())
        self._pool.shutdown()
        self._channel.close()
        self._page.close()
        return error

    def _take(self, message: Message) -> None:
        self.messages.append(message)
        if isinstance(message, Trouble):
            self.troubles.append(message)
            return
        assert isinstance(message, Outcomes)
        ends: list[Done | Fault | Retry] = [*message.done, *message.faults, *message.retries]
        for end in ends:
            assert end.id not in self.ends, "two outcomes for one record"
            self.ends[end.id] = end


class Device:
    """A model on a scripted device, and engines that serve it."""

    def __init__(
        self,
        folder: Path,
        provider: str = CUDA,
        *,
        graph: onnx.ModelProto | None = None,
        **asked: Any,
    ) -> None:
        given = {"staging": "never", **asked}
        self.asked = load(folder, graphs.version(folder, graph), lanes=1, **given)
        self.model = load_model(self.asked)
        self.session: Scripted | ScriptedTurn
        if bound := self.model.session.bound:
            self.session = bound._session = ScriptedTurn(bound)
            self.model.session.stamp = self.model.session.stamp._replace(provider=provider)
        else:
            self.session = Scripted(self.model.session, provider)
            self.model.session = self.session  # type: ignore[assignment]  # all that lanes use

    def serve(self, act: Act, images: Sequence[bytes] = (BRIGHT,) * 4) -> Engine:
        """Start an engine, and let it run these images while the device does as it is told."""
        self.session.act, self.session.sizes = act, []
        engine = Engine(self.model, self.asked)
        engine.run(images)
        return engine


def kinds(engine: Engine) -> list[str]:
    return [trouble.kind for trouble in engine.troubles]


def types(engine: Engine) -> list[type]:
    return [type(engine.ends[n]) for n in sorted(engine.ends)]
