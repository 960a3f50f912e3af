"""Commands to a fleet of real workers under load, on a real Kafka and a real Redis."""

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.broker import Topics, make_topics, read_all
from tests.conftest import missing
from tests.fleets import Fleet, fleet_on, held_to_history, whole_batches, worker_id
from tests.integration.pictures import digit
from tests.integration.traffic import Traffic
from tests.ledger import account
from tests.workers import Crew, Worker
from worker.control import edits
from worker.control.answers import Answer, Code
from worker.control.messages import DesiredState, Selector
from worker.control.progress import Outcome
from worker.local.spec import MissingPart, StackSpec
from worker.local.stack import Stack, running

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

EVERYBODY = Selector()


@pytest.fixture
def fleet(kafka: Stack, unique: str, tmp_path: Path) -> Fleet:
    return fleet_on(kafka, unique, tmp_path)


@pytest.fixture(scope="module")
def breakable_redis(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[Stack]:
    """A Redis that tests kill and hang; each leaves it running."""
    del no_process_left  # is asked for so that it looks after this fixture's end
    spec = StackSpec(data=tmp_path_factory.mktemp("redis"), topics=(), kafka=False)
    try:
        with running(spec) as stack:
            yield stack
    except MissingPart as error:
        missing(str(error))


def redis_value(stack: Stack, key: str, value: bytes | None = None) -> bytes:
    """Return what stands at a key, after putting a value there if one is given."""
    assert stack.redis_url is not None
    with redis.Redis.from_url(stack.redis_url) as client:
        if value is not None:
            client.set(key, value)
        return bytes(client.get(key) or b"")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process stand still for the length of a block: it takes connections, says nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def traffic(kafka: Stack, unique: str, crew: Crew) -> Iterator[Traffic]:
    traffic = Traffic(make_topics(kafka, unique), crew)
    yield traffic
    traffic.close()


def start(crew: Crew, topics: Topics, fleet: Fleet, count: int) -> list[Worker]:
    workers = [crew.start(topics, fleet.settings()) for _ in range(count)]
    return [worker.wait_ready() for worker in workers]


def ending(traffic: Traffic, fleet: Fleet, *workers: Worker, repeats_max: int = 0) -> None:
    """Finish, and hold everything that was published to what was sent and to what was asked."""
    traffic.finish()
    for worker in workers:
        assert worker.stop() == 0
    done = account(
        traffic.topics, traffic.feed.sent, doomed=traffic.doomed, repeats_max=repeats_max
    )
    served = [result for result in done.results if result["status"] == "ok"]
    held_to_history(served, fleet)
    if not repeats_max:  # nobody died: no batch was published by halves
        whole_batches(served)


def swaps(traffic: Traffic, fleet: Fleet, count: int) -> None:
    """Swap so many times, in turn by each way, while records flow."""
    for number in range(count):
        version = "12"[number % 2 == 0]
        traffic.more(20)
        terms: dict[str, Any] = {"max_preparing": 3} if number % 4 == 3 else {}
        progress = fleet.activate(version, **terms)
        assert progress.outcome is Outcome.CONVERGED, progress.reasons
        generation = progress.look.state.generation if progress.look.state else None
        traffic.until(
            lambda: any(r["generation"] == generation for r in traffic.tail.look()),  # noqa: B023 - is called in this round
            "results by the new state",
        )


def test_twenty_swaps_under_load_lose_and_mix_nothing_and_rollback_is_quick(
    traffic: Traffic, fleet: Fleet, crew: Crew
) -> None:
    workers = start(crew, traffic.topics, fleet, 3)
    swaps(traffic, fleet, 20)
    for worker in workers:
        engines = worker.engines()
        assert len(engines) == 2, "the active version and the one before, which is kept warm"
    fleet.converges(lambda state, _: edits.rollback(state, None))
    assert all(len(worker.events("engine.loaded")) == 2 for worker in workers), "both were warm"
    ending(traffic, fleet, *workers)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_hundred_swaps_under_load_leave_memory_as_it_was(
    traffic: Traffic, fleet: Fleet, crew: Crew
) -> None:
    workers = start(crew, traffic.topics, fleet, 3)
    swaps(traffic, fleet, 20)
    before = [resident(worker) for worker in workers]
    swaps(traffic, fleet, 180)
    after = [resident(worker) for worker in workers]
    assert all(now < 1.05 * then for then, now in zip(before, after, strict=True)), (before, after)
    ending(traffic, fleet, *workers)


def resident(worker: Worker) -> int:
    """Bytes that a worker and its engines have in memory."""
    return sum(
        process.memory_info().rss
        for process in (psutil.Process(worker.process.pid), *worker.engines())
    )


def test_in_two_phases_nobody_switches_when_one_worker_refuses(
    kafka: Stack, unique: str, tmp_path: Path, fleet: Fleet, crew: Crew, traffic: Traffic
) -> None:
    other = fleet_on(kafka, unique, tmp_path / "other")
    fleet.add_version("3")
    other.add_version("3", broken=True)
    good = start(crew, traffic.topics, fleet, 2)
    (bad,) = start(crew, traffic.topics, other, 1)
    traffic.more(50)

    progress = fleet.activate("3", max_preparing=3)

    assert progress.outcome is Outcome.ABORTED
    assert worker_id(bad) in progress.reasons[0]
    traffic.more(200)
    assert {result["model"]["version"] for result in traffic.tail.results if result["model"]} == {
        "1"
    }
    ending(traffic, fleet, *good, bad)


@pytest.mark.long  # simulated workers do so in test_cli_fleet, real ones in two phases
def test_at_once_those_that_can_switch_and_who_cannot_says_why_and_serves_on(
    kafka: Stack, unique: str, tmp_path: Path, fleet: Fleet, crew: Crew, traffic: Traffic
) -> None:
    other = fleet_on(kafka, unique, tmp_path / "other")
    fleet.add_version("3")
    other.add_version("3", broken=True)
    (good,) = start(crew, traffic.topics, fleet, 1)
    (bad,) = start(crew, traffic.topics, other, 1)

    progress = fleet.activate("3")

    assert progress.outcome is Outcome.REFUSED
    answers = progress.look.members
    assert answers[worker_id(good)].answer is Answer.ACK
    refusal = answers[worker_id(bad)]
    assert (refusal.answer, refusal.code) == (Answer.NACK, Code.MODEL_CHANGED)
    assert refusal.models["digits"].active == "1"
    traffic.more(200)
    assert not bad.unready_because()
    fleet.converges(lambda state, _: edits.rollback(state, "digits"))
    ending(traffic, fleet, good, bad)


def test_a_worker_whose_repository_lags_waits_for_what_the_state_names(
    kafka: Stack, unique: str, tmp_path: Path, fleet: Fleet, crew: Crew, topics: Topics
) -> None:
    other = fleet_on(kafka, unique, tmp_path / "other")
    fleet.add_version("3")
    (lagging,) = start(crew, topics, other, 1)
    change = fleet.run(
        lambda operator: operator.change(
            lambda state, _: edits.activate(state, "digits", "3", sha256=fleet.sha256("3")), "test"
        )
    )
    name = worker_id(lagging)
    look = fleet.until(
        lambda look: look.members[name].code is Code.MODEL_ABSENT, "it says what it lacks"
    )
    assert look.members[name].answer is Answer.PENDING
    other.add_version("3")
    fleet.until(
        lambda look: look.members[name].generation == change.after.generation, "it has caught up"
    )
    assert lagging.stop() == 0


def test_redis_killed_emptied_hung_or_set_back_changes_nothing_and_the_fleet_converges_after(
    breakable_redis: Stack, unique: str, tmp_path: Path, crew: Crew, traffic: Traffic
) -> None:
    fleet = fleet_on(breakable_redis, unique, tmp_path)
    workers = start(crew, traffic.topics, fleet, 2)
    assert fleet.activate("2").outcome is Outcome.CONVERGED
    backup = redis_value(breakable_redis, f"darkroom:{{{unique}}}:desired")
    fleet.converges(lambda state, _: edits.rollback(state, None))
    newest = fleet.look.state

    breakable_redis.kill("redis")  # it keeps nothing: this empties it too
    traffic.more(200)
    breakable_redis.start("redis")
    fleet.until(lambda look: look.state == newest, "the workers put the newest state back")

    redis_value(breakable_redis, f"darkroom:{{{unique}}}:desired", backup)
    fleet.until(lambda look: look.state == newest, "also over one of an old backup")

    with stopped(breakable_redis.pid("redis")):
        traffic.more(200)
    assert fleet.activate("2").outcome is Outcome.CONVERGED
    assert all(not worker.unready_because() for worker in workers)
    assert all(len(worker.events("engine.ended")) == 0 for worker in workers)
    traffic.finish()
    for worker in workers:
        assert worker.stop() == 0
    account(traffic.topics, traffic.feed.sent, doomed=traffic.doomed)


@pytest.mark.long  # the agent alone does so in test_agent
def test_a_worker_starts_without_redis_from_what_it_remembers_else_from_its_settings(
    breakable_redis: Stack, unique: str, tmp_path: Path, crew: Crew, topics: Topics
) -> None:
    fleet = fleet_on(breakable_redis, unique, tmp_path)
    home = str(tmp_path / "shared")
    settings = {**fleet.settings(start_wait_s=2), "data_dir": home}
    first = crew.start(topics, settings).wait_ready()
    assert fleet.activate("2").outcome is Outcome.CONVERGED
    assert first.stop() == 0

    breakable_redis.kill("redis")
    remembers = crew.start(topics, settings).wait_ready()
    assert [event["version"] for event in remembers.events("model.switched")] == ["2"]
    assert remembers.stop() == 0
    forgets = crew.start(topics, fleet.settings(start_wait_s=2)).wait_ready()
    assert [event["version"] for event in forgets.events("model.switched")] == ["1"]
    assert "serving the versions of its settings" in forgets.log
    assert "control" in forgets.notes(), "it says that Redis does not answer"
    breakable_redis.start("redis")
    fleet.until(lambda look: worker_id(forgets) in look.members, "it is a member again")
    assert forgets.stop() == 0


@pytest.mark.long
def test_any_worker_may_die_in_a_rollout_and_who_joins_late_catches_up(
    fleet: Fleet, crew: Crew, traffic: Traffic
) -> None:
    workers = start(crew, traffic.topics, fleet, 2)
    terms = edits.Terms("r1", fleet.look.now_ms, timeout_s=60, max_preparing=1)
    sha256 = fleet.sha256("2")
    fleet.run(
        lambda operator: operator.change(
            lambda state, _: edits.activate(state, "digits", "2", sha256=sha256, terms=terms),
            "whose command dies at once",
        )
    )
    workers[0].kill()
    late = crew.start(traffic.topics, fleet.settings())
    fleet.until(
        lambda look: look.state is not None and look.state.models["digits"].active == "2",
        "the others go on when the dead one's heartbeat has expired",
        60,
    )
    late.wait_ready()
    fleet.until(lambda look: not look.lacks, "all have converged")
    traffic.all_partitions_move()
    ending(traffic, fleet, workers[1], late, repeats_max=4096)


@pytest.mark.long  # a table in test_router and test_wanted
def test_a_pin_holds_some_workers_and_a_record_that_asks_for_another_version_is_skipped(
    fleet: Fleet, crew: Crew, traffic: Traffic
) -> None:
    pinned, free = start(crew, traffic.topics, fleet, 2)
    name = worker_id(pinned)
    fleet.converges(
        lambda state, _: edits.pin(state, "digits", "1", workers=Selector(worker=name), sha256=None)
    )
    assert fleet.activate("2").outcome is Outcome.CONVERGED
    traffic.more(100)
    traffic.all_partitions_move()
    served = {
        (r["worker"], r["model"]["version"], r["route"])
        for r in traffic.tail.results[-200:]
        if r["model"]
    }
    assert (name, "1", "pin") in served
    assert (worker_id(free), "2", "active") in served
    asks = (("darkroom-version", b"2"),)
    before = len(traffic.tail.results)
    for partition in range(6):
        traffic.feed.send(b"asks-%d" % partition, digit(0), partition=partition, headers=asks)
    traffic.feed.flush()
    traffic.tail.until(
        lambda: (
            sum(
                r["route"] in ("asked", None) or r["status"] == "skipped"
                for r in traffic.tail.results[before:]
            )
            >= 6
        ),
        "six answers to those that asked",
    )
    skipped = [r for r in traffic.tail.results[before:] if r["status"] == "skipped"]
    assert {(r["worker"], r["reason"]) for r in skipped} == {(name, "model.version-unavailable")}
    assert read_all(traffic.topics, traffic.topics.dead) == [] or traffic.doomed
    fleet.converges(partial(unpin, name))
    assert [pinned.stop(), free.stop()] == [0, 0]


def unpin(name: str, state: DesiredState, _: int) -> DesiredState:
    return edits.unpin(state, "digits", Selector(worker=name))


@pytest.mark.long  # a worker of parts does so in test_membership and test_fleet
def test_pause_resume_and_drain_by_command(fleet: Fleet, crew: Crew, traffic: Traffic) -> None:
    first, second = start(crew, traffic.topics, fleet, 2)
    traffic.until(lambda: len(traffic.tail.workers) == 2, "both serve")

    fleet.converges(lambda state, _: edits.drain(state, Selector(worker=worker_id(first))))
    assert fleet.look.members[worker_id(first)].state == "drained", "that is what was waited for"
    traffic.all_partitions_move()
    assert first.ask("/livez")[0] == 200
    assert traffic.tail.repeats == 0, "what was in flight was finished before"

    fleet.converges(lambda state, _: edits.pause(state, EVERYBODY))
    fleet.until(lambda look: look.members[worker_id(second)].state == "paused", "it is paused")
    traffic.tail.look(1.0)
    count = len(traffic.tail.ids)
    traffic.tail.look(1.0)
    assert len(traffic.tail.ids) == count, "nobody serves"

    fleet.converges(lambda state, _: edits.resume(state, EVERYBODY))
    traffic.all_partitions_move()
    first.wait_ready()
    traffic.more(200)
    ending(traffic, fleet, first, second)


@pytest.mark.long  # engines of scripts are replaced so in test_loading
def test_reload_replaces_every_engine_one_worker_after_the_other(
    fleet: Fleet, crew: Crew, traffic: Traffic
) -> None:
    workers = start(crew, traffic.topics, fleet, 2)
    before = {engine.pid for worker in workers for engine in worker.engines()}
    fleet.converges(
        lambda state, now_ms: edits.reload(state, "digits", terms=edits.Terms("again", now_ms))
    )
    traffic.more(100)
    for worker in workers:
        worker.until(lambda: len(worker.engines()) == 1, "the old engine has ended")  # noqa: B023 - is called in this round
    after = {engine.pid for worker in workers for engine in worker.engines()}
    assert not before & after
    ending(traffic, fleet, *workers)
