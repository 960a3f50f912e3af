"""What an agent needs of others: of the control channel, and of the worker that it is part of."""

from collections.abc import Callable
from typing import Protocol

from worker.control.answers import Ack
from worker.control.channel import Members
from worker.control.messages import Action


class Port(Protocol):
    """What the agent needs of the control channel; all but `watch` raise ControlUnavailable."""

    async def read(self) -> bytes | None: ...

    async def write(
        self, document: bytes, *, expected: int | None, command: str, by: str
    ) -> bool: ...

    async def announce(self, worker: str, ack: bytes, *, ttl_s: float) -> None: ...

    async def depart(self, worker: str) -> None: ...

    async def members(self) -> Members: ...

    async def watch(self, wake: Callable[[], None]) -> None: ...

    async def aclose(self) -> None: ...


class Host(Protocol):
    """What the agent tells, and asks of, the worker that it is part of."""

    def vitals(self, ack: Ack) -> Ack:
        """Return the answer with what only the worker knows: state, models, device, lag."""

    def hold(self, action: Action | None) -> None:
        """Take no records (pause), leave the group too (drain), or serve (None)."""

    def applied(self) -> None:
        """Versions or limits may have changed."""

    def unreachable(self, why: str | None) -> None:
        """Be told why the control channel does not answer; None: it does."""
