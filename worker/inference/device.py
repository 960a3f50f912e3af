"""One device as all engines of this worker share it: who may start there, and who hears of it.

Times and turns around the ladder, which decides; and its driver, asked before a load would hang
in it. It must not know models.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from math import isinf

import structlog

from worker.errors import DeviceError
from worker.inference.ladder import DeviceState, Ladder
from worker.inference.survey import driver_problem

_ANSWERED_S = 10.0
"""So long an answer of the driver counts, as the one at the start of the worker."""

_log = structlog.get_logger()


class Device:
    """A device by its UUID. `listeners` are called after each change.

    `ask` blocks while the driver is asked; it returns why that does not answer, or None.
    """

    def __init__(
        self,
        uuid: str,
        *,
        to_cpu: bool,
        clock_s: Callable[[], float] = time.monotonic,
        ask: Callable[[], str | None] = driver_problem,
    ) -> None:
        self.uuid = uuid
        self.why: str | None = None
        """What was wrong with it last; None: nothing since it was proven."""
        self.listeners: set[Callable[[], None]] = set()
        self._ladder = Ladder(to_cpu=to_cpu)
        self._clock_s = clock_s
        self._ask = ask
        self._answered_s = clock_s()  # that is how it was found
        self._moved = asyncio.Event()

    @property
    def state(self) -> DeviceState:
        return self._ladder.state

    @property
    def usable(self) -> bool:
        """Engines may be started on it without a trial."""
        return self._ladder.usable

    async def admitted(self) -> None:
        """Wait until an engine may be started on it.

        `loaded`, `failed` or `given_up` must follow: out of use there is one trial at a time.
        """
        while (wait_s := self._ladder.wait_s(self._clock_s())) > 0:
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if isinf(wait_s) else wait_s):
                    await self._moved.wait()
        before = self.state
        self._ladder.starting()
        self._tell(before)

    async def answers(self) -> None:
        """Ask its driver, unless it answered a moment ago: a load would hang in it for minutes.

        Raises DeviceError: it does not answer.
        """
        if self._clock_s() - self._answered_s < _ANSWERED_S:
            return
        if (problem := await _aside(self._ask)) is not None:
            raise DeviceError(problem)
        self._answered_s = self._clock_s()

    def loaded(self) -> None:
        """Take note that an engine proved itself on it."""
        before = self.state
        self._ladder.loaded(self._clock_s())
        if self.state is DeviceState.GPU_OK:
            self.why = None
        self._tell(before)

    def failed(self, why: str, *, suspect: bool = False) -> None:
        """Take note that it ended an engine, or let none load."""
        before = self.state
        self.why = why
        self._ladder.failed(self._clock_s(), suspect=suspect)
        self._tell(before)

    def given_up(self) -> None:
        """Take note that a start was given up, by no fault of the device."""
        before = self.state
        self._ladder.given_up()
        self._tell(before)

    def _tell(self, before: DeviceState) -> None:
        # Always: a trial that failed leaves the state as it was, where the CPU may not serve.
        self._moved.set()
        if self.state is not before:
            log = _log.info if self.state is DeviceState.GPU_OK else _log.warning
            log("device.state", device=self.uuid, state=self.state, before=before, why=self.why)
            for listener in tuple(self.listeners):
                listener()


async def _aside(ask: Callable[[], str | None]) -> str | None:
    """Ask on a thread that Python does not wait for at its end, as it does for those of a pool."""
    answer: Future[str | None] = Future()
    answer.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - whoever awaits it gets it
            answer.set_exception(error)

    threading.Thread(target=run, name="driver", daemon=True).start()
    return await asyncio.wrap_future(answer)
