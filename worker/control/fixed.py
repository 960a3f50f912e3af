"""Who decides what is served where there is no control channel: the settings, once."""

import asyncio
from typing import Protocol

from worker.control.messages import DesiredState
from worker.control.reconciler import Failure, Reconciler
from worker.control.wanted import wanted
from worker.errors import DarkroomError, ModelError


class Host(Protocol):
    """What must know that versions were loaded."""

    def applied(self) -> None: ...


class Fixed:
    """Stands where an `Agent` stands: `run`, then `leave`."""

    def __init__(self, reconciler: Reconciler, host: Host, state: DesiredState) -> None:
        self._reconciler = reconciler
        self._host = host
        self._state = state
        self.started = asyncio.Event()

    async def run(self) -> None:
        """Carry out the settings' state, then do nothing for ever.

        Raises the error of the default model when that cannot be served.
        """
        state = self._state
        try:
            report = await self._reconciler.apply(wanted(state, "", {}))
            for failure in report.failures:
                if failure.ref.name == state.default:
                    raise _named(failure)
            self._host.applied()
            self.started.set()
            await asyncio.Event().wait()
        finally:
            await self._reconciler.close()

    async def leave(self) -> None:
        """Nobody is told."""

    def changed(self) -> None:
        """Nobody is told."""


def _named(failure: Failure) -> DarkroomError:
    """Say of which version a file is at fault: its path is that of a cache."""
    match failure.error:
        case ModelError(code=code):
            return ModelError(f"{failure.ref} cannot be served: {failure.error}", code=code)
        case _:
            return failure.error
