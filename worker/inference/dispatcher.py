"""Gives the records of one model version to its engine, and turns what comes back into outcomes.

Synchronous bookkeeping: no I/O, no processes. Engines come (`attach`) and go (`detach`); every job
keeps its place here until it has had exactly one outcome.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import structlog

from worker.errors import ChannelError, RecordFault, RecordSkipped
from worker.inference.faults import outcome_of
from worker.inference.guilt import Guilt
from worker.inference.line import Line
from worker.inference.window import Window
from worker.protocol.messages import Outcomes, Retry, Row
from worker.types import (
    EngineStamp,
    Failed,
    ModelRef,
    ModelStamp,
    Outcome,
    Predicted,
    Reason,
    SkipReason,
    Ticket,
    Timing,
)

_GROUP_ROWS = 128
_GROUP_BYTES = 1 << 20
"""A message is closed when it has so many rows or bytes: the engine can begin, and one picture
that it still needs does not keep many others in its memory."""

_log = structlog.get_logger()


class Job(NamedTuple):
    """A request on its way to an engine."""

    ticket: Ticket
    image: bytes
    deadline_ms: int | None
    """Epoch milliseconds after which it is skipped instead of run."""


class Finished(NamedTuple):
    """A job that has ended."""

    ticket: Ticket
    outcome: Outcome


OnOutcomes = Callable[[Sequence[Finished]], None]
"""Is told of groups of finished jobs, once for each message of an engine, on the loop."""

OnWithdrawn = Callable[[Sequence[Job]], None]
"""Is given jobs back that shall be routed again: their version is not to be had now."""

Observer = Callable[[ModelRef, Outcomes], None]
"""Is shown every message of outcomes: one batch's timings and sizes."""


class Port(Protocol):
    """What the dispatcher needs of an engine."""

    def submit(self, rows: Sequence[Row], *, behind_s: float) -> None:
        """Give it rows; `behind_s`: how long what waits behind them will take."""

    def condemn(self, why: str) -> None:
        """Kill it; `detach` follows."""


class Attached(NamedTuple):
    """An engine that is warm, and what stands in every prediction that it makes."""

    port: Port
    window: Window
    model: ModelStamp
    engine: EngineStamp


class Dispatcher:
    """The jobs of one model version.

    `defer` runs a function soon, on the loop: outcomes are never told from inside `submit`.
    `priorities`: topic -> weight among those that wait.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        on_outcomes: OnOutcomes,
        observe: Observer,
        numbers: Iterator[int],
        defer: Callable[[Callable[[], None]], object],
        wall_s: Callable[[], float] = time.time,
        priorities: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._ref = ref
        self._on_outcomes = on_outcomes
        self._observe = observe
        self._numbers = numbers
        self._defer = defer
        self._wall_s = wall_s
        self._engine: Attached | None = None
        self._guilt = Guilt()
        self._waiting: Line[Job] = Line(_topic_of, priorities)
        self._suspects: dict[int, Job] = {}
        self._inside: dict[int, Job] = {}
        self._inside_bytes = 0
        self._alone: int | None = None
        self._finished: list[Finished] = []
        self._doubted = False
        self._closing = False
        self._empty: asyncio.Future[None] | None = None
        self.convicted = 0

    @property
    def in_flight(self) -> int:
        """Jobs that have no outcome yet."""
        return len(self._waiting) + len(self._suspects) + len(self._inside)

    @property
    def ready(self) -> bool:
        """An engine is attached and, after a failure, a record has been served (or none waits)."""
        return self._engine is not None and not (self._doubted and self.in_flight)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs; each gets exactly one outcome, later."""
        self._waiting.add(zip(self._numbers, jobs, strict=False))
        self._pump()
        if self._finished:
            self._defer(self._flush)

    def attach(self, engine: Attached) -> None:
        """Use this engine from now on. It has just proved itself on its golden samples."""
        self._engine = engine
        self._closing = False
        self._guilt.engine_started()
        self._pump()
        self._flush()

    def detach(self, held: Collection[int], why: str) -> None:
        """Take back what the engine had not finished: it has gone.

        `held`: the rows that its lanes were working on, by the page of progress words.
        """
        self._engine = None
        self._doubted = self._doubted or not self._closing
        inside, self._inside, self._inside_bytes = self._inside, {}, 0
        alone, self._alone = self._alone, None
        suspects = [row for row in inside if row in held]
        self._suspects.update({row: inside[row] for row in suspects})
        innocent = [(row, job) for row, job in inside.items() if row not in self._suspects]
        if alone is None:
            self._guilt.suspect(suspects)
        elif suspects:
            self._failed_alone(alone, f"the engine ended ({why})")
        elif alone in self._guilt.suspects:
            self._suspects[alone] = inside[alone]
            innocent.clear()
        self._waiting.put_back(innocent)
        self._flush()

    def outcomes(self, message: Outcomes) -> None:
        """Take a message of the engine. Raises ChannelError for a row that it does not hold."""
        if self._engine is None:
            raise ChannelError("outcomes of an engine that was given up")
        if message.done:
            self._done(message, self._engine)
        for fault in message.faults:
            self._finish(self._take(fault.id), Failed(fault.reason, fault.message))
            self._guilt.closed(fault.id)
        if message.retries:
            self._retry(message.retries)
        if not self._inside:
            self._alone = None
        self._observe(self._ref, message)
        self._pump()
        self._flush()

    async def drained(self, deadline_s: float) -> None:
        """Wait until no job is left, no longer than this."""
        if self.in_flight:
            self._empty = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._empty

    def close(self) -> None:
        """Give the engine nothing more until the next one is attached; what it has may finish."""
        self._closing = True

    def withdraw(
        self, *, suspects: bool = False, which: Callable[[Job], bool] = lambda _: True
    ) -> list[Job]:
        """Give back the jobs that wait, and with `suspects` those too; not what is in an engine."""
        jobs: list[Job] = []
        for row in [row for row, job in self._suspects.items() if suspects and which(job)]:
            self._guilt.closed(row)
            jobs.append(self._suspects.pop(row))
        jobs += self._waiting.withdraw(which)
        self._flush()
        return jobs

    def abandon(self, why: str) -> int:
        """Skip the jobs that no engine has; return how many."""
        left = self.withdraw(suspects=True)
        for job in left:
            self._finish(job, outcome_of(RecordSkipped(SkipReason.VERSION_UNAVAILABLE, why)))
        self._flush()
        return len(left)

    def _done(self, message: Outcomes, engine: Attached) -> None:
        model, stamp = engine.model, engine.engine
        run, heads, size = message.run_ms, message.heads_ms, message.batch_size
        for row, width, height, wait, decode, preprocess, predictions in message.done:
            timing = Timing(wait, decode, preprocess, run, heads)
            predicted = Predicted(predictions, width, height, size, timing, model, stamp)
            self._finished.append(Finished(self._take(row).ticket, predicted))
        engine.window.cap = message.cap or engine.window.cap
        engine.window.served(len(message.done))
        self._guilt.passed(row.id for row in message.done)
        self._doubted = False

    def _retry(self, retries: Sequence[Retry]) -> None:
        """Answer a run that raised: its rows again, one by one, as suspects."""
        alone = self._alone
        self._doubted = True
        for retry in retries:
            self._suspects[retry.id] = self._take(retry.id)
        _log.warning("run.failed", model=str(self._ref), rows=len(retries), why=retries[0].message)
        if alone is None:
            self._guilt.suspect(retry.id for retry in retries)
            return
        self._alone = None
        self._failed_alone(alone, retries[0].message)
        if self._guilt.engine_suspected and self._engine is not None:
            self._engine.port.condemn("it fails at every record")
            self._engine = None

    def _failed_alone(self, row: int, why: str) -> None:
        job = self._suspects[row]
        if not self._guilt.failed_alone(row, others=self.in_flight > 1):
            return
        del self._suspects[row]
        self.convicted += 1
        topic, partition, offset = job.ticket.position
        _log.error(
            "record.poison", topic=topic, partition=partition, offset=offset,
            model=str(self._ref), why=why,
        )  # fmt: skip
        message = f"it failed again when an engine ran it alone: {why}"
        self._finish(job, outcome_of(RecordFault(Reason.RECORD_POISON, message)))

    def _pump(self) -> None:
        """Give the engine what its window has room for."""
        engine = self._engine
        if engine is None or self._closing:
            return
        if not self._guilt.clear:
            self._try_alone(engine)
            return
        if not self._waiting or not engine.window.worth_filling(len(self._inside)):
            return
        rows: list[Row] = []
        closed_bytes = self._inside_bytes
        while self._waiting and engine.window.has_room(len(self._inside), self._inside_bytes):
            number, job = self._waiting.take()
            if job.deadline_ms is not None and self._expired(job):
                continue
            self._inside[number] = job
            self._inside_bytes += len(job.image)
            rows.append(Row(number, job.image, alone=False))
            if len(rows) == _GROUP_ROWS or self._inside_bytes - closed_bytes >= _GROUP_BYTES:
                self._give(engine, rows)
                rows, closed_bytes = [], self._inside_bytes
        if rows:
            self._give(engine, rows)

    def _give(self, engine: Attached, rows: Sequence[Row]) -> None:
        engine.port.submit(rows, behind_s=engine.window.seconds(len(self._waiting)))

    def _try_alone(self, engine: Attached) -> None:
        """Run one suspect, or a witness, with nothing else in the engine: so guilt is certain."""
        while not self._inside and not self._guilt.clear:
            # The last one that came: the farthest from the suspects, should those be neighbours.
            witness = self._waiting.newest()
            row = self._guilt.next_alone(witness)
            job = self._waiting.take_newest() if row == witness else self._suspects.pop(row)
            if job.deadline_ms is not None and self._expired(job):
                self._guilt.closed(row)
                continue
            self._alone = row
            self._inside[row] = job
            self._inside_bytes += len(job.image)
            self._give(engine, [Row(row, job.image, alone=True)])
        if self._guilt.clear and not self._inside:
            self._pump()

    def _take(self, row: int) -> Job:
        job = self._inside.pop(row, None)
        if job is None:
            raise ChannelError(f"an outcome for row {row}, which the engine does not hold")
        self._inside_bytes -= len(job.image)
        return job

    def _expired(self, job: Job) -> bool:
        """Skip a job whose deadline has passed; say whether it had."""
        late_ms = self._wall_s() * 1e3 - (job.deadline_ms or 0)
        if late_ms <= 0:
            return False
        skip = RecordSkipped(SkipReason.EXPIRED, f"its deadline passed {late_ms:.0f} ms ago")
        self._finish(job, outcome_of(skip))
        return True

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._finished.append(Finished(job.ticket, outcome))

    def _flush(self) -> None:
        if self._finished:
            finished, self._finished = self._finished, []
            self._on_outcomes(finished)
        if self._empty is not None and not self.in_flight and not self._empty.done():
            self._empty.set_result(None)


def _topic_of(job: Job) -> str:
    return job.ticket.position.topic
