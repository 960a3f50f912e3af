"""The benchmark of layouts: which are measured, and who is the best."""

import pytest

from benchmarks.layouts import Layout, arguments, beside_best, best_of, layouts
from worker.config_sections import Settings


def test_two_cores_have_eight_layouts_that_make_sense() -> None:
    assert layouts(2) == [
        Layout(1, 1, 1),
        Layout(1, 2, 1),
        Layout(2, 1, 1),
        Layout(2, 1, 2),
        Layout(2, 2, 1),
        Layout(2, 2, 2),
        Layout(3, 1, 1),
        Layout(3, 1, 2),
    ]


@pytest.mark.parametrize("cores", [1, 3, 16])
def test_no_engine_is_without_a_lane_and_no_core_has_more_than_two_threads(cores: int) -> None:
    found = layouts(cores)
    assert Layout(cores, 1, 1) in found
    assert len(set(found)) == len(found)
    assert all(each.engines <= each.lanes for each in found)
    assert all(each.lanes * each.threads <= 2 * cores for each in found)


def test_a_layout_is_settings_that_the_worker_takes() -> None:
    engine = Settings.model_validate({"engine": Layout(3, 2, 2).settings}).engine
    assert (engine.lanes, engine.instances_per_device) == (3, 2)
    assert engine.session == {"intra_op_num_threads": "2"}


def test_one_round_in_which_the_machine_was_fast_does_not_decide() -> None:
    rates = {"good": [11.0, 11.0, 90.0], "poor": [10.0, 10.0, 100.0]}
    assert best_of(rates) == "good"
    over = beside_best(rates, "good")
    assert over["good"].median == 1.0
    assert over["poor"].median == pytest.approx(1 / 1.1)


def test_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--rounds", "0"])
    assert "--rounds" in capsys.readouterr().err
