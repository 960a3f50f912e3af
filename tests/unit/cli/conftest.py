from collections.abc import Callable, Iterator
from logging import getLogger

import pytest
import structlog
from typer.testing import CliRunner, Result

from tests.channels import FakeChannel, FakeRedis
from tests.unit.cli.fleets import Fleet
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


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> FakeRedis:
    redis = FakeRedis()
    monkeypatch.setattr("worker.cli.fleet_session.Channel", lambda _: FakeChannel(redis))
    monkeypatch.setenv("DARKROOM_CONTROL__URL", "redis://127.0.0.1:6379/0")
    return redis


@pytest.fixture
def fleet(darkroom: Darkroom, redis: FakeRedis) -> Fleet:
    """Run `darkroom fleet ...`."""
    del redis  # is what it commands
    return lambda *arguments: darkroom("fleet", *arguments)
