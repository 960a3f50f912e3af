"""A lane: a thread that decodes a record into its row, or runs a batch, as the batcher says.

It decides whose fault a failure is as far as this engine can know; it must not know the channel's
bytes or how a model is loaded. While a lane sends, it is idle: a slow worker is no hang.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from worker.engine.batcher import Decode, Stop
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

_GROUP_PIXELS = 256 * 256
"""A larger picture is decoded by itself; the rest of its group goes on without it."""


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


class Lane:
    """One lane, by its number on the progress page."""

    def __init__(self, number: int, floor: Floor) -> None:
        self._number = number
        self._floor = floor

    def work(self) -> None:
        """Do what the batcher says until it says stop. Raises OSError when the worker has gone."""
        queue = self._floor.queue
        action = queue.take()
        while not isinstance(action, Stop):
            if isinstance(action, Decode):
                action = queue.take(ready=self._decode(action.jobs))
            else:
                self._run(list(action.rows))
                action = queue.take()

    def _decode(self, group: Sequence[Work]) -> list[Work]:
        """Return the works that have a row now; those that failed have had their outcome."""
        ready: list[Work] = []
        failures: list[Fault | Retry] = []
        left = deque(group)
        while left:
            work = left.popleft()
            try:
                header = self._check(work)
                if header.pixels > _GROUP_PIXELS:
                    if ready or failures:  # they must not wait for it
                        left.appendleft(work)
                        break
                    self._put_back(left)
                self._fill(work, header)
            except RecordFault as fault:
                failures.append(Fault(work.id, fault.reason, str(fault)))
            except Exception as error:  # noqa: BLE001 - native decoders raise anything: nobody's proven fault, and the lane goes on
                failures.append(Retry(work.id, f"decoding raised {error!r}"))
            else:
                ready.append(work)
            finally:
                self._floor.page.idle(self._number)
        self._put_back(left)
        if failures:
            self._floor.send(_outcomes(failures))
        return ready

    def _put_back(self, left: deque[Work]) -> None:
        if left:
            self._floor.queue.put_back(tuple(left))
            left.clear()

    def _check(self, work: Work) -> Header:
        limits = self._floor.limits
        work.begun_s = time.monotonic()
        return check(
            work.image, max_bytes=limits.image_max_bytes, max_pixels=limits.image_max_pixels
        )

    def _fill(self, work: Work, header: Header) -> None:
        """Decode and preprocess into a row of its own.

        While it waits for memory the lane is idle on its page: that is no hang.
        """
        floor = self._floor
        floor.reserve.take(header.decode_bytes)
        try:
            floor.page.begin(self._number, Phase.DECODE, (work.id,))
            image_hwc = decode(work.image, header)
            if floor.failpoints:
                floor.failpoints.hit(Failpoint.AFTER_DECODE, work.image)
            else:
                work.image = b""
            work.decoded_s = time.monotonic()
            work.height_px, work.width_px = image_hwc.shape[:2]
            self._write(work, image_hwc)
        finally:
            floor.reserve.give(header.decode_bytes)
        work.ready_s = time.monotonic()

    def _write(self, work: Work, image_hwc: Array) -> None:
        place = self._floor.rows.claim()
        try:
            self._floor.model.prepare(image_hwc, place.row)
        except BaseException:
            self._floor.rows.release((place,))
            raise
        work.place = place

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


def _outcomes(failures: Sequence[Fault | Retry]) -> Outcomes:
    faults = tuple(item for item in failures if isinstance(item, Fault))
    retries = tuple(item for item in failures if isinstance(item, Retry))
    return Outcomes((), faults, retries, 0.0, 0.0, 0)


def _done(work: Work, begun_s: float, predictions: bytes) -> Done:
    return Done(
        work.id,
        work.width_px,
        work.height_px,
        (work.begun_s - work.arrived_s + begun_s - work.ready_s) * 1e3,
        (work.decoded_s - work.begun_s) * 1e3,
        (work.ready_s - work.decoded_s) * 1e3,
        predictions,
    )


def _place(work: Work) -> Place:
    assert work.place is not None
    return work.place


def _order(work: Work) -> tuple[int, int]:
    """Rows of one slab side by side, so that they can be run where they lie."""
    place = _place(work)
    return id(place.slab), place.at
