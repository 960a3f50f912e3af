"""What a survey of this machine's GPUs found: the one message of its process to the worker.

Facts alone: what may be used is decided in `inference/devices.py`.
"""

from typing import Any, NamedTuple

import orjson

from worker.errors import ChannelError

CUDA_LIBRARY = "libcuda.so.1"
NO_DRIVER = f"no NVIDIA driver ({CUDA_LIBRARY}) is installed"


class Gpu(NamedTuple):
    """A GPU, or a MIG instance of one. What is None is not known."""

    uuid: str
    """As `nvidia-smi -L` shows it: `GPU-...` or `MIG-...`."""
    gpu: str
    """UUID of the GPU itself; for a MIG instance another than its own."""
    name: str
    listed: bool = False
    """The CUDA driver lists it to processes with the worker's environment."""
    compute_capability: tuple[int, int] | None = None
    pci_bus_id: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    temperature_c: int | None = None
    utilization_pct: int | None = None
    numa_node: int | None = None
    numa_distance: int | None = None
    """From the nearest CPU that this process may use; 10 is its own node (ACPI SLIT)."""
    problem: str | None = None
    """What the driver says instead of facts."""


class Survey(NamedTuple):
    """What there is on this machine, as a process with the worker's environment sees it."""

    gpus: tuple[Gpu, ...] = ()
    """In the order of their PCI addresses where NVML tells of them, else in CUDA's."""
    cuda_problem: str | None = None
    """Why the CUDA driver lists no device; None: it lists some."""
    nvml_problem: str | None = None
    """Why load, temperature and memory in use are not known; None: NVML was asked."""
    onnxruntime: str | None = None
    """Version of the ONNX Runtime that is installed; None: none can be imported."""
    providers: tuple[str, ...] = ()
    """Execution providers that it was built with, usable or not."""
    cpu: str | None = None
    """What stands as `device` in results that the CPU made."""
    answered: bool = True
    """False: the driver hung, or brought the process down; nobody else should ask it."""


def encode(survey: Survey) -> bytes:
    """Return the survey as one line of JSON."""
    gpus = [gpu._asdict() for gpu in survey.gpus]
    return orjson.dumps({**survey._asdict(), "gpus": gpus}) + b"\n"


def decode(document: bytes) -> Survey:
    """Return the survey of its JSON. Raises ChannelError when it is none."""
    try:
        fields: dict[str, Any] = orjson.loads(document)
        gpus = tuple(_gpu(gpu) for gpu in fields["gpus"])
        providers = tuple(fields["providers"])
        return Survey(**{**fields, "gpus": gpus, "providers": providers})
    except (ValueError, TypeError, KeyError) as error:
        raise ChannelError(f"a survey of devices that is none: {error!r}") from error


def _gpu(fields: dict[str, Any]) -> Gpu:
    capability = fields["compute_capability"]
    return Gpu(**{**fields, "compute_capability": tuple(capability) if capability else None})
