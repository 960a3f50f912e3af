"""The engine's process: `python -m worker.engine --channel FD --page FD --lanes N ...`.

Spawned by the worker (from its main thread: the death signal follows the thread), never forked.
The spawner sets what is read before any of our code runs: OPENCV_IO_MAX_IMAGE_PIXELS (at least
`limits.image_max_pixels`; OpenCV's own is 2^30), OMP_NUM_THREADS=1, and GLIBC_TUNABLES=
glibc.malloc.mmap_threshold=268435456:glibc.malloc.trim_threshold=1073741824 (fewer page faults).
"""

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_NICE = 10


def main() -> NoReturn:
    """Serve one channel, then end at once, whatever threads of native code are still doing."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine")
    for name in ("channel", "page", "lanes", "max-ids", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--quiet", action="store_true")
    asked = parser.parse_args()
    _die_with(asked.parent)
    # The worker decides when its engine ends; Ctrl-C in a terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _serve(asked)
    except BaseException:  # noqa: BLE001 - told as Python tells it; then the process must end, although a lane may hang in native code
        sys.excepthook(*sys.exc_info())
        _end(70)
    _end(0)


def _serve(asked: argparse.Namespace) -> None:
    if asked.quiet:
        aside = threading.Thread(target=_import_aside, name="import")
        aside.start()
        aside.join()
    from worker.engine.host import serve  # noqa: PLC0415 - half a second, after the death signal
    from worker.protocol.page import Page  # noqa: PLC0415 - same

    page = Page(asked.page, lanes=asked.lanes, max_ids=asked.max_ids)
    serve(socket.socket(fileno=asked.channel), page, on_gone=lambda: _end(0))


def _import_aside() -> None:
    """Import on a thread that steps back: others serve meanwhile, and it ends with what it did."""
    if sys.platform == "linux":  # elsewhere the whole process would
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    import worker.engine.host  # noqa: F401, PLC0415 - that it is there is what is wanted


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        _end(0)


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
