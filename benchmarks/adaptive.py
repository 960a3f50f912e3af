"""Record age at a rate on a real Kafka: batches sized by what they cost, beside fixed sizes.

`python benchmarks/adaptive.py [--quick] [--json FILE]`; the method: README.md beside it.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.age import Aged, age
from benchmarks.drain import drain
from benchmarks.ending import ending
from benchmarks.peers import DARKROOM
from benchmarks.report import Figure, Report
from benchmarks.runs import Effort, Runs, runs_of
from benchmarks.throughput import cases_of, positive
from worker.errors import DarkroomError
from worker.local.spec import StackSpec
from worker.local.stack import running

ADAPTIVE = "adaptive"
VARIANTS: dict[str, Mapping[str, Any]] = {
    ADAPTIVE: {"max_size": "auto"},
    "fixed 16": {"max_size": 16},
    "fixed 64": {"max_size": 64},
}
SHARES = (0.30, 0.60, 0.85)
QUICK = Effort(pairs=1, seconds=3.0, offline_s=2.0, ages=1, age_s=5.0)
FULL = Effort(pairs=3, seconds=6.0, offline_s=3.0, ages=3, age_s=20.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything once, in a few minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--case", choices=("a", "b"), help="one case only")
    parser.add_argument(
        "--share", type=float, action="append", help="of the drain rate; repeatable"
    )
    parser.add_argument("--rounds", type=positive, help="runs of every variant at every share")
    asked = parser.parse_args()
    effort = QUICK if asked.quick else FULL
    if asked.rounds:
        effort = effort._replace(pairs=asked.rounds, ages=asked.rounds)
    report = Report(asked.json)
    report.say_machine()
    whole = True
    with ending(report), tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        cases = cases_of(Path(folder) / "models", report, only=asked.case)
        with running(StackSpec(data=Path(folder), redis=False, topics=())) as stack:
            for case in cases:
                report.say(f"\n({case.key}) {case.title}")
                with runs_of(stack, case, effort, report.say) as runs:
                    rate = _drained(runs, report)
                    for share in asked.share or SHARES:
                        whole = _aged(runs, report, rate, share) and whole
    return 0 if whole else 1


def _drained(runs: Runs, report: Report) -> float:
    """Drain with every variant in turn; return the median rate of the adaptive one."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for name in turns(runs.effort.pairs):
        bench = runs.bench._replace(batch=VARIANTS[name])
        rates[name].append(drain(bench, DARKROOM, seconds=runs.effort.seconds).rate)
        report.say(f"  {name:<10} drains {rates[name][-1]:10,.1f}/s")
    ours = median(rates[ADAPTIVE])
    case = runs.bench.case.key
    for name, found in rates.items():
        report.add(Figure(case, "drain", ours, "records/s", name, ours / median(found)))
    return ours


def _aged(runs: Runs, report: Report, rate: float, share: float) -> bool:
    """Age records with every variant in turn at a share of a rate; False: some were lost."""
    found: dict[str, list[Aged]] = {name: [] for name in VARIANTS}
    for name in turns(runs.effort.ages):
        bench = runs.bench._replace(batch=VARIANTS[name])
        seconds, seed = runs.effort.age_s, len(found[name])
        found[name].append(age(bench, DARKROOM, rate=share * rate, seconds=seconds, seed=seed))
    case = f"{runs.bench.case.key} at {share:.0%}"
    rows = []
    for name, aged in found.items():
        p50_ms, p99_ms = (median(getattr(a, p) for a in aged) for p in ("p50_ms", "p99_ms"))
        ratios = [ours.p99_ms / a.p99_ms for ours, a in zip(found[ADAPTIVE], aged, strict=True)]
        late_ms = max(a.late_ms for a in aged)
        busy = median(a.busy for a in aged)
        rows.append(
            (name, p50_ms, p99_ms, median(ratios), busy, late_ms, sum(a.lost for a in aged))
        )
        ours_ms = median(a.p99_ms for a in found[ADAPTIVE])
        report.add(Figure(case, "age p99", ours_ms, "ms", name, median(ratios)))
    head = ("p50 ms", "p99 ms", "adaptive's p99 over it", "busy cores", "late ms", "lost")
    report.table((f"{case}: {share * rate:,.0f}/s", *head), rows)
    return not any(a.lost for aged in found.values() for a in aged)


def turns(rounds: int) -> Sequence[str]:
    """Return whose turn it is: each once a round, another one first each time."""
    names = list(VARIANTS)
    return [
        names[(number + at) % len(names)] for number in range(rounds) for at in range(len(names))
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DarkroomError as error:
        sys.exit(str(error))
