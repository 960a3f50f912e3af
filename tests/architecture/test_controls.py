"""Negative controls: each checker of the architecture, given what it must find."""

from collections.abc import Callable

import pytest

from tests.architecture import rules
from tests.architecture.source import Module, cycles, parse

Rule = Callable[[list[Module]], list[str]]

ARGUMENTS = ", ".join(f"a{number}" for number in range(9))
BODY = "    pass\n"

BAD = [
    (rules.layering, "worker.kafka.x", "import worker.pipeline"),
    (rules.layering, "worker.kafka.x", "from worker import app"),
    (rules.layering, "worker.kafka.x", "from ..inference import guilt"),
    (rules.layering, "worker.inference.x", "def f():\n    from worker.vision import decode"),
    (rules.layering, "worker.engine.x", "from worker.models.repository import find"),
    (rules.layering, "worker.cli.run", "if TYPE_CHECKING:\n    from worker.engine import host"),
    (rules.layering, "worker.types", "import worker"),
    (rules.layering, "worker.config", "from worker.engine import devices"),
    (rules.layering, "worker.utils", ""),
    (rules.ownership, "worker.kafka.x", "import cv2"),
    (rules.ownership, "worker.pipeline", "from aiokafka.errors import KafkaError"),
    (rules.ownership, "worker.inference.x", "def f():\n    import onnxruntime as ort"),
    (rules.ownership, "worker.app", "import requests"),
    (rules.environment, "worker.kafka.x", "import os\nos.environ['A']"),
    (rules.environment, "worker.engine.x", "import os\nos.getenv('A')"),
    (rules.environment, "worker.app", "from os import environ"),
    (rules.printing, "worker.app", "print('x')"),
    (rules.printing, "worker.local.x", "import sys\nsys.stdout.write('x')"),
    (rules.openings, "worker.kafka.__init__", "from worker.kafka.x import y"),
    (rules.openings, "worker.kafka.x", "import os"),
    (rules.sizes, "worker.x", "\n" * 401),
    (rules.sizes, "worker.x", "async def f() -> None:\n" + BODY * 60),
    (rules.sizes, "worker.x", f"def f({ARGUMENTS}): ..."),
    (rules.sizes, "worker.x", f"class A:\n    def f(*, {ARGUMENTS}): ..."),
    (rules.exceptions, "worker.x", "import os  # noqa"),
    (rules.exceptions, "worker.x", "import os  # noqa: F401"),
    (rules.exceptions, "worker.x", "x = y  # type: ignore"),
    (rules.exceptions, "worker.x", "x = y  # type: ignore[attr-defined]"),
]

GOOD = [
    (rules.layering, "worker.cli.run", "from worker.app import App\nfrom worker.kafka import x"),
    (rules.layering, "worker.engine.x", "from worker.models.manifest import Manifest"),
    (rules.layering, "worker.config", "from worker.engine.providers import option_problems"),
    (rules.ownership, "worker.vision.x", "import os, cv2\nfrom worker import errors"),
    (rules.environment, "worker.config", "import os\nos.environ.get('A')"),
    (rules.printing, "worker.cli.x", "print('x')"),
    (rules.openings, "worker.kafka.__init__", ""),
    (rules.openings, "worker.kafka.x", '"""Answers for x."""'),
    (rules.sizes, "worker.x", "\n" * 400),
    (rules.sizes, "worker.x", 'def f() -> None:\n    """A\n    b."""\n' + BODY * 59),
    (rules.exceptions, "worker.x", "import os  # noqa: F401 - the reason"),
    (rules.exceptions, "worker.x", "x = y  # type: ignore[misc]  # the reason"),
]


@pytest.mark.parametrize(("rule", "name", "text"), BAD)
def test_a_checker_finds_what_breaks_its_rule(rule: Rule, name: str, text: str) -> None:
    assert len(rule([parse(name, text)])) == 1


@pytest.mark.parametrize(("rule", "name", "text"), GOOD)
def test_a_checker_lets_good_code_pass(rule: Rule, name: str, text: str) -> None:
    assert rule([parse(name, text)]) == []


def test_a_circle_is_found_through_others_in_functions_and_under_type_checking() -> None:
    modules = [
        parse("worker.a", "from worker.b import x"),
        parse("worker.b", "def f():\n    import worker.c"),
        parse("worker.c", "if TYPE_CHECKING:\n    from .a import y"),
        parse("worker.d", "from worker import a"),
    ]
    assert cycles(modules) == [["worker.a", "worker.b", "worker.c"]]


def test_code_of_the_other_kind_of_process_is_found_through_others() -> None:
    modules = [
        parse("worker.app", "import worker.models.x"),
        parse("worker.models.x", "import worker.vision.decode"),
        parse("worker.vision.decode", "import worker.errors"),
        parse("worker.errors", ""),
        parse("worker.engine.host", "import worker.models.y"),
        parse("worker.models.y", "import worker.config"),
        parse("worker.config", "import worker.engine.providers"),
        parse("worker.engine.providers", ""),
    ]
    assert rules.processes(modules) == [
        "worker.app ends up with worker.vision.decode",
        "worker.models.x ends up with worker.vision.decode",
        "worker.engine.host ends up with worker.config",
    ]
