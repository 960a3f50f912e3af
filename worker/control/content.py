"""What an operator may declare of a fleet, as YAML (`schemas/fleet.v1`): read, and written.

Not what commands and rollouts decide: generations, digests, pins, holds. Must not know what the
fleet has beside it: what the file names may be there already.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from worker.control.fields import (
    check_count,
    read_aliases,
    read_form,
    read_limits,
    read_names,
    read_rules,
    read_split,
)
from worker.control.messages import DesiredState, LiveLimits, encode_state, frozen
from worker.control.references import check_limits, check_rules
from worker.errors import CommandError, ModelError
from worker.models.document import Reader, below, dump_yaml, load_yaml
from worker.models.router import Rule

FLEET_SCHEMA: Final = "darkroom.fleet.v1"

_OPTIONAL = ("versions", "aliases", "rules", "split", "fallback_model", "limits")


class ModelContent(NamedTuple):
    """All that may be declared of one model: what the file leaves out, there is none of."""

    active: str
    versions: tuple[str, ...]
    """All that are named, wherever in the file, sorted: they must be known to the fleet."""
    aliases: Mapping[str, str]
    rules: tuple[Rule, ...]
    split: Mapping[str, int]
    fallback_model: str | None
    limits: LiveLimits


class Content(NamedTuple):
    """What a file declares."""

    default: str
    models: Mapping[str, ModelContent]


def parse_content(text: str, *, file: str) -> Content:
    """Read a declaration; `file` is what errors call it.

    A version is known by being named: as active, by an alias, by a rule or a split (where that is
    no alias), or under `versions`. Whether default and fallback models exist is for those to say
    who have the fleet's state. Raises CommandError: no YAML, or every field that is wrong.
    """
    try:
        document = load_yaml(text, file=file)
        reader = Reader()
        content = _content(reader, document)
        _check(reader, content)
        reader.finish(file)
    except ModelError as error:
        raise CommandError(str(error)) from error
    return content


def dump_content(state: DesiredState) -> str:
    """Return the YAML that declares what the state says: `parse_content` reads the same from it."""
    document = orjson.loads(encode_state(state))
    models = {}
    for name, model in document["models"].items():
        versions = sorted(model["versions"])
        declared = {**model, "versions": versions}
        models[name] = {key: declared[key] for key in ("active", *_OPTIONAL) if key in declared}
    return dump_yaml({"schema": FLEET_SCHEMA, "default": state.default, "models": models})


def _content(reader: Reader, document: Any) -> Content:
    members = reader.members(document, "", required=("schema", "default", "models"))
    reader.choice(members["schema"], "schema", (FLEET_SCHEMA,))
    models = read_names(reader, members["models"], "models", empty=False)
    return Content(
        default=read_form(reader, members["default"], "default"),
        models=frozen(
            (name, _model(reader, model, below("models", name))) for name, model in models.items()
        ),
    )


def _model(reader: Reader, value: Any, field: str) -> ModelContent:
    members = reader.members(value, field, required=("active",), optional=_OPTIONAL)
    items = reader.items(members["versions"], f"{field}.versions", empty=True)
    check_count(reader, items, f"{field}.versions")
    listed = tuple(read_form(reader, version, at) for at, version in items)
    model = ModelContent(
        active=read_form(reader, members["active"], f"{field}.active"),
        versions=listed,
        aliases=read_aliases(reader, members["aliases"], f"{field}.aliases"),
        rules=read_rules(reader, members["rules"], f"{field}.rules"),
        split=read_split(reader, members["split"], f"{field}.split"),
        fallback_model=read_form(reader, members["fallback_model"], f"{field}.fallback_model")
        or None,
        limits=read_limits(reader, members["limits"], f"{field}.limits"),
    )
    return model._replace(versions=_named(model))


def _named(model: ModelContent) -> tuple[str, ...]:
    """Return the versions that are meant as such; a rule and a split may mean an alias."""
    routed = {*(rule.version for rule in model.rules), *model.split}
    named = {model.active, *model.versions, *model.aliases.values()}
    return tuple(sorted((named | routed - model.aliases.keys()) - {""}))


def _check(reader: Reader, content: Content) -> None:
    """Report what cannot be together."""
    for name, model in content.models.items():
        field = below("models", name)
        for alias in model.aliases:
            if alias in model.versions:
                reader.wrong(below(f"{field}.aliases", alias), "is the name of a version")
        if model.fallback_model == name:
            reader.wrong(f"{field}.fallback_model", "is the model itself: it cannot take its place")
        check_rules(reader, model.rules, f"{field}.rules")
        check_limits(reader, model.limits, f"{field}.limits")
