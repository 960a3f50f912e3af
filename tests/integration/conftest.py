"""Fixtures of the tests that run real workers on a real Kafka."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Topics, make_topics
from tests.conftest import missing
from tests.workers import Crew, crew_in
from worker.local.spec import MissingPart, StackSpec
from worker.local.stack import Stack, running


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """Starts workers; ends those that are left."""
    with crew_in(tmp_path) as crew:
        yield crew


@pytest.fixture
def topics(kafka: Stack, unique: str) -> Topics:
    """Three topics of six partitions that no other test uses."""
    return make_topics(kafka, unique)


@pytest.fixture(scope="session")
def breakable(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Stack]:
    """A Kafka whose broker tests stop and start; each leaves it running."""
    del no_process_left  # is asked for so that it looks after this fixture's end
    spec = StackSpec(data=tmp_path_factory.mktemp("breakable"), topics=(), redis=False)
    try:
        with running(spec) as stack:
            yield stack
    except MissingPart as error:
        missing(str(error))
