"""`darkroom fleet` on a Redis in memory: what is written, told, and the exit codes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.channels import FakeChannel, FakeRedis
from tests.unit.cli.conftest import Darkroom
from tests.unit.cli.fleets import Fleet, say, serving, store, stored
from tests.unit.control.states import digits, state
from worker.cli.fleet_change import deadline_s
from worker.control.answers import Ack, Answer, Code
from worker.control.documents import parse_state
from worker.control.messages import (
    Action,
    DesiredState,
    Hold,
    Phase,
    PinOrder,
    Selector,
    encode_state,
)
from worker.control.progress import Changed
from worker.control.rollout import aborted
from worker.models.repository import Repository, demo_repository
from worker.types import ModelRef

VERBS: dict[str, list[str]] = {
    "abort": [],
    "activate": ["digits", "2"],
    "drain": [],
    "pause": [],
    "pin": ["digits", "2"],
    "reload": ["digits"],
    "resume": [],
    "rollback": ["digits"],
    "unpin": ["digits"],
}
LOOKS: dict[str, list[str]] = {"status": [], "history": [], "explain": [], "show": []}


class Answering(FakeChannel):
    """A channel on which a worker answers whatever is written."""

    def __init__(self, redis: FakeRedis, answer: Callable[[DesiredState], Ack]) -> None:
        super().__init__(redis)
        self._fleet, self._answer = redis, answer

    async def write(self, document: bytes, *, expected: int | None, command: str, by: str) -> bool:
        written = await super().write(document, expected=expected, command=command, by=by)
        if written:
            say(self._fleet, self._answer(parse_state(document)))
        return written


def answer(
    monkeypatch: pytest.MonkeyPatch, redis: FakeRedis, how: Callable[[DesiredState], Ack]
) -> None:
    monkeypatch.setattr("worker.cli.fleet_session.Channel", lambda _: Answering(redis, how))


def refusing(by: DesiredState) -> Ack:
    return serving(by, answer=Answer.NACK, code=Code.MODEL_INVALID, reason="golden sample differs")


@pytest.mark.parametrize("verb", [*VERBS, *LOOKS, "apply"])
def test_every_verb_has_help_with_an_example_of_itself(verb: str, darkroom: Darkroom) -> None:
    result = darkroom("fleet", verb, "--help")

    assert result.exit_code == 0
    assert f"Example: darkroom fleet {verb}" in result.output


@pytest.mark.parametrize(("verb", "arguments"), [*VERBS.items(), *LOOKS.items()])
def test_without_a_control_channel_the_setting_to_set_is_named(
    verb: str, arguments: list[str], darkroom: Darkroom
) -> None:
    result = darkroom("fleet", verb, *arguments)

    assert result.exit_code == 2
    assert "control.url is not set" in result.stderr
    assert "DARKROOM_CONTROL__URL" in result.stderr


@pytest.mark.parametrize(("verb", "arguments"), [*VERBS.items(), *LOOKS.items()])
def test_a_redis_that_does_not_answer_is_exit_code_7(
    verb: str, arguments: list[str], fleet: Fleet, redis: FakeRedis
) -> None:
    redis.down = True

    result = fleet(verb, *arguments)

    assert (result.exit_code, result.stdout) == (7, "")
    assert result.stderr == "darkroom: Redis does not answer\n"


@pytest.mark.parametrize(
    ("before", "arguments", "after"),
    [
        (digits(), ["activate", "digits", "2"], digits(active="2", previous="1", activated=8)),
        (
            digits(),
            ["activate", "digits", "2", "--new-heads"],
            digits(active="2", previous="1", activated=8, new_heads=True),
        ),
        (
            digits(active="2", previous="1", activated=7),
            ["rollback"],
            digits(active="1", previous="2", activated=8, new_heads=True),
        ),
        (digits(), ["pin", "digits", "2"], digits(pins=(PinOrder("2"),))),
        (
            digits(),
            ["pin", "digits", "2", "--label", "zone=a", "--lax"],
            digits(pins=(PinOrder("2", Selector(labels={"zone": "a"}), strict=False),)),
        ),
        (
            digits(pins=(PinOrder("2", Selector("w-1")), PinOrder("2", Selector("w-2")))),
            ["unpin", "digits", "--worker", "w-1"],
            digits(pins=(PinOrder("2", Selector("w-2")),)),
        ),
        (state(), ["pause"], state(holds=(Hold(Action.PAUSE),))),
        (
            state(),
            ["drain", "--worker", "w-1"],
            state(holds=(Hold(Action.DRAIN, Selector("w-1")),)),
        ),
        (state(holds=(Hold(Action.PAUSE),)), ["resume"], state()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_a_verb_is_one_change_of_the_state(
    before: DesiredState,
    arguments: list[str],
    after: DesiredState,
    fleet: Fleet,
    redis: FakeRedis,
) -> None:
    store(redis, before)

    result = fleet(*arguments)

    assert result.exit_code == 0, result.output
    written = stored(redis)
    assert written._replace(written_by="", written_at_ms=0) == after._replace(generation=8)
    (entry,) = redis.entries
    assert entry.command == " ".join(arguments)
    assert re.fullmatch(r"\S+@\S+", entry.by)
    assert entry.by == written.written_by


def test_two_phases_and_a_reload_are_rollouts_on_the_terms_given(
    fleet: Fleet, redis: FakeRedis
) -> None:
    store(redis, state())
    terms = ("--max-preparing", "3", "--timeout", "90")

    assert fleet("activate", "digits", "2", "--two-phase", "--quorum", "5", *terms).exit_code == 0
    rollout = stored(redis).rollout
    assert rollout is not None
    assert (rollout.mode, rollout.model, rollout.version) == ("two_phase", "digits", "2")
    assert (rollout.max_preparing, rollout.quorum, rollout.timeout_s) == (3, 5, 90.0)
    assert abs(rollout.started_at_ms - redis.now_ms) < 60_000
    assert fleet("abort").exit_code == 0
    assert fleet("reload", "digits", *terms).exit_code == 0
    again = stored(redis).rollout
    assert again is not None
    assert (again.mode, again.max_preparing, again.timeout_s) == ("rolling", 3, 90.0)
    assert again.id != rollout.id


def test_terms_of_a_rollout_without_one_are_a_wrong_argument(fleet: Fleet) -> None:
    result = fleet("activate", "digits", "2", "--quorum", "2")

    assert result.exit_code == 2
    assert "goes with --two-phase" in result.stderr


def test_the_first_command_begins_with_the_settings_and_the_repository(
    fleet: Fleet, redis: FakeRedis
) -> None:
    result = fleet("activate", "digits", "2")

    assert result.exit_code == 0, result.output
    model = stored(redis).models["digits"]
    repository = Repository(demo_repository(), cache=None, seen_file=None)
    digests = {v: repository.manifest_sha256(ModelRef("digits", v)) for v in ("1", "2")}
    assert (model.active, model.previous, model.versions) == ("2", "1", digests)
    assert (stored(redis).fleet, stored(redis).generation) == ("default", 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["activate", "digits", "9"], "the fleet knows no digits/9 (it knows 1, 2)"),
        (["activate", "digits", "9"], "--sha256"),
        (["activate", "cats", "1"], "the fleet has no model cats; it has: digits"),
        (["rollback"], "nothing was activated yet"),
        (["abort"], "no rollout is under way"),
        (["pause", "--expect", "6"], "generation 7 is stored, not 6"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_exit_code_1_and_says_why(
    arguments: list[str], told: str, fleet: Fleet, redis: FakeRedis
) -> None:
    store(redis, state())

    result = fleet(*arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr
    assert redis.entries == []


def test_a_version_that_is_nowhere_to_be_read_is_taken_with_its_digest(
    fleet: Fleet, redis: FakeRedis
) -> None:
    store(redis, state())

    assert fleet("activate", "digits", "9", "--sha256", "f" * 64).exit_code == 0
    assert stored(redis).models["digits"].versions["9"] == "f" * 64


def test_a_dry_run_tells_in_words_and_writes_nothing(fleet: Fleet, redis: FakeRedis) -> None:
    store(redis, state())

    result = fleet("activate", "digits", "2", "--dry-run", "--wait")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "generation 8 would say:\n  digits: active 1 -> 2\n"
    assert stored(redis) == state()


def test_what_is_so_already_is_told_and_is_no_error(fleet: Fleet, redis: FakeRedis) -> None:
    store(redis, state())

    result = fleet("activate", "digits", "1")

    assert result.exit_code == 0
    assert result.stdout == "nothing to change: generation 7 says that already\n"


def test_with_wait_each_worker_is_told_of_and_converged_is_exit_code_0(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(redis, state())
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
    store(redis, state())
    answer(monkeypatch, redis, refusing)

    result = fleet("activate", "digits", "2", "--wait")

    assert result.exit_code == 1
    assert "w-1: refuses generation 8" in result.stderr
    assert "refused; who refuses serves on what it had:" in result.stdout
    assert "golden sample differs" in result.stdout


def test_with_wait_an_aborted_rollout_is_exit_code_1(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(redis, state())

    def abort(by: DesiredState) -> Ack:
        if by.rollout is not None and by.rollout.phase is Phase.PREPARE:
            store(redis, aborted(by, "refused by w-1: no room"))
        return serving(by)

    answer(monkeypatch, redis, abort)

    result = fleet("activate", "digits", "2", "--two-phase", "--wait")

    assert result.exit_code == 1
    assert "the rollout was given up" in result.stdout
    assert "refused by w-1: no room" in result.stdout


def test_with_wait_workers_that_take_longer_are_exit_code_8(fleet: Fleet, redis: FakeRedis) -> None:
    store(redis, state())
    say(redis, serving(state()))

    result = fleet("activate", "digits", "2", "--wait", "0")

    assert result.exit_code == 8
    assert "not converged in time" in result.stdout
    assert "w-1: has not seen generation 8 yet" in result.stdout


def test_the_json_of_a_change_is_one_document(
    fleet: Fleet, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(redis, state())
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
    store(redis, state())
    fleet("activate", "digits", "2", "--two-phase", "--timeout", str(timeout_s))
    changed = Changed(state(), stored(redis), written=True)

    assert deadline_s(wait_s, changed) == within_s


def test_the_status_is_what_the_contract_says(fleet: Fleet, redis: FakeRedis) -> None:
    store(redis, state())
    behind = {"answer": Answer.NACK, "code": Code.HEADROOM, "reason": "no room", "digest": None}
    say(redis, serving(state()), serving(state(), "w-2", **behind))

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
    store(redis, state(written_by="me@here"))
    say(redis, serving(state(written_by="me@here")), serving(state(generation=6), "w-2", lag=None))

    title, head, first, second, *lacks = fleet("status").stdout.splitlines()

    assert title.startswith("fleet default: generation 7, written by me@here at 1970-01-01")
    assert " ".join(head.split()) == ("worker state models device generation lag in flight answer")
    assert " ".join(first.split()) == "w-1 serving digits 1 (+ 2) CPU cpu 7 3 2 ack"
    assert " ".join(second.split()) == "w-2 serving digits 1 (+ 2) CPU cpu 6 - 2 ack"
    assert head.index("generation") == first.index("7")
    assert lacks[0] == "not converged:"
    assert lacks[1].startswith("  w-2: has not seen generation 7 yet")


def test_a_fleet_that_is_as_it_should_be_has_converged(fleet: Fleet, redis: FakeRedis) -> None:
    store(redis, state())
    say(redis, serving(state()))

    assert fleet("status").stdout.splitlines()[-1] == "converged"


@pytest.mark.parametrize(
    ("document", "told"), [(None, "no desired state is stored"), (b"?", "not JSON")]
)
def test_the_status_shows_workers_also_where_there_is_no_state(
    document: bytes | None, told: str, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.document = document
    say(redis, serving(state()))

    result = fleet("status")
    asked = json.loads(fleet("status", "--json").stdout)

    assert result.exit_code == 0
    assert told in result.stdout.splitlines()[0]
    assert "w-1" in result.stdout
    assert (asked["generation"], asked["converged"]) == (None, False)


def test_a_worker_whose_answer_cannot_be_read_is_a_worker_too(
    fleet: Fleet, redis: FakeRedis
) -> None:
    store(redis, state())
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
    store(redis, state())
    fleet("pause")
    fleet("resume")
    redis.entries[0] = redis.entries[0]._replace(document=b"?")

    newest, oldest = json.loads(fleet("history", "--json").stdout)

    assert newest["changes"]
    assert "not JSON" in oldest["changes"][0]


def test_what_is_shown_can_be_applied(fleet: Fleet, redis: FakeRedis, tmp_path: Path) -> None:
    store(redis, digits(aliases={"stable": "1"}))
    file = tmp_path / "fleet.yaml"

    file.write_text(fleet("show").stdout)
    same = fleet("apply", str(file))
    file.write_text(file.read_text().replace('active: "1"', 'active: "2"').replace("'1'", "'2'"))
    other = fleet("apply", str(file))

    assert same.stdout == "nothing to change: generation 7 says that already\n"
    assert other.exit_code == 0, other.output
    assert stored(redis).models["digits"].active == "2"
    assert redis.entries[-1].command == f"apply {file}"


def test_a_file_may_name_versions_that_the_repository_has_and_the_fleet_does_not_know(
    fleet: Fleet, redis: FakeRedis, tmp_path: Path
) -> None:
    only_one = digits(versions={"1": None})
    store(redis, only_one)
    file = tmp_path / "fleet.yaml"
    text = "schema: darkroom.fleet.v1\ndefault: digits\nmodels: {{digits: {{active: '{}'}}}}\n"

    file.write_text(text.format("2"))
    assert fleet("apply", str(file)).exit_code == 0
    assert len(stored(redis).models["digits"].versions["2"] or "") == 64
    file.write_text(text.format("9"))
    unknown = fleet("apply", str(file))

    assert unknown.exit_code == 1
    assert "the fleet knows no digits/9 (it knows 1, 2)" in unknown.stderr


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [(None, 2, "does not exist"), ("models: [", 1, "fleet.yaml"), ("default: 7", 1, "schema")],
    ids=["absent", "no YAML", "fields"],
)
def test_a_file_that_cannot_be_applied_is_told(
    text: str | None, code: int, told: str, fleet: Fleet, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    if text is not None:
        file.write_text(text)

    result = fleet("apply", str(file))

    assert result.exit_code == code
    assert told in result.stderr


def test_the_whole_state_is_shown_as_json(fleet: Fleet, redis: FakeRedis) -> None:
    store(redis, state())

    assert json.loads(fleet("show", "--json").stdout) == json.loads(encode_state(state()))


def test_where_there_is_no_state_none_is_shown(fleet: Fleet) -> None:
    result = fleet("show")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "no desired state is stored" in result.stderr


def test_watching_goes_on_with_a_document_for_each_look(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    store(redis, state())
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


def test_the_commands_of_a_fleet_are_loaded_for_those_who_ask_for_them_alone() -> None:
    script = (
        "import sys\nfrom worker.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print('loaded:', *({'redis', 'worker.control.edits'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
