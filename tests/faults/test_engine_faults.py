"""Real engine processes that are killed, hang and refuse: every record has exactly one outcome."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.engine.graphs import BRIGHT, DARK, png, version
from tests.unit.inference.jobs import Ends
from worker.config_sections import Settings
from worker.control.messages import settings_state
from worker.control.reconciler import Reconciler
from worker.control.wanted import wanted
from worker.errors import EngineFault, ModelError
from worker.inference.backoff import Backoff
from worker.inference.budget import Budget
from worker.inference.devices import DeviceChoice, Devices
from worker.inference.feed import Job
from worker.inference.ladder import DeviceState
from worker.inference.process import spawn_process
from worker.inference.status import Status
from worker.models.options import Listeners, RegistryOptions
from worker.models.registry import Registry
from worker.models.repository import Repository
from worker.telemetry.metrics import Metrics
from worker.types import ModelRef, Position, Predicted, Ticket

REF = ModelRef("light", "1")
MARK = "poison!"
ENDS = {
    "kill": "SIGKILL",
    "abort": "SIGABRT",
    "segfault": "SIGSEGV",
    "spin": "same work",
    "freeze": "same work",
}
"""What happens to an engine -> what the worker says of it. `kill` is the kernel's answer to a group
of processes that is out of memory."""
DEADLINE_S = 60.0
BUDGET = Budget(lanes=2, decode_bytes=1 << 30, largest_bytes=800_000_000, memory_bytes=1 << 34)


def job(offset: int, *, marked: bool = False) -> Job:
    image = png((DARK, BRIGHT)[offset % 2]) + (MARK.encode() if marked else b"")
    return Job(Ticket(Position("images", 0, offset), 1, REF, "active", None), image, None)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    version(tmp_path / "light" / "1")
    return tmp_path


def registry_of(
    repository: Path, ends: Ends, *, failpoint: str | None = None, **changes: Any
) -> Registry:
    options = RegistryOptions.of(Settings(), on_cpu=1, failpoint=failpoint)
    return Registry(
        Repository(repository, cache=None, seen_file=None),
        BUDGET,
        options=options._replace(policy="cpu")._replace(**changes),
        spawn=spawn_process,
        tell=Listeners(ends, lambda _: None, lambda _ref, _message: None),
        metrics=Metrics(),
    )


@asynccontextmanager
async def serving(
    repository: Path, ends: Ends, *, failpoint: str | None = None, **changes: Any
) -> AsyncIterator[Registry]:
    registry = registry_of(repository, ends, failpoint=failpoint, **changes)
    try:
        want = wanted(settings_state({"light": "1"}, "light"), "", {})
        assert (await Reconciler(registry, max_loaded=3).apply(want)).failures == ()
        yield registry
    finally:
        await registry.close(2.0)
    assert engines() == []


def engines() -> list[psutil.Process]:
    """Engines that this process has started (the session's Kafka may be its child too)."""
    return [c for c in psutil.Process().children() if "worker.engine" in " ".join(c.cmdline())]


def oom_points(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "oom_score_adj").read_text())


def ended(ends: Ends, count: int) -> bool:
    return len(ends.of) == count


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what other processes do sets no event
            await asyncio.sleep(0.005)


def status(registry: Registry) -> Status:
    return registry.describe()[REF]


async def test_an_engine_killed_midway_costs_no_record_its_outcome(repository: Path) -> None:
    ends = Ends()
    async with serving(repository, ends) as registry:
        assert registry.ready
        assert registry.capacity_rows == 2 * status(registry).max_size
        for first in range(0, 3000, 100):
            registry.submit([job(offset) for offset in range(first, first + 100)])
        await until(lambda: len(ends.of) > 200)
        pid = status(registry).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(ends.of) == 3000)
        assert ends.count() == {"Predicted": 3000}
        assert status(registry).restarts == 1
        assert "SIGKILL" in (status(registry).reason or "")
        assert registry.ready
        assert registry.health() == ()
        labels = [end.outcome for end in ends.of.values() if isinstance(end.outcome, Predicted)]
        assert {outcome.predictions[:26] for outcome in labels} == {
            b'{"light":[{"label":"bright',
            b'{"light":[{"label":"dark",',
        }


@pytest.mark.parametrize("failpoint", ["after_decode=kill", "before_run=kill", "before_run=abort"])
async def test_a_record_that_kills_the_engine_is_convicted_and_its_mates_are_served(
    repository: Path, failpoint: str
) -> None:
    ends = Ends()
    async with serving(repository, ends, failpoint=f"{failpoint}@{MARK}") as registry:
        registry.submit([job(offset, marked=offset == 17) for offset in range(60)])
        await until(lambda: len(ends.of) == 60)
        assert ends.convicted == {17}
        assert ends.count() == {"Predicted": 59, "record.poison": 1}
        assert status(registry).restarts <= 2


async def test_a_record_that_hangs_a_lane_is_convicted_and_its_mates_are_served(
    repository: Path,
) -> None:
    ends = Ends()
    async with serving(
        repository, ends, failpoint=f"before_run=hang@{MARK}", watchdog_s=0.5
    ) as registry:
        registry.submit([job(offset, marked=offset == 17) for offset in range(60)])
        await until(lambda: len(ends.of) == 60)
        assert ends.convicted == {17}
        assert ends.count() == {"Predicted": 59, "record.poison": 1}
        assert "same work" in (status(registry).reason or "")


@pytest.mark.parametrize("point", ["after_decode", "before_run"])
async def test_what_ends_an_engine_and_does_not_come_again_costs_a_retry_and_no_record(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda _: 0.0)
    armed = {end: tmp_path / f"{end}.armed" for end in ENDS}
    failpoint = ";".join(f"{point}={end}@!{end}!?{file}" for end, file in armed.items())
    ends = Ends()
    async with serving(repository, ends, failpoint=failpoint, watchdog_s=1.0) as registry:
        for number, (end, said) in enumerate(ENDS.items()):
            armed[end].touch()
            first = 20 * number
            works = [job(offset) for offset in range(first, first + 20)]
            works[7] = works[7]._replace(image=works[7].image + f"!{end}!".encode())
            registry.submit(works)
            await until(partial(ended, ends, first + 20))
            assert not armed[end].exists()
            assert said in (status(registry).reason or "")
            assert status(registry).restarts == number + 1
        assert ends.count() == {"Predicted": 20 * len(ENDS)}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_an_engine_has_nothing_of_its_worker_and_may_do_less(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        async with serving(repository, Ends()) as registry:
            engine = psutil.Process(status(registry).pid)
            home = Path("/proc") / str(engine.pid)
            opened = [str(entry.readlink()) for entry in (home / "fd").iterdir()]
            told = (home / "status").read_text()
            points, ours = oom_points(engine.pid), oom_points(os.getpid())
            core = engine.rlimit(psutil.RLIMIT_CORE)
    kinds = Counter(link.partition("[")[0] for link in opened)
    page = kinds.pop("/memfd:darkroom-progress (deleted)")
    assert page <= 2, "Python's map of it has a descriptor of its own"
    assert kinds == {"/dev/null": 2, "pipe:": 1, "socket:": 1}, "its stderr and its channel"
    assert "NoNewPrivs:\t1" in told
    assert core[0] == 0
    assert points == min(1000, ours + 300), "the kernel must end an engine before its worker"


async def test_a_record_whose_run_raises_is_convicted_without_a_death(repository: Path) -> None:
    ends = Ends()
    async with serving(repository, ends, failpoint=f"before_run=raise@{MARK}") as registry:
        registry.submit([job(offset, marked=offset in (3, 17)) for offset in range(60)])
        await until(lambda: len(ends.of) == 60)
        assert ends.convicted == {3, 17}
        assert status(registry).restarts == 0


@pytest.mark.parametrize(
    "failpoint", [pytest.param("before_run=kill", marks=pytest.mark.long), "before_run=raise"]
)
async def test_an_engine_that_fails_at_everything_convicts_nobody(
    repository: Path, failpoint: str
) -> None:
    ends = Ends()
    async with serving(repository, ends, failpoint=failpoint) as registry:
        registry.submit([job(offset) for offset in range(60)])
        await until(lambda: status(registry).restarts == 3)
        assert ends.of == {}
        assert registry.in_flight == 60
        assert not registry.ready
        assert registry.health() == (), "the engine is at fault: no restart of the worker helps"


async def test_the_only_record_there_is_cannot_kill_engines_for_ever(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda _: 0.0)
    ends = Ends()
    async with serving(repository, ends, failpoint=f"before_run=kill@{MARK}") as registry:
        registry.submit([job(0, marked=True)])
        await until(lambda: ends.convicted == {0})
        registry.submit([job(1)])
        await until(lambda: len(ends.of) == 2)
        assert ends.count() == {"Predicted": 1, "record.poison": 1}


async def test_what_an_engine_has_is_finished_before_it_ends(repository: Path) -> None:
    ends = Ends()
    async with serving(repository, ends) as registry:
        registry.submit([job(offset) for offset in range(64)])
        await registry.close(10.0)
        assert ends.count() == {"Predicted": 64}


async def test_an_engine_that_hangs_is_killed_when_the_deadline_of_closing_passes(
    repository: Path,
) -> None:
    async with serving(repository, Ends(), failpoint="before_run=hang") as registry:
        registry.submit([job(0)])
        began_s = time.monotonic()
        await registry.close(0.3)
        assert time.monotonic() - began_s < 5.0


async def test_a_broken_model_is_refused_with_its_file_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    version(tmp_path / "light" / "1", b"no graph")
    registry = registry_of(tmp_path, Ends())
    registry.names("light", {"light": {"1": None}})
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        await registry.load(REF, sha256=None)
    assert str(caught.value).count("model.onnx") == 1
    assert engines() == []
    assert not registry.ready


async def test_an_engine_that_dies_while_loading_is_an_engine_fault(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    registry = registry_of(repository, Ends())
    with pytest.raises(EngineFault, match="light/1 died while it loaded: exit code 1"):
        await registry.load(REF, sha256=None)


SCRIPT = """
import asyncio, sys
from pathlib import Path
from tests.faults.test_engine_faults import REF, registry_of, status
from tests.unit.inference.jobs import Ends

async def main():
    registry = registry_of(Path(sys.argv[1]), Ends())
    await registry.load(REF, sha256=None)
    print(status(registry).pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_an_engine_does_not_outlive_a_killed_worker(repository: Path) -> None:
    worker = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on this loop
        [sys.executable, "-c", SCRIPT, str(repository)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    with worker, worker.stdout:
        while not (line := worker.stdout.readline().strip()).isdigit():
            assert worker.poll() is None
        engine = psutil.Process(int(line))
        worker.kill()
        gone, _ = psutil.wait_procs([engine], timeout=2.0)
    assert gone == [engine]


@pytest.mark.long  # simulated engines do so in test_dispatcher_in_bad_weather
async def test_of_several_engines_one_may_die_while_the_others_serve(repository: Path) -> None:
    ends = Ends()
    async with serving(repository, ends, on_cpu=2) as registry:
        assert len(engines()) == 2
        for first in range(0, 3000, 100):
            registry.submit([job(offset) for offset in range(first, first + 100)])
        await until(lambda: len(ends.of) > 200)
        os.kill(engines()[0].pid, signal.SIGKILL)
        await until(lambda: len(ends.of) == 3000)
        assert ends.count() == {"Predicted": 3000}
        await until(lambda: len(engines()) == 2 and status(registry).restarts == 1)


async def test_of_several_engines_one_convicts_the_record_that_kills_them(
    repository: Path,
) -> None:
    ends = Ends()
    async with serving(repository, ends, failpoint=f"before_run=kill@{MARK}", on_cpu=2) as registry:
        registry.submit([job(offset, marked=offset == 17) for offset in range(60)])
        await until(lambda: len(ends.of) == 60)
        assert ends.convicted == {17}
        assert ends.count() == {"Predicted": 59, "record.poison": 1}


async def test_for_a_gpu_that_is_gone_when_engines_start_the_cpu_serves_and_says_so(
    repository: Path,
) -> None:
    ends = Ends()
    gone = Devices((DeviceChoice("GPU-00000000-dead-beef", "a GPU"),))
    async with serving(repository, ends, policy="prefer-gpu", devices=gone) as registry:
        registry.submit([job(offset) for offset in range(60)])
        await until(lambda: len(ends.of) == 60)
        assert ends.count() == {"Predicted": 60}
        made_by = {end.outcome.engine for end in ends.of.values()}  # type: ignore[union-attr]  # all are predicted
        assert {(stamp.provider, stamp.fallback) for stamp in made_by} == {
            ("CPUExecutionProvider", True)
        }
        (device,) = registry.devices.values()
        await until(lambda: device.state is DeviceState.CPU_FALLBACK)
        assert "engine.policy is require-gpu, but" in (device.why or "")
        assert registry.ready
