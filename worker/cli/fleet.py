"""`darkroom fleet`: the verbs that change what a fleet should be, each by one edit of its state."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from worker.cli import fleet_explain, fleet_look
from worker.cli.fleet_change import carry_out
from worker.cli.fleet_options import (
    Change,
    MaxPreparing,
    Model,
    Selected,
    Sha256,
    TimeoutS,
    Version,
    Waiting,
)
from worker.cli.options import takes
from worker.control import edits
from worker.control.catalogue import Catalogue
from worker.control.content import parse_content
from worker.control.edits import Terms
from worker.control.messages import DesiredState, Selector
from worker.errors import CommandError

app = typer.Typer(
    help="Look at all workers of a fleet, and change what they serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("status", cls=Waiting, epilog=fleet_look.STATUS_EXAMPLE)(fleet_look.status)
app.command("history", epilog=fleet_look.HISTORY_EXAMPLE)(fleet_look.history)
app.command("explain", epilog=fleet_explain.EXAMPLE)(fleet_explain.explain_record)
app.command("show", epilog=fleet_look.SHOW_EXAMPLE)(fleet_look.show)

_TIMEOUT_S = Terms._field_defaults["timeout_s"]


@dataclass(frozen=True, kw_only=True)
class Activate(Change):
    model: Model
    version: Version
    two_phase: Annotated[
        bool,
        typer.Option("--two-phase", help="Switch only when every worker has it loaded and proven."),
    ] = False
    max_preparing: MaxPreparing = 1
    quorum: Annotated[
        int | None,
        typer.Option(
            "--quorum",
            min=1,
            metavar="N",
            help="Prepared workers that suffice for --two-phase.",
            show_default="all that are alive",
        ),
    ] = None
    timeout_s: TimeoutS = _TIMEOUT_S
    new_heads: Annotated[
        bool,
        typer.Option("--new-heads", help="It may lack heads that the version before had."),
    ] = False
    sha256: Sha256 = None


@app.command(cls=Waiting, epilog="Example: darkroom fleet activate digits 2 --two-phase --wait 120")
@takes(Activate)
def activate(options: Activate) -> None:
    """Make a version the one that is served: at once, or when all have proven it (--two-phase)."""
    terms = (options.max_preparing, options.quorum, options.timeout_s)
    if not options.two_phase and terms != (1, None, _TIMEOUT_S):
        raise typer.BadParameter("goes with --two-phase", param_hint="'--max-preparing' ...")

    def edit(state: DesiredState, now_ms: int, catalogue: Catalogue) -> DesiredState:
        return edits.activate(
            state,
            options.model,
            options.version,
            sha256=catalogue.digest(state, options.model, options.version, options.sha256),
            new_heads=options.new_heads,
            terms=_terms(now_ms, options) if options.two_phase else None,
        )

    given = {"--two-phase": options.two_phase, "--new-heads": options.new_heads}
    flags = [word for word, asked in given.items() if asked]
    carry_out(options, edit, ["activate", options.model, options.version, *flags])


@dataclass(frozen=True, kw_only=True)
class Reload(Change):
    model: Model
    max_preparing: MaxPreparing = 1
    timeout_s: TimeoutS = _TIMEOUT_S


@app.command(cls=Waiting, epilog="Example: darkroom fleet reload digits --wait")
@takes(Reload)
def reload(options: Reload) -> None:
    """Give every worker new engines of the version it serves, one worker after the other."""
    carry_out(
        options,
        lambda state, now_ms, _: edits.reload(state, options.model, terms=_terms(now_ms, options)),
        ["reload", options.model],
    )


@dataclass(frozen=True, kw_only=True)
class Pin(Selected):
    model: Model
    version: Version
    lax: Annotated[
        bool,
        typer.Option("--lax", help="Serve records that ask for another version what they ask for."),
    ] = False
    sha256: Sha256 = None


@app.command(cls=Waiting, epilog="Example: darkroom fleet pin digits 1 --label zone=a")
@takes(Pin)
def pin(options: Pin) -> None:
    """Hold workers at a version, whatever rollouts and rules say, until they are unpinned."""
    workers = options.workers

    def edit(state: DesiredState, _: int, catalogue: Catalogue) -> DesiredState:
        return edits.pin(
            state,
            options.model,
            options.version,
            sha256=catalogue.digest(state, options.model, options.version, options.sha256),
            workers=workers,
            strict=not options.lax,
        )

    lax = ["--lax"] if options.lax else []
    carry_out(options, edit, ["pin", options.model, options.version, *options.words, *lax])


@dataclass(frozen=True, kw_only=True)
class Unpin(Selected):
    model: Model


@app.command(cls=Waiting, epilog="Example: darkroom fleet unpin digits --label zone=a")
@takes(Unpin)
def unpin(options: Unpin) -> None:
    """Take a pin back; without --label or --worker: all pins of the model."""
    workers = options.workers
    carry_out(
        options,
        lambda state, _now, _catalogue: edits.unpin(state, options.model, workers),
        ["unpin", options.model, *options.words],
    )


@dataclass(frozen=True, kw_only=True)
class Rollback(Change):
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Name of the model.", show_default="the one activated last"
        ),
    ] = None


@app.command(cls=Waiting, epilog="Example: darkroom fleet rollback digits --wait")
@takes(Rollback)
def rollback(options: Rollback) -> None:
    """Make the version that was active before active again, at once."""
    carry_out(
        options,
        lambda state, _now, _catalogue: edits.rollback(state, options.model),
        ["rollback", *([options.model] if options.model else [])],
    )


@dataclass(frozen=True, kw_only=True)
class Forget(Change):
    model: Model
    version: Version


@app.command(cls=Waiting, epilog="Example: darkroom fleet forget digits 9")
@takes(Forget)
def forget(options: Forget) -> None:
    """Name a version no more that nothing uses: one whose rollout failed, or a mistyped digest."""
    carry_out(
        options,
        lambda state, _now, _catalogue: edits.forget(state, options.model, options.version),
        ["forget", options.model, options.version],
    )


@app.command(cls=Waiting, epilog="Example: darkroom fleet pause --worker w-1")
@takes(Selected)
def pause(options: Selected) -> None:
    """Let workers take no records in; they stay in their group and keep their partitions."""
    _hold(options, "pause", edits.pause)


@app.command(cls=Waiting, epilog="Example: darkroom fleet resume")
@takes(Selected)
def resume(options: Selected) -> None:
    """Let workers that were paused or drained serve again; without a selection: all of them."""
    _hold(options, "resume", edits.resume)


@app.command(cls=Waiting, epilog="Example: darkroom fleet drain --label zone=a --wait")
@takes(Selected)
def drain(options: Selected) -> None:
    """Let workers finish what they have and leave their group; they stay alive."""
    _hold(options, "drain", edits.drain)


@dataclass(frozen=True, kw_only=True)
class Apply(Change):
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, readable=True, help="As `show` prints it."
        ),
    ]


@app.command(cls=Waiting, epilog="Example: darkroom fleet apply fleet.yaml --dry-run")
@takes(Apply)
def apply(options: Apply) -> None:
    """Make the fleet what a YAML file says: models, versions, aliases, rules, splits, limits."""
    content = parse_content(_text(options.file), file=str(options.file))
    carry_out(
        options,
        lambda state, _now, catalogue: edits.apply(
            state, content, versions=catalogue.digests(state, content)
        ),
        ["apply", str(options.file)],
    )


@app.command(cls=Waiting, epilog="Example: darkroom fleet abort")
@takes(Change)
def abort(options: Change) -> None:
    """Give the rollout up that is under way; what is active stays so."""
    carry_out(options, lambda state, _now, _catalogue: edits.abort(state), ["abort"])


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: cannot be read as text: {error}") from error


def _hold(
    options: Selected, verb: str, edit: Callable[[DesiredState, Selector], DesiredState]
) -> None:
    workers = options.workers
    carry_out(options, lambda state, _now, _catalogue: edit(state, workers), [verb, *options.words])


def _terms(now_ms: int, options: Activate | Reload) -> Terms:
    quorum = options.quorum if isinstance(options, Activate) else None
    return Terms(uuid.uuid4().hex[:8], now_ms, options.timeout_s, options.max_preparing, quorum)
