"""The examples of the project, run as they stand against a real Kafka."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer

from worker.local.spec import Topic
from worker.local.stack import Stack

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
RESULTS: list[dict[str, Any]] = [
    {"status": "ok", "predictions": {"digit": [{"label": "7", "index": 7, "score": 0.98}]}},
    {"status": "failed", "reason": "image.corrupt"},
]


def test_the_producer_publishes_each_picture_as_it_is(
    kafka: Stack, unique: str, tmp_path: Path
) -> None:
    kafka.create_topics(Topic(unique, 1))
    pictures = {f"{name}.png": bytes([number] * 5) for number, name in enumerate("ab")}
    for name, picture in pictures.items():
        (tmp_path / name).write_bytes(picture)
    subprocess.run(
        [sys.executable, ROOT / "examples/produce.py", kafka.bootstrap_servers, unique, *pictures],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    reader = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": unique,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        reader.subscribe([unique])
        records = reader.consume(len(pictures), timeout=30)
        published = {name.encode(): picture for name, picture in pictures.items()}
        assert {record.key(): record.value() for record in records} == published
    finally:
        reader.close()


def test_the_reader_prints_results_as_they_come(kafka: Stack, unique: str) -> None:
    kafka.create_topics(Topic(unique, 1))
    writer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for result in RESULTS:
        writer.produce(unique, orjson.dumps(result), key=b"cat")
    assert writer.flush(30) == 0
    with subprocess.Popen(
        [sys.executable, ROOT / "examples/read.py", kafka.bootstrap_servers, unique],
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == f"b'cat' ok {RESULTS[0]['predictions']}\n"
            assert reader.stdout.readline() == "b'cat' failed image.corrupt\n"
        finally:
            reader.kill()
