"""Tables for people, and JSON for programs: `{machine, versions, results: [...]}`.

A file is written anew with every figure, and says `partial` until the benchmark came to its end: of
one that is cut short, whatever cuts it, the figures are there.
"""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from worker.inference.budget import cores

_PACKAGES = (
    "darkroom", "onnxruntime-gpu", "onnxruntime", "opencv-python-headless", "numpy", "aiokafka",
    "confluent-kafka", "orjson", "uvloop",
)  # fmt: skip
_UNFINISHED = "the benchmark did not come to its end"


class Figure(NamedTuple):
    """One figure; `ratio` is the value over that of `baseline`."""

    case: str
    metric: str
    value: float
    unit: str
    baseline: str | None = None
    ratio: float | None = None


class Report:
    """Collects figures, prints tables as they come, and keeps all of it in a file if it has one."""

    def __init__(self, file: Path | None = None) -> None:
        self.figures: list[Figure] = []
        self.machine = machine()
        self._versions = versions()
        self._file = file
        self._finished = False
        try:
            self._keep(partial=_UNFINISHED)
        except OSError as error:
            raise SystemExit(f"--json: {error}") from None

    def add(self, *figures: Figure) -> None:
        assert not self._finished, "a figure after the end: its file would say partial for ever"
        self.figures += figures
        self._keep(partial=_UNFINISHED)

    def finish(self, *, partial: str | None = None) -> None:
        """Write the file, if there is one, for the last time; `partial`: why that is not all."""
        self._finished = True
        self._keep(partial=partial)

    def say_machine(self) -> None:
        said = self.machine
        self.say(
            f"{said['cpu']}, {said['cores']} cores, {said['memory_gb']} GB, load {said['load']}"
        )
        if device := said.get("device"):
            self.say(f"device: {device}")
        self.say(", ".join(f"{name} {version}" for name, version in self._versions.items()))

    def say(self, line: str = "") -> None:
        print(line, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows under their heads; all but the first column to the right."""
        cells = [list(head), *([_cell(value) for value in row] for row in rows)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
        for row in cells:
            first, *others = (
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            self.say("  ".join([first, *others]).rstrip())
        self.say()

    def write(self, path: Path, *, partial: str | None = None) -> None:
        results = [_rounded(figure._asdict()) for figure in self.figures]
        said = {"machine": self.machine, "versions": self._versions, "results": results}
        if partial is not None:
            said = {"partial": partial, **said}
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(json.dumps(said, indent=1) + "\n")
        beside.replace(path)

    def _keep(self, *, partial: str | None) -> None:
        if self._file is not None:
            self.write(self._file, partial=partial)


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def busy_s() -> float:
    """Return the seconds that all cores have been busy, so far."""
    times = psutil.cpu_times()
    return sum(times[:4]) - times.idle + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or sys.platform


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)


def _rounded(figure: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _six(value) if isinstance(value, float) else value for key, value in figure.items()
    }


def _six(value: float) -> float:
    return float(f"{value:.6g}")
