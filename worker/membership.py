"""When the worker is in its group: only while it can serve. Samples lag; rebuilds a stuck consumer.

It looks and decides once in a while; it never touches a record.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from worker.control.messages import Action
from worker.errors import BrokerRefused, BrokerUnavailable, DeviceError
from worker.inference.ladder import DeviceState
from worker.kafka.consumer import Consumer
from worker.kafka.owned import Owned
from worker.models.registry import Registry
from worker.telemetry.health import State
from worker.telemetry.metrics import Metrics
from worker.types import ModelRef, Partition

_LOOK_S = 1.0
_LAG_S = 5.0
_LEAVE_AFTER_S = 60.0
_STUCK_S = 60.0
_JOINING_S = 120.0

log = structlog.get_logger(__name__)


class Membership:
    """Models warm -> join; no model to be had for long -> leave, so that others take over.

    A worker that lost its devices, and may not serve on the CPU, leaves at once, and joins again
    when one is back; `exit_on_loss`: it ends instead.
    """

    def __init__(
        self,
        consumer: Consumer,
        owned: Owned,
        registry: Registry,
        state: State,
        metrics: Metrics,
        *,
        drain_deadline_s: float,
        exit_on_loss: bool = False,
    ) -> None:
        self._consumer = consumer
        self._owned = owned
        self._registry = registry
        self._state = state
        self._metrics = metrics
        self._drain_deadline_s = drain_deadline_s
        self._exit_on_loss = exit_on_loss
        self._hold: Action | None = None
        self.leaving = False
        """While a drain is under way: what came in now would be given up, and served again."""
        self.on_left: Callable[[], None] = lambda: None
        self.on_look: Callable[[], None] = lambda: None
        self._unready_since_s: float | None = None
        self._joining_since_s: float | None = None
        self._joined_once = False
        self._lag_at_s = 0.0
        self._lag: int | None = None
        self._restarts: dict[ModelRef, int] = {}
        self._shown: frozenset[Partition] = frozenset()
        self._seen: dict[Partition, tuple[tuple[int, int], float]] = {}
        """Partition -> ((epoch, position), when it last moved or had a reason not to)."""

    @property
    def lag(self) -> int | None:
        """Records behind the ends of our partitions, when last looked at; None: not yet."""
        return self._lag

    @property
    def out(self) -> bool:
        """Whether we are not in the group, nor about to join."""
        return not self._consumer.member

    def hold(self, action: Action | None) -> None:
        """Keep out of the group (drain) until another word comes; a pause changes nothing here."""
        self._hold = action

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look(time.monotonic())
            await asyncio.sleep(_LOOK_S if self._consumer.member else _LOOK_S / 4)

    async def look(self, now_s: float) -> None:
        """Look once, and do what follows.

        Raises BrokerRefused when the brokers refuse us, DeviceError when a loss ends the worker.
        """
        self._look_at_models(now_s)
        self.on_look()
        lost = self._look_at_devices()
        drained = self._hold is Action.DRAIN
        if not self._consumer.member:
            if self._registry.ready and not drained:
                await self._join()
        elif drained:
            await self._drained()
        elif lost is not None:
            log.warning("leaving the group: the devices were lost", why=lost)
            await self._leave()
        elif self._unready_since_s is not None and now_s - self._unready_since_s > _LEAVE_AFTER_S:
            log.warning("leaving the group: no model can be served", seconds=_LEAVE_AFTER_S)
            await self._leave()
        if self._consumer.joined:
            self._state.ready("group")
        else:
            self._state.unready("group", "not in the consumer group, or waiting for partitions")
        if now_s - self._lag_at_s >= _LAG_S:
            self._lag_at_s = now_s
            await self._look_at_progress(now_s)

    async def _drained(self) -> None:
        log.info("leaving the group: drained by command")
        self.leaving = True
        await self._owned.revoked(self._drain_deadline_s)
        await self._consumer.leave()
        self.leaving = False
        self.on_left()

    async def _leave(self) -> None:
        await self._owned.revoked(0.0)
        await self._consumer.leave()

    def _look_at_devices(self) -> str | None:
        """Show the devices; return why none can serve any more, nor the CPU for them."""
        amiss = []
        for device in self._registry.devices.values():
            self._metrics.set_device_state(device.uuid, device.state)
            if device.state is not DeviceState.GPU_OK:
                amiss.append(f"{device.uuid} is {device.state}, because: {device.why}")
        self._state.notes.pop("devices", None)
        if amiss:
            self._state.notes["devices"] = "; ".join(amiss)
        statuses = self._registry.describe().values()
        lost = next((status.lost for status in statuses if status.lost is not None), None)
        if lost is not None and self._exit_on_loss:
            raise DeviceError(f"all devices were lost, and engine.on_gpu_loss is exit: {lost}")
        return lost

    def _look_at_models(self, now_s: float) -> None:
        if self._registry.ready:
            self._unready_since_s = None
            self._state.ready("models")
        else:
            self._unready_since_s = self._unready_since_s or now_s
            self._state.unready("models", _why(self._registry))
        self._show_engines()
        problems = self._registry.health()
        if problems:
            self._state.dead("engines", "; ".join(problems))
        else:
            self._state.alive("engines")

    async def _join(self) -> None:
        try:
            await self._consumer.join(self._owned)
        except (BrokerUnavailable, BrokerRefused) as error:
            if isinstance(error, BrokerRefused) and not self._joined_once:
                raise  # at the start that is final; later rights may come back
            self._state.unready("kafka", str(error))
            log.warning("not joined yet", error=str(error))
        else:
            self._joined_once = True
            self._state.ready("kafka")

    async def _look_at_progress(self, now_s: float) -> None:
        """Show the lag, and rebuild a consumer that has not moved though it could."""
        partitions = self._owned.partitions
        try:
            ends = await self._consumer.ends(partitions)
        except (BrokerUnavailable, BrokerRefused) as error:
            self._state.unready("kafka", str(error))
            return
        if ends:
            self._state.ready("kafka")
        self._show(partitions, ends)
        stuck = [p for p, (position, end) in ends.items() if self._stuck(p, position, end, now_s)]
        if stuck:
            await self._rebuild(f"no progress for {_STUCK_S:g} s on {stuck}")
        elif self._stuck_joining(now_s):
            await self._rebuild("the group gave no partitions for too long")

    def _show_engines(self) -> None:
        for ref, status in self._registry.describe().items():
            self._metrics.set_engine_state(str(ref), status.state)
            restarts = self._metrics.engine_restarts.labels(str(ref))
            restarts.inc(max(0, status.restarts - self._restarts.get(ref, 0)))
            self._restarts[ref] = status.restarts
            if status.sha256 is not None:
                self._metrics.set_model_info(*ref, status.sha256, status.provider or "")

    def _show(
        self, partitions: frozenset[Partition], ends: Mapping[Partition, tuple[int, int]]
    ) -> None:
        for topic, number in self._shown - partitions:
            self._metrics.consumer_lag.remove(topic, str(number))
        self._shown = (self._shown & partitions) | ends.keys()
        self._lag = 0
        for partition, (position, end) in ends.items():
            committed = self._owned.committed(partition)
            lag = end - (position if committed is None else committed)
            self._lag += lag
            self._metrics.consumer_lag.labels(partition.topic, str(partition.partition)).set(lag)

    def _stuck(self, partition: Partition, position: int, end: int, now_s: float) -> bool:
        at = (self._consumer.epoch, position)
        before, since_s = self._seen.get(partition, (None, now_s))
        if at != before or position >= end or not self._owned.bound.room:
            self._seen[partition] = (at, now_s)
            return False
        return now_s - since_s > _STUCK_S

    def _stuck_joining(self, now_s: float) -> bool:
        if self._consumer.joined or not self._consumer.member:
            self._joining_since_s = None
            return False
        self._joining_since_s = self._joining_since_s or now_s
        limit_s = max(_JOINING_S, 3 * self._consumer.rebalance_s)
        return now_s - self._joining_since_s > limit_s

    async def _rebuild(self, why: str) -> None:
        self._seen.clear()
        self._joining_since_s = None
        try:
            await self._consumer.rebuild(why)
        except (BrokerUnavailable, BrokerRefused) as error:
            log.warning("consumer not rebuilt", error=str(error))


def _why(registry: Registry) -> str:
    """Say what every engine does, and what ended the one before it."""
    said = (
        f"{ref} is {status.state}" + (f", because: {status.reason}" if status.reason else "")
        for ref, status in registry.describe().items()
    )
    return "; ".join(said) or "no model is loaded"
