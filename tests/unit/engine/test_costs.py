"""The cost table: what is warmed, what is learned, and the size that follows."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.costs import Costs, Took

GPU_MS = {1: 2.0, 2: 2.2, 4: 2.6, 8: 3.6, 16: 6.0, 32: 11.0, 64: 21.0, 128: 41.0}
SLO_S = 0.25


def even(seconds: float) -> Took:
    """Return a run in which nobody else had the core."""
    return Took(seconds, seconds)


def table(times_ms: dict[int, float], *, exact: bool = True) -> Costs:
    costs = Costs(exact=exact, first=min(times_ms))
    for size, ms in times_ms.items():
        costs.seed(size, even(ms / 1e3))
    return costs


def linear(each_ms: float, once_ms: float = 0.0, *, most: int = 64) -> Costs:
    sizes = [2**n for n in range(most.bit_length())]
    return table({size: once_ms + each_ms * size for size in sizes})


def warmed(
    costs: Costs, most: int, *, slo_s: float | None, each_ms: float, once_ms: float
) -> list[int]:
    sizes = []
    while (size := costs.next_size(most, slo_s=slo_s)) is not None:
        sizes.append(size)
        costs.seed(size, even((once_ms + each_ms * size) / 1e3))
    return sizes


@pytest.mark.parametrize(
    ("what", "most", "slo_s", "each_ms", "once_ms", "sizes"),
    [
        ("fixed: all", 100, None, 1.0, 0.0, [1, 2, 4, 8, 16, 32, 64, 100]),
        ("nothing gained", 128, SLO_S, 8.0, 0.0, [1, 2, 4]),
        ("much gained", 128, SLO_S, 0.03, 2.0, [1, 2, 4, 8, 16, 32, 64, 128]),
        ("gained no more", 128, SLO_S, 1.0, 1.0, [1, 2, 4, 8, 16, 32, 64, 128]),
        ("longer than the objective", 128, SLO_S, 50.0, 100.0, [1, 2, 4]),
        ("one row is longer", 128, SLO_S, 300.0, 100.0, [1]),
        ("one row only", 1, SLO_S, 8.0, 0.0, [1]),
    ],
)
def test_sizes_are_warmed_while_they_may_be_of_use(
    what: str, most: int, slo_s: float | None, each_ms: float, once_ms: float, sizes: list[int]
) -> None:
    found = warmed(Costs(), most, slo_s=slo_s, each_ms=each_ms, once_ms=once_ms)
    assert found == sizes, what


def test_a_larger_bound_wants_only_what_is_not_there_yet() -> None:
    costs = Costs()
    assert warmed(costs, 4, slo_s=None, each_ms=1.0, once_ms=1.0) == [1, 2, 4]
    assert warmed(costs, 16, slo_s=None, each_ms=1.0, once_ms=1.0) == [8, 16]
    assert costs.next_size(8, slo_s=None) is None


def test_every_size_up_to_16_is_a_bucket_where_any_size_can_be_run() -> None:
    costs = table({1: 3.0, 2: 4.0, 4: 6.0, 32: 34.0})
    assert list(costs.times_s) == [*range(1, 17), 32]
    assert costs.times_s[3] == pytest.approx(0.005)
    assert costs.times_s[16] == pytest.approx(0.018)
    assert list(table({1: 3.0, 4: 6.0}, exact=False).times_s) == [1, 4]


@pytest.mark.parametrize(
    ("times_ms", "backlog", "knee"),
    [
        ({1: 8.7, 8: 70.2, 16: 142.0}, False, 1),
        ({1: 9.0, 16: 130.0}, False, 2),
        ({1: 9.0, 16: 130.0}, True, 7),
        ({1: 0.053, 32: 0.98, 64: 1.93}, False, 13),
        ({1: 9.0}, False, 1),
    ],
)
def test_the_knee_is_the_smallest_size_nearly_as_efficient_as_the_best(
    times_ms: dict[int, float], *, backlog: bool, knee: int
) -> None:
    assert table(times_ms).knee(64, backlog=backlog) == knee


@pytest.mark.parametrize(
    ("slo_s", "backlog", "cap"),
    [
        (0.250, False, 32),
        (0.100, False, 32),
        (0.020, False, 16),
        (0.020, True, 32),
        (0.001, True, 1),
    ],
)
def test_a_run_takes_at_most_half_of_the_objective_or_all_of_it_in_a_backlog(
    slo_s: float, *, backlog: bool, cap: int
) -> None:
    assert table(GPU_MS, exact=False).cap(32, slo_s=slo_s, backlog=backlog) == cap


@pytest.mark.parametrize(
    ("cap", "most", "slo_s", "probed"),
    [
        (8, 128, 0.1, 16),
        (9, 128, 0.1, 32),
        (8, 12, 0.1, 8),
        (32, 128, 0.01, 32),
        (128, 128, 1, 128),
    ],
)
def test_a_probe_is_the_next_bucket_of_twice_the_size_that_may_take_so_long(
    cap: int, most: int, slo_s: float, probed: int
) -> None:
    assert table(GPU_MS, exact=False).probe(cap, most, slo_s=slo_s) == probed


def test_what_varies_much_is_taken_to_be_slow() -> None:
    steady, shaky = linear(1.0, 20.0, most=16), linear(1.0, 20.0, most=16)
    for run in range(100):
        steady.observe(15, even(0.035))
        shaky.observe(15, even(0.035 + (0.02 if run % 2 else -0.02)))
    assert steady.cap(16, slo_s=0.08, backlog=False) == 15
    assert shaky.cap(16, slo_s=0.08, backlog=False) < 15


def test_a_running_mean_follows_what_is_measured() -> None:
    costs = linear(1.0)
    for _ in range(60):
        costs.observe(8, even(0.016))
    assert costs.times_s[8] == pytest.approx(0.016, rel=0.01)


def test_a_size_that_does_not_run_moves_with_those_that_do() -> None:
    """Else a machine that slows down would make every size look better than the one in use."""
    costs = linear(1.0, 4.0)
    before = costs.cap(64, slo_s=10.0, backlog=False)
    for _ in range(200):
        costs.observe(before, even(3e-3 * (before + 4)))
    assert costs.times_s[1] == pytest.approx(0.015, rel=0.05)
    assert costs.cap(64, slo_s=10.0, backlog=False) == before


def test_sizes_that_run_in_turn_keep_what_each_of_them_costs() -> None:
    costs = linear(1.0)
    for _ in range(100):
        costs.observe(1, even(0.004))
        costs.observe(16, even(0.016))
    assert costs.times_s[1] == pytest.approx(0.004, rel=0.01)
    assert costs.times_s[16] == pytest.approx(0.016, rel=0.01)


def test_a_size_that_is_no_bucket_teaches_nothing() -> None:
    costs = linear(1.0)
    before = costs.times_s
    costs.observe(23, even(1.0))
    assert costs.times_s == before


def test_padded_runs_count_for_the_size_that_really_ran() -> None:
    costs = table(GPU_MS, exact=False)
    costs.observe(9, even(0.060))
    assert costs.times_s[16] > 0.006
    assert [costs.whole(rows) for rows in (1, 3, 16, 17, 128, 129)] == [1, 4, 16, 32, 128, 129]


@pytest.mark.parametrize(
    ("ready", "taken"),
    [(1, 1), (2, 2), (3, 3), (5, 4), (6, 6), (8, 8), (9, 8), (12, 8), (15, 15), (16, 16)],
)
def test_rows_are_run_down_to_a_bucket_unless_padding_is_more_efficient(
    ready: int, taken: int
) -> None:
    assert table(GPU_MS, exact=False).takes(16)[ready] == taken


def test_a_graph_of_a_fixed_batch_takes_whatever_there_is() -> None:
    costs = table({4: 8.0}, exact=False)
    assert costs.takes(4) == (0, 1, 2, 3, 4)
    assert costs.takes(2) == (0, 1, 2)
    assert costs.cap(4, slo_s=0.001, backlog=False) == 4
    assert costs.next_size(4, slo_s=None) is None


def test_nothing_is_left_over_where_any_size_can_be_run() -> None:
    assert linear(1.0).takes(16) == ()


sizes = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=9)
observed = st.lists(st.tuples(st.integers(1, 300), st.floats(1e-5, 5.0)), max_size=60)


@given(
    seconds=sizes,
    runs=observed,
    most=st.integers(1, 300),
    slo_s=st.floats(1e-3, 10.0),
    exact=st.booleans(),
)
def test_whatever_is_measured_the_cap_is_allowed_and_larger_in_a_backlog(
    seconds: list[float], runs: list[tuple[int, float]], most: int, slo_s: float, *, exact: bool
) -> None:
    costs = Costs(exact=exact)
    for power, each_s in enumerate(seconds):
        costs.seed(2**power, even(each_s))
    for rows, took_s in runs:
        costs.observe(rows, even(took_s))
    cap = costs.cap(most, slo_s=slo_s, backlog=False)
    assert 1 <= cap <= costs.cap(most, slo_s=slo_s, backlog=True) <= most
    for ready, taken in enumerate(costs.takes(cap)[1:], start=1):
        assert 1 <= taken <= ready
        assert costs.whole(taken) <= max(costs.whole(cap), cap)


def test_sizes_that_run_tell_together_once_that_the_machine_became_slower() -> None:
    costs = table({1: 1.0, 2: 2.0, 4: 4.0, 64: 64.0}, exact=False)
    for _ in range(200):
        for size in (1, 2, 4):
            costs.observe(size, even(2 * size / 1e3))
    assert costs.times_s[64] == pytest.approx(0.128, rel=0.05), "not 2 x 2 x 2 of what it was"


def test_a_size_that_does_not_run_is_not_carried_off_by_the_noise_of_those_that_do() -> None:
    costs, draw = linear(0.06, 0.1), random.Random(5)
    for _ in range(20_000):
        size = draw.randint(1, 8)
        costs.observe(size, even((0.1 + 0.06 * size) / 1e3 * draw.choice((0.5, 0.75, 1.75))))
    assert 0.5 < costs.times_s[64] / (3.94 / 1e3) < 2.0


def test_what_is_efficient_goes_by_work_and_what_is_short_by_the_clock() -> None:
    costs, draw = linear(0.06, 0.1), random.Random(7)
    best = costs.knee(64)
    for _ in range(5_000):
        size = draw.choice((1, 2, 4, 8, best))
        work_s = (0.1 + 0.06 * size) / 1e3
        costs.observe(size, Took(work_s + draw.choice((0.0, 0.0, 0.003)), work_s))
        assert costs.knee(64) == best
    assert costs.times_s[best] > 1.1 * (0.1 + 0.06 * best) / 1e3
    assert costs.cap(64, slo_s=2 * costs.times_s[best], backlog=False) < best, "by its deviation"


@pytest.mark.parametrize(("beside_ms", "knee"), [(0.0, 4), (0.25, 32)])
def test_what_a_batch_costs_beside_its_run_makes_larger_ones_efficient(
    beside_ms: float, knee: int
) -> None:
    costs = Costs(beside_s=beside_ms / 1e3)
    for size in (1, 2, 4, 8, 16, 32, 64):
        costs.seed(size, even((0.02 + 0.1 * size) / 1e3))
    assert costs.knee(64) == knee
    assert costs.cap(64, slo_s=0.001, backlog=False) == 4, "a batch may take as long as before"
