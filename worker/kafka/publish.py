"""Publishing images to a topic, for commands and the demo: every record acknowledged or counted."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from worker.config_sections import KafkaSettings
from worker.errors import BrokerRefused, CommandError
from worker.kafka.clients import client_options, describe, within
from worker.kafka.results import record_bytes
from worker.kafka.topics import ask_topics
from worker.types import Headers

T = TypeVar("T")

_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 5.0
_UNACKNOWLEDGED = 512


class Message(NamedTuple):
    key: bytes | None
    value: bytes
    headers: Headers


class MessageTooLarge(CommandError):  # noqa: N818 - the name is the whole sentence
    """A message that its topic does not take; nothing was sent, and others can be."""


class Publisher:
    """An idempotent producer with `acks=all` for one topic, open inside `async with`."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._producer: AIOKafkaProducer | None = None
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._max_bytes = 0
        self.acknowledged = 0
        self.errors: Counter[str] = Counter()
        """Records that the brokers did not take, by error."""

    async def __aenter__(self) -> Self:
        """Raise BrokerRefused (the topic is absent, too), or BrokerUnavailable."""
        self._max_bytes = (await ask_topics(self._settings, [self._topic]))[self._topic].max_bytes
        producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_batch_size=min(512 << 10, self._max_bytes),
            max_request_size=self._max_bytes,
            **client_options(self._settings),
        )
        self._producer = producer
        try:
            await self._within("connecting", producer.start())
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                await self.flush()
        finally:
            await self._close()

    async def send(self, message: Message) -> None:
        """Send, waiting for old records when many are not acknowledged.

        Raises MessageTooLarge, BrokerRefused, or BrokerUnavailable when nothing is acknowledged
        for 30 s.
        """
        if record_bytes(*message) > self._max_bytes:
            raise MessageTooLarge(
                f"{len(message.value)} bytes do not fit into max.message.bytes of topic"
                f" {self._topic!r} ({self._max_bytes})"
            )
        assert self._producer is not None, "send outside of `async with`"
        sending = self._producer.send(
            self._topic, key=message.key, value=message.value, headers=list(message.headers)
        )
        self._pending.append(await self._within("publishing", sending))
        while len(self._pending) > _UNACKNOWLEDGED or (self._pending and self._pending[0].done()):
            await self._settle()

    async def flush(self) -> None:
        """Wait until every record is acknowledged or counted; raises as `send` does."""
        while self._pending:
            await self._settle()

    async def _settle(self) -> None:
        oldest = self._pending[0]
        # `wait` does not cancel the future, whose record could still be under way.
        await self._within("publishing", asyncio.wait((oldest,)))
        self._pending.popleft()
        try:
            oldest.result()
        except (
            kafka_errors.TopicAuthorizationFailedError,
            kafka_errors.InvalidTopicError,
        ) as error:
            raise BrokerRefused(f"topic {self._topic!r}: {describe(error)}") from error
        except kafka_errors.KafkaError as error:
            self.errors[describe(error)] += 1
        else:
            self.acknowledged += 1

    async def _within(self, what: str, awaitable: Awaitable[T]) -> T:
        brokers = self._settings.bootstrap_servers
        return await within(_DEADLINE_S, what, awaitable, brokers=brokers)

    async def _close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # Its own stop waits for ever for what the brokers do not acknowledge.
            stopping = asyncio.ensure_future(producer.stop())
            await asyncio.wait((stopping,), timeout=_STOP_DEADLINE_S)
            stopping.cancel()
