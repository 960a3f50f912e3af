"""Owned partitions: order, epochs, and what a revoke does."""

import asyncio

import pytest
from aiokafka import errors as kafka_errors

from tests.fakes import eventually, record_at
from tests.unit.kafka.delivering import P0, P1, rigged
from worker.kafka import owned
from worker.types import Position

LONG_S = 3600.0


async def test_results_keep_the_partitions_order_however_records_finish_and_however_slow() -> None:
    async with rigged(partitions=2) as rig:
        rig.producer.hold = asyncio.Event()
        first, second = await rig.fetch(6), await rig.fetch(4, P1)
        rig.finish([first[0]])
        rig.finish([first[2], first[4], *reversed(second)])
        await asyncio.sleep(0)
        rig.finish([first[1], first[3]])
        rig.producer.hold.set()
        await rig.until_published(5)
        await rig.until_published(4, P1)
        rig.finish([first[5]])
        await rig.until_published(6)
        assert rig.published() == [0, 1, 2, 3, 4, 5]
        assert rig.published(P1) == [0, 1, 2, 3]


async def test_what_is_committed_leaves_the_bound_and_nothing_stays() -> None:
    async with rigged(partitions=2) as rig:
        for _ in range(3):
            rig.finish(await rig.fetch(5) + await rig.fetch(5, P1))
            await eventually(lambda: not rig.bound.records)
        assert rig.broker.committed == {P0: 15, P1: 15}
        assert (rig.bound.size_bytes, rig.owned.unfinished) == (0, 0)
        assert dict(rig.owned.idle_partitions()).keys() == {P0, P1}


async def test_an_outcome_of_an_older_epoch_finds_nothing() -> None:
    async with rigged() as rig:
        (position,) = await rig.fetch(1)
        assert rig.owned.find(position, 1) is not None
        rig.consumer.rebalance()
        assert rig.owned.find(position, 1) is None
        await rig.fetch(0)
        assert rig.owned.find(position, 2) is None, "not fetched again yet"


@pytest.mark.parametrize("epoch", [0, 2], ids=["older", "newer"])
async def test_a_record_of_another_epoch_is_not_taken_in(epoch: int) -> None:
    async with rigged() as rig:
        assert rig.owned.track(record_at(*P0, 0, epoch=epoch)) is None
        assert rig.owned.track(record_at("elsewhere", 0, 0)) is None


async def test_a_new_assignment_forgets_the_old_ledgers_and_stops_their_publishers() -> None:
    async with rigged() as rig:
        rig.producer.hold = asyncio.Event()
        rig.finish(await rig.fetch(3))
        await asyncio.sleep(0)
        rig.consumer.rebalance()
        rig.producer.hold.set()
        assert (rig.bound.records, rig.bound.size_bytes) == (0, 0)
        await asyncio.sleep(0)
        assert rig.published() == []
        assert rig.broker.committed == {}
        assert not rig.owned.failed.done()


async def test_a_revoke_waits_for_what_is_in_flight_then_commits_and_forgets() -> None:
    async with rigged(commit_interval_s=60) as rig:
        positions = await rig.fetch(4)
        revoke = asyncio.create_task(rig.owned.revoked(10.0))
        await asyncio.sleep(0)
        assert not revoke.done()
        rig.finish(reversed(positions))  # type: ignore[arg-type]  # any order
        async with asyncio.timeout(2.0):
            await revoke
        assert rig.broker.committed == {P0: 4}
        assert rig.owned.partitions == frozenset()


async def test_a_revoke_commits_the_finished_prefix_and_no_more_when_its_deadline_is_over() -> None:
    async with rigged(commit_interval_s=60) as rig:
        positions = await rig.fetch(4)
        rig.finish([positions[0], positions[1], positions[3]])
        async with asyncio.timeout(2.0):
            await rig.owned.revoked(0.1)
        assert rig.broker.committed == {P0: 2}
        assert rig.published() == [0, 1]
        assert rig.bound.records == 0


async def test_a_revoke_of_nothing_returns_at_once() -> None:
    async with rigged() as rig:
        await rig.owned.revoked(0.0)
        commits = len(rig.consumer.commits)
        await rig.owned.revoked(10.0)
        assert len(rig.consumer.commits) == commits


async def test_a_revoke_leaves_an_assignment_alone_that_came_while_it_drained() -> None:
    async with rigged() as rig:
        await rig.fetch(1)
        revoke = asyncio.create_task(rig.owned.revoked(10.0))
        await asyncio.sleep(0)
        rig.consumer.rebalance()
        async with asyncio.timeout(2.0):
            await revoke
        assert rig.owned.partitions == {P0}


@pytest.mark.parametrize(("finished", "drained"), [(2, True), (1, False)])
async def test_a_drain_says_whether_anything_is_left(finished: int, drained: bool) -> None:  # noqa: FBT001 - a table
    async with rigged() as rig:
        positions = await rig.fetch(2)
        rig.finish(positions[:finished])
        assert await rig.owned.drain(0.1) is drained


async def test_a_publisher_that_ends_by_an_error_ends_the_worker() -> None:
    async with rigged() as rig:
        rig.producer.failures = [ZeroDivisionError("a bug")]
        rig.finish(await rig.fetch(1))
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(2.0):
                await rig.owned.failed


async def test_a_refused_publish_is_tried_again_by_a_new_producer_in_order() -> None:
    async with rigged() as rig:
        rig.producer.failures = [kafka_errors.OutOfOrderSequenceNumber()]
        rig.finish(await rig.fetch(3))
        await rig.until_published(3)
        assert rig.published() == [0, 1, 2]
        assert rig.producer.replaced == 1


async def test_without_a_backlog_a_result_is_published_at_once() -> None:
    async with rigged(floor=200) as rig:
        rig.finish((await rig.fetch(100))[:1])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rig.published() == [0]


async def test_with_a_backlog_results_of_all_partitions_go_out_on_the_beat() -> None:
    async with rigged(partitions=2, floor=200) as rig:
        first, second = await rig.fetch(80), await rig.fetch(80, P1)
        for number in range(5):
            rig.finish([first[number], second[number]])
        await rig.until_published(5)
        await rig.until_published(5, P1)


async def test_no_more_than_an_eighth_of_the_bound_waits_for_the_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owned, "_BEAT_S", LONG_S)
    async with rigged(floor=200) as rig:
        positions = await rig.fetch(160)
        rig.finish(positions[:24])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rig.published() == []
        rig.finish(positions[24:25])
        await rig.until_published(25)


async def test_a_drain_does_not_wait_for_the_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned, "_BEAT_S", LONG_S)
    async with rigged(floor=20, commit_interval_s=60) as rig:
        positions = await rig.fetch(20)
        rig.finish(positions[:1])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rig.published() == []
        draining = asyncio.create_task(rig.owned.drain(5.0))
        await rig.until_published(1)
        rig.finish(positions[1:])
        assert await draining


async def test_room_comes_back_with_a_commit() -> None:
    async with rigged(floor=2, commit_interval_s=60) as rig:
        positions = await rig.fetch(2)
        assert not await rig.owned.has_room(0.001)
        waiting = asyncio.create_task(rig.owned.has_room(5.0))
        rig.finish(positions)
        assert await waiting


async def test_an_idle_partition_is_committed_up_to_a_position_behind_its_last_record() -> None:
    async with rigged() as rig:
        rig.owned.advance(P0, 1, 42)
        await eventually(lambda: rig.broker.committed == {P0: 42})
        assert rig.owned.committed(P0) == 42


async def test_an_advance_never_goes_back_and_never_counts_for_another_epoch() -> None:
    async with rigged(commit_interval_s=60) as rig:
        rig.owned.advance(P0, 1, 42)
        rig.owned.advance(P0, 1, 7)
        rig.owned.advance(P0, 0, 99)
        await rig.owned.drain(0.1)
        assert rig.broker.committed == {P0: 42}


async def test_a_partition_with_a_record_in_flight_is_not_idle() -> None:
    async with rigged(partitions=2, commit_interval_s=60) as rig:
        positions = await rig.fetch(1)
        assert rig.owned.idle_partitions() == [(P1, 1)]
        rig.finish(positions)
        await rig.until_published(1)
        assert rig.owned.idle_partitions() == [(P1, 1)], "published is not committed"


async def test_positions_of_both_partitions_are_their_own() -> None:
    async with rigged(partitions=2) as rig:
        await rig.fetch(1)
        assert rig.owned.find(Position("images", 1, 0), 1) is None
