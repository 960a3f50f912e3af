"""Looks at this machine's GPUs and prints what it found: `python -m worker.engine.survey`.

A process of its own: with a GPU that fell off the bus a driver may hang in any call. The worker
ends it at a deadline (`inference/survey.py`); standard output is one JSON document and no more.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.engine import nvml
from worker.engine.devices import NO_DEVICE, Driver, cpu_name
from worker.errors import DeviceError
from worker.protocol.survey import Gpu, Survey, encode

_LIFE_S = 120
"""It ends by itself when its worker has gone; the worker's own deadline is shorter."""


def main() -> None:
    """Print the survey."""
    signal.alarm(_LIFE_S)
    document = os.dup(1)
    os.dup2(2, 1)  # whatever native code prints is none of the document
    with os.fdopen(document, "wb") as stream:
        stream.write(encode(survey()))


def survey(
    load_cuda: Callable[[], Driver] = Driver.load,
    load_nvml: Callable[[], Any] = nvml.load,
    *,
    root: Path = Path("/"),
) -> Survey:
    """Return what CUDA lists with what NVML knows of it, and what NVML knows beside that."""
    listed, cuda_problem = _asked(lambda: load_cuda().gpus())
    known, nvml_problem = _asked(lambda: nvml.gpus(load_nvml()))
    if not listed and cuda_problem is None:
        cuda_problem = NO_DEVICE
    place = Place(root)
    gpus = tuple(place.placed(gpu) for gpu in _merged(listed, known))
    version, providers = _onnxruntime()
    return Survey(gpus, cuda_problem, nvml_problem, version, providers, cpu_name())


def _asked(look: Callable[[], tuple[Gpu, ...]]) -> tuple[tuple[Gpu, ...], str | None]:
    try:
        return look(), None
    except DeviceError as error:
        return (), str(error)


def _merged(listed: tuple[Gpu, ...], known: tuple[Gpu, ...]) -> list[Gpu]:
    """Match by UUID: the numbers of the two differ as soon as CUDA_VISIBLE_DEVICES is set."""
    by_cuda = {_bare(gpu.uuid): gpu for gpu in listed}
    merged = []
    for gpu in known:
        cuda = by_cuda.pop(_bare(gpu.uuid), None)
        if cuda is None:
            merged.append(gpu)
        else:
            told = {name: value for name, value in gpu._asdict().items() if value is not None}
            merged.append(cuda._replace(**{**told, "listed": True}))
    return [*merged, *by_cuda.values()]


def _bare(uuid: str) -> str:
    """Return a UUID without what it is of: drivers disagree on that for MIG instances."""
    return uuid.partition("-")[2]


class Place:
    """Where in the machine a GPU is: its NUMA node, and how far that is from our CPUs."""

    def __init__(self, root: Path) -> None:
        self._pci = root / "sys/bus/pci/devices"
        nodes = root / "sys/devices/system/node"
        self._nodes = {
            int(folder.name.removeprefix("node")): folder for folder in nodes.glob("node[0-9]*")
        }
        ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._ours = [node for node in self._nodes if self._cpus(node) & ours]

    def placed(self, gpu: Gpu) -> Gpu:
        """Return the GPU with its node and distance; None where the machine does not tell."""
        node = int(_read(self._pci / (gpu.pci_bus_id or "none") / "numa_node") or -1)
        if node not in self._nodes:
            return gpu
        distances = map(int, _read(self._nodes[node] / "distance").split())
        to = dict(zip(sorted(self._nodes), distances, strict=False))
        near = [to[ours] for ours in self._ours if ours in to]
        return gpu._replace(numa_node=node, numa_distance=min(near, default=None))

    def _cpus(self, node: int) -> set[int]:
        cpus: set[int] = set()
        for part in _read(self._nodes[node] / "cpulist").split(","):
            first, _, last = part.partition("-")
            if first:
                cpus.update(range(int(first), int(last or first) + 1))
        return cpus


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _onnxruntime() -> tuple[str | None, tuple[str, ...]]:
    try:
        import onnxruntime as ort  # noqa: PLC0415 - a tenth of a second, and it may be absent
    except ImportError as error:
        sys.stderr.write(f"onnxruntime cannot be imported: {error}\n")
        return None, ()
    return ort.__version__, tuple(ort.get_available_providers())


if __name__ == "__main__":
    main()
