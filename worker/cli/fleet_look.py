"""`darkroom fleet`: the verbs that only look."""

import asyncio
from pathlib import Path
from typing import Annotated, NoReturn

import orjson
import typer
from rich.console import Console
from rich.live import Live

from worker.cli.fleet_change import MEANING, watched
from worker.cli.fleet_options import WAIT, WAIT_S
from worker.cli.fleet_rows import drawn, history_rows, status_document, status_lines
from worker.cli.fleet_session import Fleet, connected
from worker.cli.options import Config, Json
from worker.cli.terminal import say, write, write_json
from worker.control.answers import BEAT_S
from worker.control.content import dump_content
from worker.control.messages import encode_state
from worker.control.operator import Operator
from worker.errors import CommandError

STATUS_EXAMPLE = "Example: darkroom fleet status --watch"
SHOW_EXAMPLE = "Example: darkroom fleet show > fleet.yaml"
HISTORY_EXAMPLE = "Example: darkroom fleet history -n 5"
_WATCH_S = 1.0


def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, redrawn every second, until interrupted.")
    ] = False,
    wait_s: Annotated[
        float | None,
        typer.Option(
            WAIT,
            min=0.0,
            metavar="[SECONDS]",
            help="Wait until it has converged; exit 1 when a worker refuses, 8 when it takes"
            " longer. Without it: exit 0 whatever is shown.",
            show_default=f"{WAIT_S:g} and the rollout's timeout, where no SECONDS follow",
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show who runs what, on which device, by which generation, and why not what it should be."""
    if watch and wait_s is not None:
        raise typer.BadParameter("either --watch or --wait", param_hint=f"'{WAIT}'")
    if code := asyncio.run(_status(config, watch=watch, wait_s=wait_s, as_json=as_json)):
        raise typer.Exit(code)


async def _status(config: Path | None, *, watch: bool, wait_s: float | None, as_json: bool) -> int:
    async with connected(config) as fleet:
        if watch:
            await _watch(fleet, as_json=as_json)
        if wait_s is None:
            look, code = await fleet.operator.look(), 0
        else:
            await _check(fleet.operator, wait_s)
            progress = await watched(fleet.operator, None, wait_s)
            look, (code, _) = progress.look, MEANING[progress.outcome]
        if as_json:
            write_json(status_document(fleet.name, look))
        else:
            write("\n".join(status_lines(look)))
    return code


async def _check(operator: Operator, wait_s: float) -> None:
    """Raise CommandError where nobody makes a state that the fleet could be.

    After a second look: of a Redis that was emptied, who knows one may not have answered yet.
    """
    if (await operator.look()).stuck is not None:
        await asyncio.sleep(min(wait_s, BEAT_S))
        look = await operator.look()
        if look.stuck is not None:
            raise CommandError(look.stuck)


async def _watch(fleet: Fleet, *, as_json: bool) -> NoReturn:
    if as_json:
        while True:
            look = await fleet.operator.look()
            write_json(status_document(fleet.name, look), indent=False)
            await asyncio.sleep(_WATCH_S)
    console = Console()
    if not console.is_terminal:
        await _watch_lines(fleet)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            look = await fleet.operator.look()
            live.update(drawn(look, live.console.width), refresh=True)
            await asyncio.sleep(_WATCH_S)


async def _watch_lines(fleet: Fleet) -> NoReturn:
    """Write the status again whenever it is another one: for pipes and files."""
    told: list[str] = []
    while True:
        lines = status_lines(await fleet.operator.look())
        if lines != told:
            write("\n".join(lines))
        told = lines
        await asyncio.sleep(_WATCH_S)


def show(*, config: Config = None, as_json: Json = False) -> None:
    """Print what the fleet should be, as YAML that `apply` takes; as JSON: the whole state."""
    asyncio.run(_show(config, as_json=as_json))


async def _show(config: Path | None, *, as_json: bool) -> None:
    async with connected(config) as fleet:
        look = await fleet.operator.look()
    if look.state is None:
        raise CommandError(look.broken or "no desired state is stored: the first change makes it")
    if as_json:
        write_json(orjson.loads(encode_state(look.state)))
    else:
        write(dump_content(look.state).rstrip())


def history(
    *,
    count: Annotated[int, typer.Option("-n", "--count", min=1, metavar="N")] = 20,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the last changes: who, when, by which command, and what they changed."""
    asyncio.run(_history(config, count, as_json=as_json))


async def _history(config: Path | None, count: int, *, as_json: bool) -> None:
    async with connected(config) as fleet:
        entries = await fleet.operator.history(count + 1)
    rows = history_rows(entries, count)
    if as_json:
        write_json(rows)
        return
    if not rows:
        say("nothing was changed yet")
    for row in rows:
        write(f"{row['generation']}  {row['at']}  {row['by']}  {row['command']}")
        for line in row["changes"]:
            write(f"    {line}")
