"""Streams that were closed before the command began."""

import subprocess
import sys
from pathlib import Path

import pytest

NUMBERS = """
import os, sys
from pathlib import Path
from worker.cli.terminal import hold_streams
hold_streams()
print("nowhere"), print("nowhere", file=sys.stderr)
Path(sys.argv[1]).write_text(str(os.open(os.devnull, os.O_RDONLY) > 2))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_nothing_that_is_opened_gets_the_number_of_a_stream_that_was_closed(
    closed: str, tmp_path: Path
) -> None:
    command = f'exec "$0" -c "$1" "$2" {closed}'
    file = tmp_path / "out"
    subprocess.run(["/bin/sh", "-c", command, sys.executable, NUMBERS, str(file)], check=True)
    assert file.read_text() == "True"
