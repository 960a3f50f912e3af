"""The cap of a device that lacked memory: halved, grown again, and none where rows are fixed."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as native

from tests.unit.engine import graphs
from tests.unit.engine.scripted import BRIGHT, Device, kinds, turns, types
from tests.unit.engine.test_trouble import ARENA
from worker.engine import headroom, host
from worker.engine.headroom import Headroom
from worker.engine.providers import CPU, CUDA
from worker.errors import DeviceError
from worker.protocol.messages import Done, Retry

Event = Callable[[Headroom], None]


def lacked(rows: int) -> Event:
    return lambda room: room.lacked(rows)


def hold(rows: int) -> Event:
    return lambda room: room.hold(rows)


def found(rows: int, times: int = 1) -> Event:
    def all_of_them(room: Headroom) -> None:
        for _ in range(times):
            room.found(rows)

    return all_of_them


@pytest.mark.parametrize(
    ("events", "rows"),
    [
        ([], None),
        ([found(64, 1000)], None),
        ([lacked(64)], 32),
        ([lacked(5)], 2),
        ([lacked(1)], 1),
        ([lacked(64), lacked(32)], 16),
        ([lacked(16), lacked(64)], 8),
        ([hold(16)], 16),
        ([hold(16), lacked(16)], 8),
        ([lacked(64), found(32, 63)], 32),
        ([lacked(64), found(32, 64)], 64),
        ([lacked(64), found(17, 64)], 64),
        ([lacked(64), found(16, 1000)], 32),
        ([lacked(64), found(32, 64), found(64, 127)], 64),
        ([lacked(64), found(32, 64), found(64, 128)], 128),
        ([lacked(64), found(32, 63), lacked(32), found(16, 63)], 16),
        ([lacked(64), found(32, 64), lacked(64), found(32, 127)], 32),
        ([lacked(64), found(32, 64), lacked(64), found(32, 128)], 64),
    ],
)
def test_a_cap_is_halved_at_once_and_doubled_when_batches_found_memory_for_long(
    events: Sequence[Event], rows: int | None
) -> None:
    room = Headroom()
    for event in events:
        event(room)
    assert room.rows == rows


def test_a_device_that_never_has_more_is_asked_ever_more_seldom_but_never_given_up() -> None:
    room = Headroom()
    asked = []
    for _ in range(10):
        room.lacked(2)
        batches = 0
        while room.rows == 1:
            room.found(1)
            batches += 1
        asked.append(batches)
    assert asked == [64, 128, 256, 512, 1024, 2048, 4096, 4096, 4096, 4096]


def test_what_lacked_memory_while_the_cap_grew_is_not_forgotten() -> None:
    room = Headroom()
    room.hold(32)
    other = threading.Thread(target=room.lacked, args=(8,))

    class Rows(int):
        def __rmul__(self, times: int) -> int:
            """As it is doubled, another lane finds that there is no memory."""
            if room._found >= headroom._FIRST_BATCHES and not other.ident:
                other.start()
                other.join(0.1)  # it has to wait
            return int(self) * times

    room.rows = Rows(32)
    found(32, headroom._FIRST_BATCHES)(room)
    other.join(10)
    assert room.rows == 4


def test_an_engine_runs_larger_batches_again_when_memory_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path / "1")
    monkeypatch.setattr(host, "load_model", lambda _: device.model)
    monkeypatch.setattr(headroom, "_FIRST_BATCHES", 3)
    engine = device.serve(turns(native.Fail(ARENA)))
    for first in range(4, 100, 4):  # bounds are chosen anew every twenty batches
        engine.run([BRIGHT] * 4, first=first)
    assert engine.end() is None
    assert device.session.sizes[:5] == [4, 2, 2, 2, 2]
    assert device.session.sizes[-1] == 4
    assert (types(engine), kinds(engine)) == ([Done] * 100, ["oom"])


@pytest.mark.parametrize("provider", [CPU, CUDA])
def test_a_graph_of_a_fixed_batch_is_not_run_with_fewer_rows_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    folder = tmp_path / "1"
    device = Device(folder, provider, graph=graphs.brightness(batch=4))
    monkeypatch.setattr(host, "load_model", lambda _: device.model)
    once = device.serve(turns(native.Fail(ARENA)))
    assert once.end() is None
    assert types(once) == [Done] * 4
    assert device.model.headroom.rows is None
    never = device.serve(lambda _: native.Fail(ARENA))
    died = never.end()
    if provider == CPU:
        assert (types(never), died) == ([Retry] * 4, None)
    else:
        assert (never.ends, kinds(never)) == ({}, ["sticky"])
        assert "no memory for 4 rows, as the graph wants them: Fail" in never.troubles[0].message
        assert isinstance(died, DeviceError)
