import pytest
from hypothesis import given

from tests.unit.control.states import desired_states, digits, state
from worker.control.content import ModelContent, dump_content, parse_content
from worker.control.messages import DesiredState, LiveLimits, ModelState, frozen
from worker.errors import CommandError
from worker.models.router import Match, Rule

COMPLETE = """
schema: darkroom.fleet.v1
default: digits
models:
  digits:
    active: "1"
    versions: ["0.9"]
    aliases: {stable: "1", candidate: "2"}
    rules:
      - {name: premium, when: {tags: {user_tier: premium}}, version: candidate}
      - {name: lab, when: {topic: lab, headers: {x-lab: "7"}}, version: "3"}
    split: {stable: 90, "4": 10}
    fallback_model: cats
    limits: {max_size: 16, min_size: 2, max_wait_ms: 5, thresholds: {digit: 0.5}}
  cats:
    active: "1"
"""


def declared(model: ModelState) -> ModelContent:
    """Return what a file declares of a model."""
    return ModelContent(
        model.active,
        tuple(sorted(model.versions)),
        model.aliases,
        model.rules,
        model.split,
        model.fallback_model,
        model.limits,
    )


def refused(text: str) -> str:
    with pytest.raises(CommandError) as caught:
        parse_content(text, file="fleet.yaml")
    return str(caught.value)


def test_a_declaration_becomes_exactly_these_values() -> None:
    content = parse_content(COMPLETE, file="fleet.yaml")
    assert content.default == "digits"
    assert content.models["cats"] == declared(ModelState(frozen({"1": None}), "1"))
    assert content.models["digits"] == ModelContent(
        active="1",
        versions=("0.9", "1", "2", "3", "4"),
        aliases={"stable": "1", "candidate": "2"},
        rules=(
            Rule("premium", Match(tags={"user_tier": "premium"}), "candidate"),
            Rule("lab", Match(topic="lab", headers={"x-lab": "7"}), "3"),
        ),
        split={"stable": 90, "4": 10},
        fallback_model="cats",
        limits=LiveLimits(16, 2, 5.0, {"digit": 0.5}),
    )


@given(desired_states())
def test_what_is_shown_of_a_state_declares_the_same_again(state: DesiredState) -> None:
    content = parse_content(dump_content(state), file="fleet.yaml")
    assert content.default == state.default
    assert content.models == {name: declared(model) for name, model in state.models.items()}


def test_what_is_shown_is_for_people() -> None:
    shown = dump_content(digits(aliases=frozen({"stable": "1"}), split=frozen({"2": 10})))
    assert shown.splitlines() == [
        "schema: darkroom.fleet.v1",
        "default: digits",
        "models:",
        "  digits:",
        "    active: '1'",
        "    versions:",
        "    - '1'",
        "    - '2'",
        "    aliases:",
        "      stable: '1'",
        "    split:",
        "      '2': 10",
    ]


def test_nothing_is_shown_that_cannot_be_declared() -> None:
    assert dump_content(state(written_by="op", written_at_ms=5)) == dump_content(state())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("fleet.v1", "fleet.v2", "fleet.yaml: schema: must be darkroom.fleet.v1"),
        ("default: digits", "", "fleet.yaml: default: missing"),
        ('active: "1"\n    versions', "active: 1\n    versions", "models.digits.active: must be a"),
        ("active:", "aktive:", "models.digits.aktive: unknown key; did you mean active?"),
        ('["0.9"]', "[0.9]", "models.digits.versions[0]: must be a text, is 0.9: put it in"),
        ("stable:", '"0.9":', 'models.digits.aliases["0.9"]: is the name of a version'),
        ("candidate: ", '"1": ', 'models.digits.aliases["1"]: is the name of a version'),
        ("name: lab", "name: premium", "rules[1].name: 'premium' is the name of another rule"),
        ("{tags: {user_tier: premium}}", "{}", "rules[0].when: must say at least one of topic"),
        ("x-lab", "X-Lab", "rules[1].when.headers.X-Lab: must be in lower case, is 'X-Lab'"),
        ("stable: 90", "stable: 0", "models.digits.split.stable: must be from 1 to 1000000, is 0"),
        ("fallback_model: cats", "fallback_model: digits", "fallback_model: is the model itself"),
        ("min_size: 2", "min_size: 17", "limits.min_size: is 17, above max_size, which is 16"),
        ("digit: 0.5", "digit: high", "limits.thresholds.digit: must be a number, is 'high'"),
        ("cats:\n", "cats:\n    pins: []\n", "models.cats.pins: unknown key"),
        ("default: digits", "default: [", "fleet.yaml: not YAML: line 5, column 9"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_field(old: str, new: str, said: str) -> None:
    assert old in COMPLETE
    text = refused(COMPLETE.replace(old, new, 1))
    assert text.startswith("fleet.yaml: ")
    assert said in text


def test_everything_that_is_wrong_is_told_at_once() -> None:
    text = refused(
        COMPLETE.replace("stable: 90", "stable: 0").replace("cats:\n", "cats:\n    x: 1\n")
    )
    assert "2 problems\n  models.digits.split.stable: " in text
    assert "\n  models.cats.x: " in text
