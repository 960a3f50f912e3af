"""A lane: a thread that decodes a record into its row, or runs a batch, as the batcher says.

It decides whose fault a failure is as far as this engine can know; it must not know the channel's
bytes or how a model is loaded. While a lane sends, it is idle: a slow worker is no hang.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from worker.engine.batcher import Decode, Role, Stop
from worker.engine.model import Model
from worker.engine.queue import Queue, Work
from worker.engine.reserve import Reserve
from worker.engine.rows import Place, Rows
from worker.engine.session import RUN_ERRORS
from worker.errors import RecordFault
from worker.protocol.failpoints import Failpoint, Failpoints
from worker.protocol.messages import Done, Fault, Outcomes, Retry
from worker.protocol.page import Page, Phase
from worker.types import Limits, Reason
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
    rows: Rows
    reserve: Reserve
    page: Page
    limits: Limits
    """Replaced whole while lanes run."""
    send: Callable[[Outcomes], None]
    failpoints: Failpoints
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held while a group is decoded: two lanes that take the interpreter from each other for every
    tiny picture finish no more of them than one lane (measured), and cost 45 us more of each."""


class Lane:
    """One lane, by its number on the progress page."""

    def __init__(self, number: int, floor: Floor, *, role: Role = Role.ANY) -> None:
        self._number = number
        self._floor = floor
        self._role = role

    def work(self) -> None:
        """Do what the batcher says until it says stop. Raises OSError when the worker has gone."""
        queue, role = self._floor.queue, self._role
        action = queue.take(role=role)
        while not isinstance(action, Stop):
            if isinstance(action, Decode):
                action = queue.take(role=role, ready=self._decode(action.jobs))
            else:
                self._run(list(action.rows))
                action = queue.take(role=role)

    def _decode(self, group: Sequence[Work]) -> list[Work]:
        """Return the works that have a row now; those that failed have had their outcome.

        Each step is done for the whole group before the next one begins. Measured, CPU of one
        28 x 28 PNG: 28 us instead of 44; Python, libpng and OpenCV in turn for each picture throw
        each other out of the core's caches.
        """
        failures: list[Fault | Retry] = []
        checked = _each(group, self._check, failures)
        part = _together(checked, most_bytes=min(_GROUP_BYTES, self._floor.reserve.total_bytes))
        if len(part) < len(checked):
            self._floor.queue.put_back(checked[len(part) :])
        if failures:  # these must not wait for the others
            self._floor.send(_outcomes(failures))
        if not part:
            return []  # all of them have had their outcome
        if len(part) < 2:
            return self._fill(part)
        with self._floor.turn:
            return self._fill(part)

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
            floor.send(_outcomes([Fault(work.id, fault.reason, str(fault)) for work in part]))
            return []
        try:
            decoded = _each(part, self._open, failures)
            ready = _each(decoded, self._write, failures)
        finally:
            for work in part:
                work.image_hwc = None
            floor.page.idle(self._number)
            floor.reserve.give(taken_bytes)
        if failures:
            floor.send(_outcomes(failures))
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
        works.sort(key=_order)
        places = [_place(work) for work in works]
        self._floor.page.begin(self._number, Phase.RUN, [work.id for work in works])
        batch = self._floor.rows.gather(places)
        try:
            messages = [self._batch(works, batch)]
        except RUN_ERRORS as error:
            messages = self._one_by_one(works, batch, error)
        self._floor.page.idle(self._number)
        self._floor.rows.release(places)
        for message in messages:
            self._floor.send(message)

    def _batch(self, works: Sequence[Work], batch: Array) -> Outcomes:
        """Run works together. Raises one of RUN_ERRORS when the run did."""
        floor = self._floor
        begun_s = time.monotonic()
        images = [work.image for work in works] if floor.failpoints else ()
        if floor.failpoints:
            floor.failpoints.hit(Failpoint.BEFORE_RUN, *images)
        outputs = floor.model.run(batch)
        begun_s += floor.model.session.waited_s
        if floor.failpoints:
            floor.failpoints.hit(Failpoint.AFTER_RUN, *images)
        ran_s = time.monotonic()
        done, faults = [], []
        for work, predictions in zip(works, floor.model.predictions(outputs), strict=True):
            if isinstance(predictions, RecordFault):
                faults.append(Fault(work.id, predictions.reason, str(predictions)))
            else:
                done.append(_done(work, begun_s, predictions))
        heads_s = time.monotonic() - ran_s
        return Outcomes(
            tuple(done), tuple(faults), (), (ran_s - begun_s) * 1e3, heads_s * 1e3, len(works)
        )

    def _one_by_one(self, works: Sequence[Work], batch: Array, error: Exception) -> list[Outcomes]:
        """Run the rows of a batch that raised alone: guilty is what fails while another passes.

        That one must pass again afterwards: what was lost in between is no record's fault.
        """
        if len(works) == 1:
            return [_outcomes([Retry(works[0].id, f"the run raised {error!r}")])]
        passed: list[Outcomes] = []
        failed: list[tuple[Work, Exception]] = []
        witness = None
        for at, work in enumerate(works):
            try:
                passed.append(self._alone(work, batch, at))
                witness = at
            except RUN_ERRORS as alone:
                failed.append((work, alone))
        if not failed:
            return passed
        if witness is None or not self._passes(works[witness], batch, witness):
            retries = [Retry(work.id, f"the run raised {why!r}") for work, why in failed]
            return [*passed, _outcomes(retries)]
        poison = [
            Fault(work.id, Reason.RECORD_POISON, f"its run raised {why!r}, those of others passed")
            for work, why in failed
        ]
        return [*passed, _outcomes(poison)]

    def _alone(self, work: Work, batch: Array, at: int) -> Outcomes:
        self._floor.page.begin(self._number, Phase.RUN, (work.id,))
        return self._batch((work,), batch[at : at + 1])

    def _passes(self, work: Work, batch: Array, at: int) -> bool:
        try:
            self._alone(work, batch, at)
        except RUN_ERRORS:
            return False
        return True


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


def _outcomes(failures: Sequence[Fault | Retry]) -> Outcomes:
    faults = tuple(item for item in failures if isinstance(item, Fault))
    retries = tuple(item for item in failures if isinstance(item, Retry))
    return Outcomes((), faults, retries, 0.0, 0.0, 0)


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
