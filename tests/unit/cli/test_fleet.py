"""`darkroom fleet` on a Redis in memory: what is written, told, and the exit codes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.channels import FakeRedis
from tests.unit.cli.conftest import Darkroom
from tests.unit.cli.fleets import Fleet, serving
from tests.unit.control.states import DIGEST, digits, state
from worker.control.messages import (
    Action,
    DesiredState,
    Hold,
    PinOrder,
    Selector,
)
from worker.models.repository import Repository, demo_repository
from worker.types import ModelRef

VERBS: dict[str, list[str]] = {
    "abort": [],
    "activate": ["digits", "2"],
    "drain": [],
    "forget": ["digits", "2"],
    "pause": [],
    "pin": ["digits", "2"],
    "reload": ["digits"],
    "resume": [],
    "rollback": ["digits"],
    "unpin": ["digits"],
}
LOOKS: dict[str, list[str]] = {"status": [], "history": [], "explain": [], "show": []}


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
        (
            digits(previous="2"),
            ["forget", "digits", "2"],
            digits(versions={"1": DIGEST}),
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
    redis.store(before)

    result = fleet(*arguments)

    assert result.exit_code == 0, result.output
    written = redis.state
    assert written._replace(written_by="", written_at_ms=0) == after._replace(generation=8)
    (entry,) = redis.entries
    assert entry.command == " ".join(arguments)
    assert re.fullmatch(r"\S+@\S+", entry.by)
    assert entry.by == written.written_by


def test_two_phases_and_a_reload_are_rollouts_on_the_terms_given(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    terms = ("--max-preparing", "3", "--timeout", "90")

    assert fleet("activate", "digits", "2", "--two-phase", "--quorum", "5", *terms).exit_code == 0
    rollout = redis.state.rollout
    assert rollout is not None
    assert (rollout.mode, rollout.model, rollout.version) == ("two_phase", "digits", "2")
    assert (rollout.max_preparing, rollout.quorum, rollout.timeout_s) == (3, 5, 90.0)
    assert abs(rollout.started_at_ms - redis.now_ms) < 60_000
    assert fleet("abort").exit_code == 0
    assert fleet("reload", "digits", *terms).exit_code == 0
    again = redis.state.rollout
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
    model = redis.state.models["digits"]
    repository = Repository(demo_repository(), cache=None, seen_file=None)
    digests = {v: repository.manifest_sha256(ModelRef("digits", v)) for v in ("1", "2")}
    assert (model.active, model.previous, model.versions) == ("2", "1", digests)
    assert (redis.state.fleet, redis.state.generation) == ("default", 1)


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
    redis.store(state())

    result = fleet(*arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr
    assert redis.entries == []


def test_a_version_that_is_nowhere_to_be_read_is_taken_with_its_digest(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())

    assert fleet("activate", "digits", "9", "--sha256", "f" * 64).exit_code == 0
    assert redis.state.models["digits"].versions["9"] == "f" * 64


def test_a_digest_that_can_be_none_is_a_wrong_argument(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())

    result = fleet("activate", "digits", "9", "--sha256", "ffff")

    assert result.exit_code == 2
    assert "expected 64 hexadecimal digits" in result.stderr
    assert redis.entries == []


@pytest.mark.parametrize(
    ("selection", "warned"),
    [
        (["--worker", "w-1"], ""),
        (["--label", "zone=a"], ""),
        ([], ""),
        (["--worker", "w-7"], "no worker that is alive is worker w-7; there are: w-1"),
        (["--label", "zone=q"], "no worker that is alive has label zone=q; there are: w-1"),
    ],
    ids=str,
)
def test_a_selection_that_means_nobody_is_written_and_warned_of(
    selection: list[str], warned: str, fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    redis.say(serving(state(), labels={"zone": "a"}))

    result = fleet("pause", *selection)

    assert result.exit_code == 0
    assert redis.state.holds
    assert warned in result.stderr
    assert bool(result.stderr) == bool(warned)


def test_who_activates_is_warned_of_workers_that_are_pinned_to_another_version(
    fleet: Fleet, redis: FakeRedis
) -> None:
    redis.store(state())
    redis.say(serving(state(), labels={"zone": "a"}))
    pinned = fleet("pin", "digits", "1", "--label", "zone=a")
    warned = fleet("activate", "digits", "2"), fleet("activate", "digits", "2")
    back = fleet("rollback")

    told = "warning: digits stays pinned to 1 on label zone=a: see darkroom fleet unpin digits\n"
    assert [result.stderr for result in warned] == [told, told]
    assert warned[1].stdout.startswith("nothing to change")
    assert (pinned.stderr, back.stderr) == ("", "")


def test_a_dry_run_tells_in_words_and_writes_nothing(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())

    result = fleet("activate", "digits", "2", "--dry-run", "--wait")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "generation 8 would say:\n  digits: active 1 -> 2\n"
    assert redis.state == state()


def test_what_is_so_already_is_told_and_is_no_error(fleet: Fleet, redis: FakeRedis) -> None:
    redis.store(state())

    result = fleet("activate", "digits", "1")

    assert result.exit_code == 0
    assert result.stdout == "nothing to change: generation 7 says that already\n"


def test_what_is_shown_can_be_applied(fleet: Fleet, redis: FakeRedis, tmp_path: Path) -> None:
    redis.store(digits(aliases={"stable": "1"}))
    file = tmp_path / "fleet.yaml"

    file.write_text(fleet("show").stdout)
    same = fleet("apply", str(file))
    file.write_text(file.read_text().replace('active: "1"', 'active: "2"').replace("'1'", "'2'"))
    other = fleet("apply", str(file))

    assert same.stdout == "nothing to change: generation 7 says that already\n"
    assert other.exit_code == 0, other.output
    assert redis.state.models["digits"].active == "2"
    assert redis.entries[-1].command == f"apply {file}"


def test_a_file_may_name_versions_that_the_repository_has_and_the_fleet_does_not_know(
    fleet: Fleet, redis: FakeRedis, tmp_path: Path
) -> None:
    only_one = digits(versions={"1": None})
    redis.store(only_one)
    file = tmp_path / "fleet.yaml"
    text = "schema: darkroom.fleet.v1\ndefault: digits\nmodels: {{digits: {{active: '{}'}}}}\n"

    file.write_text(text.format("2"))
    assert fleet("apply", str(file)).exit_code == 0
    assert len(redis.state.models["digits"].versions["2"] or "") == 64
    file.write_text(text.format("9"))
    unknown = fleet("apply", str(file))

    assert unknown.exit_code == 1
    assert "the fleet knows no digits/9 (it knows 1, 2)" in unknown.stderr


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        (None, 2, "does not exist"),
        (b"models: [", 1, "fleet.yaml"),
        (b"default: 7", 1, "schema"),
        (b"\x89PNG", 1, "fleet.yaml: cannot be read as text"),
    ],
    ids=["absent", "no YAML", "fields", "no text"],
)
def test_a_file_that_cannot_be_applied_is_told(
    text: bytes | None, code: int, told: str, fleet: Fleet, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    if text is not None:
        file.write_bytes(text)

    result = fleet("apply", str(file))

    assert result.exit_code == code
    assert told in result.stderr


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
