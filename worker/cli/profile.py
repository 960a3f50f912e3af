"""`darkroom profile`: where the time of a running worker of this machine goes."""

import socket
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from worker.cli.options import Config, Json
from worker.cli.terminal import say, write, write_json
from worker.errors import CommandError

EXAMPLE = "Example: darkroom profile --seconds 10 --output profile"

_ANSWER_S = 120.0
"""Beyond the window: an engine opens its model once more."""

Seconds = Annotated[
    float,
    typer.Option("--seconds", metavar="SECONDS", help="For how long to look.", min=0.1, max=300),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Folder for trace.json, samples.folded and answer.txt; those there are replaced.",
        file_okay=False,
    ),
]
Pid = Annotated[
    int | None,
    typer.Option(
        "--pid",
        help="Which worker, where several run on one data_dir.",
        show_default="the one there is",
    ),
]
Kernels = Annotated[
    bool,
    typer.Option(
        "--kernels/--no-kernels",
        help="With ONNX Runtime's own profile, for which each engine opens its model once more.",
    ),
]


def profile(
    *,
    output: Output,
    seconds: Seconds = 10.0,
    config: Config = None,
    pid: Pid = None,
    kernels: Kernels = True,
    as_json: Json = False,
) -> None:
    """Tell where the time of a running worker of this machine goes.

    It is found in the data_dir of the settings, by whoever may enter that folder: its own user.
    """
    from worker.config import load_settings
    from worker.profiling.answer import Queues, answer, document, text
    from worker.profiling.recording import Recording
    from worker.profiling.trace import folded, trace

    with _connected(load_settings(config).settings.data_dir, pid) as sock:
        _make(output)
        sock.settimeout(seconds + _ANSWER_S)
        say(f"profiling for {seconds:g} s")
        said = _asked(sock, {"seconds": seconds, "kernels": kernels})
        files = sorted(Path(said["folder"]).glob("*.json"), key=lambda file: file.stem != "worker")
        recordings = [Recording.read(file) for file in files]
    queues = Queues(said["waits"]["poll"], said["waits"]["dispatch"])
    told = answer(said["worker"], recordings, queues, notes=said["notes"])
    for name, content in (
        ("trace.json", orjson.dumps(trace(recordings))),
        ("samples.folded", "\n".join(folded(recordings)).encode() + b"\n"),
        ("answer.txt", text(told).encode()),
    ):
        (output / name).write_bytes(content)
    say(f"{output}/trace.json opens in ui.perfetto.dev, samples.folded in speedscope.app")
    if as_json:
        write_json(document(told))
    else:
        write(text(told).rstrip())


def _make(output: Path) -> None:
    """Make the folder before it is waited for what shall lie there. Raises CommandError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output {output}: {error.strerror}") from error


def _connected(data_dir: Path, pid: int | None) -> socket.socket:
    """Return a connection to the one worker that runs on this data_dir. Raises CommandError."""
    from worker.profiling.door import sockets_in

    try:
        found = sockets_in(data_dir)
    except PermissionError as error:
        raise CommandError(f"{error.filename}: only the worker's own user may profile it") from None
    running = {
        number: sock
        for number, path in found.items()
        if pid in {None, number} and (sock := _connection(path)) is not None
    }
    if len(running) == 1:
        return running.popitem()[1]
    for sock in running.values():
        sock.close()
    if running:
        pids = ", ".join(map(str, running))
        raise CommandError(f"several workers run on data_dir {data_dir}: say --pid, one of {pids}")
    which = "no worker" if pid is None else f"no worker with pid {pid}"
    raise CommandError(
        f"{which} runs on data_dir {data_dir.absolute()} of this machine: give the settings that it"
        " was started with (--config FILE), in the folder where that was, and in its container"
    )


def _connection(path: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError:  # it was killed, or has just ended
        sock.close()
        return None
    return sock


def _asked(sock: socket.socket, ask: dict[str, Any]) -> dict[str, Any]:
    """Ask, and return the answer. Raises CommandError."""
    try:
        sock.sendall(orjson.dumps(ask) + b"\n")
        with sock.makefile("rb") as lines:
            said: dict[str, Any] = orjson.loads(lines.readline() or b"null") or {}
    except TimeoutError:
        raise CommandError("the worker did not answer in time: see its log") from None
    except OSError as error:
        raise CommandError(f"the worker has gone: {error}") from error
    if not said:
        raise CommandError("the worker ended meanwhile")
    if "error" in said:
        raise CommandError(said["error"])
    return said
