"""The runs of one case, interleaved: the machine drifts, so each stands beside offline runs."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil

from benchmarks import topics
from benchmarks.age import Aged, age
from benchmarks.cases import Case
from benchmarks.drain import SETTLE_S, Bench, Drained, drain
from benchmarks.offline import Spec
from benchmarks.peers import AIOKAFKA, CONFLUENT, DARKROOM, NAIVE, ROOT
from benchmarks.ratios import Timed
from worker.config import environment
from worker.inference.process import engine_environment
from worker.local.stack import Stack

_FEW = 4
_HEADROOM = 1.5
_SPARE_S = 4.0
"""What is drained before the window and after it, besides the time to settle."""
_MAX_PIXELS = 50_000_000
AGE_SHARE = 0.6


class Effort(NamedTuple):
    """How much is measured."""

    pairs: int
    """Runs of Darkroom, each beside offline runs."""
    seconds: float
    """The window of a drain."""
    offline_s: float
    ages: int
    """Pairs of age runs."""
    age_s: float


class Offline(NamedTuple):
    rate: Timed
    cpu_ms: float


class Runs:
    """All runs of one case; `say` is told as they end."""

    def __init__(self, bench: Bench, effort: Effort, pictures: Path, say: Any) -> None:
        self.bench = bench
        self.effort = effort
        self.offline: list[Offline] = []
        self.drained: list[Drained] = []
        self.aged: list[Aged] = []
        self._pictures = pictures
        self._say = say

    def drain_all(self) -> None:
        """Drain with every peer in turn, an offline run before each and one at the end."""
        for peer in schedule(self.effort.pairs):
            self.run_offline()
            self.run(peer)
        self.run_offline()

    def age_all(self) -> None:
        """Age Darkroom and the loop on aiokafka in turn, at the rate of what it drains now."""
        rate = AGE_SHARE * self._drained_just_before()
        self._say(f"  age at {rate:,.0f}/s: {AGE_SHARE:.0%} of {AIOKAFKA} just now")
        for number in range(self.effort.ages):
            order = (DARKROOM, AIOKAFKA) if number % 2 == 0 else (AIOKAFKA, DARKROOM)
            for peer in order:
                aged = age(self.bench, peer, rate=rate, seconds=self.effort.age_s, seed=number)
                self._say(
                    f"  {peer:<24} p50 {aged.p50_ms:6.1f} ms  p99 {aged.p99_ms:6.1f} ms"
                    f"  (producer late by {aged.late_ms:.0f} ms at most)"
                )
                self.aged.append(aged)

    def _drained_just_before(self) -> float:
        """Return the rate that the loop on aiokafka drains now; in a quick run what it drained."""
        found = [run.rate for run in self.drained if run.peer == AIOKAFKA]
        if self.effort.ages == 1 and found:
            return found[-1]
        return drain(self.bench, AIOKAFKA, seconds=self.effort.seconds).rate

    def profile(self, folder: Path) -> tuple[Drained, Path, Path]:
        """Drain with the worker's main thread sampled, then profile a lane offline."""
        worker, lane = folder / "worker.prof", folder / "lane.prof"
        slow = drain(self.bench, DARKROOM, seconds=self.effort.seconds, profile=worker)
        run_offline(self.bench.case, self._pictures, self.effort.offline_s, profile=lane)
        return slow, worker, lane

    def run(self, peer: str) -> None:
        run = drain(self.bench, peer, seconds=self.effort.seconds)
        self.drained.append(run)
        cut = "  (topic used up: window cut)" if run.used_up else ""
        self._say(f"  {peer:<24} {run.rate:10,.1f}/s  {run.busy:.2f} cores{cut}")

    def run_offline(self) -> None:
        found = run_offline(self.bench.case, self._pictures, self.effort.offline_s)
        at_s = time.time() - self.effort.offline_s / 2
        self.offline.append(Offline(Timed(at_s, found["rate"]), found["cpu_ms"]))
        self._say(f"  {'offline limit':<24} {found['rate']:10,.1f}/s")


def schedule(pairs: int) -> list[str]:
    """Return who runs when: Darkroom `pairs` times, the loops half as often, the naive one twice.

    With few pairs everybody runs in each. The order changes from round to round.
    """
    order: list[str] = []
    for number in range(pairs):
        peers = [DARKROOM]
        if pairs < _FEW or number % 2 == 0:
            peers.append(AIOKAFKA)
        if pairs < _FEW or number % 2 == 1:
            peers.append(CONFLUENT)
        if number in {0, pairs // 2}:
            peers.append(NAIVE)
        turn = number % len(peers)
        order += peers[turn:] + peers[:turn]
    return order


@contextmanager
def runs_of(stack: Stack, case: Case, effort: Effort, say: Any) -> Iterator[Runs]:
    """Have the input topic of a case filled, for the length of a block."""
    with TemporaryDirectory(prefix="darkroom-bench-") as folder:
        pictures = Path(folder)
        for number, data in enumerate(case.pictures):
            (pictures / f"{number:05d}").write_bytes(data)
        first = run_offline(case, pictures, effort.offline_s)
        drained_s = SETTLE_S + effort.seconds + _SPARE_S
        count = int(first["rate"] * drained_s * _HEADROOM)
        name, *_ = made = topics.make(stack, f"case-{case.key}-{time.time_ns()}", dead=False)
        say(f"  offline limit {first['rate']:,.0f}/s at first; preloading {count:,} records")
        topics.fill(stack, name, case.pictures, count)
        broker = psutil.Process(stack.pid("broker-1"))
        bench = Bench(stack, broker, case, name, first["best"])
        try:
            yield Runs(bench, effort, pictures, say)
        finally:
            topics.remove(stack, made[:2])


def run_offline(
    case: Case, pictures: Path, seconds: float, *, profile: Path | None = None
) -> dict[str, Any]:
    """Run the offline limit in a process of its own, in the environment of an engine."""
    folder = case.repository / case.model / case.version
    written = None if profile is None else str(profile)
    spec = Spec(str(folder), str(pictures), case.cap, 1.0, seconds, written)
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.offline", json.dumps(spec)],
        cwd=ROOT,
        env=engine_environment(environment(), image_max_pixels=_MAX_PIXELS),
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found
