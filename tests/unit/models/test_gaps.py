from worker.models.gaps import SwitchGaps
from worker.types import ModelRef

OLD, NEW, NEWER = (ModelRef("a", version) for version in "123")


def test_a_gap_is_from_the_last_outcome_of_the_old_to_the_first_of_the_new() -> None:
    seen: list[tuple[str, float]] = []
    gaps = SwitchGaps(lambda name, gap_s: seen.append((name, gap_s)))
    gaps.served(OLD, 1.0)
    gaps.switched(NEW, 2.0, busy=True)
    gaps.served(OLD, 2.5)
    gaps.served(OLD, 3.0)
    gaps.served(NEW, 3.25)
    gaps.served(NEW, 9.0)
    gaps.served(OLD, 10.0)
    assert seen == [("a", 0.25)]
    gaps.switched(NEWER, 11.0, busy=True)
    gaps.switched(NEW, 12.0, busy=True)
    gaps.served(NEW, 12.5)
    assert seen[1:] == [("a", 0.5)]


def test_nothing_is_measured_when_the_old_version_had_nothing_to_do() -> None:
    seen: list[tuple[str, float]] = []
    gaps = SwitchGaps(lambda name, gap_s: seen.append((name, gap_s)))
    gaps.switched(NEW, 1.0, busy=True)
    gaps.switched(NEWER, 2.0, busy=False)
    gaps.served(NEWER, 100.0)
    assert seen == []
