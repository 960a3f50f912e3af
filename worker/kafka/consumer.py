"""The only reader of input topics: joins the group, polls, commits, leaves; rebuilt when stuck.

It knows nothing of what happens to a record. aiokafka's traps that it guards against are named
beside each guard; they were found by measurement, and are the reason that no other file polls.
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from worker.config_sections import KafkaSettings
from worker.errors import BrokerRefused, BrokerUnavailable
from worker.kafka.clients import REFUSALS, calm, client_options, describe, within
from worker.kafka.codecs import cap_decompression
from worker.kafka.unreadable import Unreadable, outlast_unreadable
from worker.types import Partition, Position, Record

_NOWHERE = TopicPartition("__none__", 0)
_STEP_DEADLINE_S = 10.0
_LEAVE_DEADLINE_S = 5.0
_STEP_OF_LEAVING_S = 0.5
_POSITION_DEADLINE_S = 1.0
_ERRORS_BEFORE_REBUILD = 5
_POLL_BACKOFF_S = 0.5

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
        outlast_unreadable()
        self._settings = settings
        # The group waits for our drain: JoinGroup must outlive it, and requests outlive JoinGroup
        # (aiokafka cuts it by request_timeout_ms).
        self._drain_deadline_s = drain_deadline_s
        self._rebalance_ms = max(settings.session_timeout_ms, int((drain_deadline_s + 5) * 1000))
        self._consumer: AIOKafkaConsumer | None = None
        self._ownership: Ownership | None = None
        self._polling: asyncio.Task[list[Record]] | None = None
        # Two at a time (the membership's, and a poll that fails too often) would leave a client
        # behind that stays a member for ever.
        self._changing = asyncio.Lock()
        self._errors = 0
        self._proven = False
        self._epoch = 0
        self.joined = False
        """True while we are in the group and have been given our partitions (maybe none)."""

    @property
    def rebalance_s(self) -> float:
        """How long the group waits at a rebalance for a member that drains."""
        return self._rebalance_ms / 1000

    async def join(self, ownership: Ownership) -> None:
        """Start a client and join the group; partitions come later, and go, by the ownership.

        Raises BrokerRefused, or BrokerUnavailable when no broker answers in time.
        """
        async with self._changing:
            if self._consumer is None:
                await self._join(ownership)

    async def _join(self, ownership: Ownership) -> None:
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
            metadata_max_age_ms=30_000,  # so late are new partitions seen; the default is 5 min
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
        consumer.subscribe(list(settings.input_topics), listener=_Listener(self, consumer))
        log.info("joining", group=settings.group_id, topics=settings.input_topics)

    async def poll(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """Return what has been fetched, at most so many records, in order for each partition.

        During a rebalance it takes as long as the rebalance, whatever the timeout.
        Raises BrokerRefused when the brokers refuse us before they ever gave us a record.
        """
        consumer = self._consumer
        if consumer is None:
            await asyncio.sleep(timeout_s)
            return []
        fetching = self._fetched(consumer, max_records=max_records, timeout_s=timeout_s)
        records = await self._polled(consumer, fetching)
        self._proven = self._proven or bool(records)
        return records

    async def rest(self) -> None:
        """Take nothing, but stay a member: a member that does not poll is thrown out.

        `pause` would throw away what was prefetched; a poll of a partition that is not ours does
        not.
        """
        consumer = self._consumer
        if consumer is not None:
            await self._polled(consumer, _nothing(consumer))

    async def _polled(
        self, consumer: AIOKafkaConsumer, polling: Coroutine[Any, Any, list[Record]]
    ) -> list[Record]:
        """Await a poll. Only `leave` cancels it (and whoever cancels us).

        A cancelled poll leaks aiokafka's count of fetches, which then matters no more.
        """
        self._polling = asyncio.ensure_future(polling)
        try:
            records = await self._polling
        except (kafka_errors.KafkaError, kafka_errors.ConsumerStoppedError) as error:
            if self._consumer is consumer:
                await self._failed(error)
            return []
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return []
        self._errors = 0
        return records

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

    async def positions(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the offset that is fetched next, of those partitions where it can be told now."""
        asked = list(partitions)
        found = await asyncio.gather(*(self._position(partition) for partition in asked))
        return {p: at for p, at in zip(asked, found, strict=True) if at is not None}

    async def ends(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return (our position, the partition's end) of owned partitions.

        Raises BrokerRefused, or BrokerUnavailable when the brokers do not answer.
        """
        consumer = self._consumer
        asked = [TopicPartition(*partition) for partition in partitions]
        if consumer is None or not asked:
            return {}
        ends = await within(_STEP_DEADLINE_S, "end offsets", consumer.end_offsets(asked))
        positions = await self.positions(Partition(*tp) for tp in ends)
        return {p: (at, ends[TopicPartition(*p)]) for p, at in positions.items()}

    async def leave(self) -> None:
        """Leave the group and close the client, whatever the brokers do. Drain before."""
        async with self._changing:
            await self._leave()

    async def rebuild(self, why: str) -> None:
        """Replace a client that makes no progress though the brokers answer.

        Raises what `join` raises; then there is no client until it is called again.
        """
        async with self._changing:
            ownership = self._ownership
            if self._consumer is None or ownership is None:
                return
            log.warning("consumer rebuilt", why=why)
            await ownership.revoked(0.0)
            await self._leave()
            await self._join(ownership)

    async def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        self.joined = False
        if self._polling is not None:
            self._polling.cancel()
        if consumer is not None:
            await _stopped(consumer)

    @property
    def member(self) -> bool:
        """True while there is a client (it may be waiting for its first partitions)."""
        return self._consumer is not None

    async def given_up(self, client: AIOKafkaConsumer) -> None:
        """Do what a revoke asks: let the ownership drain under its deadline."""
        if client is self._consumer and self._ownership is not None:
            self.joined = False
            await self._ownership.revoked(self._drain_deadline_s)

    def given(self, client: AIOKafkaConsumer, partitions: frozenset[Partition]) -> None:
        """Begin a new ownership; work of an older one is known by its epoch."""
        if client is not self._consumer or self._ownership is None:
            return  # it was left, and is still about to stop
        self._epoch += 1
        self._ownership.assigned(partitions, self._epoch)
        self.joined = True

    @property
    def epoch(self) -> int:
        """The ownership that we are in; 0 before the first."""
        return self._epoch

    async def _position(self, partition: Partition) -> int | None:
        if self._consumer is None:
            return None
        asking = self._consumer.position(TopicPartition(*partition))
        try:
            position: int = await within(_POSITION_DEADLINE_S, "position", asking)
        except (BrokerUnavailable, BrokerRefused):
            return None
        return position

    async def _fetched(
        self, consumer: AIOKafkaConsumer, *, max_records: int, timeout_s: float
    ) -> list[Record]:
        polled = await consumer.getmany(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        if not self.joined:
            # aiokafka may hand out records of an assignment before it has told us of it. Nothing
            # has happened since: they are still ours to put back.
            for tp, messages in polled.items():
                consumer.seek(tp, messages[0].offset)
            return []
        return self._records(polled)

    def _records(self, polled: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> list[Record]:
        now_s = time.monotonic()
        epoch = self._epoch
        records: list[Record] = []
        for (topic, partition), messages in polled.items():
            for message in messages:
                at = Position(topic, partition, message.offset)
                if type(message) is Unreadable:
                    log.error("record unreadable", **at._asdict(), error=message.why)
                    records.append(Record(at, epoch, None, None, (), -1, now_s, message.why))
                    continue
                records.append(
                    Record(
                        at,
                        epoch,
                        message.key,
                        message.value,
                        message.headers,
                        message.timestamp,
                        now_s,
                    )
                )
        return records

    async def _failed(self, error: Exception) -> None:
        if isinstance(error, REFUSALS) and not self._proven:
            raise BrokerRefused(f"Kafka refuses us: {describe(error)}") from error
        self._errors += 1
        log.warning("poll failed", error=describe(error), in_a_row=self._errors)
        await asyncio.sleep(_POLL_BACKOFF_S)
        if self._errors >= _ERRORS_BEFORE_REBUILD:
            self._errors = 0
            with contextlib.suppress(BrokerUnavailable, BrokerRefused):
                await self.rebuild(f"{_ERRORS_BEFORE_REBUILD} polls failed: {describe(error)}")


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Passes aiokafka's callbacks on; what they raise it would only log."""

    def __init__(self, consumer: Consumer, client: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._client = client

    async def on_partitions_revoked(self, _: set[TopicPartition]) -> None:
        await self._consumer.given_up(self._client)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        partitions = frozenset(Partition(tp.topic, tp.partition) for tp in assigned)
        self._consumer.given(self._client, partitions)


async def _nothing(consumer: AIOKafkaConsumer) -> list[Record]:
    await consumer.getmany(_NOWHERE, timeout_ms=1)
    return []


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    """Stop a client, whatever it does: it may wait for ever, or raise CancelledError itself."""
    if await _ended(consumer.stop(), _LEAVE_DEADLINE_S):
        return
    # It stopped halfway. What is left of it would send heartbeats, and so own partitions, for
    # ever: aiokafka's client connects again after it was closed.
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001 - no public way
    if coordinator is not None:
        await _ended(coordinator._stop_heartbeat_task(), _STEP_OF_LEAVING_S)  # noqa: SLF001 - same
        await _ended(coordinator._stop_commit_offsets_refresh_task(), _STEP_OF_LEAVING_S)  # noqa: SLF001 - same
        await _ended(coordinator._maybe_leave_group(), _STEP_OF_LEAVING_S)  # noqa: SLF001 - same
    if fetcher is not None:
        await _ended(fetcher.close(), _STEP_OF_LEAVING_S)
    await _ended(consumer._client.close(), _STEP_OF_LEAVING_S)  # noqa: SLF001 - same


async def _ended(step: Coroutine[Any, Any, None], deadline_s: float) -> bool:
    """Await a step of stopping; False when it did not come to its end."""
    task = asyncio.ensure_future(step)
    await asyncio.wait([task], timeout=deadline_s)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_STEP_OF_LEAVING_S)
        return False
    if task.cancelled():
        return False
    if (error := task.exception()) is not None:
        log.warning("leaving the group", error=describe(error))
        return False
    return True
