"""`darkroom dev`: the local stack. Options in, a table or one JSON document out.

It knows nothing of how the stack is made.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from worker.local.spec import Addresses, StackSpec
from worker.local.stack import Status, down, status, up

app = typer.Typer(
    help="A real Kafka and a real Redis on this machine: no Docker, no root, no Java needed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

DataDir = Annotated[
    Path, typer.Option("--data-dir", help="Folder of the stack: its data, logs and process ids.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DEFAULT_DATA_DIR = Path(".darkroom")
_ROW = "{:<10} {:<8} {:<6} {:<8} {}"


class TerminalWatcher:
    """Tells on standard error how a start gets on; a progress bar where that is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def downloaded(self, files: int, total_files: int) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("jars", total=total_files)
        self._bar.update(self._task, completed=files)
        if files == total_files:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def bring_up(spec: StackSpec) -> Addresses:
    """Bring a stack up and tell on standard error how it gets on. Raises CommandError."""
    watcher = TerminalWatcher(Console(stderr=True))
    try:
        return up(spec, watcher)
    finally:
        watcher.close()


@app.command("up", epilog="Example: darkroom dev up --brokers 3")
def up_command(
    *,
    brokers: Annotated[int, typer.Option(help="Kafka nodes: 1 or 3.")] = 1,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Start Kafka and Redis, create the topics, wait until all is usable.

    What already runs is left alone. The first start fetches Kafka (45 MB).
    """
    if brokers not in {1, 3}:
        raise typer.BadParameter("a local stack has 1 or 3", param_hint="'--brokers'")
    addresses = bring_up(StackSpec(data=data_dir, brokers=3 if brokers == 3 else 1))
    if as_json:
        typer.echo(json.dumps(_document(addresses)))
        return
    typer.echo(f"Kafka  {addresses.bootstrap_servers}")
    typer.echo(f"Redis  {addresses.redis_url}")


@app.command("down", epilog="Example: darkroom dev down")
def down_command(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop Kafka and Redis. What Kafka holds is kept for the next start."""
    stopped = down(data_dir)
    typer.echo("stopped" if stopped else f"nothing runs in {data_dir}", err=True)


@app.command("status", epilog="Example: darkroom dev status --json")
def status_command(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show what runs, and where. Exit code 0 also when nothing does."""
    found = status(data_dir)
    if as_json:
        typer.echo(json.dumps(_status_document(found, data_dir)))
        return
    if not found.parts:
        typer.echo(f"nothing runs in {data_dir}", err=True)
        return
    typer.echo(_ROW.format("part", "state", "port", "pid", "log"))
    for part in found.parts:
        state = "running" if part.running else "down"
        typer.echo(_ROW.format(part.name, state, part.port, part.pid, str(part.log)))


def _document(addresses: Addresses) -> dict[str, str | None]:
    return {
        "bootstrap_servers": addresses.bootstrap_servers,
        "redis_url": addresses.redis_url,
        "data": str(addresses.data),
    }


def _status_document(found: Status, data_dir: Path) -> dict[str, object]:
    nothing = Addresses("", None, data_dir.resolve())
    parts = [{**part._asdict(), "log": str(part.log)} for part in found.parts]
    return {"running": found.running, **_document(found.addresses or nothing), "parts": parts}
