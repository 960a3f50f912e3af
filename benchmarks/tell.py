"""What the runs of a case showed: tables, and figures for the report."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.age import Aged
from benchmarks.drain import Drained
from benchmarks.peers import AIOKAFKA, CONFLUENT, DARKROOM, NAIVE
from benchmarks.ratios import Spread, beside, spread
from benchmarks.report import Figure, Report
from benchmarks.runs import Runs
from benchmarks.where_time_goes import functions, next_step, sampled, split, stages
from worker.inference.budget import cores

OFFLINE = "the offline limit"
_DRAINS = (
    "peer", "runs", "rate/s", "ratio", "95 %", "min-max", "worker ms", "engine ms", "broker ms",
    "cores", "RSS MB", "repeats", "lost",
)  # fmt: skip
_AGES = (
    "record age", "runs", "rate/s", "p50 ms", "p99 ms", "max ms", "cores", "lost", "repeats",
)  # fmt: skip
_QUIET = 0.05
_SHARES = (
    "the work itself (offline CPU)", "the engine, besides", "the worker's loop", "the broker",
    "others", "idle",
)  # fmt: skip


def drains(runs: Runs, report: Report) -> None:
    """Tell rates beside the offline limit, costs, repeats and losses of every peer."""
    key = runs.bench.case.key
    offline = [each.rate for each in runs.offline]
    limit = median(each.value for each in offline)
    cpu_ms = median(each.cpu_ms for each in runs.offline)
    itself = spread([beside(e, [o for o in offline if o is not e]) for e in offline])
    rows = [_drain_row(OFFLINE, limit, itself, {"worker": cpu_ms}, ())]
    report.add(Figure(key, OFFLINE, limit, "records/s"))
    report.add(Figure(key, f"{OFFLINE}: CPU", cpu_ms, "ms/record"))
    for peer in (DARKROOM, CONFLUENT, AIOKAFKA, NAIVE):
        found = [run for run in runs.drained if run.peer == peer]
        if found:
            ratio = spread([beside(run.rated, offline) for run in found])
            rate = median(run.rate for run in found)
            cpu = {role: median(run.cpu_ms[role] for run in found) for role in found[0].cpu_ms}
            rows.append(_drain_row(peer, rate, ratio, cpu, found))
            report.add(Figure(key, f"{peer}: drain", rate, "records/s", OFFLINE, ratio.median))
            report.add(*_drain_figures(key, peer, ratio, cpu, found))
    report.say()
    report.table(_DRAINS, rows)


def _drain_row(
    peer: str, rate: float, ratio: Spread, cpu: dict[str, float], found: Sequence[Drained]
) -> list[object]:
    return [
        peer,
        ratio.runs,
        rate,
        ratio.median,
        f"{ratio.low:.3f}-{ratio.high:.3f}",
        f"{ratio.least:.2f}-{ratio.most:.2f}",
        cpu["worker"],
        cpu.get("engine"),
        cpu.get("broker"),
        median(run.busy for run in found) if found else None,
        _memory(found) if found else None,
        sum(run.repeats for run in found) if found else None,
        sum(run.lost for run in found) if found else None,
    ]


def _drain_figures(
    key: str, peer: str, ratio: Spread, cpu: dict[str, float], found: Sequence[Drained]
) -> list[Figure]:
    ends = {
        "low end of the 95 % interval": ratio.low,
        "high end of the 95 % interval": ratio.high,
        "least": ratio.least,
        "most": ratio.most,
    }
    return [
        *(Figure(key, f"{peer}: drain, {n}", v, "ratio", OFFLINE, v) for n, v in ends.items()),
        Figure(key, f"{peer}: drain, pairs", ratio.runs, "runs"),
        *(Figure(key, f"{peer}: CPU, {role}", spent, "ms/record") for role, spent in cpu.items()),
        Figure(key, f"{peer}: busy", median(run.busy for run in found), "cores"),
        Figure(key, f"{peer}: memory", _memory(found), "MB"),
        Figure(key, f"{peer}: repeats", sum(run.repeats for run in found), "records"),
        Figure(key, f"{peer}: lost", sum(run.lost for run in found), "records"),
    ]


def _memory(found: Sequence[Drained]) -> float:
    """Return the resident megabytes of worker and engine together."""
    return median(sum(run.rss_mb.values()) - run.rss_mb["broker"] for run in found)


def where(runs: Runs, report: Report) -> None:
    """Tell where the cores' time went while Darkroom drained, and what the next step would be."""
    key = runs.bench.case.key
    ours = [run for run in runs.drained if run.peer == DARKROOM]
    limit_cpu_ms = median(each.cpu_ms for each in runs.offline)
    spent = split(ours, limit_cpu_ms=limit_cpu_ms, cores=cores())
    report.say("where the cores' time goes while Darkroom drains")
    report.table(
        ("what", "share"),
        [(name, f"{share:.1%}") for name, share in zip(_SHARES, spent, strict=True)],
    )
    if spent.others > _QUIET:
        report.say(f"the machine was not quiet: others took {spent.others:.0%} of it\n")
    for name, share in spent._asdict().items():
        report.add(Figure(key, f"{DARKROOM}: share of the cores, {name}", share, "share"))
    report.table(("in /metrics", "mean", "observations"), stages(ours[-1].metrics))
    report.say(f"next step: {next_step(spent)}")
    report.say()


def ages(runs: Runs, report: Report) -> None:
    """Tell the record age of Darkroom and of the loop on aiokafka at one rate."""
    key = runs.bench.case.key
    ours = [aged for aged in runs.aged if aged.peer == DARKROOM]
    theirs = [aged for aged in runs.aged if aged.peer == AIOKAFKA]
    report.say()
    report.table(_AGES, [_age_row(found) for found in (ours, theirs)])
    for name in ("p50_ms", "p99_ms"):
        pairs = [
            (getattr(our, name), getattr(their, name))
            for our, their in zip(ours, theirs, strict=True)
        ]
        ratio = median(our / their for our, their in pairs)
        metric = f"{DARKROOM}: record age {name.removesuffix('_ms')} at {ours[0].rate:,.0f}/s"
        value = median(our for our, _ in pairs)
        report.add(Figure(key, metric, value, "ms", AIOKAFKA, ratio))
        report.say(f"{metric}: {ratio:.2f} of {AIOKAFKA}")
    report.say()


def _age_row(found: Sequence[Aged]) -> list[object]:
    return [
        found[0].peer,
        len(found),
        found[0].rate,
        median(aged.p50_ms for aged in found),
        median(aged.p99_ms for aged in found),
        max(aged.most_ms for aged in found),
        median(aged.busy for aged in found),
        sum(aged.lost for aged in found),
        sum(aged.repeats for aged in found),
    ]


def profile(runs: Runs, report: Report) -> None:
    """Tell the functions that cost most, on the worker's loop and in a lane."""
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        slow, worker, lane = runs.profile(Path(folder))
        report.say(f"\nfunctions (sampled, Darkroom drains {slow.rate:,.0f}/s)")
        found = {
            "the worker's main thread, by CPU time": sampled(worker),
            "a lane offline, by cProfile": functions(lane),
        }
        for title, shares in found.items():
            rows = [(name, f"{own:.1%}", f"{whole:.1%}") for name, own, whole in shares]
            report.table((title, "itself", "with calls"), rows)
