"""The manifest's parser against its schema, and what the schema cannot say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from worker.errors import ModelError
from worker.models.manifest import (
    Cast,
    CenterCrop,
    ChannelSwap,
    ClassificationHead,
    Color,
    Golden,
    Normalize,
    Resize,
    parse_manifest,
)

SCHEMAS = Path(__file__).parents[3] / "schemas"
EXAMPLES = SCHEMAS / "examples" / "manifest"
VALID = sorted((EXAMPLES / "valid").glob("*.yaml"))
INVALID = sorted((EXAMPLES / "invalid").glob("*.yaml"))
SCHEMA = json.loads((SCHEMAS / "manifest.v1.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
LEAST = (EXAMPLES / "valid" / "least.yaml").read_text()
DIGEST = "0123456789abcdef" * 4


def refused(text: str) -> str:
    with pytest.raises(ModelError) as caught:
        parse_manifest(text, file="m.yaml")
    return str(caught.value)


def test_the_schema_is_a_valid_schema_with_a_description_of_every_member() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert all(
        "description" in member for member in SCHEMA["properties"].values() if len(member) > 1
    )


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_example_is_accepted_by_the_schema_and_the_parser(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text()))
    assert parse_manifest(path.read_text(), file=path.name).golden


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_example_is_refused_by_the_schema_and_the_parser_names_the_field(
    path: Path,
) -> None:
    text = path.read_text()
    field = text.splitlines()[0].removeprefix("# field: ")
    assert not VALIDATOR.is_valid(yaml.safe_load(text))
    assert f"{field}: " in refused(text)
    assert "m.yaml" in refused(text)


def test_the_documented_manifest_becomes_exactly_these_values() -> None:
    text = (EXAMPLES / "valid" / "complete.yaml").read_text()
    manifest = parse_manifest(text, file="m.yaml")
    assert manifest.files == dict.fromkeys(["model.onnx", "labels.txt", "golden/fish.png"], DIGEST)
    assert manifest.batch_max_size == 32
    assert manifest.inputs["data_0"].preprocess == (
        CenterCrop(square=True),
        Resize(size=(224, 224), interpolation="linear", antialias=True),
        Color(to="bgr"),
        Normalize(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        ChannelSwap(),
        Cast(to="float32"),
    )
    assert manifest.heads == {
        "label": ClassificationHead(
            output="softmaxout_1",
            activation="none",
            labels="labels.txt",
            top_k=5,
            threshold=0.0,
        )
    }
    assert manifest.golden == (
        Golden(
            image="golden/fish.png",
            head="label",
            expect_label="tench, Tinca tinca",
            expect_score=0.7377,
            tolerance=0.01,
        ),
    )


def test_what_is_left_out_has_the_defaults_that_the_schema_states() -> None:
    manifest = parse_manifest(LEAST, file="m.yaml")
    (resize, *_) = manifest.inputs["data_0"].preprocess
    definitions = SCHEMA["$defs"]
    assert isinstance(resize, Resize)
    assert resize.interpolation == definitions["resize"]["properties"]["interpolation"]["default"]
    assert resize.antialias == definitions["resize"]["properties"]["antialias"]["default"]
    head = definitions["classification"]["properties"]
    assert manifest.heads["label"].top_k == head["top_k"]["default"]
    assert manifest.heads["label"].threshold == head["threshold"]["default"]
    assert (
        manifest.golden[0].tolerance == definitions["golden"]["properties"]["tolerance"]["default"]
    )
    assert manifest.batch_max_size is None


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("resize: {size: {short_side: 256}}", Resize(short_side=256)),
        ("resize: {size: {long_side: 640}}", Resize(long_side=640)),
        ("center_crop: {output_size: 224}", CenterCrop(output_size=(224, 224))),
        ("center_crop: {output_size: [2, 3]}", CenterCrop(output_size=(2, 3))),
        ("normalize: {}", Normalize(scale=1.0, mean=(0.0,), std=(1.0,))),
        (
            "normalize: {scale: -2, mean: [1], std: [1, 2, 3]}",
            Normalize(scale=-2.0, mean=(1.0,), std=(1.0, 2.0, 3.0)),
        ),
    ],
)
def test_other_ways_to_write_a_step(step: str, expected: object) -> None:
    manifest = parse_manifest(LEAST.replace("resize: {size: [224, 224]}", step), file="m.yaml")
    assert manifest.inputs["data_0"].preprocess[0] == expected


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "labels: labels.txt",
            "labels: lables.txt",
            "heads.label.labels: 'lables.txt' is not under files",
        ),
        ("image: golden", "image: gold", "golden[0].image: 'gold/fish.png' is not under files"),
        ("head: label", "head: labels", "golden[0].head: 'labels' is not under heads"),
        ("score: 0.73", "score: .inf", "golden[0].expect.score: must be finite, is inf"),
        ("score: 0.73", "score: .nan", "golden[0].expect.score: must be finite, is nan"),
        ("score: 0.73", "score: 0x" + "f" * 9999, "golden[0].expect.score: must be finite"),
        ("score: 0.73", "score: 7e-1", "is the text '7e-1' to YAML: write 7.0e-01"),
        (
            "activation: softmax",
            "activaton: softmax",
            "activaton: unknown key; did you mean activation?",
        ),
        ("activation: softmax", "zzz: softmax", "unknown key; known are type, output"),
        ("label: tench", "label: no", "expect.label: must be a text, is False: put it in quotes"),
    ],
)
def test_a_problem_is_told_with_its_field_and_what_to_do(old: str, new: str, said: str) -> None:
    assert old in LEAST
    assert said in refused(LEAST.replace(old, new))


def test_all_problems_are_told_at_once_one_a_line() -> None:
    text = LEAST.replace("[224, 224]", "[0, 224]").replace("softmax", "relu").replace("0.73", "x")
    lines = refused(text).splitlines()
    assert lines[0] == "m.yaml: 3 problems"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        "inputs.data_0.preprocess[0].resize.size[0]",
        "heads.label.activation",
        "golden[0].expect.score",
    ]


def test_the_only_problem_is_there_for_programs_too() -> None:
    with pytest.raises(ModelError) as caught:
        parse_manifest(LEAST.replace("softmax", "relu"), file="m.yaml")
    assert (caught.value.file, caught.value.field) == ("m.yaml", "heads.label.activation")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema: [", "line 1, column 10"),
        ("schema: a\nschema: b", "line 2, column 1: the key 'schema' is given twice"),
        ("a: {b: 1, b: 2}", "line 1, column 11: the key 'b' is given twice"),
        ("a: &x 1\nb: *x", "line 2, column 4: aliases are not read here"),
        ("a: !!python/object/apply:os.getcwd []", "line 1, column 4"),
        ("a: 1\n---\na: 2", "line 2, column 1"),
        ("a: 2024-13-45", "a value cannot be read"),
        ("a: \x07", "special characters"),
        ("[" * 9999, "nested too deeply"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_place(text: str, said: str) -> None:
    message = refused(text)
    assert message.startswith("m.yaml: not YAML")
    assert said in message


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid manifest in which one place holds something else."""
    document = yaml.safe_load(draw(st.sampled_from(VALID)).read_text())
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
            place[key] = draw(DOCUMENTS)
            return document
        place = place[key]


@given(mutated())
def test_schema_and_parser_agree_when_anything_stands_anywhere(document: Any) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    fits = VALIDATOR.is_valid(yaml.safe_load(text))
    try:
        parse_manifest(text, file="m.yaml")
    except ModelError as error:
        beyond_the_schema = re.search(r"is not under (files|heads)|must be finite", str(error))
        assume(not beyond_the_schema)
        message = str(error)
    else:
        message = ""
    assert fits == (not message), message or "the schema refuses what the parser accepts"
