"""All figures of the path of a GPU in one call of at most ten minutes: no network, no Kafka.

`python benchmarks/gpu.py [--device cuda|cpu] [--quick] [--json FILE] [--part rates|faults|swaps]`.
With `--device cpu` the same code runs anywhere. The exit code is 1 when a record was lost or served
twice, an engine did not end by itself that was struck, or something could not be measured.
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import gpu_cases, gpu_faults, gpu_inside
from benchmarks.ending import ending
from benchmarks.gpu_cases import Version
from benchmarks.gpu_engines import LOAD_S, Broken, Feed, Setup, answer_of, beside
from benchmarks.report import Figure, Report
from worker.config_sections import EngineSettings
from worker.errors import DarkroomError
from worker.inference.devices import NO_DEVICES, Devices, devices_of

PARTS_S = {"rates": 250.0, "faults": 120.0, "swaps": 160.0}
"""No measurement of a part begins after so many seconds, counted from the end of the part before;
what a part does not need, those behind it have."""
LIMIT_S = 570.0
"""Then all of it ends, with what was measured."""


class Measuring:
    """Goes through parts and measurements; what fails, or has no time left, leaves the others."""

    def __init__(self, setup: Setup, *, part: str | None) -> None:
        self.setup = setup
        self.sound = True
        self._part = part
        self._begun_s = time.monotonic()
        self._until_s = 0.0

    def begins(self, part: str) -> bool:
        """Begin a part, if it is asked for."""
        self._until_s += PARTS_S[part]
        if self._part == part:  # it has all the time
            self._until_s = sum(PARTS_S.values())
        return self._part in {None, part}

    @property
    def in_time(self) -> bool:
        return time.monotonic() - self._begun_s < self._until_s

    async def measure(self, what: str, measurement: Awaitable[bool]) -> None:
        """Measure, and end all engines that are left of it."""
        report = self.setup.report
        try:
            if not await measurement:
                report.say(f"NOT AS IT MUST BE: {what}\n")
                self.sound = False
        except (Broken, DarkroomError, OSError) as error:
            report.say(f"NOT MEASURED: {what}: {error}\n")
            self.sound = False
        finally:
            await self.setup.end_all()

    def goes_on(self, what: str) -> bool:
        """Say whether there is time for another measurement."""
        if not self.in_time:
            self.setup.report.say(f"NOT MEASURED: {what}: no time is left\n")
            self.sound = False
        return self.in_time


# --- Rates ----------------------------------------------------------------------------------------


async def rates(setup: Setup, name: str, dtype: str) -> bool:
    version = gpu_cases.version(setup.root, name, dtype)
    case, report, load = f"{name} {dtype}", setup.report, setup.load(version)
    within_s = LOAD_S + 2 * setup.seconds
    with beside(setup.device, gpu_inside.table, version, load, setup.seconds) as answers:
        table = answer_of(answers, "the table of batches", within_s=within_s)
    report.say(f"{case}: {table.provider}, {table.staging}, pinned: {table.pinned}")
    report.table(
        ("batch", "session.run ms", "as an engine ms", "images/s", "as an engine images/s"),
        [
            (size, ms, table.staged_ms[size], size / ms * 1e3, size / table.staged_ms[size] * 1e3)
            for size, ms in table.plain_ms.items()
        ],
    )
    for size, ms in table.plain_ms.items():
        report.add(Figure(case, f"batch {size}, session.run", ms, "ms"))
        report.add(Figure(case, f"batch {size}, engine", table.staged_ms[size], "ms"))
    with beside(setup.device, gpu_inside.fed_decoded, version, load, setup.seconds) as answers:
        decoded = answer_of(answers, "lanes fed decoded", within_s=within_s)
    engine = await setup.engine(version)
    feed = Feed([gpu_cases.picture(n) for n in range(16)], window=8 * setup.cap)
    await feed.serve(engine, min(2.0, setup.seconds))
    jpeg = await feed.serve(engine, setup.seconds)
    best = "session.run, best batch"
    rows = [(best, table.best), ("engine fed decoded", decoded), ("engine fed JPEG", jpeg)]
    report.table(
        ("images a second", "rate", "of session.run"),
        [(what, rate, rate / table.best) for what, rate in rows],
    )
    report.add(*(Figure(case, what, rate, "1/s", best, rate / table.best) for what, rate in rows))
    return True


# --- Swaps ----------------------------------------------------------------------------------------


async def swaps(measuring: Measuring, versions: list[Version]) -> bool:
    """Swap one version for the other while there is time, each started before the other ends."""
    setup, report = measuring.setup, measuring.setup.report
    host: list[float] = []
    device: list[float | None] = []
    engine = await setup.engine(versions[0])
    feed = Feed([gpu_cases.picture(n) for n in range(8)], window=2 * setup.cap)
    try:
        while len(host) < setup.swaps and (measuring.in_time or len(host) < 2):
            after = await setup.engine(versions[(len(host) + 1) % 2])
            await feed.drain(engine)
            await setup.end(engine)
            engine = after
            feed.submit(engine)
            await feed.served(engine)
            host.append(sum(psutil.Process(p).memory_info().rss for p in (None, engine.pid)) / 1e6)
            device.append(device_mb(setup.device))
        await feed.drain(engine)
    finally:
        _tell_swaps(report, host, device, wanted=setup.swaps)
    return feed.twice == 0


def _tell_swaps(
    report: Report, host: list[float], device: list[float | None], *, wanted: int
) -> None:
    rows = [("host", host), ("device", [mb for mb in device if mb is not None])]
    report.table(
        (f"{len(host)} swaps, MB", "after the first", "greatest", "after the last"),
        [(name, mb[0], max(mb), mb[-1]) for name, mb in rows if mb],
    )
    if len(host) < wanted:
        report.say(f"there was no time for {wanted} swaps: --part swaps alone has more\n")
    report.add(Figure("swaps", "swaps", len(host), "swaps"))
    for name, mb in rows:
        if mb:
            first = f"{name}, after the first"
            report.add(
                Figure("swaps", first, mb[0], "MB"),
                Figure("swaps", f"{name}, greatest", max(mb), "MB", first, max(mb) / mb[0]),
                Figure("swaps", f"{name}, after the last", mb[-1], "MB", first, mb[-1] / mb[0]),
            )


def device_mb(uuid: str | None) -> float | None:
    """Return what is in use of a GPU; None where `nvidia-smi` does not tell (a MIG instance)."""
    if uuid is None:
        return None
    query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", uuid]
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        said = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, check=False, timeout=10
        )
        return float(said.stdout)
    return None


async def measure(measuring: Measuring, *, brief: bool) -> None:
    setup = measuring.setup
    on_cpu = setup.device is None
    if measuring.begins("rates"):
        for dtype in ("float32", "float16"):
            for name in ("squeezenet",) if brief else ("squeezenet", "resnet50"):
                if measuring.goes_on(f"rates, {name} {dtype}"):
                    await measuring.measure(f"rates, {name} {dtype}", rates(setup, name, dtype))
    pair = [
        gpu_cases.version(setup.root / "pair", "squeezenet", "float32", number=n) for n in (1, 2)
    ]
    if measuring.begins("faults"):
        for strike in (gpu_faults.KILLED, gpu_faults.SEGFAULT if on_cpu else gpu_faults.ILLEGAL):
            if measuring.goes_on(strike.name):
                await measuring.measure(strike.name, gpu_faults.fault(setup, pair[0], strike))
        if not on_cpu and measuring.goes_on("memory taken by others"):
            await measuring.measure("memory taken by others", gpu_faults.crowded(setup, pair[0]))
    if measuring.begins("swaps"):
        await measuring.measure("swaps", swaps(measuring, pair))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--part", choices=tuple(PARTS_S), help="one part only")
    parser.add_argument("--quick", action="store_true", help="everything briefly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    asked = parser.parse_args()
    cpu, report = asked.device == "cpu", Report(asked.json)
    policy = "cpu" if cpu else "require-gpu"
    devices = NO_DEVICES if cpu else _devices(policy)
    report.machine["device"] = "CPU" if cpu else " ".join(devices.chosen[0])
    report.say_machine()
    begun_s = time.monotonic()
    with (
        ending(report, limit_s=LIMIT_S),
        tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder,
    ):
        setup = Setup(
            root=Path(folder),
            policy=policy,
            device=devices.first,
            cap=4 if cpu else 128,
            seconds=1.5 if asked.quick else 5.0,
            swaps=3 if asked.quick else 50,
            report=report,
            engines=[],
        )
        measuring = Measuring(setup, part=asked.part)
        # A CPU has no time for the larger network in a short run.
        asyncio.run(measure(measuring, brief=cpu and asked.quick))
        report.say(f"all of it in {time.monotonic() - begun_s:.0f} s")
    return 0 if measuring.sound else 1


def _devices(policy: str) -> Devices:
    try:
        found = devices_of(EngineSettings.model_validate({"policy": policy}))
    except DarkroomError as error:
        raise SystemExit(str(error)) from None
    if found.first is None:
        raise SystemExit(f"no GPU: {found.problem}")
    return found


if __name__ == "__main__":
    sys.exit(main())
