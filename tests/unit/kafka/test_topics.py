"""What is asked of topics at the start, on a real Kafka."""

from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from worker.config_sections import KafkaSettings
from worker.errors import BrokerRefused, BrokerUnavailable
from worker.kafka.topics import TopicFacts, inspect_topics
from worker.local.spec import Topic
from worker.local.stack import Stack

pytestmark = pytest.mark.kafka

DEFAULT = 1_048_588


def settings_of(kafka: Stack, unique: str, **sizes: int | None) -> KafkaSettings:
    """Create topics `in`, `out` and `dead` of these sizes; None: it does not exist."""
    for name in ("in", "out", "dead"):
        size = sizes.get(name, 2_000_000)
        if size is not None:
            kafka.create_topics(Topic(f"{unique}.{name}", 2, {"max.message.bytes": str(size)}))
    return KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers,
        input_topics=(f"{unique}.in",),
        output_topic=f"{unique}.out",
        dead_letter_topic=f"{unique}.dead",
    )


async def test_partitions_and_limits_are_the_topics_own(kafka: Stack, unique: str) -> None:
    settings = settings_of(kafka, unique, out=700_000, dead=3_000_000)
    assert await inspect_topics(settings) == TopicFacts(
        f"{unique}.out", 2, 700_000, f"{unique}.dead", 2, 3_000_000
    )


@pytest.mark.parametrize("absent", ["in", "out", "dead"])
async def test_an_absent_topic_is_named_with_what_to_do(
    kafka: Stack, unique: str, absent: str
) -> None:
    settings = settings_of(kafka, unique, **{absent: None})
    with pytest.raises(BrokerRefused, match=rf"no topic '{unique}\.{absent}'.*create it"):
        await inspect_topics(settings)


async def test_a_dead_letter_topic_that_could_not_hold_a_record_is_refused_with_both_names(
    kafka: Stack, unique: str
) -> None:
    settings = settings_of(kafka, unique, dead=1_999_999)
    with pytest.raises(BrokerRefused) as refused:
        await inspect_topics(settings)
    for said in (f"{unique}.dead", "1999999", f"{unique}.in", "2000000", "max.message.bytes"):
        assert said in str(refused.value)


@pytest.mark.parametrize("hidden", [("in", "out", "dead"), ("dead",)])
async def test_limits_that_we_may_not_read_are_kafkas_default_and_refuse_nothing(
    kafka: Stack, unique: str, hidden: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = AIOKafkaAdminClient.describe_configs

    async def some(admin: Any, resources: Any) -> Any:
        answers = await ask(admin, resources)
        for answer in answers:
            answer.resources = [
                (29, "not authorized", kind, topic, [])
                if topic.endswith(hidden)
                else (code, message, kind, topic, entries)
                for code, message, kind, topic, entries in answer.resources
            ]
        return answers

    settings = settings_of(kafka, unique)
    monkeypatch.setattr(AIOKafkaAdminClient, "describe_configs", some)
    facts = await inspect_topics(settings)
    assert facts.dead_letter_max_bytes == DEFAULT
    assert facts.output_max_bytes == (DEFAULT if "out" in hidden else 2_000_000)


async def test_nobody_at_the_address_is_said_with_the_address() -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        await inspect_topics(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
