"""The ledger against a model of it: what is published and committed is the finished prefix."""

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.fakes import record_at
from worker.kafka.ledger import Bound, Entry, Ledger, Outgoing
from worker.types import Partition, Request

PARTITION = Partition("images", 3)


def outgoing(offset: int) -> Outgoing:
    return Outgoing(b"%d" % offset, b"result", (), None)


def ledger_of(*offsets: int) -> tuple[Ledger, list[Entry]]:
    ledger = Ledger(PARTITION, epoch=1)
    return ledger, [ledger.track(record_at(*PARTITION, offset)) for offset in offsets]


@pytest.mark.parametrize(
    ("fetched", "finished", "published", "next_offset"),
    [
        ([0, 1, 2], [], [], None),
        ([0, 1, 2], [1, 2], [], None),
        ([0, 1, 2], [0], [0], 1),
        ([0, 1, 2], [2, 0], [0], 1),
        ([0, 1, 2], [2, 1, 0], [0, 1, 2], 3),
        ([5, 9, 12], [5, 12], [5], 6),
        ([5, 9, 12], [12, 9, 5], [5, 9, 12], 13),
    ],
    ids=str,
)
def test_only_the_finished_head_is_published_whatever_the_gaps(
    fetched: list[int], finished: list[int], published: list[int], next_offset: int | None
) -> None:
    ledger, entries = ledger_of(*fetched)
    for offset in finished:
        ledger.close(entries[fetched.index(offset)], outgoing(offset))
    prefix = ledger.prefix(100)
    found = [] if prefix is None else [int(item.key or b"") for item in prefix.outgoing]
    assert found == published
    assert (None if prefix is None else prefix.next_offset) == next_offset


def test_a_long_prefix_comes_in_pieces_that_join() -> None:
    ledger, entries = ledger_of(*range(5))
    for entry in entries:
        ledger.close(entry, outgoing(entry.offset))
    pieces = []
    while (prefix := ledger.prefix(2)) is not None:
        assert ledger.prefix(2) == prefix, "the same one until it is published"
        ledger.published(prefix)
        pieces.append((len(prefix.outgoing), prefix.next_offset))
    assert pieces == [(2, 2), (2, 4), (1, 5)]


def test_a_closed_entry_lets_go_of_the_image_and_cannot_be_found_again() -> None:
    ledger, (entry,) = ledger_of(7)
    entry.request = Request(record_at(*PARTITION, 7), b"x", None, None, {}, None, None, None, ())
    assert ledger.find(7) is entry
    ledger.close(entry, outgoing(7))
    assert [entry.record, entry.request, ledger.find(7)] == [None] * 3


class LedgerMachine(RuleBasedStateMachine):
    """Fetch with gaps, finish in any order, publish, commit, forget; a bound counts along."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = Bound(max_records=10**6, max_bytes=10**9, max_s=1.0, floor=10)
        self.now_s = 0.0
        self.new_epoch(0)

    def new_epoch(self, start: int) -> None:
        self.ledger = Ledger(PARTITION, epoch=1)
        self.next = start
        self.sizes: dict[int, int] = {}
        self.open: dict[int, Entry] = {}
        self.fetched: list[int] = []
        self.published: list[int] = []
        self.mark = self.committed = -1

    @rule(gaps=st.lists(st.integers(0, 3), min_size=1, max_size=6), size=st.integers(0, 100))
    def fetch(self, gaps: Sequence[int], size: int) -> None:
        for gap in gaps:
            offset = self.next + gap
            self.next = offset + 1
            self.sizes[offset] = size
            self.fetched.append(offset)
            self.open[offset] = self.ledger.track(record_at(*PARTITION, offset, b"x" * size))
        self.bound.fetched(len(gaps), size * len(gaps), self.now_s)

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.open)))
        self.ledger.close(self.open.pop(offset), outgoing(offset))
        self.now_s += 0.1
        self.bound.finished(1, self.now_s)

    @rule(most=st.integers(1, 4))
    def publish(self, most: int) -> None:
        prefix = self.ledger.prefix(most)
        head = (
            self.fetched[len(self.published)] if len(self.published) < len(self.fetched) else None
        )
        if prefix is None:
            assert head is None or head in self.open, "a finished head is published"
            return
        found = [int(item.key or b"") for item in prefix.outgoing]
        assert len(found) <= most
        assert not self.open.keys() & set(found), "never one that is not finished"
        self.published += found
        assert self.published == self.fetched[: len(self.published)], "in order, none left out"
        assert prefix.next_offset == found[-1] + 1
        assert prefix.next_offset <= min(self.open, default=prefix.next_offset)
        assert prefix.next_offset > self.mark
        self.mark = prefix.next_offset
        self.ledger.published(prefix)

    @rule()
    def commit(self) -> None:
        if self.mark > self.committed:
            records, size = self.ledger.committed(self.mark)
            gone = [o for o in self.published if self.committed <= o < self.mark]
            assert (records, size) == (len(gone), sum(self.sizes[o] for o in gone))
            self.bound.released(records, size)
            self.committed = self.mark

    @rule()
    def forget(self) -> None:
        self.bound.abandoned(self.ledger.open)
        self.bound.released(*self.ledger.forget())
        assert self.ledger.empty
        assert (self.bound.records, self.bound.size_bytes) == (0, 0)
        self.new_epoch(max(self.committed, 0))

    @invariant()
    def everything_is_counted_once(self) -> None:
        held = [offset for offset in self.fetched if offset >= self.committed]
        assert self.bound.records == len(held)
        assert self.bound.size_bytes == sum(self.sizes[offset] for offset in held)
        assert self.ledger.open == len(self.open)
        assert self.ledger.unfinished == len(self.fetched) - len(self.published)
        assert self.ledger.empty == (not held)
        assert self.bound.room >= 0


TestLedgerMachine = LedgerMachine.TestCase
