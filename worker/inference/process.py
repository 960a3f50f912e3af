"""The child process of an engine: started, listened to on stderr, killed, reaped.

It knows nothing of messages or models: the engine's end of the channel is only passed on.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import structlog

from worker.config import environment
from worker.protocol.page import Page

_STDERR_LINES = 2
"""Lines that stand in the error of an engine's end; all of them are logged."""
_MALLOC = "glibc.malloc.mmap_threshold=268435456:glibc.malloc.trim_threshold=1073741824"
"""Measured: -35 % of the time for a 12 MP JPEG, which is page faults."""

_log = structlog.get_logger()


class EngineEnd(NamedTuple):
    """What an engine is given when it starts."""

    sock: socket.socket
    page: Page
    lanes: int
    max_ids: int
    """Rows that a lane's slot of the page can name."""
    image_max_pixels: int
    device: str | None = None
    """UUID of the GPU, or MIG instance, that it sees as the only one; None: it sees none."""
    quiet: bool = False
    """Others serve while it starts: it steps back until it has loaded."""


class Peer(Protocol):
    """A started engine, seen from outside."""

    @property
    def pid(self) -> int | None: ...

    def kill(self) -> None:
        """End it at once, whatever it does; again is harmless."""

    async def ended(self, timeout_s: float) -> str | None:
        """Wait until it is gone and reaped; return how it ended, None when it still lives."""


Spawn = Callable[[EngineEnd], Peer]
"""Starts an engine on its end of the channel. To be called from the main thread."""


def engine_environment(
    inherited: Mapping[str, str], *, image_max_pixels: int, device: str | None = None
) -> dict[str, str]:
    """Return the environment of an engine; what the operator has set of tuning wins.

    Of GPUs it sees `device` (a UUID) alone; None: none.
    """
    return {
        "GLIBC_TUNABLES": _MALLOC,
        "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_MODULE_LOADING": "LAZY",
        **inherited,
        "CUDA_VISIBLE_DEVICES": device or "",
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(image_max_pixels),
    }


def spawn_process(end: EngineEnd) -> Peer:
    """Start `python -m worker.engine`. Raises OSError when no process can be had."""
    descriptors = (end.sock.fileno(), end.page.descriptor)
    with end.sock:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "worker.engine",
                "--channel", str(descriptors[0]),
                "--page", str(descriptors[1]),
                "--lanes", str(end.lanes),
                "--max-ids", str(end.max_ids),
                "--parent", str(os.getpid()),
                *(["--quiet"] if end.quiet else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            env=engine_environment(
                environment(), image_max_pixels=end.image_max_pixels, device=end.device
            ),
        )  # fmt: skip
    return _Process(process)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._said: deque[str] = deque(maxlen=_STDERR_LINES)
        self._listener = threading.Thread(
            target=self._listen, name=f"engine-{process.pid}-stderr", daemon=True
        )
        self._listener.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    async def ended(self, timeout_s: float) -> str | None:
        try:
            code = await asyncio.to_thread(self._process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            return None
        await asyncio.to_thread(self._listener.join, 1.0)
        return " | ".join([_how(code), *self._said])

    def _listen(self) -> None:
        """Pass on what the engine writes to stderr (ONNX Runtime and Python do), keep the last."""
        assert self._process.stderr is not None
        with contextlib.closing(self._process.stderr) as stderr:
            for raw in stderr:
                line = raw.decode(errors="replace").rstrip()
                self._said.append(line)
                _log.warning("engine.stderr", pid=self._process.pid, line=line)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
