from pathlib import Path

import pytest

from tests.unit.cli.conftest import Darkroom


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "p.png"
    file.write_bytes(b"png")
    return file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--key", "{nome}"), "--key '{nome}': expected a text with {name} {stem} {n} {sha256}"),
        (("--key", "{n"), "expected a text with"),
        (("--key", "{name.x}"), "expected a text with"),
        (("--header", "a"), "--header 'a': expected NAME=VALUE"),
        (("--header", "=a"), "--header '=a': expected NAME=VALUE"),
    ],
)
def test_a_wrong_option_is_refused_before_any_broker_is_asked(
    arguments: tuple[str, ...], said: str, picture: Path, darkroom: Darkroom
) -> None:
    result = darkroom("send", str(picture), *arguments)

    assert result.exit_code == 1
    assert said in result.stderr


def test_an_absent_file_is_refused(darkroom: Darkroom) -> None:
    result = darkroom("send", "absent.png")

    assert result.exit_code == 1
    assert result.stderr == "darkroom: no such file, folder with files, or glob: absent.png\n"


def test_absent_brokers_are_one_message_and_exit_code_7(picture: Path, darkroom: Darkroom) -> None:
    result = darkroom("send", str(picture), "--bootstrap-servers", "127.0.0.1:1")

    assert result.exit_code == 7
    assert "127.0.0.1:1" in result.stderr
    assert result.stderr.count("\n") == 1
