from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.control.simulation import Operator, Store, Worker, first, settle
from tests.unit.control.states import acks, desired_states
from worker.control.answers import Ack, Answer, Code
from worker.control.documents import parse_state
from worker.control.edits import Terms, activate, pin, reload
from worker.control.messages import (
    DesiredState,
    Mode,
    Phase,
    Rollout,
    Selector,
    encode_state,
    frozen,
)
from worker.control.rollout import step

NOW_MS = 1_000_000


def preparing(*admitted: str, mode: Mode = Mode.TWO_PHASE, **terms: Any) -> DesiredState:
    """Return generation 5, in which digits/2 is prepared by those who are admitted."""
    version = "2" if mode is Mode.TWO_PHASE else "1"
    rollout = Rollout("r-1", "digits", version, mode, Phase.PREPARE, NOW_MS, admitted=admitted)
    return first()._replace(generation=5, rollout=rollout._replace(**terms))


def ack(worker: str, **said: Any) -> Ack:
    """Return a worker's answer to generation 5: it serves by it, and is not prepared."""
    made = Ack("default", worker, "serving", "e-1", 5, 5, None, Answer.ACK)
    return made._replace(**said)


def members(*answers: Ack) -> dict[str, Ack]:
    return {answer.worker: answer for answer in answers}


def stepped(state: DesiredState, *answers: Ack, after_ms: int = 0) -> tuple[DesiredState, Rollout]:
    following = step(state, members(*answers), NOW_MS + after_ms)
    assert following is not None
    assert following.generation == 6
    assert following.rollout is not None
    return following, following.rollout


READY = {"prepared": "r-1"}
REFUSES = {"answer": Answer.NACK, "code": Code.MODEL_INVALID, "reason": "digits/2: bad"}


def test_members_are_admitted_in_the_order_of_their_ids_and_no_more_than_may_prepare() -> None:
    _, rollout = stepped(preparing(max_preparing=2), ack("c"), ack("a"), ack("b"))
    assert rollout.admitted == ("a", "b")
    assert step(preparing("a", "b", max_preparing=2), members(*map(ack, "abc")), NOW_MS) is None


def test_the_next_is_admitted_when_one_is_prepared_or_dead() -> None:
    _, rollout = stepped(preparing("a"), ack("a", **READY), ack("b"), ack("c"))
    assert rollout.admitted == ("a", "b")
    _, rollout = stepped(preparing("a"), ack("b"), ack("c"))
    assert rollout.admitted == ("a", "b")


def test_who_is_prepared_without_its_turn_needs_none() -> None:
    _, rollout = stepped(preparing(), ack("a", **READY), ack("b"))
    assert rollout.admitted == ("b",)


def test_two_phase_activates_when_all_are_prepared_and_keeps_a_way_back() -> None:
    state = preparing("a", "b", new_heads=True)
    following, rollout = stepped(state, ack("a", **READY), ack("b", **READY))
    assert rollout == state.rollout._replace(phase=Phase.DONE)  # type: ignore[union-attr]  # has one
    digits = following.models["digits"]
    assert (digits.active, digits.previous, digits.activated) == ("2", "1", 6)
    assert digits.new_heads


def test_rolling_ends_with_the_new_number_for_all_who_come_later() -> None:
    state = preparing("a", mode=Mode.ROLLING, reload=3)
    following, rollout = stepped(state, ack("a", **READY))
    assert rollout.phase is Phase.DONE
    assert following.models["digits"] == state.models["digits"]._replace(reload=3)


def test_a_quorum_suffices_and_is_needed() -> None:
    state = preparing("a", "b", "c", max_preparing=3, quorum=2)
    _, rollout = stepped(state, ack("a", **READY), ack("b", **READY), ack("c"))
    assert rollout.phase is Phase.DONE
    assert step(state, members(ack("a", **READY)), NOW_MS) is None


def test_a_fleet_of_which_nobody_is_alive_waits_for_somebody_until_the_timeout() -> None:
    assert step(preparing(), {}, NOW_MS + 600_000) is None
    _, rollout = stepped(preparing(), after_ms=600_001)
    assert rollout.phase is Phase.ABORTED
    assert rollout.reason == "not done within 600 s: no worker was alive"


def test_a_timeout_aborts_and_names_who_is_missing_with_what_they_said_last() -> None:
    state = preparing("a", "b", max_preparing=2, timeout_s=1.5)
    late = ack("b", answer=Answer.PENDING, code=Code.MODEL_ABSENT, reason="no digits/2 yet")
    following, rollout = stepped(state, ack("a", **READY), late, ack("c"), after_ms=1501)
    assert rollout.reason == (
        "not done within 1.5 s: 1 of 3 prepared; "
        "b (pending: model.absent: no digits/2 yet); c (waiting for its turn; ack)"
    )
    assert following.models == state.models


def test_a_timeout_comes_before_what_was_prepared_too_late() -> None:
    _, rollout = stepped(preparing("a"), ack("a", **READY), after_ms=600_001)
    assert rollout.phase is Phase.ABORTED
    assert rollout.reason == "not done within 600 s: 1 of 1 prepared"


UNREADABLE = {"z": "answer: state: missing"}


def test_a_member_whose_answer_cannot_be_read_holds_up_all_and_is_the_reason() -> None:
    state, ready = preparing("a", timeout_s=1.5), members(ack("a", **READY))
    assert step(state, ready, NOW_MS, unreadable=UNREADABLE) is None
    late = step(state, ready, NOW_MS + 1501, unreadable=UNREADABLE)
    assert late is not None
    assert late.rollout is not None
    assert (late.rollout.phase, late.rollout.reason) == (
        Phase.ABORTED,
        "not done within 1.5 s: 1 of 2 prepared; z (answer: state: missing)",
    )
    assert late.models == state.models


def test_a_member_whose_answer_cannot_be_read_takes_no_turn_and_a_quorum_needs_it_not() -> None:
    state = preparing(quorum=1)
    turn = step(state, members(ack("a")), NOW_MS, unreadable=UNREADABLE)
    assert turn is not None
    assert turn.rollout is not None
    assert turn.rollout.admitted == ("a",)
    done = step(state, members(ack("a", **READY)), NOW_MS, unreadable=UNREADABLE)
    assert done is not None
    assert done.models["digits"].active == "2"


@pytest.mark.parametrize("quorum", [None, 1])
def test_a_reload_needs_nothing_of_a_member_whose_answer_cannot_be_read(
    quorum: int | None,
) -> None:
    state = preparing("a", mode=Mode.ROLLING, reload=3, quorum=quorum)
    waiting = step(state, members(ack("a")), NOW_MS, unreadable=UNREADABLE)
    done = step(state, members(ack("a", **READY)), NOW_MS, unreadable=UNREADABLE)
    assert waiting is None
    assert done is not None
    assert done.rollout is not None
    assert (done.rollout.phase, done.models["digits"].reload) == (Phase.DONE, 3)


def test_a_reload_that_only_members_whose_answers_cannot_be_read_live_for_is_given_up() -> None:
    state = preparing(mode=Mode.ROLLING, reload=3, timeout_s=1.5)
    assert step(state, {}, NOW_MS, unreadable=UNREADABLE) is None
    late = step(state, {}, NOW_MS + 1501, unreadable=UNREADABLE)
    assert late is not None
    assert late.rollout is not None
    assert (late.rollout.phase, late.models) == (Phase.ABORTED, state.models)
    assert "z (answer: state: missing)" in (late.rollout.reason or "")


def test_who_cannot_be_read_is_not_the_reason_that_a_reload_was_given_up() -> None:
    state = preparing("a", mode=Mode.ROLLING, reload=3, timeout_s=1.5)
    late = step(state, members(ack("a")), NOW_MS + 1501, unreadable=UNREADABLE)
    assert late is not None
    assert late.rollout is not None
    assert late.rollout.reason == "not done within 1.5 s: 0 of 1 reloaded; a (ack)"


def test_a_quorum_that_was_not_alive_is_the_reason_of_the_timeout() -> None:
    _, rollout = stepped(preparing("a", quorum=3), ack("a", **READY), after_ms=600_001)
    assert rollout.reason == "not done within 600 s: 1 of 3 prepared"


def test_one_refusal_aborts_though_a_quorum_is_prepared() -> None:
    state = preparing("a", "b", max_preparing=2, quorum=1)
    following, rollout = stepped(state, ack("a", **READY), ack("b", **REFUSES))
    assert rollout.phase is Phase.ABORTED
    assert rollout.reason == "refused by b: nack: model.invalid: digits/2: bad"
    assert following.models == state.models


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"observed": 4}, "it refused an older generation"),
        ({"observed": None}, "it knows no generation"),
        ({"epoch": "e-0"}, "it refused this number of another epoch"),
        ({"prepared": "r-1"}, "it is prepared: what it refuses is something else"),
        ({"answer": Answer.PENDING}, "it is not done"),
        ({"fleet": "other"}, "it is of another fleet"),
    ],
)
def test_a_refusal_of_something_else_aborts_nothing(said: dict[str, Any], why: str) -> None:
    answer = ack("a", **{**REFUSES, **said})
    following = step(preparing("a"), members(answer, ack("b", **READY)), NOW_MS)
    ended = following and following.rollout and following.rollout.phase
    assert ended is not Phase.ABORTED, why


def test_who_refuses_before_its_turn_refuses_something_else_and_is_admitted() -> None:
    _, rollout = stepped(preparing("a"), ack("a", **READY), ack("b", **REFUSES))
    assert rollout.phase is Phase.PREPARE
    assert rollout.admitted == ("a", "b")


def test_nothing_follows_a_state_that_a_member_has_seen_a_newer_one_of() -> None:
    answers = members(ack("a", **READY), ack("b", observed=6, **READY))
    assert step(preparing("a", "b"), answers, NOW_MS) is None
    assert step(preparing("a", "b"), answers, NOW_MS + 600_001) is None


def test_what_members_of_another_epoch_have_seen_is_not_newer() -> None:
    _, rollout = stepped(preparing("a"), ack("a", **READY), ack("b", epoch="e-0", observed=99))
    assert rollout.admitted == ("a", "b")


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.ABORTED])
def test_nothing_follows_an_end(phase: Phase) -> None:
    answers = members(ack("a", **REFUSES), ack("b", **READY))
    assert step(preparing("a", "b", phase=phase), answers, NOW_MS + 600_001) is None


def test_nothing_follows_a_state_without_a_rollout() -> None:
    assert step(first(), members(ack("a")), NOW_MS) is None


def test_reasons_stay_within_what_a_state_may_hold() -> None:
    answers = [ack(f"w-{n:03}", **{**REFUSES, "reason": "x" * 2000}) for n in range(300)]
    following, rollout = stepped(preparing(*(answer.worker for answer in answers)), *answers)
    assert parse_state(encode_state(following)) == following
    assert rollout.reason is not None
    assert rollout.reason.startswith("refused by w-000: nack: model.invalid: xxx")


@given(
    state=desired_states(),
    answers=st.dictionaries(st.sampled_from("abcdef"), acks(), max_size=6),
    now_ms=st.integers(0, 2_000_000),
    about=st.booleans(),
)
def test_steps_over_one_sight_of_the_fleet_end_and_every_one_is_a_valid_next_generation(
    state: DesiredState, answers: dict[str, Ack], now_ms: int, *, about: bool
) -> None:
    state = state._replace(generation=7)
    rollout = state.rollout
    if about and rollout is not None:
        # answers that are about this very rollout
        ids = (rollout.id, None, "another")
        answers = {
            worker: answer._replace(
                fleet=state.fleet,
                worker=worker,
                epoch=state.epoch,
                observed=(answer.in_flight % 3) + 5,
                prepared=ids[answer.sent_at_ms % 3],
            )
            for worker, answer in answers.items()
        }
    for _ in range(len(answers) + 2):
        following = step(state, answers, now_ms)
        if following is None:
            assert step(state, answers, now_ms) is None
            return
        assert following.generation == (state.generation or 0) + 1
        assert parse_state(encode_state(following)) == following
        assert following.rollout is not None
        if following.rollout.phase is not Phase.PREPARE:
            assert step(following, answers, now_ms) is None
        state = following
    raise AssertionError("it never ends")


TWO_PHASE = Terms("r-1", 0, max_preparing=1)


@pytest.mark.parametrize("victim", ["a", "b", "c"])
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("returns", [False, True])
def test_a_worker_killed_at_any_step_stalls_no_rollout(
    victim: str, mode: Mode, *, returns: bool
) -> None:
    deaths = 0
    for moment in count():
        store, workers = _fleet()
        _begin(store, mode)
        if not _killed(store, workers, victim, moment):
            break
        deaths += 1
        dead = next(worker for worker in workers if worker.name == victim)
        if returns:
            dead.start(remembers=True)
        else:
            del store.members[victim]
            workers.remove(dead)
        settle(store, workers)
        state = store.state()
        assert state is not None
        assert state.rollout is not None
        assert state.rollout.phase is Phase.DONE
        assert {worker.serving for worker in workers} == {state.models["digits"].active}
    assert deaths >= 20


def test_pinned_workers_hold_up_nothing_and_pass_nothing() -> None:
    store, workers = _fleet()
    operator = Operator("op", store)
    zone = Selector(labels=frozen({"zone": "b"}))
    operator.read(lambda state: pin(state, "digits", "3", sha256=None, workers=zone))
    operator.write()
    _begin(store, Mode.TWO_PHASE)
    settle(store, workers)
    assert [worker.serving for worker in workers] == ["2", "3", "2"]
    _begin(store, Mode.ROLLING)
    settle(store, workers)
    state = store.state()
    assert state is not None
    number = state.models["digits"].reload
    assert number > 0
    assert [worker.loaded[worker.serving or ""] for worker in workers] == [number] * 3


def _fleet() -> tuple[Store, list[Worker]]:
    store = Store()
    store.write(encode_state(first()), expected=None)
    workers = [Worker(name, store) for name in "abc"]
    settle(store, workers)
    return store, workers


def _begin(store: Store, mode: Mode) -> None:
    """Begin a rollout; whoever did so is then gone."""
    operator = Operator("op", store)
    if mode is Mode.ROLLING:
        operator.read(lambda state: reload(state, "digits", terms=TWO_PHASE._replace(id="r-2")))
    else:
        operator.read(lambda state: activate(state, "digits", "2", sha256=None, terms=TWO_PHASE))
    operator.write()


def _killed(store: Store, workers: list[Worker], victim: str, moment: int) -> bool:
    """Let the workers go on, and kill one before its event of this number; False: all is done."""
    events = ("look", "work", "announce", "propose", "write")
    number = 0
    while True:
        before = (store.stored, dict(store.members))
        for worker in workers:
            for event in events:
                if worker.name == victim:
                    if number == moment:
                        worker.die()
                        return True
                    number += 1
                getattr(worker, event)()
        if (store.stored, store.members) == before:
            return False
