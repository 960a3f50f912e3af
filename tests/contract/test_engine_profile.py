"""An engine is profiled while it serves, on a thread and as a process of its own."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.engines import DEADLINE_S, Engine, load
from tests.unit.engine import graphs
from tests.unit.engine.scripted import Device
from worker.engine import host
from worker.engine.devices import cuda_problem
from worker.engine.providers import CUDA
from worker.profiling.recording import Recording
from worker.protocol.messages import Load, Outcomes, Profiled, StartProfile

BRIGHT = graphs.png(graphs.BRIGHT)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("models") / "1"
    return load(folder, graphs.version(folder))


@pytest.fixture(params=["thread", "process"])
def engine(request: pytest.FixtureRequest, asked: Load) -> Iterator[Engine]:
    with Engine(request.param) as engine:
        engine.load(asked)
        yield engine


@pytest.fixture
def threaded(asked: Load) -> Iterator[Engine]:
    with Engine("thread") as engine:
        engine.load(asked)
        yield engine


def profiled(engine: Engine, *, served: int = 0) -> Profiled:
    """Wait for the answer; so many outcomes come before it."""
    ends = 0
    end_s = time.monotonic() + DEADLINE_S
    while not isinstance(message := engine.channel.receive(), Profiled):
        assert isinstance(message, Outcomes)
        assert time.monotonic() < end_s
        ends += len(message.done)
    assert ends == served
    return message


def test_a_profile_has_what_the_lanes_did_and_all_records_are_served(
    engine: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "1.json"
    engine.channel.send(StartProfile(0.5, "engine m/1", str(file), kernels=True))
    engine.submit([BRIGHT] * 40)
    assert profiled(engine, served=40) == Profiled(None)
    found = Recording.read(file)
    assert (found.process, found.notes) == ("engine m/1", [])
    assert [lane.name for lane in found.lanes] == ["lane-0", "lane-1"]
    assert sum(lane.rows for lane in found.lanes) == 40
    for lane in found.lanes:
        assert sum(lane.totals_s.values()) == pytest.approx(found.seconds, rel=0.2)
    assert {"lane-0", "lane-1"} <= set(found.samples.threads.values())
    assert found.kernels is not None
    assert (found.kernels.runs, found.kernels.rows) == (20, 4)
    runs = [event for event in found.kernels.events if event["name"] == "model_run"]
    assert len(runs) == 20
    first_s = found.kernels.zero_s + runs[0]["ts"] / 1e6
    assert found.ended_s <= first_s < time.monotonic()
    assert [each.name for each in tmp_path.iterdir()] == ["1.json"]

    engine.submit([BRIGHT], first=41)
    assert set(engine.outcomes(1)) == {41}


def test_the_model_is_not_opened_again_where_that_was_not_asked(
    threaded: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "1.json"
    threaded.channel.send(StartProfile(0.05, "engine", str(file), kernels=False))
    assert profiled(threaded) == Profiled(None)
    assert Recording.read(file).kernels is None


def test_a_second_profile_is_refused_while_one_is_taken_and_not_afterwards(
    threaded: Engine, tmp_path: Path
) -> None:
    asks = [
        StartProfile(seconds, "engine", str(tmp_path / f"{seconds}.json"), kernels=False)
        for seconds in (0.5, 0.1)
    ]
    for ask in asks:
        threaded.channel.send(ask)
    assert profiled(threaded) == Profiled("a profile of this engine is being taken already")
    assert profiled(threaded) == Profiled(None)
    threaded.channel.send(asks[1])
    assert profiled(threaded) == Profiled(None)


def test_what_cannot_be_written_is_told_and_the_engine_serves_on(
    threaded: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "absent" / "1.json"
    threaded.channel.send(StartProfile(0.05, "engine", str(file), kernels=False))
    said = profiled(threaded)
    assert said.problem is not None
    assert "absent" in said.problem
    threaded.submit([BRIGHT])
    assert set(threaded.outcomes(1)) == {1}


def test_a_model_that_cannot_be_opened_again_costs_onnx_runtimes_profile_alone(
    tmp_path: Path,
) -> None:
    folder, file = tmp_path / "model", tmp_path / "1.json"
    with Engine("thread") as engine:
        engine.load(load(folder, graphs.version(folder)))
        (folder / "model.onnx").unlink()
        engine.channel.send(StartProfile(0.05, "engine", str(file), kernels=True))
        assert profiled(engine) == Profiled(None)
    found = Recording.read(file)
    assert found.kernels is None
    (note,) = found.notes
    assert "ONNX Runtime's own profile could not be taken" in note


@pytest.mark.skipif(cuda_problem() is None, reason="CUDA is there, and would be profiled")
def test_another_provider_than_the_one_that_serves_is_not_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, file = Device(tmp_path / "model", CUDA), tmp_path / "1.json"
    monkeypatch.setattr(host, "load_model", lambda _: device.model)
    with Engine("thread") as engine:
        engine.load(device.asked._replace(policy="prefer-gpu"))
        engine.channel.send(StartProfile(0.05, "engine", str(file), kernels=True))
        assert profiled(engine) == Profiled(None)
    found = Recording.read(file)
    assert found.kernels is None
    (note,) = found.notes
    assert "engine.policy is require-cuda, but" in note


def test_an_engine_that_is_profiled_stops_at_once_when_it_is_told(
    engine: Engine, tmp_path: Path
) -> None:
    engine.channel.send(StartProfile(300.0, "engine", str(tmp_path / "1.json"), kernels=True))
    engine.submit([BRIGHT] * 3)
    assert set(engine.bye()) == {1, 2, 3}
    assert engine.ended() == 0
