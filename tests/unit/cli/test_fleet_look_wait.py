"""`darkroom fleet status --wait` on a Redis in memory: for whom it waits, and for whom not."""

import json
from typing import Any

import pytest

from tests.channels import FakeChannel, FakeRedis
from tests.unit.cli.fleets import KNOWS_NOTHING, Fleet, serving
from tests.unit.control.states import state
from worker.control.answers import Answer, Code
from worker.control.messages import Mode, Phase, Rollout, encode_state


@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, 0), ({"answer": Answer.NACK, "code": Code.HEADROOM, "reason": "no room"}, 1)],
)
def test_the_status_that_is_waited_for_has_an_exit_code_and_shows_the_end(
    changes: dict[str, Any], code: int, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    redis.say(serving(state(), **changes))

    result = fleet("status", "--json", "--wait")

    assert result.exit_code == code
    assert json.loads(result.stdout)["converged"] == (code == 0)
    assert fleet("status").exit_code == 0


def test_a_status_that_does_not_come_in_time_is_exit_code_8(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())

    result = fleet("status", "--wait", "0")

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (8, "  no worker is alive")


def test_a_fleet_that_nobody_has_commanded_is_not_waited_for(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.say(serving(state(), **KNOWS_NOTHING))

    result = fleet("status", "--wait", "0")

    assert result.exit_code == 1
    assert "no state yet" in result.stderr
    assert fleet("status", "--wait", "--watch").exit_code == 2


def test_a_redis_that_was_emptied_is_waited_for_until_workers_answer_again(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Returning(FakeChannel):
        async def read(self) -> bytes | None:  # after the members
            found = await super().read()
            redis.store(state())
            redis.say(serving(state()))
            return found

    monkeypatch.setattr("worker.cli.fleet_session.Channel", lambda _: Returning(redis))

    result = fleet("status", "--wait")

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "converged"), result.output


def test_a_redis_that_stays_empty_is_exit_code_8(fleet: Fleet) -> None:
    result = fleet("status", "--wait", "0")

    assert result.exit_code == 8
    assert result.stdout.startswith("no state yet")


def test_a_state_that_was_lost_is_waited_for_until_workers_put_it_back(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.say(serving(state()))

    class Restoring(FakeChannel):
        async def read(self) -> bytes | None:
            found = await super().read()
            redis.store(state())
            return found

    monkeypatch.setattr("worker.cli.fleet_session.Channel", lambda _: Restoring(redis))

    result = fleet("status", "--wait")

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "converged"), result.output


def test_a_state_that_is_put_back_is_waited_for_as_long_as_its_rollout_may_take(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.say(serving(state()))
    rolling = Rollout("r-1", "digits", "1", Mode.ROLLING, Phase.PREPARE, redis.now_ms)
    stored = iter([None, state(rollout=rolling), state()])

    class Restoring(FakeChannel):
        async def read(self) -> bytes | None:
            found = next(stored)
            return None if found is None else encode_state(found)

    monkeypatch.setattr("worker.cli.fleet_session.Channel", lambda _: Restoring(redis))
    monkeypatch.setattr("worker.cli.fleet_change.WAIT_S", 0.0)

    result = fleet("status", "--wait")

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "converged"), result.output


@pytest.mark.parametrize("document", [None, b"?", b'{"generation": 6}'])
def test_a_lost_state_that_nobody_puts_back_in_time_is_exit_code_8(
    document: bytes | None, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.document = document
    redis.say(serving(state()))

    result = fleet("status", "--wait", "0")

    assert result.exit_code == 8
    assert "desired state" in result.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("document", "epoch"),
    [(b"?", ""), (b'{"generation": 7}', "e-1")],
    ids=["nobody knows one", "newer"],
)
def test_a_broken_state_that_no_worker_replaces_is_not_waited_for(
    document: bytes, epoch: str, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.document = document
    redis.say(serving(state(), epoch=epoch))

    result = fleet("status", "--wait", "0")

    assert result.exit_code == 1
    assert "desired state" in result.stderr
    assert "--supersede" in result.stderr


@pytest.mark.parametrize("document", [None, b"?"])
@pytest.mark.parametrize("there", ["nobody", "one that cannot be read"])
def test_who_is_not_there_or_cannot_be_read_may_know_a_state(
    there: str, document: bytes | None, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.document = document
    if there != "nobody":
        redis.say(serving(state(), **KNOWS_NOTHING))
        redis.answers["w-9"] = (redis.now_ms + 30_000, b"?")

    assert fleet("status", "--wait", "0").exit_code == 8


def test_a_worker_that_knows_a_state_may_answer_after_one_that_knows_none(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.say(serving(state(), "w-2", **KNOWS_NOTHING))

    async def pause(_: float) -> None:
        redis.store(state())
        redis.say(serving(state()), serving(state(), "w-2"))

    monkeypatch.setattr("worker.cli.fleet_look.asyncio.sleep", pause)

    result = fleet("status", "--wait")

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "converged"), result.output
