"""Where Darkroom's time goes: CPU by process beside the offline limit, stages, functions."""

import json
import pstats
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.drain import Drained

_SAMPLE = re.compile(r"^(darkroom_\w+?)_(sum|count)(?:\{stop=\"(\w+)\"\})? (\S+)$", re.MULTILINE)
_FUNCTIONS = 18
_LIFE = ("worker.pipeline", "worker.kafka", "worker.inference", "worker.protocol", "worker.models")
"""Modules that every record passes on the worker's loop."""


class Split(NamedTuple):
    """How the cores' time was spent during Darkroom's windows, as shares of all of it."""

    limit: float
    """What the offline limit needs for as many records: the work itself."""
    engine: float
    """What the engine needs beyond that: the channel, feeding, its share of the memory bus."""
    worker: float
    broker: float
    others: float
    """The rest of the machine: this script, the broker's page cache, other processes."""
    idle: float


def split(runs: Sequence[Drained], *, limit_cpu_ms: float, cores: int) -> Split:
    """Return the medians over the runs of Darkroom."""
    shares = []
    for run in runs:
        per_ms = run.rate / 1e3 / cores
        limit = limit_cpu_ms * per_ms
        engine = run.cpu_ms.get("engine", 0.0) * per_ms
        shares.append(
            Split(
                limit,
                engine - limit,
                run.cpu_ms["worker"] * per_ms,
                run.cpu_ms["broker"] * per_ms,
                max(0.0, 1 - (run.busy + run.idle) / cores),
                run.idle / cores,
            )
        )
    return Split(*(median(column) for column in zip(*shares, strict=True)))


def next_step(spent: Split) -> str:
    """Name what would bring the most, and how much that could be."""
    candidates = {
        "idle": "lanes that never wait: a larger window, or an earlier poll",
        "engine": "a cheaper way in and out of the engine (channel, messages, per-row bookkeeping)",
        "worker": "less Python per record on the worker's loop (envelope, ledger, result, publish)",
        "broker": "fewer and larger requests to the broker",
    }
    name = max(candidates, key=lambda each: float(getattr(spent, each)))
    return (
        f"the largest share that is not the work itself is `{name}`, "
        f"{getattr(spent, name):.1%} of the cores: {candidates[name]}"
    )


def stages(metrics: str) -> list[tuple[str, float, int]]:
    """Return (histogram or stop, mean, observations) of what Darkroom tells of itself."""
    sums: dict[str, dict[str, float]] = {}
    for name, kind, stop, value in _SAMPLE.findall(metrics):
        label = f"stop {stop}" if stop else name.removeprefix("darkroom_")
        sums.setdefault(label, {})[kind] = float(value)
    return [
        (label, found["sum"] / found["count"], int(found["count"]))
        for label, found in sums.items()
        if found.get("count")
    ]


def functions(profile: Path) -> list[tuple[str, float, float]]:
    """Read a profile of cProfile: (function, share of the time in itself, with what it calls)."""
    stats: Any = pstats.Stats(str(profile))
    total = stats.total_tt or 1.0
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:_FUNCTIONS]
    return [(_name(*where), own / total, whole / total) for where, (_, _, own, whole, _) in rows]


def sampled(samples: Path) -> list[tuple[str, float, float]]:
    """Read what `benchmarks.sampled` wrote, the same way: costly by itself, or with its calls."""
    said = json.loads(samples.read_text())
    total = said["samples"] or 1
    itself, whole = (
        {name: count / total for name, count in said[kind].items()}
        for kind in ("itself", "with_calls")
    )
    by_self = sorted(itself, key=lambda name: -itself[name])[:_FUNCTIONS]
    ours = (name for name in whole if name.startswith(_LIFE))
    by_whole = sorted(ours, key=lambda name: -whole[name])[:_FUNCTIONS]
    names = dict.fromkeys([*by_self, *by_whole])
    return [(name, itself.get(name, 0.0), whole[name]) for name in names]


def _name(file: str, line: int, function: str) -> str:
    if file == "~":
        return function
    parts = Path(file).parts[-2:]
    return f"{'/'.join(parts)}:{line} {function}"
