"""When the worker is in its group; the clock is in the test's hand."""

import asyncio
import math
from typing import Any

import pytest

from tests.fakes import FakeBroker, FakeConsumer, FakeRegistry
from tests.unit.inference.jobs import REF
from tests.unit.kafka.delivering import P0, P1, Rig
from worker.control.messages import Action
from worker.errors import BrokerRefused, BrokerUnavailable, DeviceError
from worker.inference.device import Device
from worker.inference.status import Status
from worker.membership import Membership
from worker.models.router import RoutingTable
from worker.telemetry.health import State


class Watched:
    """A membership over fakes, looked at by hand."""

    def __init__(self, *, partitions: int = 1, exit_on_loss: bool = False) -> None:
        self.rig = Rig(partitions=partitions, commit_interval_s=60, floor=100)
        self.registry = FakeRegistry(RoutingTable("digits", {}))
        self.state = State()
        self.state.ready("worker")
        registry: Any = self.registry
        consumer: Any = self.consumer
        self.membership = Membership(
            consumer,
            self.rig.owned,
            registry,
            self.state,
            self.rig.metrics,
            drain_deadline_s=5.0,
            exit_on_loss=exit_on_loss,
        )

    @property
    def broker(self) -> FakeBroker:
        return self.rig.broker

    @property
    def consumer(self) -> FakeConsumer:
        return self.rig.consumer

    async def look(self, *times_s: float) -> None:
        for now_s in times_s:
            await self.membership.look(now_s)

    def lag(self, partition: int) -> float | None:
        return self.rig.metrics.registry.get_sample_value(
            "darkroom_consumer_lag", {"topic": "images", "partition": str(partition)}
        )


async def test_the_group_is_joined_when_the_models_are_ready_and_not_before() -> None:
    watched = Watched()
    watched.registry.ready = False
    await watched.look(10, 20)
    assert watched.consumer.calls == []
    assert watched.state.unready_because.keys() == {"models", "group"}
    watched.registry.ready = True
    await watched.look(30, 31)
    assert watched.consumer.calls == ["join"]
    assert watched.state.is_ready


@pytest.mark.parametrize(("unready_s", "left"), [(59, False), (61, True)])
async def test_the_group_is_left_when_no_model_can_be_served_for_long(
    unready_s: int,
    left: bool,  # noqa: FBT001 - a table
) -> None:
    watched = Watched()
    await watched.look(10)
    watched.registry.ready = False
    await watched.look(11, 11 + unready_s)
    assert ("leave" in watched.consumer.calls) is left
    assert "models" in watched.state.unready_because


async def test_a_drained_worker_finishes_what_it_has_leaves_and_joins_when_it_is_resumed() -> None:
    watched = Watched()
    await watched.look(10)
    watched.membership.hold(Action.PAUSE)
    await watched.look(11)
    assert watched.consumer.calls == ["join"], "a pause is no reason to leave"
    watched.membership.hold(Action.DRAIN)
    left: list[bool] = []
    watched.membership.on_left = lambda: left.append(watched.membership.leaving)
    await watched.look(12)
    assert (watched.consumer.calls, left) == (["join", "leave"], [False])
    assert watched.membership.out
    await watched.look(13)
    assert watched.consumer.calls == ["join", "leave"]
    watched.membership.hold(None)
    await watched.look(14)
    assert watched.consumer.calls == ["join", "leave", "join"]


async def test_the_host_looks_too_before_the_group_is_joined() -> None:
    watched = Watched()
    seen: list[list[str]] = []
    watched.membership.on_look = lambda: seen.append(list(watched.consumer.calls))
    await watched.look(10, 11)
    assert seen == [[], ["join"]]


async def test_the_lag_is_that_of_all_partitions() -> None:
    watched = Watched(partitions=2)
    assert watched.membership.lag is None
    await watched.look(10)
    watched.broker.write(0, b"x", b"x")
    watched.broker.write(1, b"x")
    await watched.look(20)
    assert watched.membership.lag == 3


async def test_what_is_in_flight_is_forgotten_when_the_group_is_left_and_read_again_later() -> None:
    watched = Watched()
    await watched.look(10)
    await watched.rig.fetch(3)
    watched.registry.ready = False
    await watched.look(11, 80)
    assert watched.rig.bound.records == 0
    watched.registry.ready = True
    await watched.look(90)
    assert watched.consumer.calls == ["join", "leave", "join"]
    again = await watched.consumer.poll(max_records=9, timeout_s=0)
    assert [record.position.offset for record in again] == [0, 1, 2]


async def test_an_engine_that_comes_back_in_time_keeps_the_group() -> None:
    watched = Watched()
    await watched.look(10)
    for second in (11, 111, 211):
        watched.registry.ready = False
        await watched.look(second, second + 50)
        watched.registry.ready = True
        await watched.look(second + 55)
    assert watched.consumer.calls == ["join"]


async def test_silent_brokers_are_asked_again_and_refusing_ones_end_the_worker() -> None:
    watched = Watched()
    watched.consumer.join_error = BrokerUnavailable("nobody there")
    await watched.look(10, 11)
    assert watched.consumer.calls == ["join", "join"]
    assert watched.state.unready_because["kafka"] == "nobody there"
    watched.consumer.join_error = BrokerRefused("not you")
    with pytest.raises(BrokerRefused):
        await watched.look(12)
    watched.consumer.join_error = None
    await watched.look(13)
    assert watched.state.is_ready


async def test_health_problems_make_the_worker_dead_and_their_end_makes_it_alive() -> None:
    watched = Watched()
    watched.registry.problems = ("engine 1 is stuck", "engine 2 is stuck")
    await watched.look(10)
    assert watched.state.dead_because == {"engines": "engine 1 is stuck; engine 2 is stuck"}
    watched.registry.problems = ()
    await watched.look(11)
    assert watched.state.dead_because == {}


async def test_a_consumer_that_does_not_move_though_it_could_is_rebuilt() -> None:
    watched = Watched()
    await watched.look(10, 19)
    watched.broker.write(0, b"x")
    await watched.look(24, 40, 60, 79)
    assert "rebuild" not in " ".join(watched.consumer.calls)
    await watched.look(85)
    assert watched.consumer.calls[-1].startswith("rebuild: no progress for 60 s")
    await watched.look(90, 100)
    assert len(watched.consumer.calls) == 2, "the new one is given its time"


@pytest.mark.parametrize("reason", ["it moves", "it is at the end", "the bound is reached"])
async def test_a_consumer_that_has_a_reason_to_stand_still_is_left_alone(reason: str) -> None:
    watched = Watched()
    await watched.look(10)
    if reason != "it is at the end":
        watched.broker.write(0, *[b"x"] * 50)
    if reason == "the bound is reached":
        watched.rig.bound.fetched(1000, 1000, 0.0)
    for second in range(20, 300, 10):
        if reason == "it moves":
            watched.consumer.next[P0] += 1
        await watched.look(second)
    assert watched.consumer.calls == ["join"]


async def test_a_member_that_is_never_given_partitions_is_rebuilt() -> None:
    watched = Watched()
    await watched.look(10)
    watched.consumer.joined = False
    await watched.look(20, 139)
    assert watched.consumer.calls == ["join"]
    assert "group" in watched.state.unready_because
    await watched.look(145)
    assert watched.consumer.calls[-1] == "rebuild: the group gave no partitions for too long"


async def test_a_long_rebalance_is_given_its_time() -> None:
    watched = Watched()
    watched.consumer.rebalance_s = 285.0
    await watched.look(10)
    watched.consumer.joined = False
    await watched.look(20, 400, 800)
    assert watched.consumer.calls == ["join"]


async def test_lag_is_shown_from_what_is_committed_and_only_of_what_is_ours() -> None:
    watched = Watched(partitions=2)
    await watched.look(10)
    watched.broker.write(0, *[b"x"] * 5)
    await watched.look(20)
    assert (watched.lag(0), watched.lag(1)) == (5, 0)
    watched.rig.finish((await watched.rig.fetch(5))[:2])
    await watched.rig.until_published(2)
    await watched.rig.owned.drain(0.01)
    await watched.look(30)
    assert watched.lag(0) == 10 - 2, "fetched is not committed"
    del watched.broker.log[P1]
    watched.consumer.rebalance()
    await watched.look(40)
    assert watched.lag(1) is None
    await watched.rig.owned.revoked(0.0)
    await watched.look(50)
    assert watched.lag(0) is None


async def test_a_failing_look_at_the_brokers_is_said_and_changes_nothing_else() -> None:
    watched = Watched()
    await watched.look(10)

    watched.consumer.ends_error = BrokerUnavailable("no end offsets")
    await watched.look(20)
    assert watched.state.unready_because == {"kafka": "no end offsets"}
    watched.consumer.ends_error = None
    await watched.look(30)
    assert watched.state.is_ready


async def test_it_looks_again_and_again_until_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched()
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("worker.membership.asyncio.sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        await watched.membership.run()
    assert watched.consumer.calls == ["join"]
    assert all(math.isclose(seconds, 1.0) for seconds in pauses)


def status(lost: str | None) -> Status:
    return Status("down", None, None, None, None, 1, 0, 0, 0, 0, None, lost)


async def test_a_worker_that_lost_its_devices_leaves_at_once_and_joins_when_one_is_back() -> None:
    watched = Watched()
    await watched.look(10)
    watched.registry.ready = False
    watched.registry.statuses = {REF: status("GPU-1: CUDA failure 999")}
    await watched.look(11, 12)
    assert watched.consumer.calls == ["join", "leave"]
    watched.registry.ready = True
    watched.registry.statuses = {REF: status(None)}
    await watched.look(13)
    assert watched.consumer.calls == ["join", "leave", "join"]


async def test_where_a_loss_ends_the_worker_it_says_which_device_was_lost() -> None:
    watched = Watched(exit_on_loss=True)
    watched.registry.statuses = {REF: status(None)}
    await watched.look(10)
    watched.registry.statuses = {REF: status("GPU-1: CUDA failure 999")}
    with pytest.raises(DeviceError, match=r"on_gpu_loss is exit: GPU-1: CUDA failure 999") as lost:
        await watched.look(11)
    assert lost.value.exit_code == 4


async def test_a_device_is_shown_by_its_state_and_a_note_says_what_is_amiss() -> None:
    watched = Watched()
    device = Device("GPU-1", to_cpu=True)
    watched.registry.devices = {"GPU-1": device}

    def shown(state: str) -> float | None:
        return watched.rig.metrics.registry.get_sample_value(
            "darkroom_device_state", {"device": "GPU-1", "state": state}
        )

    await watched.look(10)
    assert (shown("gpu_ok"), watched.state.notes) == (1.0, {})
    for _ in range(3):
        device.failed("CUDA failure 700")
    await watched.look(11)
    assert (shown("gpu_ok"), shown("cpu_fallback")) == (None, 1.0)
    assert watched.state.notes == {"devices": "GPU-1 is cpu_fallback, because: CUDA failure 700"}
    assert watched.state.is_ready, "the CPU serves"
    watched.registry.devices = {"GPU-1": Device("GPU-1", to_cpu=True)}
    await watched.look(12, 13)
    assert watched.state.notes == {}
