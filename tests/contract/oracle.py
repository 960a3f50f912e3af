"""The schemas as an oracle for tests: validators, examples, the fields that a validator names."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from jsonschema import Draft202012Validator, ValidationError, validators
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parents[2] / "schemas"


def examples(shape: str, verdict: str) -> list[Path]:
    """Give the example files of a shape.

    `verdict` is `valid`, `invalid`, `beyond` (refused for what no schema can say) or `later`
    (refused by the schema, not by readers: of a later release).
    """
    found = sorted((SCHEMAS / "examples" / shape / verdict).iterdir())
    assert found, f"no {verdict} examples of {shape}"
    return found


@cache
def load_schema(shape: str) -> dict[str, Any]:
    schema: dict[str, Any] = orjson.loads((SCHEMAS / f"{shape}.v1.schema.json").read_bytes())
    return schema


@cache
def validator(shape: str) -> Any:
    return validating(load_schema(shape))


def validating(schema: dict[str, Any]) -> Any:
    """Give the validator of a schema that may refer to any of ours."""
    names = [path.name.partition(".")[0] for path in SCHEMAS.glob("*.schema.json")]
    resources = [Resource.from_contents(load_schema(name)) for name in names]
    registry: Registry[Any] = Registry().with_resources(
        (str(resource.id()), resource) for resource in resources
    )
    ours = validators.extend(Draft202012Validator, {"pattern": _pattern})
    return ours(schema, registry=registry)


def problems(shape: str, document: object) -> list[str]:
    """Give what the schema has against a document."""
    return [
        f"{error.json_path}: {error.message}" for error in validator(shape).iter_errors(document)
    ]


def named_fields(shape: str, document: object) -> set[str]:
    """Give the dotted names of all fields that the schema has something against."""
    return {
        ".".join(map(str, path))
        for error in validator(shape).iter_errors(document)
        for path in _paths(error)
    }


def _paths(error: ValidationError) -> Iterator[tuple[Any, ...]]:
    at = tuple(error.absolute_path)
    instance = error.instance
    if error.validator == "required":
        yield from ((*at, name) for name in error.validator_value if name not in instance)
    elif error.validator == "additionalProperties" and error.validator_value is False:
        known = error.schema["properties"]
        yield from ((*at, name) for name in instance if name not in known)
    elif error.validator == "not" and isinstance(instance, dict):
        yield from ((*at, name) for name in instance)
    else:
        yield at
    for inner in error.context or ():
        yield from _paths(inner)


def _pattern(_: Any, pattern: str, instance: object, __: Any) -> Iterator[ValidationError]:
    """Match as ECMA-262 does, which JSON Schema means: `$` is the very end, not a last line's."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance[:60]!r} does not match {pattern!r}")
