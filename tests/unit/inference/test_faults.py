import inspect

import pytest

from worker import errors
from worker.errors import DarkroomError, RecordFault, RecordSkipped
from worker.inference.faults import ANSWERS, Answer, Fault, answer_to, fault_of, outcome_of
from worker.types import Failed, Reason, Skipped, SkipReason

EXPECTED: dict[str, Fault | None] = {
    "DarkroomError": None,
    "SettingsError": None,
    "ModelError": Fault.MODEL,
    "DeviceError": Fault.DEVICE,
    "BrokerRefused": None,
    "BrokerUnavailable": Fault.WORLD,
    "ControlUnavailable": Fault.WORLD,
    "StateError": None,
    "RecordFault": Fault.RECORD,
    "RecordSkipped": Fault.MOMENT,
    "EngineFault": Fault.ENGINE,
    "ChannelError": Fault.ENGINE,
    "CommandError": None,
}
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "RecordFault": (Reason.IMAGE_EMPTY, "no bytes"),
    "RecordSkipped": (SkipReason.EXPIRED, "late"),
}


def test_every_fault_has_one_answer_and_every_answer_its_fault() -> None:
    assert set(ANSWERS) == set(Fault)
    assert sorted(ANSWERS.values(), key=str) == sorted(Answer, key=str)


def test_only_a_fault_of_the_record_makes_a_dead_letter() -> None:
    assert [fault for fault in Fault if ANSWERS[fault] is Answer.DEAD_LETTER] == [Fault.RECORD]


def test_the_table_below_names_every_error_of_the_tree() -> None:
    tree = {
        name for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, DarkroomError)
    }  # fmt: skip
    assert tree == set(EXPECTED)


@pytest.mark.parametrize(("name", "fault"), EXPECTED.items())
def test_each_error_says_who_is_at_fault(name: str, fault: Fault | None) -> None:
    error = getattr(errors, name)(*ARGUMENTS.get(name, ("text",)))
    assert fault_of(error) is fault
    assert answer_to(error) is (None if fault is None else ANSWERS[fault])


def test_what_the_operating_system_refuses_is_tried_again() -> None:
    assert answer_to(BlockingIOError("fork: no more processes")) is Answer.RETRY


def test_a_bug_has_no_answer() -> None:
    assert answer_to(ZeroDivisionError()) is None


def test_errors_about_records_become_their_outcomes() -> None:
    assert outcome_of(RecordFault(Reason.IMAGE_EMPTY, "no bytes")) == Failed(
        Reason.IMAGE_EMPTY, "no bytes"
    )
    assert outcome_of(RecordSkipped(SkipReason.EXPIRED, "late")) == Skipped(
        SkipReason.EXPIRED, "late"
    )
