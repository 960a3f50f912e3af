"""`--wait` with and without seconds, and whom `--label` and `--worker` mean."""

import math
from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

from worker.cli.fleet_options import Change, Model, Selected, Waiting, selector
from worker.cli.options import takes
from worker.control.messages import Selector

taken: list["Named"] = []
app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class Named(Selected):
    model: Model
    version: str | None = None


@app.command(cls=Waiting)
@takes(Named)
def command(options: Named) -> None:
    taken.append(options)


def options_of(*arguments: str) -> Named:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return taken.pop()


@pytest.mark.parametrize(
    ("arguments", "wait_s"),
    [
        (["digits"], None),
        (["digits", "--wait"], math.inf),
        (["--wait", "digits"], math.inf),
        (["digits", "--wait", "30"], 30.0),
        (["digits", "--wait", "0.5"], 0.5),
        (["digits", "--wait=30"], 30.0),
        (["digits", "--wait", "--dry-run"], math.inf),
        (["--wait", "30", "digits"], 30.0),
        (["digits", "--wait", "30", "--dry-run"], 30.0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_wait_takes_seconds_or_none(arguments: list[str], wait_s: float | None) -> None:
    options = options_of(*arguments)

    assert (options.model, options.wait_s) == ("digits", wait_s)


def test_what_stands_behind_two_dashes_is_no_option() -> None:
    assert options_of("digits", "--wait", "--").wait_s == math.inf
    assert options_of("--", "--wait").model == "--wait"


@pytest.mark.parametrize("seconds", ["-1", "-0.5", "nan"])
def test_wait_takes_no_time_before_now(seconds: str) -> None:
    result = CliRunner().invoke(app, ["digits", f"--wait={seconds}"])

    assert result.exit_code == 2
    assert "--wait" in result.output


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ([], Selector()),
        (["--worker", "w-1"], Selector(worker="w-1")),
        (["--label", "zone=a"], Selector(labels={"zone": "a"})),
        (
            ["--label", "zone=a", "--label", "gpu=no=yes"],
            Selector(labels={"zone": "a", "gpu": "no=yes"}),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_workers_are_meant_by_label_or_id_or_all(arguments: list[str], meant: Selector) -> None:
    options = options_of("digits", *arguments)

    assert options.workers == meant
    assert options.words == arguments


@pytest.mark.parametrize(
    ("labels", "worker", "told"),
    [
        (["zone"], None, "'zone': expected NAME=VALUE"),
        (["=a"], None, "'=a': expected NAME=VALUE"),
        (["zone=a"], "w-1", "either --label or --worker"),
        (None, "", "expected the id of a worker"),
    ],
)
def test_a_selection_that_means_nobody_is_a_wrong_argument(
    labels: list[str] | None, worker: str | None, told: str
) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        selector(labels, worker)


def test_a_change_waits_for_nothing_unless_it_is_asked_to() -> None:
    assert Change() == Change(
        wait_s=None, dry_run=False, expect=None, supersede=False, config=None, as_json=False
    )
