"""The producer against a real Kafka: order, partitions, dead letters, and how it breaks."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import errors as kafka_errors

from tests.broker import Published, Topics, make_topics, read_all
from tests.conftest import missing
from worker.config import KafkaSettings
from worker.kafka.ledger import DeadLetter, Outgoing
from worker.kafka.producer import Producer
from worker.kafka.topics import TopicFacts
from worker.local.spec import MissingPart, StackSpec, Topic
from worker.local.stack import Stack, running

pytestmark = pytest.mark.kafka

LIMIT = 1_048_588


def facts_of(topics: Topics, outputs: int, *, max_bytes: int = LIMIT) -> TopicFacts:
    return TopicFacts(topics.output, outputs, max_bytes, topics.dead, topics.partitions, max_bytes)


def settings_of(topics: Topics) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=topics.bootstrap)


def results(count: int, *, start: int = 0, value: bytes = b"result") -> list[Outgoing]:
    headers = (("darkroom-id", b"id"), ("none", None))
    return [Outgoing(b"%d" % n, value, headers, None) for n in range(start, start + count)]


def keys(published: list[Published], partition: int) -> list[int]:
    return [int(found.key or b"") for found in published if found.partition == partition]


@pytest.fixture
def topics(kafka: Stack, unique: str) -> Topics:
    return make_topics(kafka, unique, partitions=3, outputs=2)


@pytest.fixture
def narrow(kafka: Stack, unique: str) -> Topics:
    """Topics that take a megabyte, whatever their producer was told."""
    topics = Topics(kafka.bootstrap_servers, "", f"{unique}.out", f"{unique}.dead", unique, 1)
    limit = {"max.message.bytes": str(LIMIT)}
    kafka.create_topics(Topic(topics.output, 1, limit), Topic(topics.dead, 1, limit))
    return topics


@pytest.fixture
async def producer(topics: Topics) -> AsyncIterator[Producer]:
    made = Producer(settings_of(topics), facts_of(topics, 2))
    await made.start()
    yield made
    await made.stop()


async def test_results_keep_their_order_and_go_to_the_partition_of_their_source(
    topics: Topics, producer: Producer
) -> None:
    async def publish(source: int) -> None:
        for start in range(0, 3000, 1000):
            await producer.send(source, results(1000, start=start, value=b"x" * 700))

    await asyncio.gather(publish(0), publish(5))
    found = read_all(topics, topics.output)
    assert keys(found, 0) == list(range(3000))
    assert keys(found, 1) == list(range(3000)), "5 modulo 2"
    assert found[0].headers == (("darkroom-id", b"id"), ("none", None))


async def test_a_result_larger_than_a_batch_is_published_between_its_neighbours(
    topics: Topics, producer: Producer
) -> None:
    large = results(1, start=1, value=b"x" * 900_000)
    await producer.send(0, [*results(1), *large, *results(1, start=2)])
    found = read_all(topics, topics.output)
    assert keys(found, 0) == [0, 1, 2]
    assert len(found[1].value or b"") == 900_000


async def test_a_dead_letter_goes_beside_its_result_with_key_headers_and_timestamp(
    topics: Topics, producer: Producer
) -> None:
    letter = DeadLetter(b"key", b"image", (("darkroom-reason", b"image.type"),), 1234, "image.type")
    unknown = letter._replace(timestamp_ms=-1, value=None)
    omitted = Outgoing(b"key", None, (), unknown)
    await producer.send(4, [Outgoing(b"7", b"result", (), letter), omitted])
    assert keys(read_all(topics, topics.output), 0) == [7], "one result: the other is omitted"
    first, second = read_all(topics, topics.dead)
    assert (first.partition, first.key, first.value) == (1, b"key", b"image")
    assert (first.timestamp_ms, first.header("darkroom-reason")) == (1234, "image.type")
    assert second.timestamp_ms > 1234
    assert second.value is None


async def test_dead_letters_of_a_small_topic_do_not_share_a_batch_that_is_too_large(
    kafka: Stack, unique: str
) -> None:
    small = 20_000
    topics = Topics(kafka.bootstrap_servers, "", f"{unique}.out", f"{unique}.dead", unique, 1)
    limit = {"max.message.bytes": str(small)}
    kafka.create_topics(Topic(topics.output, 1), Topic(topics.dead, 1, limit))
    made = Producer(settings_of(topics), TopicFacts(topics.output, 1, LIMIT, topics.dead, 1, small))
    await made.start()
    letter = DeadLetter(None, b"x" * 9_000, (), -1, "image.type")
    await made.send(0, [Outgoing(None, b"result", (), letter)] * 20)
    await made.stop()
    assert len(read_all(topics, topics.dead)) == 20


async def test_a_producer_that_a_refused_record_broke_is_replaced_and_goes_on(
    narrow: Topics,
) -> None:
    made = Producer(settings_of(narrow), facts_of(narrow, 1, max_bytes=8_000_000))
    await made.start()
    await made.send(0, results(3))
    broken = made.client
    with pytest.raises(kafka_errors.MessageSizeTooLargeError):
        await made.send(0, results(1, start=99, value=b"x" * 2_000_000))
    await made.replace(broken)
    assert made.client is not broken
    await made.replace(broken)
    await made.send(0, results(3, start=3))
    await made.stop()
    assert keys(read_all(narrow, narrow.output), 0) == list(range(6))


async def test_a_refused_dead_letter_is_seen_though_its_result_is_acknowledged(
    narrow: Topics,
) -> None:
    made = Producer(settings_of(narrow), facts_of(narrow, 1, max_bytes=8_000_000))
    await made.start()
    letter = DeadLetter(None, b"x" * 2_000_000, (), -1, "image.type")
    with pytest.raises(kafka_errors.MessageSizeTooLargeError):
        await made.send(0, [Outgoing(b"0", b"result", (), letter)])
    await made.stop()


async def test_who_waits_for_a_client_that_is_replaced_is_told(topics: Topics) -> None:
    made = Producer(settings_of(topics), facts_of(topics, 2))
    with pytest.raises(kafka_errors.ProducerClosed):
        await made.send(0, results(1))
    await made.start()
    await made.stop()
    with pytest.raises(kafka_errors.ProducerClosed):
        await made.send(0, results(1))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    """A broker that the test may kill."""
    try:
        with running(StackSpec(data=tmp_path, topics=(), redis=False)) as stack:
            yield stack
    except MissingPart as error:
        missing(str(error))


@pytest.mark.long  # the spine's own test kills a broker too
async def test_a_broker_that_is_killed_while_it_is_written_to_loses_nothing(
    own: Stack, unique: str
) -> None:
    topics = make_topics(own, unique, partitions=1)
    made = Producer(settings_of(topics), facts_of(topics, 1))
    await made.start()
    await made.send(0, results(100))
    own.kill("broker-1")
    sending = asyncio.create_task(made.send(0, results(100, start=100)))
    await asyncio.to_thread(own.start, "broker-1")
    async with asyncio.timeout(30):
        await sending
    assert keys(read_all(topics, topics.output), 0) == list(range(200))
    own.kill("broker-1")
    hanging = asyncio.create_task(made.send(0, results(1)))
    await asyncio.sleep(0)
    began_s = time.monotonic()
    await made.stop()
    assert time.monotonic() - began_s < 8, "aiokafka's own stop waits for ever"
    async with asyncio.timeout(20):
        with pytest.raises(kafka_errors.KafkaError):
            await hanging
