"""From the policy of the settings to the execution providers to try, in order.

A seam: one row for each provider; nothing here opens a session.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

from worker.errors import DeviceError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

POLICIES = ("prefer-gpu", "require-gpu", "cpu")


class Choice(NamedTuple):
    """One provider to try."""

    provider: str
    fallback: bool
    """A device that was wanted and is there could not be used."""


def choices(
    policy: str, *, available: Collection[str], cuda_problem: Callable[[], str | None]
) -> tuple[Choice, ...]:
    """Return what to try, best first.

    CUDA is never named unless its driver answers: ONNX Runtime would print errors and run on the
    CPU. Raises DeviceError when the policy requires what is not there.
    """
    if policy not in POLICIES:
        raise DeviceError(f"engine.policy: {policy!r} is none of {', '.join(POLICIES)}")
    if policy == "cpu":
        return (Choice(CPU, fallback=False),)
    problem = (
        cuda_problem()
        if CUDA in available
        else "the onnxruntime installed here was built without CUDA (install onnxruntime-gpu)"
    )
    if policy == "require-gpu":
        if problem:
            raise DeviceError(f"engine.policy is require-gpu, but {problem}")
        return (Choice(CUDA, fallback=False),)
    if problem:
        return (Choice(CPU, fallback=False),)
    return (Choice(CUDA, fallback=False), Choice(CPU, fallback=True))
