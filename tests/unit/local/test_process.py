import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.errors import CommandError
from worker.local.process import (
    START_LINE,
    alive,
    command_line,
    spawn,
    stop_all,
    telling_lines,
    wait_gone,
)

STUBBORN = (
    "import signal,time;signal.signal(signal.SIGTERM,signal.SIG_IGN);print('up',flush=True);"
    "time.sleep(60)"
)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[int, str]]:
    mark = str(tmp_path / "mark")
    pid = spawn([sys.executable, "-c", "import time; time.sleep(60)", mark], tmp_path / "log.txt")
    yield pid, mark
    stop_all([(pid, mark)], grace_s=0, first=signal.SIGKILL)


def wait_for_text(file: Path, text: str) -> None:
    end_s = time.monotonic() + 20
    while text not in file.read_text():
        assert time.monotonic() < end_s, f"{text!r} never came: {file.read_text()}"


def test_a_spawned_process_has_a_session_of_its_own(sleeper: tuple[int, str]) -> None:
    pid, mark = sleeper

    assert alive(pid, mark)
    assert os.getsid(pid) == pid


def test_both_outputs_are_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "home" / "log.txt"
    for _ in range(2):
        script = f"import os; os.write(1, b'out '); os.write(2, b'err '); '{tmp_path}'"
        pid = spawn([sys.executable, "-c", script], log)
        assert wait_gone(pid, str(tmp_path), deadline_s=20)

    assert log.read_text() == f"{START_LINE}out err " * 2


def test_the_environment_of_the_caller_does_not_reach_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dsurprise")
    pid = spawn(["/usr/bin/env"], tmp_path / "log.txt")

    assert wait_gone(pid, "env", deadline_s=20)
    assert "JAVA_TOOL_OPTIONS" not in (tmp_path / "log.txt").read_text()


def test_a_program_that_is_not_there_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no-such-program cannot be started"):
        spawn([str(tmp_path / "no-such-program")], tmp_path / "log.txt")


def test_a_child_that_ended_and_was_not_waited_for_is_not_alive(tmp_path: Path) -> None:
    pid = spawn([sys.executable, "-c", "", str(tmp_path)], tmp_path / "log.txt")

    assert wait_gone(pid, str(tmp_path), deadline_s=20)
    assert command_line(pid) is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
def test_somebody_elses_zombie_is_not_alive() -> None:
    parent = subprocess.Popen(  # its child ends at once, and it does not wait for it
        [sys.executable, "-c", "import os,time; print(os.fork() or os._exit(0)); time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONUNBUFFERED": "1"},
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert wait_gone(child, "python", deadline_s=20)
            assert Path(f"/proc/{child}").exists()
        finally:
            parent.kill()


def test_a_process_id_that_went_to_a_stranger_is_neither_alive_nor_stopped(
    sleeper: tuple[int, str],
) -> None:
    pid, mark = sleeper

    assert not alive(pid, "/another/stack")
    stop_all([(pid, "/another/stack")], grace_s=0, first=signal.SIGKILL)

    assert alive(pid, mark)


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    pid = spawn([sys.executable, "-c", STUBBORN, str(tmp_path)], log)
    wait_for_text(log, "up")

    stop_all([(pid, str(tmp_path))], grace_s=0.1)

    assert not alive(pid, str(tmp_path))


def test_several_processes_share_one_grace(tmp_path: Path) -> None:
    marks = [str(tmp_path / name) for name in "abc"]
    argv = [sys.executable, "-c", STUBBORN]
    processes = [(spawn([*argv, mark], Path(mark + ".log")), mark) for mark in marks]
    for mark in marks:
        wait_for_text(Path(mark + ".log"), "up")

    started_s = time.monotonic()
    stop_all(processes, grace_s=1.0)

    assert time.monotonic() - started_s < 2.9
    assert not any(alive(pid, mark) for pid, mark in processes)


def test_of_a_quiet_log_the_last_lines_are_told(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"line {n}\n" for n in range(100)))

    assert telling_lines(tmp_path / "log.txt").splitlines() == [f"line {n}" for n in range(85, 100)]
    assert telling_lines(tmp_path / "absent.txt") == "(no log)"


def test_of_a_long_log_the_complaints_of_the_last_start_are_told(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(
        f"{START_LINE}t ERROR of yesterday\n{START_LINE}t INFO a\nt ERROR b\nCaused by: "
        "x.NotFoundException: c\n\tat x.y\n" + "t INFO ErrorHandler shuts down\n" * 50
    )

    told = telling_lines(tmp_path / "log.txt").splitlines()

    assert told == ["t ERROR b", "Caused by: x.NotFoundException: c"]
