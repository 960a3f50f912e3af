"""Recordings made by hand, with times that are easy to add up."""

from typing import Any

from worker.profiling.recording import Kernels, LaneTrack, Recording, Samples, Span

NOTHING = Samples({}, [], [])


def lane(name: str = "lane-0", *, rows: int = 0, batches: int = 0, **seconds: float) -> LaneTrack:
    """A lane that was in stages one after the other from second 100 on; `copy_in` is `copy in`."""
    at_s, spans = 100.0, []
    for stage, for_s in seconds.items():
        spans.append(Span(stage.replace("_", " "), at_s, at_s + for_s, rows))
        at_s += for_s
    totals_s = {span.stage: span.ended_s - span.begun_s for span in spans}
    return LaneTrack(name, 1, totals_s, rows, batches, spans)


def recording(process: str = "engine a/1", pid: int = 7, **changes: Any) -> Recording:
    given = {"begun_s": 100.0, "ended_s": 110.0, "cpu_s": 5.0, "samples": NOTHING, **changes}
    return Recording(process, pid, **given)


def event(name: str, ts: float, dur: float, *, op: str | None = None) -> dict[str, Any]:
    kind = "Session" if op is None else "Node"
    args = {} if op is None else {"op_name": op}
    return {"name": name, "cat": kind, "tid": 7, "ts": ts, "dur": dur, "args": args}


KERNELS = Kernels(
    zero_s=112.0,
    runs=2,
    rows=8,
    events=[
        event("conv_kernel_time", 1010.0, 60.0, op="Conv"),
        event("relu_kernel_time", 1070.0, 20.0, op="Relu"),
        event("SequentialExecutor::Execute", 1005.0, 90.0),
        event("model_run", 1000.0, 100.0),
        event("conv_kernel_time", 2010.0, 70.0, op="Conv"),
        event("SequentialExecutor::Execute", 2010.0, 80.0),
        event("model_run", 2000.0, 100.0),
    ],
)
