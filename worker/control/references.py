"""Whether all that a desired state names is in it, and can be together: beyond what a schema says.

What could not be read (and is reported already) is not held against anything.
"""

from collections.abc import Collection, Mapping

from worker.control.messages import DesiredState, LiveLimits, ModelState
from worker.models.document import Reader, below
from worker.models.router import Rule


def check_references(reader: Reader, state: DesiredState) -> None:
    models = state.models
    _check_name(reader, state.default, "default", models)
    for name, model in models.items():
        field = below("models", name)
        _check_versions(reader, model, field)
        _check_fallback(reader, name, models, f"{field}.fallback_model")
        check_rules(reader, model.rules, f"{field}.rules")
        check_limits(reader, model.limits, f"{field}.limits")
    rollout = state.rollout
    if rollout is not None:
        _check_name(reader, rollout.model, "rollout.model", models)
        if rollout.model in models:
            versions = models[rollout.model].versions
            _check_name(reader, rollout.version, "rollout.version", versions)


def check_rules(reader: Reader, rules: tuple[Rule, ...], field: str) -> None:
    """Report a name that an earlier rule has: results tell rules by their names."""
    seen = set[str]()
    for index, rule in enumerate(rules):
        if rule.name and rule.name in seen:
            reader.wrong(f"{field}[{index}].name", f"{rule.name!r} is the name of another rule")
        seen.add(rule.name)


def check_limits(reader: Reader, limits: LiveLimits, field: str) -> None:
    """Report a least size above the greatest."""
    least, most = limits.min_size, limits.max_size
    if least is not None and most is not None and least > most:
        reader.wrong(f"{field}.min_size", f"is {least}, above max_size, which is {most}")


def _check_versions(reader: Reader, model: ModelState, field: str) -> None:
    versions = model.versions
    _check_name(reader, model.active, f"{field}.active", versions)
    _check_name(reader, model.previous or "", f"{field}.previous", versions)
    for alias, version in model.aliases.items():
        at = below(f"{field}.aliases", alias)
        if alias in versions:
            reader.wrong(at, "is the name of a version")
        _check_name(reader, version, at, versions)
    for index, pin in enumerate(model.pins):
        _check_name(reader, pin.version, f"{field}.pins[{index}].version", versions)
    meant = {**versions, **model.aliases} if versions else {}
    for index, rule in enumerate(model.rules):
        _check_name(reader, rule.version, f"{field}.rules[{index}].version", meant)
    for version in model.split:
        _check_name(reader, version, below(f"{field}.split", version), meant)


def _check_fallback(
    reader: Reader, name: str, models: Mapping[str, ModelState], field: str
) -> None:
    following = models[name].fallback_model
    _check_name(reader, following or "", field, models)
    seen = set[str]()
    while following is not None and following in models and following not in seen:
        if following == name:
            reader.wrong(field, "leads back to this model, which cannot take its own place")
        seen.add(following)
        following = models[following].fallback_model


def _check_name(reader: Reader, name: str, field: str, known: Collection[str]) -> None:
    if name and known and name not in known:
        shown = ", ".join(sorted(known)[:10])
        reader.wrong(field, f"{name!r} is not there; known are {shown}")
