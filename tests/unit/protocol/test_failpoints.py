import subprocess
import sys

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


@pytest.mark.parametrize(("action", "signal"), [("kill", 9), ("abort", 6)])
def test_a_deadly_failpoint_ends_the_process_that_meets_it(action: str, signal: int) -> None:
    program = (
        "from worker.protocol.failpoints import Failpoint, Failpoints\n"
        f"Failpoints('after_decode={action}').hit(Failpoint.AFTER_DECODE)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == -signal
