"""The consumer against a real Kafka: membership, polls, commits, and what cannot be read."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c_py
from aiokafka.structs import TopicPartition
from confluent_kafka import Producer

from tests.fakes import eventually
from worker.config import KafkaSettings
from worker.errors import BrokerRefused
from worker.kafka.codecs import cap_decompression
from worker.kafka.consumer import Consumer
from worker.local.spec import Topic
from worker.local.stack import Stack
from worker.types import Partition, Record

pytestmark = pytest.mark.kafka

CAP = 8 << 20
DRAIN_S = 5.0


class Owner:
    """Keeps what it is given; a revoke waits for `may_go`."""

    def __init__(self) -> None:
        self.partitions: frozenset[Partition] = frozenset()
        self.told: list[str] = []
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def revoked(self, deadline_s: float) -> None:
        del deadline_s
        self.told.append("revoked")
        await self.may_go.wait()
        self.told.append("drained")
        self.partitions = frozenset()

    def assigned(self, partitions: frozenset[Partition], epoch: int) -> None:
        self.told.append(f"assigned {epoch}")
        self.partitions = partitions


class Member:
    """A consumer that is polled all the time, as the pipeline does."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.owner = Owner()
        self.records: list[Record] = []
        self.consumer = Consumer(settings, drain_deadline_s=DRAIN_S, batch_max_bytes=CAP)
        self.polling = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        while True:
            self.records += await self.consumer.poll(max_records=100, timeout_s=0.05)

    async def join(self, partitions: int) -> None:
        await self.consumer.join(self.owner)
        await eventually(lambda: len(self.owner.partitions) == partitions, 20)

    async def until(self, count: int) -> None:
        await eventually(lambda: len(self.records) >= count, 20)

    @property
    def offsets(self) -> list[int]:
        return [record.position.offset for record in self.records]

    async def end(self) -> None:
        self.owner.may_go.set()
        self.polling.cancel()
        await self.consumer.leave()
        await asyncio.wait([self.polling])


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


@pytest.fixture(autouse=True)
def _uncapped_afterwards() -> Iterator[None]:
    yield
    cap_decompression(1 << 28)


def produce(
    settings: KafkaSettings,
    *values: bytes,
    partition: int = 0,
    codec: str = "none",
    transactional_id: str | None = None,
) -> None:
    producer = Producer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "compression.type": codec,
            "linger.ms": 50,
            **({"transactional.id": transactional_id} if transactional_id else {}),
        }
    )
    if transactional_id:
        producer.init_transactions(30)
        producer.begin_transaction()
    for value in values:
        producer.produce(settings.input_topics[0], value, partition=partition)
    if transactional_id:
        producer.commit_transaction(30)
    assert producer.flush(30) == 0


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


async def test_members_join_leave_and_join_again_while_they_are_polled(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(10))
    await member.join(2)
    await member.until(10)
    assert await member.consumer.commit(
        {Partition(*member.records[0].position[:2]): 4}, deadline_s=5
    )
    await member.consumer.leave()
    assert not member.consumer.member
    assert not member.polling.done()
    member.records.clear()
    await member.join(2)
    await member.until(6)
    assert member.offsets == [4, 5, 6, 7, 8, 9], "from what was committed, and only that"
    assert {record.epoch for record in member.records} == {2}


async def test_a_poll_brings_no_more_records_than_it_was_asked_for(settings: KafkaSettings) -> None:
    produce(settings, *numbers(10))
    produce(settings, *numbers(10), partition=1)
    consumer = Consumer(settings, drain_deadline_s=DRAIN_S, batch_max_bytes=CAP)
    await consumer.join(Owner())
    sizes: list[int] = []
    async with asyncio.timeout(20):
        while sum(sizes) < 20:
            sizes.append(len(await consumer.poll(max_records=3, timeout_s=0.1)))
    await consumer.leave()
    assert max(sizes) == 3


async def test_a_member_that_only_rests_stays_one_and_loses_nothing(
    settings: KafkaSettings, member: Member
) -> None:
    await member.join(2)
    member.polling.cancel()
    await asyncio.wait([member.polling])
    produce(settings, *numbers(5))
    for _ in range(20):
        await member.consumer.rest()
    member.polling = asyncio.create_task(member._poll())
    await member.until(5)
    assert member.owner.told[-1] == "assigned 1"


async def test_a_commit_of_what_is_not_ours_is_refused(member: Member) -> None:
    partition = Partition(member.consumer._settings.input_topics[0], 0)
    assert await member.consumer.commit({partition: 1}, deadline_s=5) is False
    await member.join(2)
    assert await member.consumer.commit({Partition("elsewhere", 0): 1}, deadline_s=5) is False


async def test_a_position_steps_over_the_markers_of_transactions(
    settings: KafkaSettings, member: Member
) -> None:
    for number in range(3):
        produce(settings, b"%d" % number, transactional_id=settings.group_id)
    await member.join(2)
    await member.until(3)
    partition = Partition(settings.input_topics[0], 0)

    ends = {partition: (0, 0)}
    async with asyncio.timeout(20):
        while ends[partition] != (6, 6):
            ends = await member.consumer.ends({partition})
    assert member.offsets == [0, 2, 4]
    assert (await member.consumer.positions([partition])) == {partition: 6}


async def test_what_is_revoked_has_drained_before_another_member_is_given_it(
    members: list[Member],
) -> None:
    first, second = members
    await first.join(2)
    first.owner.may_go.clear()
    await second.consumer.join(second.owner)
    await eventually(lambda: first.owner.told[-1] == "revoked", 20)
    assert not second.owner.partitions
    first.owner.may_go.set()
    await eventually(lambda: len(second.owner.partitions) == 1, 20)
    await eventually(lambda: len(first.owner.partitions) == 1, 20)
    assert not first.owner.partitions & second.owner.partitions
    assert first.owner.told[-3:] == ["revoked", "drained", "assigned 2"]


@pytest.mark.parametrize("asked", ["poll", "rest"])
async def test_leaving_ends_a_poll_that_waits_for_a_rebalance(
    members: list[Member], asked: str
) -> None:
    first, second = members
    await first.join(2)
    first.polling.cancel()
    await asyncio.wait([first.polling])
    first.owner.may_go.clear()
    await second.consumer.join(second.owner)
    await eventually(lambda: first.owner.told[-1] == "revoked", 20)
    consumer = first.consumer
    polls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "rest": consumer.rest,
        "poll": partial(consumer.poll, max_records=1, timeout_s=0.01),
    }
    waiting = asyncio.create_task(polls[asked]())
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done, "aiokafka waits for the rebalance, whatever the timeout"
    async with asyncio.timeout(10):
        await consumer.leave()
        await waiting
    await eventually(lambda: len(second.owner.partitions) == 2, 10)
    assert second.polling.done() is False


async def test_a_cancelled_poll_is_cancelled_and_says_so(member: Member) -> None:
    await member.join(2)
    member.polling.cancel()
    await asyncio.wait([member.polling])
    assert member.polling.cancelled()


async def test_a_rebuilt_consumer_goes_on_where_it_was_committed(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(6))
    await member.join(2)
    await member.until(6)
    await member.consumer.commit({Partition(settings.input_topics[0], 0): 5}, deadline_s=5)
    await member.consumer.rebuild("a test")
    await member.until(7)
    assert member.offsets == [0, 1, 2, 3, 4, 5, 5]
    assert "revoked" in member.owner.told


async def test_two_that_change_the_membership_at_a_time_leave_one_client(member: Member) -> None:
    await member.join(2)
    await asyncio.gather(
        member.consumer.rebuild("one"),
        member.consumer.rebuild("two"),
        member.consumer.join(member.owner),
    )
    await eventually(lambda: len(member.owner.partitions) == 2, 20)
    await member.consumer.leave()
    assert not member.consumer.member


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_topics_of_every_compression_are_read(
    settings: KafkaSettings, member: Member, codec: str
) -> None:
    produce(settings, *[b"z" * 5000] * 20, codec=codec)
    await member.join(2)
    await member.until(20)
    assert {record.value for record in member.records} == {b"z" * 5000}


async def send_raw(settings: KafkaSettings, *batches: tuple[Sequence[bytes], bytes]) -> None:
    """Write batches to partition 0; where a header name is given, its first byte is no UTF-8."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    await producer.start()
    for values, name in batches:
        batch = producer.create_batch()
        for value in values:
            headers = [(name.decode(), b"")] if name else []
            batch.append(timestamp=None, key=None, value=value, headers=headers)
        batch.close()
        if name:
            spoil(batch, name)
        sent = await producer.send_batch(batch, settings.input_topics[0], partition=0)
        await sent
    await producer.stop()


def spoil(batch: BatchBuilder, name: bytes) -> None:
    """Make the header's name invalid UTF-8, with a right checksum."""
    data = bytearray(batch._build())
    at = data.index(name)
    data[at] = 0xFF
    data[17:21] = calc_crc32c_py(bytes(data[21:])).to_bytes(4, "big")
    batch._buffer = bytes(data)
    batch._build = lambda: batch._buffer


async def test_a_header_that_is_no_utf8_costs_its_record_alone_and_no_other_partitions(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(50), partition=1)
    await send_raw(settings, (numbers(5), b""), ([b"bad"], b"name"), (numbers(5, 5), b""))
    await member.join(2)
    await member.until(61)
    for partition, count in ((0, 11), (1, 50)):
        offsets = [r.position.offset for r in member.records if r.position.partition == partition]
        assert offsets == list(range(count)), "every record once, in order"
    (bad,) = [record for record in member.records if record.unreadable]
    assert (bad.position.offset, bad.value) == (5, None)
    assert "UnicodeDecodeError" in (bad.unreadable or "")


async def test_a_bomb_is_one_record_that_cannot_be_read_and_what_is_behind_it_is_served(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(5))
    await send_bomb(settings, bytes(300_000_000))
    produce(settings, *numbers(5))
    produce(settings, *numbers(20), partition=1)
    await member.join(2)
    await member.until(31)
    first = [record for record in member.records if record.position.partition == 0]
    assert [record.position.offset for record in first] == list(range(11))
    assert [bool(record.unreadable) for record in first] == [False] * 5 + [True] + [False] * 5
    assert f"more than {CAP} bytes" in (first[5].unreadable or "")


async def send_bomb(settings: KafkaSettings, value: bytes) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        compression_type="zstd",
        max_request_size=1 << 30,
        max_batch_size=1 << 30,
    )
    await producer.start()
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=value)
    batch.close()
    sent = await producer.send_batch(batch, settings.input_topics[0], partition=0)
    await sent
    await producer.stop()


async def test_what_was_fetched_before_we_were_told_of_an_assignment_is_put_back(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(5))
    await member.join(2)
    await member.until(5)
    client = member.consumer._consumer
    assert client is not None
    put_back: list[int] = []
    seek = client.seek

    def watched(tp: TopicPartition, offset: int) -> None:
        put_back.append(offset)
        seek(tp, offset)

    client.seek = watched
    member.consumer.joined = False
    seek(TopicPartition(settings.input_topics[0], 0), 2)
    await eventually(lambda: len(put_back) > 1, 20)
    member.consumer.joined = True
    await member.until(8)
    assert set(put_back) == {2}
    assert member.offsets == [0, 1, 2, 3, 4, 2, 3, 4]


@pytest.mark.parametrize("served", [False, True], ids=["at the start", "later"])
async def test_brokers_that_refuse_us_end_the_worker_only_before_they_ever_served_us(
    settings: KafkaSettings,
    member: Member,
    served: bool,  # noqa: FBT001 - a table
) -> None:
    await member.join(2)
    if served:
        produce(settings, b"x")
        await member.until(1)
    member.polling.cancel()
    await asyncio.wait([member.polling])
    client = member.consumer._consumer
    assert client is not None

    async def refuse(*_: object, **__: object) -> None:
        raise kafka_errors.GroupAuthorizationFailedError(settings.group_id)

    client.getmany = refuse
    if served:
        assert await member.consumer.poll(max_records=1, timeout_s=0.01) == []
    else:
        with pytest.raises(BrokerRefused, match="GroupAuthorizationFailed"):
            await member.consumer.poll(max_records=1, timeout_s=0.01)
