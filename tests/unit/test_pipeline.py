"""A record's life over fakes: n in, n out, whatever happens at which stop."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import orjson
import pytest

from tests.fakes import FakeRegistry, eventually, record_at
from tests.unit.kafka.delivering import P0, Rig
from tests.unit.kafka.test_results import PREDICTED
from worker.errors import RecordFault, RecordSkipped
from worker.inference.dispatcher import Finished
from worker.inference.feed import Job
from worker.kafka.envelope import parse
from worker.kafka.outbox import Outbox
from worker.kafka.resolve import Resolver
from worker.kafka.topics import TopicFacts
from worker.models.router import Routes, RoutingTable
from worker.pipeline import Pipeline
from worker.types import ModelRef, Outcome, Reason, Record, Reference, Request, SkipReason

PNG = b"\x89PNG\r\n\x1a\n"
V1 = Routes("1", frozenset({"1", "2"}), generation=3)
TABLE = RoutingTable("digits", {"digits": V1})
HEADERS = frozenset({"traceparent"})


class Line:
    """A pipeline that runs, and what goes in and comes out of it."""

    def __init__(self, rig: Rig, registry: FakeRegistry, resolver: Resolver) -> None:
        self.rig = rig
        self.registry = registry
        facts = TopicFacts("predictions", 1, 10**6, "images.dead", 1, 10**6)
        consumer: Any = rig.consumer
        engines: Any = registry
        self.pipeline = Pipeline(
            consumer=consumer,
            parse=partial(parse, image_max_bytes=1000, forward_headers=HEADERS),
            resolver=resolver,
            registry=engines,
            owned=rig.owned,
            outbox=Outbox(facts, worker="w", omit_failures=False, forward_headers=HEADERS),
            metrics=rig.metrics,
        )

    def predict(self, *, outcome: Outcome = PREDICTED) -> None:
        """Let the engines end everything that they were given, in the opposite order."""
        jobs, self.registry.submitted = self.registry.submitted, []
        self.pipeline.finish([Finished(job.ticket, outcome) for job in reversed(jobs)])

    async def given(self, count: int) -> list[Job]:
        await eventually(lambda: len(self.registry.submitted) >= count)
        return self.registry.submitted

    async def results(self, count: int) -> list[dict[str, Any]]:
        items = self.rig.producer.results[0]
        await eventually(lambda: len(items) >= count)
        return [orjson.loads(item.value or b"{}") for item in items]

    def letters(self) -> list[str]:
        items = self.rig.producer.results[0]
        return [item.dead_letter.reason for item in items if item.dead_letter]


@contextlib.asynccontextmanager
async def running(
    *, floor: int = 100, table: RoutingTable = TABLE, resolver: Resolver | None = None
) -> AsyncIterator[Line]:
    rig = Rig(partitions=1, commit_interval_s=0.005, floor=floor)
    line = Line(rig, FakeRegistry(table), resolver or Resolver())
    await rig.consumer.join(rig.owned)
    tasks = [asyncio.create_task(run()) for run in (line.pipeline.run, rig.delivery.run)]
    yield line
    for task in tasks:
        task.cancel()
    rig.owned.forget()
    await asyncio.wait(tasks)
    assert all(task.cancelled() or task.exception() is None for task in tasks)


async def test_every_record_has_one_result_in_order_and_is_committed() -> None:
    async with running() as line:
        line.rig.broker.write(0, *[PNG] * 5)
        jobs = await line.given(5)
        assert [job.ticket.position.offset for job in jobs] == [0, 1, 2, 3, 4]
        assert {job.ticket.model for job in jobs} == {ModelRef("digits", "1")}
        assert jobs[0].image == PNG
        line.predict()
        results = await line.results(5)
        assert [result["source"]["offset"] for result in results] == [0, 1, 2, 3, 4]
        assert {result["status"] for result in results} == {"ok"}
        await eventually(lambda: line.rig.broker.committed == {P0: 5})


async def test_a_record_at_fault_is_failed_and_dead_and_its_mates_are_served() -> None:
    async with running() as line:
        line.rig.broker.write(0, PNG, b"", b"x" * 1001, PNG)
        await line.given(2)
        line.predict()
        results = await line.results(4)
        reasons = [result.get("reason") for result in results]
        assert reasons == [None, "image.empty", "image.too-large", None]
        assert line.letters() == ["image.empty", "image.too-large"]


@pytest.mark.parametrize(
    ("raised", "status", "reason", "letters"),
    [
        (RecordFault(Reason.MODEL_UNKNOWN, "none"), "failed", "model.unknown", ["model.unknown"]),
        (
            RecordSkipped(SkipReason.VERSION_UNAVAILABLE, "not now"),
            "skipped",
            "model.version-unavailable",
            [],
        ),
    ],
    ids=["fault", "skip"],
)
async def test_what_the_router_refuses_ends_there(
    raised: Exception,
    status: str,
    reason: str,
    letters: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Request, __: RoutingTable) -> None:
        raise raised

    monkeypatch.setattr("worker.pipeline.route", refuse)
    async with running() as line:
        line.rig.broker.write(0, PNG)
        (result,) = await line.results(1)
        assert (result["status"], result["reason"]) == (status, reason)
        assert (line.letters(), line.registry.submitted) == (letters, [])


class SlowResolver(Resolver):
    """Fetches references when it is told to, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.error = error

    async def resolve(self, request: Request) -> Request:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return request._replace(image=PNG)


def referencing(record: Record) -> Request:
    return Request(record, Reference("s3://x", None), None, None, {}, None, None, None, ())


async def test_records_that_are_given_back_are_routed_again_by_the_table_of_now() -> None:
    async with running() as line:
        line.rig.broker.write(0, PNG, PNG)
        withdrawn = list(await line.given(2))
        assert {(job.ticket.model.version, job.ticket.generation) for job in withdrawn} == {
            ("1", 3)
        }
        line.registry.submitted.clear()
        two = V1._replace(serving="2", generation=4)
        line.registry.table = RoutingTable("digits", {"digits": two})
        line.pipeline.reroute(withdrawn)
        again = await line.given(2)
        assert {(job.ticket.model.version, job.ticket.generation) for job in again} == {("2", 4)}
        line.predict()
        await line.results(2)
        line.registry.submitted.clear()
        line.pipeline.reroute(withdrawn)
        assert line.registry.submitted == [], "they have their outcome: it is too late"


async def test_a_paused_pipeline_takes_nothing_in_and_stays_a_member() -> None:
    async with running() as line:
        line.pipeline.pause()
        await eventually(lambda: "rest" in line.rig.consumer.calls)
        line.rig.broker.write(0, PNG)
        rests = line.rig.consumer.calls.count("rest")
        await eventually(lambda: line.rig.consumer.calls.count("rest") > rests)
        assert line.registry.submitted == []
        line.pipeline.resume()
        await line.given(1)
        line.predict()
        await line.results(1)


async def test_a_reference_is_denied_as_long_as_none_is_allowed() -> None:
    async with running() as line:
        line.pipeline._parse = referencing
        line.rig.broker.write(0, b"any")
        (result,) = await line.results(1)
        assert (result["status"], result["reason"]) == ("failed", "reference.denied")
        assert line.letters() == ["reference.denied"]


async def test_a_reference_that_takes_its_time_holds_nobody_up_but_its_partitions_order() -> None:
    resolver = SlowResolver()
    async with running(resolver=resolver) as line:
        plain = line.pipeline._parse
        line.pipeline._parse = lambda r: referencing(r) if r.value == b"ref" else plain(r)
        line.rig.broker.write(0, b"ref", PNG)
        await line.given(1)
        line.predict()
        assert line.rig.producer.results[0] == []
        resolver.go.set()
        await line.given(1)
        line.predict()
        results = await line.results(2)
        assert [result["source"]["offset"] for result in results] == [0, 1]


async def test_an_unexpected_error_while_a_reference_is_fetched_ends_the_worker() -> None:
    resolver = SlowResolver(ZeroDivisionError("a bug"))
    async with running(resolver=resolver) as line:
        line.pipeline._parse = referencing
        line.rig.broker.write(0, b"ref")
        resolver.go.set()
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(5):
                await line.rig.owned.failed


async def test_a_record_that_cannot_be_read_has_its_outcome_like_any_other() -> None:
    async with running() as line:
        unreadable = record_at(*P0, 0, None)._replace(unreadable="a bomb", key=None)
        line.rig.broker.write(0, b"never read", PNG)
        line.rig.consumer.next[P0] = 1
        line.pipeline._serve([unreadable])
        await line.given(1)
        line.predict()
        first, second = await line.results(2)
        assert (first["reason"], first["message"]) == ("record.unreadable", "a bomb")
        assert (second["status"], line.letters()) == ("ok", ["record.unreadable"])


async def test_a_deadline_goes_to_the_engines_with_its_record() -> None:
    async with running() as line:
        plain = line.pipeline._parse
        line.pipeline._parse = lambda r: plain(r)._replace(deadline_ms=123)
        line.rig.broker.write(0, PNG)
        (job,) = await line.given(1)
        assert job.deadline_ms == 123


async def test_an_outcome_that_comes_after_its_partition_has_gone_is_dropped() -> None:
    async with running() as line:
        line.rig.broker.write(0, PNG, PNG)
        late = list(await line.given(2))
        line.rig.consumer.rebalance()
        line.pipeline.finish([Finished(job.ticket, PREDICTED) for job in late])
        line.registry.submitted = line.registry.submitted[2:]
        fresh = await line.given(2)
        assert {job.ticket.epoch for job in fresh} == {2}
        line.predict()
        assert len(await line.results(2)) == 2
        await eventually(lambda: line.rig.broker.committed == {P0: 2})


async def test_a_record_whose_partition_went_since_the_poll_is_not_taken_in() -> None:
    async with running() as line:
        line.pipeline._serve([record_at(*P0, 0, PNG, epoch=0)])
        assert (line.rig.bound.records, line.registry.submitted) == (0, [])


async def test_nothing_is_polled_while_the_bound_is_reached_but_the_member_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.pipeline._REST_S", 0.001)
    async with running(floor=3) as line:
        line.rig.broker.write(0, *[PNG] * 10)
        await eventually(lambda: line.rig.consumer.calls.count("rest") > 3)
        assert len(line.registry.submitted) == 3
        line.predict()
        await line.given(3)
        line.predict()
        assert len(await line.results(6)) >= 6


async def test_a_stopped_pipeline_takes_nothing_more_in() -> None:
    async with running() as line:
        line.pipeline.stop()
        line.rig.broker.write(0, PNG)
        async with asyncio.timeout(5):
            await line.pipeline.run()
        assert line.registry.submitted == []


@pytest.mark.parametrize(
    ("spoil", "idle"),
    [
        (lambda _: None, True),
        (lambda line: line.rig.broker.write(0, PNG), False),
        (lambda line: setattr(line.rig.consumer, "joined", False), False),
    ],
    ids=["nothing", "in flight", "not in the group"],
)
async def test_idle_is_a_member_that_gets_nothing_and_has_nothing(
    spoil: Callable[[Line], None],
    idle: bool,  # noqa: FBT001 - a table
) -> None:
    async with running() as line:
        assert line.pipeline.idle_s == 0
        spoil(line)
        polls = line.rig.consumer.polls
        await eventually(lambda: line.rig.consumer.polls > polls + 3)
        assert (line.pipeline.idle_s > 0) is idle


async def test_idleness_begins_again_after_a_record() -> None:
    async with running() as line:
        await eventually(lambda: line.pipeline.idle_s > 0.02)
        began_s = time.monotonic()
        line.rig.broker.write(0, PNG)
        await line.given(1)
        line.predict()
        await eventually(lambda: line.pipeline.idle_s > 0)
        assert line.pipeline.idle_s <= time.monotonic() - began_s


async def test_an_idle_partition_is_committed_behind_what_is_no_record() -> None:
    async with running() as line:
        line.rig.consumer.next[P0] = 9
        line.pipeline._step_at_s = 0.0
        await eventually(lambda: line.rig.broker.committed == {P0: 9})


async def test_the_image_of_a_reference_is_not_fetched_again_for_another_route() -> None:
    resolver = SlowResolver()
    resolver.go.set()
    async with running(resolver=resolver) as line:
        line.pipeline._parse = referencing
        line.rig.broker.write(0, b"ref")
        withdrawn = list(await line.given(1))
        line.registry.submitted.clear()
        line.pipeline.reroute(withdrawn)
        assert [job.image for job in line.registry.submitted] == [PNG]
