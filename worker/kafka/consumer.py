"""The only reader of input topics: joins the group, polls, commits, leaves; rebuilt when stuck.

It knows nothing of what happens to a record. aiokafka's traps that it guards against are named
beside each guard; they were found by measurement, and are the reason that no other file polls.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from worker.config import KafkaSettings
from worker.errors import BrokerRefused, BrokerUnavailable
from worker.kafka.clients import calm, client_options, describe, within
from worker.kafka.codecs import UNREADABLE, cap_decompression
from worker.types import Partition, Position, Record

_NOWHERE = TopicPartition("__none__", 0)
_STEP_DEADLINE_S = 10.0
_LEAVE_DEADLINE_S = 5.0
_ERRORS_BEFORE_REBUILD = 5
_POLL_BACKOFF_S = 0.5
_UNREADABLE_TRIES = 3
_PROBE_MS = 300

log = structlog.get_logger(__name__)


class Ownership(Protocol):
    """Who is told which partitions are ours."""

    async def revoked(self, deadline_s: float) -> None:
        """Finish what is in flight within the deadline, commit it, forget the rest."""

    def assigned(self, partitions: frozenset[Partition], epoch: int) -> None:
        """Take new partitions; it must return at once: no heartbeats flow meanwhile."""


class Consumer:
    """One membership of the group at a time; `join` and `leave` may follow one another."""

    def __init__(
        self, settings: KafkaSettings, *, drain_deadline_s: float, batch_max_bytes: int
    ) -> None:
        cap_decompression(batch_max_bytes)
        self._settings = settings
        # The group waits for our drain: JoinGroup must outlive it, and requests outlive JoinGroup
        # (aiokafka cuts it by request_timeout_ms).
        self._drain_deadline_s = drain_deadline_s
        self._rebalance_ms = max(settings.session_timeout_ms, int((drain_deadline_s + 5) * 1000))
        self._consumer: AIOKafkaConsumer | None = None
        self._ownership: Ownership | None = None
        self._polling: asyncio.Task[list[Record]] | None = None
        self._errors = 0
        self._epoch = 0
        self.joined = False
        """True while we are in the group and have been given our partitions (maybe none)."""

    async def join(self, ownership: Ownership) -> None:
        """Start a client and join the group; partitions come later, and go, by the ownership.

        Raises BrokerRefused, or BrokerUnavailable when no broker answers in time.
        """
        settings = self._settings
        options: dict[str, Any] = client_options(settings)
        if settings.client_rack is not None:
            options["client_rack"] = settings.client_rack
        consumer = AIOKafkaConsumer(
            group_id=settings.group_id,
            enable_auto_commit=False,  # it commits what was fetched, not what was finished
            auto_offset_reset="earliest",  # the default skips what is there before us
            isolation_level="read_committed",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),  # two: 4 JoinGroups
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=max(100, settings.session_timeout_ms // 10),
            rebalance_timeout_ms=self._rebalance_ms,
            request_timeout_ms=self._rebalance_ms + 5_000,
            fetch_max_wait_ms=200,
            **options,
        )
        calm(consumer._client)  # noqa: SLF001 - it has no public name
        try:
            await within(
                _STEP_DEADLINE_S,
                "joining the group",
                consumer.start(),
                brokers=settings.bootstrap_servers,
            )
        except BaseException:
            await _stopped(consumer)
            raise
        self._consumer = consumer
        self._ownership = ownership
        self._errors = 0
        self._ownership = ownership
        consumer.subscribe(list(settings.input_topics), listener=_Listener(self))
        log.info("joining", group=settings.group_id, topics=settings.input_topics)

    async def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """Return what has been fetched, at most so many records, in order for each partition.

        During a rebalance it takes as long as the rebalance, whatever the timeout. Only `leave`
        cancels it: that leaks aiokafka's count of fetches, which then matters no more.
        """
        consumer = self._consumer
        if consumer is None:
            await asyncio.sleep(timeout_s)
            return []
        polling = self._fetched(consumer, max_records=max_records, timeout_s=timeout_s)
        self._polling = asyncio.ensure_future(polling)
        try:
            records: list[Record] = await self._polling
        except (kafka_errors.KafkaError, kafka_errors.ConsumerStoppedError) as error:
            if self._consumer is consumer:
                await self._failed(error)
            return []
        except asyncio.CancelledError:
            if self._consumer is consumer:
                raise
            return []
        self._errors = 0
        return records

    async def rest(self) -> None:
        """Take nothing, but stay a member: a member that does not poll is thrown out.

        `pause` would throw away what was prefetched; a poll of a partition that is not ours does
        not.
        """
        if self._consumer is not None:
            with contextlib.suppress(kafka_errors.KafkaError, kafka_errors.ConsumerStoppedError):
                await self._consumer.getmany(_NOWHERE, timeout_ms=1)

    def rewind(self, position: Position) -> None:
        """Fetch a partition again from this position (it came before its ledger was open)."""
        if self._consumer is not None:
            with contextlib.suppress(kafka_errors.IllegalStateError):
                self._consumer.seek(TopicPartition(*position[:2]), position.offset)

    async def commit(self, offsets: Mapping[Partition, int], *, deadline_s: float) -> bool:
        """Commit explicit offsets; False when the partitions are no longer ours.

        Raises BrokerUnavailable when the outcome is unknown: commits may be repeated.
        """
        consumer = self._consumer
        if consumer is None:
            return False
        try:
            async with asyncio.timeout(deadline_s):
                await consumer.commit({TopicPartition(*p): o for p, o in offsets.items()})
        except (kafka_errors.CommitFailedError, kafka_errors.IllegalStateError) as error:
            log.warning("commit refused: the partitions are no longer ours", error=describe(error))
            return False
        except (TimeoutError, kafka_errors.KafkaError) as error:
            raise BrokerUnavailable(f"commit: {describe(error)}") from error
        return True

    async def position(self, partition: Partition) -> int | None:
        """Return the offset that is fetched next; None when it cannot be told now."""
        if self._consumer is None:
            return None
        try:
            position: int = await within(
                1.0, "position", self._consumer.position(TopicPartition(*partition))
            )
        except BrokerUnavailable:
            return None
        return position

    async def ends(self, partitions: frozenset[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return (our position, the partition's end) of each owned partition.

        Raises BrokerUnavailable when the brokers do not answer.
        """
        consumer = self._consumer
        if consumer is None or not partitions:
            return {}
        asked = [TopicPartition(*partition) for partition in partitions]
        ends = await within(_STEP_DEADLINE_S, "end offsets", consumer.end_offsets(asked))
        found: dict[Partition, tuple[int, int]] = {}
        for tp, end in ends.items():
            position = await self.position(Partition(*tp))
            if position is not None:
                found[Partition(*tp)] = (position, end)
        return found

    async def leave(self) -> None:
        """Leave the group and close the client, whatever the brokers do. Drain before."""
        consumer, self._consumer = self._consumer, None
        self.joined = False
        if self._polling is not None:
            self._polling.cancel()
        if consumer is not None:
            await _stopped(consumer)

    async def rebuild(self, why: str) -> None:
        """Replace a client that makes no progress though the brokers answer."""
        ownership = self._ownership
        if ownership is None:
            return
        log.warning("consumer rebuilt", why=why)
        await ownership.revoked(0.0)
        await self.leave()
        await self.join(ownership)

    @property
    def member(self) -> bool:
        """True while there is a client (it may be waiting for its first partitions)."""
        return self._consumer is not None

    async def given_up(self) -> None:
        """Do what a revoke asks: let the ownership drain under its deadline."""
        self.joined = False
        if self._ownership is not None:
            await self._ownership.revoked(self._drain_deadline_s)

    def given(self, partitions: frozenset[Partition]) -> None:
        """Begin a new ownership; work of an older one is known by its epoch."""
        self._epoch += 1
        if self._ownership is not None:
            self._ownership.assigned(partitions, self._epoch)
        self.joined = True

    @property
    def epoch(self) -> int:
        """The ownership that we are in; 0 before the first."""
        return self._epoch

    async def _fetched(
        self, consumer: AIOKafkaConsumer, *, max_records: int, timeout_s: float
    ) -> list[Record]:
        try:
            return self._records(
                await consumer.getmany(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            )
        except UNREADABLE as error:
            log.warning("a batch cannot be read", error=describe(error))
        # aiokafka does not say whose batch it is, does not move, and raises again at every fetch:
        # so each partition is polled by itself, and who raises every time is stepped over.
        found: list[Record] = []
        for tp in sorted(consumer.assignment()):
            records, raised = await self._probe(consumer, tp, max_records=max_records)
            found += records
            if raised is not None:
                found += await self._step_over(consumer, tp, raised)
        return found

    async def _probe(
        self, consumer: AIOKafkaConsumer, tp: TopicPartition, *, max_records: int
    ) -> tuple[list[Record], Exception | None]:
        """Poll one partition; return its records, or what it raised at every try."""
        raised: Exception | None = None
        for _ in range(_UNREADABLE_TRIES):
            try:
                polled = await consumer.getmany(tp, timeout_ms=_PROBE_MS, max_records=max_records)
            except UNREADABLE as error:
                raised = error
            else:
                return self._records(polled), None
        return [], raised

    async def _step_over(
        self, consumer: AIOKafkaConsumer, tp: TopicPartition, error: Exception
    ) -> list[Record]:
        """Give up one record: it will have its outcome like any other, `record.unreadable`."""
        position = await self.position(Partition(*tp))
        if position is None:
            return []
        why = describe(error)
        log.error(
            "record unreadable", topic=tp.topic, partition=tp.partition, offset=position, error=why
        )
        consumer.seek(tp, position + 1)
        at = Position(tp.topic, tp.partition, position)
        return [Record(at, self._epoch, None, None, (), -1, time.monotonic(), why)]

    def _records(self, polled: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> list[Record]:
        now_s = time.monotonic()
        epoch = self._epoch
        return [
            Record(
                Position(tp.topic, tp.partition, message.offset),
                epoch,
                message.key,
                message.value,
                message.headers,
                message.timestamp,
                now_s,
            )
            for tp, messages in polled.items()
            for message in messages
        ]

    async def _failed(self, error: Exception) -> None:
        self._errors += 1
        log.warning("poll failed", error=describe(error), in_a_row=self._errors)
        await asyncio.sleep(_POLL_BACKOFF_S)
        if self._errors >= _ERRORS_BEFORE_REBUILD:
            self._errors = 0
            with contextlib.suppress(BrokerUnavailable, BrokerRefused):
                await self.rebuild(f"{_ERRORS_BEFORE_REBUILD} polls failed: {describe(error)}")


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Passes aiokafka's callbacks on; what they raise it would only log."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:
            await self._consumer.given_up()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._consumer.given(frozenset(Partition(tp.topic, tp.partition) for tp in assigned))


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    """Stop a client, whatever it does: it may wait for ever, or raise CancelledError itself."""
    task = asyncio.ensure_future(consumer.stop())
    done, _ = await asyncio.wait([task], timeout=_LEAVE_DEADLINE_S)
    if not done:
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
    elif not task.cancelled() and task.exception() is not None:
        log.warning("leaving the group", error=describe(task.exception() or Exception()))
    if task.cancelled() or not done:
        client_close = asyncio.ensure_future(consumer._client.close())  # noqa: SLF001 - stop() skips it when it fails
        await asyncio.wait([client_close], timeout=1.0)
