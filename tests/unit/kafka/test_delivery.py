"""At least once: what is committed, when, and what a refusal or a silence of the brokers does."""

import asyncio
import time

import pytest
from aiokafka import errors as kafka_errors

from tests.fakes import eventually
from tests.unit.kafka.delivering import P0, P1, rigged
from worker.errors import BrokerRefused
from worker.kafka.delivery import Mark


async def test_only_contiguous_published_prefixes_are_ever_committed() -> None:
    async with rigged(partitions=2) as rig:
        first, second = await rig.fetch(3), await rig.fetch(3, P1)
        rig.finish([*first[1:], *second[:2]])
        await rig.until_published(2, P1)
        await eventually(lambda: bool(rig.broker.committed))
        assert rig.broker.committed == {P1: 2}
        rig.finish([first[0]])
        await eventually(lambda: rig.broker.committed == {P0: 3, P1: 2})
        for before, after in zip(rig.consumer.commits, rig.consumer.commits[1:], strict=False):
            assert all(after.get(p, 10**9) >= at for p, at in before.items()), "never backwards"


async def test_nothing_is_committed_before_it_is_acknowledged() -> None:
    async with rigged() as rig:
        rig.producer.hold = asyncio.Event()
        rig.finish(await rig.fetch(2))
        assert await rig.owned.drain(0.1) is False
        assert rig.broker.committed == {}


async def test_half_a_bound_that_waits_is_committed_before_the_timer_is_due() -> None:
    async with rigged(commit_interval_s=60, floor=10) as rig:
        positions = await rig.fetch(10)
        rig.finish(positions[:4])
        await rig.until_published(4)
        assert rig.consumer.commits == []
        rig.finish(positions[4:5])
        await eventually(lambda: rig.broker.committed == {P0: 5})


async def test_a_refused_commit_claims_nothing_and_is_not_tried_again() -> None:
    async with rigged() as rig:
        rig.consumer.refused = True
        rig.finish(await rig.fetch(3))
        await eventually(lambda: len(rig.consumer.commits) == 1)
        rig.consumer.refused = False
        assert await rig.owned.drain(0.1) is False
        assert len(rig.consumer.commits) == 1
        assert rig.bound.records == 3, "they are in flight until the partition is given up"
        await rig.owned.revoked(0.0)
        assert rig.bound.records == 0


async def test_after_a_refusal_the_next_ownership_commits_again() -> None:
    async with rigged() as rig:
        rig.consumer.refused = True
        rig.finish(await rig.fetch(3))
        await eventually(lambda: len(rig.consumer.commits) == 1)
        rig.consumer.refused = False
        await rig.owned.revoked(0.0)
        rig.consumer.rebalance()
        rig.finish(await rig.fetch(3))
        await eventually(lambda: rig.broker.committed.get(P0, 0) >= 3)


async def test_a_commit_without_an_answer_is_tried_again_with_all_that_waits() -> None:
    async with rigged() as rig:
        rig.consumer.unavailable = 2
        rig.finish(await rig.fetch(3))
        await eventually(lambda: rig.broker.committed == {P0: 3})
        assert len(rig.consumer.commits) == 3
        assert rig.bound.records == 0


async def test_a_drain_gives_up_at_its_deadline_though_another_commit_hangs() -> None:
    async with rigged() as rig:
        rig.consumer.hanging = asyncio.Event()
        rig.finish(await rig.fetch(3))
        await eventually(lambda: bool(rig.consumer.commits))
        began_s = time.monotonic()
        assert await rig.delivery.drain([P0], deadline_s=0.0) is False
        assert time.monotonic() - began_s < 2.0


async def test_a_commit_that_hung_through_a_revoke_is_cut_and_counts_for_nobody() -> None:
    async with rigged() as rig:
        hanging = rig.consumer.hanging = asyncio.Event()
        rig.finish(await rig.fetch(3))
        await eventually(lambda: bool(rig.consumer.commits))
        await rig.owned.revoked(0.0)
        rig.consumer.rebalance()
        rig.consumer.hanging = None
        hanging.set()
        await asyncio.sleep(0)
        assert rig.broker.committed == {}
        rig.finish(await rig.fetch(0))
        assert rig.owned.committed(P0) is None


async def test_a_mark_of_an_older_epoch_is_never_committed() -> None:
    async with rigged(commit_interval_s=60) as rig:
        rig.consumer.rebalance()
        rig.delivery.advance(P0, Mark(1, 50))
        assert await rig.delivery.drain([P0], deadline_s=0.1)
        assert rig.consumer.commits == []


async def test_a_publish_that_ends_after_the_revoke_moves_nothing() -> None:
    async with rigged(commit_interval_s=60) as rig:
        rig.producer.hold = asyncio.Event()
        rig.finish(await rig.fetch(3))
        await asyncio.sleep(0)
        await rig.owned.revoked(0.01)
        rig.consumer.rebalance()
        rig.producer.hold.set()
        await rig.delivery.drain([P0], deadline_s=0.1)
        assert rig.broker.committed == {}


async def test_a_topic_that_takes_less_than_before_ends_the_worker_and_not_the_order() -> None:
    async with rigged() as rig:
        rig.producer.failures = [kafka_errors.MessageSizeTooLargeError() for _ in range(3)]
        rig.finish(await rig.fetch(1))
        with pytest.raises(BrokerRefused, match="start it again"):
            async with asyncio.timeout(5.0):
                await rig.owned.failed
        assert rig.broker.committed == {}
