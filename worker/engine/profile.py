"""Takes a profile of this engine: its lanes' stages, Python samples, ONNX Runtime's own profile.

While none is taken lanes find that there is nobody to tell, and that is all it costs.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from worker.engine.lanes import Floor
from worker.engine.providers import only
from worker.engine.session import RUN_ERRORS, open_session
from worker.errors import DarkroomError
from worker.profiling.recording import Kernels, LaneTrack, Recording
from worker.profiling.sampler import sampled
from worker.profiling.stages import Stage, Stages
from worker.protocol.messages import Load, Profiled, StartProfile
from worker.protocol.page import Phase

_WARM_RUNS = 2
_RUNS = 20
_RUNS_S = 2.0
"""Of the golden sample: so many, but no more once they took so long."""
_IN = {Phase.IDLE: Stage.WAITING, Phase.DECODE: Stage.DECODE, Phase.RUN: Stage.KERNELS}
_KEPT_ARGS = ("op_name", "provider", "input_type_shape", "output_type_shape")
_PROBLEMS: tuple[type[Exception], ...] = (DarkroomError, OSError, *RUN_ERRORS)

Send = Callable[[Profiled], None]


class _Begun(NamedTuple):
    at_s: float
    cpu_s: float
    stages: Stages


class Profiler:
    """Takes one profile at a time, on a thread of its own."""

    def __init__(self, floor: Floor, load: Load, lanes: Sequence[threading.Thread]) -> None:
        self._floor = floor
        self._load = load
        self._lanes = lanes
        self._stopped = threading.Event()
        self._taking = threading.Lock()

    def start(self, ask: StartProfile, send: Send) -> None:
        """Begin, and return; `send` is called with the answer, on another thread."""
        if not self._taking.acquire(blocking=False):
            send(Profiled("a profile of this engine is being taken already"))
            return
        begun = _Begun(time.monotonic(), time.process_time(), Stages(self._doing()))
        self._watch(begun.stages)  # before anything that comes behind the message
        threading.Thread(
            target=self._answer, args=(ask, begun, send), name="profile", daemon=True
        ).start()

    def abandon(self) -> None:
        """End what is being taken now: nobody waits for it any more."""
        self._stopped.set()

    def _answer(self, ask: StartProfile, begun: _Begun, send: Send) -> None:
        try:
            self._record(ask, begun).write(Path(ask.file))
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear of it; lanes go on
            said = Profiled(f"it could not be recorded: {type(error).__name__}: {error}")
        else:
            said = Profiled(None)
        finally:
            self._taking.release()
        try:
            send(said)
        except OSError:
            return  # the worker has gone

    def _record(self, ask: StartProfile, begun: _Begun) -> Recording:
        try:
            samples = sampled(ask.seconds, self._stopped)
        finally:
            self._watch(None)
        lanes = begun.stages.close()
        ended_s, ended_cpu_s = time.monotonic(), time.process_time()
        kernels, notes = None, []
        if ask.kernels and not self._stopped.is_set():
            try:
                kernels = self._kernels(lanes, Path(ask.file).with_suffix(""))
            except _PROBLEMS as error:
                notes.append(f"ONNX Runtime's own profile could not be taken: {error}")
        return Recording(
            process=ask.name,
            pid=os.getpid(),
            begun_s=begun.at_s,
            ended_s=ended_s,
            cpu_s=ended_cpu_s - begun.cpu_s,
            samples=samples,
            lanes=lanes,
            kernels=kernels,
            notes=notes,
        )

    def _watch(self, stages: Stages | None) -> None:
        self._floor.stages = self._floor.model.session.stages = stages

    def _doing(self) -> dict[int, tuple[str, Stage]]:
        """Return what each lane is doing now, as far as its progress word says it."""
        words = self._floor.page.read()
        return {
            lane.ident or 0: (lane.name, _IN[word.phase])
            for lane, word in zip(self._lanes, words, strict=False)
        }

    def _kernels(self, lanes: Sequence[LaneTrack], prefix: Path) -> Kernels:
        """Profile runs of the golden sample in batches as they were, on a second session.

        On the provider that serves, or not at all: another one's kernels would tell nothing.
        ONNX Runtime takes no profile of a session that was opened without one, and ends each but
        once; what serves must be the session that proved itself, so it is not replaced by another.
        """
        batches = sum(lane.batches for lane in lanes)
        cap = self._floor.rows.cap
        rows = min(cap, round(sum(lane.rows for lane in lanes) / batches)) if batches else cap
        model, load = self._floor.model, self._load
        session = open_session(
            model.session.path,
            policy=only(model.session.stamp.provider),
            options=load.session,
            given=load.provider_options,
            profile=prefix,
        )
        if model.session.bound is not None:
            session.bind()
        aside = replace(model, session=session)
        batch = model.golden(rows)
        until_s, runs = time.monotonic() + _RUNS_S, 0
        while runs < _WARM_RUNS + 1 or (runs < _WARM_RUNS + _RUNS and time.monotonic() < until_s):
            aside.run(batch)
            runs += 1
        file, zero_wall_s = session.end_profile()
        events = _of_last_runs(orjson.loads(file.read_bytes()), runs - _WARM_RUNS)
        file.unlink()
        zero_s = zero_wall_s - time.time() + time.monotonic()
        return Kernels(zero_s, runs - _WARM_RUNS, rows, events)


def _of_last_runs(events: Sequence[dict[str, Any]], runs: int) -> list[dict[str, Any]]:
    """Return the complete events of the last runs, of their arguments those that are shown."""
    since_us = sorted(event["ts"] for event in events if event["name"] == "model_run")[-runs]
    return [
        {
            "name": event["name"],
            "cat": event["cat"],
            "tid": event["tid"],
            "ts": event["ts"],
            "dur": event["dur"],
            "args": {name: event["args"][name] for name in _KEPT_ARGS if name in event["args"]},
        }
        for event in events
        if event["ph"] == "X" and event["ts"] >= since_us
    ]
