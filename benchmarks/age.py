"""Record age at a rate: Poisson arrivals, from when a record was due to its result's stamp."""

import itertools
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from confluent_kafka import Producer

from benchmarks import topics
from benchmarks.drain import Bench
from benchmarks.peers import Where, busy_cores, running
from benchmarks.ratios import percentile

WARM_S = 3.0
_FIRST_S = 60.0
_REST_S = 30.0


class Aged(NamedTuple):
    """What a run at a rate showed."""

    peer: str
    rate: float
    p50_ms: float
    p99_ms: float
    most_ms: float
    late_ms: float
    """How late the producer was, at the worst."""
    busy: float
    """Cores that the peer and the broker kept busy."""
    records: int
    lost: int
    repeats: int


def age(bench: Bench, peer: str, *, rate: float, seconds: float, seed: int) -> Aged:
    """Send at a rate through a peer that is up; the first seconds do not count."""
    word = uuid.uuid4().hex[:12]
    made = topics.make(bench.stack, f"age-{word}")
    where = Where(bench.stack.bootstrap_servers, *made, f"age-{word}")
    watched = topics.Output(bench.stack, where.output)
    with running(peer, bench.case, where, batch=bench.batch) as process:
        sender = Sender(where.bootstrap, where.input, bench.case.pictures, bench.case.linger_ms)
        for _ in range(topics.PARTITIONS):
            sender.send()
        sender.flush()
        if not watched.wait_for(topics.PARTITIONS, _FIRST_S, alive=process.check):
            raise SystemExit(f"{peer}: no result in {_FIRST_S:g} s")
        before = process.usage(bench.broker)
        due_s, late_s = sender.send_at(until(WARM_S + seconds, arrivals(rate, seed)))
        after = process.usage(bench.broker)
        sender.flush()
        process.check()
        watched.wait_for(sender.count, _REST_S, alive=process.check)
        process.end()
    results = watched.read()
    topics.remove(bench.stack, made)
    counted_s = due_s[0] + WARM_S
    first = sender.count - len(due_s)
    ages = [
        results.stamps_ms[number] - at_s * 1e3
        for number, at_s in enumerate(due_s, start=first)
        if at_s >= counted_s and number in results.stamps_ms
    ]
    if not ages:
        raise SystemExit(f"{peer}: no result of any record that counts")
    return Aged(
        peer, rate, percentile(ages, 0.5), percentile(ages, 0.99), max(ages), late_s * 1e3,
        busy_cores(before, after), len(ages), sender.count - len(results.stamps_ms),
        results.repeats,
    )  # fmt: skip


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yield the seconds after the start at which records are due, for ever."""
    draw = random.Random(seed)
    at_s = 0.0
    while True:
        at_s += draw.expovariate(rate)
        yield at_s


def until(seconds: float, due: Iterable[float]) -> Iterator[float]:
    """Yield those of the first seconds."""
    return itertools.takewhile(lambda at_s: at_s < seconds, due)


class Sender:
    """Sends pictures in turn, to the partitions in turn, at once."""

    def __init__(
        self, bootstrap: str, topic: str, pictures: Sequence[bytes], linger_ms: float
    ) -> None:
        self._topic = topic
        self._pictures = pictures
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "linger.ms": linger_ms,
                "log_level": topics.LOG_LEVEL,
            }
        )
        self.count = 0

    def send(self) -> None:
        number = self.count
        self.count += 1
        value = self._pictures[number % len(self._pictures)]
        self._producer.produce(
            self._topic, value, b"%d" % number, partition=number % topics.PARTITIONS
        )

    def send_many(self, count: int) -> None:
        """Send so many as fast as they go."""
        for _ in range(count):
            self.send()
            self._producer.poll(0)

    def send_at(self, due: Iterable[float]) -> tuple[list[float], float]:
        """Send one at each of these times from now on; return when they were due, and the worst."""
        began_s, worst_s = time.time() + 0.1, 0.0
        due_s = []
        for after_s in due:
            due_s.append(began_s + after_s)
            while (left_s := began_s + after_s - time.time()) > 0:
                self._producer.poll(0)
                time.sleep(min(left_s, 0.05))
            worst_s = max(worst_s, -left_s)
            self.send()
        return due_s, worst_s

    def flush(self) -> None:
        if self._producer.flush(60):
            raise SystemExit("records to be aged are not acknowledged")
