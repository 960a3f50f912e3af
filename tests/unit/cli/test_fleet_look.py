"""`darkroom fleet status`, `history` and `show` on a Redis in memory."""

import json
import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from tests.channels import FakeChannel, FakeRedis
from tests.unit.cli.fleets import Fleet, serving
from tests.unit.control.states import state
from worker.cli.fleet_rows import drawn, status_lines
from worker.control.answers import Answer, Code
from worker.control.messages import Mode, Phase, Rollout, encode_state
from worker.control.progress import Look

KNOWS_NOTHING: dict[str, Any] = {"epoch": "", "observed": None, "generation": None, "digest": None}


def test_the_status_is_what_the_contract_says(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())
    behind = {"answer": Answer.NACK, "code": Code.HEADROOM, "reason": "no room", "digest": None}
    redis.say(serving(state()), serving(state(), "w-2", **behind))

    told = json.loads(fleet("status", "--json").stdout)

    assert {name: told[name] for name in ("fleet", "generation", "converged")} == {
        "fleet": "default",
        "generation": 7,
        "converged": False,
    }
    first, second = told["workers"]
    contract = (
        *("id", "generation", "state", "models", "provider", "device", "lag", "in_flight"),
        "reason",
    )
    assert {name: first[name] for name in contract} == {
        "id": "w-1",
        "generation": 7,
        "state": "serving",
        "models": {"digits": {"active": "1", "loaded": ["1", "2"], "pinned": None}},
        "provider": "CPUExecutionProvider",
        "device": "cpu",
        "lag": 3,
        "in_flight": 2,
        "reason": None,
    }
    assert "no room" in second["reason"]


def test_the_status_for_people_says_who_runs_what_and_why_it_has_not_converged(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state(written_by="me@here"))
    redis.say(serving(state(written_by="me@here")), serving(state(generation=6), "w-2", lag=None))

    title, head, first, second, *lacks = fleet("status").stdout.splitlines()

    assert title.startswith("fleet default: generation 7, written by me@here at 1970-01-01")
    assert " ".join(head.split()) == ("worker state models device generation lag in flight answer")
    assert " ".join(first.split()) == "w-1 serving digits 1 (+ 2) CPU cpu 7 3 2 ack"
    assert " ".join(second.split()) == "w-2 serving digits 1 (+ 2) CPU cpu 6 - 2 ack"
    assert head.index("generation") == first.index("7")
    assert lacks[0] == "not converged:"
    assert lacks[1].startswith("  w-2: has not seen generation 7 yet")


def test_the_status_says_of_which_worker_a_gpu_is_not_as_it_should_be(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    lost = {"GPU-1": "cpu_fallback", "GPU-2": "gpu_ok"}
    redis.say(serving(state(), devices=lost), serving(state(), "w-2", devices={"GPU-3": "gpu_ok"}))

    _, _, first, second, _ = fleet("status").stdout.splitlines()

    assert " ".join(first.split()) == "w-1 serving digits 1 (+ 2) CPU cpu cpu_fallback 7 3 2 ack"
    assert " ".join(second.split()) == "w-2 serving digits 1 (+ 2) CPU cpu 7 3 2 ack"
    told = json.loads(fleet("status", "--json").stdout)
    assert told["workers"][0]["devices"] == lost


def test_a_fleet_that_is_as_it_should_be_has_converged(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())
    redis.say(serving(state()))

    assert fleet("status").stdout.splitlines()[-1] == "converged"


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


def test_a_fleet_without_a_state_yet_is_not_said_to_lack_anything(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.say(serving(state(), answer=Answer.PENDING, reason="no state", **KNOWS_NOTHING))

    lines = fleet("status").stdout.splitlines()
    asked = json.loads(fleet("status", "--json").stdout)

    assert lines[0].startswith("no state yet: ")
    assert lines[-1].startswith("w-1 ")
    assert (asked["converged"], asked["reasons"]) == (False, [lines[0]])


@pytest.mark.parametrize("worker", ["w-1", "darkroom-worker-7d9f8b6c5-x2k4q-1-5b6c7d8e"])
@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_shows_who_serves_what_and_what_it_answers(
    worker: str, width: int
) -> None:
    said = serving(state(), worker, device="GPU-8a56a4bc-e184-a047-2620-be19fdf913d5")
    look = Look(state(), None, 7, "e-1", {worker: said}, {}, 0)
    screen = StringIO()
    Console(file=screen, width=width).print(drawn(look, width))

    _, head, row, last = screen.getvalue().splitlines()[-4:]

    assert (head.split()[0], head.split()[-1], last.strip()) == ("worker", "answer", "converged")
    assert row.startswith(worker[:3])
    assert worker[-6:] in row
    assert "digits 1 (+ 2)" in row
    assert row.rstrip().endswith("ack")


def test_a_wide_terminal_shows_all_columns() -> None:
    look = Look(state(), None, 7, "e-1", {"w-1": serving(state())}, {}, 0)
    assert status_lines(look, width=200) == status_lines(look)


@pytest.mark.parametrize(
    ("document", "told"), [(None, "no desired state is stored"), (b"?", "not JSON")]
)
def test_the_status_shows_workers_also_where_there_is_no_state(
    document: bytes | None, told: str, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.document = document
    redis.say(serving(state()))

    result = fleet("status")
    asked = json.loads(fleet("status", "--json").stdout)

    assert result.exit_code == 0
    assert told in result.stdout.splitlines()[0]
    assert "w-1" in result.stdout
    assert (asked["generation"], asked["converged"]) == (None, False)


def test_a_worker_whose_answer_cannot_be_read_is_a_worker_too(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    redis.answers["w-9"] = (redis.now_ms + 30_000, b"?")

    (worker,) = json.loads(fleet("status", "--json").stdout)["workers"]

    assert (worker["id"], worker["state"]) == ("w-9", "unreadable")
    assert "not JSON" in worker["reason"]
    assert "w-9" in fleet("status").stdout


def test_the_history_says_who_changed_what_when_and_how(fleet: Fleet) -> None:
    fleet("activate", "digits", "2")
    fleet("pause", "--worker", "w-1")
    fleet("resume")

    rows = json.loads(fleet("history", "--json").stdout)
    newest = fleet("history", "-n", "1").stdout.splitlines()

    assert [(row["generation"], row["command"]) for row in rows] == [
        (3, "resume"),
        (2, "pause --worker w-1"),
        (1, "activate digits 2"),
    ]
    assert rows[0]["changes"] == ["no longer paused: worker w-1"]
    assert rows[1]["changes"] == ["paused: worker w-1"]
    assert rows[2]["changes"][0].startswith("digits: new, active 2")
    assert len(newest) == 2
    assert re.fullmatch(r"3  \S+T\S+  \S+@\S+  resume", newest[0])
    assert newest[1] == "    no longer paused: worker w-1"


def test_no_history_is_no_error(fleet: Fleet) -> None:
    result = fleet("history")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "nothing was changed yet\n"


def test_a_change_that_cannot_be_read_does_not_hide_the_others(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    fleet("pause")
    fleet("resume")
    redis.entries[0] = redis.entries[0]._replace(document=b"?")

    newest, oldest = json.loads(fleet("history", "--json").stdout)

    assert newest["changes"]
    assert "not JSON" in oldest["changes"][0]


def test_a_time_that_no_calendar_has_hides_nothing(fleet: Fleet, redis: FakeRedis) -> None:
    by_hand = state(written_at_ms=1_795_353_364_250_000)  # microseconds
    redis.store(by_hand)
    fleet("pause")
    redis.entries[0] = redis.entries[0]._replace(at_ms=by_hand.written_at_ms)
    redis.store(by_hand)

    assert fleet("status").stdout.startswith("fleet default: generation 7, written by")
    assert fleet("history").stdout.splitlines()[0].endswith("pause")


def test_the_whole_state_is_shown_as_json(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())

    assert json.loads(fleet("show", "--json").stdout) == json.loads(encode_state(state()))


def test_where_there_is_no_state_none_is_shown(fleet: Fleet) -> None:
    result = fleet("show")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "no desired state is stored" in result.stderr


def test_watching_goes_on_with_a_document_for_each_look(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    redis.store(state())
    looks = 0

    async def pause(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("worker.cli.fleet_look.asyncio.sleep", pause)

    result = fleet("status", "--watch", "--json")

    assert result.exit_code == 130
    assert [json.loads(line)["generation"] for line in result.stdout.splitlines()] == [7, 7]


def test_watching_without_a_terminal_tells_what_changes(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    redis.store(state())
    looks = 0

    async def pause(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            redis.store(state(generation=8))
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("worker.cli.fleet_look.asyncio.sleep", pause)

    result = fleet("status", "--watch")

    assert result.exit_code == 130
    titles = [line for line in result.stdout.splitlines() if line.startswith("fleet default")]
    assert [title.split(",")[0] for title in titles] == [
        "fleet default: generation 7",
        "fleet default: generation 8",
    ]
