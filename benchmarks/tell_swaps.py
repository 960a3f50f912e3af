"""What swaps showed: a table with the targets beside it, and figures for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from benchmarks.commanded import POLL_S
from benchmarks.ratios import percentile, spread
from benchmarks.report import Figure, Report

STEADY = "steady state"
SWAPS, AT_ONCE, IN_TURN = "swaps", "loads, all at once", "loads, in turn"
_HEAD = ("what", "n", "p50", "p99", "max", "target", "met")
_QUIET = 0.05


class Several(NamedTuple):
    """Of many values."""

    number: int
    p50: float
    p99: float
    most: float


class Pair(NamedTuple):
    """Ages (ms) of a stretch of swaps and of a steady one beside it."""

    steady: Several
    meanwhile: Mapping[str, Several]
    """Of the records that were due in any swap, and during loads of either kind."""
    late_ms: float
    """How late the producer was, at the worst."""


@dataclass
class Swapped:
    """What one fleet showed; it is filled as it is measured."""

    key: str
    drained: float = 0.0
    """Records a second."""
    interval_ms: float = 0.0
    """Between two batches of a worker, under backlog and without swaps."""
    rate: float = 0.0
    swaps: int = 0
    loads: int = 0
    others: float | None = None
    """Share of the machine that other processes took; it is known at the end."""
    wrong: dict[str, int] = field(default_factory=dict)
    switch_ms: list[float] = field(default_factory=list)
    outside_ms: list[int] = field(default_factory=list)
    rollback_ms: list[int] = field(default_factory=list)
    nudge_ms: list[int] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    """Convergence less the load of the worker that was last."""
    turn_ms: list[float] = field(default_factory=list)
    """Convergence in two phases, one worker after the other, less all loads."""
    load_s: list[float] = field(default_factory=list)
    deaf_ms: list[int] = field(default_factory=list)
    resident_mb: dict[str, list[float]] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)


class Line(NamedTuple):
    """A quantity with its target, if it has one."""

    what: str
    values: Sequence[float]
    unit: str
    target: float | None = None
    of: str = "p99"
    """What of it the target is for."""


def several(values: Sequence[float]) -> Several:
    if not values:
        raise SystemExit("nothing was measured that counts")
    return Several(len(values), percentile(values, 0.5), percentile(values, 0.99), max(values))


def in_words(pair: Pair) -> str:
    ages = ", ".join(f"{what} {age.p99:.1f}" for what, age in pair.meanwhile.items())
    return (
        f"age p99 {ages}, steady {pair.steady.p99:.1f} ms"
        f" (producer late by {pair.late_ms:.0f} ms at most)"
    )


def lines_of(found: Swapped) -> list[Line]:
    return [
        Line("the switch under backlog, as workers measure it", found.switch_ms, "ms", 10.0, "p50"),
        Line("the switch under backlog, by LogAppendTime", found.outside_ms, "ms"),
        Line("rollback: written to last result of the old", found.rollback_ms, "ms", 2000.0),
        Line("convergence by nudge, version warm", found.nudge_ms, "ms", 1000.0),
        Line("convergence by nudge, less the load", found.load_ms, "ms", 1000.0),
        Line("convergence in two phases, less the loads", found.turn_ms, "ms"),
        Line("a load", found.load_s, "s"),
        Line("convergence, pub/sub cut", found.deaf_ms, "ms", POLL_S * 1.2 * 1e3, "max"),
    ]


def all_of(found: Swapped, report: Report) -> None:
    """Tell what was found, or what of it there is: nothing before the drain."""
    if not found.drained:
        return
    report.say()
    _wrong(found, report)
    _quantities(found, report)
    if found.resident_mb:
        _memory(found, report)
    if found.pairs:
        _ages(found, report)
    key = found.key
    report.add(
        Figure(key, "drain", found.drained, "records/s"),
        Figure(key, "sent", found.rate, "records/s", "drain", found.rate / found.drained),
        Figure(key, "swaps", found.swaps, "swaps"),
        Figure(key, "between two batches of a worker, no swaps", found.interval_ms, "ms"),
    )
    report.say(f"between two batches of a worker, under backlog: {found.interval_ms:.1f} ms")
    if found.others is not None:
        report.add(Figure(key, "share of the machine, others", found.others, "share"))
        quiet = "quiet" if found.others < _QUIET else "not quiet"
        report.say(f"the machine was {quiet}: others took {found.others:.0%} of it")
    report.say()


def _wrong(found: Swapped, report: Report) -> None:
    rows = [(what, count, 0, _met(met=not count)) for what, count in found.wrong.items()]
    if rows:
        report.table((f"{found.swaps} swaps", "count", "target", "met"), rows)
    else:
        report.say(
            f"{found.swaps} swaps; what was lost, repeated or mixed is counted at the end: it was"
            " not reached\n"
        )
    report.add(
        *(Figure(found.key, w, count, "count", "target 0") for w, count in found.wrong.items())
    )


def _quantities(found: Swapped, report: Report) -> None:
    rows: list[list[object]] = []
    for what, values, unit, target, of in lines_of(found):
        if not values:
            continue
        whole = several(values)
        parts = {"p50": whole.p50, "p99": whole.p99, "max": whole.most}
        shown = [f"{value:,.3g} {unit}" for value in parts.values()]
        bound = None if target is None else f"{of} <= {target:,.0f} {unit}"
        met = None if target is None else _met(met=parts[of] <= target)
        rows.append([what, whole.number, *shown, bound, met])
        for name, value in parts.items():
            aimed = target if name == of else None
            baseline = None if aimed is None else f"target <= {aimed:g} {unit}"
            ratio = None if aimed is None else value / aimed
            report.add(Figure(found.key, f"{what}, {name}", value, unit, baseline, ratio))
        report.add(Figure(found.key, f"{what}, count", whole.number, "measurements"))
    if rows:
        report.table(_HEAD, rows)


def _memory(found: Swapped, report: Report) -> None:
    (before, first), *later = found.resident_mb.items()
    rows: list[list[object]] = [[before, sum(first), None, None, None, None]]
    report.add(Figure(found.key, f"memory {before}", sum(first), "MB"))
    for when, each in later:
        ratio = sum(each) / sum(first)
        worst = max(now / then for now, then in zip(each, first, strict=True))
        rows.append([when, sum(each), ratio, worst, "<= 1.05", _met(met=ratio <= 1.05)])
        report.add(
            Figure(
                found.key, f"memory {when}", sum(each), "MB", f"{before}; target <= 1.05", ratio
            ),
            Figure(found.key, f"memory {when}, worst worker", worst, "ratio", before, worst),
        )
    report.table(("memory", "MB", "ratio", "worst worker", "target", "met"), rows)


def _ages(found: Swapped, report: Report) -> None:
    key = found.key
    steady = _medians([pair.steady for pair in found.pairs])
    rows: list[list[object]] = [["steady", *steady, None, None, None, None]]
    report.add(
        Figure(key, "record age p50, steady", steady.p50, "ms"),
        Figure(key, "record age p99, steady", steady.p99, "ms"),
    )
    for what in (SWAPS, AT_ONCE, IN_TURN):
        beside = [
            (pair.meanwhile[what], pair.steady) for pair in found.pairs if what in pair.meanwhile
        ]
        if not beside:
            continue
        ages = _medians([age for age, _ in beside])
        ratio = spread([age.p99 / steady.p99 for age, steady in beside])
        spans = f"{ratio.least:.2f}-{ratio.most:.2f}"
        rows.append([what, *ages, ratio.median, spans, "<= 1.5", _met(met=ratio.median <= 1.5)])
        target = f"{STEADY}; target <= 1.5"
        report.add(
            Figure(key, f"record age p50, {what}", ages.p50, "ms"),
            Figure(key, f"record age p99, {what}", ages.p99, "ms", target, ratio.median),
            Figure(key, f"record age p99, {what}, least", ratio.least, "ratio", STEADY),
            Figure(key, f"record age p99, {what}, most", ratio.most, "ratio", STEADY),
        )
    head = (
        "record age",
        "n",
        "p50 ms",
        "p99 ms",
        "max ms",
        "p99 ratio",
        "min-max",
        "target",
        "met",
    )
    report.table(head, rows)


def _medians(ages: Sequence[Several]) -> Several:
    """Return the medians over stretches, with the sum of their records and the worst of all."""
    return Several(
        sum(age.number for age in ages),
        median(age.p50 for age in ages),
        median(age.p99 for age in ages),
        max(age.most for age in ages),
    )


def _met(*, met: bool) -> str:
    return "yes" if met else "NO"
