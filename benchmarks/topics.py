"""Topics of a run: filled before it, watched during it, read and removed after it.

By confluent-kafka, whatever the peer uses. The key of a record is its number, and number `n` lies
in partition `n % PARTITIONS` at offset `n // PARTITIONS`: so results are accounted for by key.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.local.spec import Topic
from worker.local.stack import Stack

PARTITIONS = 6
_SAMPLE = 37
_ANSWER_S = 20.0
_LOOK_S = 0.05
_NEW = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
"""What a broker may answer for a moment about a topic that was just created."""
LOG_LEVEL = 2
"""Of librdkafka: critical. What matters comes back as errors."""


class Results(NamedTuple):
    """What a run left in its output topic."""

    stamps_ms: dict[int, int]
    """Number of the record -> LogAppendTime of its first result."""
    repeats: int
    sample: dict[int, bytes]
    """Every so many results as they are."""


def make(stack: Stack, name: str, *, dead: bool = True) -> tuple[str, str, str]:
    """Create input, output (stamped by the broker) and dead-letter topic of a run."""
    names = (f"{name}.in", f"{name}.out", f"{name}.dead")
    stamped = {"message.timestamp.type": "LogAppendTime"}
    made = [Topic(names[0], PARTITIONS), Topic(names[1], PARTITIONS, stamped)]
    stack.create_topics(*made, *([Topic(names[2], PARTITIONS)] if dead else []))
    return names


def remove(stack: Stack, names: Iterable[str]) -> None:
    client = AdminClient({"bootstrap.servers": stack.bootstrap_servers, "log_level": LOG_LEVEL})
    for future in client.delete_topics(list(names)).values():
        future.result(_ANSWER_S)


def fill(stack: Stack, topic: str, pictures: Sequence[bytes], count: int) -> None:
    """Preload so many records, the pictures over and over."""
    failures: list[str] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": stack.bootstrap_servers,
            "enable.idempotence": True,
            "log_level": LOG_LEVEL,
            "linger.ms": 20,
            "batch.size": 1 << 20,
        }
    )
    for number in range(count):
        value, partition = pictures[number % len(pictures)], number % PARTITIONS
        while True:
            try:
                producer.produce(
                    topic, value, b"%d" % number, partition=partition, on_delivery=delivered
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(120) or failures:
        raise SystemExit(f"the input topic could not be filled: {failures[:1]}")


def outside(stack: Stack) -> dict[str, object]:
    """Return the settings of a consumer that reads from outside any group."""
    return {
        "bootstrap.servers": stack.bootstrap_servers,
        "group.id": "the-benchmark",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "log_level": LOG_LEVEL,
    }


class Output:
    """The output topic of a run, from outside any group."""

    def __init__(self, stack: Stack, topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer(outside(stack))

    def count(self) -> int:
        """Return how many results there are now."""
        total = 0
        for part in self._parts():
            try:
                _, end = self._consumer.get_watermark_offsets(part, timeout=_ANSWER_S)
            except KafkaException as error:
                if error.args[0].code() not in _NEW:
                    raise
            else:
                total += end
        return total

    def wait_for(self, count: int, deadline_s: float, *, alive: Callable[[], None]) -> bool:
        """Wait until so many are there; False at the deadline. `alive` raises when it died."""
        until_s = time.monotonic() + deadline_s
        while self.count() < count:
            alive()
            if time.monotonic() > until_s:
                return False
            time.sleep(_LOOK_S)
        return True

    def read(self) -> Results:
        """Read all that is there; closes."""
        stamps: dict[int, int] = {}
        sample: dict[int, bytes] = {}
        repeats, left = 0, self.count()
        self._consumer.assign(
            [TopicPartition(self._topic, part.partition, 0) for part in self._parts()]
        )
        until_s = time.monotonic() + 60
        while left > 0 and time.monotonic() < until_s:
            for message in self._consumer.consume(min(left, 10_000), timeout=1.0):
                if message.error() is not None:
                    raise SystemExit(f"reading {self._topic}: {message.error()}")
                left -= 1
                number, value = int(message.key() or b""), message.value()
                if number in stamps:
                    repeats += 1
                    continue
                stamps[number] = message.timestamp()[1]
                if number % _SAMPLE == 0 and value is not None:
                    sample[number] = value
        self._consumer.close()
        if left:
            raise SystemExit(f"{left} results of {self._topic} could not be read")
        return Results(stamps, repeats, sample)

    def _parts(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number) for number in range(PARTITIONS)]


def lost(stack: Stack, group: str, topic: str, results: Results) -> int:
    """Return how many records were committed though they have no result."""
    consumer = Consumer(
        {
            "bootstrap.servers": stack.bootstrap_servers,
            "group.id": group,
            "log_level": LOG_LEVEL,
        }
    )
    asked = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    committed = consumer.committed(asked, timeout=_ANSWER_S)
    consumer.close()
    return sum(
        offset * PARTITIONS + part.partition not in results.stamps_ms
        for part in committed
        for offset in range(max(0, part.offset))
    )
