"""What the engine's process does, once it is sure to end with its worker (see `__main__`).

Spawned by the worker (from its main thread: the death signal follows the thread), never forked.
The spawner sets what is read before any of our code runs: OPENCV_IO_MAX_IMAGE_PIXELS (at least
`limits.image_max_pixels`; OpenCV's own is 2^30), OMP_NUM_THREADS=1, and GLIBC_TUNABLES=
glibc.malloc.mmap_threshold=268435456:glibc.malloc.trim_threshold=1073741824 (fewer page faults).
"""

import argparse
import contextlib
import ctypes
import os
import resource
import socket
import sys
from pathlib import Path
from typing import NoReturn

from worker.engine.host import serve
from worker.protocol.page import Page

_PR_SET_NO_NEW_PRIVS = 38
_OOM_POINTS = 300
"""By so many thousandths of the memory an engine counts for more than it has: when the kernel must
end a process, it is an engine that comes back, not the worker with its partitions."""
_OOM_MOST = 1000


def run() -> NoReturn:
    """Serve one channel, then end at once, whatever threads of native code are still doing."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine")
    for name in ("channel", "page", "lanes", "max-ids", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--quiet", action="store_true")
    asked = parser.parse_args()
    if os.getppid() != asked.parent:  # it died before we asked to die with it
        _end(0)
    _step_down()
    try:
        page = Page(asked.page, lanes=asked.lanes, max_ids=asked.max_ids)
        serve(socket.socket(fileno=asked.channel), page, on_gone=lambda: _end(0))
    except BaseException:  # noqa: BLE001 - told as Python tells it; then the process must end, although a lane may hang in native code
        sys.excepthook(*sys.exc_info())
        _end(70)
    _end(0)


def _step_down() -> None:
    """Give up what no engine needs: it runs native code on bytes that strangers sent.

    No limit of the address space: CUDA reserves hundreds of gigabytes of it that it never uses.
    Nor other users, groups or namespaces: only root may, and a worker is not to run as root.
    """
    # A core would be gigabytes of other people's pictures on the disk, and the next engine waits
    # until it is written. The hard limit stays: `prlimit --core=unlimited --pid PID` has one.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform != "linux":
        return
    on, nothing = ctypes.c_ulong(1), ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, on, nothing, nothing, nothing)
    points = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # a /proc that is read-only or not there
        points.write_text(str(min(_OOM_MOST, int(points.read_text()) + _OOM_POINTS)))


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)
