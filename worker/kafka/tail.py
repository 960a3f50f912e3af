"""Reading a topic from its beginning or from now on, outside any group, for commands."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from worker.config_sections import KafkaSettings
from worker.errors import BrokerUnavailable
from worker.kafka.clients import client_options, within
from worker.kafka.topics import ask_topics

T = TypeVar("T")

_DEADLINE_S = 15.0
_STOP_DEADLINE_S = 5.0
_POLL_MS = 500
_FETCH_BYTES = 8 << 20


class Published(NamedTuple):
    """A record of a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


async def tail(
    settings: KafkaSettings, topic: str, *, from_beginning: bool, follow: bool
) -> AsyncGenerator[Published]:
    """Yield records, in order within a partition; without `follow` up to what was there at first.

    Raises BrokerRefused (the topic is absent, too), or BrokerUnavailable.
    """
    size = (await ask_topics(settings, [topic]))[topic]
    partitions = [TopicPartition(topic, number) for number in range(size.partitions)]
    async with _consumer(settings) as consumer:
        consumer.assign(partitions)
        ends = await _within(settings, "end offsets", consumer.end_offsets(partitions))
        starts = ends
        if from_beginning:
            asking = consumer.beginning_offsets(partitions)
            starts = await _within(settings, "beginning offsets", asking)
        for partition in partitions:
            consumer.seek(partition, starts[partition])
        heard_s = time.monotonic()
        while follow or not await _reached(settings, consumer, ends):
            polling = consumer.getmany(timeout_ms=_POLL_MS)
            polled = await _within(settings, "polling", polling)
            for partition, records in polled.items():
                for record in records:
                    if follow or record.offset < ends[partition]:
                        yield _published(record)
            if polled:
                heard_s = time.monotonic()
            elif not follow and time.monotonic() - heard_s > _DEADLINE_S:
                raise BrokerUnavailable(
                    f"polling: nothing came from Kafka ({settings.bootstrap_servers}) for "
                    f"{_DEADLINE_S:g} s though there is more of {topic!r}"
                )


async def _reached(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]
) -> bool:
    """Say whether all was read; a position also steps over markers, which are no records."""
    for partition, end in ends.items():
        if await _within(settings, "position", consumer.position(partition)) < end:
            return False
    return True


def _published(record: ConsumerRecord) -> Published:
    return Published(record.partition, record.offset, record.timestamp, record.key, record.value)


@asynccontextmanager
async def _consumer(settings: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
        **client_options(settings),
    )
    try:
        await _within(settings, "connecting", consumer.start())
        yield consumer
    finally:
        stopping = asyncio.ensure_future(consumer.stop())
        await asyncio.wait((stopping,), timeout=_STOP_DEADLINE_S)
        stopping.cancel()


async def _within(settings: KafkaSettings, what: str, awaitable: Awaitable[T]) -> T:
    return await within(_DEADLINE_S, what, awaitable, brokers=settings.bootstrap_servers)
