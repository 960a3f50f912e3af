import subprocess
import sys

import pytest

from tests.unit.cli.conftest import Darkroom
from worker import errors
from worker.cli import config as config_command

COMMANDS = [
    ("run",),
    ("demo",),
    ("send",),
    ("results",),
    ("config", "show"),
    ("config", "check"),
    ("models", "inspect"),
    ("models", "verify"),
]


def test_help_lists_the_commands_and_the_exit_codes(darkroom: Darkroom) -> None:
    result = darkroom("--help")

    assert result.exit_code == 0
    for name in {words[0] for words in COMMANDS} | {"dev", "fleet"}:
        assert f"  {name} " in result.output
    assert "  5  the brokers answer and refuse us" in result.output


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(
    words: tuple[str, ...], darkroom: Darkroom
) -> None:
    result = darkroom(*words, "--help")

    assert result.exit_code == 0
    assert f"Example: darkroom {' '.join(words)}" in result.output


def test_help_of_the_local_stack_is_its_own(darkroom: Darkroom) -> None:
    result = darkroom("dev", "--help")

    assert result.exit_code == 0
    assert "status" in result.output


def test_version_is_the_distributions(darkroom: Darkroom) -> None:
    assert darkroom("--version").output.startswith("darkroom 0.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SettingsError("why"), 2),
        (errors.ModelError("why"), 3),
        (errors.DeviceError("why"), 4),
        (errors.BrokerRefused("why"), 5),
        (errors.BrokerUnavailable("why"), 7),
        (errors.ControlUnavailable("why"), 7),
        (errors.CommandError("why"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_message_and_its_exit_code(
    error: BaseException, code: int, darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(config_command, "write", fail)

    result = darkroom("config", "show")

    assert result.exit_code == code
    assert result.stderr == f"darkroom: {str(error) or 'interrupted'}\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "offered"),
    [
        (["run", "--log-level", "loud"], "'debug', 'info', 'warning', 'error'"),
        (["fleet", "pause", "--expect", "-1"], "greater than or equal to 0"),
        (["dev", "up", "--brokers", "2"], "1 or 3"),
    ],
    ids=" ".join,
)
def test_a_choice_that_there_is_not_is_a_wrong_argument(
    arguments: list[str], offered: str, darkroom: Darkroom
) -> None:
    result = darkroom(*arguments)

    assert result.exit_code == 2
    assert offered in result.stderr


def test_debug_shows_where_an_error_comes_from(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_KAFKA__GRUP_ID", "x")

    assert isinstance(darkroom("--debug", "config", "check").exception, errors.SettingsError)
    monkeypatch.setenv("DARKROOM_DEBUG", "1")
    assert isinstance(darkroom("config", "check").exception, errors.SettingsError)


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], {"pydantic", "aiokafka", "numpy", "rich", "structlog"}),
        (["config", "show"], {"aiokafka", "numpy"}),
    ],
)
def test_a_quick_command_loads_nothing_heavy(arguments: list[str], unwanted: set[str]) -> None:
    script = (
        "import sys\n"
        "from worker.cli.main import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        f"print('loaded:', *({unwanted!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("config show >/dev/full", 1, "written: No space left on device"),
        ("config show >&-", 0, ""),
        ("fleet status 2>&-", 7, ""),
    ],
)
def test_streams_that_take_nothing_end_no_command_in_a_traceback(
    words: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_CONTROL__URL", "redis://127.0.0.1:1/0")
    command = f'"{sys.executable}" -m worker {words}'

    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
