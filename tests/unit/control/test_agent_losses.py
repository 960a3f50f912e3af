"""Agents that Redis refuses, or that it has lost what it knew of."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.channels import FakeChannel, FakeRedis
from tests.fakes import eventually
from tests.unit.control.agents import D2, SOON_S, Rig, running, state, write
from worker.control import edits
from worker.control.answers import Answer
from worker.control.channel import Members
from worker.control.messages import (
    encode_state,
)
from worker.errors import ControlUnavailable


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis("test")


@pytest.fixture
def rig(redis: FakeRedis, tmp_path: Path) -> Rig:
    return Rig(redis, tmp_path)


async def test_nobody_switches_while_redis_has_lost_one_that_is_not_prepared(
    redis: FakeRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rigs = [Rig(redis, tmp_path, f"w-{number}") for number in range(2)]
    gate = rigs[1].shelf.gates[D2] = asyncio.Event()
    redis.document = encode_state(state(1))
    members, looks = FakeChannel.members, 0

    async def without_one(channel: FakeChannel) -> Members:
        nonlocal looks
        looks += 1
        redis.answers.pop("w-1", None)
        return await members(channel)

    async with running(*rigs):
        for rig in rigs:
            await rig.acks(1)
        terms = edits.Terms("r", redis.now_ms, max_preparing=2)
        await write(redis, edits.activate(state(1), "digits", "2", sha256=None, terms=terms))
        await rigs[0].says(lambda ack: ack.prepared == "r")
        await eventually(lambda: D2 in rigs[1].shelf.loads, SOON_S)
        monkeypatch.setattr(FakeChannel, "members", without_one)
        await eventually(lambda: looks >= 6, SOON_S)
        assert redis.state.models["digits"].active == "1"
        gate.set()


@pytest.mark.parametrize("stored", [b"{", encode_state(state(6, fleet="other"))])
async def test_a_state_that_is_refused_at_the_start_is_answered_and_told_at_once(
    redis: FakeRedis, rig: Rig, stored: bytes
) -> None:
    redis.document = stored
    with capture_logs() as lines:
        async with running(rig):
            said = await rig.says(lambda ack: ack.answer is Answer.NACK)
            assert not rig.agent.started.is_set()
    assert [line["code"] for line in lines if line["event"] == "control.refused"] == [said.code]


async def test_a_state_is_followed_at_the_start_where_only_reading_it_is_permitted(
    redis: FakeRedis, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(_: FakeChannel) -> Members:
        raise ControlUnavailable("reading the members: Redis refuses: NOPERM")

    monkeypatch.setattr(FakeChannel, "members", refused)
    redis.document = encode_state(state(2, "2"))
    async with running(rig):
        await rig.acks(2)


async def test_what_redis_refuses_is_told_once(
    redis: FakeRedis, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def refused(*_: Any, **__: Any) -> None:
        nonlocal tries
        tries += 1
        raise ControlUnavailable("announcing this worker: Redis refuses: NOPERM")

    monkeypatch.setattr(FakeChannel, "announce", refused)
    redis.document = encode_state(state(1))
    with capture_logs() as lines:
        async with running(rig):
            for generation in (2, 3):
                await write(redis, state(generation))
                await eventually(lambda: tries >= generation, SOON_S)  # noqa: B023 - used at once
    told = [line["why"] for line in lines if line["event"] == "control.unreachable"]
    assert told == ["announcing this worker: Redis refuses: NOPERM"]


async def test_what_redis_does_not_do_stays_noted_until_it_does_it(
    redis: FakeRedis, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce, read, reads = FakeChannel.announce, FakeChannel.read, 0

    async def refused(*_: Any, **__: Any) -> None:
        raise ControlUnavailable("announcing this worker: Redis refuses: OOM")

    async def counted(channel: FakeChannel) -> bytes | None:
        nonlocal reads
        reads += 1
        return await read(channel)

    monkeypatch.setattr(FakeChannel, "announce", refused)
    monkeypatch.setattr(FakeChannel, "read", counted)
    redis.document = encode_state(state(1))
    async with running(rig):
        await eventually(lambda: rig.complaint() is not None, SOON_S)
        noted, looked = len(rig.host.whys), reads
        await eventually(lambda: reads > looked + 2, SOON_S)
        assert len(rig.host.whys) == noted, "it can be read all the time"
        monkeypatch.setattr(FakeChannel, "announce", announce)
        rig.agent.changed()
        await eventually(lambda: rig.complaint() is None, SOON_S)


async def test_nobody_switches_while_what_a_worker_answers_cannot_be_read(
    redis: FakeRedis, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, looks = FakeChannel.members, 0

    async def counted(channel: FakeChannel) -> Members:
        nonlocal looks
        looks += 1
        return await members(channel)

    monkeypatch.setattr(FakeChannel, "members", counted)
    redis.document = encode_state(state(1))
    redis.answers["w-9"] = (redis.now_ms + 60_000, b"?")
    with capture_logs() as lines:
        async with running(rig):
            await rig.acks(1)
            terms = edits.Terms("r", redis.now_ms, timeout_s=3600.0)
            await write(redis, edits.activate(state(1), "digits", "2", sha256=None, terms=terms))
            await rig.says(lambda ack: ack.prepared == "r")
            looked = looks
            await eventually(lambda: looks > looked + 2, SOON_S)
            assert redis.state.models["digits"].active == "1"
            del redis.answers["w-9"]
            await eventually(lambda: redis.state.models["digits"].active == "2", SOON_S)
    told = [line for line in lines if line["event"] == "control.answer-unreadable"]
    assert [(line["worker"], line["log_level"]) for line in told] == [("w-9", "warning")]


async def test_a_worker_that_fell_back_to_the_cpu_warns_once_while_others_have_a_gpu(
    redis: FakeRedis, tmp_path: Path
) -> None:
    redis.document = encode_state(state(1, "1"))
    lost, well = Rig(redis, tmp_path), Rig(redis, tmp_path, "w-2")
    well.host.devices = {"GPU-2": "gpu_ok"}

    def warned() -> list[object]:
        return [line["others"] for line in lines if line["event"] == "device.others-have-gpus"]

    with capture_logs() as lines:
        async with running(lost, well):
            await lost.acks(1)
            await well.acks(1)
            lost.host.devices = {"GPU-1": "cpu_fallback"}
            await eventually(lambda: warned() == [("w-2",)], SOON_S)
            lost.host.devices = {"GPU-1": "gpu_ok"}
            await eventually(lambda: not lost.agent._warned, SOON_S)
            lost.host.devices = {"GPU-1": "cpu_fallback"}
            await eventually(lambda: warned() == [("w-2",)] * 2, SOON_S)
