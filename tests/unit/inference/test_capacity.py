"""What an engine has under way at once, and how fast it is, by what it said of itself."""

import pytest

from tests.unit.inference.scripted import LOADED
from worker.inference.capacity import Capacity
from worker.protocol.messages import Loaded

BOUND = LOADED._replace(bound=True)


@pytest.mark.parametrize(
    ("loaded", "rows", "rate"),
    [
        (LOADED, 8 * 4, 8 * 2000.0),
        (BOUND, 3 * 4, 2000.0),
        (BOUND._replace(service_ms={}), 3 * 4, 0.0),
        (None, 8 * 4, 0.0),
    ],
)
def test_lanes_run_side_by_side_unless_runs_are_bound(
    loaded: Loaded | None, rows: int, rate: float
) -> None:
    capacity = Capacity.of(loaded, 8)
    assert (capacity.rows(4), capacity.rate) == (rows, rate)


def test_every_lane_has_a_row_to_decode_however_small_bound_batches_are() -> None:
    assert Capacity.of(BOUND, 16).rows(1) == 16
