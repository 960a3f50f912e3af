"""What stands around the code is held to its rules too, each checker with its negative control."""

import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture import project, rules
from tests.architecture.source import ROOT, imports, load

PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
PROJECT: dict[str, Any] = tomllib.loads(PYPROJECT)["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
HASHED = "a==1.0 \\\n    --hash=sha256:00\n    # via b\n"


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("worker", []), ("local", ["local"]), ("dev", ["local", "bench", "dev"])],
)
def test_a_lock_pins_and_hashes_all_that_is_declared(lock: str, extras: list[str]) -> None:
    declared = [*PROJECT["dependencies"], *(need for extra in extras for need in EXTRAS[extra])]
    text = (ROOT / "requirements" / f"{lock}.lock").read_text("utf-8")
    assert project.lock_faults(text, declared) == []


def test_the_tools_lock_pins_and_hashes_what_makes_the_environment() -> None:
    wanted = (ROOT / "requirements/tools.in").read_text("utf-8").splitlines()
    wanted = [line for line in wanted if not line.startswith("#")]
    wanted += tomllib.loads(PYPROJECT)["build-system"]["requires"]
    text = (ROOT / "requirements/tools.lock").read_text("utf-8")
    assert project.lock_faults(text, wanted) == []


@pytest.mark.parametrize(
    ("lock", "declared"),
    [
        ("a==1.0\n", []),
        ("a @ https://host/a.whl --hash=sha256:00\n", []),
        ("--find-" + "links /wheels\n", []),
        (HASHED, ["b"]),
        (HASHED, ["a>=2"]),
    ],
)
def test_a_lock_with_a_fault_is_found(lock: str, declared: list[str]) -> None:
    assert len(project.lock_faults(lock, declared)) == 1
    assert project.lock_faults(HASHED, ["a>=1", "A<2 ; python_version > '3'"]) == []


def test_everything_that_the_worker_imports_is_declared() -> None:
    needs = [*PROJECT["dependencies"], *EXTRAS["local"], *EXTRAS["cuda"]]
    declared = {Requirement(need).name for need in needs}
    makers = packages_distributions()
    imported = {
        item.target.partition(".")[0] for module in load("worker") for item in imports(module)
    }
    assert {
        package
        for package in imported & set(rules.OWNERS)
        if not declared & {canonicalize_name(name) for name in makers[package]}
    } == set()


def test_no_file_names_what_only_one_machine_has() -> None:
    found = [
        trace
        for path in project.text_files(ROOT)
        for trace in project.machine_traces(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "see /ho" + "me/me/x",
        "cd /wo" + "rk/main",
        "--ind" + "ex-url x",
        'url = "http' + '://10.0.0.1/a"',
        "https://pypi.host/sim" + "ple/",
        "https://me:secret" + "@host/",
    ],
)
def test_a_line_that_names_one_machine_is_found(line: str) -> None:
    assert len(project.machine_traces("x", line)) == 1


@pytest.mark.parametrize("line", ["./home/x", "$HOME/work/main", "https://kafka.apache.org/a"])
def test_a_line_that_names_no_machine_passes(line: str) -> None:
    assert project.machine_traces("x", line) == []


def test_the_map_is_short_and_true() -> None:
    assert project.map_faults((ROOT / "ARCHITECTURE.md").read_text("utf-8"), ROOT) == []


def test_a_map_that_is_long_or_names_what_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "worker/kafka").mkdir(parents=True)
    (tmp_path / "worker/kafka/ledger.py").touch()
    text = "`kafka/ledger.py` `worker/kafka/` `kafka/gone.py` `/livez` `a b/c` `gone.py`"
    assert project.map_faults(text, tmp_path) == [
        "kafka/gone.py does not exist",
        "gone.py does not exist",
    ]
    assert len(project.map_faults("\n" * 201, tmp_path)) == 1


def test_every_exception_of_the_linter_has_its_reason() -> None:
    assert project.unreasoned(PYPROJECT) == []


def test_an_exception_without_a_reason_is_found() -> None:
    text = '[tool.ruff.lint]\nignore = [\n    "D100",\n    "EM",  # why\n]\n"x/**" = ["D", "S"]\n'
    assert project.unreasoned(text) == ['"D100",', '"x/**" = ["D", "S"]']
