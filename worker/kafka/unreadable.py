"""Lets a poll go on behind a batch that cannot be read: each record of it becomes `Unreadable`.

aiokafka raises instead, out of the middle of a poll: whose batch it is it does not say, what the
poll had taken before goes with the exception (its positions have moved: those records would be
lost), and every later poll raises again.
"""

from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

from aiokafka.consumer import fetcher

_TRIES = 3
"""Fetches of a batch before it is given up; another copy of it may be whole."""


class Unreadable(NamedTuple):
    """Stands in a poll's records for one that cannot be read."""

    offset: int
    why: str


class PatientResult(fetcher.FetchResult):  # type: ignore[misc]  # aiokafka ships no types
    """What was fetched of one partition; reading it never raises."""

    _failures: ClassVar[WeakKeyDictionary[Any, dict[Any, tuple[int, int]]]] = WeakKeyDictionary()
    """Of each assignment: partition -> (offset that could not be read, how often in a row)."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        """Return records in order; one that cannot be read comes alone."""
        tp = self._topic_partition
        if not self.check_assignment(tp) or not self.has_more():
            return []
        records: list[Any] = []
        fetched: Any = self._partition_records
        try:
            for record in fetched:
                records.append(record)
                if len(records) == max_records:
                    self._update_position()
                    return records
        except Exception as error:  # noqa: BLE001 - whatever a parser says of bytes it cannot read
            if not records:
                records = self._give_up(tp, fetched, error)
        self._update_position()
        self._partition_records = None
        return records

    def _give_up(self, tp: Any, fetched: Any, error: Exception) -> list[Unreadable]:
        """Step over one record, when it could not be read for the last time."""
        offset: int = fetched.next_fetch_offset
        failures = self._failures.setdefault(self._assignment, {})
        at, tries = failures.get(tp, (offset, 0))
        tries = tries + 1 if at == offset else 1
        failures[tp] = (offset, tries)
        if tries < _TRIES:
            return []
        # Its neighbours in the batch cannot be read either: they are not fetched so often again.
        failures[tp] = (offset + 1, _TRIES - 1)
        fetched.next_fetch_offset = offset + 1
        return [Unreadable(offset, f"{type(error).__name__}: {error}")]


def outlast_unreadable() -> None:
    """Make every consumer of this process read patiently."""
    fetcher.FetchResult = PatientResult
