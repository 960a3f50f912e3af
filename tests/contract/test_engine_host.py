"""One suite for the engine's host, on a thread and as a process of its own.

What only a process can do (die, hang, be orphaned, be measured) is tested on one.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest

from tests.contract.engines import DEADLINE_S, LIMITS, Engine, load
from tests.unit.engine import graphs
from worker.models.footprint import row_bytes
from worker.models.manifest import load_manifest
from worker.protocol.channel import Channel
from worker.protocol.messages import Bye, Done, Fault, Load, Loaded, LoadFailed, Retry, SetLimits
from worker.protocol.page import Phase
from worker.types import Reason

BRIGHT, DARK = graphs.png(graphs.BRIGHT), graphs.png(graphs.DARK)
MARKED = BRIGHT + b"MARK"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("models") / "1"
    return load(folder, graphs.version(folder))


@pytest.fixture(params=["thread", "process"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(request.param) as engine:
        yield engine


@pytest.fixture
def process() -> Iterator[Engine]:
    with Engine("process") as engine:
        yield engine


def test_each_record_gets_exactly_one_outcome(engine: Engine, asked: Load) -> None:
    answer = engine.load(asked)
    assert isinstance(answer, Loaded)
    assert (answer.provider, answer.max_size, answer.row_bytes) == (
        "CPUExecutionProvider",
        4,
        256,
    )
    assert set(answer.service_ms) == {"1", "2", "3", "4"}
    engine.submit([BRIGHT, b"", DARK, b"<html>", BRIGHT[:50]] * 20, alone=(1, 8))
    ends = engine.outcomes(100)
    assert set(ends) == set(range(1, 101))
    for n, (end, message) in ends.items():
        match (n - 1) % 5:
            case 0 | 2:
                assert isinstance(end, Done)
                label = b'"bright"' if (n - 1) % 5 == 0 else b'"dark"'
                assert end.predictions.startswith(b'{"light":[{"label":' + label)
                assert 1 <= message.batch_size <= (1 if n in {1, 8} else 4)
            case bad:
                assert isinstance(end, Fault)
                expected = {1: Reason.IMAGE_EMPTY, 3: Reason.IMAGE_TYPE, 4: Reason.IMAGE_CORRUPT}
                assert end.reason is expected[bad]


def test_thresholds_change_from_the_next_batch_on(engine: Engine, asked: Load) -> None:
    engine.load(asked)
    said: list[int] = []
    for first, thresholds in enumerate(({}, {"light": 0.9}, {"other": 0.9}, {"light": 1.0})):
        engine.channel.send(SetLimits(LIMITS._replace(thresholds=thresholds)))
        engine.submit([BRIGHT], first=first)
        [(end, _)] = engine.outcomes(1).values()
        assert isinstance(end, Done)
        said.append(len(orjson.loads(end.predictions)["light"]))
    assert said == [2, 1, 2, 0]


def test_no_row_is_ever_taken_for_another_one(engine: Engine, asked: Load) -> None:
    engine.load(asked._replace(limits=LIMITS._replace(max_size=7)))
    shades = [graphs.png(value) for value in range(256)]
    for first in range(0, 2048, 256):
        engine.submit(shades, first=first)
    for n, (end, _) in engine.outcomes(2048).items():
        assert isinstance(end, Done)
        scores = {said["label"]: said["score"] for said in orjson.loads(end.predictions)["light"]}
        assert scores["bright"] == pytest.approx(n % 256 / 255, abs=1e-5)


def test_bye_finishes_what_was_submitted_and_then_stops(engine: Engine, asked: Load) -> None:
    engine.load(asked._replace(limits=LIMITS._replace(min_size=4, max_wait_ms=60_000)))
    engine.submit([BRIGHT] * 203)
    assert set(engine.bye()) == set(range(1, 204))
    assert engine.ended() == 0


def test_an_idle_engine_says_stopped_at_once(engine: Engine, asked: Load) -> None:
    engine.load(asked)
    assert engine.bye() == {}
    assert engine.ended() == 0


def test_limits_change_while_it_serves(engine: Engine, asked: Load) -> None:
    engine.load(asked)
    engine.channel.send(SetLimits(LIMITS._replace(max_size=1, image_max_bytes=len(BRIGHT))))
    engine.submit([BRIGHT] * 9 + [MARKED])
    ends = engine.outcomes(10)
    assert {message.batch_size for end, message in ends.values() if isinstance(end, Done)} == {1}
    end, _ = ends[10]
    assert isinstance(end, Fault)
    assert end.reason is Reason.IMAGE_TOO_LARGE


def test_a_larger_size_that_comes_while_it_serves_is_warmed_used_and_told(
    engine: Engine, asked: Load
) -> None:
    engine.load(asked._replace(limits=LIMITS._replace(max_size=2)))
    engine.channel.send(SetLimits(LIMITS._replace(max_size=16)))
    cap, sizes, first = 2, [0], 1
    end_s = time.monotonic() + DEADLINE_S
    while max(sizes) <= 2 and time.monotonic() < end_s:
        engine.submit([BRIGHT] * 64, first=first)
        messages = [message for _, message in engine.outcomes(64).values()]
        cap, sizes, first = messages[-1].cap, [m.batch_size for m in messages], first + 64
    assert cap == 16
    assert 2 < max(sizes) <= 16
    told = [int(size) for message in engine.warmed for size in message.service_ms]
    assert max(told) >= max(sizes), "the watchdog knows what it takes"


def test_without_a_size_it_finds_one_and_tells_it(engine: Engine, asked: Load) -> None:
    limits = LIMITS._replace(max_size=16, adaptive=True)
    answer = engine.load(asked._replace(limits=limits))
    assert isinstance(answer, Loaded)
    assert 1 <= answer.max_size <= 16
    engine.submit([BRIGHT] * 600)
    ends = engine.outcomes(600)
    assert all(isinstance(end, Done) for end, _ in ends.values())
    assert all(1 <= message.batch_size <= 16 for _, message in ends.values())
    assert all(1 <= message.cap <= 16 for _, message in ends.values())


def test_a_model_that_must_not_be_served_is_refused_and_the_engine_ends(
    engine: Engine, asked: Load
) -> None:
    answer = engine.load(asked._replace(manifest_sha256="0" * 64))
    assert isinstance(answer, LoadFailed)
    assert answer.kind == "model"
    assert answer.file is not None
    assert answer.file.endswith("manifest.yaml")
    assert answer.file not in answer.message
    assert engine.channel.receive() is None
    assert engine.ended() == 0


def test_a_session_option_that_there_is_not_is_the_fault_of_the_settings(
    engine: Engine, asked: Load
) -> None:
    answer = engine.load(asked._replace(session={"intra_op_threads": "4"}))
    assert isinstance(answer, LoadFailed)
    assert answer.kind == "settings"
    assert answer.message.startswith("engine.session.intra_op_threads: not an option")


def test_an_engine_whose_worker_has_gone_ends(engine: Engine, asked: Load) -> None:
    engine.load(asked)
    engine.submit([BRIGHT] * 50)
    engine.channel.close()
    assert engine.ended() == 0


def test_a_message_out_of_order_ends_the_engine(process: Engine) -> None:
    process.channel.send(Bye())
    assert process.channel.receive() is None
    assert process.ended() == 70


def test_the_one_whose_run_raises_is_poison_and_its_mates_are_served(
    engine: Engine, asked: Load
) -> None:
    engine.load(asked._replace(failpoint="before_run=raise@MARK", lanes=1))
    engine.submit([BRIGHT, DARK, MARKED, BRIGHT])
    ends = {n: end for n, (end, _) in engine.outcomes(4).items()}
    poison = ends.pop(3)
    assert isinstance(poison, Fault | Retry)
    if isinstance(poison, Fault):
        assert poison.reason is Reason.RECORD_POISON
    assert [type(end) for end in ends.values()] == [Done] * 3


@pytest.mark.parametrize(
    ("point", "phase"), [("after_decode", Phase.DECODE), ("before_run", Phase.RUN)]
)
def test_the_page_of_a_dead_engine_names_the_suspects(
    process: Engine, asked: Load, point: str, phase: Phase
) -> None:
    process.load(asked._replace(failpoint=f"{point}=kill@MARK"))
    process.submit([BRIGHT, MARKED])
    while process.channel.receive() is not None:
        pass
    assert process.ended() == -signal.SIGKILL
    suspects = {n: slot.phase for slot in process.page.read() for n in slot.ids}
    assert suspects[2] is phase


def test_the_page_shows_a_lane_that_hangs_while_the_other_one_serves(
    process: Engine, asked: Load
) -> None:
    process.load(asked._replace(failpoint="after_decode=hang@MARK"))
    began_s = time.monotonic()
    process.submit([MARKED])
    until(lambda: any(slot.ids == (1,) for slot in process.page.read()))
    process.submit([BRIGHT] * 20, first=2)
    assert set(process.outcomes(20)) == set(range(2, 22))
    [hanging] = [slot for slot in process.page.read() if slot.ids == (1,)]
    assert hanging.phase is Phase.DECODE
    assert began_s <= hanging.since_s <= time.monotonic()


def test_an_engine_with_a_hanging_lane_ends_when_its_worker_closes_the_channel(
    process: Engine, asked: Load
) -> None:
    process.load(asked._replace(failpoint="after_decode=hang"))
    process.submit([BRIGHT])
    until(lambda: any(slot.ids for slot in process.page.read()))
    process.channel.close()
    assert process.ended() == 0


def test_the_signals_of_a_terminal_and_of_an_orchestrator_are_the_workers_to_answer(
    process: Engine, asked: Load
) -> None:
    process.load(asked)
    assert process.process is not None
    process.process.send_signal(signal.SIGINT)
    process.process.send_signal(signal.SIGTERM)
    process.submit([BRIGHT])
    assert isinstance(process.outcomes(1)[1][0], Done)


def test_an_engine_that_is_started_by_a_worker_already_dead_ends_at_once() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "worker.engine", "--channel", str(theirs.fileno())]
    command += ["--page", "0", "--lanes", "1", "--max-ids", "1", "--parent", "1"]
    with ours, theirs:
        ended = subprocess.run(command, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_nothing_is_left_of_an_engine_two_seconds_after_its_worker_was_killed(
    asked: Load,
) -> None:
    # The channel stays open in this process: the engine cannot see its end, only the death.
    ours, theirs = socket.socketpair()
    program = (
        "import socket, sys, time\n"
        "from tests.contract.engines import Page, spawn\n"
        "page = Page.make(lanes=2, max_ids=16)\n"
        "engine = spawn(socket.socket(fileno=int(sys.argv[1])), page)\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert worker.stdout is not None
    try:
        engine = psutil.Process(int(worker.stdout.readline()))
        ours.settimeout(DEADLINE_S)
        channel = Channel(ours)
        channel.send(asked)
        assert isinstance(channel.receive(), Loaded)
        worker.kill()
        worker.wait()
        until(lambda: not engine.is_running() or engine.status() == "zombie", 2.0)
    finally:
        worker.kill()
        worker.stdout.close()
        worker.wait()
        ours.close()
        theirs.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_big_pictures_wait_for_memory_instead_of_multiplying_by_the_lanes(
    process: Engine, asked: Load
) -> None:
    side = 4000
    noise = np.random.default_rng(1).integers(0, 255, (side, 8, 3), np.uint8)
    big = graphs.encoded(np.tile(noise, (1, side // 8, 1)))
    one_picture_bytes = 16 * side * side
    process.load(asked._replace(decode_bytes=one_picture_bytes))
    before_bytes = process.peak_bytes()
    process.submit([big] * 3)
    ends = process.outcomes(3)
    assert [type(end) for end, _ in ends.values()] == [Done] * 3
    # What the submitted bytes take is the worker's bound, not the decoder's.
    assert process.peak_bytes() - before_bytes < one_picture_bytes + 4 * len(big)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_the_largest_batches_took_while_warming_is_given_back(
    process: Engine, tmp_path: Path
) -> None:
    row_bytes = 4 * (8 * 256) ** 2
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1", graphs.roomy()))
    assert isinstance(process.load(asked), Loaded)
    assert process.resident_bytes() < process.peak_bytes() - 2 * row_bytes
    process.submit([BRIGHT] * 20)
    assert {type(end) for end, _ in process.outcomes(20).values()} == {Done}


def test_the_worker_reckons_the_bytes_of_a_row_as_the_engine_does(
    engine: Engine, asked: Load
) -> None:
    manifest, _ = load_manifest(Path(asked.folder))
    answer = engine.load(asked)
    assert isinstance(answer, Loaded)
    assert row_bytes(manifest) == answer.row_bytes


def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.005)
