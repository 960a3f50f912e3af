"""Thousands of pictures through real workers while workers, engines and brokers are killed."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.broker import make_topics
from tests.integration.traffic import RECORDS, Traffic
from tests.ledger import account
from tests.workers import Belongings, Crew, Worker
from worker.local.stack import Stack

pytestmark = pytest.mark.kafka

IN_FLIGHT = 128
LEFT_S = 20.0
SETTINGS = {
    "limits": {"in_flight_records": IN_FLIGHT},
    # A worker that a busy machine lets wait for longer loses its partitions: that repeats records.
    "kafka": {"session_timeout_ms": 6000},
}


@pytest.fixture
def traffic(breakable: Stack, unique: str, crew: Crew) -> Iterator[Traffic]:
    traffic = Traffic(make_topics(breakable, unique), crew)
    yield traffic
    traffic.close()


def test_nothing_is_lost_while_an_engine_a_worker_and_the_broker_are_killed_and_one_joins(
    breakable: Stack, traffic: Traffic, crew: Crew
) -> None:
    topics, tail = traffic.topics, traffic.tail
    first, second = (crew.start(topics, SETTINGS) for _ in range(2))
    traffic.until(lambda: len(tail.workers) == 2, "results of both workers")

    kill_engine(first)
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

    traffic.finish(RECORDS)
    assert [first.stop(), third.stop()] == [0, 0]
    account(topics, traffic.feed.sent, doomed=traffic.doomed, repeats_max=3 * IN_FLIGHT)


@pytest.mark.long
def test_workers_that_come_and_go_under_load_lose_nothing_though_partitions_are_added(
    kafka: Stack, unique: str, crew: Crew
) -> None:
    topics = make_topics(kafka, unique)
    traffic = Traffic(topics, crew)
    here = [crew.start(topics, SETTINGS)]
    deaths = 0
    for round_number in range(8):
        here.append(crew.start(topics, SETTINGS))
        traffic.until(lambda: len(traffic.tail.workers) >= round_number + 2, "its results")  # noqa: B023 - is called in this round
        leaving = here.pop(0)
        if round_number % 2:
            leaving.kill()
            deaths += 1
        else:
            leaving.terminate()
            traffic.all_partitions_move()
            assert leaving.wait() == 0
        if round_number == 4:
            traffic.feed.add_partitions(8)
            traffic.partitions = 8
    traffic.all_partitions_move()
    traffic.finish()
    assert here[0].stop() == 0
    account(topics, traffic.feed.sent, doomed=traffic.doomed, repeats_max=deaths * IN_FLIGHT)
    traffic.close()


def kill_engine(worker: Worker) -> None:
    engine = worker.engine
    assert engine is not None
    os.kill(engine.pid, signal.SIGKILL)


def _gone(belongings: Belongings) -> None:
    end_s = time.monotonic() + LEFT_S
    while left := belongings.left():
        assert time.monotonic() < end_s, f"left of the dead worker: {left}"
