"""What is in flight: per owned partition in fetch order, and for the whole worker by its bound.

Pure: no I/O, no clock of its own, nothing of producers or consumers. Offsets may have gaps
(compaction, control records): what was fetched is tracked, nothing is counted.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from worker.types import Headers, Partition, Record, Request


class DeadLetter(NamedTuple):
    """A record as it goes to the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    reason: str


class Outgoing(NamedTuple):
    """What is published for one record: a result, a dead letter, both, or (omitted) neither."""

    key: bytes | None
    value: bytes | None
    """The result; None when failures are omitted."""
    headers: Headers
    dead_letter: DeadLetter | None


class Prefix(NamedTuple):
    """The finished records at the head of one partition, in order, not yet published."""

    partition: Partition
    epoch: int
    outgoing: Sequence[Outgoing]
    next_offset: int
    """The offset to commit once they are durable."""


class Entry:
    """One record in flight."""

    __slots__ = ("offset", "outgoing", "record", "request", "size_bytes")

    def __init__(self, record: Record) -> None:
        self.offset = record.position.offset
        self.size_bytes = len(record.value or b"")
        self.record: Record | None = record
        self.request: Request | None = None
        self.outgoing: Outgoing | None = None


class Ledger:
    """One owned partition in one ownership: fetched -> finished -> published -> committed."""

    def __init__(self, partition: Partition, epoch: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self._waiting: deque[Entry] = deque()
        self._published: deque[tuple[int, int]] = deque()
        self._by_offset: dict[int, Entry] = {}

    @property
    def unfinished(self) -> int:
        """Records fetched whose results are not yet published."""
        return len(self._waiting)

    @property
    def open(self) -> int:
        """Records fetched that have no outcome yet."""
        return len(self._by_offset)

    @property
    def empty(self) -> bool:
        return not self._waiting and not self._published

    def track(self, record: Record) -> Entry:
        """Take in a record just fetched."""
        entry = Entry(record)
        self._waiting.append(entry)
        self._by_offset[entry.offset] = entry
        return entry

    def find(self, offset: int) -> Entry | None:
        """Return the record in flight at an offset; None when it has its outcome already."""
        return self._by_offset.get(offset)

    def close(self, entry: Entry, outgoing: Outgoing) -> None:
        """Note how a record ended; what is only needed to serve it is let go."""
        entry.outgoing = outgoing
        entry.record = None
        entry.request = None
        del self._by_offset[entry.offset]

    def prefix(self, max_records: int) -> Prefix | None:
        """Return the finished records at the head, at most so many; None when there are none.

        The same prefix is returned until `published` is called with it.
        """
        outgoing: list[Outgoing] = []
        next_offset = 0
        for entry in self._waiting:
            if entry.outgoing is None or len(outgoing) == max_records:
                break
            outgoing.append(entry.outgoing)
            next_offset = entry.offset + 1
        return Prefix(self.partition, self.epoch, outgoing, next_offset) if outgoing else None

    def published(self, prefix: Prefix) -> None:
        """Note that a prefix is in the output topic; it now waits for its commit."""
        for _ in prefix.outgoing:
            entry = self._waiting.popleft()
            self._published.append((entry.offset, entry.size_bytes))

    def committed(self, next_offset: int) -> tuple[int, int]:
        """Note a commit; return how many records, and bytes, are in flight no more."""
        records = size_bytes = 0
        while self._published and self._published[0][0] < next_offset:
            size_bytes += self._published.popleft()[1]
            records += 1
        return records, size_bytes

    def forget(self) -> tuple[int, int]:
        """Give the partition up; return how many records, and bytes, were still in flight."""
        sizes = [entry.size_bytes for entry in self._waiting]
        sizes += [size for _, size in self._published]
        self._waiting.clear()
        self._published.clear()
        self._by_offset.clear()
        return len(sizes), sum(sizes)


class Bound:
    """How much the worker may have in flight, from fetch to commit: records, bytes and seconds.

    Seconds: `rate x max_s` records, with the rate measured while there was something to do, and
    never fewer than `floor` (it keeps the engines busy), so that a revoke drains in about `max_s`;
    but never more than what drains in `drain_s`, once a rate is measured or expected.
    """

    _WINDOW_S = 0.5
    _FIRST_BYTES = 128 << 10

    def __init__(
        self,
        *,
        max_records: int,
        max_bytes: int,
        max_s: float,
        floor: int,
        drain_s: float = math.inf,
    ) -> None:
        self.floor = max(1, floor)
        self.expected_rate = 0.0
        """Records a second, until there is a measured rate; 0: not known."""
        self.records = 0
        self.size_bytes = 0
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._max_s = max_s
        self._drain_s = drain_s
        self._rate: float | None = None
        self._mean_bytes = float(self._FIRST_BYTES)
        self._unfinished = 0
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._finished = 0

    @property
    def cap(self) -> int:
        """Records that may be in flight now."""
        by_time = 0 if self._rate is None else int(self._rate * self._max_s)
        cap = min(self._max_records, max(self.floor, by_time))
        rate = self.expected_rate if self._rate is None else self._rate
        return max(1, int(min(cap, rate * self._drain_s))) if rate else cap

    @property
    def room(self) -> int:
        """Records that may be fetched now; 0 when a bound is reached.

        The size of a record is known only once it is fetched: the bound of bytes is met with the
        mean size of late, and may be passed by what one poll brings.
        """
        by_bytes = self._max_bytes - self.size_bytes
        if by_bytes <= 0:
            return 0
        return min(max(0, self.cap - self.records), max(1, int(by_bytes / self._mean_bytes)))

    def fetched(self, records: int, size_bytes: int, now_s: float) -> None:
        if not records:
            return
        if self._unfinished == 0:
            self._busy_since_s = now_s
        self._unfinished += records
        self.records += records
        self.size_bytes += size_bytes
        self._mean_bytes += 0.2 * (max(1.0, size_bytes / records) - self._mean_bytes)

    def finished(self, records: int, now_s: float) -> None:
        """Count outcomes; the rate is taken over the time in which there was work."""
        if not records:
            return
        self._unfinished -= records
        self._finished += records
        self._busy_s += now_s - self._busy_since_s
        self._busy_since_s = now_s
        if self._busy_s >= self._WINDOW_S:
            rate = self._finished / self._busy_s
            self._rate = rate if self._rate is None else self._rate + 0.5 * (rate - self._rate)
            self._busy_s, self._finished = 0.0, 0

    def released(self, records: int, size_bytes: int) -> None:
        """Take what was committed, or given up, out of the bound."""
        self.records -= records
        self.size_bytes -= size_bytes

    def abandoned(self, unfinished: int) -> None:
        """Take records that will have no outcome here (their partition is gone) off the count."""
        self._unfinished -= unfinished
