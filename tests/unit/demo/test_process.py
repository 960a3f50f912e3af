import subprocess
import sys
from pathlib import Path

import pytest

from worker.demo.process import stop
from worker.errors import CommandError

DEAF = """if True:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    signal.pause()
"""


def test_a_worker_that_does_not_end_in_time_is_told_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "worker.log"
    log.write_text("draining\n")
    monkeypatch.setattr("worker.demo.process._STOP_DEADLINE_S", 0.05)
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(CommandError, match=r"did not end within 0\.05 s") as caught:
                stop(process, log)
        finally:
            process.kill()
    assert str(caught.value).endswith("worker.log:\ndraining\n")
