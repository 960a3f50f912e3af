"""Batches of every compression on a real Kafka, and those that cannot be read."""

from collections.abc import Iterator, Sequence

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c_py

from tests.unit.kafka.members import CAP, Member, numbers, produce
from worker.config_sections import KafkaSettings
from worker.kafka.codecs import cap_decompression

pytestmark = pytest.mark.kafka


@pytest.fixture(autouse=True)
def _uncapped_afterwards() -> Iterator[None]:
    yield
    cap_decompression(1 << 28)


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
