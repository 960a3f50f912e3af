import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli.dev import app
from worker.errors import CommandError
from worker.local.stack import PartStatus, Status

runner = CliRunner()


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_every_command_shows_an_example(command: str) -> None:
    assert f"Example: darkroom dev {command}" in runner.invoke(app, [command, "--help"]).stdout


def test_the_status_of_an_empty_folder_is_one_json_document(tmp_path: Path) -> None:
    asked = runner.invoke(app, ["status", "--json", "--data-dir", str(tmp_path)])

    assert asked.exit_code == 0
    assert json.loads(asked.stdout) == {
        "running": False,
        "bootstrap_servers": "",
        "redis_url": None,
        "data": str(tmp_path),
        "parts": [],
    }


@pytest.mark.parametrize("command", ["down", "status"])
def test_what_is_for_people_only_keeps_off_standard_output(tmp_path: Path, command: str) -> None:
    asked = runner.invoke(app, [command, "--data-dir", str(tmp_path / "none")])

    assert asked.stdout == ""
    assert "nothing runs in" in asked.stderr


def test_the_help_offers_nothing_but_its_own_commands() -> None:
    assert "--install-completion" not in runner.invoke(app, ["--help"]).stdout


def test_the_log_of_a_part_is_named_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / ("long" * 30) / "broker.log"
    part = PartStatus(name="broker-1", running=True, port=9092, pid=1, log=log)
    monkeypatch.setattr("worker.cli.dev.status", lambda _: Status(True, None, (part,)))

    shown = runner.invoke(app, ["status"]).stdout.splitlines()

    assert shown[1].split() == ["broker-1", "running", "9092", "1", str(log)]


def test_two_brokers_are_refused(tmp_path: Path) -> None:
    asked = runner.invoke(app, ["up", "--brokers", "2", "--data-dir", str(tmp_path)])

    assert asked.exit_code == 2
    assert "'--brokers': a local stack has 1 or 3" in asked.stderr


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    asked = runner.invoke(app, ["up", "--data-dir", str(tmp_path / "file")])

    assert isinstance(asked.exception, CommandError)
    assert "cannot use" in str(asked.exception)
