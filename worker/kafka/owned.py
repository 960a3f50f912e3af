"""The partitions that are ours: their ledgers, publishing in order, and giving them up.

Every piece of work carries its ownership epoch; what comes late, of an older epoch, finds nothing
here and is dropped.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import cast

import structlog

from worker.kafka.delivery import Delivery, Mark
from worker.kafka.ledger import Bound, Entry, Ledger, Outgoing, Prefix
from worker.protocol.failpoints import Failpoint, Failpoints
from worker.telemetry.metrics import Metrics
from worker.telemetry.stages import Stages, Stop
from worker.types import Partition, Position, Record

_PREFIX_RECORDS = 1024
_COMMIT_SHARE = 0.2
_BEAT_S = 0.1
"""While there is a backlog, results go out on this beat: one request for those of all partitions
instead of one for every few. Measured: a sixth of the worker's CPU, and half of the broker's."""
_WAITING_SHARE = 8
"""No more than this part of the bound waits for the beat: else it would keep records out."""

log = structlog.get_logger(__name__)


class Owned:
    """Ledgers by partition, under one bound for the whole worker."""

    def __init__(
        self, delivery: Delivery, bound: Bound, *, metrics: Metrics, failpoints: Failpoints
    ) -> None:
        self.bound = bound
        self._delivery = delivery
        self._metrics = metrics
        self._failpoints = failpoints
        self._stages = Stages(metrics)
        self._ledgers: dict[Partition, Ledger] = {}
        # The same by plain tuples: a position's first two members, without making a Partition.
        self._by_place = cast("Mapping[tuple[str, int], Ledger]", self._ledgers)
        self._publishing: dict[Partition, asyncio.Task[None]] = {}
        self._committed: dict[Partition, int] = {}
        self._moved = asyncio.Event()
        self._hurry = asyncio.Event()
        self._draining = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with the error after which nothing can go on; see `fail`."""

    @property
    def partitions(self) -> frozenset[Partition]:
        return frozenset(self._ledgers)

    @property
    def unfinished(self) -> int:
        """Records fetched whose results are not published."""
        return sum(ledger.unfinished for ledger in self._ledgers.values())

    def assigned(self, partitions: frozenset[Partition], epoch: int) -> None:
        """Open a ledger for each partition; nothing is awaited: no heartbeats flow meanwhile."""
        self._draining = False
        self._forget(self._ledgers)
        for partition in partitions:
            ledger = Ledger(partition, epoch)
            self._ledgers[partition] = ledger
            self._delivery.open(partition, epoch, on_committed=self._committer(ledger))
        self._metrics.rebalances.inc()
        log.info("partitions assigned", epoch=epoch, partitions=_names(partitions))

    async def revoked(self, deadline_s: float) -> None:
        """Finish, publish and commit what is in flight; what the deadline cuts off is forgotten."""
        given = dict(self._ledgers)
        if not given:
            return
        began_s = time.monotonic()
        drained = await self.drain(deadline_s)
        log.info(
            "partitions given up",
            drained=drained,
            unfinished=self.unfinished,
            seconds=round(time.monotonic() - began_s, 3),
            partitions=_names(given),
        )
        self._forget(p for p, ledger in given.items() if self._ledgers.get(p) is ledger)

    async def drain(self, deadline_s: float) -> bool:
        """Wait for the outcomes of all that is in flight, then commit; True when nothing is left.

        The ledgers stay, but nothing more of them can be committed afterwards.
        """
        self._draining = True
        self._hurry.set()
        until_s = time.monotonic() + deadline_s * (1 - _COMMIT_SHARE)
        while self.unfinished and (left_s := until_s - time.monotonic()) > 0:
            self._moved.clear()
            await _wait(self._moved, left_s)
        unfinished = self.unfinished
        commit_s = max(deadline_s * _COMMIT_SHARE, until_s - time.monotonic())
        committed = await self._delivery.drain(list(self._ledgers), deadline_s=commit_s)
        return committed and not unfinished

    def track(self, record: Record) -> Entry | None:
        """Take in a fetched record; None when its partition is not ours (any more, or yet)."""
        if self._failpoints:
            self._failpoints.hit(Failpoint.AFTER_FETCH, record.value or b"")
        position = record.position
        ledger = self._by_place.get(position[:2])
        if ledger is None or ledger.epoch != record.epoch:
            return None
        return ledger.track(record)

    def find(self, position: Position, epoch: int) -> Entry | None:
        """Return a record in flight; None when it has its outcome, or its partition is gone."""
        ledger = self._by_place.get(position[:2])
        return (
            ledger.find(position.offset) if ledger is not None and ledger.epoch == epoch else None
        )

    def close(self, closed: Iterable[tuple[Position, Entry, Outgoing]]) -> None:
        """Note how records ended, and publish every prefix that this finished."""
        touched: set[Ledger] = set()
        count = 0
        for position, entry, outgoing in closed:
            ledger = self._by_place[position[:2]]
            ledger.close(entry, outgoing)
            touched.add(ledger)
            count += 1
        self.bound.finished(count, time.monotonic())
        self._pace()
        for ledger in touched:
            partition = ledger.partition
            if partition not in self._publishing:
                task = asyncio.create_task(self._publish(ledger), name=f"publish {partition}")
                task.add_done_callback(self._published)
                self._publishing[partition] = task

    async def has_room(self, timeout_s: float) -> bool:
        """Wait until something was committed, or the timeout."""
        if not self.bound.room:
            self._moved.clear()
            await _wait(self._moved, timeout_s)
        return self.bound.room > 0

    def idle_partitions(self) -> list[tuple[Partition, int]]:
        """Return (partition, epoch) of those that have nothing in flight at all."""
        return [(p, ledger.epoch) for p, ledger in self._ledgers.items() if ledger.empty]

    def committed(self, partition: Partition) -> int | None:
        """Return the offset that is committed in this ownership; None before the first commit."""
        return self._committed.get(partition)

    def advance(self, partition: Partition, epoch: int, position: int) -> None:
        """Let an idle partition be committed up to a position behind its last record."""
        self._delivery.advance(partition, Mark(epoch, position))

    def fail(self, error: BaseException) -> None:
        """Say that a record will never have its outcome or its result: nothing can go on."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def forget(self) -> None:
        """Give everything up as it is: what is not committed will be read again."""
        self._forget(self._ledgers)

    async def _publish(self, ledger: Ledger) -> None:
        try:
            while (prefix := await self._finished(ledger)) is not None:
                began_s = time.monotonic()
                await self._delivery.publish(prefix)
                self._stages.observe(Stop.DELIVER, [time.monotonic() - began_s])
                ledger.published(prefix)
                self._moved.set()
        finally:
            if self._publishing.get(ledger.partition) is asyncio.current_task():
                del self._publishing[ledger.partition]

    async def _finished(self, ledger: Ledger) -> Prefix | None:
        """Return what can be published now; with a backlog, what there is at the next beat."""
        if self.unfinished * 2 > self.bound.cap:
            await _wait(self._hurry, _BEAT_S - time.monotonic() % _BEAT_S)
        return ledger.prefix(_PREFIX_RECORDS)

    def _pace(self) -> None:
        """Let publishers wait for the beat, unless much waits already or all is to be given up."""
        waiting = sum(ledger.unfinished - ledger.open for ledger in self._ledgers.values())
        if self._draining or waiting * _WAITING_SHARE >= self.bound.cap:
            self._hurry.set()
        else:
            self._hurry.clear()

    def _published(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)

    def _committer(self, ledger: Ledger) -> Callable[[int], None]:
        def committed(next_offset: int) -> None:
            self._committed[ledger.partition] = next_offset
            self.bound.released(*ledger.committed(next_offset))
            self._moved.set()

        return committed

    def _forget(self, partitions: Iterable[Partition]) -> None:
        for partition in list(partitions):
            ledger = self._ledgers.pop(partition)
            self._committed.pop(partition, None)
            task = self._publishing.pop(partition, None)
            if task is not None:
                task.cancel()
            self.bound.abandoned(ledger.open)
            self.bound.released(*ledger.forget())
        self._moved.set()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _names(partitions: Iterable[Partition]) -> list[str]:
    return sorted(f"{topic}/{number}" for topic, number in partitions)
