"""The worker's HTTP server: /livez, /readyz and /metrics.

Liveness is the event loop and the engines' watchdog alone: a restart does not bring Kafka back.
"""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiohttp import web

from worker.errors import SettingsError
from worker.telemetry.metrics import CONTENT_TYPE, Metrics

_TICK_S = 0.5
_SLOW_TICK_S = 1.0
_DEAD_TICK_S = 15.0
_PORTS_TRIED = 100

log = structlog.get_logger(__name__)


class State:
    """Why the worker is not ready, and why it should be restarted: by part, in words for people."""

    def __init__(self) -> None:
        self.unready_because: dict[str, str] = {"worker": "starting"}
        self.dead_because: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        """What is amiss and stops nothing (the control channel does not answer)."""

    @property
    def is_ready(self) -> bool:
        return not (self.unready_because or self.dead_because)

    def unready(self, part: str, reason: str) -> None:
        """Say that `part` (models, group, ...) cannot serve now."""
        self.unready_because[part] = reason

    def ready(self, part: str) -> None:
        self.unready_because.pop(part, None)

    def dead(self, part: str, reason: str) -> None:
        """Say that `part` is beyond repair without a restart of the process."""
        self.dead_because[part] = reason

    def alive(self, part: str) -> None:
        self.dead_because.pop(part, None)


class LoopLag:
    """How late the event loop wakes its tasks up."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self.last_s = 0.0

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            due_s = self._clock() + _TICK_S
            await self._sleep(_TICK_S)
            self.last_s = max(0.0, self._clock() - due_s)
            if self.last_s > _SLOW_TICK_S:
                log.warning("the event loop was blocked", lag_s=round(self.last_s, 3))


class Health:
    """Serves from `start` to `stop`; `state` is the app's to set."""

    def __init__(
        self,
        metrics: Metrics,
        state: State,
        *,
        host: str,
        port: int,
        lag: LoopLag | None = None,
    ) -> None:
        self._metrics = metrics
        self._state = state
        self._host = host
        self._port = port
        self._lag = lag or LoopLag()
        self._runner: web.AppRunner | None = None
        self._watch: asyncio.Task[None] | None = None
        metrics.ready.set_function(lambda: float(state.is_ready))
        metrics.loop_lag_seconds.set_function(lambda: self._lag.last_s)

    async def start(self) -> int:
        """Listen and return the port: the one asked for, or the next free one.

        Raises SettingsError when the host cannot be listened on.
        """
        application = web.Application()
        application.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._exposition),
            ]
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await self._listen(runner)
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._watch = asyncio.create_task(self._lag.watch(), name="loop-lag")
        port: int = runner.addresses[0][1]
        if self._port not in (0, port):
            log.warning(
                "the HTTP port is taken; using the next free one", asked=self._port, port=port
            )
        return port

    async def stop(self) -> None:
        """Close; does nothing when it was not started."""
        watch, runner = self._watch, self._runner
        self._watch = self._runner = None
        if watch is not None:
            watch.cancel()
            await asyncio.wait((watch,))
        if runner is not None:
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> None:
        last = min(self._port + _PORTS_TRIED, 65535) if self._port else 0
        for port in range(self._port, last + 1):
            try:
                await web.TCPSite(runner, self._host, port).start()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port < last:
                    continue
                raise SettingsError(
                    f"http: cannot listen on {self._host}:{port}: {error.strerror or error}"
                ) from error
            return

    async def _livez(self, _: web.Request) -> web.Response:
        reasons = dict(self._state.dead_because)
        if self._lag.last_s > _DEAD_TICK_S:
            reasons["loop"] = f"woke up {self._lag.last_s:.1f} s late"
        return _answer("alive", reasons)

    async def _readyz(self, _: web.Request) -> web.Response:
        reasons = {**self._state.unready_because, **self._state.dead_because}
        return _answer("ready", reasons, notes=self._state.notes)

    async def _exposition(self, _: web.Request) -> web.Response:
        body = self._metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _answer(
    word: str, reasons: Mapping[str, str], *, notes: Mapping[str, str] | None = None
) -> web.Response:
    status = 503 if reasons else 200
    said = {word: not reasons, "reasons": reasons, **({"notes": notes} if notes else {})}
    return web.json_response(said, status=status)
