import subprocess
import sys
import threading
from pathlib import Path

import pytest

from worker.errors import CommandError
from worker.local.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from worker.local.lock import locked
with locked(Path(sys.argv[1]), deadline_s=1):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    entered = threading.Event()

    def second() -> None:
        with locked(tmp_path / "lock", deadline_s=20):
            entered.set()

    thread = threading.Thread(target=second)
    with locked(tmp_path / "lock", deadline_s=20):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(timeout=20)

    assert entered.is_set()


def test_who_waits_too_long_is_told_which_lock_is_held(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", deadline_s=0),
        pytest.raises(CommandError, match="lock: held by another darkroom"),
        locked(tmp_path / "lock", deadline_s=0),
    ):
        pass


def test_the_lock_falls_with_a_killed_holder(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()

    with locked(tmp_path / "lock", deadline_s=5):
        pass


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", deadline_s=0):
        raise ZeroDivisionError

    with locked(tmp_path / "lock", deadline_s=0):
        pass
