"""What the brokers say of our topics at the start; a topology that cannot work is refused there."""

from collections.abc import Sequence
from typing import NamedTuple

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from worker.config_sections import KafkaSettings
from worker.errors import BrokerRefused, BrokerUnavailable
from worker.kafka.clients import client_options, describe, within

_DEADLINE_S = 10.0
_DEFAULT_MAX_BYTES = 1_048_588

log = structlog.get_logger(__name__)


class TopicSize(NamedTuple):
    partitions: int
    max_bytes: int
    """`max.message.bytes`: of a record batch. Kafka's default where we may not read it."""
    known: bool
    """We were allowed to read `max_bytes`."""


class TopicFacts(NamedTuple):
    """Of the topics that this worker writes to; names, partitions, and the largest batch."""

    output_topic: str
    output_partitions: int
    output_max_bytes: int
    dead_letter_topic: str
    dead_letter_partitions: int
    dead_letter_max_bytes: int


async def inspect_topics(settings: KafkaSettings) -> TopicFacts:
    """Ask the brokers for every topic of the settings.

    Raises BrokerRefused when one is absent, or when dead letters could not hold a record;
    BrokerUnavailable when no broker answers in time.
    """
    writes = (settings.output_topic, settings.dead_letter_topic)
    found = await ask_topics(settings, [*settings.input_topics, *writes])
    output, dead = (found[topic] for topic in writes)
    inputs = [topic for topic in settings.input_topics if found[topic].known]
    largest = max(inputs, key=lambda topic: found[topic].max_bytes, default=None)
    if largest and dead.known and dead.max_bytes < found[largest].max_bytes:
        raise BrokerRefused(
            f"max.message.bytes of the dead-letter topic {settings.dead_letter_topic!r} is "
            f"{dead.max_bytes}, and {largest!r} takes records of up to "
            f"{found[largest].max_bytes}: a dead letter would not fit; raise it to at least that"
        )
    return TopicFacts(
        settings.output_topic,
        output.partitions,
        output.max_bytes,
        settings.dead_letter_topic,
        dead.partitions,
        dead.max_bytes,
    )


async def ask_topics(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, TopicSize]:
    """Ask the brokers for these topics.

    Raises BrokerRefused when one is absent, BrokerUnavailable when no broker answers in time.
    """
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=10_000)
    brokers = settings.bootstrap_servers
    try:
        await within(_DEADLINE_S, "connecting", admin.start(), brokers=brokers)
        described = await within(
            _DEADLINE_S, "describing topics", admin.describe_topics(list(topics)), brokers=brokers
        )
        partitions = {topic["topic"]: len(topic["partitions"]) for topic in described}
        absent = [topic for topic in topics if not partitions.get(topic)]
        if absent:
            raise BrokerRefused(
                f"Kafka at {brokers} has no topic {', '.join(map(repr, absent))}, or no right to "
                "describe it for us: create it, or name another in kafka.input_topics, "
                "output_topic or dead_letter_topic"
            )
        sizes = await _max_bytes(admin, topics)
    finally:
        await _closed(admin)
    return {
        topic: TopicSize(
            partitions[topic], sizes.get(topic, _DEFAULT_MAX_BYTES), known=topic in sizes
        )
        for topic in topics
    }


async def _max_bytes(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> dict[str, int]:
    """Return max.message.bytes of each topic whose settings we may read."""
    wanted = {"max.message.bytes": None}
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic, wanted) for topic in topics]
    sizes: dict[str, int] = {}
    responses = await within(_DEADLINE_S, "describing topics", admin.describe_configs(resources))
    for response in responses:
        for _code, _message, _type, topic, entries in response.resources:
            for name, value, *_ in entries:
                if name == "max.message.bytes":
                    sizes[topic] = int(value)
    return sizes


async def _closed(admin: AIOKafkaAdminClient) -> None:
    """Close, and let no trouble with that hide what was said before."""
    try:
        await within(_DEADLINE_S, "closing", admin.close())
    except (BrokerRefused, BrokerUnavailable) as error:
        log.debug("closing an admin client", error=describe(error))
