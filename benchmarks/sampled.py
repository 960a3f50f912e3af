"""Run `python -m worker ...` with its main thread sampled by CPU time.

`python -m benchmarks.sampled OUT run --config FILE` writes to OUT, as JSON, how often each function
was found at work (`itself`) and somewhere on the stack (`with_calls`). Unlike cProfile it costs
little and does not make small functions look expensive.
"""

import json
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from worker.profiling.sampler import function_names

_EVERY_S = 0.001


class Samples:
    def __init__(self) -> None:
        self._itself: Counter[str] = Counter()
        self._with_calls: Counter[str] = Counter()
        self._count = 0

    def take(self, _: int, frame: FrameType | None) -> None:
        stack = function_names(frame)
        if stack[0].startswith("importlib."):
            return  # it is still starting
        self._count += 1
        self._itself[stack[0]] += 1
        self._with_calls.update(set(stack))

    def write(self, path: Path) -> None:
        said = {
            "samples": self._count,
            "itself": self._itself,
            "with_calls": self._with_calls,
        }
        path.write_text(json.dumps(said))


def main() -> None:
    out, *command = sys.argv[1:]
    samples = Samples()
    signal.signal(signal.SIGPROF, samples.take)
    signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)
    sys.argv = ["worker", *command]
    try:
        runpy.run_module("worker", run_name="__main__", alter_sys=True)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        samples.write(Path(out))


if __name__ == "__main__":
    main()
