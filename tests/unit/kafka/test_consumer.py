"""The consumer against a real Kafka: membership, polls and commits."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from aiokafka import errors as kafka_errors
from aiokafka.structs import TopicPartition

from tests.fakes import eventually
from tests.unit.kafka.members import CAP, DRAIN_S, Member, Owner, numbers, produce
from worker.config_sections import KafkaSettings
from worker.errors import BrokerRefused
from worker.kafka.consumer import Consumer
from worker.types import Partition

pytestmark = pytest.mark.kafka


async def test_members_join_leave_and_join_again_while_they_are_polled(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(10))
    await member.join(2)
    await member.until(10)
    assert await member.consumer.commit(
        {Partition(*member.records[0].position[:2]): 4}, deadline_s=5
    )
    await member.consumer.leave()
    assert not member.consumer.member
    assert not member.polling.done()
    member.records.clear()
    await member.join(2)
    await member.until(6)
    assert member.offsets == [4, 5, 6, 7, 8, 9], "from what was committed, and only that"
    assert {record.epoch for record in member.records} == {2}


async def test_a_poll_brings_no_more_records_than_it_was_asked_for(settings: KafkaSettings) -> None:
    produce(settings, *numbers(10))
    produce(settings, *numbers(10), partition=1)
    consumer = Consumer(settings, drain_deadline_s=DRAIN_S, batch_max_bytes=CAP)
    await consumer.join(Owner())
    sizes: list[int] = []
    async with asyncio.timeout(20):
        while sum(sizes) < 20:
            sizes.append(len(await consumer.poll(max_records=3, timeout_s=0.1)))
    await consumer.leave()
    assert max(sizes) == 3


async def test_a_member_that_only_rests_stays_one_and_loses_nothing(
    settings: KafkaSettings, member: Member
) -> None:
    await member.join(2)
    member.polling.cancel()
    await asyncio.wait([member.polling])
    produce(settings, *numbers(5))
    for _ in range(20):
        await member.consumer.rest()
    member.polling = asyncio.create_task(member._poll())
    await member.until(5)
    assert member.owner.told[-1] == "assigned 1"


async def test_a_commit_of_what_is_not_ours_is_refused(member: Member) -> None:
    partition = Partition(member.consumer._settings.input_topics[0], 0)
    assert await member.consumer.commit({partition: 1}, deadline_s=5) is False
    await member.join(2)
    assert await member.consumer.commit({Partition("elsewhere", 0): 1}, deadline_s=5) is False


async def test_a_position_steps_over_the_markers_of_transactions(
    settings: KafkaSettings, member: Member
) -> None:
    for number in range(3):
        produce(settings, b"%d" % number, transactional_id=settings.group_id)
    await member.join(2)
    await member.until(3)
    partition = Partition(settings.input_topics[0], 0)

    ends = {partition: (0, 0)}
    async with asyncio.timeout(20):
        while ends[partition] != (6, 6):
            ends = await member.consumer.ends({partition})
    assert member.offsets == [0, 2, 4]
    assert (await member.consumer.positions([partition])) == {partition: 6}


async def test_what_is_revoked_has_drained_before_another_member_is_given_it(
    members: list[Member],
) -> None:
    first, second = members
    await first.join(2)
    first.owner.may_go.clear()
    await second.consumer.join(second.owner)
    await eventually(lambda: first.owner.told[-1] == "revoked", 20)
    assert not second.owner.partitions
    first.owner.may_go.set()
    await eventually(lambda: len(second.owner.partitions) == 1, 20)
    await eventually(lambda: len(first.owner.partitions) == 1, 20)
    assert not first.owner.partitions & second.owner.partitions
    assert first.owner.told[-3:] == ["revoked", "drained", "assigned 2"]


@pytest.mark.parametrize("asked", ["poll", "rest"])
async def test_leaving_ends_a_poll_that_waits_for_a_rebalance(
    members: list[Member], asked: str
) -> None:
    first, second = members
    await first.join(2)
    first.polling.cancel()
    await asyncio.wait([first.polling])
    first.owner.may_go.clear()
    await second.consumer.join(second.owner)
    await eventually(lambda: first.owner.told[-1] == "revoked", 20)
    consumer = first.consumer
    polls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "rest": consumer.rest,
        "poll": partial(consumer.poll, max_records=1, timeout_s=0.01),
    }
    waiting = asyncio.create_task(polls[asked]())
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done, "aiokafka waits for the rebalance, whatever the timeout"
    async with asyncio.timeout(10):
        await consumer.leave()
        await waiting
    await eventually(lambda: len(second.owner.partitions) == 2, 10)
    assert second.polling.done() is False


async def test_a_cancelled_poll_is_cancelled_and_says_so(member: Member) -> None:
    await member.join(2)
    member.polling.cancel()
    await asyncio.wait([member.polling])
    assert member.polling.cancelled()


async def test_a_rebuilt_consumer_goes_on_where_it_was_committed(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(6))
    await member.join(2)
    await member.until(6)
    await member.consumer.commit({Partition(settings.input_topics[0], 0): 5}, deadline_s=5)
    await member.consumer.rebuild("a test")
    await member.until(7)
    assert member.offsets == [0, 1, 2, 3, 4, 5, 5]
    assert "revoked" in member.owner.told


async def test_two_that_change_the_membership_at_a_time_leave_one_client(member: Member) -> None:
    await member.join(2)
    await asyncio.gather(
        member.consumer.rebuild("one"),
        member.consumer.rebuild("two"),
        member.consumer.join(member.owner),
    )
    await eventually(lambda: len(member.owner.partitions) == 2, 20)
    await member.consumer.leave()
    assert not member.consumer.member


async def test_what_was_fetched_before_we_were_told_of_an_assignment_is_put_back(
    settings: KafkaSettings, member: Member
) -> None:
    produce(settings, *numbers(5))
    await member.join(2)
    await member.until(5)
    client = member.consumer._consumer
    assert client is not None
    put_back: list[int] = []
    seek = client.seek

    def watched(tp: TopicPartition, offset: int) -> None:
        put_back.append(offset)
        seek(tp, offset)

    client.seek = watched
    member.consumer.joined = False
    seek(TopicPartition(settings.input_topics[0], 0), 2)
    await eventually(lambda: len(put_back) > 1, 20)
    member.consumer.joined = True
    await member.until(8)
    assert set(put_back) == {2}
    assert member.offsets == [0, 1, 2, 3, 4, 2, 3, 4]


@pytest.mark.parametrize("served", [False, True], ids=["at the start", "later"])
async def test_brokers_that_refuse_us_end_the_worker_only_before_they_ever_served_us(
    settings: KafkaSettings,
    member: Member,
    served: bool,  # noqa: FBT001 - a table
) -> None:
    await member.join(2)
    if served:
        produce(settings, b"x")
        await member.until(1)
    member.polling.cancel()
    await asyncio.wait([member.polling])
    client = member.consumer._consumer
    assert client is not None

    async def refuse(*_: object, **__: object) -> None:
        raise kafka_errors.GroupAuthorizationFailedError(settings.group_id)

    client.getmany = refuse
    if served:
        assert await member.consumer.poll(max_records=1, timeout_s=0.01) == []
    else:
        with pytest.raises(BrokerRefused, match="GroupAuthorizationFailed"):
            await member.consumer.poll(max_records=1, timeout_s=0.01)
