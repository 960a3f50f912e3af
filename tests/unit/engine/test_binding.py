"""Bound runs of a real session on the CPU: the code that a GPU runs, over CPU memory."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.unit.engine import graphs
from worker.engine import binding
from worker.engine.binding import Bound
from worker.engine.providers import CPU
from worker.engine.session import RUN_ERRORS, Session, open_session
from worker.profiling.stages import Stage, Stages


@pytest.fixture
def session(tmp_path: Path) -> Session:
    graph = graphs.model(
        [
            helper.make_node("Add", ["rows", "one"], ["more"]),
            helper.make_node("Neg", ["rows"], ["less"]),
        ],
        inputs=[("rows", TensorProto.FLOAT, ["N", 2])],
        outputs=[("more", TensorProto.FLOAT, ["N", 2]), ("less", TensorProto.FLOAT, ["N", 2])],
        constants={"one": np.ones((), np.float32)},
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    opened = open_session(path, policy="cpu", options={})
    opened.bind()
    return opened


def test_outputs_come_in_the_order_asked_for_and_any_number_of_rows_is_run(
    session: Session,
) -> None:
    assert session.bound is not None
    slab = session.bound.allocate((4, 2), "float32")
    for rows in (4, 1, 3):
        slab[:rows] = rows
        less, more = session.run(("less", "more"), {"rows": slab[:rows]})
        assert less.tolist() == [[-rows, -rows]] * rows
        assert more.tolist() == [[rows + 1, rows + 1]] * rows
        slab[:] = 99  # what came out does not change with it
        assert less[0, 0] == -rows


def test_what_is_allocated_is_memory_of_onnx_runtime_that_outlives_its_value(
    session: Session,
) -> None:
    assert session.bound is not None
    slabs = [session.bound.allocate((64, 224, 224, 3), np.uint8) for _ in range(3)]
    for at, slab in enumerate(slabs):
        slab[...] = at
    assert [int(slab.min()) for slab in slabs] == [int(slab.max()) for slab in slabs] == [0, 1, 2]
    assert not slabs[0].flags.owndata
    assert slabs[0].flags.c_contiguous
    assert not session.bound.pinned


def test_memory_that_cannot_be_pinned_is_plain_memory(session: Session) -> None:
    assert session.bound is not None
    session.bound._memory = object()
    assert session.bound.allocate((2, 2), np.uint8).flags.owndata
    assert not session.bound.pinned


@pytest.mark.filterwarnings("ignore")
def test_where_there_is_no_gpu_nothing_is_pinned() -> None:
    assert binding._pinned() is None


def test_rows_of_a_wrong_shape_raise_as_any_run_does(session: Session) -> None:
    with pytest.raises(RUN_ERRORS):
        session.run(("less",), {"rows": np.zeros((1, 3), np.float32)})


class Failing:
    """Stands where ONNX Runtime's session does; its runs raise, and what was bound is kept."""

    def __init__(self, session: Any) -> None:
        self.io_binding = session.io_binding
        self.bound: Any = None

    def run_with_iobinding(self, bound: Any) -> None:
        self.bound = bound
        raise RuntimeError("the device went away")


def test_a_run_that_raised_has_let_go_of_its_rows(session: Session) -> None:
    failing = Failing(session._session)
    with pytest.raises(RuntimeError, match="went away"):
        Bound(failing, CPU).run(("less",), {"rows": np.ones((1, 2), np.float32)})
    failing.bound.bind_output("less", "cpu")
    with pytest.raises(RUN_ERRORS):  # were they still bound it would run
        session._session.run_with_iobinding(failing.bound)


class OneAtATime:
    """Stands where ONNX Runtime's session does, and holds each run until it is let go."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.io_binding = session.io_binding
        self.running = 0
        self.most = 0
        self.began = threading.Event()
        self.go = threading.Event()

    def run_with_iobinding(self, bound: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.began.set()
        assert self.go.wait(10)
        self._session.run_with_iobinding(bound)
        self.running -= 1


class Asked(Stages):
    """Counts those that have asked for their turn."""

    def __init__(self) -> None:
        super().__init__({})
        self.turns = threading.Semaphore(0)

    def enter(self, stage: Stage, rows: int = 0) -> None:
        assert rows == 0
        if stage is Stage.WAITING:
            self.turns.release()


def test_one_batch_runs_at_a_time_and_who_waited_knows_how_long(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, asked, now_s = OneAtATime(session._session), Asked(), [100.0]
    monkeypatch.setattr(binding, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    bound = Bound(held, CPU)

    def run(value: int) -> tuple[float, float]:
        [less] = bound.run(("less",), {"rows": np.full((1, 2), value, np.float32)}, asked)
        return float(less[0, 0]), bound.waited_s

    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(run, value) for value in range(3)]
        assert all(asked.turns.acquire(timeout=10) for _ in runs)
        assert held.began.wait(10)
        now_s[0] += 5
        held.go.set()
        ended = [each.result(10) for each in runs]
    assert [value for value, _ in ended] == [0, -1, -2]
    assert sorted(waited_s for _, waited_s in ended) == [0, 5, 5]
    assert held.most == 1
    assert bound.waited_s == 0  # of this thread, which ran nothing
