"""One drain: a peer on a full topic, its rate in a window, what a record cost, nothing lost."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import psutil

from benchmarks import topics
from benchmarks.cases import Case
from benchmarks.peers import Usage, Where, busy_cores, running
from benchmarks.ratios import Timed, steady_rate
from worker.local.stack import Stack

SETTLE_S = 2.0
"""From the first result to the window."""
_FIRST_S = 60.0


class Bench(NamedTuple):
    """What every run of a case needs."""

    stack: Stack
    broker: psutil.Process
    case: Case
    input: str
    """The preloaded topic."""
    best: list[str]
    """The best label of each picture."""
    batch: Mapping[str, Any] | None = None
    """Darkroom's settings of batches; None: the cap of the case."""


class Drained(NamedTuple):
    """What a drain showed."""

    peer: str
    at_s: float
    """The middle of the window, epoch seconds."""
    rate: float
    """Results a second."""
    records: int
    """Results in the window."""
    cpu_ms: dict[str, float]
    """CPU milliseconds a record by role."""
    busy: float
    """Cores that the peer and the broker kept busy."""
    idle: float
    """Cores that had nothing to do."""
    rss_mb: dict[str, float]
    repeats: int
    lost: int
    metrics: str
    used_up: bool
    """The topic was used up before the window ended: the window was cut there."""

    @property
    def rated(self) -> Timed:
        return Timed(self.at_s, self.rate)


def drain(bench: Bench, peer: str, *, seconds: float, profile: Path | None = None) -> Drained:
    """Let a peer drain the preloaded topic into an output of its own."""
    word = uuid.uuid4().hex[:12]
    _, output, dead = made = topics.make(bench.stack, f"drain-{word}")
    where = Where(bench.stack.bootstrap_servers, bench.input, output, dead, f"drain-{word}")
    watched = topics.Output(bench.stack, output)
    with running(peer, bench.case, where, profile=profile, batch=bench.batch) as process:
        if not watched.wait_for(1, _FIRST_S, alive=process.check):
            raise SystemExit(f"{peer}: no result in {_FIRST_S:g} s")
        time.sleep(SETTLE_S)
        before = process.usage(bench.broker)
        time.sleep(seconds)
        after = process.usage(bench.broker)
        metrics = process.metrics()
        process.end()
    results = watched.read()
    lost = topics.lost(bench.stack, where.group, bench.input, results)
    topics.remove(bench.stack, made)
    _check(bench, peer, results)
    return _drained(peer, (before, after), results, lost=lost, metrics=metrics)


def _drained(
    peer: str, usage: tuple[Usage, Usage], results: topics.Results, *, lost: int, metrics: str
) -> Drained:
    before, after = usage
    last_ms = max(results.stamps_ms.values())
    window = [s for s in results.stamps_ms.values() if before.at_s * 1e3 <= s <= after.at_s * 1e3]
    if len(window) < 2:
        raise SystemExit(f"{peer}: {len(window)} results in the window; make it longer")
    elapsed_s = after.at_s - before.at_s
    used_s = {role: after.cpu_s[role] - before.cpu_s[role] for role in before.cpu_s}
    return Drained(
        peer=peer,
        at_s=(before.at_s + after.at_s) / 2,
        rate=steady_rate(window),
        records=len(window),
        cpu_ms={role: seconds * 1e3 / len(window) for role, seconds in used_s.items()},
        busy=busy_cores(before, after),
        idle=(after.idle_s - before.idle_s) / elapsed_s,
        rss_mb=after.rss_mb,
        repeats=results.repeats,
        lost=lost,
        metrics=metrics,
        used_up=last_ms < after.at_s * 1e3 - 500,
    )


def _check(bench: Bench, peer: str, results: topics.Results) -> None:
    """Hold a sample of the results to what the offline limit says of the same pictures."""
    for number, value in results.sample.items():
        said = orjson.loads(value)
        best = said["predictions"][bench.case.recipe.head][0]["label"]
        expected = bench.best[number % len(bench.best)]
        if best != expected:
            raise SystemExit(f"{peer} says {best!r} of record {number}, expected {expected!r}")
