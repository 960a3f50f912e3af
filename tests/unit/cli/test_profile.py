import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Darkroom
from tests.unit.profiling.recordings import KERNELS, lane, recording
from worker.profiling.door import socket_of

Listen = Callable[[int, dict[str, Any] | None], None]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DARKROOM_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data" / "profile").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def listen(data_dir: Path) -> Iterator[Listen]:
    """Let a worker with this pid be there, which answers every question so (None: not at all)."""
    with ExitStack() as ending:

        def listening(pid: int, answer: dict[str, Any] | None) -> None:
            server = ending.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(socket_of(data_dir, pid)))
            server.listen()
            thread = threading.Thread(target=answering, args=(server, answer))
            thread.start()
            ending.callback(thread.join)
            ending.callback(server.shutdown, socket.SHUT_RDWR)

        yield listening


def answering(server: socket.socket, answer: dict[str, Any] | None) -> None:
    while True:
        try:
            asker, _ = server.accept()
        except OSError:
            return
        with asker, asker.makefile("rwb") as lines:
            if lines.readline() and answer is not None:
                lines.write(json.dumps(answer).encode() + b"\n")
                lines.flush()
                lines.read()


def recorded(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    recording("worker", 1).write(folder / "worker.json")
    engine = recording(lanes=[lane(decode=1.0, rows=4, batches=1)], kernels=KERNELS)
    engine.write(folder / "0.json")
    waits = {"poll": 100.0, "dispatch": None}
    return {"worker": "w-1", "folder": str(folder), "waits": waits, "notes": []}


def test_the_answer_is_printed_and_lies_in_the_folder_with_the_trace(
    darkroom: Darkroom, data_dir: Path, listen: Listen, tmp_path: Path
) -> None:
    listen(7, recorded(data_dir / "profile" / "tmp"))
    out = tmp_path / "out"
    told = darkroom("profile", "--seconds", "0.1", "--output", str(out))
    assert told.exit_code == 0, told.stderr
    assert told.stdout == (out / "answer.txt").read_text()
    assert "decode          100.0%     250,000.0" in told.stdout
    assert "100 us in Kafka and (none counted) in its engine" in told.stdout
    events = json.loads((out / "trace.json").read_bytes())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {
        "worker (pid 1)",
        "engine a/1 (pid 7)",
    }
    told = darkroom("profile", "--seconds", "0.1", "--output", str(out), "--json", "--pid", "7")
    assert json.loads(told.stdout)["records"] == 4


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(None, "the worker ended meanwhile"), ({"error": "taken already"}, "taken already")],
)
def test_what_the_worker_refuses_is_told(
    answer: dict[str, Any] | None, problem: str, darkroom: Darkroom, listen: Listen, tmp_path: Path
) -> None:
    listen(7, answer)
    told = darkroom("profile", "--output", str(tmp_path / "out"))
    assert (told.exit_code, problem in told.stderr) == (1, True)


def test_a_worker_that_was_killed_is_none(
    darkroom: Darkroom, data_dir: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_of(data_dir, 7)))
    told = darkroom("profile", "--output", str(tmp_path / "out"))
    assert told.exit_code == 1
    assert f"no worker runs on data_dir {data_dir}" in told.stderr
    assert "--config" in told.stderr
    assert not (tmp_path / "out").exists()


def test_of_several_workers_one_must_be_said(
    darkroom: Darkroom, listen: Listen, tmp_path: Path
) -> None:
    listen(7, None)
    listen(8, {"error": "eight"})
    told = darkroom("profile", "--output", str(tmp_path / "out"))
    assert (told.exit_code, "--pid, one of 7, 8" in told.stderr) == (1, True)
    assert "eight" in darkroom("profile", "--output", str(tmp_path), "--pid", "8").stderr
    assert "no worker with pid 9" in darkroom("profile", "--output", "x", "--pid", "9").stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_of_another_user_is_told_of(
    darkroom: Darkroom, data_dir: Path, tmp_path: Path
) -> None:
    (data_dir / "profile").chmod(0)
    told = darkroom("profile", "--output", str(tmp_path / "out"))
    assert "only the worker's own user" in told.stderr


def test_an_output_that_cannot_be_made_is_told_before_anything_is_taken(
    darkroom: Darkroom, listen: Listen, tmp_path: Path
) -> None:
    listen(7, {"error": "it was asked"})
    (tmp_path / "file").touch()
    told = darkroom("profile", "--output", str(tmp_path / "file" / "out"))
    assert told.exit_code == 1
    assert told.stderr.startswith(f"darkroom: --output {tmp_path}/file/out: ")


@pytest.mark.parametrize("seconds", ["0", "301", "long"])
def test_a_window_that_cannot_be_is_refused(darkroom: Darkroom, seconds: str) -> None:
    assert darkroom("profile", "--seconds", seconds, "--output", "x").exit_code == 2
