import os
import subprocess
import sys
import threading

import pytest

from worker.inference.process import _Process, engine_environment


def started(code: str) -> _Process:
    return _Process(
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    )


def test_what_the_operator_set_of_tuning_wins_but_not_over_the_pixel_limit() -> None:
    inherited = {
        "PATH": "/bin",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OPENCV_IO_MAX_IMAGE_PIXELS": "1",
    }
    environment = engine_environment(inherited, image_max_pixels=50)
    assert environment["PATH"] == "/bin"
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["OPENCV_IO_MAX_IMAGE_PIXELS"] == "50"


@pytest.mark.parametrize(("device", "visible"), [("GPU-1", "GPU-1"), (None, "")])
def test_an_engine_sees_the_gpu_that_it_is_given_and_no_other(
    device: str | None, visible: str
) -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": "0,1"}
    environment = engine_environment(inherited, image_max_pixels=50, device=device)
    assert environment["CUDA_VISIBLE_DEVICES"] == visible
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        (
            "import os; os.write(2, b'one\\ntwo\\nout of memory\\n'); os.kill(os.getpid(), 15)",
            "SIGTERM | two | out of memory",
        ),
    ],
)
async def test_an_end_is_told_by_its_code_or_signal_and_the_last_words(code: str, how: str) -> None:
    assert await started(code).ended(20.0) == how


async def test_a_killed_process_is_reaped_and_its_listener_ends() -> None:
    process = started("import time; time.sleep(3600)")
    assert await process.ended(0.0) is None
    process.kill()
    assert await process.ended(20.0) == "SIGKILL"
    process.kill()
    assert process.pid is not None
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
    assert not [thread for thread in threading.enumerate() if str(process.pid) in thread.name]
