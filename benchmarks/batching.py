"""Batching policies in simulation: Darkroom's beside five others, on a GPU's and a CPU's times.

`python benchmarks/batching.py [--quick] [--json FILE]`. Poisson arrivals of decoded rows, one lane,
8 % half-normal noise on every run but in drains; nothing of this machine is measured.
See `policies.py`.
"""

import argparse
import math
import random
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.age import arrivals, until
from benchmarks.ending import ending
from benchmarks.policies import MOST, OTHERS, Darkroom, Policy, World
from benchmarks.ratios import percentile
from benchmarks.report import Figure, Report

OURS = "Darkroom"
POLICIES = {OURS: Darkroom, **OTHERS}
LOADS = (0.2, 0.6, 0.85)
BACKLOG = 20_000
"""Rows that wait when a drain begins."""
_NOISE = 0.08
_GPU_MS = {1: 2.0, 2: 2.2, 4: 2.6, 8: 3.6, 16: 6.0, 32: 11.0, 64: 21.0, 128: 41.0}


def _gpu(rows: int) -> float:
    """Return seconds; between the sizes that were measured on the line between them."""
    for (small, from_ms), (large, to_ms) in pairwise(_GPU_MS.items()):
        if rows <= large:
            return (from_ms + (to_ms - from_ms) * (rows - small) / (large - small)) / 1e3
    return _GPU_MS[MOST] / MOST * rows / 1e3


GPU = World("GPU", _gpu, slo_s=0.100, exact=False)
CPU = World("CPU", lambda rows: (13.0 * rows + 1.0) / 1e3, slo_s=0.500, exact=True)


class Shown(NamedTuple):
    """What a policy made of the same rows."""

    p50_ms: float
    p99_ms: float
    missed: float
    """Share of the rows that were older than the objective."""
    rate: float
    """Rows a second."""
    mean_rows: float


def simulate(
    world: World, policy: Policy, due_s: Sequence[float], *, seed: int, noise: float = _NOISE
) -> Shown:
    """Let rows come at these times; return what became of them."""
    draw = random.Random(seed)
    now_s, came, runs = 0.0, 0, 0
    ages: list[float] = []
    while len(ages) < len(due_s):
        while came < len(due_s) and due_s[came] <= now_s:
            policy.add(due_s[came])
            came += 1
        answer = policy.next(now_s)
        if isinstance(answer, float):
            now_s = min(answer, due_s[came] if came < len(due_s) else math.inf)
            continue
        rows = len(answer) if policy.exact else 1 << (len(answer) - 1).bit_length()
        seconds = world.seconds_of(rows) * (1 + abs(draw.gauss(0, noise)))
        now_s += seconds
        runs += 1
        policy.ran(now_s, len(answer), seconds)
        ages += [now_s - at_s for at_s in answer]
    missed = sum(age_s > world.slo_s for age_s in ages) / len(ages)
    p50_ms, p99_ms = (percentile(ages, share) * 1e3 for share in (0.5, 0.99))
    return Shown(p50_ms, p99_ms, missed, len(ages) / now_s, len(ages) / runs)


def best_rate(world: World) -> float:
    """Return rows a second of the best size, without noise."""
    return max(rows / world.seconds_of(rows) for rows in range(1, MOST + 1))


def at_load(world: World, name: str, share: float, *, seconds: float, seed: int) -> Shown:
    """Let a policy serve at a share of what the device can do."""
    due_s = list(until(seconds, arrivals(share * best_rate(world), seed)))
    return simulate(world, POLICIES[name](world), due_s, seed=seed)


def draining(world: World, name: str, rows: int) -> Shown:
    """Let a policy drain what waits already, without noise: few large runs would be luck."""
    return simulate(world, POLICIES[name](world), [0.0] * rows, seed=0, noise=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    asked = parser.parse_args()
    seconds, rows = (4.0, BACKLOG // 5) if asked.quick else (20.0, BACKLOG)
    report = Report(asked.json)
    with ending(report):
        for world in (GPU, CPU):
            for share in LOADS:
                shown = {n: at_load(world, n, share, seconds=seconds, seed=1) for n in POLICIES}
                _tell(report, f"{world.name} at {share:.0%} of {best_rate(world):,.0f}/s", shown)
            backlog = rows if world is GPU else rows // 10
            shown = {name: draining(world, name, backlog) for name in POLICIES}
            _tell(report, f"{world.name}, drain", shown)
    return 0


def _tell(report: Report, case: str, shown: dict[str, Shown]) -> None:
    report.table(
        (case, "p50 ms", "p99 ms", "missed", "rows/s", "rows a batch"),
        [
            (
                name,
                f"{s.p50_ms:.1f}",
                f"{s.p99_ms:.1f}",
                f"{s.missed:.1%}",
                f"{s.rate:,.0f}",
                f"{s.mean_rows:.1f}",
            )
            for name, s in shown.items()
        ],
    )
    ours = shown[OURS]
    for name, s in shown.items():
        if name != OURS:
            report.add(
                Figure(case, "age p99", ours.p99_ms, "ms", name, ours.p99_ms / s.p99_ms),
                Figure(case, "rate", ours.rate, "rows/s", name, ours.rate / s.rate),
            )


if __name__ == "__main__":
    sys.exit(main())
