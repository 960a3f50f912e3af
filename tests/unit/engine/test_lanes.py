"""Lanes over a real tiny model, on this thread: a closed queue makes them stop when all is done."""

import threading
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.engines import DEADLINE_S, LIMITS, load
from tests.unit.engine import graphs
from worker.engine import lanes
from worker.engine.batcher import Bounds, Role
from worker.engine.lanes import Floor, Lane
from worker.engine.loader import load_model, sizing_of
from worker.engine.model import Array, Model
from worker.engine.queue import Queue, Work
from worker.engine.reserve import Reserve
from worker.engine.rows import Rows
from worker.profiling.stages import Stage, Stages
from worker.protocol.failpoints import Failpoints
from worker.protocol.messages import Done, Fault, Outcomes, Retry, Trouble
from worker.protocol.page import Page, Phase
from worker.types import Reason
from worker.vision.decode import decode
from worker.vision.sniff import Header, check

BRIGHT = graphs.png(graphs.BRIGHT)
MARKED = BRIGHT + b"MARK"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / "1"
    return load_model(load(folder, graphs.version(folder)))


class Lab:
    """One lane with all that it needs; `sent` has its messages, `pages` what the page said then."""

    def __init__(self, model: Model, *, failpoint: str | None = None, cap: int = 4) -> None:
        self.sent: list[Outcomes] = []
        self.troubles: list[Trouble] = []
        self.page = Page.make(lanes=2, max_ids=16)
        self.pages: list[Phase] = []
        self.queue = Queue(Bounds(cap, 1, 60.0))
        self.floor = Floor(
            model=model,
            queue=self.queue,
            sizing=sizing_of(model, LIMITS),
            rows=Rows(model.row_shape, model.row_dtype, cap=cap),
            reserve=Reserve(1 << 24),
            page=self.page,
            limits=LIMITS,
            send=self._send,
            trouble=self.troubles.append,
            failpoints=Failpoints(failpoint),
        )

    def serve(self, images: Sequence[bytes], *, alone: Sequence[int] = ()) -> None:
        now_s = time.monotonic()
        self.queue.add(
            [Work(n, image, n in alone, len(image), now_s) for n, image in enumerate(images)]
        )
        self.queue.close()
        Lane(0, self.floor).work()
        self.page.close()

    def ends(self) -> dict[int, Done | Fault | Retry]:
        ends: list[Done | Fault | Retry] = []
        for sent in self.sent:
            ends += [*sent.done, *sent.faults, *sent.retries]
        assert len({end.id for end in ends}) == len(ends)
        return {end.id: end for end in ends}

    def _send(self, outcomes: Outcomes) -> None:
        self.sent.append(outcomes)
        self.pages.append(self.page.read()[0].phase)


def gone(_: Outcomes) -> None:
    raise BrokenPipeError


def test_every_record_has_one_outcome_and_bad_pictures_leave_no_hole(model: Model) -> None:
    lab = Lab(model)
    lab.serve([BRIGHT, b"", BRIGHT, b"text", BRIGHT, graphs.png(0), BRIGHT[:60]])
    ends = lab.ends()
    assert {n for n, end in ends.items() if isinstance(end, Done)} == {0, 2, 4, 5}
    reasons = {n: end.reason for n, end in ends.items() if isinstance(end, Fault)}
    assert reasons == {
        1: Reason.IMAGE_EMPTY,
        3: Reason.IMAGE_TYPE,
        6: Reason.IMAGE_CORRUPT,
    }
    assert [sent.batch_size for sent in lab.sent if sent.batch_size] == [4]


def test_a_lane_is_idle_whenever_it_sends(model: Model) -> None:
    lab = Lab(model, failpoint="before_run=raise@MARK")
    lab.serve([BRIGHT, b"text", MARKED, BRIGHT])
    assert len(lab.pages) >= 3
    assert set(lab.pages) == {Phase.IDLE}


@pytest.mark.parametrize(
    ("breaks", "images"), [(Role.DECODE, [b""]), (Role.RUN, [BRIGHT] * 9)], ids=str
)
def test_a_lane_that_breaks_leaves_no_other_waiting_for_what_it_held(
    model: Model, breaks: Role, images: list[bytes]
) -> None:
    lab = Lab(model, cap=1)
    lab.floor.send = gone
    roles = (Role.DECODE, Role.RUN)
    broke: list[Role] = []

    def work(number: int, role: Role) -> None:
        try:
            Lane(number, lab.floor, role=role).work()
        except BrokenPipeError:
            broke.append(role)

    lanes = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(roles)]
    for lane in lanes:
        lane.start()
    lab.queue.add([Work(n, image, False, 1 << 20, 0.0) for n, image in enumerate(images)])
    for lane in lanes:
        lane.join(DEADLINE_S)
    assert not any(lane.is_alive() for lane in lanes)
    assert broke == [breaks]
    lab.page.close()


def test_a_suspect_runs_in_a_batch_of_one(model: Model) -> None:
    lab = Lab(model)
    lab.serve([BRIGHT] * 5, alone=(1, 3))
    sizes = {sent.done[0].id: sent.batch_size for sent in lab.sent if len(sent.done) == 1}
    assert sizes == {1: 1, 3: 1}
    assert len(lab.ends()) == 5


def test_a_record_that_fails_alone_while_others_pass_is_poison(model: Model) -> None:
    lab = Lab(model, failpoint="before_run=raise@MARK")
    lab.serve([BRIGHT, MARKED, BRIGHT, BRIGHT])
    ends = lab.ends()
    poison = ends.pop(1)
    assert isinstance(poison, Fault)
    assert poison.reason is Reason.RECORD_POISON
    assert all(isinstance(end, Done) for end in ends.values())


def test_a_device_that_is_lost_in_the_middle_of_a_batch_makes_nobody_guilty(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = Model.run

    def lost(self: Model, batch: Array) -> list[Array]:
        calls.append(len(batch))
        if len(calls) in {2, 3}:  # the golden sample, and the first row alone
            return run(self, batch)
        raise RuntimeError("a device that nobody has heard of went away")

    monkeypatch.setattr(Model, "run", lost)
    lab = Lab(model)
    lab.serve([BRIGHT] * 4)
    assert calls == [4, 1, 1, 1, 1, 1, 1]
    assert [type(lab.ends()[n]) for n in range(4)] == [Done, Retry, Retry, Retry]


@pytest.mark.parametrize("images", [[BRIGHT], [BRIGHT, BRIGHT, BRIGHT]])
def test_when_every_run_fails_nobody_is_guilty(model: Model, images: list[bytes]) -> None:
    lab = Lab(model, failpoint="after_run=raise")
    lab.serve(images)
    assert [type(end) for end in lab.ends().values()] == [Retry] * len(images)


def test_a_batch_that_failed_once_is_served_row_by_row(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = Model.run

    def cramped(self: Model, batch: Array) -> list[Array]:
        calls.append(len(batch))
        if len(batch) > 1:
            raise MemoryError("no room for so many")
        return run(self, batch)

    monkeypatch.setattr(Model, "run", cramped)
    lab = Lab(model)
    lab.serve([BRIGHT] * 3)
    assert calls == [3, 1, 1, 1]
    assert [type(end) for end in lab.ends().values()] == [Done] * 3


def test_a_decode_that_raises_what_nobody_expected_is_not_the_records_fault(model: Model) -> None:
    def broken(image: Array, row: Array) -> None:
        if image.mean() < 100:
            raise MemoryError("of the machine")
        model.prepare(image, row)

    lab = Lab(replace(model, prepare=broken))
    lab.serve([BRIGHT, graphs.png(0), BRIGHT])
    ends = lab.ends()
    assert [type(ends[n]) for n in range(3)] == [Done, Retry, Done]


def test_a_big_picture_gives_the_tiny_ones_behind_it_back_before_it_is_decoded(
    model: Model,
) -> None:
    big = graphs.png(0, width=300, height=300)
    assert len(big) < 2000
    order: list[int] = []

    def noting(image: Array, row: Array) -> None:
        order.append(len(lab.queue._batcher))
        model.prepare(image, row)

    lab = Lab(replace(model, prepare=noting))
    lab.serve([big, BRIGHT, BRIGHT])
    assert order == [2, 1, 1]  # then the tiny ones together, and the big one's row waits
    assert len(lab.ends()) == 3


def test_what_is_done_does_not_wait_for_a_big_picture_in_its_group(model: Model) -> None:
    big = graphs.png(0, width=300, height=300)
    waited: list[tuple[int, int]] = []

    def noting(image: Array, row: Array) -> None:
        if len(image) == 300:
            waited.append((len(lab.queue._batcher._rows), len(lab.sent)))
        model.prepare(image, row)

    lab = Lab(replace(model, prepare=noting))
    lab.serve([BRIGHT, b"text", big, BRIGHT])
    assert waited == [(1, 1)]
    assert len(lab.ends()) == 4


def test_the_page_names_the_one_picture_of_a_group_that_is_worked_on(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[tuple[str, tuple[int, ...], bool]] = []

    def note(what: str) -> None:
        progress = lab.page.read()[0]
        assert progress.phase is Phase.DECODE
        named.append((what, progress.ids, lab.floor.turn.locked()))

    def opening(data: bytes, header: Header, *, keep_gray: bool) -> Array:
        note("open")
        return decode(data, header, keep_gray=keep_gray)

    def preparing(image: Array, row: Array) -> None:
        note("write")
        model.prepare(image, row)

    monkeypatch.setattr(lanes, "decode", opening)
    lab = Lab(replace(model, prepare=preparing))
    lab.serve([BRIGHT, BRIGHT[:-20], BRIGHT])
    opened = [("open", (0,), True), ("open", (2,), True)]
    assert named == [*opened, ("write", (0,), True), ("write", (2,), True)]
    named.clear()
    lab = Lab(replace(model, prepare=preparing))
    lab.serve([BRIGHT])
    assert named == [("open", (0,), False), ("write", (0,), False)]


def test_a_group_takes_no_more_memory_than_there_is(model: Model) -> None:
    lab = Lab(model)
    lab.floor.reserve = Reserve(check(BRIGHT, max_bytes=9999, max_pixels=9999).decode_bytes)
    lab.serve([BRIGHT] * 3)
    assert [type(end) for end in lab.ends().values()] == [Done] * 3


def test_pictures_that_cannot_be_afforded_are_told_the_bound(model: Model) -> None:
    lab = Lab(model)
    lab.floor.reserve = Reserve(1000)
    lab.serve([BRIGHT])
    end = lab.ends()[0]
    assert isinstance(end, Fault)
    assert end.reason is Reason.IMAGE_TOO_MANY_PIXELS


def test_times_of_a_record_are_all_there(model: Model) -> None:
    lab = Lab(model)
    lab.serve([graphs.png(7, width=9, height=5)])
    end = lab.ends()[0]
    assert isinstance(end, Done)
    assert (end.width_px, end.height_px) == (9, 5)
    assert min(end.wait_ms, end.decode_ms, end.preprocess_ms) > 0
    assert lab.sent[0].run_ms > 0


def test_a_row_that_is_not_a_number_fails_and_its_batch_mates_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "1"
    document = graphs.manifest()
    document["golden"][0]["expect"]["score"] = 0.985
    model = load_model(load(folder, graphs.version(folder, graphs.fading(), document=document)))
    lab = Lab(model)
    lab.serve([BRIGHT, graphs.png(0), BRIGHT])
    ends = lab.ends()
    assert isinstance(ends[0], Done)
    assert isinstance(ends[2], Done)
    assert isinstance(ends[1], Fault)
    assert ends[1].reason is Reason.RESULT_NOT_FINITE


def test_a_lane_tells_every_stage_of_its_work_in_order_and_with_its_rows(model: Model) -> None:
    lab = Lab(replace(model, session=copy(model.session)))
    stages = Stages({threading.get_ident(): ("lane-0", Stage.WAITING)})
    lab.floor.stages = lab.floor.model.session.stages = stages
    lab.serve([BRIGHT, b"text", BRIGHT])
    (track,) = stages.close()
    told = [(span.stage, span.rows) for span in track.spans]
    assert told == [
        (Stage.WAITING, 0),
        (Stage.DECODE, 0),
        (Stage.WAITING, 0),
        (Stage.DECODE, 2),
        (Stage.PREPROCESS, 2),
        (Stage.WAITING, 0),
        (Stage.COPY_IN, 2),
        (Stage.KERNELS, 0),
        (Stage.COPY_OUT, 0),
        (Stage.HEADS, 2),
        (Stage.SEND, 0),
        (Stage.WAITING, 0),
    ]
