"""A topic of two partitions on a real Kafka, and members of a group that reads it."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.kafka.members import Member
from worker.config_sections import KafkaSettings
from worker.local.spec import Topic
from worker.local.stack import Stack


@pytest.fixture
def settings(kafka: Stack, unique: str) -> KafkaSettings:
    kafka.create_topics(Topic(unique, 2))
    return KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers,
        group_id=unique,
        input_topics=(unique,),
        session_timeout_ms=2000,
    )


@pytest.fixture
async def members(settings: KafkaSettings) -> AsyncIterator[list[Member]]:
    made = [Member(settings), Member(settings)]
    yield made
    for member in made:
        await member.end()


@pytest.fixture
def member(members: list[Member]) -> Member:
    return members[0]
