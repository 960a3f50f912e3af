"""Asks for a survey of this machine's GPUs: in a process of its own, ended at a deadline.

A GPU that hangs its driver costs the deadline, and never the worker.
"""

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from worker.config import environment
from worker.errors import ChannelError
from worker.protocol.survey import CUDA_LIBRARY, Survey, decode

_COMMAND = (sys.executable, "-m", "worker.engine.survey")
_DEADLINE_S = 60.0
"""Without persistence mode a driver starts every GPU anew: seconds for each of eight."""
_AGAIN_S = 30.0
"""Where it has answered before."""
_REAP_S = 1.0


def driver_found() -> bool:
    """Say whether the loader finds a CUDA driver; it is not asked anything (0.3 ms)."""
    try:
        ctypes.CDLL(CUDA_LIBRARY)
    except OSError:
        return False
    return True


def survey(
    *,
    environ: Mapping[str, str] | None = None,
    command: Sequence[str] = _COMMAND,
    deadline_s: float = _DEADLINE_S,
) -> Survey:
    """Return what there is; `cuda_problem` says why there is nothing, also when nobody answered.

    Blocks until the deadline at most.
    """
    inherited = environment() if environ is None else environ
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **inherited},
        )
    except OSError as error:
        return _unanswered(f"no process that asks the NVIDIA driver can start: {error}")
    try:
        document, said = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        # One that is stuck in the kernel cannot be reaped: it is left to end when it can.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_REAP_S)
        return _unanswered(
            f"the NVIDIA driver did not answer within {deadline_s:g} s: a GPU may have fallen off"
            " the bus (dmesg, lines with Xid)"
        )
    try:
        return decode(document)
    except ChannelError:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        how = f"exit code {process.returncode}" + (f": {last}" if last else "")
        return _unanswered(f"the process that asks the NVIDIA driver ended: {how}")


def driver_problem(
    *, found: Callable[[], bool] = driver_found, look: Callable[..., Survey] = survey
) -> str | None:
    """Return why a driver that has answered before does not now; None: it does, or has gone.

    Blocks until a deadline.
    """
    if not found():
        return None
    seen = look(deadline_s=_AGAIN_S)
    return None if seen.answered else seen.cuda_problem


def _unanswered(why: str) -> Survey:
    return Survey(cuda_problem=why, answered=False)
