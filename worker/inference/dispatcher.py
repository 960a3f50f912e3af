"""Gives the records of one model version to its engines, and turns what comes back into outcomes.

Synchronous bookkeeping: no I/O, no processes. Engines come (`attach`) and go (`detach`); every job
keeps its place here until it has had exactly one outcome.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import structlog

from worker.errors import ChannelError, RecordFault, RecordSkipped
from worker.inference.faults import outcome_of
from worker.inference.feed import Attached, Feed, Job, Port
from worker.inference.guilt import Guilt
from worker.inference.line import Line
from worker.protocol.messages import Outcomes, Retry
from worker.types import (
    Failed,
    ModelRef,
    Outcome,
    Predicted,
    Reason,
    SkipReason,
    Ticket,
    Timing,
)

_log = structlog.get_logger()


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


class Dispatcher:
    """The jobs of one model version, for whatever engines it has.

    Each job goes to the engine with the most room. While rows are suspected one engine, the judge,
    runs them alone and the others go on. `defer` runs a function soon, on the loop: outcomes are
    never told from inside `submit`. `priorities`: topic -> weight among those that wait.
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
        self._feeds: dict[Port, Feed] = {}
        self._engines = itertools.count(1)
        self._guilt = Guilt()
        self._judge: Feed | None = None
        self._waiting: Line[Job] = Line(_topic_of, priorities)
        self._suspects: dict[int, Job] = {}
        self._alone: int | None = None
        """What the judge runs alone."""
        self._finished: list[Finished] = []
        self._doubted = False
        self._empty: asyncio.Future[None] | None = None
        self.convicted = 0

    @property
    def in_flight(self) -> int:
        """Jobs that have no outcome yet."""
        inside = sum(len(feed.inside) for feed in self._feeds.values())
        return len(self._waiting) + len(self._suspects) + inside

    @property
    def ready(self) -> bool:
        """An engine is attached and, after a failure, a record has been served (or none waits)."""
        return self.served and not (self._doubted and self.in_flight)

    @property
    def served(self) -> bool:
        """An engine is attached that takes records."""
        return any(not feed.closed for feed in self._feeds.values())

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs; each gets exactly one outcome, later."""
        self._waiting.add(zip(self._numbers, jobs, strict=False))
        self._pump()
        if self._finished:
            self._defer(self._flush)

    def attach(self, engine: Attached) -> None:
        """Use this engine too from now on. It has just proved itself on its golden samples."""
        self._feeds[engine.port] = Feed(engine, next(self._engines))
        self._pump()
        self._flush()

    def detach(
        self, port: Port, held: Collection[int], why: str, *, by_device: bool = False
    ) -> bool:
        """Take back what an engine had not finished: it has gone.

        `held`: the rows that its lanes were working on, by the page of progress words; `by_device`:
        it ended by its device's fault, which convicts no record. Return whether one was convicted.
        """
        feed, convicted = self._feeds.pop(port, None), self.convicted
        if feed is None:
            return False
        self._doubted = self._doubted or not feed.closed
        alone, inside = None, feed.inside
        if feed is self._judge:
            alone, self._alone, self._judge = self._alone, None, None
        suspects = [row for row in inside if row in held]
        self._suspects.update({row: inside[row] for row in suspects})
        innocent = [(row, job) for row, job in inside.items() if row not in self._suspects]
        if alone is None:
            self._guilt.suspect(suspects)
        elif suspects and by_device:
            self._guilt.excused(alone)
        elif suspects:
            self._failed_alone(alone, f"the engine ended ({why})")
        elif alone in self._guilt.suspects:
            self._suspects[alone] = inside[alone]
            innocent.clear()
        self._waiting.put_back(innocent)
        guilty = self.convicted > convicted
        self._pump()
        self._flush()
        return guilty

    def outcomes(self, port: Port, message: Outcomes) -> None:
        """Take a message of an engine. Raises ChannelError for a row that it does not hold."""
        feed = self._feeds.get(port)
        if feed is None:
            raise ChannelError("outcomes of an engine that was given up")
        if message.done:
            self._done(message, feed)
        for fault in message.faults:
            self._finish(feed.take(fault.id), Failed(fault.reason, fault.message))
            self._guilt.closed(fault.id)
        if message.retries:
            self._retry(message.retries, feed)
        if feed is self._judge and not feed.inside:
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

    def close(self, port: Port) -> None:
        """Give an engine nothing more; what it has may finish."""
        if port in self._feeds:
            self._feeds[port].closed = True

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

    def _done(self, message: Outcomes, feed: Feed) -> None:
        engine = feed.engine
        model, stamp = engine.model, engine.engine
        run, heads, size = message.run_ms, message.heads_ms, message.batch_size
        for row, width, height, wait, decode, preprocess, predictions in message.done:
            timing = Timing(wait, decode, preprocess, run, heads)
            predicted = Predicted(predictions, width, height, size, timing, model, stamp)
            self._finished.append(Finished(feed.take(row).ticket, predicted))
        engine.window.cap = message.cap or engine.window.cap
        engine.window.served(len(message.done))
        if feed is self._judge and self._alone is not None:
            self._guilt.passed(row.id for row in message.done)
        feed.served = True
        self._doubted = False

    def _retry(self, retries: Sequence[Retry], feed: Feed) -> None:
        """Answer a run that raised: its rows again, one by one, as suspects."""
        self._doubted = True
        for retry in retries:
            self._suspects[retry.id] = feed.take(retry.id)
        _log.warning("run.failed", model=str(self._ref), rows=len(retries), why=retries[0].message)
        if feed is not self._judge or self._alone is None:
            self._guilt.suspect(retry.id for retry in retries)
            if self._judge is None and not feed.closed:
                self._judge_by(feed)  # should it be the engine that fails, it must show
            return
        alone, self._alone = self._alone, None
        self._failed_alone(alone, retries[0].message)
        if self._guilt.engine_suspected:
            feed.engine.port.condemn("it fails at every record")
            feed.closed, self._judge = True, None

    def _failed_alone(self, row: int, why: str) -> None:
        job = self._suspects[row]
        others = bool(self._waiting) or len(self._suspects) > 1
        if not self._guilt.failed_alone(row, others=others):
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
        """Give the engines what their windows have room for."""
        if not self._guilt.clear:
            self._try_alone()
        if self._guilt.clear:
            self._judge = self._alone = None
        if not self._waiting:
            return
        # The judge that is not free yet must find a witness when it is.
        kept = 0 if self._guilt.clear or self._guilt.proven else 1
        feeds = [
            feed
            for feed in self._feeds.values()
            if not feed.closed
            and feed is not self._judge
            and feed.engine.window.worth_filling(len(feed.inside))
        ]
        filled = feeds.copy()
        while feeds and len(self._waiting) > kept:
            feed = feeds[0] if len(feeds) == 1 else max(feeds, key=lambda each: each.room)
            if not feed.has_room:
                feeds.remove(feed)
                continue
            number, job = self._waiting.take()
            if job.deadline_ms is None or not self._expired(job):
                feed.give(number, job)
                if feed.filled:
                    feed.send(behind=len(self._waiting))
        for feed in filled:
            feed.send(behind=len(self._waiting))

    def _try_alone(self) -> None:
        """Run one suspect, or a witness, with nothing else in the engine: so guilt is certain."""
        judge = self._judge
        if judge is None or (judge.closed and self._alone is None):
            able = [feed for feed in self._feeds.values() if not feed.closed]
            if not able:
                self._judge = None
                return
            # One that has served, if there is any: it is the likelier witness that records pass.
            judge = min(able, key=lambda feed: (not feed.served, len(feed.inside)))
            self._judge_by(judge)
        while not judge.closed and not judge.inside and not self._guilt.clear:
            # The last one that came: the farthest from the suspects, should those be neighbours.
            witness = self._waiting.newest()
            row = self._guilt.next_alone(witness)
            job = self._waiting.take_newest() if row == witness else self._suspects.pop(row)
            if job.deadline_ms is not None and self._expired(job):
                self._guilt.closed(row)
                continue
            self._alone = row
            judge.give(row, job, alone=True)
            judge.send(behind=len(self._waiting))

    def _judge_by(self, feed: Feed) -> None:
        self._judge = feed
        self._guilt.judged_by(feed.number)

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
