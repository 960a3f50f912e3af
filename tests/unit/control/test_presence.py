"""Whether those that Redis names are all that live."""

import pytest

from tests.unit.control.states import ack
from worker.control.presence import Presence

ONE, OTHER = ack("w-1", sent_at_ms=1), ack("w-2", sent_at_ms=1)
BOTH = {"w-1": ONE, "w-2": OTHER}


@pytest.fixture
def presence() -> Presence:
    seen = Presence(holds_s=15.0, beat_s=5.0)
    assert seen.whole(BOTH, 100.0)
    return seen


def test_who_goes_before_its_answer_expires_was_lost_and_may_come_back(presence: Presence) -> None:
    assert not presence.whole({"w-1": ONE}, 104.0)
    assert not presence.whole(BOTH, 113.9)
    assert presence.whole(BOTH, 114.0)


def test_who_never_comes_back_is_waited_for_once(presence: Presence) -> None:
    assert not presence.whole({"w-1": ONE}, 104.0)
    assert presence.whole({"w-1": ONE}, 114.0)


def test_who_expired_is_gone(presence: Presence) -> None:
    assert presence.whole({"w-1": ack("w-1", sent_at_ms=2), "w-2": OTHER}, 108.0)
    assert presence.whole({"w-1": ack("w-1", sent_at_ms=2)}, 110.0)


def test_who_said_that_it_stops_is_gone(presence: Presence) -> None:
    assert presence.whole({"w-1": ONE, "w-2": ack("w-2", state="stopping")}, 101.0)
    assert presence.whole({"w-1": ONE}, 102.0)


def test_an_answer_that_does_not_change_is_an_old_one(presence: Presence) -> None:
    assert presence.whole(BOTH, 109.0)
    assert presence.whole({"w-1": ONE}, 110.0)


def test_after_redis_did_not_answer_all_may_be_missing(presence: Presence) -> None:
    presence.doubt(200.0)
    assert not presence.whole(BOTH, 209.9)
    assert presence.whole(BOTH, 210.0)
