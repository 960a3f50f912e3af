"""The batching policy beside five others, in simulation: an order, on fixed seeds.

It drives the real window, batcher, sizing and cost table; the times are a GPU's and a CPU's.
"""

import pytest

from benchmarks.adaptive import VARIANTS, turns
from benchmarks.batching import CPU, GPU, LOADS, OURS, at_load, draining
from benchmarks.policies import OTHERS, World

GREEDY = "greedy, padded"
WORLDS = pytest.mark.parametrize("world", [GPU, CPU], ids=lambda world: world.name)


@WORLDS
@pytest.mark.parametrize("share", LOADS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_oldest_rows_are_never_older_than_by_taking_all_there_is(
    world: World, share: float, seed: int
) -> None:
    seconds = 4.0 if world is GPU else 15.0
    ours, greedy = (
        at_load(world, name, share, seconds=seconds, seed=seed) for name in (OURS, GREEDY)
    )
    assert ours.p99_ms <= greedy.p99_ms
    assert ours.missed <= greedy.missed


@WORLDS
def test_a_backlog_is_drained_within_two_per_cent_of_the_best(world: World) -> None:
    rows = 8000 if world is GPU else 2000
    rates = {name: draining(world, name, rows).rate for name in (OURS, *OTHERS)}
    assert rates[OURS] >= 0.98 * max(rates.values()), rates


def test_close_to_its_limit_a_device_keeps_what_greed_loses() -> None:
    """A late queue must not shrink the batch, nor padding grow it: both end in a spiral."""
    ours = at_load(CPU, OURS, 0.85, seconds=60.0, seed=4)
    greedy = at_load(CPU, GREEDY, 0.85, seconds=60.0, seed=4)
    assert ours.p99_ms < greedy.p99_ms / 2


def test_fixed_and_adaptive_batches_are_measured_in_turn_and_each_is_first_once() -> None:
    order = turns(3)
    rounds = [order[at : at + len(VARIANTS)] for at in range(0, len(order), len(VARIANTS))]
    assert [set(names) for names in rounds] == [set(VARIANTS)] * 3
    assert {names[0] for names in rounds} == set(VARIANTS)
