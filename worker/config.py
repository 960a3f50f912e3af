"""The settings: one frozen tree, read once; the only reader of the environment.

Defaults < YAML file (`--config FILE`, or DARKROOM_CONFIG) < environment
(DARKROOM_KAFKA__GROUP_ID=...; JSON for lists and maps; secrets also as `..._FILE`).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from worker.config_profiles import filled_by
from worker.config_sections import ControlSettings, KafkaSettings, Section, Settings
from worker.config_sources import PREFIX, Sources
from worker.config_words import expected
from worker.engine.providers import option_problems
from worker.errors import SettingsError
from worker.types import POLICIES


class Leaf(NamedTuple):
    """A single setting, ready to be shown."""

    path: str
    value: Any
    """Plain JSON; a secret is stars."""
    origin: str


class Loaded(NamedTuple):
    """The settings in force, and where each value came from."""

    settings: Settings
    origins: Mapping[str, str]
    """Dotted path of every leaf -> `default`, `FILE:LINE` or the variable."""

    def leaves(self) -> Iterator[Leaf]:
        """Yield every setting in the order of the tree, secrets masked."""
        tree = self.settings.model_dump(mode="json")
        for path, origin in self.origins.items():
            value: Any = tree
            for part in path.split("."):
                value = value[part]
            yield Leaf(path, value, origin)


_PROVIDERS = {
    policy.removeprefix("require-"): policy
    for policy in POLICIES
    if policy not in {"prefer-gpu", "require-gpu"}
}
"""What ORT_EXECUTION_PROVIDER may say, in any case, and the policy that it means."""


def load_settings(
    config: Path | None = None, *, environ: Mapping[str, str] | None = None
) -> Loaded:
    """Read the settings from defaults, then `config` (or DARKROOM_CONFIG), then the environment.

    Raises SettingsError: its text names every problem, where it came from and what is expected.
    """
    environ = os.environ if environ is None else environ
    file = config or (Path(environ["DARKROOM_CONFIG"]) if environ.get("DARKROOM_CONFIG") else None)
    read = Sources({path: field.annotation for path, field in LEAVES.items()})
    if file is not None:
        read.read_file(file)
    read.read_environment(environ)
    read.read_alias("ORT_EXECUTION_PROVIDER", "engine.policy", _PROVIDERS, environ)
    settings, bad = _validated(read)
    origins = dict.fromkeys(LEAVES, "default")
    if "batch.profile" in read.values:
        profile = settings.batch.profile
        origins |= {f"batch.{name}": f"profile {profile}" for name in filled_by(profile)}
    origins |= {path: origin for path, origin in read.origins.items() if path in LEAVES}
    for paths, text in _cross_checks(settings):
        if bad.isdisjoint(paths):
            named = ", ".join(f"{path} ({origins[path]})" for path in paths)
            read.problems.append(f"{named}: {text}")
    if read.problems:
        count = len(read.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        raise SettingsError("\n  ".join([f"{title} in the settings:", *read.problems]))
    return Loaded(settings, origins)


def failpoint() -> str | None:
    """Read the failpoints asked for (`protocol.failpoints` has the grammar); None: none."""
    return os.environ.get("DARKROOM_FAILPOINT") or None


def debug() -> bool:
    """Say whether errors of a command shall show their traceback (DARKROOM_DEBUG)."""
    return bool(os.environ.get("DARKROOM_DEBUG"))


def environment() -> dict[str, str]:
    """Return the environment for engines, without settings of ours: those hold passwords."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def cache_dir() -> Path:
    """Return the user's folder for what can be downloaded again (Kafka's jars)."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "darkroom"


def _fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


LEAVES = dict(_fields(Settings))


def _validated(read: Sources) -> tuple[Settings, set[str]]:
    """Return the settings with every unusable value left at its default, and the paths of those."""
    try:
        return Settings.model_validate(_nested(read.values)), set()
    except ValidationError as error:
        parts = [".".join(str(part) for part in item["loc"][:2]) for item in error.errors()]
        bad = {path if path in LEAVES else path.partition(".")[0] for path in parts}
    schema = Settings.model_json_schema()
    for path in sorted(bad):
        value = "a secret" if read.is_secret(path) else json.dumps(read.values[path], default=str)
        given = f"{value} given; expected {expected(path, schema)}"
        read.problems.append(f"{path} ({read.origins[path]}): {given}")
    good = {path: value for path, value in read.values.items() if path not in bad}
    return Settings.model_validate(_nested(good)), bad


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree


Check = tuple[tuple[str, ...], str]
"""The settings that do not go together, and why."""


def _cross_checks(settings: Settings) -> Iterator[Check]:
    yield from _topic_checks(settings.kafka)
    yield from _security_checks(settings.kafka)
    yield from _file_checks(settings)
    yield from _control_checks(settings.control)
    for problem in option_problems(settings.engine.provider_options):
        yield ("engine.provider_options",), problem
    models, batch, limits = settings.models, settings.batch, settings.limits
    if models.default not in models.active:
        names = ", ".join(models.active) or "none"
        yield (
            ("models.default", "models.active"),
            f"the default model {models.default} has no active version (active: {names})",
        )
    if isinstance(batch.max_size, int) and batch.min_size > batch.max_size:
        yield (
            ("batch.min_size", "batch.max_size"),
            f"min_size {batch.min_size} is above max_size {batch.max_size}",
        )
    if limits.in_flight_bytes < limits.image_max_bytes:
        yield (
            ("limits.in_flight_bytes", "limits.image_max_bytes"),
            "one image of image_max_bytes would never fit into in_flight_bytes",
        )


def _topic_checks(kafka: KafkaSettings) -> Iterator[Check]:
    for name in ("output_topic", "dead_letter_topic"):
        if getattr(kafka, name) in kafka.input_topics:
            yield (
                (f"kafka.{name}", "kafka.input_topics"),
                f"{getattr(kafka, name)} is read and written: the worker would eat what it wrote",
            )
    if strange := sorted(kafka.topic_priorities.keys() - set(kafka.input_topics)):
        yield (
            ("kafka.topic_priorities", "kafka.input_topics"),
            f"{', '.join(strange)}: no input topic",
        )
    if kafka.output_topic == kafka.dead_letter_topic:
        yield (
            ("kafka.output_topic", "kafka.dead_letter_topic"),
            f"both are {kafka.output_topic}; results and dead letters need a topic each",
        )


def _security_checks(kafka: KafkaSettings) -> Iterator[Check]:
    sasl = kafka.security_protocol.startswith("SASL")
    tls = kafka.security_protocol.endswith("SSL")
    needed = _sasl_fields(kafka) if sasl else set()
    fields = [name for name in KafkaSettings.model_fields if name.startswith(("sasl_", "ssl_"))]
    for name in fields:
        given = getattr(kafka, name) is not None
        if name in needed and not given:
            by = "sasl_mechanism" if kafka.sasl_mechanism else "security_protocol"
            yield (f"kafka.{name}", f"kafka.{by}"), f"missing; {getattr(kafka, by)} needs it"
        elif given and (name not in needed if name.startswith("sasl_") else not tls):
            used = f"{kafka.security_protocol} {kafka.sasl_mechanism or ''}".strip()
            yield (f"kafka.{name}", "kafka.security_protocol"), f"set, but {used} does not use it"
    if kafka.ssl_keyfile and not kafka.ssl_certfile:
        yield ("kafka.ssl_keyfile", "kafka.ssl_certfile"), "a key file needs its certificate file"


def _sasl_fields(kafka: KafkaSettings) -> set[str]:
    match kafka.sasl_mechanism:
        case None:
            return {"sasl_mechanism"}
        case "OAUTHBEARER":
            return {"sasl_mechanism", "sasl_oauth"}
        case _:
            return {"sasl_mechanism", "sasl_username", "sasl_password"}


def _file_checks(settings: Settings) -> Iterator[Check]:
    for section in ("kafka", "control"):
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            file = getattr(getattr(settings, section), name)
            if file is not None and not file.is_file():
                yield (f"{section}.{name}",), f"{file} is no file"
    repository = settings.models.repository
    if repository is not None and "://" not in repository and not Path(repository).is_dir():
        yield ("models.repository",), f"{repository} is no folder"


def _control_checks(control: ControlSettings) -> Iterator[Check]:
    given = [
        name
        for name in ("username", "password", "ssl_cafile", "ssl_certfile", "ssl_keyfile")
        if getattr(control, name) is not None
    ]
    if control.url is None:
        for name in (*given, *(["labels"] if control.labels else [])):
            yield (f"control.{name}", "control.url"), "set, but there is no control channel"
        return
    if not re.fullmatch(r"rediss?://[^/?#\s@]+(/\d+)?", control.url):
        yield (
            ("control.url",),
            "expected redis://HOST:PORT/DB or rediss://... (user and password are own settings)",
        )
    elif not control.url.startswith("rediss:"):
        for name in (name for name in given if name.startswith("ssl_")):
            yield (f"control.{name}", "control.url"), "set, but only rediss:// uses it"
    if control.ssl_keyfile and not control.ssl_certfile:
        yield ("control.ssl_keyfile", "control.ssl_certfile"), "a key file needs its certificate"
    if control.username is not None and control.password is None:
        yield ("control.username", "control.password"), "a user needs a password"
