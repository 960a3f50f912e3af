"""Jobs that wait for an engine, and whose turn it is: first come first served, by weight. Pure.

Between topics as start-time fair queueing has it (Goyal, Vin, Cheng 1996): while both wait, a topic
of weight 3 is served three times as often as one of weight 1. None waits for ever, whatever comes
for the others: before the first job of a topic of weight w there are at most 1 + W/w of another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

J = TypeVar("J")


@dataclass(slots=True)
class _Topic(Generic[J]):
    step: float
    """What one service costs it: one over its weight."""
    due: float = 0.0
    """When its first job is due, on a clock that only services move."""
    jobs: deque[tuple[int, J]] = field(default_factory=deque)


class Line(Generic[J]):
    """Numbered jobs by the topic that `topic_of` says; one not named in `weights` has weight 1."""

    def __init__(self, topic_of: Callable[[J], str], weights: Mapping[str, int]) -> None:
        self._topic_of = topic_of
        self._weights = weights
        self._topics: dict[str, _Topic[J]] = {}
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, numbered: Iterable[tuple[int, J]]) -> None:
        """Take in jobs, behind those of their topics."""
        for item in numbered:
            self._topic(item[1]).jobs.append(item)
            self._count += 1

    def put_back(self, numbered: Iterable[tuple[int, J]]) -> None:
        """Take jobs back; in this order they are the first of their topics again."""
        for item in reversed(tuple(numbered)):
            self._topic(item[1]).jobs.appendleft(item)
            self._count += 1

    def take(self) -> tuple[int, J]:
        """Take out the job whose turn it is. Raises ValueError when none waits."""
        topic = min((t for t in self._topics.values() if t.jobs), key=lambda t: t.due)
        self._now = topic.due
        topic.due += topic.step
        self._count -= 1
        return topic.jobs.popleft()

    def newest(self) -> int | None:
        """Return the number of the last job that came; None when none waits."""
        return max((t.jobs[-1][0] for t in self._topics.values() if t.jobs), default=None)

    def take_newest(self) -> J:
        """Take out the last job that came. Raises ValueError when none waits."""
        topic = max((t for t in self._topics.values() if t.jobs), key=lambda t: t.jobs[-1][0])
        self._count -= 1
        return topic.jobs.pop()[1]

    def withdraw(self, which: Callable[[J], bool]) -> list[J]:
        """Take out those for which this holds, in the order of their topics."""
        taken: list[J] = []
        for topic in self._topics.values():
            taken += [job for _, job in topic.jobs if which(job)]
            topic.jobs = deque(item for item in topic.jobs if not which(item[1]))
        self._count -= len(taken)
        return taken

    def _topic(self, job: J) -> _Topic[J]:
        name = self._topic_of(job)
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = _Topic(1 / self._weights.get(name, 1))
        if not topic.jobs:  # it was not there to be served: it has saved nothing up
            topic.due = max(topic.due, self._now)
        return topic
