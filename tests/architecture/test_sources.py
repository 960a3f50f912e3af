"""The rules of the architecture, held against every source of the project."""

from collections.abc import Callable

import pytest

from tests.architecture import rules
from tests.architecture.source import Module, cycles, load

WORKER = load("worker")
EVERYTHING = [*WORKER, *load("tests", "benchmarks", "scripts", "examples")]


@pytest.mark.parametrize(
    "rule",
    [
        rules.layering,
        rules.processes,
        rules.ownership,
        rules.environment,
        rules.printing,
        rules.openings,
    ],
)
def test_the_worker_keeps(rule: Callable[[list[Module]], list[str]]) -> None:
    found = rule(WORKER)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [rules.sizes, rules.exceptions])
def test_every_source_keeps(rule: Callable[[list[Module]], list[str]]) -> None:
    found = rule(EVERYTHING)
    assert not found, "\n".join(found)


def test_nothing_imports_in_a_circle() -> None:
    assert cycles(EVERYTHING) == []


def test_every_area_of_the_rules_exists() -> None:
    assert set(rules.MAY_IMPORT) - {module.area for module in WORKER} == set()
