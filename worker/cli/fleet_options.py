"""What the commands of a fleet have in common: whom they mean, how they write, how they wait."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from worker.cli.options import Config, Json
from worker.control.messages import Selector, frozen

WAIT = "--wait"
WAIT_S = 60.0
"""How long `--wait` waits; a rollout's own timeout comes on top."""


class Waiting(TyperCommand):
    """A command whose `--wait` takes seconds or none, which typer cannot say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_seconds(args))


def _with_seconds(arguments: list[str]) -> list[str]:
    """Give every bare `--wait` a value (for ever): one that no number follows."""
    given: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            return given + arguments[number:]
        following = arguments[number + 1] if number + 1 < len(arguments) else ""
        bare = argument == WAIT and not following.replace(".", "", 1).isdecimal()
        given.append(f"{WAIT}={math.inf}" if bare else argument)
    return given


def _digest(given: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", given.lower()):
        raise typer.BadParameter(f"{given!r}: expected 64 hexadecimal digits")
    return given.lower()


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="Version of it, not an alias.")]
Sha256 = Annotated[
    str | None,
    typer.Option(
        "--sha256",
        metavar="HEX",
        parser=_digest,
        help="Digest of the version's manifest, for a version that the fleet does not know.",
        show_default="looked up in models.repository",
    ),
]
MaxPreparing = Annotated[
    int, typer.Option("--max-preparing", min=1, metavar="N", help="Workers that load at a time.")
]
TimeoutS = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.001, metavar="SECONDS", help="Give the rollout up after this time."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a command writes; every one that does has these."""

    wait_s: Annotated[
        float | None,
        typer.Option(
            WAIT,
            min=0.0,
            metavar="[SECONDS]",
            help="Wait until every worker has done it; exit 1 when one refuses, 8 when it takes"
            " longer.",
            show_default=f"{WAIT_S:g} and the rollout's timeout, where no SECONDS follow",
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change; write nothing.")
    ] = False
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect",
            min=0,
            metavar="GENERATION",
            help="Only if this generation is stored (0: none); exit 1 if not.",
        ),
    ] = None
    supersede: Annotated[
        bool,
        typer.Option(
            "--supersede",
            help="Take over from another epoch, from a broken state, or from a newer one that"
            " was lost.",
        ),
    ] = False
    config: Config = None
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class Selected(Change):
    """Which workers a command means; without either: the whole fleet."""

    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="K=V", help="Workers with this label; repeated: with all of them."
        ),
    ] = None
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="ID", help="This worker alone.")
    ] = None

    @property
    def workers(self) -> Selector:
        return selector(self.label, self.worker)

    @property
    def words(self) -> list[str]:
        """The selection as it was typed."""
        labels = [word for label in self.label or () for word in ("--label", label)]
        return [*labels, *(("--worker", self.worker) if self.worker else ())]


def selector(labels: Sequence[str] | None, worker: str | None) -> Selector:
    """Return which workers `--label` and `--worker` mean. Raises BadParameter."""
    if worker == "":  # an empty variable of a script: it must not mean all of them
        raise typer.BadParameter("expected the id of a worker", param_hint="'--worker'")
    if labels and worker:
        raise typer.BadParameter("either --label or --worker", param_hint="'--worker'")
    return Selector(worker, frozen(pairs(labels, "--label")))


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read repeated K=V. Raises BadParameter."""
    found: dict[str, str] = {}
    for pair in given or ():
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{pair!r}: expected NAME=VALUE", param_hint=f"'{option}'")
        found[name] = value
    return found
