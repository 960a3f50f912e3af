"""Whose turn it is among the jobs that wait: order within a topic, weights between topics."""

import math
from collections import Counter
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.inference.line import Line


class Job(NamedTuple):
    topic: str
    number: int


def line(**weights: int) -> Line[Job]:
    return Line(lambda job: job.topic, weights)


def numbered(topic: str, *numbers: int) -> list[tuple[int, Job]]:
    return [(number, Job(topic, number)) for number in numbers]


def taken(waiting: Line[Job], many: int) -> str:
    return "".join(waiting.take()[1].topic for _ in range(many))


def test_jobs_of_one_topic_are_taken_in_their_order() -> None:
    waiting = line()
    waiting.add(numbered("a", *range(5)))
    assert [waiting.take()[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(waiting) == 0


def test_topics_without_a_weight_take_turns() -> None:
    waiting = line()
    waiting.add(numbered("a", *range(4)) + numbered("b", *range(4, 8)))
    assert taken(waiting, 8) == "abababab"


def test_a_topic_of_weight_three_is_served_three_times_as_often() -> None:
    waiting = line(a=3)
    waiting.add(numbered("a", *range(60)) + numbered("b", *range(60, 120)))
    assert Counter(taken(waiting, 40)) == {"a": 30, "b": 10}


def test_a_topic_that_was_empty_has_saved_nothing_up() -> None:
    waiting = line()
    waiting.add(numbered("a", *range(100)))
    taken(waiting, 50)
    waiting.add(numbered("b", *range(100, 150)))
    assert Counter(taken(waiting, 20)) == {"a": 10, "b": 10}


def test_what_is_put_back_is_first_in_its_order() -> None:
    waiting = line()
    waiting.add(numbered("a", 2, 3))
    waiting.put_back(numbered("a", 0, 1))
    assert [waiting.take()[0] for _ in range(4)] == [0, 1, 2, 3]


def test_the_newest_is_the_last_that_came_of_all_topics() -> None:
    waiting = line()
    assert waiting.newest() is None
    waiting.add(numbered("a", 1, 4) + numbered("b", 3))
    assert waiting.newest() == 4
    assert waiting.take_newest() == Job("a", 4)
    assert waiting.newest() == 3
    assert len(waiting) == 2


def test_withdrawn_jobs_are_gone_and_the_others_stay_in_order() -> None:
    waiting = line()
    waiting.add(numbered("a", 0, 1, 2) + numbered("b", 3))
    assert waiting.withdraw(lambda job: job.number in {1, 3}) == [Job("a", 1), Job("b", 3)]
    assert [waiting.take()[0] for _ in range(2)] == [0, 2]


weights = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9))


class Turns(RuleBasedStateMachine):
    """Whatever comes and goes: nothing is lost, and nobody waits beyond the bound."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, int] = {}
        self.waiting: Line[Job] = line()
        self.count = 0
        self.jobs: dict[str, list[int]] = {topic: [] for topic in "abcd"}
        self.bound: dict[int, float] = {}
        """Job -> how many others may still be taken before it."""

    def _promise(self, topic: str, number: int) -> None:
        """At most so many before it: those of its topic, and for each of them others by weight."""
        position = len(self.jobs[topic]) - 1
        weight = self.given.get(topic, 1)
        others = [self.given.get(other, 1) for other in self.jobs if other != topic]
        self.bound[number] = position + sum(
            math.ceil((position + 1) * other / weight) + 1 for other in others
        )

    @precondition(lambda self: self.count == 0)
    @rule(weights=weights)
    def weigh(self, weights: dict[str, int]) -> None:
        self.given = weights
        self.waiting = line(**weights)

    @rule(topic=st.sampled_from("abcd"), many=st.integers(1, 5))
    def add(self, topic: str, many: int) -> None:
        new = range(self.count, self.count + many)
        self.count += many
        self.waiting.add(numbered(topic, *new))
        for number in new:
            self.jobs[topic].append(number)
            self._promise(topic, number)

    @precondition(lambda self: any(self.jobs.values()))
    @rule(many=st.integers(1, 12))
    def take(self, many: int) -> None:
        for _ in range(min(many, len(self.waiting))):
            number, job = self.waiting.take()
            assert self.jobs[job.topic].pop(0) == number, "out of order"
            assert self.bound.pop(number) >= 0, "it waited beyond its bound"
            for left in self.bound:
                self.bound[left] -= 1

    @precondition(lambda self: any(self.jobs.values()))
    @rule()
    def withdraw_the_newest(self) -> None:
        number = self.waiting.newest()
        assert number == max(self.bound)
        job = self.waiting.take_newest()
        assert job.number == number
        assert self.jobs[job.topic].pop() == number
        del self.bound[number]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.waiting) == len(self.bound) == sum(map(len, self.jobs.values()))


TestTurns = Turns.TestCase


@given(weights)
def test_while_all_wait_each_is_served_by_its_weight(weights: dict[str, int]) -> None:
    waiting = line(**weights)
    for topic in "abcd":
        waiting.add(numbered(topic, *range(200)))
    total = sum(weights.get(topic, 1) for topic in "abcd")
    seen = Counter(taken(waiting, 5 * total))
    for topic in "abcd":
        assert abs(seen[topic] - 5 * weights.get(topic, 1)) <= 1
