"""A loop as a good engineer writes it by hand, on aiokafka: lanes, chunks, overlap, merged commits.

Polling, computing, publishing and committing go on side by side; order is kept by taking chunks in
turn. No guards: a rebalance, a bad picture or a broker that is away is not its affair.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from benchmarks.loops.spec import LoopSpec, from_arguments, result
from benchmarks.recipe import ByHand

Chunk = Sequence[ConsumerRecord]
_POLL_MS = 50


class Loop:
    def __init__(
        self, spec: LoopSpec, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer
    ) -> None:
        self._spec = spec
        self._consumer = consumer
        self._producer = producer
        self._model = ByHand(spec.recipe)
        self._lanes = ThreadPoolExecutor(spec.lanes)
        self._slots = asyncio.Semaphore(spec.chunks)
        self._computing: asyncio.Queue[tuple[Chunk, asyncio.Future[list[bytes]]]] = asyncio.Queue()
        self._sent: asyncio.Queue[tuple[Chunk, list[asyncio.Future[Any]]]] = asyncio.Queue()
        self._done: dict[TopicPartition, int] = {}
        self._dirty = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for part in (self._poll, self._publish, self._acknowledge, self._commit):
                group.create_task(part())

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        chunk = self._spec.chunk
        while True:
            polled = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=self._spec.poll)
            records = [record for part in polled.values() for record in part]
            for start in range(0, len(records), chunk):
                await self._slots.acquire()
                part = records[start : start + chunk]
                computing = loop.run_in_executor(self._lanes, self._compute, part)
                self._computing.put_nowait((part, computing))

    def _compute(self, chunk: Chunk) -> list[bytes]:
        head = self._spec.recipe.head
        answers = self._model.serve([record.value for record in chunk])
        return [
            result(head, record.partition, record.offset, best)
            for record, best in zip(chunk, answers, strict=True)
        ]

    async def _publish(self) -> None:
        while True:
            chunk, computing = await self._computing.get()
            values = await computing
            self._slots.release()
            send = self._send_batches if self._spec.batches else self._send_each
            self._sent.put_nowait((chunk, await send(chunk, values)))

    async def _send_each(self, chunk: Chunk, values: list[bytes]) -> list[asyncio.Future[Any]]:
        return [
            await self._producer.send(
                self._spec.output, value, key=record.key, partition=record.partition
            )
            for record, value in zip(chunk, values, strict=True)
        ]

    async def _send_batches(self, chunk: Chunk, values: list[bytes]) -> list[asyncio.Future[Any]]:
        futures = []
        batches: dict[int, Any] = {}
        for record, value in zip(chunk, values, strict=True):
            number = record.partition
            if number not in batches:
                batches[number] = self._producer.create_batch()
            added = batches[number].append(timestamp=None, key=record.key, value=value)
            if added is None:  # full: it goes, and a new one begins
                futures.append(await self._send_batch(batches[number], number))
                batches[number] = self._producer.create_batch()
                batches[number].append(timestamp=None, key=record.key, value=value)
        for number, batch in batches.items():
            futures.append(await self._send_batch(batch, number))
        return futures

    async def _send_batch(self, batch: Any, partition: int) -> asyncio.Future[Any]:
        batch.close()
        sending: asyncio.Future[Any] = await self._producer.send_batch(
            batch, self._spec.output, partition=partition
        )
        return sending

    async def _acknowledge(self) -> None:
        while True:
            chunk, futures = await self._sent.get()
            await asyncio.gather(*futures)
            for record in chunk:
                self._done[TopicPartition(record.topic, record.partition)] = record.offset + 1
            self._dirty.set()

    async def _commit(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._consumer.commit(dict(self._done))


async def main(spec: LoopSpec) -> None:
    consumer = AIOKafkaConsumer(
        spec.input,
        bootstrap_servers=spec.bootstrap,
        group_id=spec.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=spec.bootstrap, acks="all", max_batch_size=64 << 10
    )
    await consumer.start()
    await producer.start()
    await Loop(spec, consumer, producer).run()


if __name__ == "__main__":
    uvloop.run(main(from_arguments()))
