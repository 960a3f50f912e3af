"""The batcher: what a free lane does next. A pure state machine; whoever holds it holds its lock.

The clock is given with every call, nothing here waits, and nothing is imported but types. A job is
pending (to be decoded), then with a lane, then a row, then with a lane again; never in two places.
"""

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Generic, NamedTuple, Protocol, TypeVar

_GROUP_BYTES = 65536
_GROUP_JOBS = 64


class Job(Protocol):
    """What the batcher must know of a record."""

    @property
    def id(self) -> int: ...

    @property
    def alone(self) -> bool:
        """A suspect: decoded and run by itself."""

    @property
    def size_bytes(self) -> int:
        """Of the encoded image."""


J = TypeVar("J", bound=Job)


class Bounds(NamedTuple):
    """What bounds a batch; replaced whole, also while rows wait."""

    cap: int
    """Rows of a batch, at most."""
    min_size: int
    """Rows that an idle lane waits for, no longer than `max_wait_s`."""
    max_wait_s: float
    """How long a row waits while there is other work to do."""
    enough: int = sys.maxsize
    """So many rows are as cheap as more: they are run before less than a batch is decoded."""
    takes: Sequence[int] = ()
    """How many rows to run, by how many are ready, up to the cap; empty: all of them."""


class Run(NamedTuple, Generic[J]):
    """Run these rows together; they are the lane's now."""

    rows: Sequence[J]


class Decode(NamedTuple, Generic[J]):
    """Decode these one after the other; several only when they are tiny."""

    jobs: Sequence[J]


class Decoded(NamedTuple, Generic[J]):
    """What came of a group that a lane was told to decode."""

    rows: Sequence[J]
    begun: int
    """Jobs of the group that were not put back."""


class Wait(NamedTuple):
    """Nothing to do until then (for ever: None), or until something is told to the batcher."""

    until_s: float | None


class Stop(NamedTuple):
    """Closed, and nothing is left that another lane does not hold; or abandoned."""


class Role(Enum):
    """What a lane may be told to do."""

    ANY = auto()
    DECODE = auto()
    RUN = auto()


class Batcher(Generic[J]):
    """Pending jobs and rows of one engine.

    Rule, in the order in which a free lane asks: run at the cap or when the oldest row has waited
    long enough (when they are enough, and there is no backlog: at once), else decode, else run what
    there is (`min_size` rows at least), else wait. Rows that other lanes are still decoding are not
    waited for: an idle lane is worth more than a fuller batch.

    Where lanes have roles the same rule is asked for half of it; those that decode then stop at a
    batch of rows that nobody has begun to run. Groups that are being decoded count as rows; single
    pictures do not, for each lane may always be at one: so there are less rows than a batch and as
    many more as lanes.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._pending: deque[J] = deque()
        self._rows: deque[tuple[J, float]] = deque()
        self._suspects: deque[J] = deque()
        self._closed = False
        self._abandoned = False
        self._decoding = 0
        """Groups that lanes have been told to decode and have not told the end of."""
        self._coming = 0
        """Jobs of these groups."""

    def __len__(self) -> int:
        """Jobs that no lane holds."""
        return len(self._pending) + len(self._rows) + len(self._suspects)

    def add(self, jobs: Iterable[J]) -> None:
        """Take in jobs to be decoded."""
        self._pending.extend(jobs)

    def put_back(self, jobs: Sequence[J]) -> None:
        """Take jobs back that a lane was told to decode and did not begin; first in line again."""
        self._coming -= len(jobs)
        self._pending.extendleft(reversed(jobs))

    def ready(self, decoded: Decoded[J], now_s: float) -> None:
        """Take in rows."""
        self._decoding -= 1
        self._coming -= decoded.begun
        for job in decoded.rows:
            if job.alone:
                self._suspects.append(job)
            else:
                self._rows.append((job, now_s))

    def cancel(self, job_id: int) -> J | None:
        """Drop a job that no lane holds, and return it; its neighbours stay as they are."""
        for jobs in (self._pending, self._suspects):
            for job in jobs:
                if job.id == job_id:
                    jobs.remove(job)
                    return job
        for row in self._rows:
            if row[0].id == job_id:
                self._rows.remove(row)
                return row[0]
        return None

    def close(self) -> None:
        """Nothing more will be added: stop waiting for company, and stop when all is done."""
        self._closed = True

    def abandon(self) -> None:
        """Forget all jobs, and stop every lane that asks, whatever others hold or give back.

        Nobody waits for outcomes any more; a lane that broke never says what came of its group.
        """
        self._abandoned = True
        self._pending.clear()
        self._rows.clear()
        self._suspects.clear()

    def next(self, now_s: float, *, role: Role = Role.ANY) -> Run[J] | Decode[J] | Wait | Stop:
        """Return what the lane that asks must do; what it names is that lane's from now on."""
        if self._abandoned:
            return Stop()
        match role:
            case Role.ANY:
                return self._next(now_s)
            case Role.DECODE:
                return self._next_group()
            case Role.RUN:
                return self._next_batch(now_s)

    def _next(self, now_s: float) -> Run[J] | Decode[J] | Wait | Stop:
        cap, min_size, max_wait_s, enough, _ = self.bounds
        if self._suspects:
            return Run((self._suspects.popleft(),))
        due_s = self._rows[0][1] + max_wait_s if self._rows else None
        due = due_s is not None and (len(self._rows) >= cap or now_s >= due_s)
        brief = len(self._rows) >= max(enough, min_size) and len(self._pending) < cap
        if due or brief:
            return self._run(cap)
        if self._pending:
            return self._decode(cap)
        if self._rows and (self._closed or len(self._rows) >= min_size):
            return self._run(cap)
        if self._closed:
            return Stop()
        return Wait(due_s)

    def _next_group(self) -> Decode[J] | Wait | Stop:
        cap, rows = self.bounds.cap, len(self._rows) + len(self._suspects)
        single = self._coming == self._decoding
        if self._pending and rows < cap and (single or rows + self._coming < cap):
            return self._decode(cap - self._coming)
        return Stop() if self._closed and not self._pending else Wait(None)

    def _next_batch(self, now_s: float) -> Run[J] | Wait | Stop:
        """As for any lane; but who only runs has nothing better to do than to run what there is."""
        cap, min_size, max_wait_s, _, _ = self.bounds
        if self._suspects:
            return Run((self._suspects.popleft(),))
        if self._rows:
            due_s = self._rows[0][1] + max_wait_s
            enough = len(self._rows) >= min(min_size, cap)
            return self._run(cap) if enough or self._closed or now_s >= due_s else Wait(due_s)
        ended = self._closed and not self._pending and not self._decoding
        return Stop() if ended else Wait(None)

    def _decode(self, cap: int) -> Decode[J]:
        group = self._group(max(1, cap - len(self._rows)))
        self._decoding += 1
        self._coming += len(group)
        return Decode(group)

    def _run(self, cap: int) -> Run[J]:
        many = min(cap, len(self._rows))
        if self.bounds.takes:
            many = self.bounds.takes[many]
        return Run([self._rows.popleft()[0] for _ in range(many)])

    def _group(self, room: int) -> list[J]:
        """Take the first pending job, and those behind it while all of them are tiny.

        One lock and one wake-up for each record would cost more than decoding a tiny one.
        """
        group = [self._pending.popleft()]
        if group[0].alone:
            return group
        size_bytes = group[0].size_bytes
        while self._pending and len(group) < min(room, _GROUP_JOBS):
            job = self._pending[0]
            size_bytes += job.size_bytes
            if job.alone or size_bytes > _GROUP_BYTES:
                break
            group.append(self._pending.popleft())
        return group
