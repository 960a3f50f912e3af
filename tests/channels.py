"""A Redis of one fleet in memory, and the control channel on it; no server, no bytes on a wire.

`tests/contract/test_control_channel.py` holds it to what the real one does.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from worker.control.answers import Ack, encode_ack
from worker.control.channel import Entry, Members
from worker.control.documents import parse_state
from worker.control.messages import DESIRED_SCHEMA, DesiredState, encode_state
from worker.errors import ControlUnavailable


class FakeRedis:
    """What one Redis holds of a fleet."""

    def __init__(self, fleet: str = "default") -> None:
        self.fleet = fleet
        self.document: bytes | None = None
        self.entries: list[Entry] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        """Worker -> when it expires (ms), and what it said."""
        self.watchers: list[Callable[[], None]] = []
        self.down = False

    @property
    def now_ms(self) -> int:
        return int(time.time() * 1000)

    @property
    def state(self) -> DesiredState:
        """What is stored, which is a state."""
        assert self.document is not None
        return parse_state(self.document)

    def store(self, state: DesiredState) -> None:
        self.document = encode_state(state)

    def say(self, *acks: Ack) -> None:
        """Let these workers be alive, and answer this."""
        for ack in acks:
            self.answers[ack.worker] = (self.now_ms + 30_000, encode_ack(ack))


class FakeChannel:
    """One connection to it."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    async def read(self) -> bytes | None:
        return self._asked().document

    async def write(self, document: bytes, *, expected: int | None, command: str, by: str) -> bool:
        redis = self._asked()
        new, stored = _read(document), _read(redis.document)
        if new.get("schema") != DESIRED_SCHEMA or new.get("fleet") != redis.fleet:
            raise ControlUnavailable("writing the desired state: Redis refuses: no state of it")
        before = stored.get("generation") or None
        if before != expected or (before is not None and new["generation"] <= before):
            return False
        if stored.get("epoch", new["epoch"]) not in {new["epoch"], *new.get("supersedes", ())}:
            return False
        redis.document = document
        redis.entries.append(Entry(new["generation"], redis.now_ms, by, command, document))
        for wake in redis.watchers:
            wake()
        return True

    async def announce(self, worker: str, ack: bytes, *, ttl_s: float) -> None:
        redis = self._asked()
        redis.answers[worker] = (redis.now_ms + int(ttl_s * 1000), ack)

    async def depart(self, worker: str) -> None:
        self._asked().answers.pop(worker, None)

    async def members(self) -> Members:
        redis = self._asked()
        now_ms = redis.now_ms
        alive = {worker: ack for worker, (at_ms, ack) in redis.answers.items() if at_ms > now_ms}
        return Members(now_ms, alive)

    async def history(self, count: int) -> list[Entry]:
        return self._asked().entries[::-1][:count]

    async def watch(self, wake: Callable[[], None]) -> None:
        with self._watching(wake):
            wake()  # what came before we watched was not seen
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        await asyncio.sleep(0)

    def _asked(self) -> FakeRedis:
        if self._redis.down:
            raise ControlUnavailable("Redis does not answer")
        return self._redis

    @contextlib.contextmanager
    def _watching(self, wake: Callable[[], None]) -> Iterator[None]:
        self._redis.watchers.append(wake)
        try:
            yield
        finally:
            self._redis.watchers.remove(wake)


def _read(document: bytes | None) -> dict[str, Any]:
    """What can be read of a document; nothing where it is no JSON object."""
    with contextlib.suppress(orjson.JSONDecodeError):
        found = orjson.loads(document or b"{}")
        if isinstance(found, dict):
            return found
    return {}
