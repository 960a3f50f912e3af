"""Engines for gpu.py, real processes driven as the worker drives them, and records for them."""

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_cases import Version
from benchmarks.report import Report
from worker.inference.budget import cores
from worker.inference.engines import Engine, EngineSpec
from worker.inference.process import spawn_process
from worker.protocol.messages import Load, Outcomes, Row, Trouble
from worker.types import Limits, ModelRef

GROUP = 16
LOAD_S = 60.0
"""For an engine to load, and for all that one process measures besides its seconds."""
_ANSWER_S = 30.0
_ALONE = 1 << 40
"""The number of a record that runs alone: none of the others has it."""


class Broken(Exception):  # noqa: N818 - what broke is the measurement
    """A measurement cannot go on; the others can."""


class Setup(NamedTuple):
    """What is the same for every measurement."""

    root: Path
    policy: str
    device: str | None
    """UUID of the GPU that everything is given; None: the CPU."""
    cap: int
    seconds: float
    swaps: int
    report: Report
    engines: list[Engine]
    """Those that live."""

    def load(
        self, version: Version, *, policy: str | None = None, failpoint: str | None = None
    ) -> Load:
        limits = Limits(
            max_size=self.cap, min_size=1, max_wait_ms=5.0, max_bytes=1 << 30,
            image_max_bytes=1 << 25, image_max_pixels=50_000_000, thresholds={},
        )  # fmt: skip
        return Load(
            folder=str(version.folder), manifest_sha256=version.manifest_sha256, lanes=cores(),
            limits=limits, decode_bytes=1 << 30, policy=policy or self.policy, session={},
            failpoint=failpoint, staging="never" if policy == "cpu" else "always",
            artifacts=str(self.root / "engines"), provider_options={},
        )  # fmt: skip

    async def engine(
        self, version: Version, *, policy: str | None = None, failpoint: str | None = None
    ) -> Engine:
        load = self.load(version, policy=policy, failpoint=failpoint)
        device = None if load.policy == "cpu" else self.device
        spec = EngineSpec(ModelRef(version.name, "1"), load, None, device)
        engine = await Engine.start(spec, spawn_process, deadline_s=LOAD_S)
        self.engines.append(engine)
        return engine

    async def end(self, engine: Engine) -> str:
        """End an engine; return how it ended."""
        self.engines.remove(engine)
        return await engine.destroy()

    async def end_all(self) -> None:
        for engine in list(self.engines):
            await self.end(engine)


class Feed:
    """Records on their way through engines; each must end once, whatever becomes of those."""

    def __init__(self, images: list[bytes], *, window: int) -> None:
        self._images = images
        self._window = max(window, GROUP)
        self._next = 0
        self.pending: dict[int, bytes] = {}
        self.ended = 0
        self.retried: list[str] = []
        """Why records were told to be run again."""
        self.troubles: list[str] = []
        """What engines said of their device."""
        self.faults = 0
        self.twice = 0

    def submit(self, engine: Engine) -> None:
        """Fill the window."""
        while len(self.pending) + GROUP <= self._window:
            new = {n: self._images[n % len(self._images)] for n in self._numbers()}
            self.pending.update(new)
            _send(engine, new)

    def again(self, engine: Engine) -> None:
        """Give what has not ended to another engine."""
        _send(engine, self.pending)

    def add(self, engine: Engine, image: bytes) -> None:
        """Submit one record more, to be run alone."""
        self.pending[_ALONE] = image
        _send(engine, {_ALONE: image})

    async def take(self, engine: Engine) -> bool:
        """Take one message; False when the engine has gone."""
        try:
            message = await asyncio.wait_for(engine.receive(), _ANSWER_S)
        except TimeoutError:
            raise Broken(f"an engine said nothing for {_ANSWER_S:g} s") from None
        match message:
            case None:
                return False
            case Trouble(kind, said):
                self.troubles.append(f"{kind}: {said}")
            case Outcomes():
                ids = [end.id for end in message.done] + [end.id for end in message.faults]
                self.twice += sum(self.pending.pop(n, None) is None for n in ids)
                self.ended += len(ids)
                self.faults += len(message.faults)
                self.retried += [retry.message for retry in message.retries]
        return True

    async def serve(self, engine: Engine, seconds: float) -> float:
        """Serve for so long; return records a second."""
        begun, begun_s = self.ended, time.monotonic()
        while time.monotonic() < begun_s + seconds:
            self.submit(engine)
            await self.served(engine)
        return (self.ended - begun) / (time.monotonic() - begun_s)

    async def served(self, engine: Engine) -> None:
        """Take one message of an engine that has no reason to end."""
        told = len(self.retried)
        if not await self.take(engine):
            raise Broken("an engine ended that nobody had struck")
        if len(self.retried) > told:
            raise Broken(f"runs fail: {self.retried[-1]}")

    async def drain(self, engine: Engine) -> None:
        while self.pending:
            await self.served(engine)

    def _numbers(self) -> range:
        self._next += GROUP
        return range(self._next - GROUP, self._next)


def _send(engine: Engine, records: dict[int, bytes]) -> None:
    engine.submit([Row(n, image, alone=n == _ALONE) for n, image in records.items()], behind_s=0.0)


@contextlib.contextmanager
def beside(device: str | None, function: Callable[..., Any], *given: Any) -> Iterator[Connection]:
    """Run it in a process that sees this device alone, for the length of a block at most.

    What it returns can be received; EOFError: it died, and has said why on stderr.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, device, function, *given), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def answer_of(answers: Connection, what: str, *, within_s: float) -> Any:
    """Wait for an answer of a process beside this one. Raises Broken."""
    if not answers.poll(within_s):
        raise Broken(f"{what}: no answer in {within_s:g} s")
    try:
        return answers.recv()
    except EOFError:
        raise Broken(f"{what}: its process died") from None


def _answer(
    answers: Connection, device: str | None, function: Callable[..., Any], *given: Any
) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = device or ""
    function(answers.send, *given)
