"""The engine's process: `python -m worker.engine --channel FD --page FD --lanes N ...`.

Here is what must be so before all else; what is imported for it is little, for others may be
serving (`--quiet`): all the rest, `entry`, is then imported by a thread that steps back. Measured,
CPU that does not step back: 28 ms, 11 of them of Python itself, instead of 50.
"""

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
_NICE = 10


def main() -> None:
    """Serve one channel; does not return."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The worker decides when its engine ends; Ctrl-C in a terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "--quiet" in sys.argv:
        aside = threading.Thread(target=_import_aside, name="import")
        aside.start()
        aside.join()
    from worker.engine.entry import run  # noqa: PLC0415 - half a second

    run()


def _import_aside() -> None:
    """Import on a thread that steps back: others serve meanwhile, and it ends with what it did."""
    if sys.platform == "linux":  # elsewhere the whole process would
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    import worker.engine.entry  # noqa: F401, PLC0415 - that it is there is what is wanted


if __name__ == "__main__":
    main()
