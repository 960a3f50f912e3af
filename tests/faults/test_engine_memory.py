"""Engines that run out of memory for real: by the kernel's hand, and by a limit of their own."""

import resource
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.test_engine_faults import MARK, ended, engines, job, serving, status, until
from tests.unit.engine.graphs import BRIGHT, png, version
from tests.unit.inference.jobs import Ends
from worker.inference.backoff import Backoff
from worker.inference.process import EngineEnd, Peer, spawn_process
from worker.types import Failed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups and prlimit")

MOUNT = Path("/sys/fs/cgroup")
MIB = 1 << 20


class Group:
    """A control group of its own with so much memory, of whichever version is mounted."""

    def __init__(self, name: str, size_bytes: int) -> None:
        first = (MOUNT / "memory").is_dir()
        self._folder = (MOUNT / "memory" if first else MOUNT) / name
        self._counts = "memory.oom_control" if first else "memory.events"
        limit, swap = (
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            if first
            else ("memory.max", "memory.swap.max")
        )
        self._folder.mkdir()
        try:
            self._write(limit, size_bytes)
            if (self._folder / swap).exists():
                self._write(swap, size_bytes if first else 0)
        except OSError:
            self.close()
            raise

    def take(self, pid: int) -> None:
        """Have a process in it; what it has already is not counted."""
        self._write("cgroup.procs", pid)

    @property
    def kills(self) -> int:
        """Processes that the kernel ended in it for want of memory."""
        lines = (self._folder / self._counts).read_text().splitlines()
        counts = dict(line.split() for line in lines)
        return int(counts["oom_kill"])

    def close(self) -> None:
        self._folder.rmdir()

    def _write(self, name: str, value: int) -> None:
        with (self._folder / name).open("r+") as file:  # no file is to be made there
            file.write(str(value))


@pytest.fixture
def group(unique: str) -> Iterator[Group]:
    try:
        group = Group(f"darkroom-test-{unique}", 64 * MIB)
    except OSError as error:
        pytest.skip(f"no control group with a limit of memory can be made here: {error}")
    yield group
    group.close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    version(tmp_path / "light" / "1")
    return tmp_path


@pytest.mark.parametrize("point", ["after_decode", "before_run"])
async def test_an_engine_that_the_kernel_kills_for_its_memory_costs_a_retry_and_no_record(
    repository: Path, group: Group, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda _: 0.0)
    ends, armed = Ends(), repository / "armed"
    armed.touch()
    failpoint = f"{point}=allocate@{MARK}?{armed}"
    async with serving(repository, ends, failpoint=failpoint) as registry:
        pid = status(registry).pid
        assert pid is not None
        group.take(pid)
        registry.submit([job(offset, marked=offset == 7) for offset in range(20)])
        await until(partial(ended, ends, 20))
        assert ends.count() == {"Predicted": 20}
        assert not armed.exists()
        assert group.kills == 1
        assert "SIGKILL" in (status(registry).reason or "")
        assert status(registry).restarts == 1
        assert registry.ready
        assert [engine.pid for engine in engines()] == [status(registry).pid]


async def test_a_picture_for_which_there_is_no_memory_fails_alone_and_no_engine_dies_of_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda _: 0.0)
    limits_bytes: list[int] = []

    def spawn(end: EngineEnd) -> Peer:
        peer = spawn_process(end)
        for limit_bytes in limits_bytes:
            confine(peer.pid, limit_bytes)
        return peer

    monkeypatch.setattr("tests.faults.test_engine_faults.spawn_process", spawn)
    ends = Ends()
    async with serving(repository, ends) as registry:
        limits_bytes.append(data_bytes(status(registry).pid) + 64 * MIB)
        confine(status(registry).pid, limits_bytes[0])
        works = [job(offset) for offset in range(20)]
        works[7] = works[7]._replace(image=png(BRIGHT, width=6000, height=6000))
        registry.submit(works)
        await until(partial(ended, ends, 20))
        assert ends.count() == {"Predicted": 19, "record.poison": 1}
        convicted = ends.of[7].outcome
        assert isinstance(convicted, Failed)
        assert "MemoryError" in convicted.message
        reason = status(registry).reason  # one is replaced where no others were left as witnesses
        assert reason is None or "it fails at every record" in reason
        registry.submit([job(20)])
        await until(partial(ended, ends, 21))


def data_bytes(pid: int | None) -> int:
    """Return the memory that a process could write to, as RLIMIT_DATA counts it."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmData:")]
    return int(line.split()[1]) << 10


def confine(pid: int | None, limit_bytes: int) -> None:
    """Refuse a process what goes beyond so much memory; it is not killed for it."""
    assert pid is not None
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
