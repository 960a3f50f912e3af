"""The parsers of what is on the control channel, and of what is declared, against the schemas."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.contract.oracle import examples, load_schema, named_fields, problems, validating
from tests.unit.control.states import DIGEST, acks, desired_states
from worker.control import content, documents
from worker.control.answers import Answer, Code, Proof, encode_ack
from worker.control.content import dump_content, parse_content
from worker.control.documents import parse_ack, parse_state
from worker.control.messages import Action, Mode, Phase, digest, encode_state
from worker.errors import CommandError, StateError
from worker.models.document import Reader

BEYOND = {
    "active-an-alias": "models.digits.active",
    "active-no-version": "models.digits.active",
    "alias-named-as-a-version": 'models.digits.aliases["1"]',
    "alias-of-an-alias": "models.digits.aliases.best",
    "alias-of-no-version": "models.digits.aliases.stable",
    "default-no-model": "default",
    "fallback-model-itself": "models.digits.fallback_model",
    "fallback-model-leads-back": "models.cats.fallback_model",
    "fallback-model-no-model": "models.digits.fallback_model",
    "min-size-above-max-size": "models.digits.limits.min_size",
    "pin-to-an-alias": "models.digits.pins[0].version",
    "pin-to-no-version": "models.digits.pins[0].version",
    "previous-no-version": "models.digits.previous",
    "rollout-of-no-model": "rollout.model",
    "rollout-of-no-version": "rollout.version",
    "rollout-to-an-alias": "rollout.version",
    "rule-name-twice": "models.digits.rules[1].name",
    "rule-to-no-version": "models.digits.rules[0].version",
    "split-to-no-version": 'models.digits.split["4"]',
}
"""The examples that are right by the schema and refused all the same, and the field at fault."""


def files(shape: str, verdict: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", examples(shape, verdict), ids=lambda path: path.stem)


def refusal(parse: Any, data: bytes) -> str:
    with pytest.raises(StateError) as caught:
        parse(data)
    assert caught.value.code == Code.STATE_INVALID
    return str(caught.value)


def faults(message: str) -> list[str]:
    """Give the fields that a message names, one a line."""
    return re.findall(r"(?m)^(?:desired state: |answer: |  )(\S+): ", message)


def agree(field: str, path: str) -> bool:
    """Whether a parser's name for a field and a schema's are of one place, or one below another."""
    plain = re.sub(r'\["?([^]"]*)"?\]', r".\1", field).replace("(document)", "")
    return plain == path or plain.startswith(f"{path}.") or path.startswith(f"{plain}.")


def check_refused(shape: str, parse: Any, path: Path) -> None:
    data = path.read_bytes()
    message = refusal(parse, data)
    if path.stem == "truncated":
        assert "not JSON: " in message
        assert "column" in message
        return
    named = named_fields(shape, orjson.loads(data))
    fields = faults(message)
    assert fields
    assert all(any(agree(field, path) for path in named) for field in fields), (fields, named)


# Desired states


@files("desired", "valid")
def test_a_valid_state_is_read_and_written_as_the_same(path: Path) -> None:
    state = parse_state(path.read_bytes())
    written = encode_state(state)
    assert problems("desired", orjson.loads(written)) == []
    assert parse_state(written) == state


def test_the_canonical_example_is_canonical() -> None:
    data = next(path for path in examples("desired", "valid") if path.stem == "canonical")
    assert encode_state(parse_state(data.read_bytes())) == data.read_bytes()


@files("desired", "invalid")
def test_an_invalid_state_is_refused_by_the_same_field(path: Path) -> None:
    check_refused("desired", parse_state, path)


@files("desired", "beyond")
def test_what_a_schema_cannot_say_of_a_state_is_checked_all_the_same(path: Path) -> None:
    assert problems("desired", orjson.loads(path.read_bytes())) == []
    assert BEYOND[path.stem] in faults(refusal(parse_state, path.read_bytes()))


def test_every_example_beyond_the_schema_is_listed() -> None:
    assert [path.stem for path in examples("desired", "beyond")] == sorted(BEYOND)


@given(desired_states())
def test_every_state_that_is_written_is_what_the_schema_says(state: Any) -> None:
    assert problems("desired", orjson.loads(encode_state(state))) == []


def test_the_closed_sets_of_the_schemas_are_those_of_the_code() -> None:
    state, answer = load_schema("desired")["$defs"], load_schema("ack")
    rollout = state["rollout"]["properties"]
    assert state["hold"]["properties"]["action"]["enum"] == list(Action)
    assert rollout["mode"]["enum"] == list(Mode)
    assert rollout["phase"]["enum"] == list(Phase)
    assert answer["properties"]["answer"]["enum"] == list(Answer)
    assert answer["$defs"]["code"]["enum"] == [*Code, None]
    assert answer["$defs"]["proof"]["enum"] == [*Proof, None]
    for code in Code:
        assert f"{code.value}: " in answer["$defs"]["code"]["description"]


# Any document: a valid one, with something else in some of its places

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 8.0, 0.5, 2**53, 1e30, 60_001, "", "1", "2", "stable", "nack"),
    *("digits", "Title", "a b", "a\n", "ü", DIGEST, DIGEST[1:], "x" * 256, "x" * 2001, [], {}),
    *([""], ["1"], {"": ""}, {"a": "b"}, {"a": 1}, {"1": None}, {"worker": "w"}, {"topic": "t"}),
]
NAMES = ["previous", "limits", "workers", "labels", "rules", "max_size", "code", "x", "", "A b"]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def altered(draw: st.DrawFn, documents: st.SearchStrategy[bytes]) -> Any:
    document = orjson.loads(draw(documents))
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(list(places(document)) or [("x",)]))
        node = document
        for key in way:
            node = node[key]
        match draw(st.sampled_from(["put", "put", "add", "drop"])):
            case "put":
                node[last] = draw(st.sampled_from(VALUES))
            case "add" if isinstance(node, dict):
                node[draw(st.sampled_from(NAMES))] = draw(st.sampled_from(VALUES))
            case _:
                del node[last]
    return document


def test_the_bounds_of_numbers_are_those_of_the_schema() -> None:
    for generation in (2**53 - 1, 2**53):
        document = orjson.loads(examples("desired", "valid")[0].read_bytes())
        document["generation"] = generation
        reader = Reader()
        documents._state(reader, document)
        assert bool(reader._problems) == bool(problems("desired", document))


@given(altered(desired_states().map(encode_state)))
def test_parser_and_schema_agree_on_every_state(document: Any) -> None:
    reader = Reader()
    documents._state(reader, document)
    against = problems("desired", document)
    assert bool(reader._problems) == bool(against), (reader._problems, against)
    if against:
        refusal(parse_state, orjson.dumps(document))


@given(st.binary(max_size=60) | st.sampled_from(VALUES).map(lambda value: str(value).encode()))
def test_any_bytes_are_read_or_refused_and_nothing_else(data: bytes) -> None:
    for parse in (parse_state, parse_ack):
        assert "\n" not in refusal(parse, data).splitlines()[0]


# Answers


@files("ack", "valid")
def test_a_valid_answer_is_read_and_written_as_the_same(path: Path) -> None:
    ack = parse_ack(path.read_bytes())
    written = encode_ack(ack)
    assert problems("ack", orjson.loads(written)) == []
    assert parse_ack(written) == ack


@files("ack", "invalid")
def test_an_invalid_answer_is_refused_by_the_same_field(path: Path) -> None:
    check_refused("ack", parse_ack, path)


@files("ack", "later")
def test_an_answer_of_a_later_release_is_read_for_what_is_known_of_it(path: Path) -> None:
    document = orjson.loads(path.read_bytes())
    assert problems("ack", document)
    ack = parse_ack(path.read_bytes())
    assert (ack.worker, ack.state, ack.answer) == (
        document["worker"],
        document["state"],
        document["answer"],
    )
    assert ack.code == document.get("code")
    assert ack.proof is None


@given(acks())
def test_every_answer_that_is_written_is_what_the_schema_says(ack: Any) -> None:
    assert problems("ack", orjson.loads(encode_ack(ack))) == []


def as_readers_take_it(schema: Any) -> Any:
    """Open what a later release may add to: members, and the sets of `$defs`."""
    if isinstance(schema, list):
        return [as_readers_take_it(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {key: as_readers_take_it(member) for key, member in schema.items()}
    if opened.get("additionalProperties") is False:
        del opened["additionalProperties"]
    for growing in opened.get("$defs", {}).values():
        growing.pop("enum", None)
    return opened


@given(altered(acks().map(encode_ack)))
def test_parser_and_schema_agree_on_every_answer_but_for_what_is_unknown(document: Any) -> None:
    against = validating(as_readers_take_it(load_schema("ack")))
    reader = Reader()
    documents._ack(reader, document)
    found = [error.message for error in against.iter_errors(document)]
    assert bool(reader._problems) == bool(found), (reader._problems, found)


# Nudges and audit entries


@files("audit", "valid")
def test_an_audit_entry_holds_a_state_and_says_which(path: Path) -> None:
    entry = orjson.loads(path.read_bytes())
    state = parse_state(entry["document"].encode())
    assert (entry["epoch"], entry["generation"]) == (state.epoch, str(state.generation))
    assert len(digest(state)) == 64


# Declarations


def declare(text: str, file: str = "fleet.yaml") -> str | None:
    try:
        parse_content(text, file=file)
    except CommandError as error:
        return str(error)
    return None


def test_the_schema_of_declarations_is_a_schema() -> None:
    schema = load_schema("fleet")
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == "urn:darkroom:fleet:v1"


@files("fleet", "valid")
def test_a_valid_declaration_is_taken(path: Path) -> None:
    assert problems("fleet", yaml.safe_load(path.read_text())) == []
    assert declare(path.read_text()) is None


@files("fleet", "invalid")
def test_an_invalid_declaration_is_refused_by_file_and_field(path: Path) -> None:
    field = path.read_text().splitlines()[0].removeprefix("# field: ")
    # JSON has no keys but texts: one that is a number is for the parser alone to refuse.
    if path.stem != "split_key_number":
        assert problems("fleet", yaml.safe_load(path.read_text()))
    assert f"fleet.yaml: {field}: " in (declare(path.read_text()) or "")


@files("fleet", "beyond")
def test_what_a_schema_cannot_say_of_a_declaration_is_checked_all_the_same(path: Path) -> None:
    field = path.read_text().splitlines()[0].removeprefix("# field: ")
    assert problems("fleet", yaml.safe_load(path.read_text())) == []
    assert f"fleet.yaml: {field}: " in (declare(path.read_text()) or "")


@given(
    altered(desired_states().map(lambda state: orjson.dumps(yaml.safe_load(dump_content(state)))))
)
def test_parser_and_schema_agree_on_every_declaration(document: Any) -> None:
    reader = Reader()
    content._content(reader, document)
    against = problems("fleet", document)
    assert bool(reader._problems) == bool(against), (reader._problems, against)
