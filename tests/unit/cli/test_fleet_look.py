"""`darkroom fleet status`, `history` and `show` on a Redis in memory."""

import json
import re
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from tests.channels import FakeRedis
from tests.unit.cli.fleets import KNOWS_NOTHING, Fleet, serving
from tests.unit.control.states import state
from worker.cli.fleet_rows import drawn, status_lines
from worker.control.answers import Answer, Code
from worker.control.messages import encode_state
from worker.control.progress import Look


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


def after_each_look(monkeypatch: pytest.MonkeyPatch, *happens: Callable[[], None]) -> None:
    """Let one of these happen after each look, in the place of the pause."""
    still = iter(happens)

    async def pause(_: float) -> None:
        next(still, nothing)()

    monkeypatch.setattr("worker.cli.fleet_look.asyncio.sleep", pause)


def nothing() -> None:
    """Let a look be followed by the next."""


def interrupt() -> None:
    raise KeyboardInterrupt


def test_watching_goes_on_with_a_document_for_each_look(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    redis.store(state())
    after_each_look(monkeypatch, nothing, interrupt)

    result = fleet("status", "--watch", "--json")

    assert result.exit_code == 130
    assert [json.loads(line)["generation"] for line in result.stdout.splitlines()] == [7, 7]


def test_watching_without_a_terminal_tells_what_changes(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    redis.store(state())
    after_each_look(monkeypatch, nothing, lambda: redis.store(state(generation=8)), interrupt)

    result = fleet("status", "--watch")

    assert result.exit_code == 130
    titles = [line for line in result.stdout.splitlines() if line.startswith("fleet default")]
    assert [title.split(",")[0] for title in titles] == [
        "fleet default: generation 7",
        "fleet default: generation 8",
    ]
