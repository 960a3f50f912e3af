"""The settings: one frozen tree, read once; the only reader of the environment.

Defaults < YAML file (`--config FILE`, or DARKROOM_CONFIG) < environment
(DARKROOM_KAFKA__GROUP_ID=...).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Section):
    bootstrap_servers: str = "localhost:9092"
    group_id: str = "darkroom"
    input_topics: tuple[str, ...] = ("images",)
    output_topic: str = "predictions"
    dead_letter_topic: str = "images.dead"
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
    """A folder; None is the demo's own models."""
    default: str = "digits"
    active: dict[str, str] = {"digits": "1"}
    max_loaded: Annotated[int, Field(ge=1, le=64)] = 3


class BatchSettings(Section):
    max_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    min_size: Annotated[int, Field(ge=1, le=4096)] = 1
    max_wait_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    max_bytes: Annotated[int, Field(ge=1)] = 67_108_864


class EngineSettings(Section):
    policy: Literal["prefer-gpu", "require-gpu", "cpu"] = "prefer-gpu"
    lanes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    watchdog_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
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
    drain_deadline_s: Annotated[float, Field(gt=0)] = 25.0


class ResultsSettings(Section):
    failures: Literal["publish", "omit"] = "publish"


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
    http: HttpSettings = HttpSettings()
    data_dir: Path = Path(".darkroom")


class Loaded(BaseModel):
    """The settings in force, and where each value came from (`default`, a file, a variable)."""

    model_config = ConfigDict(frozen=True)

    settings: Settings
    origins: dict[str, str]
    """Dotted path of every leaf -> origin."""


def load_settings(config: Path | None = None, **_: Any) -> Loaded:
    """Placeholder until the loader lands (being written by the owner of this file)."""
    raise SystemExit
