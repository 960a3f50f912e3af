"""`darkroom fleet explain`: a record is understood and routed as a worker does it."""

import json
from typing import Any

import pytest

from tests.channels import FakeRedis
from tests.unit.cli.fleets import Fleet
from tests.unit.control.states import ack, digits
from worker.control.messages import PinOrder, Selector, frozen
from worker.models.router import Match, Rule

PREMIUM = Rule("premium", Match(tags=frozen({"user_tier": "premium"})), "candidate")
LAB = Rule("lab", Match(topic="lab", headers=frozen({"x-lab": "7"})), "2")
ROUTED = digits(aliases=frozen({"candidate": "2"}), rules=(PREMIUM, LAB))
PINNED = digits(pins=(PinOrder("2", Selector(labels=frozen({"zone": "a"}))),))


@pytest.mark.parametrize(
    ("arguments", "route"),
    [
        ([], "digits/1 active"),
        (["--version", "2"], "digits/2 asked"),
        (["--header", "darkroom-version=2"], "digits/2 asked"),
        (["--model", "digits", "--version", "candidate"], "digits/2 asked"),
        (["--tag", "user_tier=premium"], "digits/2 rule:premium"),
        (["--header", "darkroom-tags=user_tier=premium"], "digits/2 rule:premium"),
        (["--header", "X-Lab=7", "--topic", "lab"], "digits/2 rule:lab"),
        (["--header", "x-lab=7"], "digits/1 active"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_a_record_gets_the_version_that_a_worker_would_give_it(
    arguments: list[str], route: str, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(ROUTED)

    told = json.loads(fleet("explain", "--json", *arguments).stdout)

    assert f"{told['model']}/{told['version']} {told['route']}" == route
    assert (told["status"], told["generation"]) == ("ok", 7)


def test_the_steps_are_told_and_then_what_comes_of_them(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(ROUTED)

    lines = fleet("explain", "--tag", "user_tier=gold").stdout.splitlines()

    assert "rule premium: tag user_tier is 'gold', not 'premium'" in lines
    assert lines[-1] == "-> digits/1 (active)"


@pytest.mark.parametrize(
    ("arguments", "route"),
    [
        ([], "digits/1 active"),
        (["--label", "zone=a"], "digits/2 pin"),
        (["--worker", "w-1"], "digits/2 pin"),
        (["--worker", "w-2"], "digits/1 active"),
    ],
    ids=" ".join,
)
def test_it_is_explained_by_what_the_worker_meant_decides(
    arguments: list[str], route: str, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(PINNED)
    redis.say(ack("w-1", labels={"zone": "a"}), ack("w-2", labels={"zone": "b"}))

    told = json.loads(fleet("explain", "--json", *arguments).stdout)

    assert f"{told['model']}/{told['version']} {told['route']}" == route


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "cats"], ("failed", "model.unknown")),
        (["--version", "9"], ("failed", "model.version-unknown")),
        (["--header", "darkroom-versoin=2"], ("failed", "request.schema")),
        (["--version", "1", "--label", "zone=a"], ("skipped", "model.version-unavailable")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_a_record_that_would_not_be_served_is_an_explanation_too(
    arguments: list[str], said: tuple[str, str], fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(PINNED)

    result = fleet("explain", *arguments)
    told: dict[str, Any] = json.loads(fleet("explain", "--json", *arguments).stdout)

    assert result.exit_code == 0
    assert (told["status"], told["reason"]) == said
    assert result.stdout.splitlines()[-1] == f"-> {': '.join(said)}: {told['message']}"


def test_a_key_always_falls_to_the_same_part_of_a_split(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(digits(split=frozen({"1": 50, "2": 50})))

    told = [
        json.loads(fleet("explain", "--json", "--key", key).stdout)["version"]
        for key in ("a", "a", *"bcdefgh")
    ]

    assert told[0] == told[1]
    assert set(told) == {"1", "2"}


def test_without_a_state_it_is_explained_by_the_settings(fleet: Fleet) -> None:
    told = json.loads(fleet("explain", "--json").stdout)

    assert (told["model"], told["version"], told["generation"]) == ("digits", "1", None)


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--worker", "w-9"], 1, "no worker w-9 is alive; there are: w-1"),
        (["--worker", "w-1", "--label", "a=b"], 2, "either --label or --worker"),
        (["--tag", "premium"], 2, "'premium': expected NAME=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_what_cannot_be_explained_is_told(
    arguments: list[str], code: int, why: str, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(PINNED)
    redis.say(ack("w-1"))

    result = fleet("explain", *arguments)

    assert result.exit_code == code
    assert why in result.stderr
