"""How a worker starts, drains and ends, with brokers and without; its exit codes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Topics, make_topics
from tests.integration.traffic import Traffic, send_digits, wait_served
from tests.ledger import account
from tests.unit.engine.graphs import manifest, version
from tests.workers import Crew
from worker.local.spec import Topic
from worker.local.stack import Stack

pytestmark = pytest.mark.kafka

DRAIN_S = 3
SLACK_S = 15.0
"""What `app` gives to the steps behind the drain."""
SOON_S = 15.0
"""Half of the session timeout in force: a partition taken over by then was given up, not lost."""
PATIENT = {"kafka": {"session_timeout_ms": 30_000}}
IN_FLIGHT = 128
BOUNDED = {"limits": {"in_flight_records": IN_FLIGHT}, "shutdown": {"drain_deadline_s": DRAIN_S}}


@pytest.fixture
def broken_topics(breakable: Stack, unique: str) -> Iterator[Topics]:
    """Topics on a broker that the test may stop; it runs again afterwards."""
    yield make_topics(breakable, unique)
    breakable.start("broker-1")


def test_sigterm_drains_commits_and_gives_the_partitions_to_the_others_at_once(
    topics: Topics, crew: Crew
) -> None:
    first, second = (crew.start(topics, PATIENT) for _ in range(2))
    traffic = Traffic(topics, crew)
    traffic.until(lambda: len(traffic.tail.workers) == 2, "results of both workers")

    began_s = time.monotonic()
    first.terminate()
    traffic.all_partitions_move()
    assert time.monotonic() - began_s < SOON_S

    assert first.wait() == 0
    traffic.finish()
    assert second.stop() == 0
    account(topics, traffic.feed.sent, doomed=traffic.doomed)
    traffic.close()


def test_sigterm_without_brokers_ends_in_time_and_loses_nothing(
    breakable: Stack, broken_topics: Topics, crew: Crew
) -> None:
    worker = crew.start(broken_topics, BOUNDED)
    traffic = Traffic(broken_topics, crew)
    traffic.more(200)

    breakable.kill("broker-1")
    began_s = time.monotonic()
    worker.terminate()
    assert worker.wait() == 7
    assert time.monotonic() - began_s < DRAIN_S + SLACK_S
    assert "records will be read again" in worker.log

    breakable.start("broker-1")
    crew.start(broken_topics, BOUNDED)
    traffic.finish()
    account(broken_topics, traffic.feed.sent, doomed=traffic.doomed, repeats_max=IN_FLIGHT)
    traffic.close()


@pytest.mark.long
def test_brokers_that_go_are_waited_for(
    breakable: Stack, broken_topics: Topics, crew: Crew
) -> None:
    worker = crew.start(broken_topics, BOUNDED)
    traffic = Traffic(broken_topics, crew)
    traffic.more(200)

    breakable.kill("broker-1")
    worker.until(lambda: "kafka" in worker.unready_because(), "unready")
    assert worker.ask("/livez")[0] == 200, "a restart of the worker would not bring Kafka back"
    assert worker.cpu_share(over_s=2.0) < 0.5, "a worker without brokers has nothing to do"
    breakable.start("broker-1")

    traffic.all_partitions_move()
    worker.wait_ready()
    traffic.finish()
    assert worker.stop() == 0
    account(broken_topics, traffic.feed.sent, doomed=traffic.doomed, repeats_max=IN_FLIGHT)
    traffic.close()


@pytest.mark.long  # it waits in test_app; in the spine a broker comes back
def test_a_worker_that_starts_without_brokers_waits_and_then_serves(
    breakable: Stack, broken_topics: Topics, crew: Crew
) -> None:
    feed = send_digits(broken_topics, 60)
    breakable.stop("broker-1")

    worker = crew.start(broken_topics)
    worker.until(lambda: "kafka" in worker.unready_because(), "waiting for Kafka")
    reason = worker.unready_because()["kafka"]
    assert broken_topics.bootstrap in reason
    assert worker.ask("/livez")[0] == 200

    breakable.start("broker-1")
    wait_served(crew, broken_topics)
    account(broken_topics, feed.sent, doomed={})


def test_a_worker_that_waits_for_brokers_ends_at_a_signal(topics: Topics, crew: Crew) -> None:
    nowhere = topics._replace(bootstrap="127.0.0.1:1")
    worker = crew.start(nowhere)
    worker.until(lambda: "kafka" in worker.unready_because(), "waiting for Kafka")
    assert worker.stop() == 0


@pytest.mark.long  # a worker in this process does so in test_app
def test_until_idle_serves_what_is_there_and_ends(topics: Topics, crew: Crew) -> None:
    feed = send_digits(topics, 120)
    worker = crew.start(topics, arguments=("--until-idle", "1"))
    assert worker.wait() == 0
    account(topics, feed.sent, doomed={})


@pytest.mark.long  # a worker in this process does so in test_app
def test_an_absent_topic_is_refused_and_named(topics: Topics, crew: Crew) -> None:
    worker = crew.start(topics, {"kafka": {"output_topic": "nowhere"}})
    assert worker.wait() == 5
    assert f"Kafka at {topics.bootstrap} has no topic 'nowhere'" in worker.log


def test_dead_letters_that_would_not_fit_their_topic_are_refused(
    kafka: Stack, topics: Topics, crew: Crew
) -> None:
    kafka.create_topics(Topic(f"{topics.input}.big", 1, config={"max.message.bytes": "16777216"}))
    kafka.create_topics(Topic(f"{topics.dead}.small", 1, config={"max.message.bytes": "1048576"}))
    named = {"input_topics": [f"{topics.input}.big"], "dead_letter_topic": f"{topics.dead}.small"}
    worker = crew.start(topics, {"kafka": named})
    assert worker.wait() == 5
    assert "a dead letter would not fit" in worker.log


def test_broken_settings_are_refused_all_at_once(topics: Topics, crew: Crew) -> None:
    worker = crew.start(
        topics,
        {
            "kafka": {"output_topic": topics.input, "session_timeout_ms": 1},
            "models": {"default": "cats"},
            "batch": {"max_sise": 3},
        },
    )
    assert worker.wait() == 2
    assert "4 problems in the settings" in worker.log
    for named in ("session_timeout_ms", "output_topic", "models.default", "max_sise"):
        assert named in worker.log


@pytest.mark.parametrize(
    ("graph", "document", "named"),
    [
        pytest.param(b"this is no graph", {}, "model.onnx", marks=pytest.mark.long),
        pytest.param(
            None,
            {"heads": {"light": {"type": "classification"}}},
            "heads.light.output",
            marks=pytest.mark.long,
        ),
        (None, {"golden": []}, "golden"),
    ],
    ids=["graph", "head", "golden"],
)
def test_a_broken_model_is_refused_with_its_file_and_field(
    topics: Topics,
    crew: Crew,
    tmp_path: Path,
    graph: bytes | None,
    document: dict[str, object],
    named: str,
) -> None:
    version(tmp_path / "models" / "light" / "1", graph, document=manifest(**document))
    models = {
        "repository": str(tmp_path / "models"),
        "default": "light",
        "active": {"light": "1"},
    }
    worker = crew.start(topics, {"models": models})
    assert worker.wait() == 3
    assert named in worker.log
    assert "light/1 cannot be served" in worker.log
