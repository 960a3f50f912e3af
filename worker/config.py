"""The settings: one frozen tree, read once; the only reader of the environment.

Defaults < YAML file (`--config FILE`, or DARKROOM_CONFIG) < environment
(DARKROOM_KAFKA__GROUP_ID=...; JSON for lists and maps; secrets also as `..._FILE`).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo

from worker.config_sources import Sources
from worker.config_words import expected
from worker.errors import SettingsError

Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, Field(min_length=1)]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any) -> Any:
        """Refuse `max_size: yes`, which YAML reads as true and an integer would take for 1."""
        if isinstance(value, bool):
            raise ValueError("true and false are no values here")  # noqa: TRY004 - pydantic's way
        return value


class KafkaSettings(Section):
    bootstrap_servers: Name = "localhost:9092"
    group_id: Name = "darkroom"
    input_topics: Annotated[tuple[Topic, ...], Field(min_length=1)] = ("images",)
    output_topic: Topic = "predictions"
    dead_letter_topic: Topic = "images.dead"
    delivery: Literal["at_least_once"] = "at_least_once"
    commit_interval_ms: Annotated[int, Field(ge=10, le=60_000)] = 200
    session_timeout_ms: Annotated[int, Field(ge=1_000, le=600_000)] = 30_000
    forward_headers: tuple[str, ...] = ("traceparent", "tracestate", "baggage")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_oauth: str | None = None
    """`module:factory` of an aiokafka AbstractTokenProvider."""
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_password: SecretStr | None = None
    client_rack: str | None = None


class ModelsSettings(Section):
    repository: str | None = None
    """A folder, or a URL that fsspec reads; None is the demo's own models."""
    cache_bytes: Annotated[int, Field(ge=1)] = 10_737_418_240
    """Model files kept under `data_dir`, at most."""
    default: str = "digits"
    active: dict[str, str] = {"digits": "1"}
    """Used until the control channel says otherwise."""
    max_loaded: Annotated[int, Field(ge=1, le=64)] = 3
    swap: Literal["beside", "stop-first"] = "beside"
    """Where a new version has no room beside the old one: refuse it, or stop the old one first."""
    rollback_hold_s: Annotated[float, Field(ge=0)] = 600.0
    """How long a version that was replaced stays loaded, where there is room."""


class BatchSettings(Section):
    max_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    min_size: Annotated[int, Field(ge=1, le=4096)] = 1
    max_wait_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    max_bytes: Annotated[int, Field(ge=1)] = 67_108_864


class EngineSettings(Section):
    policy: Literal["prefer-gpu", "require-gpu", "cpu"] = "prefer-gpu"
    lanes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    watchdog_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    staging: Literal["auto", "always", "never"] = "auto"
    """Rows as pixels, a folded graph, bound runs; auto: where the device has its own memory."""
    session: dict[str, str] = {}
    """ONNX Runtime session options under ONNX Runtime's own names."""


class LimitsSettings(Section):
    image_max_bytes: Annotated[int, Field(ge=1)] = 33_554_432
    image_max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    decode_bytes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    in_flight_records: Annotated[int, Field(ge=1)] = 4096
    in_flight_bytes: Annotated[int, Field(ge=1)] = 268_435_456
    in_flight_s: Annotated[float, Field(gt=0)] = 1.0


class ShutdownSettings(Section):
    drain_deadline_s: Annotated[float, Field(gt=0, le=280)] = 25.0
    """Below aiokafka's `max_poll_interval_ms`; the group's rebalance timeout follows it."""


class ResultsSettings(Section):
    failures: Literal["publish", "omit"] = "publish"


class BreakerSettings(Section):
    max_failures: Annotated[int, Field(ge=1)] = 3
    """Failures of a version in a row (its engine ended, or did not load) that open its breaker."""
    reset_timeout_s: Annotated[float, Field(gt=0)] = 60.0


class ControlSettings(Section):
    url: str | None = None
    """`redis://HOST:PORT/DB` or `rediss://...`; None: no control channel."""
    fleet: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "default"
    labels: dict[Name, Annotated[str, Field(max_length=255)]] = {}
    """Of this worker, for commands that select by label."""
    username: str | None = None
    password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    start_wait_s: Annotated[float, Field(ge=0)] = 60.0
    """How long a worker that knows no desired state waits for one before it serves `models`."""
    poll_s: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    """How often the desired state is read without a nudge; each time a fifth more or less."""


class HttpSettings(Section):
    host: str = "127.0.0.1"
    port: Port = 9400
    """0: any free port. A taken port: a warning, and the next free one."""


class Settings(Section):
    kafka: KafkaSettings = KafkaSettings()
    models: ModelsSettings = ModelsSettings()
    batch: BatchSettings = BatchSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitsSettings = LimitsSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    results: ResultsSettings = ResultsSettings()
    breaker: BreakerSettings = BreakerSettings()
    control: ControlSettings = ControlSettings()
    http: HttpSettings = HttpSettings()
    data_dir: Path = Path(".darkroom")


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
    settings, bad = _validated(read)
    origins = {path: read.origins.get(path, "default") for path in LEAVES}
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
    """Return the environment, for processes that we start."""
    return dict(os.environ)


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
