"""The README is held to the command line: every command and option that it shows exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text("utf-8")
SHOWN = re.compile(r"(?:^|\s|`|/)darkroom((?: [a-z]+){1,2})([^`#\n|]*)", re.MULTILINE)
GROUPS = {"config", "dev", "fleet", "models"}


def shown_commands() -> dict[tuple[str, ...], set[str]]:
    """Every command of the README, with the options that it is shown with."""
    found: dict[tuple[str, ...], set[str]] = {}
    for words, rest in SHOWN.findall(README):
        verb, *more = words.split()
        command = (verb, *more[:1]) if verb in GROUPS else (verb,)
        found.setdefault(command, set()).update(re.findall(r"--[a-z-]+", rest))
    return found


@pytest.mark.parametrize(("command", "options"), shown_commands().items())
def test_a_command_of_the_readme_exists_with_its_options(
    command: tuple[str, ...], options: set[str]
) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "worker", *command, "--help"],
        env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert options <= set(re.findall(r"--[a-z-]+", told.stdout))


def test_the_pictures_that_the_readme_sends_are_in_a_fresh_clone() -> None:
    sent = re.findall(r"^darkroom send (\S+)", README, re.MULTILINE)
    root = Path(__file__).parents[2]
    assert sent
    for path in sent:
        assert list((root / path).glob("*.png")), path


def test_the_commands_of_the_readme_are_found() -> None:
    assert {"run", "send", "results", "demo"} <= {command[0] for command in shown_commands()}
    assert "--brokers" not in shown_commands()[("run",)]


def test_every_target_of_make_that_the_readme_shows_exists_and_none_is_kept_from_it() -> None:
    shown = set(re.findall(r"make ([a-z-]+)", "\n".join(re.findall(r"`[^`\n]+`", README))))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert shown | {"demo"} == set(phony.split()) - {"help"}
