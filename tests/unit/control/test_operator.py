"""An operator on a fake channel: what is written, what is refused, when waiting ends."""

import asyncio
from collections.abc import Callable

import pytest

from tests.channels import FakeChannel, FakeRedis
from tests.unit.control.states import ack, state
from worker.control import edits
from worker.control.answers import Ack, Answer, Code, encode_ack
from worker.control.documents import parse_state
from worker.control.messages import DesiredState, Selector, digest, encode_state
from worker.control.operator import Operator
from worker.control.progress import Changed, Outcome, Progress
from worker.control.rollout import aborted, step
from worker.errors import CommandError, ControlUnavailable, StateError

ALL = Selector()
TERMS = edits.Terms("r-1", 0)


def pause(before: DesiredState, _: int) -> DesiredState:
    return edits.pause(before, ALL)


def activate(version: str) -> Callable[[DesiredState, int], DesiredState]:
    return lambda before, _: edits.activate(before, "digits", version, sha256=None)


def two_phase(before: DesiredState, now_ms: int) -> DesiredState:
    terms = TERMS._replace(started_at_ms=now_ms)
    return edits.activate(before, "digits", "2", sha256=None, terms=terms)


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def operator(redis: FakeRedis) -> Operator:
    return operator_of(redis)


def operator_of(redis: FakeRedis, by: str = "me@here") -> Operator:
    return Operator(FakeChannel(redis), by=by, first=lambda: state(generation=0))


def store(redis: FakeRedis, stored: DesiredState) -> None:
    redis.document = encode_state(stored)


def stored(redis: FakeRedis) -> DesiredState:
    assert redis.document is not None
    return parse_state(redis.document)


def say(redis: FakeRedis, said: Ack) -> None:
    redis.answers[said.worker] = (redis.now_ms + 30_000, encode_ack(said))


def serving(by: DesiredState, worker: str = "w-1", **changes: object) -> Ack:
    """Return the answer of a worker that is what this state says."""
    said = ack(worker, epoch=by.epoch, observed=by.generation, generation=by.generation)
    return said._replace(digest=digest(by))._replace(**changes)  # type: ignore[arg-type]  # of Ack


async def test_the_first_change_of_a_fleet_edits_what_its_settings_say(
    redis: FakeRedis, operator: Operator
) -> None:
    changed = await operator.change(activate("2"), "activate digits 2")

    assert (changed.before, changed.written) == (None, True)
    assert changed.after == stored(redis)
    assert (changed.after.generation, changed.after.models["digits"].active) == (1, "2")
    assert changed.after.written_by == "me@here"
    (entry,) = await operator.history(10)
    assert (entry.command, entry.by, entry.generation) == ("activate digits 2", "me@here", 1)


async def test_the_first_change_is_written_also_when_it_says_what_the_settings_say(
    redis: FakeRedis, operator: Operator
) -> None:
    assert (await operator.change(activate("1"), "activate digits 1")).written

    assert stored(redis).generation == 1


async def test_a_change_is_the_next_generation_of_what_is_stored(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())

    changed = await operator.change(pause, "pause")

    assert changed.before == state()
    assert (changed.after.generation, changed.after.holds) == (8, stored(redis).holds)
    assert abs(changed.after.written_at_ms - redis.now_ms) < 10_000


async def test_what_is_so_already_is_not_written_again(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())

    changed = await operator.change(activate("1"), "activate digits 1")

    assert changed == Changed(state(), state(), written=False)
    assert redis.entries == []


async def test_a_dry_run_says_what_would_be_and_writes_nothing(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())

    changed = await operator.change(pause, "pause", dry_run=True)

    assert (changed.written, changed.after.generation) == (False, 8)
    assert stored(redis) == state()


async def test_operators_that_race_lose_nothing_of_each_other(redis: FakeRedis) -> None:
    store(redis, state(generation=1))

    async def pin(worker: int) -> None:
        def edit(before: DesiredState, _: int) -> DesiredState:
            return edits.pin(
                before, "digits", "2", sha256=None, workers=Selector(worker=f"w-{worker}")
            )

        await operator_of(redis).change(edit, "pin")

    await asyncio.gather(*(pin(worker) for worker in range(20)))

    assert stored(redis).generation == 21
    assert len(stored(redis).models["digits"].pins) == 20


async def test_an_expected_generation_that_is_not_stored_is_refused(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())

    with pytest.raises(CommandError, match="generation 7 is stored, not 6"):
        await operator.change(pause, "pause", expect=6)
    with pytest.raises(CommandError, match="generation 7 is stored, not 0"):
        await operator.change(pause, "pause", expect=0)
    assert (await operator.change(pause, "pause", expect=7)).written


async def test_who_expects_a_generation_does_not_try_again_when_another_was_quicker(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())

    def edit(before: DesiredState, now_ms: int) -> DesiredState:
        store(redis, state(generation=8))
        return pause(before, now_ms)

    with pytest.raises(CommandError, match="generation 8 is stored, not 7"):
        await operator.change(edit, "pause", expect=7)


async def test_none_expected_is_zero(redis: FakeRedis, operator: Operator) -> None:
    assert (await operator.change(pause, "pause", expect=0)).written
    assert stored(redis).generation == 1


@pytest.mark.parametrize(
    ("kept", "said", "told"),
    [
        (None, ack(observed=9), "no desired state is stored, but worker w-1 follows generation 9"),
        (state(), ack(observed=9), "generation 7 is stored, but worker w-1 follows generation 9"),
        (state(), ack(epoch="e-0"), "of epoch e-1 is stored, but worker w-1 follows generation 7"),
    ],
    ids=["emptied", "backup", "other epoch"],
)
async def test_nothing_is_built_on_less_than_workers_follow_unless_it_is_to_supersede(
    redis: FakeRedis, operator: Operator, kept: DesiredState | None, said: Ack, told: str
) -> None:
    redis.document = None if kept is None else encode_state(kept)
    say(redis, said)

    with pytest.raises(CommandError, match=told):
        await operator.change(pause, "pause")
    changed = await operator.change(pause, "pause", supersede=True)

    assert changed.written
    same = said.epoch == changed.after.epoch
    assert (changed.after.generation or 0) > (said.observed if same and said.observed else 0)
    assert changed.after.supersedes == (() if same else (said.epoch,))


async def test_to_supersede_is_a_change_by_itself(redis: FakeRedis, operator: Operator) -> None:
    store(redis, state())
    say(redis, ack(epoch="e-0"))

    changed = await operator.change(activate("1"), "activate digits 1", supersede=True)

    assert (changed.after.generation, changed.after.supersedes) == (8, ("e-0",))
    again = await operator.change(activate("1"), "activate digits 1", supersede=True)
    assert not again.written


async def test_what_is_broken_is_told_and_replaced_only_to_supersede(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.document = b"garbage"

    assert "not JSON" in (await operator.look()).lacks[0]
    with pytest.raises(StateError, match="not JSON"):
        await operator.change(pause, "pause")
    assert (await operator.change(pause, "pause", supersede=True)).written
    assert stored(redis).generation == 1


@pytest.mark.parametrize(
    ("document", "generation"),
    [
        (b'{"generation": 9}', 10),
        (b'{"generation": 9, "epoch": "e-9"}', 10),
        (b'{"generation": 0, "epoch": "e-9"}', 1),
        (b"[]", 1),
    ],
)
async def test_what_can_be_read_of_what_is_broken_counts(
    redis: FakeRedis, operator: Operator, document: bytes, generation: int
) -> None:
    redis.document = document

    changed = await operator.change(pause, "pause", supersede=True)

    assert changed.after == stored(redis)
    assert changed.after.generation == generation
    assert changed.after.supersedes == (("e-9",) if b"e-9" in document else ())


async def test_an_answer_that_cannot_be_read_is_told_of_its_worker(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())
    redis.answers["w-2"] = (redis.now_ms + 30_000, b"?")
    say(redis, serving(state()))

    look = await operator.look()

    assert list(look.members) == ["w-1"]
    assert look.lacks == [f"w-2: {look.unreadable['w-2']}"]


async def test_a_redis_that_does_not_answer_is_told(redis: FakeRedis, operator: Operator) -> None:
    redis.down = True

    with pytest.raises(ControlUnavailable):
        await operator.change(pause, "pause")


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
    store(redis, state())
    say(redis, serving(state()))
    say(redis, serving(state(generation=6), "w-2"))

    told = await followed(operator, written(state()), lambda: say(redis, serving(state(), "w-2")))

    assert [progress.outcome for progress in told] == [Outcome.WAITING, Outcome.CONVERGED]


async def test_waiting_ends_when_all_have_answered_and_one_refuses(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())
    refusal = {"answer": Answer.NACK, "code": Code.HEADROOM, "reason": "no room"}
    say(redis, serving(state(), "w-1", **refusal))
    say(redis, serving(state(generation=6), "w-2"))

    waiting, refused = await followed(
        operator, written(state()), lambda: say(redis, serving(state(), "w-2"))
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
    store(redis, state())
    for said in answers:
        say(redis, said)

    progress = await waited(operator, written(state()))

    assert progress.outcome is outcome
    assert progress.reasons


async def test_a_refusal_of_what_was_stored_before_is_no_answer(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())
    old = state(generation=6)
    say(redis, serving(old, answer=Answer.NACK, code=Code.HEADROOM, reason="no room"))

    assert (await waited(operator, written(state()))).outcome is Outcome.LATE


async def test_a_rollout_is_waited_for_to_its_end(redis: FakeRedis, operator: Operator) -> None:
    store(redis, state())
    changed = await operator.change(two_phase, "activate digits 2 --two-phase")
    prepared = serving(changed.after, prepared=TERMS.id)
    done = step(changed.after, {"w-1": prepared}, redis.now_ms)
    assert done is not None
    say(redis, prepared)

    told = await followed(
        operator, changed, lambda: store(redis, done), lambda: say(redis, serving(done))
    )

    waiting = Outcome.WAITING
    assert [progress.outcome for progress in told] == [waiting, waiting, Outcome.CONVERGED]


async def test_a_rollout_that_is_aborted_says_why(redis: FakeRedis, operator: Operator) -> None:
    store(redis, state())
    changed = await operator.change(two_phase, "activate digits 2 --two-phase")
    store(redis, aborted(changed.after, "refused by w-1"))

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
    store(redis, state())
    changed = await operator.change(edit, "activate digits 2")
    store(redis, later._replace(written_by="you@there"))

    progress = await waited(operator, changed, deadline_s=30)

    assert progress.outcome is Outcome.OVERTAKEN
    assert told in progress.reasons[0]


async def test_a_rollout_of_somebody_else_that_is_aborted_is_not_ours(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state())
    before = (await operator.change(two_phase, "activate digits 2 --two-phase")).after
    changed = await operator.change(pause, "pause")
    later = aborted(changed.after, "refused by w-1")
    store(redis, later)
    say(redis, serving(later))

    assert before.rollout == changed.after.rollout
    assert (await waited(operator, changed, deadline_s=30)).outcome is Outcome.CONVERGED


async def test_a_later_generation_that_all_serve_is_converged_too(
    redis: FakeRedis, operator: Operator
) -> None:
    store(redis, state(generation=9))
    say(redis, serving(state(generation=9)))

    assert (await waited(operator, written(state()), 30)).outcome is Outcome.CONVERGED


async def test_a_state_that_was_lost_is_waited_for_until_workers_put_it_back(
    redis: FakeRedis, operator: Operator
) -> None:
    say(redis, serving(state()))

    told = await followed(
        operator,
        written(state()),
        lambda: store(redis, state(generation=6)),
        lambda: store(redis, state()),
    )

    waiting = Outcome.WAITING
    assert [progress.outcome for progress in told] == [waiting, waiting, Outcome.CONVERGED]
