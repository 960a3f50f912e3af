"""Takes profiles of this worker and its engines for whoever asks on its socket in the data folder.

It records and counts; what is made of that is the command's (`cli/profile.py`), in its own process.
"""

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import orjson
import structlog

from worker.errors import CommandError
from worker.profiling.door import MAX_S, socket_of
from worker.profiling.recording import Recording
from worker.profiling.sampler import sampled
from worker.protocol.messages import Profiled, StartProfile
from worker.telemetry.metrics import Metrics
from worker.telemetry.stages import Stop
from worker.types import ModelRef

_ASKED_S = 5.0
_READ_S = 120.0

log = structlog.get_logger(__name__)


class Engine(Protocol):
    """What can be asked to record itself."""

    async def profile(self, ask: StartProfile) -> Profiled: ...


class Profiler:
    """Listens from the begin to the end of its block; one profile is taken at a time."""

    def __init__(
        self,
        data_dir: Path,
        engines: Callable[[], Sequence[tuple[ModelRef, Engine]]],
        metrics: Metrics,
        *,
        worker: str,
    ) -> None:
        self._path = socket_of(data_dir, os.getpid())
        self._folder = self._path.parent.absolute()  # its path may be too long for a socket
        self._engines = engines
        self._metrics = metrics
        self._worker = worker
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = threading.Event()
        self._busy = False

    async def __aenter__(self) -> Self:
        """Listen; where that is not possible say so and do without: profiles are no service."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            self._path.unlink(missing_ok=True)  # of one that was killed
            self._server = await asyncio.start_unix_server(self._connected, str(self._path))
        except OSError as error:
            log.warning("no profile can be taken of this worker", why=str(error))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._answer(reader, writer), name="profile")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # who asked has gone, or never asked (TimeoutError)
            try:
                await self._serve(reader, writer)
            except (CommandError, OSError) as error:
                await _write(writer, {"error": str(error) or type(error).__name__})
            finally:
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_ASKED_S):
            seconds, kernels = _asked(await reader.readline())
        if self._busy:
            raise CommandError("a profile of this worker is being taken already: wait for its end")
        self._busy = True
        try:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                said = await self._profile(seconds, Path(folder), kernels=kernels)
                await _write(writer, {**said, "worker": self._worker, "folder": folder})
                async with asyncio.timeout(_READ_S):
                    await reader.read()  # to its end: they have read the files
        finally:
            self._busy = False

    async def _profile(self, seconds: float, folder: Path, *, kernels: bool) -> dict[str, Any]:
        """Record everybody at the same time, each into a file in the folder."""
        log.info("profiling", seconds=seconds)
        before, engines = self._waits(), self._engines()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number, (ref, engine) in enumerate(engines):
                file = str(folder / f"{number}.json")
                ask = StartProfile(seconds, f"engine {ref}", file, kernels)
                tasks.append(group.create_task(_recorded(engine, ask)))
            own = await asyncio.to_thread(self._record, seconds, folder)
            after = self._waits()  # engines are not done yet: their window is over too
        notes = [own, *(task.result() for task in tasks)]
        if not engines:
            notes.append("no version was loaded when it began")
        return {
            "waits": {stop: _since(before[stop], after[stop]) for stop in before},
            "notes": [note for note in notes if note is not None],
        }

    def _record(self, seconds: float, folder: Path) -> str | None:
        """Record this process; return what went wrong. On a thread."""
        begun_s, begun_cpu_s = time.monotonic(), time.process_time()
        samples = sampled(seconds, self._stopped)
        recording = Recording(
            process="worker",
            pid=os.getpid(),
            begun_s=begun_s,
            ended_s=time.monotonic(),
            cpu_s=time.process_time() - begun_cpu_s,
            samples=samples,
        )
        try:
            recording.write(folder / "worker.json")
        except OSError as error:
            return f"worker: its recording cannot be written: {error}"
        return None

    def _waits(self) -> dict[str, tuple[float, float]]:
        """Return the waits of records that were counted so far: how many, and their seconds."""
        found = {}
        for stop in (Stop.POLL, Stop.DISPATCH):
            counts, seconds = self._metrics.stage_seconds.of(stop).snapshot()
            found[stop.value] = (counts[-1][1], seconds)
        return found


async def _recorded(engine: Engine, ask: StartProfile) -> str | None:
    """Have an engine record itself; return what went wrong."""
    said = await engine.profile(ask)
    return None if said.problem is None else f"{ask.name}: {said.problem}"


def _asked(line: bytes) -> tuple[float, bool]:
    """Return for how long, and whether with ONNX Runtime's own profile. Raises CommandError."""
    try:
        asked = orjson.loads(line)
        seconds, kernels = float(asked["seconds"]), bool(asked["kernels"])
    except (ValueError, TypeError, KeyError) as error:
        raise CommandError(f"not what a worker is asked: {error!r}") from error
    if not 0 < seconds <= MAX_S:
        raise CommandError(f"seconds: {seconds:g} given; expected more than 0, at most {MAX_S:g}")
    return seconds, kernels


def _since(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """Return the mean of what was counted in between, in us; None: nothing was."""
    count = after[0] - before[0]
    return (after[1] - before[1]) / count * 1e6 if count else None


async def _write(writer: asyncio.StreamWriter, said: dict[str, Any]) -> None:
    writer.write(orjson.dumps(said) + b"\n")
    await writer.drain()
