"""Owned partitions and their delivery, over a fake broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.fakes import FakeBroker, FakeConsumer, FakeProducer, eventually
from worker.kafka.delivery import AtLeastOnce
from worker.kafka.ledger import Bound, Entry, Outgoing
from worker.kafka.owned import Owned
from worker.protocol.failpoints import Failpoints
from worker.telemetry.metrics import Metrics
from worker.types import Partition, Position, Record

P0 = Partition("images", 0)
P1 = Partition("images", 1)


class Rig:
    """Fetches and finishes records by hand; what is published and committed can be looked at."""

    def __init__(self, *, partitions: int, commit_interval_s: float, floor: int) -> None:
        self.broker = FakeBroker(partitions)
        consumer: Any = FakeConsumer(self.broker)
        producer: Any = FakeProducer()
        self.consumer: FakeConsumer = consumer
        self.producer: FakeProducer = producer
        self.metrics = Metrics()
        self.bound = Bound(max_records=10**6, max_bytes=10**9, max_s=1.0, floor=floor)
        self.delivery = AtLeastOnce(
            producer,
            consumer,
            commit_interval_s=commit_interval_s,
            bound=self.bound,
            metrics=self.metrics,
            failpoints=Failpoints(None),
        )
        self.owned = Owned(
            self.delivery, self.bound, metrics=self.metrics, failpoints=Failpoints(None)
        )
        self.entries: dict[Position, Entry] = {}

    async def fetch(self, count: int, partition: Partition = P0) -> list[Position]:
        """Bring records in flight."""
        self.broker.write(partition.partition, *[b"x"] * count)
        records: list[Record] = []
        while len(records) < count:
            records += await self.consumer.poll(max_records=count, timeout_s=0)
        for record in records:
            entry = self.owned.track(record)
            assert entry is not None
            self.entries[record.position] = entry
        self.bound.fetched(len(records), sum(len(r.value or b"") for r in records), 0.0)
        return [record.position for record in records]

    def finish(self, positions: Sequence[Position]) -> None:
        self.owned.close(
            (p, self.entries[p], Outgoing(b"%d" % p.offset, b"result", (), None)) for p in positions
        )

    def published(self, partition: Partition = P0) -> list[int]:
        return [int(item.key or b"") for item in self.producer.results[partition.partition]]

    async def until_published(self, count: int, partition: Partition = P0) -> None:
        await eventually(lambda: len(self.published(partition)) == count)


@contextlib.asynccontextmanager
async def rigged(
    *, partitions: int = 1, commit_interval_s: float = 0.005, floor: int = 10**6
) -> AsyncIterator[Rig]:
    """Have a member that owns all partitions, its commit timer running."""
    rig = Rig(partitions=partitions, commit_interval_s=commit_interval_s, floor=floor)
    await rig.consumer.join(rig.owned)
    timer = asyncio.create_task(rig.delivery.run())
    try:
        yield rig
    finally:
        timer.cancel()
        rig.owned.forget()
        await asyncio.wait([timer])
