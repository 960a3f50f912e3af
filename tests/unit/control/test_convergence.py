from typing import Any

import pytest

from tests.unit.control.states import ack, state
from worker.control.answers import Ack, Answer, Code
from worker.control.convergence import said, why_not
from worker.control.messages import Mode, Phase, Rollout, digest

STATE = state()
CONVERGED: dict[str, Any] = {"digest": digest(STATE)}


def members(*answers: Ack) -> dict[str, Ack]:
    return {answer.worker: answer for answer in answers}


def test_a_fleet_whose_workers_all_serve_by_the_state_has_converged() -> None:
    assert why_not(STATE, members(ack("w-1", **CONVERGED), ack("w-2", **CONVERGED))) == []


def test_a_fleet_without_workers_has_not() -> None:
    assert why_not(STATE, {}) == ["no worker is alive"]
    assert why_not(STATE, members(ack(fleet="other", **CONVERGED))) == ["no worker is alive"]


NACK: dict[str, Any] = {"answer": Answer.NACK, "generation": 6, "reason": "bad"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"observed": 6, "generation": 6}, "has not seen generation 7 yet (ack)"),
        (
            {"observed": None, "generation": None, "epoch": "", "answer": Answer.PENDING},
            "has not seen generation 7 yet (pending)",
        ),
        ({"epoch": "e-0"}, "has not seen generation 7 yet (ack)"),
        (
            {**NACK, "observed": 6, "code": Code.MODEL_INVALID},
            "has not seen generation 7 yet (nack: model.invalid: bad)",
        ),
        ({"observed": 9, "generation": 9}, "has seen generation 9, which is newer"),
        (
            {**NACK, "code": Code.MODEL_INVALID},
            "refuses generation 7 (nack: model.invalid: bad); serves generation 6",
        ),
        (
            {**NACK, "observed": 6, "code": Code.STATE_INVALID, "generation": None},
            "refuses what it read (nack: state.invalid: bad); serves its settings",
        ),
        (
            {"answer": Answer.PENDING, "code": Code.MODEL_ABSENT, "reason": "no digits/2 yet"},
            "is not done with generation 7 (pending: model.absent: no digits/2 yet)",
        ),
        ({"digest": "0" * 64}, "serves other content, by generation 7"),
        ({"state": "draining", "in_flight": 12}, "is draining; 12 records are in flight"),
    ],
)
def test_each_worker_that_lacks_something_is_named_with_what_it_said_last(
    said: dict[str, Any], why: str
) -> None:
    bad = ack("w-2", **{**CONVERGED, **said})
    assert why_not(STATE, members(ack("w-1", **CONVERGED), bad)) == [f"w-2: {why}"]


def test_a_rollout_that_is_under_way_is_not_converged() -> None:
    rollout = Rollout("r-1", "digits", "2", Mode.TWO_PHASE, Phase.PREPARE, 0, admitted=("w-2",))
    going = STATE._replace(rollout=rollout)
    answers = [ack(f"w-{n}", digest=digest(going)) for n in (1, 2, 3)]
    answers[2] = answers[2]._replace(prepared="r-1")
    assert why_not(going, members(*answers)) == [
        "rollout r-1 of digits 2: 1 of 3 prepared; waiting for their turn: w-1"
    ]
    rolling = going._replace(rollout=rollout._replace(mode=Mode.ROLLING, version="1"))
    answers = [answer._replace(digest=digest(rolling)) for answer in answers]
    assert why_not(rolling, members(*answers)) == [
        "rollout r-1 of digits 1: 1 of 3 reloaded; waiting for their turn: w-1"
    ]
    quorum = going._replace(rollout=rollout._replace(quorum=2, phase=Phase.PREPARE))
    answers = [answer._replace(digest=digest(quorum)) for answer in answers[1:]]
    assert why_not(quorum, members(*answers)) == ["rollout r-1 of digits 2: 1 of 2 prepared"]


def test_an_aborted_rollout_leaves_nothing_to_converge_on() -> None:
    rollout = Rollout("r-1", "digits", "2", Mode.TWO_PHASE, Phase.ABORTED, 0)
    over = STATE._replace(rollout=rollout)
    assert why_not(over, members(ack(digest=digest(over)))) == []


def test_reasons_of_many_lines_become_one_and_long_ones_are_cut() -> None:
    told = said(
        ack(answer=Answer.NACK, code=Code.STATE_INVALID, reason="2 problems\n  a: b\n  c: d")
    )
    assert told == "nack: state.invalid: 2 problems a: b c: d"
    assert len(said(ack(answer=Answer.NACK, code=Code.ENGINE, reason="x" * 2000))) == 300
