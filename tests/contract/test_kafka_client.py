"""What the consumer and the producer promise to the rest: held by fakes and real ones."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from confluent_kafka import Producer as Feed

from tests.broker import Topics, make_topics, read_all
from tests.fakes import FakeBroker, FakeConsumer, FakeProducer, eventually
from worker.config_sections import KafkaSettings
from worker.kafka.consumer import Consumer
from worker.kafka.ledger import Outgoing
from worker.kafka.producer import Producer
from worker.kafka.topics import TopicFacts
from worker.types import Partition, Record


class Owner:
    def __init__(self) -> None:
        self.assignments: list[tuple[frozenset[Partition], int]] = []
        self.revokes = 0

    async def revoked(self, deadline_s: float) -> None:
        del deadline_s
        self.revokes += 1

    def assigned(self, partitions: frozenset[Partition], epoch: int) -> None:
        self.assignments.append((partitions, epoch))


class Side:
    """A consumer under test, and a way to write what it reads."""

    def __init__(self, consumer: Any, topic: str, write: Callable[..., Awaitable[None]]) -> None:
        self.consumer = consumer
        self.topic = topic
        self.write = write
        self.owner = Owner()

    async def join(self) -> None:
        count = len(self.owner.assignments)
        await self.consumer.join(self.owner)
        await eventually(lambda: len(self.owner.assignments) > count, 20)

    async def take(self, count: int, *, most: int = 100) -> list[Record]:
        taken: list[Record] = []
        async with asyncio.timeout(20):
            while len(taken) < count:
                records = await self.consumer.poll(max_records=most, timeout_s=0.05)
                assert len(records) <= most
                taken += records
        return taken


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kafka)])
async def side(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[Side]:
    if request.param == "fake":
        broker = FakeBroker(partitions=2, topic=unique)

        async def write(partition: int, *values: bytes) -> None:
            broker.write(partition, *values)

        yield Side(FakeConsumer(broker), unique, write)
        return
    stack = request.getfixturevalue("kafka")
    topics = make_topics(stack, unique, partitions=2)
    settings = KafkaSettings(
        bootstrap_servers=stack.bootstrap_servers, group_id=unique, input_topics=(topics.input,)
    )
    consumer = Consumer(settings, drain_deadline_s=5.0, batch_max_bytes=1 << 28)
    feed = Feed({"bootstrap.servers": stack.bootstrap_servers})

    async def produce(partition: int, *values: bytes) -> None:
        for value in values:
            feed.produce(topics.input, value, partition=partition)
        assert await asyncio.to_thread(feed.flush, 20) == 0

    yield Side(consumer, topics.input, produce)
    await consumer.leave()


async def test_a_join_gives_all_partitions_in_a_new_epoch_each_time(side: Side) -> None:
    assert not side.consumer.member
    assert not side.consumer.joined
    for epoch in (1, 2):
        await side.join()
        assert side.consumer.member
        assert side.consumer.joined
        assert side.consumer.epoch == epoch
        both = frozenset({Partition(side.topic, 0), Partition(side.topic, 1)})
        assert side.owner.assignments[-1] == (both, epoch)
        await side.consumer.leave()
        assert not side.consumer.member
        assert not side.consumer.joined


async def test_a_poll_brings_records_in_order_no_more_than_asked_of_the_epoch(side: Side) -> None:
    await side.write(0, b"0", b"1", b"2", b"3", b"4")
    await side.write(1, b"0", b"1", b"2")
    await side.join()
    records = await side.take(8, most=3)
    for number, count in ((0, 5), (1, 3)):
        mine = [record for record in records if record.position.partition == number]
        assert [record.value for record in mine] == [b"%d" % offset for offset in range(count)]
        assert [record.position.offset for record in mine] == list(range(count))
    assert {(record.epoch, record.unreadable) for record in records} == {(1, None)}


async def test_a_poll_outside_the_group_brings_nothing_and_takes_its_time(side: Side) -> None:
    await side.write(0, b"0")
    assert await side.consumer.poll(max_records=1, timeout_s=0.001) == []
    await side.consumer.rest()


async def test_who_comes_back_begins_behind_what_is_committed(side: Side) -> None:
    await side.write(0, b"0", b"1", b"2")
    await side.join()
    await side.take(3)
    assert await side.consumer.commit({Partition(side.topic, 0): 2}, deadline_s=5.0) is True
    await side.consumer.leave()
    await side.join()
    assert [record.position.offset for record in await side.take(1)] == [2]


async def test_a_commit_outside_the_group_is_refused(side: Side) -> None:
    assert await side.consumer.commit({Partition(side.topic, 0): 1}, deadline_s=5.0) is False


async def test_positions_and_ends_are_told_of_what_is_owned(side: Side) -> None:
    await side.write(0, b"0", b"1", b"2")
    await side.join()
    await side.take(3)
    partition = Partition(side.topic, 0)
    assert await side.consumer.positions([partition]) == {partition: 3}
    assert await side.consumer.ends({partition}) == {partition: (3, 3)}
    assert await side.consumer.ends(frozenset()) == {}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kafka)])
async def outlet(
    request: pytest.FixtureRequest, unique: str
) -> AsyncIterator[tuple[Any, Callable[[], list[bytes | None]]]]:
    """A producer, and what it has published for partition 0."""
    if request.param == "fake":
        fake = FakeProducer()
        yield fake, lambda: [item.key for item in fake.results[0]]
        return
    stack = request.getfixturevalue("kafka")
    topics: Topics = make_topics(stack, unique, partitions=1)
    facts = TopicFacts(topics.output, 1, 1_000_000, topics.dead, 1, 1_000_000)
    producer = Producer(KafkaSettings(bootstrap_servers=stack.bootstrap_servers), facts)
    await producer.start()
    yield producer, lambda: [found.key for found in read_all(topics, topics.output)]
    await producer.stop()


async def test_what_is_sent_is_published_in_order_when_send_returns_before_and_after_a_replace(
    outlet: tuple[Any, Callable[[], list[bytes | None]]],
) -> None:
    producer, published = outlet
    items = [Outgoing(b"%d" % number, b"result", (), None) for number in range(6)]
    await producer.send(0, items[:3])
    first = producer.client
    await producer.replace(first)
    assert producer.client not in (None, first)
    second = producer.client
    await producer.replace(first)
    assert producer.client is second, "somebody else had replaced it already"
    await producer.send(0, items[3:])
    assert await asyncio.to_thread(published) == [item.key for item in items]
