"""`darkroom fleet ... --wait` on a Redis in memory: what is told meanwhile, and the exit codes."""

import json
import signal
from collections.abc import Callable

import pytest

from tests.channels import FakeChannel, FakeRedis
from tests.unit.cli.fleets import Fleet, serving
from tests.unit.control.states import state
from worker.cli.fleet_change import deadline_s
from worker.control.answers import Ack, Answer, Code
from worker.control.documents import parse_state
from worker.control.messages import DesiredState, Phase
from worker.control.rollout import aborted


class Answering(FakeChannel):
    """A channel on which a worker answers whatever is written."""

    def __init__(self, redis: FakeRedis, answer: Callable[[DesiredState], Ack]) -> None:
        super().__init__(redis)
        self._fleet, self._answer = redis, answer

    async def write(self, document: bytes, *, expected: int | None, command: str, by: str) -> bool:
        written = await super().write(document, expected=expected, command=command, by=by)
        if written:
            self._fleet.say(self._answer(parse_state(document)))
        return written


def answer(
    monkeypatch: pytest.MonkeyPatch, redis: FakeRedis, how: Callable[[DesiredState], Ack]
) -> None:
    monkeypatch.setattr("worker.cli.fleet_session.Channel", lambda _: Answering(redis, how))


def refusing(by: DesiredState) -> Ack:
    return serving(by, answer=Answer.NACK, code=Code.MODEL_INVALID, reason="golden sample differs")


def test_with_wait_each_worker_is_told_of_and_converged_is_exit_code_0(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.store(state())
    answer(monkeypatch, redis, serving)

    result = fleet("activate", "digits", "2", "--wait")

    assert result.exit_code == 0, result.output
    assert result.stderr == "w-1: serves generation 8\n"
    assert result.stdout.splitlines() == [
        "generation 8 says:",
        "  digits: active 1 -> 2",
        "converged: every worker is as it should be",
    ]


def test_with_wait_a_refusal_is_exit_code_1_and_says_whose(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.store(state())
    answer(monkeypatch, redis, refusing)

    result = fleet("activate", "digits", "2", "--wait")

    assert result.exit_code == 1
    assert "w-1: refuses generation 8" in result.stderr
    assert "refused; who refuses serves on what it had:" in result.stdout
    assert "golden sample differs" in result.stdout


def test_with_wait_an_aborted_rollout_is_exit_code_1(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.store(state())

    def abort(by: DesiredState) -> Ack:
        if by.rollout is not None and by.rollout.phase is Phase.PREPARE:
            redis.store(aborted(by, "refused by w-1: no room"))
        return serving(by)

    answer(monkeypatch, redis, abort)

    result = fleet("activate", "digits", "2", "--two-phase", "--wait")

    assert result.exit_code == 1
    assert "the rollout was given up" in result.stdout
    assert "refused by w-1: no room" in result.stdout


def test_with_wait_workers_that_take_longer_are_exit_code_8(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())
    redis.say(serving(state()))

    result = fleet("activate", "digits", "2", "--wait", "0")

    assert result.exit_code == 8
    assert "not converged in time" in result.stdout
    assert "w-1: has not seen generation 8 yet" in result.stdout


def test_a_redis_that_dies_meanwhile_is_exit_code_7_and_what_was_written_stands(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.store(state())

    def die(by: DesiredState) -> Ack:
        redis.down = True
        return serving(by)

    answer(monkeypatch, redis, die)

    result = fleet("activate", "digits", "2", "--wait", "--json")

    assert (result.exit_code, result.stdout) == (7, "")
    assert "Redis does not answer\ngeneration 8 is written" in result.stderr


def test_who_interrupts_the_waiting_learns_that_the_change_stands(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.store(state())

    def interrupt(by: DesiredState) -> Ack:
        signal.raise_signal(signal.SIGINT)
        return serving(by)._replace(observed=7)

    answer(monkeypatch, redis, interrupt)

    result = fleet("activate", "digits", "2", "--wait")

    assert result.exit_code == 130
    told = result.stderr.splitlines()[-2:]
    assert told[0].startswith("generation 8 is written, workers go on with it")
    assert told[1] == "darkroom: interrupted"


def test_the_json_of_a_change_is_one_document(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.store(state())
    answer(monkeypatch, redis, serving)

    waited = json.loads(fleet("activate", "digits", "2", "--json", "--wait", "5").stdout)
    tried = json.loads(fleet("pause", "--json", "--dry-run").stdout)

    assert {name: waited[name] for name in ("fleet", "generation", "written", "changes")} == {
        "fleet": "default",
        "generation": 8,
        "written": True,
        "changes": ["digits: active 1 -> 2"],
    }
    assert (waited["outcome"], waited["reasons"]) == ("converged", [])
    assert waited["workers"][0]["models"]["digits"]["active"] == "2"
    assert (tried["written"], tried["generation"], tried["outcome"]) == (False, 9, None)


@pytest.mark.parametrize(
    ("wait_s", "timeout_s", "within_s"), [(5.0, 90.0, 5.0), (float("inf"), 90.0, 150.0)]
)
def test_who_gives_no_seconds_waits_as_long_as_the_rollout_may_take(
    wait_s: float, timeout_s: float, within_s: float, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    fleet("activate", "digits", "2", "--two-phase", "--timeout", str(timeout_s))

    assert deadline_s(wait_s, redis.state) == within_s
