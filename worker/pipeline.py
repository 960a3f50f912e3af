"""The life of a record: eight stops, from an image on Kafka to a published prediction.

One loop owns order and bookkeeping; pixels are the engines'. Nothing here knows aiokafka or ONNX
Runtime: `app` hands it the consumer, the registry, and the partitions that are ours.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from worker.errors import RecordFault, RecordSkipped
from worker.inference.dispatcher import Finished
from worker.inference.feed import Job
from worker.kafka.consumer import Consumer
from worker.kafka.ledger import Entry, Outgoing
from worker.kafka.outbox import Outbox
from worker.kafka.owned import Owned
from worker.kafka.resolve import Resolver
from worker.models.registry import Registry
from worker.models.router import route
from worker.telemetry.metrics import Metrics
from worker.telemetry.stages import Stages, Stop
from worker.types import (
    Failed,
    Outcome,
    Position,
    Predicted,
    Reason,
    Record,
    Reference,
    Request,
    Skipped,
    Ticket,
)

_POLL_S = 0.2
_POLL_RECORDS = 512
_REST_S = 1.0
_STEP_S = 5.0

log = structlog.get_logger(__name__)


class Pipeline:
    """Takes records in under the bound, and every one of them to exactly one outcome."""

    def __init__(
        self,
        *,
        consumer: Consumer,
        parse: Callable[[Record], Request],
        resolver: Resolver,
        registry: Registry,
        owned: Owned,
        outbox: Outbox,
        metrics: Metrics,
    ) -> None:
        self._consumer = consumer
        self._parse = parse
        self._resolver = resolver
        self._registry = registry
        self._owned = owned
        self._outbox = outbox
        self._metrics = metrics
        self._stages = Stages(metrics)
        self._served = metrics.records.labels("ok", "")
        self._resolving: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._step_at_s = 0.0
        self._idle_since_s: float | None = None

    @property
    def idle_s(self) -> float:
        """Seconds since when polls bring nothing and nothing is in flight."""
        return 0.0 if self._idle_since_s is None else time.monotonic() - self._idle_since_s

    async def run(self) -> None:
        """Poll until stopped. Never waits for a batch: outcomes come to `finish` by themselves."""
        while not self._stopping.is_set():
            # Stop 1: only when the bound has room; a subset of partitions is never polled.
            if not await self._owned.has_room(_REST_S):
                await self._consumer.rest()
                continue
            if not self._open.is_set():
                await self._consumer.rest()
                await self._paused()
                continue
            room = min(self._owned.bound.room, _POLL_RECORDS)
            records = await self._consumer.poll(max_records=room, timeout_s=_POLL_S)
            if self._stopping.is_set():
                return  # these will be read again: who waits for what is in flight has counted it
            if records:
                self._idle_since_s = None
                self._serve(records)
            else:
                await self._rested()

    def stop(self) -> None:
        """Take nothing more in; what is in flight goes on."""
        self._stopping.set()
        self._open.set()

    def pause(self) -> None:
        """Take nothing in until `resume`; stay a member of the group."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def _serve(self, records: Sequence[Record]) -> None:
        """Carry records through the first four stops; their life is read off here, line by line."""
        entries = self._track(records)  # 1: they are in flight from here until their commit
        requests = self._understand(entries)  # 2: envelope -> request
        ready = [request for request in requests if isinstance(request.image, bytes)]
        if len(ready) < len(requests):
            self._resolve([r for r in requests if isinstance(r.image, Reference)])  # 2, in its time
        self._dispatch(ready)  # 3 and 4: route, lease, give to an engine within its window
        # 5, 6 and 7 are the engine's: decode, batch and run, heads. Its outcomes come to `finish`,
        # which is 8: close the position, publish the finished prefix, commit.

    def finish(self, finished: Sequence[Finished]) -> None:
        """Stop 8: outcomes close their positions, and what is finished at the head is published."""
        now_ms = int(time.time() * 1000)
        closed: list[tuple[Position, Entry, Outgoing]] = []
        ended: list[Outcome] = []
        for ticket, outcome in finished:
            entry = self._owned.find(ticket.position, ticket.epoch)
            if entry is not None:  # else: late, its partition has gone
                outgoing = self._outbox.encode(entry, ticket, outcome, now_ms=now_ms)
                closed.append((ticket.position, entry, outgoing))
                letter = outgoing.dead_letter
                ended.append(outcome if letter is None else Failed(Reason(letter.reason), ""))
        self._owned.close(closed)
        self._observe(ended)

    def reroute(self, jobs: Sequence[Job]) -> None:
        """Take stops 3 and 4 again with records whose version is not to be had any more."""
        requests: list[Request] = []
        for job in jobs:
            entry = self._owned.find(job.ticket.position, job.ticket.epoch)
            if entry is not None and entry.request is not None:  # else: late, as in `finish`
                requests.append(entry.request._replace(image=job.image))
        self._dispatch(requests)

    def _track(self, records: Sequence[Record]) -> list[Entry]:
        now_ms = time.time() * 1e3
        waited_ms = [now_ms - r.timestamp_ms for r in records if r.timestamp_ms >= 0]
        self._stages.observe(Stop.POLL, [max(0.0, wait) / 1e3 for wait in waited_ms])
        entries: list[Entry] = []
        size_bytes = 0
        for record in records:
            entry = self._owned.track(record)
            if entry is not None:  # else: its partition has gone since the poll, uncommitted
                entries.append(entry)
                size_bytes += entry.size_bytes
        now_s = time.monotonic()
        self._owned.bound.fetched(len(entries), size_bytes, now_s)
        return entries

    def _understand(self, entries: Sequence[Entry]) -> list[Request]:
        began_s = time.monotonic()
        requests: list[Request] = []
        for entry in entries:
            record = entry.record
            assert record is not None
            if record.unreadable is not None:
                self._refuse(record, Failed(Reason.RECORD_UNREADABLE, record.unreadable))
                continue
            try:
                entry.request = self._parse(record)
            except RecordFault as fault:
                self._refuse(record, Failed(fault.reason, str(fault)))
            else:
                requests.append(entry.request)
        self._stages.observe(Stop.REQUEST, [time.monotonic() - began_s])
        return requests

    def _resolve(self, requests: Sequence[Request]) -> None:
        for request in requests:
            task = asyncio.create_task(self._resolve_one(request), name="resolve")
            self._resolving.add(task)
            task.add_done_callback(self._resolved)

    def _resolved(self, task: asyncio.Task[None]) -> None:
        self._resolving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._owned.fail(error)  # its record would never have an outcome

    async def _resolve_one(self, request: Request) -> None:
        try:
            resolved = await self._resolver.resolve(request)
        except RecordFault as fault:
            self._refuse(request.record, Failed(fault.reason, str(fault)))
        except RecordSkipped as skip:
            self._refuse(request.record, Skipped(skip.reason, str(skip)))
        else:
            self._dispatch([resolved])

    def _dispatch(self, requests: Sequence[Request]) -> None:
        began_s = time.monotonic()
        jobs: list[Job] = []
        table = self._registry.table
        for request in requests:
            record = request.record
            try:
                model, reason, generation = route(request, table)
            except RecordFault as fault:
                self._refuse(record, Failed(fault.reason, str(fault)))
                continue
            except RecordSkipped as skip:
                self._refuse(record, Skipped(skip.reason, str(skip)))
                continue
            ticket = Ticket(record.position, record.epoch, model, reason, generation)
            assert isinstance(request.image, bytes)
            jobs.append(Job(ticket, request.image, request.deadline_ms))
        self._stages.observe(Stop.ROUTE, [time.monotonic() - began_s])
        if jobs:
            self._registry.submit(jobs)

    def _refuse(self, record: Record, outcome: Outcome) -> None:
        """End a record that never reached an engine."""
        entry = self._owned.find(record.position, record.epoch)
        if entry is not None:
            outgoing = self._outbox.encode(entry, None, outcome, now_ms=int(time.time() * 1000))
            self._owned.close([(record.position, entry, outgoing)])
            self._observe([outcome])

    def _observe(self, outcomes: Sequence[Outcome]) -> None:
        """Feed stage timings and counts, once for a group."""
        served = [outcome.timing for outcome in outcomes if isinstance(outcome, Predicted)]
        if served:
            self._served.inc(len(served))
            observe = self._stages.observe
            observe(Stop.DISPATCH, [timing.wait / 1e3 for timing in served])
            observe(Stop.DECODE, [(timing.decode + timing.preprocess) / 1e3 for timing in served])
            observe(Stop.BATCH, [timing.run / 1e3 for timing in served])
            observe(Stop.HEADS, [timing.heads / 1e3 for timing in served])
        for outcome in outcomes:
            match outcome:
                case Failed(reason):
                    self._metrics.records.labels("failed", reason).inc()
                case Skipped(reason):
                    self._metrics.records.labels("skipped", reason).inc()
                case Predicted():
                    pass

    async def _paused(self) -> None:
        """Wait until records may come in again, no longer than a member may go without a poll."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REST_S):
                await self._open.wait()

    async def _rested(self) -> None:
        """Nothing came: note idleness, and step over what is no record (control records)."""
        now_s = time.monotonic()
        if self._owned.bound.records or not self._consumer.joined:
            self._idle_since_s = None
            return
        self._idle_since_s = self._idle_since_s or now_s
        if now_s >= self._step_at_s:
            self._step_at_s = now_s + _STEP_S
            await self._step_over()

    async def _step_over(self) -> None:
        """Commit the positions of idle partitions, so that lag reaches 0 behind control records.

        Only here, in the task that polls: elsewhere a position may already lie behind records that
        no ledger has yet.
        """
        idle = dict(self._owned.idle_partitions())
        positions = await self._consumer.positions(idle)
        for partition, position in positions.items():
            if self._consumer.joined and self._consumer.epoch == idle[partition]:
                self._owned.advance(partition, idle[partition], position)
