"""How much may be in flight: by records, by bytes and by time, the clock in hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.kafka.ledger import Bound

MB = 1 << 20


def bound(
    *,
    max_records: int = 1000,
    max_bytes: int = 100 * MB,
    max_s: float = 1.0,
    floor: int = 16,
    drain_s: float = math.inf,
) -> Bound:
    return Bound(
        max_records=max_records, max_bytes=max_bytes, max_s=max_s, floor=floor, drain_s=drain_s
    )


def measured(made: Bound, *, per_second: int) -> Bound:
    """Let it see that rate for ten seconds."""
    for second in range(10):
        made.fetched(per_second, per_second, float(second))
        made.finished(per_second, second + 1.0)
        made.released(per_second, per_second)
    return made


@pytest.mark.parametrize(
    ("per_second", "max_records", "max_s", "cap"),
    [(500, 1000, 1.0, 500), (500, 1000, 0.1, 50), (500, 300, 1.0, 300), (2, 1000, 1.0, 16)],
)
def test_the_cap_follows_the_rate_between_the_floor_and_the_records(
    per_second: int, max_records: int, max_s: float, cap: int
) -> None:
    made = measured(bound(max_records=max_records, max_s=max_s), per_second=per_second)
    assert made.cap == cap
    assert made.room == cap


def test_before_anything_is_measured_the_floor_counts() -> None:
    assert bound(floor=16).room == 16


def test_a_floor_of_nothing_still_lets_one_record_in() -> None:
    assert bound(floor=0).room == 1


def test_idle_time_is_no_part_of_the_rate() -> None:
    made = measured(bound(), per_second=500)
    made.finished(0, 5_000.0)
    made.fetched(500, 500, 10_000.0)
    made.finished(500, 10_001.0)
    assert made.cap == pytest.approx(500, rel=0.01)


def test_what_was_given_up_is_no_part_of_the_rate() -> None:
    made = measured(bound(), per_second=500)
    made.fetched(10, 10, 100.0)
    made.abandoned(10)
    made.released(10, 10)
    made.fetched(500, 500, 10_000.0)
    made.finished(500, 10_001.0)
    assert made.cap == pytest.approx(500, rel=0.01)


def test_room_shrinks_with_what_is_in_flight_and_is_never_negative() -> None:
    made = bound(floor=16)
    made.fetched(10, 10, 0.0)
    assert made.room == 6
    made.fetched(20, 20, 0.0)
    assert made.room == 0
    made.released(30, 30)
    assert made.room == 16


def test_bytes_bound_the_room_by_the_mean_size_of_late() -> None:
    made = bound(floor=1000, max_bytes=10 * MB)
    for _ in range(50):
        made.fetched(1, MB, 0.0)
        made.released(1, MB)
    assert made.room == pytest.approx(10, abs=1)
    made.fetched(10, 10 * MB, 0.0)
    assert made.room == 0


def test_one_record_larger_than_the_bound_is_let_in_alone() -> None:
    made = bound(floor=16, max_bytes=MB)
    for _ in range(50):
        made.fetched(1, 5 * MB, 0.0)
        assert made.room == 0
        made.released(1, 5 * MB)
        assert made.room == 1


@pytest.mark.parametrize(
    ("expected_rate", "drain_s", "cap"),
    [(0.0, 12.5, 128), (4.0, 12.5, 50), (0.01, 12.5, 1), (1000.0, 12.5, 128), (4.0, math.inf, 128)],
)
def test_a_slow_model_has_no_more_in_flight_than_drains_in_time_from_the_first_record_on(
    expected_rate: float, drain_s: float, cap: int
) -> None:
    made = bound(floor=128, drain_s=drain_s)
    made.expected_rate = expected_rate
    assert made.cap == made.room == cap


def test_a_measured_rate_counts_more_than_what_was_expected() -> None:
    made = bound(floor=128, drain_s=10.0)
    made.expected_rate = 1000.0
    assert measured(made, per_second=2).cap == 20


def test_seconds_in_flight_yield_to_the_deadline_of_a_drain() -> None:
    assert measured(bound(max_s=30.0, drain_s=2.0), per_second=100).cap == 200


@given(
    service_s=st.floats(0.01, 30.0),
    lanes=st.integers(1, 8),
    cap=st.integers(1, 64),
    drain_s=st.floats(1.0, 60.0),
)
def test_whatever_a_row_takes_what_is_in_flight_drains_in_time(
    service_s: float, lanes: int, cap: int, drain_s: float
) -> None:
    """Lanes in step take `service_s` for each row; all that the bound lets in is let in."""
    made = Bound(
        max_records=4096, max_bytes=1 << 30, max_s=1.0, floor=4 * lanes * cap, drain_s=drain_s
    )
    made.expected_rate = lanes / service_s
    now_s = 0.0
    for _ in range(50):
        rows = min(lanes, made.room)
        made.fetched(rows, rows, now_s)
        now_s += service_s
        made.finished(rows, now_s)
        made.released(rows, rows)
        rounds = math.ceil(made.cap / lanes)
        assert rounds == 1 or (rounds - 1) * service_s <= drain_s * 1.001
