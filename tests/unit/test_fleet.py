"""The worker as its agent sees it."""

from types import MappingProxyType
from typing import Any

import pytest

from tests.fakes import FakeRegistry
from worker.control.answers import Ack, Answer
from worker.control.messages import Action
from worker.fleet import Host
from worker.inference.device import Device
from worker.inference.status import Status
from worker.kafka.ledger import Bound
from worker.models.router import Pin, Routes, RoutingTable
from worker.telemetry.health import State
from worker.types import ModelRef

D1, D2 = ModelRef("digits", "1"), ModelRef("digits", "2")
ROUTES = Routes("1", frozenset({"1", "2"}), pin=Pin("1"))
SERVING = Status(
    state="serving", pid=7, sha256="cafe", provider="CPUExecutionProvider", device="cpu-x86_64",
    lanes=2, max_size=16, in_flight=0, restarts=0, convicted=0, reason=None,
)  # fmt: skip
ACK = Ack("f", "w-1", "starting", "e", 1, 1, "d", Answer.ACK)


class Loaded(FakeRegistry):
    numbers = MappingProxyType({D1: 3, D2: 0})
    capacity_rows, capacity_rate = 32, 100.0

    def describe(self) -> dict[Any, Any]:
        return {D1: SERVING, D2: SERVING}


class Gate:
    """A pipeline that is only paused and resumed."""

    open = True

    def pause(self) -> None:
        self.open = False

    def resume(self) -> None:
        self.open = True


class Group:
    """A membership that is only told."""

    lag = 12
    out = leaving = False
    told: Action | None = None

    def on_left(self) -> None:
        """Is set by the host."""

    def on_look(self) -> None:
        """Is set by the host too."""

    def hold(self, action: Action | None) -> None:
        self.told = action


class Bench:
    """A host, and what it tells."""

    def __init__(self) -> None:
        self.registry = Loaded(RoutingTable("digits", {"digits": ROUTES}))
        self.state = State()
        self.state.ready("worker")
        self.gate, self.group = Gate(), Group()
        self.bound = Bound(max_records=4096, max_bytes=1 << 20, max_s=1.0, floor=1)
        registry: Any = self.registry
        self.host = Host(registry, self.state)

    def serve(self) -> None:
        pipeline: Any = self.gate
        membership: Any = self.group
        self.host.serving(pipeline, membership, self.bound)

    def takes_records(self) -> bool:
        return self.gate.open

    def word(self) -> str:
        return self.host.vitals(ACK).state


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_answer_says_what_is_served_and_on_what(bench: Bench) -> None:
    bench.serve()
    ack = bench.host.vitals(ACK)
    use = ack.models["digits"]
    assert (use.active, use.loaded, use.pinned, use.reload, use.state) == (
        "1", ("1", "2"), "1", 3, "serving",
    )  # fmt: skip
    assert (ack.provider, ack.device, ack.lag) == ("CPUExecutionProvider", "cpu-x86_64", 12)


def test_an_answer_says_what_each_gpu_is_good_for(bench: Bench) -> None:
    assert bench.host.vitals(ACK).devices == {}
    bench.registry.devices = {"GPU-1": Device("GPU-1", to_cpu=True)}
    bench.registry.devices["GPU-1"].failed("CUDA failure 700")
    assert bench.host.vitals(ACK).devices == {"GPU-1": "restarting"}


def test_before_there_is_a_connection_to_kafka_it_is_starting(bench: Bench) -> None:
    ack = bench.host.vitals(ACK)
    assert (ack.state, ack.lag, ack.in_flight) == ("starting", None, 0)


def test_what_may_be_in_flight_follows_what_is_loaded(bench: Bench) -> None:
    bench.serve()
    assert bench.bound.floor == 4 * 32
    assert bench.bound.expected_rate == 100.0
    bench.registry.capacity_rows = 64
    bench.group.on_look()
    assert bench.bound.floor == 4 * 64
    bench.registry.capacity_rows = 16
    bench.group.on_look()
    assert bench.bound.floor == 4 * 16, "the CPU serves"


def test_a_hold_that_came_before_the_connection_holds_from_the_first_record_on(
    bench: Bench,
) -> None:
    bench.host.hold(Action.PAUSE)
    bench.serve()
    assert not bench.takes_records()
    assert (bench.word(), bench.state.unready_because) == ("paused", {"hold": "paused by command"})
    bench.host.hold(None)
    assert bench.takes_records()
    assert bench.word() == "serving"


def test_a_drain_keeps_out_of_the_group_and_is_told_step_by_step(bench: Bench) -> None:
    bench.serve()
    bench.host.hold(Action.DRAIN)
    assert (bench.gate.open, bench.group.told, bench.word()) == (False, Action.DRAIN, "draining")
    bench.group.out = True
    assert bench.word() == "drained"


def test_a_resume_in_the_middle_of_a_drain_lets_nothing_in_before_the_group_is_left(
    bench: Bench,
) -> None:
    bench.serve()
    bench.host.hold(Action.DRAIN)
    bench.group.leaving = True
    bench.host.hold(None)
    assert not bench.takes_records()
    bench.group.leaving = False
    bench.group.on_left()
    assert bench.takes_records()


def test_who_is_not_ready_or_about_to_stop_says_so(bench: Bench) -> None:
    bench.serve()
    bench.state.unready("models", "digits/1 is down")
    assert bench.word() == "unready"
    bench.host.stopping = True
    assert bench.word() == "stopping"


def test_a_control_channel_that_does_not_answer_leaves_the_worker_ready(bench: Bench) -> None:
    bench.host.unreachable("no answer in 2 s")
    assert bench.state.is_ready
    assert bench.state.notes == {"control": "no answer in 2 s"}
    bench.host.unreachable(None)
    assert bench.state.notes == {}
