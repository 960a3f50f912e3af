"""All figures of the path of a GPU in one call of at most ten minutes: no network, no Kafka.

`python benchmarks/gpu.py [--device cuda|cpu] [--quick] [--json FILE] [--part rates|faults|swaps]`.
With `--device cpu` the same code runs anywhere. Engines are real processes, driven as the worker
drives them (`worker/inference`). The exit code is 1 when a record was lost or served twice.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import gpu_cases, gpu_inside
from benchmarks.gpu_cases import Version
from benchmarks.report import Figure, Report
from worker.config_sections import EngineSettings
from worker.errors import DarkroomError
from worker.inference.budget import cores
from worker.inference.devices import devices_of
from worker.inference.engines import Engine, EngineSpec
from worker.inference.process import spawn_process
from worker.protocol.messages import Load, Outcomes, Row, Trouble, Warmed
from worker.types import Limits, ModelRef

_GROUP = 16
_DEADLINE_S = 60.0


class Setup(NamedTuple):
    """What is the same for every measurement."""

    root: Path
    policy: str
    device: str | None
    """UUID of the GPU that engines are given; None: the CPU."""
    cap: int
    seconds: float
    swaps: int
    brief: bool
    """A CPU has no time for the larger network in a short run."""
    report: Report

    def load(self, version: Version, *, policy: str | None = None) -> Load:
        limits = Limits(
            max_size=self.cap, min_size=1, max_wait_ms=5.0, max_bytes=1 << 30,
            image_max_bytes=1 << 25, image_max_pixels=50_000_000, thresholds={},
        )  # fmt: skip
        return Load(
            folder=str(version.folder), manifest_sha256=version.manifest_sha256, lanes=cores(),
            limits=limits, decode_bytes=1 << 30, policy=policy or self.policy, session={},
            failpoint=None, staging="never" if policy == "cpu" else "always",
            artifacts=str(self.root / "engines"), provider_options={},
        )  # fmt: skip

    async def engine(self, version: Version, *, policy: str | None = None) -> Engine:
        load = self.load(version, policy=policy)
        device = None if load.policy == "cpu" else self.device
        spec = EngineSpec(ModelRef(version.name, "1"), load, None, device)
        return await Engine.start(spec, spawn_process)


class Feed:
    """Records on their way through engines; each must end once, whatever becomes of those."""

    def __init__(self, images: list[bytes], *, window: int) -> None:
        self._images = images
        self._window = window
        self._next = 0
        self.pending: dict[int, bytes] = {}
        self.ended = 0
        self.retried = 0
        self.faults = 0
        self.twice = 0

    def submit(self, engine: Engine) -> None:
        """Fill the window."""
        while len(self.pending) + _GROUP <= self._window:
            new = {n: self._images[n % len(self._images)] for n in self._numbers()}
            self.pending.update(new)
            self._send(engine, new)

    def again(self, engine: Engine) -> None:
        """Give what has not ended to another engine."""
        self._send(engine, self.pending)

    def add(self, engine: Engine, image: bytes) -> None:
        """Submit one record more."""
        self.pending[-1] = image
        self._send(engine, {-1: image})

    async def take(self, engine: Engine) -> bool:
        """Take one message; False when the engine has gone, or its runs fail."""
        message = await asyncio.wait_for(engine.receive(), _DEADLINE_S)
        if isinstance(message, Trouble | Warmed):
            return True
        if not isinstance(message, Outcomes):
            return False
        ids = [end.id for end in message.done] + [end.id for end in message.faults]
        self.twice += sum(self.pending.pop(n, None) is None for n in ids)
        self.ended += len(ids)
        self.faults += len(message.faults)
        self.retried += len(message.retries)
        return not message.retries

    async def serve(self, engine: Engine, seconds: float) -> float:
        """Serve for so long; return records a second."""
        begun, begun_s = self.ended, time.monotonic()
        while time.monotonic() < begun_s + seconds:
            self.submit(engine)
            if not await self.take(engine):
                raise SystemExit("an engine ended that nobody had killed")
        return (self.ended - begun) / (time.monotonic() - begun_s)

    async def drain(self, engine: Engine) -> None:
        while self.pending and await self.take(engine):
            pass

    def _numbers(self) -> range:
        self._next += _GROUP
        return range(self._next - _GROUP, self._next)

    def _send(self, engine: Engine, records: dict[int, bytes]) -> None:
        engine.submit([Row(n, image, alone=n < 0) for n, image in records.items()], behind_s=0.0)


def inside(function: Callable[..., Any], *given: Any) -> Any:
    """Call it in a process of its own, which ends with what it took of the device."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *given).result()


# --- Rates ----------------------------------------------------------------------------------------


async def rates(setup: Setup, version: Version) -> None:
    case, report, load = f"{version.name} {version.dtype}", setup.report, setup.load(version)
    table = inside(gpu_inside.table, version, load, setup.seconds)
    decoded = inside(gpu_inside.fed_decoded, version, load, setup.seconds)
    engine = await setup.engine(version)
    try:
        feed = Feed([gpu_cases.picture(n) for n in range(16)], window=8 * setup.cap)
        await feed.serve(engine, min(2.0, setup.seconds))
        jpeg = await feed.serve(engine, setup.seconds)
    finally:
        await engine.destroy()
    report.say(f"{case}: {table.provider}, {table.staging}, pinned: {table.pinned}")
    report.table(
        ("batch", "session.run ms", "as an engine ms", "images/s", "as an engine images/s"),
        [
            (size, ms, table.staged_ms[size], size / ms * 1e3, size / table.staged_ms[size] * 1e3)
            for size, ms in table.plain_ms.items()
        ],
    )
    best = "session.run, best batch"
    rows = [(best, table.best), ("engine fed decoded", decoded), ("engine fed JPEG", jpeg)]
    report.table(
        ("images a second", "rate", "of session.run"),
        [(name, rate, rate / table.best) for name, rate in rows],
    )
    report.add(*(Figure(case, name, rate, "1/s", best, rate / table.best) for name, rate in rows))
    for size, ms in table.plain_ms.items():
        report.add(Figure(case, f"batch {size}, session.run", ms, "ms"))
        report.add(Figure(case, f"batch {size}, engine", table.staged_ms[size], "ms"))


# --- Faults ---------------------------------------------------------------------------------------


async def fault(
    setup: Setup, version: Version, name: str, strike: Callable[[Engine, Feed], Any]
) -> bool:
    """Strike an engine in its work; the CPU serves, then the device again. Is nothing lost?"""
    feed = Feed([gpu_cases.picture(n) for n in range(8)], window=4 * setup.cap)
    engine = await setup.engine(version)
    await feed.serve(engine, min(2.0, setup.seconds))
    struck_s = time.monotonic()
    undo = await strike(engine, feed)
    while time.monotonic() < struck_s + 5 and await feed.take(engine):
        feed.submit(engine)
    seen_s, retried = time.monotonic(), feed.retried
    if undo is not None:
        undo()
    engine.condemn(name)
    how = await engine.destroy()
    feed.pending.pop(-1, None)  # it did what it was for
    cpu = await setup.engine(version, policy="cpu")
    feed.again(cpu)
    feed.submit(cpu)
    await feed.take(cpu)
    cpu_s = time.monotonic()
    back = asyncio.create_task(setup.engine(version))  # while the CPU serves
    while not back.done():
        feed.submit(cpu)
        await feed.take(cpu)
    await feed.drain(cpu)
    await cpu.destroy()
    engine = back.result()
    feed.submit(engine)
    await feed.take(engine)
    back_s = time.monotonic()
    await feed.drain(engine)
    await engine.destroy()
    lost = len(feed.pending)
    times = {"seen": seen_s, "the CPU serves": cpu_s, "the device again": back_s}
    setup.report.table((name, "s after"), [(what, at_s - struck_s) for what, at_s in times.items()])
    setup.report.say(
        f"it ended by {how}; {feed.ended} records, {retried} told to be run again,"
        f" {feed.faults} faults, {lost} lost, {feed.twice} twice\n"
    )
    for what, at_s in times.items():
        setup.report.add(Figure(name, what, at_s - struck_s, "s"))
    setup.report.add(Figure(name, "lost or twice", lost + feed.twice, "records"))
    return lost + feed.twice == 0


async def killed(engine: Engine, _: Feed) -> None:
    psutil.Process(engine.pid).kill()


async def trapped(engine: Engine, feed: Feed) -> None:
    feed.add(engine, gpu_cases.white())


def hog(root: Path) -> Callable[[Engine, Feed], Any]:
    async def strike(_: Engine, __: Feed) -> Callable[[], None]:
        told = root / "taken"
        process = multiprocessing.get_context("spawn").Process(
            target=gpu_inside.free_bytes_taken, args=(told,)
        )
        process.start()
        while not told.exists():  # noqa: ASYNC110 - it is another process's file
            await asyncio.sleep(0.05)

        def undo() -> None:
            process.kill()
            process.join()

        return undo

    return strike


async def faults(setup: Setup, version: Version, device: str) -> bool:
    sound = await fault(setup, version, "engine killed", killed)
    trap = gpu_cases.version(setup.root, "trap", "float32")
    sound &= await fault(setup, trap, "illegal access", trapped)
    if device != "cpu":
        sound &= await fault(setup, version, "memory taken by others", hog(setup.root))
    return sound


# --- Swaps ----------------------------------------------------------------------------------------


async def swaps(setup: Setup, versions: list[Version]) -> None:
    """Swap one version for the other, each started before the other ends."""
    host, device = [], []
    engine = await setup.engine(versions[0])
    feed = Feed([gpu_cases.picture(n) for n in range(8)], window=max(2 * setup.cap, _GROUP))
    for at in range(1, setup.swaps + 1):
        after = await setup.engine(versions[at % 2])
        await feed.drain(engine)
        await engine.destroy()
        engine = after
        feed.submit(engine)
        await feed.take(engine)
        assert engine.pid is not None
        own, child = psutil.Process(), psutil.Process(engine.pid)
        host.append((own.memory_info().rss + child.memory_info().rss) / 1e6)
        device.append(device_mb())
    await feed.drain(engine)
    await engine.destroy()
    rows = [("host", host), ("device", [mb for mb in device if mb is not None])]
    setup.report.table(
        (f"{setup.swaps} swaps, MB", "after the first", "greatest", "after the last"),
        [(name, mb[0], max(mb), mb[-1]) for name, mb in rows if mb],
    )
    for name, mb in rows:
        if mb:
            first = f"{name}, after the first"
            setup.report.add(
                Figure("swaps", first, mb[0], "MB"),
                Figure("swaps", f"{name}, after the last", mb[-1], "MB", first, mb[-1] / mb[0]),
            )


def device_mb() -> float | None:
    """Return what is in use of the first GPU; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    with contextlib.suppress(OSError, ValueError):
        return float(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return None


async def measure(asked: argparse.Namespace, setup: Setup) -> bool:
    made: dict[tuple[str, str, int], Version] = {}

    def case(name: str, dtype: str, number: int = 1) -> Version:
        key = (name, dtype, number)
        made[key] = made.get(key) or gpu_cases.version(setup.root, name, dtype, number=number)
        return made[key]

    sound = True
    if asked.part in {None, "rates"}:
        for name in ("squeezenet",) if setup.brief else ("squeezenet", "resnet50"):
            for dtype in ("float32", "float16"):
                await rates(setup, case(name, dtype))
    if asked.part in {None, "faults"}:
        sound = await faults(setup, case("squeezenet", "float32"), asked.device)
    if asked.part in {None, "swaps"}:
        await swaps(setup, [case("squeezenet", "float32", number) for number in (1, 2)])
    return sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--part", choices=("rates", "faults", "swaps"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="darkroom-gpu-"))
    cpu, report = asked.device == "cpu", Report()
    policy = "cpu" if cpu else "require-gpu"
    try:
        device = devices_of(EngineSettings.model_validate({"policy": policy})).first
    except DarkroomError as error:
        raise SystemExit(str(error)) from None
    setup = Setup(
        root=root,
        policy=policy,
        device=device,
        cap=4 if cpu else 128,
        seconds=1.5 if asked.quick else 8.0,
        swaps=3 if asked.quick else 50,
        brief=cpu and asked.quick,
        report=report,
    )
    begun_s = time.monotonic()
    try:
        sound = asyncio.run(measure(asked, setup))
    except DarkroomError as error:
        raise SystemExit(str(error)) from None
    finally:
        shutil.rmtree(root, ignore_errors=True)
    report.say(f"all of it in {time.monotonic() - begun_s:.0f} s")
    if asked.json:
        report.write(asked.json)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
