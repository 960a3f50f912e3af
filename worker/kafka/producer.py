"""The only writer of results and dead letters: one idempotent producer, replaced when it breaks.

Results of one source partition go to one output partition, in batches that are built whole, so
that their order is kept and a record costs a fraction of a single `send`.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.producer.message_accumulator import BatchBuilder

from worker.config_sections import KafkaSettings
from worker.kafka.clients import calm, client_options, within
from worker.kafka.ledger import Outgoing
from worker.kafka.topics import TopicFacts

_START_DEADLINE_S = 10.0
_STOP_DEADLINE_S = 3.0
_MAX_BATCH_BYTES = 512 << 10

log = structlog.get_logger(__name__)


class Producer:
    """`send` may be called for several partitions at a time; one at a time for each."""

    def __init__(self, settings: KafkaSettings, facts: TopicFacts) -> None:
        self._settings = settings
        self._facts = facts
        self._client: AIOKafkaProducer | None = None
        self._gone: asyncio.Future[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._replacing = asyncio.Lock()

    async def start(self) -> None:
        """Raise BrokerRefused, or BrokerUnavailable when no broker answers in time."""
        facts = self._facts
        client = AIOKafkaProducer(
            enable_idempotence=True,
            acks="all",
            max_batch_size=min(
                _MAX_BATCH_BYTES, facts.output_max_bytes, facts.dead_letter_max_bytes
            ),
            max_request_size=max(facts.output_max_bytes, facts.dead_letter_max_bytes),
            request_timeout_ms=15_000,  # a black-holed broker blocks all new connections this long
            **client_options(self._settings),
        )
        calm(client.client)
        try:
            await within(
                _START_DEADLINE_S,
                "starting the producer",
                client.start(),
                brokers=self._settings.bootstrap_servers,
            )
        except BaseException:
            await _closed(client)
            raise
        self._client = client
        self._gone = asyncio.get_running_loop().create_future()

    async def send(self, source_partition: int, outgoing: Sequence[Outgoing]) -> None:
        """Publish in order; returns when every result and dead letter is acknowledged.

        Raises aiokafka's KafkaError when one was refused (then this client is of no more use), or
        when the client was replaced meanwhile.
        """
        client, gone = self._client, self._gone
        if client is None or gone is None:
            raise kafka_errors.ProducerClosed
        facts = self._facts
        futures: list[asyncio.Future[Any]] = []
        for letter in filter(None, (item.dead_letter for item in outgoing)):
            future = await client.send(
                facts.dead_letter_topic,
                key=letter.key,
                value=letter.value,
                partition=source_partition % facts.dead_letter_partitions,
                timestamp_ms=letter.timestamp_ms if letter.timestamp_ms >= 0 else None,
                headers=list(letter.headers),
            )
            futures.append(future)
        target = source_partition % facts.output_partitions
        for batch in _batches(client, outgoing):
            future = await client.send_batch(batch, facts.output_topic, partition=target)
            futures.append(future)
        acknowledged = asyncio.gather(*futures, return_exceptions=True)
        await asyncio.wait((acknowledged, gone), return_when=asyncio.FIRST_COMPLETED)
        if not acknowledged.done():
            raise kafka_errors.ProducerClosed
        # Every future is looked at: aiokafka's own flush tells nothing of failed sends.
        for result in acknowledged.result():
            if isinstance(result, asyncio.CancelledError):
                raise kafka_errors.ProducerClosed  # not we were cancelled: the client was closed
            if isinstance(result, BaseException):
                raise result

    async def replace(self, broken: AIOKafkaProducer | None = None) -> None:
        """Start a new client in place of a broken one, which is left to end by itself.

        Raises what `start` raises; then there is no client until it is called again.
        """
        async with self._replacing:
            if self._client is not broken:
                return  # somebody else has replaced it meanwhile
            client, gone = self._client, self._gone
            self._client = self._gone = None
            if client is not None and gone is not None:
                task = asyncio.create_task(self._end(client, gone), name="end-broken-producer")
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            await self.start()

    @property
    def client(self) -> AIOKafkaProducer | None:
        """The client in use now; what a caller of `replace` found broken."""
        return self._client

    async def stop(self) -> None:
        """Close; what was not acknowledged is left: it will be read and published again."""
        client, gone = self._client, self._gone
        self._client = self._gone = None
        if client is not None and gone is not None:
            await self._end(client, gone)
        if self._ending:
            await asyncio.wait(self._ending)

    async def _end(self, client: AIOKafkaProducer, gone: asyncio.Future[None]) -> None:
        await _closed(client)
        gone.set_result(None)


def _batches(client: AIOKafkaProducer, outgoing: Sequence[Outgoing]) -> Iterator[BatchBuilder]:
    """Pack results into as few batches as hold them; the first record of a batch always fits."""
    batch: BatchBuilder | None = None
    for item in outgoing:
        if item.value is None:
            continue
        if batch is not None and _appended(batch, item):
            continue
        if batch is not None:
            yield batch
        batch = client.create_batch()
        if not _appended(batch, item):
            raise kafka_errors.MessageSizeTooLargeError
    if batch is not None:
        batch.close()
        yield batch


def _appended(batch: BatchBuilder, item: Outgoing) -> bool:
    return (
        batch.append(timestamp=None, key=item.key, value=item.value, headers=list(item.headers))
        is not None
    )


async def _closed(client: AIOKafkaProducer) -> None:
    """Close a client under a deadline: with brokers gone its own stop waits for ever."""
    task = asyncio.ensure_future(client.stop())
    await asyncio.wait((task,), timeout=_STOP_DEADLINE_S)
    if task.done():
        if not task.cancelled() and task.exception() is not None:
            log.debug("closing a producer", error=repr(task.exception()))
        return
    task.cancel()
    sender = getattr(client, "_sender", None)
    for step in (sender.close() if sender else None, client.client.close()):
        if step is not None:
            ending = asyncio.ensure_future(step)
            await asyncio.wait((ending,), timeout=1.0)
            ending.cancel()
