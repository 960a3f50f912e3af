"""How a command changes a fleet: write, tell what changed, and watch it come true."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import typer
from rich.console import Console
from rich.live import Live

from worker.cli.fleet_options import WAIT_S, Change, Selected
from worker.cli.fleet_rows import answers, differences, drawn, worker_rows
from worker.cli.fleet_session import connected
from worker.cli.terminal import for_people, say, write, write_json
from worker.control.catalogue import Catalogue
from worker.control.changes import in_words
from worker.control.messages import DesiredState, Phase
from worker.control.operator import Operator
from worker.control.progress import Changed, Look, Outcome, Progress
from worker.errors import ControlUnavailable

Edit = Callable[[DesiredState, int, Catalogue], DesiredState]
"""(state, now in ms of Redis's clock, which versions there are) -> the next generation."""

MEANING = {
    Outcome.CONVERGED: (0, "converged: every worker is as it should be"),
    Outcome.REFUSED: (1, "refused; who refuses serves on what it had:"),
    Outcome.ABORTED: (1, "the rollout was given up; what was active stays so:"),
    Outcome.OVERTAKEN: (1, "another change took its place:"),
    Outcome.LATE: (8, "not converged in time; the workers go on with it:"),
}
"""Exit code, and what people are told."""

_HOLDING = ("pin", "pause", "drain")
"""Verbs for workers that should be there; what is taken back may be of one that is gone."""


def carry_out(options: Change, edit: Edit, words: Sequence[str]) -> None:
    """Make a change and tell of it; the exit code says how it ended."""
    code = asyncio.run(_carry_out(options, edit, words))
    if code:
        raise typer.Exit(code)


async def _carry_out(options: Change, edit: Edit, words: Sequence[str]) -> int:
    async with connected(options.config) as fleet:
        changed = await fleet.operator.change(
            lambda state, now_ms: edit(state, now_ms, fleet.catalogue),
            " ".join(words),
            expect=options.expect,
            supersede=options.supersede,
            dry_run=options.dry_run,
        )
        if not options.as_json:
            _tell(changed, dry_run=options.dry_run)
        _warn_of_pins(changed, words)
        if isinstance(options, Selected) and options.words and words[0] in _HOLDING:
            _warn_of_nobody(options, await fleet.operator.look())
        last = None
        if options.wait_s is not None and not options.dry_run:
            last = await _awaited(fleet.operator, changed, options.wait_s)
    code, meaning = MEANING[last.outcome] if last else (0, "")
    if options.as_json:
        write_json(_document(fleet.name, changed, last))
    elif last:
        write("\n  ".join([meaning, *last.reasons]))
    return code


async def _awaited(operator: Operator, changed: Changed, wait_s: float) -> Progress:
    """Wait for what comes of a change; who hears no end of it learns that it is written."""
    number = changed.after.generation
    stands = f"generation {number} is written, workers go on with it: see darkroom fleet status"
    try:
        return await watched(operator, changed, wait_s)
    except ControlUnavailable as error:
        raise ControlUnavailable(f"{error}\n{stands}") from error
    except asyncio.CancelledError:  # by Ctrl-C
        say(stands)
        raise


def deadline_s(wait_s: float, state: DesiredState | None) -> float:
    """Return how long to wait for a state: as long as was said, else as it may take."""
    if math.isfinite(wait_s):
        return wait_s
    rollout = state.rollout if state is not None else None
    under_way = rollout is not None and rollout.phase is Phase.PREPARE
    return WAIT_S + (rollout.timeout_s if rollout is not None and under_way else 0.0)


async def watched(operator: Operator, changed: Changed | None, wait_s: float) -> Progress:
    """Wait for what comes of a change (None: of what is stored), and show the answers meanwhile."""
    least_s = deadline_s(wait_s, changed.after if changed is not None else None)
    longer = partial(deadline_s, wait_s)
    with _view() as show:
        return await operator.wait(changed, deadline_s=least_s, longer=longer, tell=show)


@contextlib.contextmanager
def _view() -> Iterator[Callable[[Progress], None]]:
    """Show each worker's answer: redrawn on a terminal, else a line for each that changed."""
    if not for_people():
        yield _LineByLine().show
        return
    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda progress: live.update(drawn(progress.look, live.console.width), refresh=True)


class _LineByLine:
    """Tells what each worker answers, when that changes."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def show(self, progress: Progress) -> None:
        said = answers(progress.look)
        for worker, answer in said.items():
            if self._told.get(worker) != answer:
                say(f"{worker}: {answer}")
        for worker in self._told.keys() - said.keys():
            say(f"{worker}: not alive any more")
        self._told = said


def _tell(changed: Changed, *, dry_run: bool) -> None:
    number = changed.after.generation
    if changed.after == changed.before:
        write(f"nothing to change: generation {number} says that already")
        return
    verb = "would say" if dry_run else "says"
    write("\n  ".join([f"generation {number} {verb}:", *differences(changed)]))


def _warn_of_nobody(options: Selected, look: Look) -> None:
    """Say that a selection means no worker that is alive: a slip of the pen, or one to come."""
    meant = options.workers
    if not any(meant.matches(worker, ack.labels) for worker, ack in look.members.items()):
        there = ", ".join(sorted(look.members)) or "none"
        verb = "is" if meant.worker is not None else "has"
        say(f"warning: no worker that is alive {verb} {in_words(meant)}; there are: {there}")


def _warn_of_pins(changed: Changed, words: Sequence[str]) -> None:
    """Say which workers do not follow a version that is made active, or is so already."""
    asked = {words[1]} if words[0] == "activate" else set()
    for name in sorted(asked | changed.activates.keys()):
        model = changed.after.models[name]
        version = changed.activates.get(name, model.active)
        for pin in model.pins:
            if pin.version != version:
                where = in_words(pin.workers)
                undo = f"darkroom fleet unpin {name}"
                say(f"warning: {name} stays pinned to {pin.version} on {where}: see {undo}")


def _document(fleet: str, changed: Changed, last: Progress | None) -> dict[str, Any]:
    return {
        "fleet": fleet,
        "generation": changed.after.generation,
        "written": changed.written,
        "changes": differences(changed),
        "outcome": last.outcome.value if last else None,
        "reasons": list(last.reasons) if last else [],
        "workers": worker_rows(last.look) if last else None,
    }
