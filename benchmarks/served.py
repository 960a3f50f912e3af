"""What a fleet made of its records: read off its output topic, and the arithmetic over that. Pure
but for `Following`, which reads.

The key of a record is its number; number `n` lies in partition `n % PARTITIONS` (`topics.py`).
"""

import itertools
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks import topics
from benchmarks.topics import PARTITIONS
from worker.local.stack import Stack

_ANSWER_S = 20.0
_READ_S = 60.0
_GAP = re.compile(r"^darkroom_switch_gap_seconds\{.*\} (\S+)$", re.MULTILINE)

Batch = tuple[str, str, float, float, int]
"""Worker, version, milliseconds of the run and of the heads, rows: rows of one have all of it in
common. Others may by chance: then what is counted is a multiple of the rows."""


class Row(NamedTuple):
    """A result."""

    number: int
    partition: int
    stamp_ms: int
    """LogAppendTime."""
    worker: str
    generation: int
    """0: made before there was a desired state."""
    version: str | None
    """None: it was not served."""
    batch: Batch | None


class Following:
    """Reads the output topic on and on, from outside any group."""

    def __init__(self, stack: Stack, topic: str) -> None:
        self._parts = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
        self._consumer = Consumer(topics.outside(stack))
        self._consumer.assign(self._parts)

    def ends(self) -> list[int]:
        """Return how many results each partition has now."""
        return [
            self._consumer.get_watermark_offsets(part, timeout=_ANSWER_S)[1] for part in self._parts
        ]

    def read(self) -> list[Row]:
        """Read what has come since the last time."""
        try:
            left = sum(self.ends()) - sum(max(0, p.offset) for p in self._positions())
        except KafkaException as error:
            raise SystemExit(f"the results cannot be read: {error}") from error
        rows: list[Row] = []
        until_s = time.monotonic() + _READ_S
        while len(rows) < left:
            if time.monotonic() > until_s:
                raise SystemExit(f"{left - len(rows)} results could not be read")
            for message in self._consumer.consume(min(left - len(rows), 10_000), timeout=1.0):
                if message.error() is not None:
                    raise SystemExit(f"the results cannot be read: {message.error()}")
                rows.append(
                    row(
                        int(message.key() or b""),
                        message.partition() or 0,
                        message.timestamp()[1],
                        message.value() or b"",
                    )
                )
        return rows

    def close(self) -> None:
        self._consumer.close()

    def _positions(self) -> list[TopicPartition]:
        return self._consumer.position(self._parts)


def row(number: int, partition: int, stamp_ms: int, value: bytes) -> Row:
    said = orjson.loads(value)
    worker, generation = said["worker"], said["generation"] or 0
    if said["status"] != "ok":
        return Row(number, partition, stamp_ms, worker, generation, None, None)
    version, timing = said["model"]["version"], said["timing_ms"]
    batch = worker, version, timing["run"], timing["heads"], said["engine"]["batch_size"]
    return Row(number, partition, stamp_ms, worker, generation, version, batch)


class Account:
    """What became of all records, counted as results come."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._last = [-1] * PARTITIONS
        self._by: Counter[tuple[int, str]] = Counter()
        self.repeated = 0
        self.disordered = 0
        self.unserved = 0
        """Results that are no prediction."""
        self.torn = 0
        """Batches of which rows have another version, or are missing."""

    def take(self, rows: Iterable[Row]) -> None:
        """Take note of results, in the order of each partition; no batch goes on in the next."""
        batches: Counter[Batch] = Counter()
        for each in rows:
            if each.number in self._seen:
                self.repeated += 1
                continue
            self._seen.add(each.number)
            lane = each.number % PARTITIONS
            self.disordered += each.number < self._last[lane] or each.partition != lane
            self._last[lane] = max(each.number, self._last[lane])
            if each.batch is None or each.version is None:
                self.unserved += 1
                continue
            batches[each.batch] += 1
            self._by[each.generation, each.version] += 1
        self.torn += sum(1 for batch, count in batches.items() if count % batch[-1])

    @property
    def count(self) -> int:
        """Records that have a result."""
        return len(self._seen)

    def forbidden(self, allowed: Mapping[int, str]) -> int:
        """Return how many results have another version than that of their generation."""
        return sum(
            count
            for (generation, version), count in self._by.items()
            if allowed.get(generation) != version
        )


def last_before(rows: Iterable[Row], generation: int) -> int | None:
    """Return the stamp of the last result by an older state; None: there is none."""
    return max((each.stamp_ms for each in rows if each.generation < generation), default=None)


def gaps_ms(rows: Iterable[Row], generations: Sequence[int]) -> list[int]:
    """Return for each worker and switch the ms from its last result by the old to its first by the
    new state; 0 where they were published together. `generations` follow each other.
    """
    first: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], int] = {}
    for each in rows:
        key = each.worker, each.generation
        first[key] = min(each.stamp_ms, first.get(key, each.stamp_ms))
        last[key] = max(each.stamp_ms, last.get(key, each.stamp_ms))
    workers = {worker for worker, _ in first}
    return [
        max(0, first[worker, new] - last[worker, old])
        for worker in sorted(workers)
        for old, new in itertools.pairwise(generations)
        if (worker, new) in first and (worker, old) in last
    ]


def batch_interval_ms(rows: Sequence[Row]) -> float:
    """Return the mean milliseconds between two batches of a worker, over steady results."""
    begin, end = min(each.stamp_ms for each in rows), max(each.stamp_ms for each in rows)
    batches = sum(1 / each.batch[-1] for each in rows if each.batch is not None)
    workers = len({each.worker for each in rows})
    return (end - begin) * workers / batches


def ages_ms(
    rows: Iterable[Row], due_s: Sequence[float], first: int, spans_ms: Sequence[tuple[int, int]]
) -> list[float]:
    """Return the ages of the records that were due within one of these spans.

    Number `first` was due at `due_s[0]`; an age is that of the first result.
    """
    stamps: dict[int, int] = {}
    for each in rows:
        stamps.setdefault(each.number, each.stamp_ms)
    return [
        stamps[number] - at_s * 1e3
        for number, at_s in enumerate(due_s, start=first)
        if number in stamps and any(begin <= at_s * 1e3 <= end for begin, end in spans_ms)
    ]


def gap_of(metrics: str) -> float | None:
    """Read the last switch's gap off a worker's metrics; None: there was none yet."""
    found = _GAP.search(metrics)
    return None if found is None else float(found[1])
