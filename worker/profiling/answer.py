"""Where the time goes, from what was recorded and counted in a window: arithmetic and words.

The shares of lane time add up to 1: a lane is always in exactly one stage.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from worker.profiling.recording import Kernels, Recording
from worker.profiling.stages import Stage

_OPERATORS = 5
_BUSY = 0.9
"""CPU of the work by the clock: with less of it, what was missing is worth a word."""
_TOLD = 0.005
"""Of all kernels: the share of an operator that people are told."""


class Share(NamedTuple):
    """One stage of the lanes."""

    stage: str
    share: float
    """Of the time of all lanes."""
    us_a_record: float | None
    """Of lane time; None: no record was run."""


class Runs(NamedTuple):
    """What ONNX Runtime's own profile says, as shares of its runs."""

    process: str
    runs: int
    rows: int
    run_us: float
    """One run, on the average."""
    copy_in: float
    """Before its kernels: inputs brought to the device where that is needed."""
    kernels: float
    copy_out: float
    operators: tuple[tuple[str, float], ...]
    """The costliest types of operators, as shares of the time of all kernels."""


class Queues(NamedTuple):
    """What a record waited for, on the average; no lane's time. None: none was counted."""

    kafka_us: float | None
    """From its timestamp until it was polled."""
    engine_us: float | None
    """In its engine, until a lane decoded it, and as a row until its batch ran."""


class Answer(NamedTuple):
    """Where the time of a window went."""

    worker: str
    seconds: float
    lanes: int
    lane_s: float
    engine_cpu_s: float
    """Of the engines, beside which the time that their lanes worked by the clock can be held."""
    records: int
    """Rows that were run."""
    batches: int
    shares: tuple[Share, ...]
    queues: Queues
    runs: tuple[Runs, ...]
    cores: Mapping[str, float]
    """Process -> cores that it kept busy."""
    notes: tuple[str, ...]


def answer(
    worker: str, recordings: Sequence[Recording], queues: Queues, *, notes: Sequence[str] = ()
) -> Answer:
    """Return where the time went, from the recordings of a worker and its engines.

    `notes`: what could not be had, for people.
    """
    lanes = [lane for each in recordings for lane in each.lanes]
    totals_s: Counter[str] = Counter()
    for lane in lanes:
        totals_s.update(lane.totals_s)
    lane_s = sum(totals_s.values())
    records = sum(lane.rows for lane in lanes)
    shares = tuple(
        Share(
            stage.value,
            totals_s[stage] / lane_s if lane_s else 0.0,
            totals_s[stage] / records * 1e6 if records else None,
        )
        for stage in Stage
    )
    cut = sum(lane.spans_left_out for lane in lanes)
    said = [*notes]
    said += [f"{each.process}: {note}" for each in recordings for note in each.notes]
    if cut:
        said.append(f"{cut} spans were too many for the trace; the shares have them")
    return Answer(
        worker=worker,
        seconds=max((each.seconds for each in recordings), default=0.0),
        lanes=len(lanes),
        lane_s=lane_s,
        engine_cpu_s=sum(each.cpu_s for each in recordings if each.lanes),
        records=records,
        batches=sum(lane.batches for lane in lanes),
        shares=shares,
        queues=queues,
        runs=tuple(_runs(each.process, each.kernels) for each in recordings if each.kernels),
        cores={f"{each.process} {each.pid}": each.cpu_s / each.seconds for each in recordings},
        notes=tuple(said),
    )


def document(told: Answer) -> dict[str, Any]:
    """Return an answer as plain JSON."""
    return {
        **told._asdict(),
        "shares": [share._asdict() for share in told.shares],
        "queues": told.queues._asdict(),
        "runs": [{**runs._asdict(), "operators": dict(runs.operators)} for runs in told.runs],
    }


def text(told: Answer) -> str:
    """Return an answer for people."""
    of_lanes = f"{told.lanes} lanes = {told.lane_s:.1f} s of lane time"
    kafka, engine = map(_duration, told.queues)
    lines = [
        f"Where the time goes: {told.seconds:.1f} s of worker {told.worker}",
        f"{of_lanes}; {told.records:,} records in {told.batches:,} batches",
        "",
    ]
    lines += _share_lines(told) if told.lane_s else ["No engine was recorded."]
    lines += [
        "",
        f"queue: a record waited {kafka} in Kafka and {engine} in its engine (no lane's time)",
    ]
    for runs in told.runs:
        lines += _runs_lines(runs)
    lines.append("cores: " + ", ".join(f"{name} {busy:.2f}" for name, busy in told.cores.items()))
    lines += [f"note: {note}" for note in told.notes]
    return "\n".join(lines) + "\n"


def _share_lines(told: Answer) -> list[str]:
    shares = told.shares
    work = [share for share in shares if share.stage != Stage.WAITING]
    most, work_s = max(work, key=lambda s: s.share), sum(s.share for s in work) * told.lane_s
    rows = [(s.stage, f"{s.share:.1%}", _number(s.us_a_record)) for s in shares]
    whole = [share.us_a_record for share in shares if share.us_a_record is not None]
    rows.append(("all", f"{sum(s.share for s in shares):.1%}", _number(sum(whole) or None)))
    lines = [
        f"{'stage':<12}{'lane time':>10}{'us a record':>14}",
        *(f"{name:<12}{share:>10}{us:>14}" for name, share, us in rows),
        "",
    ]
    if not work_s:
        return [*lines, "The lanes had nothing to do."]
    cpu_s = told.engine_cpu_s
    rest = "; the rest waited for a core, or for a device" if cpu_s < _BUSY * work_s else ""
    return [
        *lines,
        f"Of the work, most is {most.stage}: {most.share:.1%} of lane time.",
        f"{work_s:.1f} s of work by the clock had {cpu_s:.1f} s of CPU{rest}.",
    ]


def _runs(process: str, kernels: Kernels) -> Runs:
    """Read a profile of ONNX Runtime: each run is a `model_run` around one `...::Execute`."""
    events = sorted(kernels.events, key=lambda event: float(event["ts"]))
    runs = [event for event in events if event["name"] == "model_run"]
    inside = [event for event in events if event["name"].endswith("::Execute")]
    total_us = sum(run["dur"] for run in runs) or 1.0
    in_us = sum(each["ts"] - run["ts"] for run, each in zip(runs, inside, strict=False))
    execute_us = sum(each["dur"] for each in inside)
    by_operator: Counter[str] = Counter()
    for event in events:
        if event["name"].endswith("_kernel_time"):
            by_operator[event["args"].get("op_name", "other")] += event["dur"]
    nodes_us = by_operator.total() or 1.0
    return Runs(
        process=process,
        runs=kernels.runs,
        rows=kernels.rows,
        run_us=total_us / max(1, len(runs)),
        copy_in=in_us / total_us,
        kernels=execute_us / total_us,
        copy_out=max(0.0, 1.0 - (in_us + execute_us) / total_us),
        operators=tuple((op, us / nodes_us) for op, us in by_operator.most_common(_OPERATORS)),
    )


def _runs_lines(runs: Runs) -> list[str]:
    costly = [f"{name} {share:.1%}" for name, share in runs.operators if share >= _TOLD]
    of = f"{runs.runs} runs of the golden sample x {runs.rows}, when the window was over,"
    copies = f"copy in {runs.copy_in:.1%}, kernels {runs.kernels:.1%}, copy out {runs.copy_out:.1%}"
    return [
        f"ONNX Runtime's own profile, {runs.process}: {of}",
        f"on a session beside the one that serves: {_duration(runs.run_us)} a run; {copies}",
        f"of its kernels: {', '.join(costly)}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _duration(us: float | None) -> str:
    if us is None:
        return "(none counted)"
    return f"{us:,.0f} us" if us < 1e4 else f"{us / 1e3:,.0f} ms"
