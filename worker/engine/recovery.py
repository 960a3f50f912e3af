"""What a lane does about a run that raises: whose fault it is, as far as this engine can know.

A record is guilty when it fails alone while others pass. A fault of the device is no record's: what
was being run then has no outcome, the engine ends, and another one runs it. What may pass (memory
for so many rows was not to be had, a library failed once) is tried again first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from numpy.typing import NDArray

from worker.engine.model import Model, Reading
from worker.engine.providers import CPU
from worker.engine.queue import Work
from worker.engine.session import RUN_ERRORS
from worker.engine.trouble import DEVICE, Kind, classify, said
from worker.errors import DeviceError, RecordFault
from worker.protocol.messages import Fault, Outcomes, Retry, Trouble
from worker.protocol.page import Page, Phase
from worker.types import Reason

Array = NDArray[Any]

_GUILT = frozenset({Kind.INPUT, Kind.UNKNOWN})
"""What a record can be guilty of; all else is the device's, the model's or the moment's."""


class Recovery:
    """The runs of one lane, by its number on the page.

    `run` runs works together, and raises one of RUN_ERRORS when the session did.
    """

    def __init__(
        self,
        lane: int,
        model: Model,
        page: Page,
        *,
        run: Callable[[Sequence[Work], Array], Outcomes],
        trouble: Callable[[Trouble], None],
    ) -> None:
        self._lane = lane
        self._model = model
        self._page = page
        self._run = run
        self._trouble = trouble
        on_cpu = model.session.stamp.provider == CPU
        self._device_kinds = DEVICE - {Kind.OOM} if on_cpu else DEVICE
        """What ends the engine. Memory that a CPU lacks for one row, the record may have asked for:
        it is run alone again, by the worker's rules of guilt."""

    def run(self, works: Sequence[Work], batch: Array) -> list[Outcomes]:
        """Run works, in parts where they cannot be run together; return the outcomes of all.

        Raises DeviceError when the device is lost or cannot be trusted any more; the worker has
        been told, and none of these works has had an outcome.
        """
        try:
            message = self._run(works, batch)
        except RUN_ERRORS as error:
            return self._answer(works, batch, error)
        self._model.headroom.found(len(works))
        return [message]

    def _answer(self, works: Sequence[Work], batch: Array, error: Exception) -> list[Outcomes]:
        """Answer a run that raised, by what its error shows."""
        kind = classify(error)
        if kind is Kind.OOM and len(works) > 1 and self._model.agreement.fixed_batch is None:
            return self._smaller(works, batch, error)
        if kind in {Kind.SUSPECT, Kind.UNKNOWN} and not self._model.still_right():
            self._lose(Kind.STICKY, said(error))
        if kind in {Kind.SUSPECT, Kind.OOM} & self._device_kinds:
            return self._once_more(works, batch, kind, error)
        self._not_the_device(error)
        return self._one_by_one(works, batch, error)

    def _smaller(self, works: Sequence[Work], batch: Array, error: Exception) -> list[Outcomes]:
        """Run works in halves, and let no batch be larger for the time being."""
        half = len(works) // 2
        self._model.headroom.lacked(len(works))
        self._tell(Kind.OOM, said(error))
        messages: list[Outcomes] = []
        for at in range(0, len(works), half):
            part, rows = works[at : at + half], batch[at : at + half]
            self._page.begin(self._lane, Phase.RUN, [work.id for work in part])
            messages += self.run(part, rows)
        return messages

    def _once_more(
        self, works: Sequence[Work], batch: Array, kind: Kind, error: Exception
    ) -> list[Outcomes]:
        """Run works again after a fault of the device that may pass."""
        try:
            messages = [self._run(works, batch)]
        except RUN_ERRORS as again:
            self._not_the_device(again)
            messages = self._one_by_one(works, batch, again)
        self._tell(kind, said(error))
        return messages

    def doubt(self, batch: Array) -> list[Reading]:
        """Doubt a device that gave no finite row: the golden sample, then the batch once more.

        Raises DeviceError as `run` does, and one of RUN_ERRORS.
        """
        model = self._model
        if not model.still_right():
            self._lose(Kind.STICKY, "NaN for whole batches, and for the golden sample")
        readings = model.predictions(model.run(batch))
        if all(map(not_finite, readings)):
            if len(batch) > 1 and not model.still_right(len(batch)):
                self._lose(Kind.STICKY, f"NaN for batches of {len(batch)}, and for golden ones")
        else:
            self._tell(Kind.SUSPECT, "NaN for a whole batch, and numbers when it was run again")
        return readings

    def _not_the_device(self, error: Exception) -> None:
        kind = classify(error)
        if kind in self._device_kinds:
            self._lose(kind, said(error))

    def _tell(self, kind: Kind, message: str) -> None:
        self._page.idle(self._lane)
        self._trouble(Trouble(kind, message))

    def _lose(self, kind: Kind, message: str) -> NoReturn:
        if kind is Kind.OOM:  # after which an engine goes on; this one has no rows to give up
            least = self._model.agreement.fixed_batch or 1
            rows = "one row" if least == 1 else f"{least} rows, as the graph wants them"
            kind, message = Kind.STICKY, f"no memory for {rows}: {message}"
        self._tell(kind, message)
        raise DeviceError(f"{kind}: {message}") from None

    def _one_by_one(self, works: Sequence[Work], batch: Array, error: Exception) -> list[Outcomes]:
        """Run the rows of a batch that raised alone: guilty is what fails while another passes.

        That one must pass again afterwards: what was lost in between is no record's fault.
        """
        if len(works) == 1:
            return [outcomes_of([_verdict(works[0], error, witnessed=False)])]
        passed: list[Outcomes] = []
        failed: list[tuple[Work, Exception]] = []
        witness = None
        for at, work in enumerate(works):
            try:
                passed.append(self._alone(work, batch, at))
                witness = at
            except RUN_ERRORS as alone:
                self._not_the_device(alone)
                failed.append((work, alone))
        if not failed:
            return passed
        witnessed = witness is not None and self._passes(works[witness], batch, witness)
        verdicts = [_verdict(work, why, witnessed=witnessed) for work, why in failed]
        return [*passed, outcomes_of(verdicts)]

    def _alone(self, work: Work, batch: Array, at: int) -> Outcomes:
        self._page.begin(self._lane, Phase.RUN, (work.id,))
        return self._run((work,), batch[at : at + 1])

    def _passes(self, work: Work, batch: Array, at: int) -> bool:
        try:
            self._alone(work, batch, at)
        except RUN_ERRORS as error:
            self._not_the_device(error)
            return False
        return True


def _verdict(work: Work, why: Exception, *, witnessed: bool) -> Fault | Retry:
    """Return how a row ends whose run raised; `witnessed`: that of another passed afterwards."""
    if witnessed and classify(why) in _GUILT:
        poison = f"its run raised {said(why)}; those of others passed"
        return Fault(work.id, Reason.RECORD_POISON, poison)
    return Retry(work.id, f"the run raised {said(why)}")


def not_finite(reading: Reading) -> bool:
    """Say whether the model gave something else than numbers for a row."""
    return isinstance(reading, RecordFault) and reading.reason is Reason.RESULT_NOT_FINITE


def outcomes_of(failures: Sequence[Fault | Retry]) -> Outcomes:
    """Return the message for works that were not served, whether they ran or not."""
    faults = tuple(item for item in failures if isinstance(item, Fault))
    retries = tuple(item for item in failures if isinstance(item, Retry))
    return Outcomes((), faults, retries, 0.0, 0.0, 0)
