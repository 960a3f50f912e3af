"""One trace of all processes, in Chrome's trace event format, and folded stacks.

The format: "Trace Event Format", Google, as Perfetto and chrome://tracing read it. Times are us.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from worker.profiling.recording import LaneTrack, Recording, Samples

_KERNELS_FROM = 500
_SAMPLES_FROM = 1000
"""Rows of ONNX Runtime's threads come below those of lanes, and samples below both."""
_GAP_S = 0.1
"""Between samples of a thread that are further apart it is not known what it did."""

Event = dict[str, Any]


def trace(recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return the trace; its times begin at 0."""
    zero_s = min((each.begun_s for each in recordings), default=0.0)
    events = [event for each in recordings for event in _process(each, zero_s)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def folded(recordings: Sequence[Recording]) -> list[str]:
    """Return lines `process;thread;outermost;...;innermost count`, as flame graphs are made of."""
    counts: Counter[str] = Counter()
    for each in recordings:
        samples = each.samples
        for _, thread, stack in samples.taken:
            where = (f"{each.process} {each.pid}", samples.threads[str(thread)])
            counts[";".join((*where, *samples.stacks[stack]))] += 1
    return [f"{stack} {count}" for stack, count in sorted(counts.items())]


def _process(recording: Recording, zero_s: float) -> Iterator[Event]:
    pid = recording.pid
    yield _named("process_name", pid, 0, f"{recording.process} (pid {pid})")
    for row, lane in enumerate(recording.lanes, start=1):
        yield _named("thread_name", pid, row, lane.name)
        yield from _stages(lane, pid, row, zero_s)
    if recording.kernels is not None:
        kernels = recording.kernels
        title = f"ONNX Runtime: golden sample x {kernels.rows}, beside what is served"
        threads = sorted({event["tid"] for event in kernels.events})
        rows = {thread: row for row, thread in enumerate(threads, start=_KERNELS_FROM)}
        for row in rows.values():
            yield _named("thread_name", pid, row, title)
        shift_us = _us(kernels.zero_s, zero_s)
        for event in kernels.events:
            moved = {"ph": "X", "pid": pid, "tid": rows[event["tid"]], "ts": event["ts"] + shift_us}
            yield {**event, **moved}
    yield from _sampled(recording.samples, pid, zero_s)


def _stages(lane: LaneTrack, pid: int, row: int, zero_s: float) -> Iterator[Event]:
    for stage, begun_s, ended_s, rows in lane.spans:
        args = {"rows": rows} if rows else {}
        yield _complete(stage, "stage", (pid, row), (begun_s, ended_s), zero_s) | {"args": args}


def _sampled(samples: Samples, pid: int, zero_s: float) -> Iterator[Event]:
    """Yield the calls that samples stand for: a call lasts while it is found at each look."""
    by_thread: dict[int, list[tuple[float, Sequence[str]]]] = {}
    for at_s, thread, stack in samples.taken:
        by_thread.setdefault(thread, []).append((at_s, samples.stacks[stack]))
    for row, (thread, found) in enumerate(by_thread.items(), start=_SAMPLES_FROM):
        yield _named("thread_name", pid, row, f"{samples.threads[str(thread)]} (sampled)")
        for name, begun_s, ended_s in calls(found):
            yield _complete(name, "python", (pid, row), (begun_s, ended_s), zero_s)


def calls(found: Iterable[tuple[float, Sequence[str]]]) -> Iterator[tuple[str, float, float]]:
    """Yield (function, begin, end) for stacks found one after the other in one thread.

    A call that is found in the same place of the next stack, below the same callers, is the same.
    """
    running: list[tuple[str, float]] = []
    last_s: float | None = None
    for at_s, stack in found:
        same = 0
        near = last_s is not None and at_s - last_s <= _GAP_S
        while near and same < min(len(stack), len(running)) and running[same][0] == stack[same]:
            same += 1
        yield from _ended(running, same, at_s if near else last_s or at_s)
        running += [(name, at_s) for name in stack[same:]]
        last_s = at_s
    if last_s is not None:
        yield from _ended(running, 0, last_s)


def _ended(
    running: list[tuple[str, float]], keep: int, end_s: float
) -> Iterator[tuple[str, float, float]]:
    while len(running) > keep:
        name, begun_s = running.pop()
        yield name, begun_s, end_s


def _complete(
    name: str, kind: str, where: tuple[int, int], when_s: tuple[float, float], zero_s: float
) -> Event:
    begun_s, ended_s = when_s
    pid, row = where
    return {
        "name": name,
        "cat": kind,
        "ph": "X",
        "pid": pid,
        "tid": row,
        "ts": _us(begun_s, zero_s),
        "dur": _us(ended_s, begun_s),
    }


def _named(what: str, pid: int, row: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": row, "args": {"name": name}}


def _us(at_s: float, zero_s: float) -> float:
    return round((at_s - zero_s) * 1e6, 1)
