"""`darkroom send` and `results` against a real Kafka; what was sent is read by confluent-kafka."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer
from typer.testing import CliRunner, Result

from worker.cli.main import app
from worker.local.spec import Topic
from worker.local.stack import Stack

pytestmark = pytest.mark.kafka

LARGE_BYTES = 20_000


def darkroom(kafka: Stack, *arguments: str) -> Result:
    brokers = ("--bootstrap-servers", kafka.bootstrap_servers)
    return CliRunner().invoke(app, [*arguments, *brokers])


@pytest.fixture
def topic(kafka: Stack, unique: str) -> str:
    kafka.create_topics(Topic(unique, 3, config={"max.message.bytes": str(LARGE_BYTES)}))
    return unique


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


def read(kafka: Stack, topic: str, count: int) -> list[Message]:
    """Read exactly so many records, and see that there are no more."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": False,
        }
    )
    consumer.subscribe([topic])
    try:
        found = consumer.consume(count, timeout=20)
        return [*found, *consumer.consume(1, timeout=0.5)]
    finally:
        consumer.close()


def test_every_file_is_sent_with_key_and_headers(kafka: Stack, topic: str, pictures: Path) -> None:
    result = darkroom(
        kafka,
        *("send", str(pictures), "--topic", topic, "--repeat", "2", "--key", "{stem}-{n}"),
        *("--model", "digits", "--version", "2", "--header", "who=me=us"),
    )

    assert result.exit_code == 0, result.output
    assert "sent 6 of 6 records" in result.stderr
    records = read(kafka, topic, 6)
    assert sorted((record.key(), record.value()) for record in records) == sorted(
        (f"{name[0]}-{n}".encode(), name.encode() * 100)
        for n, name in enumerate(["a.png", "b.png", "c.png"] * 2)
    )
    assert records[0].headers() == [
        ("darkroom-model", b"digits"),
        ("darkroom-version", b"2"),
        ("who", b"me=us"),
    ]


def test_count_goes_over_and_over_the_files_at_the_rate_asked_for(
    kafka: Stack, topic: str, pictures: Path
) -> None:
    result = darkroom(
        kafka, "send", str(pictures), "--topic", topic, "--count", "5", "--rate", "50", "--json"
    )

    told = json.loads(result.stdout)
    assert (told["sent"], told["failed"], told["bytes"]) == (5, 0, 5 * 500)
    assert told["seconds"] >= 4 / 50
    assert len(read(kafka, topic, 5)) == 5


def test_a_file_too_large_for_the_topic_is_named_and_the_others_are_sent(
    kafka: Stack, topic: str, pictures: Path
) -> None:
    (pictures / "big.png").write_bytes(b"x" * LARGE_BYTES)
    (pictures / "fits.png").write_bytes(b"x" * (LARGE_BYTES - 200))

    result = darkroom(kafka, "send", str(pictures), "--topic", topic)

    assert result.exit_code == 1
    assert "1 of 5 records were not sent" in result.stderr
    assert f"big.png: {LARGE_BYTES} bytes do not fit" in result.stderr
    assert len(read(kafka, topic, 4)) == 4


@pytest.mark.parametrize("command", [["send", __file__], ["results"]], ids=lambda words: words[0])
def test_an_absent_topic_is_refused(kafka: Stack, command: list[str]) -> None:
    result = darkroom(kafka, *command, "--topic", "absent")

    assert result.exit_code == 5
    assert "has no topic 'absent'" in result.stderr


def result_of(offset: int, status: str) -> dict[str, Any]:
    return {"status": status, "id": f"images/0/{offset}@0", "source": {"timestamp_ms": 1}}


def publish(kafka: Stack, topic: str, *statuses: str, transactional: bool = False) -> None:
    settings: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap_servers}
    if transactional:
        settings["transactional.id"] = uuid.uuid4().hex
    producer = Producer(settings)
    if transactional:
        producer.init_transactions(20)
        producer.begin_transaction()
    for offset, status in enumerate(statuses):
        producer.produce(topic, json.dumps(result_of(offset, status)).encode(), partition=0)
    if transactional:
        producer.commit_transaction(20)
    producer.flush(20)


def test_results_are_those_that_are_there_in_order(kafka: Stack, topic: str) -> None:
    publish(kafka, topic, "ok", "failed", "skipped", "ok")

    table = darkroom(kafka, "results", "--topic", topic)
    lines = darkroom(kafka, "results", "--topic", topic, "--json")

    assert [line.split()[2] for line in table.stdout.splitlines()] == [
        *("status", "ok", "failed", "skipped", "ok")
    ]
    assert [json.loads(line) for line in lines.stdout.splitlines()] == [
        result_of(offset, status) for offset, status in enumerate(["ok", "failed", "skipped", "ok"])
    ]


def test_results_may_be_only_those_that_are_not_ok(kafka: Stack, topic: str) -> None:
    publish(kafka, topic, "ok", "failed", "skipped", "ok")

    result = darkroom(kafka, "results", "--topic", topic, "--failed", "--json")

    statuses = [json.loads(line)["status"] for line in result.stdout.splitlines()]
    assert statuses == ["failed", "skipped"]


def test_an_empty_topic_has_no_results_and_is_no_error(kafka: Stack, topic: str) -> None:
    result = darkroom(kafka, "results", "--topic", topic)

    assert (result.exit_code, result.stdout) == (0, "")


def test_reading_ends_behind_the_marker_of_a_transaction(kafka: Stack, topic: str) -> None:
    publish(kafka, topic, "ok", transactional=True)

    result = darkroom(kafka, "results", "--topic", topic, "--json")

    assert len(result.stdout.splitlines()) == 1


def test_following_ends_at_the_count_and_fewer_in_time_is_an_error(
    kafka: Stack, topic: str
) -> None:
    publish(kafka, topic, "ok", "ok", "ok")

    enough = darkroom(kafka, "results", "--topic", topic, "--follow", "--count", "2")
    few = darkroom(kafka, "results", "--topic", topic, "--follow", "--count", "4", "--timeout", "2")
    none = darkroom(kafka, "results", "--topic", topic, "--from", "now", "--timeout", "1")

    assert (enough.exit_code, len(enough.stdout.splitlines())) == (0, 3)
    assert (few.exit_code, len(few.stdout.splitlines())) == (1, 4)
    assert "3 results were there, 4 were asked for" in few.stderr
    assert (none.exit_code, none.stdout) == (0, "")
