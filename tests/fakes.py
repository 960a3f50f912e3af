"""Small stand-ins for what is outside: a broker behind our consumer and producer, and engines.

`tests/contract/test_kafka_client.py` holds the first two to what the real ones do.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import errors as kafka_errors

from worker.errors import BrokerUnavailable
from worker.inference.feed import Job
from worker.kafka.consumer import Ownership
from worker.kafka.ledger import Outgoing
from worker.models.router import RoutingTable
from worker.types import Partition, Position, Record

TIMESTAMP_MS = 1_795_353_364_250


class FakeBroker:
    """One input topic: values by partition, and what a group has committed of it."""

    def __init__(self, partitions: int = 1, topic: str = "images") -> None:
        self.log: dict[Partition, list[bytes]] = {
            Partition(topic, p): [] for p in range(partitions)
        }
        self.committed: dict[Partition, int] = {}

    def write(self, partition: int, *values: bytes) -> None:
        next(log for p, log in self.log.items() if p.partition == partition).extend(values)


class FakeConsumer:
    """Owns every partition of a broker while it is a member."""

    rebalance_s = 30.0

    def __init__(self, broker: FakeBroker | None = None) -> None:
        self.broker = broker or FakeBroker()
        self.epoch = 0
        self.member = self.joined = False
        self.next: dict[Partition, int] = {}
        self.commits: list[dict[Partition, int]] = []
        self.calls: list[str] = []
        self.polls = 0
        self.refused = False
        """Answer the next commits with: not yours any more."""
        self.unavailable = 0
        """How many of the next commits have no answer."""
        self.hanging: asyncio.Event | None = None
        """Commits wait for it."""
        self.join_error: Exception | None = None
        self.ends_error: Exception | None = None
        self._ownership: Ownership | None = None

    async def join(self, ownership: Ownership) -> None:
        self.calls.append("join")
        if self.join_error is not None:
            raise self.join_error
        self.member, self._ownership = True, ownership
        self.rebalance()

    def rebalance(self) -> None:
        assert self._ownership is not None
        self.epoch += 1
        self.next = {p: self.broker.committed.get(p, 0) for p in self.broker.log}
        self._ownership.assigned(frozenset(self.broker.log), self.epoch)
        self.joined = True

    async def leave(self) -> None:
        self.calls.append("leave")
        self.member = self.joined = False

    async def rebuild(self, why: str) -> None:
        self.calls.append(f"rebuild: {why}")

    async def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        self.polls += 1
        records: list[Record] = []
        for partition, log in self.broker.log.items() if self.joined else ():
            at = self.next[partition]
            for offset in range(at, min(len(log), at + max_records - len(records))):
                records.append(record_at(*partition, offset, log[offset], epoch=self.epoch))
                self.next[partition] = offset + 1
        await asyncio.sleep(0 if records else min(timeout_s, 0.001))
        return records

    async def rest(self) -> None:
        self.calls.append("rest")
        await asyncio.sleep(0)

    async def commit(self, offsets: Mapping[Partition, int], *, deadline_s: float) -> bool:
        self.commits.append(dict(offsets))
        if self.hanging is not None:
            try:
                async with asyncio.timeout(deadline_s):
                    await self.hanging.wait()
            except TimeoutError as error:
                raise BrokerUnavailable("commit") from error
        if self.unavailable:
            self.unavailable -= 1
            raise BrokerUnavailable("commit")
        if self.refused or not self.member:
            return False
        self.broker.committed.update(offsets)
        return True

    async def positions(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return {p: self.next[p] for p in partitions if p in self.next}

    async def ends(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        if self.ends_error is not None:
            raise self.ends_error
        return {p: (self.next[p], len(self.broker.log[p])) for p in partitions}


class FakeProducer:
    """Acknowledges what it is sent; `hold` makes it wait, `failures` makes it refuse."""

    def __init__(self) -> None:
        self.client: object | None = object()
        self.results: dict[int, list[Outgoing]] = defaultdict(list)
        self.failures: list[Exception] = []
        self.replaced = 0
        self.hold: asyncio.Event | None = None

    async def send(self, source_partition: int, outgoing: Sequence[Outgoing]) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            raise self.failures.pop(0)
        if self.client is None:
            raise kafka_errors.ProducerClosed
        self.results[source_partition] += outgoing

    async def replace(self, broken: object | None) -> None:
        if broken is self.client:
            self.client = object()
            self.replaced += 1


class FakeRegistry:
    """Versions that serve, or do not, without any engine."""

    def __init__(self, table: RoutingTable) -> None:
        self.table = table
        self.ready = True
        self.devices: dict[str, Any] = {}
        self.statuses: dict[Any, Any] = {}
        self.problems: tuple[str, ...] = ()
        self.submitted: list[Job] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        self.submitted += jobs

    def health(self) -> tuple[str, ...]:
        return self.problems

    def describe(self) -> dict[Any, Any]:
        return self.statuses


def record_at(
    topic: str, partition: int, offset: int, value: bytes | None = b"x", *, epoch: int = 1
) -> Record:
    position = Position(topic, partition, offset)
    key = b"k%d" % offset
    return Record(position, epoch, key, value, (), TIMESTAMP_MS, time.monotonic())


async def eventually(condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
    """Wait until the condition holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - conditions of code that knows no test's event
            await asyncio.sleep(0.001)
