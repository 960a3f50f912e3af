"""An operator on a fake channel: what is written, what is refused, when waiting ends."""

import asyncio

import pytest

from tests.channels import FakeRedis
from tests.unit.control.operators import activate, operator_of, pause, serving
from tests.unit.control.states import ack, state
from worker.control import edits
from worker.control.answers import Ack, ModelUse
from worker.control.messages import DesiredState, Selector, encode_state
from worker.control.operator import Operator
from worker.control.progress import Changed
from worker.errors import CommandError, ControlUnavailable, StateError


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def operator(redis: FakeRedis) -> Operator:
    return operator_of(redis)


async def test_the_first_change_of_a_fleet_edits_what_its_settings_say(
    redis: FakeRedis, operator: Operator
) -> None:
    changed = await operator.change(activate("2"), "activate digits 2")

    assert (changed.before, changed.written) == (None, True)
    assert changed.after == redis.state
    assert (changed.after.generation, changed.after.models["digits"].active) == (1, "2")
    assert changed.after.written_by == "me@here"
    (entry,) = await operator.history(10)
    assert (entry.command, entry.by, entry.generation) == ("activate digits 2", "me@here", 1)


async def test_the_first_change_is_written_also_when_it_says_what_the_settings_say(
    redis: FakeRedis, operator: Operator
) -> None:
    assert (await operator.change(activate("1"), "activate digits 1")).written

    assert redis.state.generation == 1


@pytest.mark.parametrize(
    ("name", "version", "begins"), [("cats", "7", "cats absent"), ("digits", "2", "digits 1")]
)
async def test_the_first_change_takes_no_model_from_workers_whose_settings_are_other_ones(
    redis: FakeRedis, operator: Operator, name: str, version: str, begins: str
) -> None:
    redis.say(ack(epoch="", observed=None, generation=None, models={name: ModelUse(version)}))

    with pytest.raises(CommandError, match=f"begin one with {begins}, but worker w-1 serves"):
        await operator.change(pause, "pause")
    assert redis.document is None

    await operator.change(pause, "pause", supersede=True)
    assert redis.state.generation == 1


async def test_a_change_is_the_next_generation_of_what_is_stored(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())

    changed = await operator.change(pause, "pause")

    assert changed.before == state()
    assert (changed.after.generation, changed.after.holds) == (8, redis.state.holds)
    assert abs(changed.after.written_at_ms - redis.now_ms) < 10_000


async def test_what_is_so_already_is_not_written_again(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())

    changed = await operator.change(activate("1"), "activate digits 1")

    assert changed == Changed(state(), state(), written=False)
    assert redis.entries == []


async def test_a_dry_run_says_what_would_be_and_writes_nothing(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())

    changed = await operator.change(pause, "pause", dry_run=True)

    assert (changed.written, changed.after.generation) == (False, 8)
    assert redis.state == state()


async def test_operators_that_race_lose_nothing_of_each_other(redis: FakeRedis) -> None:
    redis.store(state(generation=1))

    async def pin(worker: int) -> None:
        def edit(before: DesiredState, _: int) -> DesiredState:
            return edits.pin(
                before, "digits", "2", sha256=None, workers=Selector(worker=f"w-{worker}")
            )

        await operator_of(redis).change(edit, "pin")

    await asyncio.gather(*(pin(worker) for worker in range(20)))

    assert redis.state.generation == 21
    assert len(redis.state.models["digits"].pins) == 20


async def test_an_expected_generation_that_is_not_stored_is_refused(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())

    with pytest.raises(CommandError, match="generation 7 is stored, not 6"):
        await operator.change(pause, "pause", expect=6)
    with pytest.raises(CommandError, match="generation 7 is stored, not 0"):
        await operator.change(pause, "pause", expect=0)
    assert (await operator.change(pause, "pause", expect=7)).written


async def test_who_expects_a_generation_does_not_try_again_when_another_was_quicker(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())

    def edit(before: DesiredState, now_ms: int) -> DesiredState:
        redis.store(state(generation=8))
        return pause(before, now_ms)

    with pytest.raises(CommandError, match="generation 8 is stored, not 7"):
        await operator.change(edit, "pause", expect=7)


async def test_none_expected_is_zero(redis: FakeRedis, operator: Operator) -> None:
    assert (await operator.change(pause, "pause", expect=0)).written
    assert redis.state.generation == 1


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
    redis.say(said)

    with pytest.raises(CommandError, match=told):
        await operator.change(pause, "pause")
    changed = await operator.change(pause, "pause", supersede=True)

    assert changed.written
    same = said.epoch == changed.after.epoch
    assert (changed.after.generation or 0) > (said.observed if same and said.observed else 0)
    assert changed.after.supersedes == (() if same else (said.epoch,))


async def test_to_supersede_is_a_change_by_itself(redis: FakeRedis, operator: Operator) -> None:
    redis.store(state())
    redis.say(ack(epoch="e-0"))

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
    assert redis.state.generation == 1


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

    assert changed.after == redis.state
    assert changed.after.generation == generation
    assert changed.after.supersedes == (("e-9",) if b"e-9" in document else ())


async def test_an_answer_that_cannot_be_read_is_told_of_its_worker(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.store(state())
    redis.answers["w-2"] = (redis.now_ms + 30_000, b"?")
    redis.say(serving(state()))

    look = await operator.look()

    assert list(look.members) == ["w-1"]
    assert look.lacks == [f"w-2: {look.unreadable['w-2']}"]


async def test_a_redis_that_does_not_answer_is_told(redis: FakeRedis, operator: Operator) -> None:
    redis.down = True

    with pytest.raises(ControlUnavailable):
        await operator.change(pause, "pause")


async def test_a_state_of_another_epoch_begins_above_all_that_was_taken_of_the_one_before(
    redis: FakeRedis, operator: Operator
) -> None:
    redis.say(ack(epoch="lost", observed=100))

    await operator.change(pause, "pause", supersede=True)

    assert redis.state.supersedes == ("lost",)
    assert redis.state.generation == 101
