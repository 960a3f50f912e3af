"""Records for workers: a backlog that is kept before them, or a few digits, all accounted for."""

import time
from collections.abc import Callable

from tests.broker import Feed, Tail, Topics, wait_committed
from tests.integration.pictures import digit, large, with_chunk
from tests.workers import Crew

RECORDS = 3000
BACKLOG = 400
DEADLINE_S = 120.0
HALF = digit(0)[: len(digit(0)) // 2]
LARGE = [large(number, 500) for number in range(8)]
"""Decoding them takes milliseconds: so that there is always work in flight when a fault strikes."""


class Traffic:
    """Keeps a backlog before the workers, while their results are followed."""

    def __init__(self, topics: Topics, crew: Crew) -> None:
        self.topics = topics
        self.partitions = topics.partitions
        self._crew = crew
        self.feed = Feed(topics)
        self.tail = Tail(topics)
        self.doomed: dict[bytes, str] = {}
        self._count = 0

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let traffic flow until the condition holds."""
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            self._crew.check()
            late = f"not in {DEADLINE_S} s: {what}; {self.tail.workers}\n{self._crew.logs()}"
            assert time.monotonic() < end_s, late
            self.top_up()
            self.tail.look(0.02)
        self.top_up()

    def more(self, count: int) -> None:
        """Let so many more records be served."""
        goal = len(self.tail.ids) + count
        self.until(lambda: len(self.tail.ids) >= goal, f"{count} more results")

    def top_up(self) -> None:
        while self._count < len(self.tail.ids) + BACKLOG:
            self.send()

    def send(self) -> None:
        number = self._count
        self._count += 1
        key = b"%06d" % number
        value = digit(number) if number % 3 else LARGE[number % len(LARGE)]
        if number % 97 == 5:
            value, self.doomed[key] = b"this is no picture", "image.type"
        elif number % 97 == 50:
            value, self.doomed[key] = HALF, "image.corrupt"
        self.feed.send(key, value, partition=number % self.partitions)

    def finish(self, records: int = 0) -> None:
        """Send what is missing to this number, and wait for the last result."""
        while self._count < records:
            self.send()
        self.feed.flush()
        self.tail.until(lambda: len(self.tail.ids) == self._count, f"{self._count} ids", DEADLINE_S)

    def close(self) -> None:
        self.tail.close()

    def all_partitions_move(self) -> None:
        """Wait until each partition has results of records that are sent from now on."""
        self.feed.flush()
        ends = {sent.partition: sent.offset for sent in self.feed.sent}
        self.until(
            lambda: all(self.tail.last.get(p, -1) > end for p, end in ends.items()),
            "results from every partition",
        )


def marked(number: int, mark: bytes) -> bytes:
    return with_chunk(digit(number), b"tEXt", b"Comment\x00" + mark)


def send_digits(topics: Topics, count: int, marks: dict[int, bytes] | None = None) -> Feed:
    feed = Feed(topics)
    for number in range(count):
        mark = (marks or {}).get(number)
        value = digit(number) if mark is None else marked(number, mark)
        feed.send(b"%06d" % number, value, partition=number % topics.partitions)
    feed.flush()
    return feed


def wait_served(crew: Crew, topics: Topics) -> None:
    """Wait until the workers have committed everything; tell their logs when they do not."""
    try:
        wait_committed(topics, check=crew.check)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{crew.logs()}") from None
