"""A lane: a thread that decodes a record into its row, or runs a batch, as the batcher says.

It must not know the channel's bytes, how a model is loaded, or whose fault a run is that raises.
While a lane sends, it is idle: a slow worker is no hang.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from worker.engine.batcher import Decode, Decoded, Role, Stop
from worker.engine.costs import Took
from worker.engine.model import Model
from worker.engine.queue import Queue, Work
from worker.engine.recovery import Recovery, not_finite, outcomes_of
from worker.engine.reserve import Reserve
from worker.engine.rows import Place, Rows
from worker.engine.sizing import Sizing
from worker.errors import RecordFault
from worker.profiling.stages import Stage, Stages
from worker.protocol.failpoints import Failpoint, Failpoints
from worker.protocol.messages import Done, Fault, Outcomes, Retry, Trouble
from worker.protocol.page import Page, Phase
from worker.types import Limits
from worker.vision.decode import decode
from worker.vision.sniff import Header, check

Array = NDArray[Any]

_GROUP_BYTES = 1 << 20
"""What decoding a group needs at most; a larger picture is decoded by itself."""


@dataclass(slots=True)
class Floor:
    """What the lanes of one engine share."""

    model: Model
    queue: Queue
    sizing: Sizing
    rows: Rows
    reserve: Reserve
    page: Page
    limits: Limits
    """Replaced whole while lanes run."""
    send: Callable[[Outcomes], None]
    trouble: Callable[[Trouble], None]
    """Tells the worker, and lets the queue and the rows follow the model's cap."""
    failpoints: Failpoints
    stages: Stages | None = None
    """Told what the lane that calls does from now on; there while a profile is taken."""
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held while a group is decoded: two lanes that take the interpreter from each other for every
    tiny picture finish no more of them than one lane (measured), and cost 45 us more of each."""


class Lane:
    """One lane, by its number on the progress page."""

    def __init__(self, number: int, floor: Floor, *, role: Role = Role.ANY) -> None:
        self._number = number
        self._floor = floor
        self._role = role
        self._recovery = Recovery(
            number, floor.model, floor.page, run=self._batch, trouble=floor.trouble
        )

    def work(self) -> None:
        """Do what the batcher says until it says stop.

        Raises OSError when the worker has gone, and DeviceError when the engine cannot go on. Then
        it is over for the other lanes too: none must wait for what this one held.
        """
        try:
            self._work()
        except BaseException:
            self._floor.queue.abandon()
            raise

    def _work(self) -> None:
        queue, role = self._floor.queue, self._role
        action = queue.take(role=role)
        while not isinstance(action, Stop):
            decoded: Decoded[Work] | None = None
            if isinstance(action, Decode):
                decoded = self._decode(action.jobs)
            else:
                self._run(list(action.rows))
            if stages := self._floor.stages:
                stages.enter(Stage.WAITING)
            action = queue.take(role=role, decoded=decoded)

    def _decode(self, group: Sequence[Work]) -> Decoded[Work]:
        """Return the works that have a row now; those that failed have had their outcome.

        Each step is done for the whole group before the next one begins. Measured, CPU of one
        28 x 28 PNG: 28 us instead of 44; Python, libpng and OpenCV in turn for each picture throw
        each other out of the core's caches.
        """
        failures: list[Fault | Retry] = []
        if stages := self._floor.stages:
            stages.enter(Stage.DECODE)
        checked = _each(group, self._check, failures)
        part = _together(checked, most_bytes=min(_GROUP_BYTES, self._floor.reserve.total_bytes))
        begun = len(group) - len(checked) + len(part)
        if len(part) < len(checked):
            self._floor.queue.put_back(checked[len(part) :])
        if failures:  # these must not wait for the others
            self._floor.send(outcomes_of(failures))
        if not part:
            return Decoded([], begun)  # all of them have had their outcome
        if stages := self._floor.stages:  # for its turn, and for memory
            stages.enter(Stage.WAITING)
        if len(part) < 2:
            return Decoded(self._fill(part), begun)
        with self._floor.turn:
            return Decoded(self._fill(part), begun)

    def _check(self, work: Work) -> None:
        if work.header is not None:  # it was put back
            return
        limits = self._floor.limits
        begun_s = time.monotonic()
        work.header = check(
            work.image, max_bytes=limits.image_max_bytes, max_pixels=limits.image_max_pixels
        )
        work.decode_s = time.monotonic() - begun_s

    def _fill(self, part: Sequence[Work]) -> list[Work]:
        """Decode and preprocess, each into a row of its own; return those that have one.

        While it waits for memory the lane is idle on its page: that is no hang.
        """
        floor = self._floor
        failures: list[Fault | Retry] = []
        taken_bytes = sum(_header(work).decode_bytes for work in part)
        try:
            floor.reserve.take(taken_bytes)
        except RecordFault as fault:  # of one that is alone: several were chosen to fit
            floor.send(outcomes_of([Fault(work.id, fault.reason, str(fault)) for work in part]))
            return []
        try:
            if stages := floor.stages:
                stages.enter(Stage.DECODE, len(part))
            decoded = _each(part, self._open, failures)
            if stages := floor.stages:
                stages.enter(Stage.PREPROCESS, len(decoded))
            ready = _each(decoded, self._write, failures)
        finally:
            for work in part:
                work.image_hwc = None
            floor.page.idle(self._number)
            floor.reserve.give(taken_bytes)
        if failures:
            floor.send(outcomes_of(failures))
        return ready

    def _open(self, work: Work) -> None:
        floor = self._floor
        begun_s = time.monotonic()
        floor.page.begin(self._number, Phase.DECODE, (work.id,))
        image_hwc = work.image_hwc = decode(work.image, _header(work), keep_gray=True)
        if floor.failpoints:
            floor.failpoints.hit(Failpoint.AFTER_DECODE, work.image)
        else:
            work.image = b""
        work.height_px, work.width_px = image_hwc.shape[:2]
        work.decode_s += time.monotonic() - begun_s

    def _write(self, work: Work) -> None:
        floor = self._floor
        begun_s = time.monotonic()
        floor.page.begin(self._number, Phase.DECODE, (work.id,))
        place = floor.rows.claim()
        try:
            assert work.image_hwc is not None
            floor.model.prepare(work.image_hwc, place.row)
        except BaseException:
            floor.rows.release((place,))
            raise
        work.place = place
        work.preprocess_s = time.monotonic() - begun_s

    def _run(self, works: list[Work]) -> None:
        if stages := self._floor.stages:
            stages.enter(Stage.COPY_IN, len(works))
        works.sort(key=_order)
        places = [_place(work) for work in works]
        self._floor.page.begin(self._number, Phase.RUN, [work.id for work in works])
        batch = self._floor.rows.gather(places)
        messages = self._recovery.run(works, batch)
        if stages := self._floor.stages:
            stages.enter(Stage.SEND)
        self._floor.page.idle(self._number)
        self._floor.rows.release(places)
        for message in messages:
            self._floor.send(message)

    def _batch(self, works: Sequence[Work], batch: Array) -> Outcomes:
        """Run works together. Raises one of RUN_ERRORS when the run did."""
        floor = self._floor
        begun_s, worked_s = time.monotonic(), time.thread_time()
        images = [work.image for work in works] if floor.failpoints else ()
        if floor.failpoints:
            floor.failpoints.hit(Failpoint.BEFORE_RUN, *images)
        outputs = floor.model.run(batch)
        begun_s += floor.model.session.waited_s
        if stages := floor.stages:
            stages.enter(Stage.HEADS, len(works))
        if floor.failpoints:
            floor.failpoints.hit(Failpoint.AFTER_RUN, *images)
        ran_s = time.monotonic()
        done, faults = [], []
        readings = floor.model.predictions(outputs)
        if all(map(not_finite, readings)):
            readings = self._recovery.doubt(batch)
        for work, predictions in zip(works, readings, strict=True):
            if isinstance(predictions, RecordFault):
                faults.append(Fault(work.id, predictions.reason, str(predictions)))
            else:
                done.append(_done(work, begun_s, predictions))
        ended_s = time.monotonic()
        seconds, computed_s = ended_s - begun_s, time.thread_time() - worked_s
        floor.sizing.ran(len(works), Took(seconds, floor.model.work_s(seconds, computed_s)))
        run_ms, heads_ms = (ran_s - begun_s) * 1e3, (ended_s - ran_s) * 1e3
        cap = floor.sizing.bounds.cap
        return Outcomes(tuple(done), tuple(faults), (), run_ms, heads_ms, len(works), cap)


def _each(
    works: Iterable[Work], do: Callable[[Work], None], failures: list[Fault | Retry]
) -> list[Work]:
    """Do a step for each work; return those for which nothing failed."""
    done: list[Work] = []
    for work in works:
        try:
            do(work)
        except RecordFault as fault:
            failures.append(Fault(work.id, fault.reason, str(fault)))
        except Exception as error:  # noqa: BLE001 - native decoders raise anything: nobody's proven fault, and the lane goes on
            failures.append(Retry(work.id, f"decoding raised {error!r}"))
        else:
            done.append(work)
    return done


def _together(works: Sequence[Work], *, most_bytes: int) -> Sequence[Work]:
    """Return the first of these, and those behind it while decoding them needs no more memory."""
    needed_bytes = 0
    for at, work in enumerate(works):
        needed_bytes += _header(work).decode_bytes
        if at and needed_bytes > most_bytes:
            return works[:at]
    return works


def _done(work: Work, begun_s: float, predictions: bytes) -> Done:
    return Done(
        work.id,
        work.width_px,
        work.height_px,
        (begun_s - work.arrived_s - work.decode_s - work.preprocess_s) * 1e3,
        work.decode_s * 1e3,
        work.preprocess_s * 1e3,
        predictions,
    )


def _header(work: Work) -> Header:
    assert work.header is not None
    return work.header


def _place(work: Work) -> Place:
    assert work.place is not None
    return work.place


def _order(work: Work) -> tuple[int, int]:
    """Rows of one slab side by side, so that they can be run where they lie."""
    place = _place(work)
    return id(place.slab), place.at
