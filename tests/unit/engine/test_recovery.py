"""Faults of a scripted device, through the real engine host, its channel, queue, rows and lanes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.capi import onnxruntime_pybind11_state as native

from tests.contract.engines import load
from tests.unit.engine import graphs
from tests.unit.engine.scripted import BRIGHT, Act, Device, Scripted, kinds, turns, types
from tests.unit.engine.test_trouble import ARENA, CUBLAS, CUDNN, ILLEGAL, LOST
from worker.engine import host, loader
from worker.engine.host import serve
from worker.engine.model import Array
from worker.engine.providers import CPU, CUDA
from worker.engine.session import open_session
from worker.errors import DeviceError
from worker.protocol.channel import Channel, socket_pair
from worker.protocol.messages import Done, Fault, LoadFailed, Retry
from worker.protocol.page import Page
from worker.types import Reason

MARKED = graphs.png(77)
MARK = 77 / 255


def is_golden(batch: Array) -> bool:
    """A golden sample that is run again is the one batch of a single bright row in these tests."""
    return len(batch) == 1


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Device]:
    root = tmp_path_factory.mktemp("models")
    return {provider: Device(root / provider, provider) for provider in (CPU, CUDA)}


@pytest.fixture
def device(devices: dict[str, Device], monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(host, "load_model", lambda _: devices[CUDA].model)
    return devices[CUDA]


@pytest.fixture
def processor(devices: dict[str, Device], monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(host, "load_model", lambda _: devices[CPU].model)
    return devices[CPU]


@pytest.mark.parametrize(
    ("error", "kind"), [(native.Fail(ILLEGAL), "sticky"), (RuntimeError(LOST), "init")]
)
def test_a_lost_device_ends_the_engine_and_its_rows_are_nobodys_suspects(
    device: Device, error: Exception, kind: str
) -> None:
    engine = device.serve(lambda _: error)
    assert (engine.ends, kinds(engine)) == ({}, [kind])
    assert device.session.sizes == [4]
    died = engine.end()  # it also sees that the page names no row
    assert isinstance(died, DeviceError)
    assert "hostname" not in str(died) + engine.troubles[0].message


def test_a_batch_that_found_no_memory_is_run_in_halves_and_none_is_so_large_again(
    device: Device,
) -> None:
    too_many = native.Fail(ARENA)
    engine = device.serve(lambda batch: too_many if len(batch) > 2 else None)
    assert (types(engine), kinds(engine)) == ([Done] * 4, ["oom"])
    assert device.session.sizes == [4, 2, 2]
    engine.run([BRIGHT] * 4, first=4)
    assert (types(engine), kinds(engine)) == ([Done] * 8, ["oom"])
    assert max(device.session.sizes[3:]) == 2
    assert engine.end() is None


def test_an_odd_batch_is_halved_down_to_single_rows(device: Device) -> None:
    too_many = native.Fail(ARENA)
    engine = device.serve(lambda batch: too_many if len(batch) > 1 else None, [BRIGHT] * 3)
    assert (types(engine), device.session.sizes) == ([Done] * 3, [3, 1, 1, 1])
    assert engine.end() is None


def test_a_device_without_memory_for_one_row_is_tried_once_more_and_given_up(
    device: Device,
) -> None:
    engine = device.serve(lambda _: native.Fail(ARENA), [BRIGHT])
    assert (engine.ends, kinds(engine), device.session.sizes) == ({}, ["sticky"], [1, 1])
    assert engine.troubles[0].message.startswith("no memory for one row: Fail: ")
    assert isinstance(engine.end(), DeviceError)
    passing = device.serve(turns(native.Fail(ARENA)), [BRIGHT])
    assert (types(passing), kinds(passing)) == ([Done], ["oom"])
    assert passing.end() is None


def test_a_library_that_failed_once_is_believed_after_the_golden_sample(device: Device) -> None:
    engine = device.serve(turns(native.Fail(CUBLAS)))
    assert (types(engine), kinds(engine)) == ([Done] * 4, ["suspect"])
    assert device.session.sizes == [4, 1, 4]
    assert engine.end() is None


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda _: native.Fail(CUDNN), "sticky"),
        (lambda batch: None if is_golden(batch) else native.Fail(CUDNN), "suspect"),
        (turns(native.Fail(CUDNN), 0.1), "sticky"),
        (turns(native.Fail("nobody has recorded this"), native.Fail("nor this")), "sticky"),
        (turns(native.Fail("nobody has recorded this"), 0.1), "sticky"),
        (turns(float("nan"), float("nan")), "sticky"),
        (turns(float("nan"), native.Fail("nobody has recorded this")), "sticky"),
        (turns(native.Fail("unheard of"), None, None, native.Fail(ILLEGAL)), "sticky"),
    ],
)
def test_a_device_that_cannot_be_trusted_ends_its_engine(
    device: Device, act: Act, kind: str
) -> None:
    engine = device.serve(act)
    assert (engine.ends, kinds(engine)) == ({}, [kind])
    assert isinstance(engine.end(), DeviceError)


def test_a_batch_of_nan_that_has_numbers_when_run_again_is_served(device: Device) -> None:
    engine = device.serve(turns(float("nan")))
    assert (types(engine), kinds(engine)) == ([Done] * 4, ["suspect"])
    assert device.session.sizes == [4, 1, 4]
    assert engine.end() is None


def test_rows_that_give_nan_whenever_they_run_fail_and_the_device_is_not_suspected(
    device: Device,
) -> None:
    def act(batch: Array) -> float | None:
        return float("nan") if np.allclose(batch, MARK, atol=1e-3) else None

    engine = device.serve(act, (MARKED,) * 4)
    assert (types(engine), kinds(engine)) == ([Fault] * 4, [])
    assert {end.reason for end in engine.ends.values() if isinstance(end, Fault)} == {
        Reason.RESULT_NOT_FINITE
    }
    assert engine.end() is None


def test_a_size_of_batch_that_gives_nan_for_golden_samples_too_is_the_device_s_fault(
    device: Device,
) -> None:
    engine = device.serve(lambda batch: None if len(batch) == 1 else float("nan"))
    assert (engine.ends, kinds(engine)) == ({}, ["sticky"])
    assert isinstance(engine.end(), DeviceError)


@pytest.mark.parametrize("text", ["indices element out of data bounds", "unheard of"])
@pytest.mark.parametrize("which", ["device", "processor"])
def test_a_record_that_no_run_can_take_is_poison_on_any_device(
    which: str, text: str, request: pytest.FixtureRequest
) -> None:
    played: Device = request.getfixturevalue(which)
    error = native.InvalidArgument(text) if "bounds" in text else native.Fail(text)

    def marked(batch: Array) -> Exception | None:
        return error if np.isclose(batch.mean((1, 2, 3)), MARK).any() else None

    engine = played.serve(marked, [BRIGHT, MARKED, BRIGHT, BRIGHT])
    assert (types(engine), kinds(engine)) == ([Done, Fault, Done, Done], [])
    assert engine.end() is None


def test_memory_that_the_cpu_lacks_for_one_row_is_judged_by_the_worker(processor: Device) -> None:
    engine = processor.serve(lambda _: MemoryError(), [BRIGHT])
    assert (types(engine), kinds(engine)) == ([Retry], [])
    assert engine.end() is None


FAULTS = st.sampled_from(
    [
        native.Fail(ILLEGAL),
        native.Fail(ARENA),
        RuntimeError(LOST),
        native.Fail(CUBLAS),
        native.EPFail("TensorRT EP execution context enqueue failed."),
        native.NotImplemented("Could not find an implementation"),
        MemoryError(),
    ]
)


@given(acts=st.lists(st.one_of(st.none(), FAULTS), max_size=8), count=st.integers(1, 6))
def test_no_fault_of_a_device_or_a_model_ever_makes_a_dead_letter(
    devices: dict[str, Device], acts: list[Exception | None], count: int
) -> None:
    played = devices[CUDA]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "load_model", lambda _: played.model)
        engine = played.serve(turns(*acts), [BRIGHT] * count)
        died = engine.end()
    assert died is None or isinstance(died, DeviceError)
    assert Fault not in types(engine)
    assert died is not None or len(engine.ends) == count
    assert (died is None) or kinds(engine)


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], LoadFailed]:
    """Load on a scripted device; return the refusal."""

    def load_with(act: Act) -> LoadFailed:
        def scripted(*args: Any, **kwargs: Any) -> Any:
            session = Scripted(open_session(*args, **kwargs), CUDA)
            session.act = act
            return session

        monkeypatch.setattr(loader, "open_session", scripted)
        page, (ours, theirs) = Page.make(lanes=1, max_ids=4), socket_pair()
        folder = tmp_path / "1"
        Channel(ours).send(load(folder, graphs.version(folder), staging="never"))
        serve(theirs, page)
        answer = Channel(ours).receive()
        ours.close()
        page.close()
        assert isinstance(answer, LoadFailed)
        return answer

    return load_with


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda _: native.Fail(ILLEGAL), "device"),
        (lambda _: native.Fail(ARENA), "device"),
        (lambda _: native.Fail(CUDNN), "device"),
        (lambda _: native.Fail("nobody has recorded this"), "model"),
        (lambda _: float("nan"), "model"),
    ],
)
def test_a_fault_of_the_device_while_loading_refuses_no_version(
    refusing: Callable[[Act], LoadFailed], act: Act, kind: str
) -> None:
    answer = refusing(act)
    assert answer.kind == kind
    assert "hostname" not in answer.message


def test_what_has_memory_for_small_batches_only_is_loaded_for_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(*args: Any, **kwargs: Any) -> Any:
        session = Scripted(open_session(*args, **kwargs), CUDA)
        session.act = lambda batch: native.Fail(ARENA) if len(batch) > 2 else None
        return session

    monkeypatch.setattr(loader, "open_session", scripted)
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1"), staging="never")
    model = loader.load_model(asked)
    assert (model.headroom.rows, model.cap(asked.limits)) == (2, 2)
