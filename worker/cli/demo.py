"""`darkroom demo`: the main job, end to end, on what this machine has."""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.options import Json
from worker.cli.terminal import for_people, say, write_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from worker.demo.account import Report
    from worker.demo.driver import Watcher

EXAMPLE = "Example: darkroom demo --count 5000"
_LINES = 12
"""About so many tell of results where there is no terminal."""


Count = Annotated[int, typer.Option(min=10, max=1_000_000, help="Records to send.")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder of the local stack.")]


def demo(
    *,
    count: Count = 3000,
    data_dir: DataDir = Path(".darkroom"),
    as_json: Json = False,
) -> None:
    """Send handwritten digits through a worker, change its model meanwhile, account for it all.

    Exit code 0 only when nothing was lost, came twice, out of order or from the wrong version.
    """
    from rich.console import Console

    from worker.cli.dev import TerminalWatcher
    from worker.config_sections import KafkaSettings
    from worker.demo.driver import run_demo
    from worker.local.spec import StackSpec, Topic
    from worker.local.stack import running
    from worker.telemetry.logs import configure

    configure("error")
    run = secrets.token_hex(3)
    topics = [f"demo-{run}-{name}" for name in ("images", "predictions", "dead")]
    stack_watcher = TerminalWatcher(Console(stderr=True))
    spec = StackSpec(data=data_dir, topics=tuple(Topic(name) for name in topics))
    with contextlib.closing(stack_watcher), running(spec, stack_watcher) as stack:
        kafka = KafkaSettings(
            bootstrap_servers=stack.bootstrap_servers,
            group_id=f"demo-{run}",
            input_topics=(topics[0],),
            output_topic=topics[1],
            dead_letter_topic=topics[2],
        )
        assert stack.redis_url is not None
        with _progress(count) as progress:
            report = asyncio.run(
                run_demo(kafka, stack.redis_url, data_dir / "demo", count=count, watcher=progress)
            )
    if as_json:
        write_json({**report._asdict(), "swap": report.swap._asdict()})
    else:
        _tell(report)
    if not report.whole:
        raise typer.Exit(1)


class _Lines:
    """Says what happens, a line at a time; for pipes and files."""

    def __init__(self, count: int) -> None:
        self._step = count // _LINES
        self._told = 0

    def say(self, line: str) -> None:
        say(line)

    def sent(self, count: int) -> None:
        """Nothing: results follow at once."""

    def came(self, count: int, right_lately: float) -> None:
        if count - self._told >= self._step:
            self._told = count
            say(f"{count} results: {right_lately:.0%} of the last ones right")


class _Bars:
    """Two bars: what was sent, and what came back."""

    def __init__(self, progress: "Progress", count: int) -> None:
        self._progress = progress
        self._sent = progress.add_task("sent", total=count, note="")
        self._came = progress.add_task("results", total=count, note="")

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, soft_wrap=True)

    def sent(self, count: int) -> None:
        self._progress.update(self._sent, completed=count)

    def came(self, count: int, right_lately: float) -> None:
        note = f"{right_lately:.0%} of the last ones right"
        self._progress.update(self._came, completed=count, note=note)


@contextlib.contextmanager
def _progress(count: int) -> Iterator["Watcher"]:
    if not for_people():
        yield _Lines(count)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bars(progress, count)


def _tell(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    age, swap = report.age_ms, report.swap
    before, after = (f"{swap.model}/{version}" for version in (swap.before, swap.after))
    for value, meaning in (
        (f"{report.sent}", "records sent"),
        (f"{report.results}", f"results, {report.per_second:.0f} a second"),
        (f"{report.dead_letters}", "dead letters: the three records that nobody could serve"),
        (f"{report.lost}", "lost"),
        (f"{report.duplicated}", "twice"),
        (f"{report.out_of_order}", "out of order"),
        (f"{report.wrong_version}", "from a version that was not allowed"),
        (f"{report.accuracy_before:.1%}", f"of the digits were read right by {before}"),
        (
            f"{report.accuracy_after:.1%}",
            f"by {after}, active {swap.seconds:.1f} s after its command",
        ),
        (f"{age['p50']:.0f} / {age['p99']:.0f} ms", "age of a record at its result, p50 / p99"),
    ):
        table.add_row(value, meaning)
    Console().print(table)
