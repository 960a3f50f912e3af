"""A worker's socket for profiles, over a registry of scripted engines."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from tests.fakes import eventually
from tests.unit.profiling.recordings import lane, recording
from worker.profiler import Profiler
from worker.profiling.door import socket_of, sockets_in
from worker.profiling.recording import Recording
from worker.protocol.messages import Profiled, StartProfile
from worker.telemetry.metrics import Metrics
from worker.telemetry.stages import Stages, Stop
from worker.types import ModelRef

REF = ModelRef("digits", "1")


class FakeEngine:
    """Records at once, unless it has a problem; records wait in its window."""

    def __init__(self, metrics: Metrics, problem: str | None = None) -> None:
        self.problem = problem
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked: list[StartProfile] = []
        self._stages = Stages(metrics)

    async def profile(self, ask: StartProfile) -> Profiled:
        self.asked.append(ask)
        await self.go_on.wait()
        self._stages.observe(Stop.DISPATCH, [0.5, 1.5])
        if self.problem is None:
            recording(ask.name, lanes=[lane(decode=1.0)]).write(Path(ask.file))
        return Profiled(self.problem)


class Lab:
    """A profiler of one engine, and what those who connect are told."""

    def __init__(self, data_dir: Path, problem: str | None = None) -> None:
        metrics = Metrics()
        self.engine = FakeEngine(metrics, problem)
        self.engines = [(REF, self.engine)]
        self.profiler = Profiler(data_dir, lambda: self.engines, metrics, worker="w-1")
        self.path = socket_of(data_dir, os.getpid())
        Stages(metrics).observe(Stop.DISPATCH, [100.0])

    async def ask(self, line: bytes) -> tuple[dict[str, Any], list[Recording]]:
        """Return the answer, and the recordings that can be read until we hang up."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(line + b"\n")
            async with asyncio.timeout(10):
                said = orjson.loads(await reader.readline())
            folder = Path(said.get("folder", "nowhere"))
            files = [folder / name for name in ("worker.json", "0.json")]
            return said, [Recording.read(file) for file in files if file.exists()]
        finally:
            writer.close()


@asynccontextmanager
async def listening(data_dir: Path, problem: str | None = None) -> AsyncIterator[Lab]:
    lab = Lab(data_dir, problem)
    async with lab.profiler:
        yield lab


async def test_a_worker_and_its_engines_are_recorded_and_nothing_is_left(tmp_path: Path) -> None:
    async with listening(tmp_path) as lab:
        said, recordings = await lab.ask(b'{"seconds": 0.1, "kernels": false}')
        assert said["worker"] == "w-1"
        assert said["notes"] == []
        assert said["waits"] == {"poll": None, "dispatch": 1e6}, "of the window alone"
        assert [each.process for each in recordings] == ["worker", "engine digits/1"]
        worker = recordings[0]
        assert worker.pid == os.getpid()
        assert worker.seconds >= 0.1
        assert any(name.startswith("asyncio.") for stack in worker.samples.stacks for name in stack)
        (asked,) = lab.engine.asked
        assert (asked.seconds, asked.kernels) == (0.1, False)
        folder = Path(said["folder"])
        await eventually(lambda: not folder.exists())
    assert list((tmp_path / "profile").iterdir()) == []


async def test_what_an_engine_could_not_do_is_told(tmp_path: Path) -> None:
    async with listening(tmp_path, "there is none now") as lab:
        said, recordings = await lab.ask(b'{"seconds": 0.05, "kernels": true}')
    assert said["notes"] == ["engine digits/1: there is none now"]
    assert [each.process for each in recordings] == ["worker"]


async def test_a_worker_that_has_loaded_nothing_yet_says_so(tmp_path: Path) -> None:
    async with listening(tmp_path) as lab:
        lab.engines.clear()
        said, recordings = await lab.ask(b'{"seconds": 0.05, "kernels": true}')
    assert said["notes"] == ["no version was loaded when it began"]
    assert [each.process for each in recordings] == ["worker"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "not what a worker is asked"),
        (b"[]", "not what a worker is asked"),
        (b'{"seconds": "long", "kernels": true}', "not what a worker is asked"),
        (b'{"seconds": 5}', "kernels"),
        (b'{"seconds": 0, "kernels": true}', "at most 300"),
        (b'{"seconds": 301, "kernels": true}', "301 given"),
    ],
)
async def test_what_cannot_be_done_is_refused(tmp_path: Path, line: bytes, problem: str) -> None:
    async with listening(tmp_path) as lab:
        said, _ = await lab.ask(line)
        assert problem in said["error"]
        assert lab.engine.asked == []


async def test_one_profile_is_taken_at_a_time(tmp_path: Path) -> None:
    async with listening(tmp_path) as lab:
        lab.engine.go_on.clear()
        first = asyncio.create_task(lab.ask(b'{"seconds": 0.05, "kernels": true}'))
        await eventually(lambda: bool(lab.engine.asked))
        said, _ = await lab.ask(b'{"seconds": 0.05, "kernels": true}')
        assert "already" in said["error"]
        lab.engine.go_on.set()
        assert (await first)[0]["worker"] == "w-1"


async def test_only_its_own_user_can_ask_and_the_command_finds_the_socket(tmp_path: Path) -> None:
    async with listening(tmp_path) as lab:
        assert stat.S_IMODE(lab.path.parent.stat().st_mode) == 0o700
        assert sockets_in(tmp_path) == {os.getpid(): lab.path}
    assert sockets_in(tmp_path) == {}


async def test_a_socket_of_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    async with listening(tmp_path), listening(tmp_path) as second:
        said, _ = await second.ask(b'{"seconds": 0.05, "kernels": true}')
        assert said["worker"] == "w-1"


async def test_a_worker_that_cannot_listen_does_without(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 120)
    with capture_logs() as logs:
        async with listening(too_long):
            assert sockets_in(too_long) == {}
    assert [line["event"] for line in logs] == ["no profile can be taken of this worker"]


async def test_a_worker_that_stops_ends_the_profile_and_leaves_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as lab:
        asked = asyncio.create_task(lab.ask(b'{"seconds": 60, "kernels": true}'))
        await eventually(lambda: bool(lab.engine.asked))
        lab.engine.go_on.clear()
    with pytest.raises(orjson.JSONDecodeError):
        await asked
    assert list((tmp_path / "profile").iterdir()) == []


async def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    async with listening(tmp_path) as lab:
        lab.path.parent.rename(tmp_path / "moved")
        lab.path = tmp_path / "moved" / lab.path.name
        said, _ = await lab.ask(b'{"seconds": 0.05, "kernels": true}')
    assert "No such file or directory" in said["error"]
    (tmp_path / "moved" / lab.path.name).unlink()
