"""What it costs to change the version of a whole fleet, on a real Kafka and a real Redis.

`python benchmarks/swap.py [--quick] [--json FILE]`; the method: README.md beside it.
"""

import argparse
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import tell_swaps
from benchmarks.commanded import (
    IN_TURN,
    LOAD,
    ROLLBACK,
    WARM,
    WARM_S,
    Change,
    Run,
    Setup,
    Step,
    Stretch,
    cycle,
    digits,
    run_of,
    squeezenet,
)
from benchmarks.ending import Ended, ending
from benchmarks.ratios import steady_rate
from benchmarks.report import Report, busy_s
from benchmarks.served import ages_ms, batch_interval_ms, gaps_ms, last_before
from benchmarks.tell_swaps import Pair, Swapped
from worker.errors import DarkroomError
from worker.inference.budget import cores
from worker.local.spec import StackSpec
from worker.local.stack import running

LOAD_SHARE = 0.4
MANY = 100
"""Swaps after which memory is measured again."""


class Effort(NamedTuple):
    """How much is measured."""

    swaps: int
    """Under load, by 40 % of what is drained."""
    pairs: int
    """Into how many stretches they are divided; a steady one stands beside each."""
    steady_s: float
    drain_s: float
    switches: int
    """Between warm versions under backlog; an even number, so that the cycle goes on after it."""
    deaf: int
    """Swaps while no worker hears a nudge."""
    most_s: float
    """No swap begins after so long; what is under way is finished."""


_STRETCH = 20
"""Swaps that are worth a steady stretch beside them."""
FULL = {
    "digits": Effort(200, 10, 8.0, 8.0, 40, 20, 480.0),
    "squeezenet": Effort(24, 4, 15.0, 10.0, 12, 0, 240.0),
}
QUICK = {
    "digits": Effort(10, 1, 5.0, 3.0, 4, 2, 55.0),
    "squeezenet": Effort(5, 1, 5.0, 4.0, 2, 0, 40.0),
}


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few swaps, in about 2 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--case", choices=tuple(FULL), help="one case only")
    parser.add_argument(
        "--swaps", type=int, metavar="N", help="of the digits, under load; all else in proportion"
    )
    asked = parser.parse_args(given)
    if asked.swaps is not None and asked.swaps < 2:
        parser.error("--swaps: at least 2: memory is compared to that after the first")
    return asked


def effort_of(asked: argparse.Namespace, key: str) -> Effort:
    effort = (QUICK if asked.quick else FULL)[key]
    if key != "digits" or asked.swaps is None:
        return effort
    share = min(1.0, asked.swaps / effort.swaps)
    return effort._replace(
        swaps=asked.swaps,
        pairs=min(effort.pairs, max(1, asked.swaps // _STRETCH)),
        switches=2 * math.ceil(share * effort.switches / 2),
        deaf=math.ceil(share * effort.deaf),
    )


def divided(count: int, parts: int) -> list[int]:
    """Divide so many into parts that differ by one at most."""
    least, more = divmod(count, parts)
    return [least + (number < more) for number in range(parts)]


def main() -> int:
    asked = arguments(sys.argv[1:])
    report = Report(asked.json)
    report.say_machine()
    whole = True
    with (
        ending(report),
        tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder,
        running(StackSpec(data=Path(folder), topics=())) as stack,
    ):
        for key, make in _cases(report, only=asked.case):
            with run_of(stack, Path(folder) / key, make, report.say) as run:
                found = Swapped(run.setup.key)
                try:
                    measure(run, found, effort_of(asked, key), report.say)
                except Ended:
                    tell_swaps.all_of(found, report)
                    raise
                tell_swaps.all_of(found, report)
            whole = whole and not any(found.wrong.values())
    return 0 if whole else 1


def _cases(report: Report, *, only: str | None) -> list[tuple[str, Callable[[Path], Setup]]]:
    cases: dict[str, Callable[[Path], Setup]] = {"digits": digits}
    named = os.environ.get("DARKROOM_TEST_ASSETS")
    if named and Path(named).is_dir():
        cases["squeezenet"] = partial(squeezenet, Path(named))
    elif only == "squeezenet":
        raise SystemExit("squeezenet is in the folder that DARKROOM_TEST_ASSETS names")
    else:
        report.say("DARKROOM_TEST_ASSETS names no folder: no squeezenet")
    return [(key, make) for key, make in cases.items() if only in (None, key)]


def measure(run: Run, found: Swapped, effort: Effort, say: Callable[[str], None]) -> None:
    """Measure one fleet; what is found is filled as stretches end."""
    began_s, before_s, ours_s = time.monotonic(), busy_s(), run.cpu_s()
    steps = cycle()
    drained = run.backlog(seconds=effort.drain_s)
    stamps = [row.stamp_ms for row in drained.rows]
    found.drained, found.interval_ms = steady_rate(stamps), batch_interval_ms(drained.rows)
    found.rate = LOAD_SHARE * found.drained
    say(f"  drains {found.drained:,.0f}/s; {LOAD_SHARE:.0%} of it is sent: {found.rate:,.0f}/s")
    first = run.at_rate(found.rate, seed=0, steps=list(itertools.islice(steps, 1)))
    _take(found, run, first)
    found.resident_mb["after the first"] = run.resident_mb()
    say("  swaps under backlog")
    under = run.backlog(steps=[Step(ROLLBACK, None)] * effort.switches)
    _take_backlog(found, under)
    until_s = began_s + effort.most_s
    for number, count in enumerate(divided(effort.swaps - 1, effort.pairs)):
        if number and time.monotonic() > until_s:
            say(f"  the time is up after {found.swaps} swaps")
            break
        in_time = itertools.takewhile(lambda _: time.monotonic() < until_s, steps)
        made = itertools.chain(itertools.islice(steps, 1), itertools.islice(in_time, count - 1))
        _pair(found, run, number, effort.steady_s, made)
        if found.swaps >= MANY:
            found.resident_mb.setdefault(f"after {MANY}", run.resident_mb())
        say(f"  {found.swaps} swaps: {tell_swaps.in_words(found.pairs[-1])}")
    found.resident_mb["at the end"] = run.resident_mb()
    if effort.deaf:
        with run.deaf():
            deaf = run.at_rate(found.rate, seed=1, steps=[Step(ROLLBACK, None)] * effort.deaf)
        found.swaps += len(deaf.changes)
        found.deaf_ms += [change.took_ms for change in deaf.changes]
    found.wrong |= _wrong(run)
    elapsed_s = time.monotonic() - began_s
    others_s = busy_s() - before_s - (run.cpu_s() - ours_s)
    found.others = max(0.0, others_s / elapsed_s / cores())


def _pair(found: Swapped, run: Run, number: int, steady_s: float, steps: Iterator[Step]) -> None:
    """Swap at a rate, beside a steady stretch at the same; which comes first changes."""
    rate, seed = found.rate, number + 2
    if number % 2 == 0:
        steady = run.at_rate(rate, seed=seed, seconds=steady_s)
        swaps = run.at_rate(rate, seed=seed, steps=steps)
    else:
        swaps = run.at_rate(rate, seed=seed, steps=steps)
        steady = run.at_rate(rate, seed=seed, seconds=steady_s)
    _take(found, run, swaps)
    whole = [(int((steady.due_s[0] + WARM_S) * 1e3), int(steady.due_s[-1] * 1e3))]
    changes = swaps.changes
    spans = {
        tell_swaps.SWAPS: [(changes[0].written_ms, changes[-1].span_ms[1])],
        tell_swaps.AT_ONCE: [change.span_ms for change in changes if change.kind == LOAD],
        tell_swaps.IN_TURN: [change.span_ms for change in changes if change.kind == IN_TURN],
    }
    ages = {what: _ages(swaps, each) for what, each in spans.items() if each}
    late_ms = max(steady.late_s, swaps.late_s) * 1e3
    found.pairs.append(Pair(_ages(steady, whole), ages, late_ms))


def _ages(stretch: Stretch, spans: list[tuple[int, int]]) -> tell_swaps.Several:
    return tell_swaps.several(ages_ms(stretch.rows, stretch.due_s, stretch.first, spans))


def _take(found: Swapped, run: Run, stretch: Stretch) -> None:
    """Take what swaps under load show, but for the ages."""
    loads_s = run.loads_s()
    for change in stretch.changes:
        found.swaps += 1
        if change.kind in {LOAD, IN_TURN}:
            took_s = {worker: each[found.loads] for worker, each in loads_s.items()}
            found.loads += 1
            found.load_s += took_s.values()
            besides = besides_loads(change, took_s)
            (found.load_ms if change.kind == LOAD else found.turn_ms).append(besides)
        if change.kind in {WARM, ROLLBACK}:
            found.nudge_ms.append(change.took_ms)
        if change.kind == ROLLBACK:
            last_ms = last_before(stretch.rows, change.generation) or 0
            found.rollback_ms.append(max(0, last_ms - change.written_ms))


def besides_loads(change: Change, took_s: Mapping[str, float]) -> float:
    """Return the milliseconds of a swap beside its loads, of the worker that was last.

    At once, each worker has its own load to wait for; in turn, everybody waits for all.
    """
    if change.kind == IN_TURN:
        return change.took_ms - sum(took_s.values()) * 1e3
    return max(
        at - change.written_ms - took_s[worker] * 1e3 for worker, at in change.answered_ms.items()
    )


def _take_backlog(found: Swapped, stretch: Stretch) -> None:
    found.swaps += len(stretch.changes)
    found.switch_ms += [gap_s * 1e3 for change in stretch.changes for gap_s in change.gaps_s]
    generations = [change.generation for change in stretch.changes]
    found.outside_ms += gaps_ms(stretch.rows, [generations[0] - 1, *generations])


def _wrong(run: Run) -> dict[str, int]:
    account = run.account
    return {
        "records lost": run.lost,
        "records repeated": account.repeated,
        "records out of order": account.disordered,
        "records not served": account.unserved,
        "batches with two versions": account.torn,
        "results of a version that was not allowed": account.forbidden(run.fleet.allowed()),
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DarkroomError as error:
        sys.exit(str(error))
