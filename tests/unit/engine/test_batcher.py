import sys
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.batcher import Batcher, Bounds, Decode, Decoded, Role, Run, Stop, Wait

BIG = 100_000
BOUNDS = Bounds(cap=4, min_size=1, max_wait_s=0.005)


class Job(NamedTuple):
    id: int
    alone: bool = False
    size_bytes: int = BIG


def jobs(*ids: int, size_bytes: int = BIG) -> list[Job]:
    return [Job(n, size_bytes=size_bytes) for n in ids]


def batcher_with(
    bounds: Bounds = BOUNDS,
    *,
    pending: Sequence[Job] = (),
    rows: Sequence[Job] = (),
    ready_s: float = 0.0,
) -> Batcher[Job]:
    batcher: Batcher[Job] = Batcher(bounds._replace(cap=sys.maxsize))
    batcher.add(rows)
    while isinstance(action := batcher.next(0.0, role=Role.DECODE), Decode):
        batcher.ready(Decoded(action.jobs, len(action.jobs)), ready_s)
    batcher.bounds = bounds
    batcher.add(pending)
    return batcher


ONE_PENDING = jobs(10)
MIN_3 = BOUNDS._replace(min_size=3)
EAGER = BOUNDS._replace(enough=1)
ENOUGH_2 = BOUNDS._replace(enough=2)
PAIRS = BOUNDS._replace(takes=(0, 1, 2, 2, 4))


@pytest.mark.parametrize(
    ("trigger", "bounds", "pending", "rows", "now_s", "expected"),
    [
        ("nothing at all", BOUNDS, [], 0, 0.0, Wait(None)),
        ("something to decode", BOUNDS, ONE_PENDING, 0, 0.0, Decode(ONE_PENDING)),
        ("rows below the cap, more to decode", BOUNDS, ONE_PENDING, 3, 0.0, Decode(ONE_PENDING)),
        ("rows at the cap, more to decode", BOUNDS, ONE_PENDING, 4, 0.0, Run(jobs(0, 1, 2, 3))),
        ("rows above the cap", BOUNDS, ONE_PENDING, 6, 0.0, Run(jobs(0, 1, 2, 3))),
        ("just before the deadline", BOUNDS, ONE_PENDING, 2, 0.0049, Decode(ONE_PENDING)),
        ("at the deadline, more to decode", BOUNDS, ONE_PENDING, 2, 0.005, Run(jobs(0, 1))),
        ("an idle lane runs what is there", BOUNDS, [], 1, 0.0, Run(jobs(0))),
        ("below min_size: wait for the deadline", MIN_3, [], 2, 0.001, Wait(0.005)),
        ("below min_size, more to decode", MIN_3, ONE_PENDING, 2, 0.001, Decode(ONE_PENDING)),
        ("below min_size at the deadline", MIN_3, [], 2, 0.005, Run(jobs(0, 1))),
        ("at min_size", MIN_3, [], 3, 0.0, Run(jobs(0, 1, 2))),
        ("eager: rows before less than a batch", EAGER, jobs(7, 8, 9), 1, 0.0, Run(jobs(0))),
        ("eager, a batch to decode", EAGER, jobs(6, 7, 8, 9), 1, 0.0, Decode(jobs(6))),
        ("eager, no row", EAGER, ONE_PENDING, 0, 0.0, Decode(ONE_PENDING)),
        (
            "eager, rows below min_size",
            EAGER._replace(min_size=3),
            ONE_PENDING,
            2,
            0.0,
            Decode(ONE_PENDING),
        ),
        ("enough rows before less than a batch", ENOUGH_2, ONE_PENDING, 2, 0.0, Run(jobs(0, 1))),
        ("not enough rows", ENOUGH_2, ONE_PENDING, 1, 0.0, Decode(ONE_PENDING)),
        ("rows down to a bucket", PAIRS, [], 3, 0.0, Run(jobs(0, 1))),
        ("rows down to a bucket at the deadline", PAIRS, ONE_PENDING, 3, 0.005, Run(jobs(0, 1))),
        ("rows at the cap, which is a bucket", PAIRS, [], 7, 0.0, Run(jobs(0, 1, 2, 3))),
        ("min_size above the cap", BOUNDS._replace(min_size=9), [], 4, 0.0, Run(jobs(0, 1, 2, 3))),
    ],
)
def test_a_free_lane_is_told(
    trigger: str,
    bounds: Bounds,
    pending: list[Job],
    rows: int,
    now_s: float,
    expected: Run[Job] | Decode[Job] | Wait,
) -> None:
    batcher = batcher_with(bounds, pending=pending, rows=jobs(*range(rows)))
    assert batcher.next(now_s) == expected, trigger


def test_tiny_jobs_are_decoded_in_groups_that_leave_no_batch_overfull() -> None:
    batcher = batcher_with(
        BOUNDS._replace(cap=100), pending=jobs(*range(80), size_bytes=400), rows=jobs(100)
    )
    assert batcher.next(0.0) == Decode(jobs(*range(64), size_bytes=400))
    batcher = batcher_with(pending=jobs(0, 1, 2, 3, size_bytes=400), rows=jobs(100, 101))
    assert batcher.next(0.0) == Decode(jobs(0, 1, size_bytes=400))


def test_a_group_is_bounded_by_bytes_and_ends_before_a_suspect() -> None:
    batcher = batcher_with(pending=jobs(0, 1, 2, size_bytes=32_000))
    assert batcher.next(0.0) == Decode(jobs(0, 1, size_bytes=32_000))
    suspect = Job(1, alone=True, size_bytes=400)
    batcher = batcher_with(pending=[Job(0, size_bytes=400), suspect, Job(2, size_bytes=400)])
    assert batcher.next(0.0) == Decode([Job(0, size_bytes=400)])
    assert batcher.next(0.0) == Decode([suspect])


def test_what_is_put_back_is_first_in_line_in_its_order() -> None:
    batcher = batcher_with(pending=[Job(3)])
    batcher.put_back(jobs(1, 2))
    assert [batcher.next(0.0) for _ in range(3)] == [Decode([Job(n)]) for n in (1, 2, 3)]


def test_a_suspect_runs_before_all_others_and_shares_its_batch_with_nobody() -> None:
    batcher = batcher_with(rows=[*jobs(0, 1, 2, 3), Job(7, alone=True), Job(8, alone=True)])
    assert batcher.next(0.0) == Run((Job(7, alone=True),))
    assert batcher.next(0.0) == Run((Job(8, alone=True),))
    assert batcher.next(0.0) == Run(jobs(0, 1, 2, 3))


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_cancelling_one_row_leaves_its_neighbours_in_their_batch(cancelled: int) -> None:
    batcher = batcher_with(rows=jobs(0, 1, 2))
    assert batcher.cancel(cancelled) == Job(cancelled)
    assert batcher.cancel(cancelled) is None
    assert batcher.next(0.0) == Run(jobs(*({0, 1, 2} - {cancelled})))


def test_cancelling_reaches_what_is_pending_and_suspects_but_not_what_a_lane_holds() -> None:
    batcher = batcher_with(pending=jobs(0, 1), rows=[Job(2, alone=True)])
    assert batcher.cancel(1) == Job(1)
    assert batcher.cancel(2) == Job(2, alone=True)
    assert batcher.next(0.0) == Decode(jobs(0))
    assert batcher.cancel(0) is None
    assert batcher.next(0.0) == Wait(None)


def test_new_bounds_judge_rows_that_already_wait() -> None:
    batcher = batcher_with(pending=ONE_PENDING, rows=jobs(0, 1, 2))
    assert len(batcher) == 4
    batcher.bounds = BOUNDS._replace(cap=2)
    assert batcher.next(0.0) == Run(jobs(0, 1))


def test_a_closed_batcher_waits_for_no_company_and_stops_when_it_is_empty() -> None:
    batcher = batcher_with(MIN_3, pending=ONE_PENDING, rows=jobs(0))
    batcher.close()
    assert batcher.next(0.0) == Decode(ONE_PENDING)
    assert batcher.next(0.0) == Run(jobs(0))
    assert batcher.next(0.0) == Stop()


@pytest.mark.parametrize("role", Role)
def test_an_abandoned_batcher_stops_every_lane_whatever_others_hold_or_give_back(
    role: Role,
) -> None:
    batcher = batcher_with(pending=jobs(10, 11), rows=[Job(0), Job(1, alone=True)])
    assert batcher.next(0.0, role=Role.DECODE) == Decode(jobs(10))
    batcher.abandon()
    assert len(batcher) == 0
    assert batcher.next(1.0, role=role) == Stop()
    batcher.put_back(jobs(10))
    assert batcher.next(1.0, role=role) == Stop()


@pytest.mark.parametrize(
    ("trigger", "role", "pending", "rows", "now_s", "expected"),
    [
        ("who runs never decodes", Role.RUN, ONE_PENDING, 0, 0.0, Wait(None)),
        ("who runs waits for min_size", Role.RUN, ONE_PENDING, 2, 0.001, Wait(0.005)),
        ("but no longer than a row may", Role.RUN, ONE_PENDING, 2, 0.005, Run(jobs(0, 1))),
        ("who runs does not wait for more", Role.RUN, ONE_PENDING, 3, 0.0, Run(jobs(0, 1, 2))),
        ("who runs takes a batch at most", Role.RUN, [], 6, 0.0, Run(jobs(0, 1, 2, 3))),
        ("who decodes never runs", Role.DECODE, [], 3, 1.0, Wait(None)),
        ("who decodes fills a batch", Role.DECODE, ONE_PENDING, 3, 1.0, Decode(ONE_PENDING)),
        ("and stops before a second one", Role.DECODE, ONE_PENDING, 4, 1.0, Wait(None)),
    ],
)
def test_a_lane_with_a_role_is_told(
    trigger: str,
    role: Role,
    pending: list[Job],
    rows: int,
    now_s: float,
    expected: Run[Job] | Decode[Job] | Wait,
) -> None:
    batcher = batcher_with(MIN_3, pending=pending, rows=jobs(*range(rows)))
    assert batcher.next(now_s, role=role) == expected, trigger


def test_groups_that_are_being_decoded_count_as_rows_and_single_pictures_do_not() -> None:
    tiny, big = jobs(0, 1, 2, 3, size_bytes=300), jobs(10, 11, 12, 13)
    batcher = batcher_with(pending=[*tiny, *big], rows=jobs(100))

    def told() -> Run[Job] | Decode[Job] | Wait | Stop:
        return batcher.next(0.0, role=Role.DECODE)

    assert [told(), told()] == [Decode(tiny[:3]), Wait(None)]
    batcher.put_back(tiny[1:3])
    assert [told(), told()] == [Decode(tiny[1:3]), Wait(None)]
    batcher.ready(Decoded([], 1), 0.0)
    assert [told(), told()] == [Decode(tiny[3:]), Wait(None)]
    batcher.ready(Decoded(tiny[1:3], 2), 0.0)
    assert [told(), told()] == [Decode(big[:1]), Decode(big[1:2])]
    batcher.ready(Decoded(tiny[3:], 1), 0.0)
    assert told() == Wait(None)


@given(
    data=st.data(),
    added=st.lists(st.tuples(st.booleans(), st.sampled_from([300, BIG])), max_size=20),
    cap=st.integers(1, 4),
    min_size=st.integers(1, 5),
)
@settings(deadline=None)
def test_lanes_with_roles_bring_every_job_to_its_end_before_they_stop(
    data: st.DataObject, added: list[tuple[bool, int]], cap: int, min_size: int
) -> None:
    batcher: Batcher[Job] = Batcher(Bounds(cap, min_size, 60.0))
    batcher.add(Job(n, alone, size) for n, (alone, size) in enumerate(added))
    batcher.close()
    lanes = {0: Role.DECODE, 1: Role.DECODE, 2: Role.RUN, 3: Role.RUN}
    decoding: dict[int, list[Job]] = {}
    ended: list[Job] = []
    order = data.draw(st.lists(st.integers(0, 3), max_size=60))
    for at in [*order, *range(4)] * 100:  # whatever the order, each is asked again and again
        if at not in lanes:
            continue
        if group := decoding.pop(at, []):
            good = len(group) - (group[0].id % 3 == 0)
            ended += group[good:]
            batcher.ready(Decoded(group[:good], len(group)), 0.0)
        match batcher.next(0.0, role=lanes[at]):
            case Decode(jobs_told):
                begun = 1 if jobs_told[0].id % 4 == 1 else len(jobs_told)
                batcher.put_back(jobs_told[begun:])
                decoding[at] = list(jobs_told[:begun])
                held = len(batcher._rows) + len(batcher._suspects)
                held += sum(map(len, decoding.values()))
                assert held < cap + 2, "less than a batch, and one for each lane that decodes"
            case Run(rows):
                ended += rows
            case Wait(until_s):
                assert until_s is None, "closed: nobody waits for company"
            case Stop():
                assert lanes.pop(at) is Role.DECODE or len(ended) == len(added)
    assert not lanes
    assert sorted(job.id for job in ended) == list(range(len(added)))


class Lanes(RuleBasedStateMachine):
    """Any number of lanes, any order of events; the model is where each job is."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds = Bounds(cap=3, min_size=2, max_wait_s=0.010)
        self.batcher: Batcher[Job] = Batcher(self.bounds)
        self.now_s = 0.0
        self.count = 0
        self.waiting: set[Job] = set()
        self.decoding: list[Job] = []
        self.ready_at: dict[Job, float] = {}
        self.ended: list[Job] = []
        self.closed = False

    @rule(
        new=st.lists(st.tuples(st.booleans(), st.sampled_from([300, 9000, BIG])), max_size=6),
    )
    @precondition(lambda self: not self.closed)
    def submit(self, new: list[tuple[bool, int]]) -> None:
        added = [Job(self.count + n, alone, size) for n, (alone, size) in enumerate(new)]
        self.count += len(added)
        self.waiting.update(added)
        self.batcher.add(added)

    @rule(seconds=st.floats(0, 0.02))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(
        cap=st.integers(1, 5),
        min_size=st.integers(1, 6),
        wait_s=st.floats(0, 0.02),
        enough=st.integers(1, 6),
        floored=st.booleans(),
    )
    def limits_change(
        self, cap: int, min_size: int, wait_s: float, enough: int, *, floored: bool
    ) -> None:
        takes = (0, 1, 2, 2, 4, 4)[: cap + 1] if floored else ()
        self.bounds = self.batcher.bounds = Bounds(cap, min_size, wait_s, enough, takes)

    @rule()
    def close(self) -> None:
        self.closed = True
        self.batcher.close()

    @rule(data=st.data())
    @precondition(lambda self: self.decoding)
    def a_decode_ends(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.decoding))
        self.decoding.remove(job)
        end = data.draw(st.sampled_from(["row", "bad", "put back"]))
        if end == "row":
            self.ready_at[job] = self.now_s
            self.batcher.ready(Decoded([job], 1), self.now_s)
        elif end == "bad":
            self.ended.append(job)
        else:
            self.waiting.add(job)
            self.batcher.put_back([job])

    @rule(data=st.data())
    @precondition(lambda self: self.count)
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.integers(0, self.count - 1))
        job = self.batcher.cancel(job_id)
        held = {job.id: job for job in (*self.waiting, *self.ready_at)}
        assert job == held.get(job_id)
        if job is not None:
            self.waiting.discard(job)
            self.ready_at.pop(job, None)
            self.ended.append(job)

    @rule()
    def a_lane_asks(self) -> None:
        overdue = [
            job
            for job, ready_s in self.ready_at.items()
            if job.alone or self.now_s >= ready_s + self.bounds.max_wait_s
        ]
        match self.batcher.next(self.now_s):
            case Run(rows):
                assert rows
                assert len(rows) <= self.bounds.cap
                assert len(rows) == 1 or not any(job.alone for job in rows)
                assert not overdue or set(rows) & set(overdue)
                for job in rows:
                    del self.ready_at[job]
                    self.ended.append(job)
            case Decode(group):
                assert group
                assert not overdue, "a row was left waiting beyond its bound"
                assert len(group) == 1 or not any(job.alone for job in group)
                self.waiting.difference_update(group)
                self.decoding.extend(group)
            case Wait(until_s):
                assert not self.closed
                assert not overdue
                assert not self.waiting
                assert len(self.ready_at) < min(self.bounds.min_size, self.bounds.cap)
                deadlines = [s + self.bounds.max_wait_s for s in self.ready_at.values()]
                assert until_s == min(deadlines, default=None)
            case Stop():
                assert self.closed
                assert not self.waiting
                assert not self.ready_at

    @invariant()
    def every_job_is_in_exactly_one_place(self) -> None:
        assert len(self.batcher) == len(self.waiting) + len(self.ready_at)
        places = [*self.waiting, *self.decoding, *self.ready_at, *self.ended]
        assert sorted(job.id for job in places) == list(range(self.count))

    def teardown(self) -> None:
        """After the last event, enough asking brings every job to its end."""
        self.closed = True
        self.batcher.close()
        while True:
            match self.batcher.next(self.now_s):
                case Run(rows):
                    self.ended.extend(rows)
                case Decode(group):
                    self.ended.extend(group)
                case end:
                    assert end == Stop()
                    break
        assert sorted(job.id for job in (*self.ended, *self.decoding)) == list(range(self.count))


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
