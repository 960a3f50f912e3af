"""A real engine behind a real channel, on a thread or in a process, for contract tests."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from worker.engine.host import serve
from worker.protocol.channel import Channel, socket_pair
from worker.protocol.messages import (
    Bye,
    Done,
    Fault,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Outcomes,
    Retry,
    Row,
    Stopped,
    Submit,
    Warmed,
)
from worker.protocol.page import Page
from worker.types import Limits

DEADLINE_S = 30.0
_ROOT = Path(__file__).parents[2]
LIMITS = Limits(
    max_size=4,
    min_size=1,
    max_wait_ms=5.0,
    max_bytes=1 << 26,
    image_max_bytes=1 << 25,
    image_max_pixels=50_000_000,
)
End = Done | Fault | Retry


def load(folder: Path, manifest_sha256: str, **changes: Any) -> Load:
    asked = Load(
        folder=str(folder),
        manifest_sha256=manifest_sha256,
        lanes=2,
        limits=LIMITS,
        decode_bytes=1 << 30,
        policy="cpu",
        session={},
        failpoint=None,
    )
    return asked._replace(**changes)


class Engine:
    """The worker's side of one engine; `kind` is `thread` or `process` (of another `python`)."""

    def __init__(self, kind: str, python: str = sys.executable, *, lanes: int = 2) -> None:
        ours, theirs = socket_pair()
        ours.settimeout(DEADLINE_S)
        self._sock = ours
        self.channel = Channel(ours)
        self.page = Page.make(lanes=lanes, max_ids=16)
        self.warmed: list[Warmed] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.thread: threading.Thread | None = None
        if kind == "process":
            self.process = spawn(theirs, self.page, python=python)
            theirs.close()
        else:
            self.thread = threading.Thread(target=serve, args=(theirs, self.page), daemon=True)
            self.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.thread is not None:
            self.thread.join(DEADLINE_S)
            assert not self.thread.is_alive()
        self.page.close()

    def load(self, asked: Load) -> Loaded | LoadFailed:
        self.channel.send(asked)
        answer = self.channel.receive()
        assert isinstance(answer, Loaded | LoadFailed)
        return answer

    def submit(self, images: Iterable[bytes], *, first: int = 1, alone: Sequence[int] = ()) -> None:
        rows = [Row(n, image, n in alone) for n, image in enumerate(images, start=first)]
        self.channel.send(Submit(tuple(rows)))

    def outcomes(self, count: int) -> dict[int, tuple[End, Outcomes]]:
        """Wait for so many outcomes; each with the message that it came in."""
        ends: dict[int, tuple[End, Outcomes]] = {}
        while len(ends) < count:
            self._take(self.channel.receive(), ends)
        assert len(ends) == count
        return ends

    def bye(self) -> dict[int, tuple[End, Outcomes]]:
        """Say Bye; return the outcomes that came before Stopped."""
        self.channel.send(Bye())
        ends: dict[int, tuple[End, Outcomes]] = {}
        while not isinstance(message := self.channel.receive(), Stopped):
            self._take(message, ends)
        return ends

    def ended(self) -> int | None:
        """Wait for the end; return the exit code of a process."""
        if self.process is not None:
            return self.process.wait(DEADLINE_S)
        assert self.thread is not None
        self.thread.join(DEADLINE_S)
        return None if self.thread.is_alive() else 0

    def peak_bytes(self) -> int:
        """Return the most memory that the process ever had (VmHWM: ru_maxrss counts its parent)."""
        return self._told_bytes("VmHWM")

    def resident_bytes(self) -> int:
        """Return the memory that the process has now."""
        return self._told_bytes("VmRSS")

    def _told_bytes(self, name: str) -> int:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    def _take(self, message: Message | None, ends: dict[int, tuple[End, Outcomes]]) -> None:
        if isinstance(message, Warmed):
            self.warmed.append(message)
            return
        assert isinstance(message, Outcomes), message
        here: list[End] = [*message.done, *message.faults, *message.retries]
        for end in here:
            assert end.id not in ends, "two outcomes for one record"
            ends[end.id] = (end, message)


def spawn(
    sock: socket.socket, page: Page, *, parent: int | None = None, python: str = sys.executable
) -> subprocess.Popen[bytes]:
    descriptors = (sock.fileno(), page.descriptor)
    command = [python, "-m", "worker.engine"]
    for name, value in zip(
        ("channel", "page", "lanes", "max-ids", "parent"),
        (*descriptors, page.lanes, 16, os.getpid() if parent is None else parent),
        strict=True,
    ):
        command += [f"--{name}", str(value)]
    return subprocess.Popen(command, cwd=_ROOT, pass_fds=descriptors, stderr=subprocess.DEVNULL)
