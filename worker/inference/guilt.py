"""Who killed the engine: a pure state machine over row numbers.

Rows that an engine held when it died or hung, or whose run raised, are suspects. A suspect is run
again alone; what ends well is free. Guilty is the one that fails again alone *on an engine that
has just served another record*, with no failure in between: each conviction has a witness of its
own. So an engine, a device or a model that fails at everything makes nobody guilty, be it from its
first record on, from some moment on, or now and then.

When no suspect has passed, the witness is a record that was not suspected; it runs alone, first.

Several engines may serve the version; rows run alone on one of them, the judge. A failure of any
engine wants another witness: two engines of one device are lost together.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

LAST_RESORT_ENGINES = 3
"""Engines that a record must fail alone to be guilty when there is no other record at all: each
of them proved itself on the golden samples, which are the witness of last resort."""

FAILURES_TO_REPLACE = 3
"""Rows that one engine fails alone, one after the other and none passing: it is replaced."""


@dataclass
class _Case:
    alone: int = 0
    """How often it failed alone."""
    engines: set[int] = field(default_factory=set)
    """The engines that it failed alone."""


class Guilt:
    """The suspects of one model version. Rows are known by their numbers."""

    def __init__(self) -> None:
        self._cases: dict[int, _Case] = {}
        self._judge = 0
        self._proven = False
        self._in_a_row = 0

    @property
    def proven(self) -> bool:
        """The judge has served another record, and nothing has failed since."""
        return self._proven

    @property
    def suspects(self) -> tuple[int, ...]:
        """Rows that must run alone, in the order in which they were suspected."""
        return tuple(self._cases)

    @property
    def clear(self) -> bool:
        """Nobody is suspected: rows may run together."""
        return not self._cases

    @property
    def engine_suspected(self) -> bool:
        """The judge failed at several rows alone, and none passed."""
        return self._in_a_row >= FAILURES_TO_REPLACE

    def judged_by(self, engine: int) -> None:
        """Tell on which engine rows run alone from now on, by a number of its own.

        It proved itself on the golden samples when it loaded.
        """
        self._judge = engine
        self._proven = False
        self._in_a_row = 0

    def passed(self, rows: Iterable[int]) -> None:
        """Tell that the judge served these rows, each alone."""
        self._proven = True
        self._in_a_row = 0
        if self._cases:
            for row in rows:
                self._cases.pop(row, None)

    def closed(self, row: int) -> None:
        """Tell that a row ended otherwise (a broken image, expired): evidence of nothing."""
        self._cases.pop(row, None)

    def suspect(self, rows: Iterable[int]) -> None:
        """Tell which rows were held when the engine died, or were in the run that raised."""
        self._proven = False
        for row in rows:
            self._cases.setdefault(row, _Case())

    def failed_alone(self, row: int, *, others: bool) -> bool:
        """Tell that a row failed with nothing else in the engine; return whether it is guilty.

        `others`: other records wait, who could still be witnesses. A guilty row is forgotten.
        """
        witnessed = self._proven and row in self._cases
        self._proven = False
        self._in_a_row += 1
        case = self._cases.setdefault(row, _Case())
        case.alone += 1
        case.engines.add(self._judge)
        guilty = witnessed or (not others and len(case.engines) >= LAST_RESORT_ENGINES)
        if guilty:
            del self._cases[row]
        return guilty

    def excused(self, row: int) -> None:
        """Tell that a row failed alone by its device's fault: evidence of nothing, others first."""
        self._proven = False
        self._cases.setdefault(row, _Case()).alone += 1

    def next_alone(self, witness: int | None) -> int:
        """Return which row to run alone now: a suspect, or the witness that is offered.

        The suspects that failed alone least often come first. Raises ValueError when clear.
        """
        if witness is not None and not self._proven:
            return witness
        return min(self._cases, key=lambda row: self._cases[row].alone)
