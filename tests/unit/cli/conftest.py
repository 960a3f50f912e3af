from collections.abc import Callable, Iterator
from logging import getLogger

import pytest
import structlog
from typer.testing import CliRunner, Result

from worker.cli.main import app

Darkroom = Callable[..., Result]


@pytest.fixture
def darkroom(monkeypatch: pytest.MonkeyPatch) -> Iterator[Darkroom]:
    """Run the command in this process, with no settings of the machine."""
    root = getLogger()
    before = root.handlers[:], root.level
    for name in ("DARKROOM_CONFIG", "DARKROOM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    yield lambda *arguments: CliRunner().invoke(app, arguments)
    structlog.reset_defaults()
    root.handlers[:], root.level = before
