"""Darkroom beside loops written by hand and beside the offline limit, on a real Kafka.

`python benchmarks/throughput.py [--quick] [--json FILE]`; the method: README.md beside it.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tell
from benchmarks.cases import Case, demo_digits, photographs, shifted_digits
from benchmarks.ending import ending
from benchmarks.report import Report
from benchmarks.runs import Effort, Runs, runs_of
from worker.errors import DarkroomError
from worker.local.spec import StackSpec
from worker.local.stack import running

PARTS = ("drain", "age", "profile")
QUICK = Effort(pairs=1, seconds=3.0, offline_s=2.0, ages=1, age_s=5.0)
FULL = Effort(pairs=10, seconds=0.0, offline_s=5.0, ages=3, age_s=20.0)


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything once, in about 2 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--case", choices=("a", "b"), help="one case only")
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="one part only; may be repeated"
    )
    parser.add_argument("--pairs", type=positive, help="runs of Darkroom beside offline runs")
    parser.add_argument("--ages", type=positive, help="pairs of age runs")
    parser.add_argument("--seconds", type=float, help="the window of a drain")
    return parser.parse_args(given)


def effort_of(asked: argparse.Namespace, case: Case) -> Effort:
    effort = QUICK if asked.quick else FULL._replace(seconds=case.seconds)
    given = {name: getattr(asked, name) for name in ("pairs", "ages", "seconds")}
    return effort._replace(**{name: value for name, value in given.items() if value is not None})


def main() -> int:
    asked = arguments(sys.argv[1:])
    report = Report(asked.json)
    report.say_machine()
    parts = asked.part or PARTS
    whole = True
    with ending(report), tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        cases = cases_of(Path(folder) / "models", report, only=asked.case)
        with running(StackSpec(data=Path(folder), redis=False, topics=())) as stack:
            for case in cases:
                report.say(f"\n({case.key}) {case.title}")
                with runs_of(stack, case, effort_of(asked, case), report.say) as runs:
                    whole = _measure(runs, parts, report) and whole
    return 0 if whole else 1


def cases_of(folder: Path, report: Report, *, only: str | None) -> list[Case]:
    named = os.environ.get("DARKROOM_TEST_ASSETS")
    if named and Path(named).is_dir():
        made = {"a": photographs, "b": shifted_digits}
        return [make(Path(named), folder) for key, make in made.items() if only in (None, key)]
    if only == "a":
        raise SystemExit("case (a) needs the folder of assets that DARKROOM_TEST_ASSETS names")
    report.say("DARKROOM_TEST_ASSETS names no folder: no case (a), and (b) is the demo's digits")
    return [demo_digits()]


def _measure(runs: Runs, parts: Sequence[str], report: Report) -> bool:
    """Measure one case; False when something was lost."""
    if "drain" in parts:
        runs.drain_all()
        tell.drains(runs, report)
        tell.where(runs, report)
    if "age" in parts:
        runs.age_all()
        tell.ages(runs, report)
    if "profile" in parts:
        tell.profile(runs, report)
    return not any(run.lost for run in runs.drained) and not any(run.lost for run in runs.aged)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DarkroomError as error:
        sys.exit(str(error))
