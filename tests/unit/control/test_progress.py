"""An operator waits on a fake channel: for whom, how long, and how it ends."""

from collections.abc import Callable

import pytest

from tests.channels import FakeRedis
from tests.unit.control.operators import ROLLOUT, activate, operator_of, pause, serving, two_phase
from tests.unit.control.states import state
from worker.control.answers import Ack, Answer, Code
from worker.control.messages import DesiredState
from worker.control.operator import Operator
from worker.control.progress import Changed, Outcome, Progress
from worker.control.rollout import aborted, step


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def operator(redis: FakeRedis) -> Operator:
    return operator_of(redis)


async def followed(
    operator: Operator, changed: Changed, *following: Callable[[], None], deadline_s: float = 30
) -> list[Progress]:
    """Wait for a change; after each look the next of these happens."""
    told: list[Progress] = []
    happening = iter(following)

    def tell(progress: Progress) -> None:
        told.append(progress)
        next(happening, lambda: None)()

    assert await operator.wait(changed, deadline_s=deadline_s, tell=tell) == told[-1]
    return told


async def waited(operator: Operator, changed: Changed, deadline_s: float = 0.0) -> Progress:
    return await operator.wait(changed, deadline_s=deadline_s)


def written(after: DesiredState) -> Changed:
    return Changed(None, after, written=True)


async def test_waiting_ends_when_every_worker_says_that_it_serves_it(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())
    redis.say(serving(state()))
    redis.say(serving(state(generation=6), "w-2"))

    told = await followed(operator, written(state()), lambda: redis.say(serving(state(), "w-2")))

    assert [progress.outcome for progress in told] == [Outcome.WAITING, Outcome.CONVERGED]


async def test_waiting_ends_when_all_have_answered_and_one_refuses(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())
    refusal = {"answer": Answer.NACK, "code": Code.HEADROOM, "reason": "no room"}
    redis.say(serving(state(), "w-1", **refusal))
    redis.say(serving(state(generation=6), "w-2"))

    waiting, refused = await followed(
        operator, written(state()), lambda: redis.say(serving(state(), "w-2"))
    )

    assert (waiting.outcome, refused.outcome) == (Outcome.WAITING, Outcome.REFUSED)
    assert refused.reasons == tuple(refused.look.lacks)
    assert "w-1" in refused.reasons[0]
    assert "no room" in refused.reasons[0]


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([], Outcome.LATE),
        ([serving(state(generation=6))], Outcome.LATE),
        (
            [
                serving(state(generation=6)),
                serving(
                    state(), "w-2", answer=Answer.NACK, code=Code.MODEL_INVALID, reason="broken"
                ),
            ],
            Outcome.REFUSED,
        ),
    ],
    ids=["nobody", "one behind", "one behind and one refuses"],
)
async def test_when_the_time_is_over_a_refusal_counts_more_than_who_is_behind(
    redis: FakeRedis, operator: Operator, answers: list[Ack], outcome: Outcome
) -> None:
    redis.store(state())
    for said in answers:
        redis.say(said)

    progress = await waited(operator, written(state()))

    assert progress.outcome is outcome
    assert progress.reasons


async def test_a_refusal_of_what_was_stored_before_is_no_answer(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())
    old = state(generation=6)
    redis.say(serving(old, answer=Answer.NACK, code=Code.HEADROOM, reason="no room"))

    assert (await waited(operator, written(state()))).outcome is Outcome.LATE


async def test_a_rollout_is_waited_for_to_its_end(redis: FakeRedis, operator: Operator) -> None:
    redis.store(state())
    changed = await operator.change(two_phase, "activate digits 2 --two-phase")
    prepared = serving(changed.after, prepared=ROLLOUT)
    done = step(changed.after, {"w-1": prepared}, redis.now_ms)
    assert done is not None
    redis.say(prepared)

    told = await followed(
        operator, changed, lambda: redis.store(done), lambda: redis.say(serving(done))
    )

    waiting = Outcome.WAITING
    assert [progress.outcome for progress in told] == [waiting, waiting, Outcome.CONVERGED]


async def test_who_cannot_be_read_counts_in_a_rollout_as_the_workers_count(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())
    going = (await operator.change(two_phase, "activate digits 2 --two-phase")).after
    redis.say(serving(going, prepared=ROLLOUT), serving(going, "w-2", prepared=ROLLOUT))
    redis.answers["w-3"] = (redis.now_ms + 30_000, b"?")

    unreadable, counted = (await operator.look()).lacks

    assert unreadable.startswith("w-3: ")
    assert counted == f"rollout {ROLLOUT} of digits 2: 2 of 3 prepared"


async def test_a_rollout_that_is_aborted_says_why(redis: FakeRedis, operator: Operator) -> None:
    redis.store(state())
    changed = await operator.change(two_phase, "activate digits 2 --two-phase")
    redis.store(aborted(changed.after, "refused by w-1"))

    progress = await waited(operator, changed, deadline_s=30)

    assert (progress.outcome, progress.reasons) == (Outcome.ABORTED, ("refused by w-1",))


@pytest.mark.parametrize(
    ("edit", "later", "told"),
    [
        (two_phase, state(generation=9), "by generation 9 of you@there"),
        (activate("2"), state(generation=9, epoch="e-2"), "of another epoch"),
        (activate("2"), state(generation=9), "digits 1 is active, not 2"),
    ],
    ids=["rollout", "epoch", "version"],
)
async def test_a_change_that_another_took_the_place_of_is_not_waited_for(
    redis: FakeRedis,
    operator: Operator,
    edit: Callable[[DesiredState, int], DesiredState],
    later: DesiredState,
    told: str,
) -> None:
    redis.store(state())
    changed = await operator.change(edit, "activate digits 2")
    redis.store(later._replace(written_by="you@there"))

    progress = await waited(operator, changed, deadline_s=30)

    assert progress.outcome is Outcome.OVERTAKEN
    assert told in progress.reasons[0]


async def test_a_rollout_of_somebody_else_that_is_aborted_is_not_ours(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())
    before = (await operator.change(two_phase, "activate digits 2 --two-phase")).after
    changed = await operator.change(pause, "pause")
    later = aborted(changed.after, "refused by w-1")
    redis.store(later)
    redis.say(serving(later))

    assert before.rollout == changed.after.rollout
    assert (await waited(operator, changed, deadline_s=30)).outcome is Outcome.CONVERGED


async def test_a_later_generation_that_all_serve_is_converged_too(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state(generation=9))
    redis.say(serving(state(generation=9)))

    assert (await waited(operator, written(state()), 30)).outcome is Outcome.CONVERGED


async def test_a_state_that_was_lost_is_waited_for_until_workers_put_it_back(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.say(serving(state()))

    told = await followed(
        operator,
        written(state()),
        lambda: redis.store(state(generation=6)),
        lambda: redis.store(state()),
    )

    waiting = Outcome.WAITING
    assert [progress.outcome for progress in told] == [waiting, waiting, Outcome.CONVERGED]
