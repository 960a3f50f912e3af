import os
import sys
import time
from pathlib import Path

import pytest

from worker.inference.survey import driver_found, driver_problem, survey
from worker.protocol.survey import Gpu, Survey, encode


def played(code: str, *, deadline_s: float = 20.0) -> Survey:
    return survey(environ={}, command=[sys.executable, "-c", code], deadline_s=deadline_s)


def test_what_the_process_prints_is_the_survey() -> None:
    said = Survey((Gpu("GPU-1", "GPU-1", "H100"),), nvml_problem="not installed")
    assert played(f"import os; os.write(1, {encode(said)!r})") == said


def test_a_driver_that_hangs_costs_the_deadline_and_its_process_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    began_s = time.monotonic()
    found = played(
        f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(3600)",
        deadline_s=2.0,
    )
    assert time.monotonic() - began_s < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
    assert found.gpus == ()
    assert not found.answered
    assert found.cuda_problem is not None
    assert "did not answer within 2 s" in found.cuda_problem


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended: exit code -11"),
        ("raise SystemExit('libcuda is broken')", "ended: exit code 1: libcuda is broken"),
        ("print('[]')", "ended: exit code 0"),
    ],
)
def test_a_process_that_says_nothing_of_use_is_a_driver_not_to_be_asked(
    code: str, said: str
) -> None:
    found = played(code)
    assert not found.answered
    assert found.cuda_problem is not None
    assert found.cuda_problem.endswith(said)


def test_a_process_that_cannot_start_is_told() -> None:
    found = survey(environ={}, command=["/nowhere/python"], deadline_s=1.0)
    assert found.cuda_problem is not None
    assert "can start" in found.cuda_problem


def test_the_real_process_tells_of_this_machine() -> None:
    found = survey()
    assert found.answered
    assert "CPUExecutionProvider" in found.providers
    assert driver_found() or found.cuda_problem == ("no NVIDIA driver (libcuda.so.1) is installed")


@pytest.mark.parametrize(
    ("found", "seen", "problem"),
    [
        (True, Survey(cuda_problem="it hangs", answered=False), "it hangs"),
        (True, Survey(cuda_problem="cuInit says 999"), None),
        (True, Survey((Gpu("GPU-1", "GPU-1", "H100"),)), None),
        (False, None, None),
    ],
)
def test_a_driver_that_does_not_answer_again_is_told_and_whatever_it_answers_is_not(
    *, found: bool, seen: Survey | None, problem: str | None
) -> None:
    def look(*, deadline_s: float) -> Survey:
        assert deadline_s <= 60, "no longer than where it may have to start"
        assert seen is not None
        return seen

    assert driver_problem(found=lambda: found, look=look) == problem
