"""How a finished prefix becomes durable: published, then committed.

`Delivery` is the seam; `AtLeastOnce` its first implementation. Only explicit offsets of contiguous
published prefixes are ever committed, with the ownership epoch checked at the last moment.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import structlog
from aiokafka import errors as kafka_errors

from worker.errors import BrokerRefused, BrokerUnavailable
from worker.kafka.clients import describe
from worker.kafka.consumer import Consumer
from worker.kafka.ledger import Bound, Prefix
from worker.kafka.producer import Producer
from worker.protocol.failpoints import Failpoint, Failpoints
from worker.telemetry.metrics import Metrics
from worker.types import Partition

_COMMIT_DEADLINE_S = 10.0
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0
_DRAIN_AT_LEAST_S = 0.5
_TOO_LARGE_TRIES = 3

log = structlog.get_logger(__name__)


class Mark(NamedTuple):
    """How far a partition may be committed, in which ownership."""

    epoch: int
    next_offset: int


class Delivery(Protocol):
    """Three verbs, and `advance` over what is no record; the commit timer is its own affair."""

    def open(
        self, partition: Partition, epoch: int, *, on_committed: Callable[[int], None]
    ) -> None:
        """Begin an ownership; `on_committed` is told every offset that is durable from then on."""

    async def publish(self, prefix: Prefix) -> None:
        """Make a prefix durable; returns when it is. The caller keeps one a partition at a time."""

    def advance(self, partition: Partition, mark: Mark) -> None:
        """Let a partition with nothing in flight be committed up to a mark."""

    async def drain(self, partitions: Iterable[Partition], *, deadline_s: float) -> bool:
        """Commit what was published and give the partitions up; True when all is committed."""


class AtLeastOnce:
    """One idempotent producer; offsets committed on a timer, or when half the bound is waiting.

    A crash between publish and commit repeats at most what was in flight, under the same ids.
    """

    def __init__(
        self,
        producer: Producer,
        consumer: Consumer,
        *,
        commit_interval_s: float,
        bound: Bound,
        metrics: Metrics,
        failpoints: Failpoints,
    ) -> None:
        self._producer = producer
        self._consumer = consumer
        self._interval_s = commit_interval_s
        self._bound = bound
        self._metrics = metrics
        self._failpoints = failpoints
        self._published: dict[Partition, Mark] = {}
        self._committed: dict[Partition, Mark] = {}
        self._on_committed: dict[Partition, Callable[[int], None]] = {}
        self._uncommitted = 0
        self._due = asyncio.Event()
        self._committing = asyncio.Lock()
        self._cut: asyncio.Timeout | None = None
        """Of the commit that waits for its answer now."""

    def open(
        self, partition: Partition, epoch: int, *, on_committed: Callable[[int], None]
    ) -> None:
        self._published.pop(partition, None)
        self._committed[partition] = Mark(epoch, -1)
        self._on_committed[partition] = on_committed

    async def publish(self, prefix: Prefix) -> None:
        backoff_s = _FIRST_BACKOFF_S
        too_large = 0
        while (error := await self._failure(prefix)) is not None:
            too_large += isinstance(error, kafka_errors.MessageSizeTooLargeError)
            if too_large == _TOO_LARGE_TRIES:
                raise BrokerRefused(
                    "a topic takes smaller records than it did when this worker started "
                    "(max.message.bytes was lowered): start it again"
                ) from error
            await asyncio.sleep(backoff_s)
            backoff_s = min(_LAST_BACKOFF_S, backoff_s * 2)
        if self._failpoints:
            keys = [outgoing.key or b"" for outgoing in prefix.outgoing]
            self._failpoints.hit(Failpoint.AFTER_SEND, *keys)
        for letter in filter(None, (outgoing.dead_letter for outgoing in prefix.outgoing)):
            self._metrics.dead_letters.labels(letter.reason).inc()
        self.advance(prefix.partition, Mark(prefix.epoch, prefix.next_offset))
        self._uncommitted += len(prefix.outgoing)
        if self._uncommitted >= self._bound.cap // 2:
            self._due.set()

    def advance(self, partition: Partition, mark: Mark) -> None:
        """Let a partition be committed up to a mark; an older ownership's mark is dropped."""
        owned = self._committed.get(partition)
        if owned is not None and owned.epoch == mark.epoch:
            at = self._published.get(partition, owned)
            self._published[partition] = max(at, mark)

    async def run(self) -> None:
        """Commit for ever: on the timer, and early when much is waiting."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._commit(deadline_s=_COMMIT_DEADLINE_S)
            except BrokerUnavailable as error:
                log.warning("not committed yet", error=str(error))

    async def drain(self, partitions: Iterable[Partition], *, deadline_s: float) -> bool:
        until_s = time.monotonic() + max(_DRAIN_AT_LEAST_S, deadline_s)
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                await self._commit(deadline_s=left_s)
                break
            except BrokerUnavailable as error:
                log.warning("not committed yet", error=str(error))
                await asyncio.sleep(min(0.2, left_s))
        if self._cut is not None:
            # It would go on trying with whatever generation we are in then: offsets of this
            # ownership over those of the next one.
            self._cut.reschedule(asyncio.get_running_loop().time())
        committed = True
        for partition in partitions:
            owned = self._committed.get(partition)
            published = self._published.get(partition, owned)
            committed = committed and owned is not None and owned == published
            self._end(partition)
        return committed

    async def _commit(self, *, deadline_s: float) -> None:
        """Commit what is due. Raises BrokerUnavailable when it may not have been committed."""
        try:
            async with asyncio.timeout(deadline_s) as cut, self._committing:
                self._cut = cut
                try:
                    await self._commit_due(deadline_s)
                finally:
                    self._cut = None
        except TimeoutError as error:
            raise BrokerUnavailable("commit: no answer in time") from error

    async def _commit_due(self, deadline_s: float) -> None:
        due = {p: mark for p, mark in self._published.items() if self._committed[p] != mark}
        if not due:
            return
        count, self._uncommitted = self._uncommitted, 0
        if self._failpoints:
            self._failpoints.hit(Failpoint.BEFORE_COMMIT)
        began_s = time.monotonic()
        offsets = {partition: mark.next_offset for partition, mark in due.items()}
        try:
            ours = await self._consumer.commit(offsets, deadline_s=deadline_s)
        except BrokerUnavailable:
            self._uncommitted += count
            raise
        self._metrics.commit_seconds.observe(time.monotonic() - began_s)
        for partition, mark in due.items():
            owned = self._committed.get(partition)
            if owned is None or owned.epoch != mark.epoch:
                continue
            if ours:
                self._committed[partition] = mark
                self._on_committed[partition](mark.next_offset)
            else:
                self._end(partition)

    def _end(self, partition: Partition) -> None:
        """End an ownership: nothing of it is committed any more."""
        self._committed.pop(partition, None)
        self._published.pop(partition, None)
        self._on_committed.pop(partition, None)

    async def _failure(self, prefix: Prefix) -> Exception | None:
        """Send a prefix; return why it was not acknowledged."""
        client = self._producer.client
        try:
            await self._producer.send(prefix.partition.partition, prefix.outgoing)
        except kafka_errors.KafkaError as error:
            # A failure that aiokafka does not retry breaks the sequence of an idempotent producer
            # for ever: only a new one can go on. What it may have sent comes twice, same ids.
            log.warning("publish failed; a new producer takes over", error=describe(error))
            with contextlib.suppress(BrokerUnavailable):
                await self._producer.replace(client)
            failure: Exception = error
            return failure
        return None
