"""The sections of the settings: names, types, bounds, defaults. How they are read is config's."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from worker.config_profiles import AUTO_MAX_SIZE, filled_by
from worker.types import Policy

Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, Field(min_length=1)]
Device = Annotated[str, Field(pattern=r"^(GPU|MIG)-\S+$")]
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
    topic_priorities: dict[str, Annotated[int, Field(ge=1, le=1000)]] = {}
    """Weights among the records that wait for an engine; a topic that is not named has 1."""
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
    profile: Literal["latency", "balanced", "throughput"] = "balanced"
    max_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    """Auto: the best by what is measured, up to what the profile says."""
    min_size: Annotated[int, Field(ge=1, le=4096)] = 1
    max_wait_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    max_bytes: Annotated[int, Field(ge=1)] = 67_108_864
    slo_ms: Annotated[float, Field(ge=1, le=60_000)] = 250.0
    """What a batch is made to fit into, and what counts as a backlog when more waits."""

    @model_validator(mode="before")
    @classmethod
    def _filled_by_profile(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**filled_by(given.get("profile")), **given}

    @property
    def most_rows(self) -> int:
        return AUTO_MAX_SIZE[self.profile] if self.max_size == "auto" else self.max_size


class EngineSettings(Section):
    policy: Policy = "prefer-gpu"
    devices: Literal["auto", "all"] | Annotated[tuple[Device, ...], Field(min_length=1)] = "auto"
    """`auto`: the best GPU that is usable; a list: exactly these, by UUID."""
    max_temperature_c: Annotated[float, Field(gt=0, le=150)] = 85.0
    max_memory_used_pct: Annotated[float, Field(gt=0, le=100)] = 90.0
    """A GPU at or above one of these when the worker starts is not used."""
    on_gpu_loss: Literal["cpu", "leave", "exit"] = "cpu"
    """What a worker does whose devices were all lost: see `gpu_loss`."""
    instances_per_device: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    """Engines of each version on each GPU, or on the CPU; `auto`: one on a GPU, and on the CPU two
    where there are two lanes for them, and memory."""
    lanes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    watchdog_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    session: dict[str, str] = {}
    """ONNX Runtime session options under ONNX Runtime's own names."""
    provider_options: dict[str, dict[str, str]] = {}
    """Execution provider -> its options; both under ONNX Runtime's own names."""

    @property
    def gpu_loss(self) -> Literal["cpu", "leave", "exit"]:
        """`on_gpu_loss`; where a GPU is required the CPU never serves, and `cpu` means `exit`."""
        required = self.policy.startswith("require-") and self.on_gpu_loss == "cpu"
        return "exit" if required else self.on_gpu_loss


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
