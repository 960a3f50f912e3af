"""How long a worker takes from nothing to its first result, and what it holds when idle.

`python benchmarks/cold_start.py [--quick] [--json FILE]`; the method: README.md beside it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import topics
from benchmarks.cases import Case, demo_digits, photographs
from benchmarks.ending import ending
from benchmarks.peers import DARKROOM, Where, cpu_s, running
from benchmarks.report import Figure, Report
from worker.inference.budget import resident_bytes
from worker.local import stack as local
from worker.local.spec import StackSpec

STARTS, QUICK_STARTS = 11, 3
IDLE_S = 5.0
"""From the first result until memory is measured."""
TARGET_S, TARGET_MB = 3.0, 250.0
"""From the start of the process to its first result; PSS of worker and engines."""
_FIRST_S = 60.0


class Cold(NamedTuple):
    """One start."""

    first_s: float
    """From the start of the process to the LogAppendTime of the first result."""
    loaded_s: float
    """From the start of the process to the first warm engine."""
    worker_cpu_s: float
    """Until the first result; so is the next."""
    engine_cpu_s: float
    worker_pss_mb: float
    """Proportional set size when idle; so is the next."""
    engine_pss_mb: float
    peak_mb: float
    """The most of own pages of all, and those of files once: what `models/room.py` reckons by."""

    @property
    def pss_mb(self) -> float:
        return self.worker_pss_mb + self.engine_pss_mb


def start(stack: local.Stack, case: Case) -> Cold:
    """Start a worker for which records wait, let it serve them and rest, and end it."""
    word = uuid.uuid4().hex[:12]
    made = topics.make(stack, f"cold-{word}")
    topics.fill(stack, made[0], case.pictures[:1], topics.PARTITIONS)
    watched = topics.Output(stack, made[1])
    where = Where(stack.bootstrap_servers, *made, f"cold-{word}")
    began_s = time.time()
    with running(DARKROOM, case, where) as peer:
        if not watched.wait_for(1, _FIRST_S, alive=peer.check):
            raise SystemExit(f"no result in {_FIRST_S:g} s")
        worker, engines = peer.processes()
        worker_cpu_s, engine_cpu_s = cpu_s(worker), sum(map(cpu_s, engines))
        time.sleep(IDLE_S)
        worker_mb, engine_mb = pss_mb(worker), sum(map(pss_mb, engines))
        peak_mb = resident_bytes(each.pid for each in (worker, *engines)) / 1e6
        loaded_s = peer.logged_s("engine.loaded") - began_s
        peer.end()
    first_s = min(watched.read().stamps_ms.values()) / 1e3 - began_s
    topics.remove(stack, made)
    return Cold(first_s, loaded_s, worker_cpu_s, engine_cpu_s, worker_mb, engine_mb, peak_mb)


def pss_mb(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / 1e6


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STARTS} starts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--starts", type=int, metavar="N", help=f"{STARTS} unless said")
    asked = parser.parse_args(given)
    if asked.starts is not None and asked.starts < 1:
        parser.error("--starts: at least 1")
    return asked


def main() -> int:
    asked = arguments(sys.argv[1:])
    count = asked.starts or (QUICK_STARTS if asked.quick else STARTS)
    report = Report(asked.json)
    report.say_machine()
    with ending(report), tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        case = _case(Path(folder) / "models", report)
        spec = StackSpec(data=Path(folder) / "stack", redis=False, topics=())
        with local.running(spec) as stack:
            found = [start(stack, case) for _ in range(count)]
        _tell(case, found, report)
    return 0


def _case(folder: Path, report: Report) -> Case:
    named = os.environ.get("DARKROOM_TEST_ASSETS")
    if named and Path(named).is_dir():
        return photographs(Path(named), folder)
    report.say("DARKROOM_TEST_ASSETS names no folder: the demo's digits instead of squeezenet")
    return demo_digits()


def _tell(case: Case, found: Sequence[Cold], report: Report) -> None:
    """Print and keep the median of each figure."""
    rows = []
    for name in (*Cold._fields, "pss_mb"):
        values = [getattr(each, name) for each in found]
        metric, _, unit = name.rpartition("_")
        median = statistics.median(values)
        target = {"first_s": TARGET_S, "pss_mb": TARGET_MB}.get(name)
        ratio = None if target is None else median / target
        rows.append((f"{metric} {unit}", median, min(values), max(values), target))
        baseline = None if target is None else "target"
        report.add(Figure(case.model, metric, median, unit, baseline, ratio))
    report.say(f"\n{case.title}: {len(found)} starts")
    report.table(("", "median", "least", "most", "target"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
