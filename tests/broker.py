"""Records written to and read back from a real Kafka by confluent-kafka: somebody else's code.

It knows topics, offsets and acknowledgements; not what ought to be in them.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from worker.local.spec import Topic
from worker.local.stack import Stack

ANSWER_S = 30.0
READ_S = 60.0
PAUSE_S = 0.05

_MOVING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
)
"""What brokers answer for a moment after a group, or they themselves, came up."""

Headers = tuple[tuple[str, bytes | None], ...]


class Topics(NamedTuple):
    """The topics and the group of one test."""

    bootstrap: str
    input: str
    output: str
    dead: str
    group: str
    partitions: int


class Sent(NamedTuple):
    """A record that the broker acknowledged."""

    key: bytes
    value: bytes
    headers: Headers
    partition: int
    offset: int
    timestamp_ms: int


class Published(NamedTuple):
    """A record as it was read back."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def header(self, name: str) -> str | None:
        """The last header of this name, as text."""
        found = [value for key, value in self.headers if key == name]
        return None if not found or found[-1] is None else found[-1].decode()

    @property
    def json(self) -> dict[str, Any]:
        result: dict[str, Any] = orjson.loads(self.value or b"")
        return result


def make_topics(stack: Stack, name: str, *, partitions: int = 6, outputs: int = 0) -> Topics:
    """Create the three topics of a test; `outputs`: partitions of the output, where they differ."""
    topics = Topics(
        stack.bootstrap_servers, f"{name}.in", f"{name}.out", f"{name}.dead", name, partitions
    )
    stack.create_topics(
        Topic(topics.input, partitions),
        Topic(topics.output, outputs or partitions),
        Topic(topics.dead, partitions),
    )
    return topics


class Feed:
    """Writes to the input topic and keeps what was acknowledged, with its position."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._producer = Producer(
            {
                "bootstrap.servers": topics.bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 2,
                "message.max.bytes": 16_000_000,
                "message.timeout.ms": 120_000,
                "log_level": 0,
            }
        )
        self.sent: list[Sent] = []

    def send(
        self,
        key: bytes,
        value: bytes | None,
        *,
        partition: int = 0,
        headers: Headers = (),
        timestamp_ms: int = 0,
    ) -> None:
        """Send one record; timestamp 0 is now."""

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, f"not delivered: {error}"
            read = _published(message)
            self.sent.append(
                Sent(key, value or b"", headers, read.partition, read.offset, read.timestamp_ms)
            )

        self._producer.produce(
            self._topics.input,
            value,
            key,
            partition=partition,
            headers=list(headers),
            timestamp=timestamp_ms,
            on_delivery=delivered,
        )
        self._producer.poll(0)

    def add_partitions(self, count: int) -> None:
        """Let the input topic have so many partitions from now on; they can be sent to then."""
        name = self._topics.input
        admin = AdminClient({"bootstrap.servers": self._topics.bootstrap, "log_level": 0})
        admin.create_partitions([NewPartitions(name, count)])[name].result(ANSWER_S)
        end_s = time.monotonic() + ANSWER_S
        while len(self._producer.list_topics(name, ANSWER_S).topics[name].partitions) < count:
            assert time.monotonic() < end_s, f"{name} does not have {count} partitions"
            time.sleep(PAUSE_S)

    def flush(self) -> None:
        assert self._producer.flush(READ_S) == 0, "records are not acknowledged"


class Tail:
    """Follows the output topic from its beginning."""

    def __init__(self, topics: Topics) -> None:
        self._consumer = _consumer(topics)
        self._consumer.assign(_partitions(self._consumer, topics.output))
        self.results: list[dict[str, Any]] = []
        self.ids: Counter[str] = Counter()
        self.workers: Counter[str] = Counter()
        self.last: dict[int, int] = {}
        """Source partition -> the last offset that has a result."""

    def look(self, timeout_s: float = 0.05) -> list[dict[str, Any]]:
        """Take what has come; return it."""
        came = [
            _published(message).json
            for message in self._consumer.consume(500, timeout=timeout_s)
            if message.error() is None
        ]
        self.results += came
        self.ids.update(result["id"] for result in came)
        self.workers.update(result["worker"] for result in came)
        for result in came:
            self.last[result["source"]["partition"]] = result["source"]["offset"]
        return came

    @property
    def repeats(self) -> int:
        return self.ids.total() - len(self.ids)

    def until(self, condition: Callable[[], bool], what: str, deadline_s: float = READ_S) -> None:
        """Look until the condition holds; fail when it does not in time."""
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, f"not in {deadline_s:g} s: {what}; {len(self.ids)} ids"
            self.look()

    def close(self) -> None:
        self._consumer.close()


def read_all(topics: Topics, topic: str) -> list[Published]:
    """Read a topic from its beginning to its end, in order for each partition."""
    consumer = _consumer(topics)
    found: list[Published] = []
    try:
        waiting = {part.partition for part in _partitions(consumer, topic)}
        consumer.assign(_partitions(consumer, topic))
        end_s = time.monotonic() + READ_S
        while waiting:
            assert time.monotonic() < end_s, f"{topic}: partitions {waiting} do not end"
            for message in consumer.consume(1000, timeout=0.2):
                error = message.error()
                if error is None:
                    found.append(_published(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    waiting.discard(message.partition())
                else:
                    raise AssertionError(f"{topic}: {error}")
    finally:
        consumer.close()
    return found


def wait_committed(
    topics: Topics, deadline_s: float = READ_S, *, check: Callable[[], None] = lambda: None
) -> None:
    """Wait until everything in the input topic is committed; `check` may end the waiting."""
    consumer = _consumer(topics, group=topics.group)
    end_s = time.monotonic() + deadline_s
    try:
        while behind := _behind(consumer, topics):
            assert time.monotonic() < end_s, f"(committed, end) of partitions: {behind}"
            assert all(at <= end for at, end in behind.values()), f"committed too much: {behind}"
            check()
            time.sleep(PAUSE_S)
    finally:
        consumer.close()


def _behind(consumer: Consumer, topics: Topics) -> dict[int, tuple[int, int]]:
    """Return (committed, end) of the partitions where they differ; committed -1: nothing is."""
    parts = _partitions(consumer, topics.input)
    try:
        ends = [consumer.get_watermark_offsets(part, timeout=ANSWER_S)[1] for part in parts]
        marks = consumer.committed(parts, timeout=ANSWER_S)
    except KafkaException as error:
        if error.args[0].code() not in _MOVING:
            raise
        return dict.fromkeys((part.partition for part in parts), (-1, -1))
    return {
        mark.partition: (max(-1, mark.offset), end)
        for mark, end in zip(marks, ends, strict=True)
        if mark.offset != end and end
    }


def _consumer(topics: Topics, group: str = "reader") -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": topics.bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
            "log_level": 0,
        }
    )


def _partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    described = consumer.list_topics(topic, timeout=ANSWER_S).topics[topic]
    return [TopicPartition(topic, number, 0) for number in sorted(described.partitions)]


def _published(message: Message) -> Published:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    headers: Any = message.headers() or ()
    timestamp_ms = message.timestamp()[1]
    return Published(
        partition, offset, timestamp_ms, message.key(), message.value(), tuple(headers)
    )
