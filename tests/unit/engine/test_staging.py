"""The path of a GPU on a real session of the CPU: pixels, a folded graph, bound runs, own lanes."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as native

from tests.contract.engines import LIMITS, Engine, load
from tests.unit.engine import graphs
from tests.unit.engine.scripted import Device, kinds, types
from tests.unit.engine.test_trouble import ARENA, ILLEGAL
from worker.engine import binding, fold, host, loader, staging
from worker.engine.loader import load_model, loaded
from worker.engine.model import Model
from worker.engine.session import Session, open_session
from worker.errors import DeviceError, ModelError
from worker.protocol.messages import Done, Fault, Load, Loaded, LoadFailed
from worker.protocol.page import RUN_LANES

BRIGHT, DARK = graphs.png(graphs.BRIGHT), graphs.png(graphs.DARK)
MARKED = BRIGHT + b"MARK"


@pytest.fixture
def asked(tmp_path: Path) -> Load:
    return asked_in(tmp_path)


def asked_in(folder: Path, graph: Any = None, **changes: Any) -> Load:
    sha256 = graphs.version(folder / "1", graph)
    return load(folder / "1", sha256, staging="always", artifacts=str(folder / "kept"), **changes)


def scores(model: Model, levels: list[int]) -> Any:
    rows = np.empty((len(levels), *model.row_shape), model.row_dtype)
    for level, row in zip(levels, rows, strict=True):
        model.prepare(np.full((9, 11, 3), level, np.uint8), row)
    return model.run(rows)[0]


def test_a_staged_model_takes_pixels_and_says_what_it_said(asked: Load) -> None:
    staged, plain = load_model(asked), load_model(asked._replace(staging="never"))
    assert (staged.row_shape, staged.row_dtype, staged.row_bytes) == ((8, 8, 1), "uint8", 64)
    assert (plain.row_shape, plain.row_dtype, plain.row_bytes) == ((1, 8, 8), "float32", 256)
    assert (staged.staging, plain.staging) == ("bound, folded", "no")
    assert staged.session.stamp == plain.session.stamp
    levels = [0, 7, 255, 100]
    np.testing.assert_allclose(scores(staged, levels), scores(plain, levels), atol=1e-6)


def test_on_a_cpu_nothing_is_staged_by_itself(asked: Load) -> None:
    model = load_model(asked._replace(staging="auto"))
    assert (model.staging, model.session.bound) == ("no", None)
    assert not Path(asked.artifacts).exists()


@pytest.mark.parametrize("staging_is", ["always", "never"])
def test_it_says_whether_its_runs_are_bound(asked: Load, staging_is: str) -> None:
    model = load_model(asked._replace(staging=staging_is))
    assert loaded(model, LIMITS, load_ms=1.0).bound is (staging_is == "always")


class Turn:
    """Comes after `wait_s` of another run, on a clock that it moves; the run itself takes `run_s`.

    It stands in the place of the lock, and of the clock of all who look at one.
    """

    def __init__(self, wait_s: float, run_s: float) -> None:
        self._now_s = 0.0
        self._wait_s, self._run_s = wait_s, run_s

    def monotonic(self) -> float:
        return self._now_s

    perf_counter = thread_time = monotonic

    def __enter__(self) -> None:
        self._now_s += self._wait_s

    def __exit__(self, *_: object) -> None:
        self._now_s += self._run_s


def test_a_size_that_is_timed_while_lanes_run_costs_its_own_run_alone(
    asked: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, turn = load_model(asked), Turn(wait_s=100.0, run_s=2.0)
    assert model.session.bound is not None
    for module in (loader, binding):
        monkeypatch.setattr(module, "time", turn)
    monkeypatch.setattr(model.session.bound, "_turn", turn)
    assert loader.took_of(model, 2).seconds == 2.0


def test_a_graph_is_folded_once(asked: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model(asked)
    [kept] = Path(asked.artifacts).rglob("folded-*.onnx")
    monkeypatch.setattr(staging, "fold", None)  # whoever calls it now fails
    model = load_model(asked)
    assert model.staging == "bound, folded"
    assert kept.parent.name == model.sha256


def test_a_folded_graph_that_says_otherwise_is_not_used(
    asked: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = fold._line
    monkeypatch.setattr(fold, "_line", lambda values: (line(values)[0] * 1.01, line(values)[1]))
    model = load_model(asked)
    assert model.staging.startswith("bound, not folded: on the CPU output scores differs by 0.0")
    assert model.row_dtype == "float32"
    assert model.session.bound is not None
    assert not list(Path(asked.artifacts).rglob("*.onnx"))
    monkeypatch.undo()
    assert load_model(asked).staging == "bound, folded"


def test_a_kept_graph_that_was_broken_is_thrown_away(asked: Load) -> None:
    load_model(asked)
    [kept] = Path(asked.artifacts).rglob("folded-*.onnx")
    kept.write_bytes(b"broken")
    assert load_model(asked).staging.startswith("bound, not folded: on the CPU")
    assert load_model(asked).staging == "bound, folded"


@pytest.mark.parametrize(
    "error", [MemoryError("of the machine"), native.Fail(ARENA), DeviceError("for a moment")]
)
def test_a_kept_graph_outlives_errors_that_are_not_its_fault(
    asked: Load, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    load_model(asked)
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_compare", raising(error))
        assert load_model(asked).staging.startswith("bound, not folded: on the CPU")
    monkeypatch.setattr(staging, "fold", None)  # whoever calls it now fails
    assert load_model(asked).staging == "bound, folded"


def raising(error: Exception) -> Callable[..., None]:
    def raises(*_: object) -> None:
        raise error

    return raises


class Opened:
    """Opens sessions as ever; those of the device one after the other, until it is `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: Exception | None = None
        self.beside: list[int] = []
        """For each session of the device: those that were there when it was opened."""
        self._there: list[weakref.ref[Any]] = []
        for module in (loader, staging):
            monkeypatch.setattr(module, "open_session", self._open)

    def _open(self, path: Path, **asked: Any) -> Session:
        if "artifacts" not in asked:  # on the CPU, to compare
            return open_session(path, **asked)
        self.beside.append(sum(each() is not None for each in self._there))
        if self.full and path.name.startswith("folded"):
            raise self.full
        session = open_session(path, **asked)
        self._there.append(weakref.ref(session._session))
        return session


def test_a_device_has_one_session_of_a_model_at_a_time(
    asked: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)
    assert load_model(asked).staging == "bound, folded"
    assert opened.beside == [0, 0]


@pytest.mark.parametrize("full", [DeviceError("no memory"), ModelError("no kernel")])
def test_a_folded_graph_that_the_device_does_not_open_leaves_the_one_that_it_does(
    asked: Load, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    opened = Opened(monkeypatch)
    opened.full = full
    model = load_model(asked)
    assert model.staging == f"bound, not folded: {full}"
    assert (model.row_shape, model.row_dtype) == ((1, 8, 8), "float32")
    assert opened.beside == [0, 0, 0]
    assert model.session.bound is not None
    levels = [0, 7, 255]
    plain = load_model(asked._replace(staging="never"))
    np.testing.assert_array_equal(scores(model, levels), scores(plain, levels))
    opened.full = None
    assert load_model(asked).staging == "bound, folded"


def test_where_nothing_can_be_kept_the_graph_stays_as_it_is(asked: Load, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for artifacts in ("", str(tmp_path / "file")):
        model = load_model(asked._replace(artifacts=artifacts))
        assert model.staging.startswith("bound, not folded: ")


def test_a_golden_sample_that_is_no_picture_is_still_told(tmp_path: Path) -> None:
    sha256 = graphs.version(tmp_path / "1", golden=b"no picture")
    asked = load(tmp_path / "1", sha256, staging="always", artifacts=str(tmp_path / "kept"))
    with Engine("thread") as engine:
        answer = engine.load(asked)
    assert isinstance(answer, LoadFailed)
    assert answer.field == "golden[0]"


@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_graphs_of_any_batch_serve_staged(tmp_path: Path, batch: int | str) -> None:
    asked = asked_in(tmp_path, graphs.brightness(batch=batch))
    with Engine("thread", lanes=2 + RUN_LANES) as engine:
        answer = engine.load(asked)
        assert isinstance(answer, Loaded)
        assert answer.signature["staging"] == "bound, folded"
        engine.submit([DARK, BRIGHT] * 10)
        ends = engine.outcomes(20)
        assert engine.bye() == {}
    labels = {n: label(end) for n, (end, _) in ends.items()}
    assert labels == {n: "dark" if n % 2 else "bright" for n in range(1, 21)}


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_each_record_has_one_outcome(kind: str, asked: Load) -> None:
    with Engine(kind, lanes=2 + RUN_LANES) as engine:
        assert isinstance(engine.load(asked), Loaded)
        engine.submit([BRIGHT, b"", DARK, b"<html>", BRIGHT[:50]] * 40, alone=(1, 8))
        engine.submit([DARK] * 30, first=201)
        ends = engine.bye()
        assert engine.ended() in (0, None)
    assert set(ends) == set(range(1, 231))
    for n, (end, message) in ends.items():
        good = n > 200 or n % 5 in (1, 3)
        assert isinstance(end, Done if good else Fault)
        if good:
            assert label(end) == ("bright" if n < 201 and n % 5 == 1 else "dark")
            assert 1 <= message.batch_size <= (1 if n in (1, 8) else LIMITS.max_size)
            assert isinstance(end, Done)
            assert min(end.wait_ms, end.decode_ms, message.run_ms) > 0


def test_what_makes_a_bound_run_fail_is_found_row_by_row(asked: Load) -> None:
    with Engine("thread", lanes=2 + RUN_LANES) as engine:
        engine.load(asked._replace(failpoint="before_run=raise@MARK"))
        engine.submit([BRIGHT, MARKED, BRIGHT, BRIGHT])
        ends = engine.outcomes(4)
    assert [n for n, (end, _) in ends.items() if not isinstance(end, Done)] == [2]


def test_a_page_without_room_for_lanes_that_run_is_refused(asked: Load) -> None:
    with Engine("process", lanes=2) as engine:
        engine.channel.send(asked)
        assert isinstance(engine.channel.receive(), Loaded)
        assert engine.channel.receive() is None
        assert engine.ended() == 70


def label(end: object) -> str:
    assert isinstance(end, Done), end
    said: str = orjson.loads(end.predictions)["light"][0]["label"]
    return said


def test_bound_runs_recover_as_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = LIMITS._replace(min_size=4, max_wait_ms=60_000.0)  # so that the first batch is whole
    kept = str(tmp_path / "kept")
    device = Device(tmp_path / "1", staging="always", artifacts=kept, limits=limits)
    monkeypatch.setattr(host, "load_model", lambda _: device.model)
    assert device.model.staging == "bound, folded"
    too_many = native.Fail(ARENA)
    engine = device.serve(lambda batch: too_many if len(batch) > 1 else None, [BRIGHT] * 8)
    assert types(engine) == [Done] * 8
    assert set(kinds(engine)) == {"oom"}
    assert device.session.sizes.count(1) == 8
    assert engine.end() is None

    lost = device.serve(lambda _: native.Fail(ILLEGAL), [BRIGHT] * 8)
    assert (lost.ends, kinds(lost)[0]) == ({}, "sticky")
    assert isinstance(lost.end(), DeviceError)
