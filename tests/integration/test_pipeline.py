"""Thousands of pictures through real workers while workers, engines and brokers are killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.pictures import digit, large
from tests.ledger import Feed, Tail, Topics, account, make_topics
from tests.workers import Belongings, Crew, Worker
from worker.local.stack import Stack

pytestmark = pytest.mark.kafka

PARTITIONS = 6
RECORDS = 3000
BACKLOG = 400
IN_FLIGHT = 128
LEFT_S = 2.0
SETTINGS = {"limits": {"in_flight_records": IN_FLIGHT}}
HALF = digit(0)[: len(digit(0)) // 2]
LARGE = [large(number, 500) for number in range(8)]
"""Decoding them takes milliseconds: so that there is always work in flight when a fault strikes."""


class Traffic:
    """Keeps a backlog before the workers, while their results are followed."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.feed = Feed(topics)
        self.tail = Tail(topics)
        self.doomed: dict[bytes, str] = {}
        self._count = 0

    def until(self, condition: Callable[[], bool], what: str, deadline_s: float = 60.0) -> None:
        """Let traffic flow until the condition holds."""
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, f"not in {deadline_s} s: {what}; {self.tail.workers}"
            self.top_up()
            self.tail.look(0.02)
        self.top_up()

    def more(self, count: int) -> None:
        """Let so many more records be served."""
        goal = len(self.tail.ids) + count
        self.until(lambda: len(self.tail.ids) >= goal, f"{count} more results")

    def top_up(self) -> None:
        while self._count < len(self.tail.ids) + BACKLOG:
            self.send()

    def send(self) -> None:
        number = self._count
        self._count += 1
        key = b"%06d" % number
        value = digit(number) if number % 3 else LARGE[number % len(LARGE)]
        if number % 97 == 5:
            value, self.doomed[key] = b"this is no picture", "image.type"
        elif number % 97 == 50:
            value, self.doomed[key] = HALF, "image.corrupt"
        self.feed.send(key, value, partition=number % PARTITIONS)

    def finish(self) -> None:
        """Send what is missing to the number promised, and wait for the last result."""
        while self._count < RECORDS:
            self.send()
        self.feed.flush()
        self.tail.until(lambda: len(self.tail.ids) == self._count, f"{self._count} ids")

    def all_partitions_move(self) -> None:
        """Wait until each partition has results of records that are sent from now on."""
        self.feed.flush()
        ends = {sent.partition: sent.offset for sent in self.feed.sent}
        self.until(
            lambda: all(self.tail.last.get(p, -1) > end for p, end in ends.items()),
            "results from every partition",
        )


@pytest.fixture
def traffic(breakable: Stack, unique: str) -> Iterator[Traffic]:
    traffic = Traffic(make_topics(breakable, unique, partitions=PARTITIONS))
    yield traffic
    traffic.tail.close()


def test_nothing_is_lost_while_an_engine_a_worker_and_the_broker_are_killed_and_one_joins(
    breakable: Stack, traffic: Traffic, crew: Crew
) -> None:
    topics, tail = traffic.topics, traffic.tail
    first, second = (crew.start(topics, SETTINGS) for _ in range(2))
    traffic.until(lambda: len(tail.workers) == 2, "results of both workers")

    _kill_engine(first)
    traffic.more(300)
    first.until(lambda: not first.unready_because(), "ready again")
    assert tail.repeats == 0, "an engine's death costs no record a second result"

    third = crew.start(topics, SETTINGS)
    traffic.until(lambda: len(tail.workers) == 3, "results of the third worker")
    traffic.all_partitions_move()
    assert tail.repeats == 0, "what is given up is finished and committed before"

    belongings = Belongings(second)
    traffic.more(50)
    second.kill()
    _gone(belongings)
    traffic.all_partitions_move()
    assert tail.repeats <= IN_FLIGHT
    before = tail.repeats

    traffic.top_up()
    breakable.stop("broker-1")
    breakable.start("broker-1")
    traffic.all_partitions_move()
    assert tail.repeats - before <= 2 * IN_FLIGHT

    traffic.finish()
    assert [first.stop(), third.stop()] == [0, 0]
    account(topics, traffic.feed.sent, doomed=traffic.doomed, repeats_max=3 * IN_FLIGHT)


def _kill_engine(worker: Worker) -> None:
    engine = worker.engine
    assert engine is not None
    os.kill(engine.pid, signal.SIGKILL)


def _gone(belongings: Belongings) -> None:
    end_s = time.monotonic() + LEFT_S
    while left := belongings.left():
        assert time.monotonic() < end_s, f"left of the dead worker: {left}"
