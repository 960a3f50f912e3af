"""Joins the fleet's agent to the rest of the worker: what it is told, and what it tells of us."""

from worker.control.answers import Ack, ModelUse
from worker.control.messages import Action
from worker.kafka.ledger import Bound
from worker.membership import Membership
from worker.models.registry import Registry
from worker.pipeline import Pipeline
from worker.telemetry.health import State
from worker.types import ModelRef

_HELD = {Action.PAUSE: "paused by command", Action.DRAIN: "drained by command"}
_BATCHES_AHEAD = 4


class Host:
    """The worker as its agent sees it; it begins before there is a connection to Kafka."""

    def __init__(self, registry: Registry, state: State) -> None:
        self._registry = registry
        self._state = state
        self._pipeline: Pipeline | None = None
        self._membership: Membership | None = None
        self._bound: Bound | None = None
        self._action: Action | None = None
        self.stopping = False

    def serving(self, pipeline: Pipeline, membership: Membership, bound: Bound) -> None:
        """Take note of what now serves records."""
        self._pipeline, self._membership, self._bound = pipeline, membership, bound
        membership.on_left = lambda: self.hold(self._action)
        membership.on_look = self.applied
        self.hold(self._action)
        self.applied()

    def hold(self, action: Action | None) -> None:
        self._action = action
        if action is None:
            self._state.ready("hold")
        else:
            self._state.unready("hold", _HELD[action])
        if self._membership is not None and self._pipeline is not None:
            self._membership.hold(action)
            if action is not None:
                self._pipeline.pause()
            elif not self._membership.leaving:  # else when it has left, before it joins again
                self._pipeline.resume()

    def applied(self) -> None:
        """Let as much be in flight as keeps the engines that there are now busy.

        Batches change with what is measured: so it is looked at now and then.
        """
        if self._bound is not None:
            self._bound.floor = max(1, _BATCHES_AHEAD * self._registry.capacity_rows)
            self._bound.expected_rate = self._registry.capacity_rate

    def unreachable(self, why: str | None) -> None:
        """Note that the control channel does not answer: serving goes on, ready as before."""
        if why is None:
            self._state.notes.pop("control", None)
        else:
            self._state.notes["control"] = why

    def vitals(self, ack: Ack) -> Ack:
        registry = self._registry
        statuses = registry.describe()
        models = {}
        for name, routes in registry.table.models.items():
            active = routes.serving
            status = statuses.get(ModelRef(name, active)) if active is not None else None
            models[name] = ModelUse(
                active,
                loaded=tuple(ref.version for ref in statuses if ref.name == name),
                pinned=routes.pin.version if routes.pin else None,
                reload=registry.numbers.get(ModelRef(name, active or ""), 0),
                state=status.state if status else None,
            )
        default = models.get(registry.table.default)
        ref = ModelRef(registry.table.default, default.active or "") if default else None
        status = statuses.get(ref) if ref else None
        return ack._replace(
            state=self._word(),
            models=models,
            provider=status.provider if status else None,
            device=status.device if status else None,
            devices={uuid: device.state.value for uuid, device in registry.devices.items()},
            lag=self._membership.lag if self._membership else None,
            in_flight=self._bound.records if self._bound else 0,
        )

    def _word(self) -> str:
        if self.stopping:
            return "stopping"
        if self._membership is None or self._pipeline is None:
            return "starting"
        if self._action is Action.PAUSE:
            return "paused"
        if self._action is Action.DRAIN:
            return "drained" if self._membership.out else "draining"
        return "serving" if self._state.is_ready else "unready"
