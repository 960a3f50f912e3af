from itertools import count

import pytest

from worker.inference.guilt import FAILURES_TO_REPLACE, LAST_RESORT_ENGINES, Guilt

engines = count(1)


def died(*suspects: int) -> Guilt:
    guilt = Guilt()
    guilt.judged_by(next(engines))
    guilt.suspect(suspects)
    guilt.judged_by(next(engines))
    return guilt


def test_nobody_is_suspected_before_an_engine_ends() -> None:
    guilt = Guilt()
    guilt.judged_by(next(engines))
    guilt.passed([1, 2])
    assert guilt.clear


def test_a_witness_runs_before_any_suspect() -> None:
    assert died(1, 2).next_alone(witness=9) == 9


def test_without_a_witness_the_suspects_run_in_their_order() -> None:
    guilt = died(2, 1)
    assert guilt.next_alone(witness=None) == 2
    guilt.passed([2])
    assert guilt.next_alone(witness=None) == 1


def test_after_a_witness_passed_it_is_a_suspects_turn() -> None:
    guilt = died(1)
    guilt.passed([9])
    assert guilt.next_alone(witness=8) == 1


@pytest.mark.parametrize("event", ["another engine", "a failure alone", "another suspect"])
def test_every_failure_and_every_engine_wants_a_witness_of_its_own(event: str) -> None:
    guilt = died(1, 2)
    guilt.passed([9])
    match event:
        case "another engine":
            guilt.judged_by(next(engines))
        case "a failure alone":
            assert guilt.failed_alone(1, others=True)
        case _:
            guilt.suspect([3])
    assert guilt.next_alone(witness=8) == 8
    assert not guilt.failed_alone(2, others=True)


def test_a_witness_that_fails_is_a_suspect_and_not_guilty() -> None:
    guilt = died(1)
    guilt.passed([9])
    assert not guilt.failed_alone(8, others=True)
    assert guilt.suspects == (1, 8)


def test_a_suspect_that_passes_is_free() -> None:
    guilt = died(1)
    guilt.passed([1])
    assert guilt.clear


def test_a_suspect_that_ends_otherwise_is_free_and_proves_nothing() -> None:
    guilt = died(1, 2)
    guilt.closed(1)
    assert guilt.suspects == (2,)
    assert not guilt.failed_alone(2, others=True)


def test_who_fails_alone_after_another_passed_is_guilty() -> None:
    guilt = died(1, 2)
    guilt.passed([2])
    assert guilt.failed_alone(1, others=True)
    assert guilt.clear


def test_who_fails_alone_before_anybody_passed_is_not_guilty_yet() -> None:
    guilt = died(1, 2)
    assert not guilt.failed_alone(1, others=True)
    assert guilt.suspects == (1, 2)


def test_a_pass_before_the_first_failure_says_nothing() -> None:
    guilt = Guilt()
    guilt.judged_by(next(engines))
    guilt.passed([7])
    guilt.suspect([1])
    guilt.judged_by(next(engines))
    assert not guilt.failed_alone(1, others=True)


def test_a_recovered_engine_does_not_make_those_guilty_that_failed_before() -> None:
    guilt = died(1, 2)
    for row in (1, 2, 3):  # 3 was a witness: the engine fails at everything
        assert not guilt.failed_alone(row, others=True)
        guilt.judged_by(next(engines))
    guilt.passed([4])
    assert guilt.suspects == (1, 2, 3)
    for row in (1, 2, 3):
        assert guilt.next_alone(witness=None) == row
        guilt.passed([row])
    assert guilt.clear


def test_suspects_take_turns_while_all_of_them_fail() -> None:
    guilt = died(1, 2)
    order = []
    for _ in range(4):
        row = guilt.next_alone(witness=None)
        order.append(row)
        assert not guilt.failed_alone(row, others=True)
        guilt.judged_by(next(engines))
    assert order == [1, 2, 1, 2]


def test_the_only_record_there_is_is_guilty_after_so_many_proven_engines() -> None:
    guilt = died(1)
    verdicts = []
    for _ in range(LAST_RESORT_ENGINES):
        verdicts.append(guilt.failed_alone(1, others=False))
        guilt.judged_by(next(engines))
    assert verdicts == [False] * (LAST_RESORT_ENGINES - 1) + [True]


def test_failing_the_same_engine_many_times_is_no_last_resort() -> None:
    guilt = died(1)
    assert not any(guilt.failed_alone(1, others=False) for _ in range(20))


def test_with_other_records_waiting_there_is_no_last_resort() -> None:
    guilt = died(1)
    for _ in range(20):
        assert not guilt.failed_alone(1, others=True)
        guilt.judged_by(next(engines))


@pytest.mark.parametrize("passed_between", [True, False])
def test_an_engine_that_fails_at_several_rows_running_is_suspected(*, passed_between: bool) -> None:
    guilt = died(1, 2, 3)
    for row in range(FAILURES_TO_REPLACE):
        if passed_between:
            guilt.passed([100 + row])
        guilt.failed_alone(row, others=True)
    assert guilt.engine_suspected is not passed_between
    guilt.judged_by(next(engines))
    assert not guilt.engine_suspected


def test_what_fails_by_its_devices_fault_is_not_guilty_and_lets_others_go_first() -> None:
    guilt = died(1, 2)
    for _ in range(2 * LAST_RESORT_ENGINES):
        guilt.passed([9])
        guilt.excused(1)
        assert not guilt.proven
        guilt.judged_by(next(engines))
    assert guilt.suspects == (1, 2)
    assert guilt.next_alone(witness=None) == 2
    guilt.passed([2])
    assert guilt.failed_alone(1, others=True), "this time it was no device"


def test_a_witness_that_fails_by_its_devices_fault_is_a_suspect() -> None:
    guilt = died(1)
    guilt.excused(9)
    assert guilt.suspects == (1, 9)


def test_the_last_resort_counts_engines_and_not_how_often_they_are_asked() -> None:
    guilt = died(1)
    for engine in (101, 102, 101, 102):
        guilt.judged_by(engine)
        assert not guilt.failed_alone(1, others=False)
    guilt.judged_by(103)
    assert guilt.failed_alone(1, others=False)
