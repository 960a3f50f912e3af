"""Processes that outlive the command that started them: start, recognise, stop.

A process is known by its id *and* by a mark (a path) in its command line, so that an id that the
system gave to somebody else is never taken for ours, nor killed.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from worker.errors import CommandError

ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": os.defpath}
"""All that a child inherits: a JAVA_TOOL_OPTIONS of the caller must not change what is tested."""

PROC = Path("/proc")
KILL_DEADLINE_S = 10.0
BLANK_DEADLINE_S = 5.0
POLL_S = 0.02

START_LINE = "=== started by darkroom ===\n"
LINES_TOLD = 15
_COMPLAINT = re.compile(r" (ERROR|FATAL) |Exception\b|^Error: ")


def spawn(argv: list[str], log: Path) -> int:
    """Start `argv` in a session of its own, output appended to `log`; its process id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(START_LINE)
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            ENVIRONMENT,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), appending, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
    except OSError as error:
        raise CommandError(f"{argv[0]} cannot be started: {error}") from error


def alive(pid: int, mark: str) -> bool:
    """Whether `pid` runs and is still the process with `mark` in its command line.

    A process that is being started or ended has no command line for a moment (though an ending one
    still holds its ports and files): that moment is waited out.
    """
    end_s = time.monotonic() + BLANK_DEADLINE_S
    while (line := command_line(pid)) == "" and time.monotonic() < end_s:
        time.sleep(POLL_S)
    return mark in (line or "")


def command_line(pid: int) -> str | None:
    """Command line of a process, its words separated by spaces.

    None when there is no such process; empty while one is being started or ended.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # ours, in library form: nobody else would reap it
    if not PROC.exists():
        ps = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout or None
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes()
        if not words and _is_zombie(pid):
            return None
    except OSError:
        return None
    return words.replace(b"\0", b" ").decode(errors="replace")


def _is_zombie(pid: int) -> bool:
    """Whether nothing but the exit status is left: the last thread of a process is its end."""
    state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    return state == "Z" and len(list((PROC / str(pid) / "task").iterdir())) == 1


def stop_all(
    processes: Iterable[tuple[int, str]],
    *,
    grace_s: float,
    first: signal.Signals = signal.SIGTERM,
) -> None:
    """End processes, given as (id, mark), side by side: `first`, after `grace_s` SIGKILL.

    Nothing happens to a stranger's process. Raises CommandError for one that will not go.
    """
    left = list(processes)
    for sign, patience_s in ((first, grace_s), (signal.SIGKILL, KILL_DEADLINE_S)):
        left = [(pid, mark) for pid, mark in left if alive(pid, mark)]
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        end_s = time.monotonic() + patience_s
        left = [
            (pid, mark)
            for pid, mark in left
            if not wait_gone(pid, mark, deadline_s=end_s - time.monotonic())
        ]
    if left:
        raise CommandError(f"processes {[pid for pid, _ in left]} do not end, not even by SIGKILL")


def wait_gone(pid: int, mark: str, *, deadline_s: float) -> bool:
    """Wait until a process has ended; False when it is still there at the deadline."""
    end_s = time.monotonic() + deadline_s
    while alive(pid, mark):
        if time.monotonic() > end_s:
            return False
        time.sleep(POLL_S)
    return True


def telling_lines(log: Path) -> str:
    """Pick what a log says of its last start, for an error's message: its complaints or its end."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "(no log)"
    lines = text.rpartition(START_LINE)[2].splitlines()
    complaints = [line for line in lines if _COMPLAINT.search(line)]
    return "\n".join((complaints or lines)[-LINES_TOLD:])
