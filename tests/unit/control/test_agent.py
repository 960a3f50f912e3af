"""Agents on one Redis in memory, over registries of names alone."""

import asyncio
from pathlib import Path

import pytest

from tests.channels import FakeRedis
from tests.fakes import eventually
from tests.unit.control.agents import D2, SOON_S, Host, Rig, running, state, write
from tests.unit.control.shelf import Shelf
from worker.control import edits
from worker.control.answers import Answer, Code
from worker.control.documents import parse_state
from worker.control.fixed import Fixed
from worker.control.memory import Memory
from worker.control.messages import (
    Action,
    DesiredState,
    Phase,
    Selector,
    encode_state,
    frozen,
    settings_state,
)
from worker.control.reconciler import Reconciler
from worker.control.rollout import following
from worker.errors import EngineFault, ModelError
from worker.types import ModelRef


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis("test")


@pytest.fixture
def rig(redis: FakeRedis, tmp_path: Path) -> Rig:
    return Rig(redis, tmp_path)


async def test_where_there_is_no_state_yet_the_settings_are_served_at_once_and_it_is_said(
    rig: Rig,
) -> None:
    async with running(rig):
        said = await rig.says(lambda ack: ack.reason is not None)
        assert (said.answer, said.generation) == (Answer.PENDING, None)
        assert "serving the versions of its settings" in (said.reason or "")
        await asyncio.wait_for(rig.agent.started.wait(), SOON_S)
        assert rig.shelf.serving == {"digits": "1"}
        await write(rig.redis, state(1, "2"))
        await rig.acks(1)
        assert rig.shelf.serving == {"digits": "2"}
    assert rig.name not in rig.redis.answers, "it took its leave"


async def test_who_knows_nothing_waits_while_others_know_a_state_that_redis_has_lost(
    redis: FakeRedis, tmp_path: Path
) -> None:
    knows, new = Rig(redis, tmp_path), Rig(redis, tmp_path, "w-2")
    redis.document = encode_state(state(4, "2"))
    async with running(knows):
        await knows.acks(4)
        redis.document = None
        async with running(new):
            await new.acks(4)
    assert new.shelf.loads == [D2], "never the settings' version"


async def test_without_redis_it_starts_from_its_disk_and_says_that_nobody_answers(
    redis: FakeRedis, rig: Rig
) -> None:
    redis.down = True
    rig.memory.save(state(3, "2"))
    async with running(rig):
        await asyncio.wait_for(rig.agent.started.wait(), SOON_S)
        assert rig.shelf.serving == {"digits": "2"}
        assert rig.complaint() == "Redis does not answer"
        redis.down = False
        await eventually(lambda: rig.complaint() is None, SOON_S)
        await rig.acks(3)
    assert redis.document == encode_state(state(3, "2")), "it put back what Redis had not"


async def test_with_neither_it_waits_and_then_serves_its_settings(
    redis: FakeRedis, tmp_path: Path
) -> None:
    redis.down = True
    rig = Rig(redis, tmp_path, start_wait_s=0.05)
    async with running(rig):
        await asyncio.wait_for(rig.agent.started.wait(), SOON_S)
        assert rig.shelf.serving == {"digits": "1"}


async def test_an_applied_state_is_kept_on_disk(redis: FakeRedis, rig: Rig) -> None:
    redis.document = encode_state(state(2, "2"))
    async with running(rig):
        await rig.acks(2)
        await eventually(lambda: rig.memory.load() is not None, SOON_S)
    assert rig.memory.load() == state(2, "2")


@pytest.mark.parametrize(
    ("foreign", "code"),
    [
        (state(6, "2", fleet="other"), Code.STATE_FLEET),
        (state(6, "2", epoch="other"), Code.STATE_EPOCH),
        (state(5, "2"), Code.STATE_CONFLICT),
    ],
)
async def test_what_is_not_for_it_is_refused_and_serving_goes_on(
    redis: FakeRedis, rig: Rig, foreign: DesiredState, code: Code
) -> None:
    redis.document = encode_state(state(5, "1"))
    async with running(rig):
        await rig.acks(5)
        redis.document = encode_state(foreign)
        said = await rig.says(lambda ack: ack.answer is Answer.NACK)
        assert (said.code, said.generation) == (code, 5)
        assert rig.shelf.serving == {"digits": "1"}
        redis.document = encode_state(state(7, "2"))
        await rig.acks(7)


@pytest.mark.parametrize("stored", [None, b"{", encode_state(state(2))])
async def test_what_is_missing_broken_or_of_an_old_backup_is_put_back(
    redis: FakeRedis, rig: Rig, stored: bytes | None
) -> None:
    redis.document = encode_state(state(5, "2"))
    async with running(rig):
        await rig.acks(5)
        redis.document = stored
        await eventually(lambda: redis.document == encode_state(state(5, "2")), SOON_S)
        await rig.acks(5)


async def test_what_cannot_be_loaded_is_refused_and_tried_again(redis: FakeRedis, rig: Rig) -> None:
    redis.document = encode_state(state(1))
    async with running(rig):
        await rig.acks(1)
        rig.shelf.broken[D2] = ModelError("not there", code="model.absent")
        await write(redis, state(2, "2"))
        said = await rig.says(lambda ack: ack.code is Code.MODEL_ABSENT)
        assert (said.answer, said.observed, said.generation) == (Answer.PENDING, 2, 1)
        rig.shelf.broken[D2] = EngineFault("it died")
        said = await rig.says(lambda ack: ack.answer is Answer.NACK)
        assert (said.code, said.reason) == (Code.ENGINE, "digits/2: it died")
        rig.shelf.broken.clear()
        await rig.acks(2)


async def test_two_phases_go_through_all_workers_and_need_nobody_to_lead(
    redis: FakeRedis, tmp_path: Path
) -> None:
    rigs = [Rig(redis, tmp_path, f"w-{number}") for number in range(3)]
    redis.document = encode_state(state(1))
    async with running(*rigs):
        for rig in rigs:
            await rig.acks(1)
        terms = edits.Terms("r", redis.now_ms, max_preparing=1)
        await write(redis, edits.activate(state(1), "digits", "2", sha256=None, terms=terms))
        await eventually(lambda: all(r.shelf.serving == {"digits": "2"} for r in rigs), SOON_S)
    states = [parse_state(entry.document) for entry in redis.entries]
    admitted = [len(s.rollout.admitted) for s in states if s.rollout]
    assert admitted == sorted(admitted)
    assert [s.models["digits"].active for s in states][:-1] == ["1"] * (len(states) - 1)
    assert states[-1].rollout is not None
    assert states[-1].rollout.phase is Phase.DONE


async def test_in_two_phases_one_that_refuses_stops_all(redis: FakeRedis, tmp_path: Path) -> None:
    rigs = [Rig(redis, tmp_path, f"w-{number}") for number in range(2)]
    rigs[1].shelf.broken[D2] = ModelError("golden sample differs")
    redis.document = encode_state(state(1))
    async with running(*rigs):
        for rig in rigs:
            await rig.acks(1)
        terms = edits.Terms("r", redis.now_ms, max_preparing=2)
        await write(redis, edits.activate(state(1), "digits", "2", sha256=None, terms=terms))
        await eventually(lambda: _phase(redis) is Phase.ABORTED, SOON_S)
        for rig in rigs:
            await rig.acks(_generation(redis))
            assert rig.shelf.serving == {"digits": "1"}


def _phase(redis: FakeRedis) -> Phase | None:
    rollout = parse_state(redis.document or b"").rollout
    return rollout.phase if rollout else None


def _generation(redis: FakeRedis) -> int:
    return parse_state(redis.document or b"").generation or 0


async def test_holds_reach_the_worker_they_are_for(redis: FakeRedis, rig: Rig) -> None:
    redis.document = encode_state(edits.pause(state(1), Selector(worker="w-9")))
    async with running(rig):
        await rig.acks(2)
        assert rig.held() is None
        await write(redis, edits.drain(state(2), Selector(labels=frozen({"zone": "a"}))))
        await rig.acks(3)
        assert rig.held() is Action.DRAIN
        await write(redis, following(state(3)))
        await rig.acks(4)
        assert rig.held() is None


async def test_a_mistake_of_ours_ends_the_agent_instead_of_being_passed_over(
    redis: FakeRedis, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.document = encode_state(state(1))
    monkeypatch.setattr(rig.shelf, "names", None)
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(SOON_S):
            await rig.agent.run()
    assert raised.group_contains(TypeError)


async def test_the_settings_are_served_where_there_is_no_channel() -> None:
    shelf, host = Shelf(), Host()
    fixed = Fixed(Reconciler(shelf, max_loaded=3), host, settings_state({"digits": "1"}, "digits"))
    task = asyncio.create_task(fixed.run())
    await asyncio.wait_for(fixed.started.wait(), SOON_S)
    assert (shelf.serving, host.changes) == ({"digits": "1"}, 1)
    task.cancel()
    await asyncio.wait((task,))


async def test_settings_whose_default_model_cannot_be_served_are_an_error() -> None:
    shelf = Shelf()
    shelf.broken[ModelRef("digits", "1")] = ModelError("golden sample differs")
    fixed = Fixed(
        Reconciler(shelf, max_loaded=3), Host(), settings_state({"digits": "1"}, "digits")
    )
    with pytest.raises(ModelError, match="golden sample differs"):
        await fixed.run()


@pytest.mark.parametrize("content", [b"{", encode_state(state(1)).replace(b'"digits"', b'"x"', 1)])
def test_a_memory_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    memory = Memory(tmp_path, "test")
    memory.save(state(1))
    (tmp_path / "control" / "test.json").write_bytes(content)
    assert memory.load() is None


def test_a_memory_never_goes_back_to_an_older_generation(tmp_path: Path) -> None:
    memory = Memory(tmp_path, "test")
    memory.save(state(2))
    memory.save(state(1))
    assert memory.load() == state(2)
    memory.save(state(1, epoch="other"))
    assert memory.load() == state(1, epoch="other")


def test_a_memory_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("in the way")
    Memory(tmp_path, "test").save(state(1))
    assert Memory(tmp_path, "test").load() is None
