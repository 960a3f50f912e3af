"""Lanes x threads of a run x engines on the CPU: records a second of each, and where `auto` stands.

`python benchmarks/layouts.py [--quick] [--json FILE]`; the method: README.md beside it.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import psutil
import uvloop

from benchmarks.cases import Case
from benchmarks.ending import ending
from benchmarks.peers import cpu_s
from benchmarks.ratios import Spread, spread
from benchmarks.report import Figure, Report, busy_s
from benchmarks.throughput import cases_of, positive
from worker.config_sections import Settings
from worker.control.messages import settings_state
from worker.control.reconciler import Reconciler
from worker.control.wanted import wanted
from worker.errors import DarkroomError
from worker.inference.budget import budget_of, cores
from worker.inference.dispatcher import Finished
from worker.inference.feed import Job
from worker.inference.process import spawn_process
from worker.models.footprint import needed_memory
from worker.models.options import Listeners, RegistryOptions
from worker.models.registry import Registry
from worker.models.repository import Repository
from worker.telemetry.logs import configure
from worker.telemetry.metrics import Metrics
from worker.types import ModelRef, Position, Predicted, Ticket

THREADS = (1, 2)
ENGINES = (1, 2)
TARGET = 0.95
"""Of the best layout's rate: what the default must reach."""
_CROWD = 2
"""So many threads for each core, at most: more cannot help."""
_GROUP = 128
"""Records handed over at a time."""
_QUIET = 0.05
_STALLED_S = 60.0
_CLOSE_S = 10.0


class Layout(NamedTuple):
    """Settings of engines on the CPU."""

    lanes: int
    """Of all engines together, as `engine.lanes`."""
    threads: int
    """Of one run, ONNX Runtime's `intra_op_num_threads`."""
    engines: int
    """`engine.instances_per_device`."""

    def __str__(self) -> str:
        return f"lanes {self.lanes}, threads {self.threads}, engines {self.engines}"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "lanes": self.lanes,
            "instances_per_device": self.engines,
            "session": {"intra_op_num_threads": str(self.threads)},
        }


AUTO = "auto"
Plan = dict[str, dict[str, Any]]
"""Name -> settings of the section `engine`; those of `AUTO` say nothing."""


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int
    """Runs of every layout."""
    warm_s: float
    seconds: float
    """The window of a run."""


class Ran(NamedTuple):
    """What one run showed."""

    rate: float
    """Records a second."""
    cpu_ms: float
    """Of engines and of who feeds them, by record."""
    others: float
    """Share of the machine that other processes took."""
    lanes: int
    engines: int


FULL = Effort(rounds=6, warm_s=1.0, seconds=6.0)
QUICK = Effort(rounds=1, warm_s=0.5, seconds=1.5)


def layouts(cores: int) -> list[Layout]:
    """Return the layouts that make sense: half as many lanes as cores, as many, and half more."""
    half = max(1, cores // 2)
    return [
        Layout(lanes, threads, engines)
        for lanes in sorted({half, cores, cores + half})
        for threads in THREADS
        for engines in ENGINES
        if lanes >= engines and lanes * threads <= _CROWD * cores
    ]


class Backlog:
    """Keeps so many records waiting, and notes when they were served."""

    def __init__(self, case: Case, *, ahead: int) -> None:
        self._case = case
        self._ref = ModelRef(case.model, case.version)
        self._ahead = ahead
        self._next = 0
        self._moved = asyncio.Event()
        self._stopped = False
        self.came: list[tuple[float, int]] = []
        """(`time.monotonic()`, records) of every message of an engine."""

    def finished(self, finished: Sequence[Finished]) -> None:
        """Take outcomes; those of the rest that nobody waits for count nothing."""
        self._moved.set()
        if self._stopped:
            return
        self.came.append((time.monotonic(), len(finished)))
        for each in finished:
            if not isinstance(each.outcome, Predicted):
                raise SystemExit(f"({self._case.key}) a good picture ended so: {each.outcome}")

    async def feed(self, registry: Registry, seconds: float) -> None:
        """Keep them waiting for so long."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            while registry.in_flight <= self._ahead - _GROUP:
                registry.submit([self._job() for _ in range(_GROUP)])
            self._moved.clear()
            async with asyncio.timeout(_STALLED_S):
                await self._moved.wait()

    def stop(self) -> None:
        """Count nothing from now on."""
        self._stopped = True

    def _job(self) -> Job:
        number, images = self._next, self._case.pictures
        self._next += 1
        ticket = Ticket(Position("images", 0, number), 1, self._ref, "active", None)
        return Job(ticket, images[number % len(images)], None)


async def run(case: Case, engine: dict[str, Any], effort: Effort) -> Ran:
    """Start engines by these settings as a worker does, and feed them for the window."""
    settings = Settings.model_validate(
        {
            "models": {
                "repository": str(case.repository),
                "default": case.model,
                "active": {case.model: case.version},
            },
            "batch": {"max_size": case.cap},
            "engine": {"policy": "cpu", **engine},
        }
    )
    backlog = Backlog(case, ahead=settings.limits.in_flight_records)
    async with _serving(settings, backlog) as registry:
        await backlog.feed(registry, effort.warm_s)
        ours = [psutil.Process(), *psutil.Process().children()]
        began_s, before_s, used_s = time.monotonic(), busy_s(), sum(map(cpu_s, ours))
        await backlog.feed(registry, effort.seconds)
        elapsed_s, all_s = time.monotonic() - began_s, busy_s() - before_s
        used_s = sum(map(cpu_s, ours)) - used_s
        backlog.stop()
        (status,) = registry.describe().values()
        engines = len(registry.engines)
    came = [(at_s, count) for at_s, count in backlog.came if began_s <= at_s]
    count = sum(count for _, count in came)
    return Ran(
        # From the first message to the last: whole batches, whole time.
        rate=(count - came[0][1]) / (came[-1][0] - came[0][0]),
        cpu_ms=used_s * 1e3 / count,
        others=max(0.0, (all_s - used_s) / elapsed_s / cores()),
        lanes=status.lanes,
        engines=engines,
    )


@asynccontextmanager
async def _serving(settings: Settings, backlog: Backlog) -> AsyncIterator[Registry]:
    """Have the worker's own registry serve the case, with its engines in processes of their own."""
    assert settings.models.repository is not None
    on_cpu = needed_memory(settings).instances
    registry = Registry(
        Repository(settings.models.repository, cache=None, seen_file=None),
        budget_of(settings),
        options=RegistryOptions.of(settings, on_cpu=on_cpu, failpoint=None),
        spawn=spawn_process,
        tell=Listeners(backlog.finished, lambda _: None, lambda _ref, _message: None),
        metrics=Metrics(),
    )
    models = settings.models
    try:
        state = settings_state(models.active, models.default)
        reconciler = Reconciler(registry, max_loaded=models.max_loaded)
        result = await reconciler.apply(wanted(state, "", {}))
        if result.failures:
            raise SystemExit(f"{models.default} cannot be served: {result.failures}")
        yield registry
    finally:
        backlog.stop()
        await registry.close(_CLOSE_S)


def measure(case: Case, effort: Effort, report: Report) -> dict[str, list[Ran]]:
    """Run every layout once a round, in an order of its own each time."""
    plan: Plan = {AUTO: {}, **{str(layout): layout.settings for layout in layouts(cores())}}
    found: dict[str, list[Ran]] = {name: [] for name in plan}
    draw = random.Random(0)
    for number in range(effort.rounds):
        report.say(f"  round {number + 1} of {effort.rounds}")
        for name in draw.sample(list(plan), len(plan)):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                ran = runner.run(run(case, plan[name], effort))
            found[name].append(ran)
            report.say(f"    {name:<32} {ran.rate:10,.1f}/s  others {ran.others:.0%}")
    return found


def best_of(rates: dict[str, list[float]]) -> str:
    """Return who has the highest rate over the mean of its round, in the median of the rounds."""
    means = [fmean(each) for each in zip(*rates.values(), strict=True)]
    return max(
        rates,
        key=lambda name: median(r / mean for r, mean in zip(rates[name], means, strict=True)),
    )


def beside_best(rates: dict[str, list[float]], best: str) -> dict[str, Spread]:
    """Return each over the best, round by round."""
    return {
        name: spread([r / b for r, b in zip(each, rates[best], strict=True)])
        for name, each in rates.items()
    }


def tell(case: Case, found: dict[str, list[Ran]], report: Report) -> None:
    rates = {name: [ran.rate for ran in runs] for name, runs in found.items()}
    best = best_of({name: each for name, each in rates.items() if name != AUTO})
    ratios = beside_best(rates, best)
    rows = []
    for name in sorted(ratios, key=lambda name: -ratios[name].median):
        over, runs = ratios[name], found[name]
        rate, cpu_ms = median(rates[name]), median(ran.cpu_ms for ran in runs)
        rows.append((name, rate, over.median, f"{over.low:.3f}-{over.high:.3f}", cpu_ms))
        report.add(Figure(case.key, name, rate, "records/s", best, over.median))
        report.add(Figure(case.key, f"{name}: CPU", cpu_ms, "ms/record"))
    report.table((f"({case.key})", "records/s", "of the best", "95 %", "CPU ms a record"), rows)
    auto = found[AUTO][-1]
    met = "yes" if ratios[AUTO].median >= TARGET else "NO"
    report.say(
        f"{AUTO} is {auto.lanes} lanes, {auto.engines} engines: {ratios[AUTO].median:.3f} of the"
        f" best ({best}); at least {TARGET}: {met}"
    )
    others = fmean(ran.others for runs in found.values() for ran in runs)
    quiet = "quiet" if others < _QUIET else "not quiet"
    report.say(f"the machine was {quiet}: others took {others:.0%} of it")
    report.add(
        Figure(case.key, f"{AUTO}: lanes", auto.lanes, "lanes"),
        Figure(case.key, f"{AUTO}: engines", auto.engines, "engines"),
        Figure(case.key, "rounds", len(found[AUTO]), "rounds"),
        Figure(case.key, "share of the machine, others", others, "share"),
    )


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--case", choices=("a", "b"), help="one case only")
    parser.add_argument("--rounds", type=positive, help=f"{FULL.rounds} unless said")
    return parser.parse_args(given)


def main() -> int:
    asked = arguments(sys.argv[1:])
    configure(level="warning")
    effort = QUICK if asked.quick else FULL
    if asked.rounds:
        effort = effort._replace(rounds=asked.rounds)
    report = Report(asked.json)
    report.say_machine()
    with ending(report), tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        for case in cases_of(Path(folder) / "models", report, only=asked.case):
            report.say(f"\n({case.key}) {case.title}")
            tell(case, measure(case, effort, report), report)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DarkroomError as error:
        sys.exit(str(error))
