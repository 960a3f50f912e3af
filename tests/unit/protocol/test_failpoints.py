import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from worker.protocol.failpoints import Failpoint, Failpoints


@pytest.mark.parametrize("spec", [None, "", ";"])
def test_no_failpoint_is_false_and_does_nothing(spec: str | None) -> None:
    points = Failpoints(spec)
    assert not points
    points.hit(Failpoint.BEFORE_RUN, b"anything")


def test_a_failpoint_acts_only_at_its_name_and_on_data_with_its_mark() -> None:
    points = Failpoints("before_run=raise@POISON;after_run=raise")
    assert points
    points.hit(Failpoint.AFTER_DECODE, b"POISON")
    points.hit(Failpoint.BEFORE_RUN, b"harmless", memoryview(b"also"))
    with pytest.raises(RuntimeError, match="failpoint"):
        points.hit(Failpoint.BEFORE_RUN, b"harmless", memoryview(b"a POISON pill"))
    with pytest.raises(RuntimeError, match="failpoint"):
        points.hit(Failpoint.AFTER_RUN)


@pytest.mark.parametrize("spec", ["nowhere=kill", "before_run=explode", "before_run", "kill"])
def test_an_unknown_failpoint_is_refused_with_those_that_are_known(spec: str) -> None:
    with pytest.raises(ValueError, match="NAME one of after_fetch"):
        Failpoints(spec)


def test_several_failpoints_of_one_name_each_have_their_mark() -> None:
    points = Failpoints("before_run=hang@NEVER;before_run=raise@POISON")
    with pytest.raises(RuntimeError, match="failpoint"):
        points.hit(Failpoint.BEFORE_RUN, b"a POISON pill")


def test_a_failpoint_with_a_file_acts_once_whoever_meets_it(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    spec = f"before_run=raise@POISON?{armed}"
    points, others = Failpoints(spec), Failpoints(spec)
    points.hit(Failpoint.BEFORE_RUN, b"POISON")
    armed.touch()
    points.hit(Failpoint.BEFORE_RUN, b"harmless")
    with pytest.raises(RuntimeError, match="failpoint"):
        others.hit(Failpoint.BEFORE_RUN, b"POISON")
    points.hit(Failpoint.BEFORE_RUN, b"POISON")


@pytest.mark.parametrize(("action", "signal"), [("kill", 9), ("abort", 6), ("segfault", 11)])
def test_a_deadly_failpoint_ends_the_process_that_meets_it(action: str, signal: int) -> None:
    program = (
        "from worker.protocol.failpoints import Failpoint, Failpoints\n"
        f"Failpoints('after_decode={action}').hit(Failpoint.AFTER_DECODE)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == -signal


def test_a_fault_of_a_gpu_that_cannot_be_made_says_why() -> None:
    program = (
        "from worker.protocol.failpoints import Failpoint, Failpoints\n"
        "Failpoints('before_run=gpu-fault').hit(Failpoint.BEFORE_RUN)\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=hidden, capture_output=True, check=False
    )
    last = ended.stderr.decode().splitlines()[-1]
    assert last.startswith("RuntimeError: failpoint: gpu-fault: ")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory has no such limit")
def test_memory_is_taken_until_a_limit_ends_that() -> None:
    program = (
        "import resource\n"
        "from worker.protocol.failpoints import Failpoint, Failpoints\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 28, 1 << 28))\n"
        "Failpoints('after_decode=allocate').hit(Failpoint.AFTER_DECODE)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    last = ended.stderr.decode().splitlines()[-1]
    assert last == "MemoryError", "the limit's, not the failpoint's own at its end"


@pytest.mark.parametrize(("action", "goes_on"), [("hang", True), ("spin", True), ("freeze", False)])
def test_what_never_ends_holds_the_interpreter_or_not(action: str, *, goes_on: bool) -> None:
    program = (
        "import threading, time\n"
        "from worker.protocol.failpoints import Failpoint, Failpoints\n"
        "def go_on():\n"
        "    time.sleep(0.05)\n"
        "    print('it goes on', flush=True)\n"
        "    time.sleep(60)\n"
        "threading.Thread(target=go_on).start()\n"
        "print('ready', flush=True)\n"
        f"Failpoints('after_decode={action}').hit(Failpoint.AFTER_DECODE)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        heard, _, _ = select.select([process.stdout], [], [], 20.0 if goes_on else 0.3)
        process.kill()
    assert bool(heard) is goes_on
