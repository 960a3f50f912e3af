"""Members of a group on a real Kafka, and what writes the topic that they read."""

import asyncio

from confluent_kafka import Producer

from tests.fakes import eventually
from worker.config_sections import KafkaSettings
from worker.kafka.consumer import Consumer
from worker.types import Partition, Record

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
