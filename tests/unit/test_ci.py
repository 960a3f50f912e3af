"""`.ci/run` itself, with a `make` of our own in its way."""

import contextlib
import os
import stat
import subprocess
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
ASSETS = ROOT.parent / "shared/assets"


def ci_run(tmp_path: Path, make: str) -> subprocess.CompletedProcess[str]:
    """Run `.ci/run` from elsewhere, with a shell script as `make`."""
    fake = tmp_path / "make"
    fake.write_text(f"#!/bin/sh\n{make}\n")
    fake.chmod(0o755)
    given = {key: os.environ[key] for key in os.environ if key != "DARKROOM_TEST_ASSETS"}
    return subprocess.run(
        [ROOT / ".ci/run"],
        cwd=tmp_path,
        env={**given, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_it_checks_then_tests_in_the_project_and_tells_tests_that_nothing_may_be_missing(
    tmp_path: Path,
) -> None:
    ran = ci_run(tmp_path, 'echo "$1 $CI $PWD ${DARKROOM_TEST_ASSETS-none}"')
    assets = ASSETS.resolve() if ASSETS.is_dir() else "none"
    expected = [f"{target} true {ROOT} {assets}" for target in ("check", "test")]
    assert (ran.returncode, ran.stdout.splitlines(), ran.stderr) == (0, expected, "")


def test_it_can_be_executed() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(("failing", "ran"), [("check", ["check"]), ("test", ["check", "test"])])
def test_it_fails_with_what_failed_and_stops_there(
    failing: str, ran: list[str], tmp_path: Path
) -> None:
    result = ci_run(tmp_path, f'echo "$1"; [ "$1" != {failing} ] || exit 3')
    assert (result.returncode, result.stdout.split()) == (3, ran)


def test_it_ends_a_process_that_was_left_behind_and_fails(tmp_path: Path) -> None:
    left = "setsid sleep 300 >/dev/null 2>&1 </dev/null & echo $!; "
    # While it becomes `sleep`, twice through exec, its environment cannot be read for a moment.
    left += "until tr '\\0' ' ' </proc/$!/cmdline | grep -q '^sleep 300'; do :; done"
    ran = ci_run(tmp_path, f'[ "$1" = check ] || {{ {left}; }}')
    assert ran.returncode == 1
    assert "left behind, ended now" in ran.stderr
    assert "sleep 300" in ran.stderr
    left_id = int(ran.stdout)
    end_s = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(left_id).status() != psutil.STATUS_ZOMBIE:  # a kill takes its time
            assert time.monotonic() < end_s
            time.sleep(0.01)
