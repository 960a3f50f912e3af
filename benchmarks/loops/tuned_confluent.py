"""A loop as a good engineer writes it by hand, on confluent-kafka: lanes, chunks, overlap.

One thread polls and publishes, lanes compute; offsets are committed asynchronously, in order, once
a chunk's results are acknowledged. No guards, as in the loop on aiokafka.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.loops.spec import LoopSpec, from_arguments, result
from benchmarks.recipe import ByHand

_IDLE_S = 0.05
_BUSY_S = 0.002


class Published:
    """A chunk whose results are under way."""

    def __init__(self, chunk: Sequence[Message]) -> None:
        self.chunk = chunk
        self.left = len(chunk)

    def delivered(self, error: Any, _: Message) -> None:
        if error is not None:
            raise RuntimeError(str(error))
        self.left -= 1


class Loop:
    def __init__(self, spec: LoopSpec) -> None:
        self._spec = spec
        self._model = ByHand(spec.recipe)
        self._lanes = ThreadPoolExecutor(spec.lanes)
        self._consumer = Consumer(
            {
                "bootstrap.servers": spec.bootstrap,
                "group.id": spec.group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.queue.backoff.ms": 20,
            }
        )
        self._producer = Producer(
            {"bootstrap.servers": spec.bootstrap, "acks": "all", "linger.ms": 5}
        )
        self._computing: deque[tuple[Sequence[Message], Future[list[bytes]]]] = deque()
        self._published: deque[Published] = deque()

    def run(self) -> None:
        self._consumer.subscribe([self._spec.input])
        while True:
            self._poll()
            while self._computing and (
                self._computing[0][1].done() or len(self._computing) >= self._spec.chunks
            ):
                self._publish(*self._computing.popleft())
            self._producer.poll(0)
            self._commit()

    def _poll(self) -> None:
        chunk = self._spec.chunk
        idle = not self._computing and not self._published
        timeout_s = _IDLE_S if idle else _BUSY_S
        records = self._consumer.consume(self._spec.poll, timeout=timeout_s)
        for start in range(0, len(records), chunk):
            part = records[start : start + chunk]
            self._computing.append((part, self._lanes.submit(self._compute, part)))

    def _compute(self, chunk: Sequence[Message]) -> list[bytes]:
        head = self._spec.recipe.head
        answers = self._model.serve([record.value() or b"" for record in chunk])
        return [
            result(head, record.partition(), record.offset(), best)
            for record, best in zip(chunk, answers, strict=True)
        ]

    def _publish(self, chunk: Sequence[Message], computing: "Future[list[bytes]]") -> None:
        published = Published(chunk)
        self._published.append(published)
        for record, value in zip(chunk, computing.result(), strict=True):
            self._producer.produce(
                self._spec.output,
                value,
                record.key(),
                partition=record.partition() or 0,
                on_delivery=published.delivered,
            )

    def _commit(self) -> None:
        ends: dict[int, int] = {}
        while self._published and self._published[0].left == 0:
            for record in self._published.popleft().chunk:
                ends[record.partition() or 0] = (record.offset() or 0) + 1
        if ends:
            offsets = [TopicPartition(self._spec.input, *end) for end in ends.items()]
            self._consumer.commit(offsets=offsets, asynchronous=True)


if __name__ == "__main__":
    Loop(from_arguments()).run()
