import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from worker.config import LEAVES, cache_dir, debug, failpoint, load_settings
from worker.errors import SettingsError

EATEN = "predictions is read and written: the worker would eat what it wrote"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "darkroom.yaml"
        file.write_text(text)
        return file

    return write


def problems(config: Path | None = None, /, **environ: str) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(config, environ=environ)
    return str(raised.value)


def test_without_file_and_variables_every_value_is_its_default() -> None:
    settings, origins = load_settings(environ={})

    assert settings.kafka.group_id == "darkroom"
    assert origins == dict.fromkeys(LEAVES, "default")


def test_the_environment_wins_over_the_file_which_wins_over_the_defaults(write: Write) -> None:
    file = write("kafka:\n  group_id: from-file\n  output_topic: out\n")

    settings, origins = load_settings(file, environ={"DARKROOM_KAFKA__GROUP_ID": "from-env"})

    assert (settings.kafka.group_id, settings.kafka.output_topic) == ("from-env", "out")
    assert origins["kafka.group_id"] == "DARKROOM_KAFKA__GROUP_ID"
    assert origins["kafka.output_topic"] == f"{file}:3"
    assert origins["kafka.input_topics"] == "default"


def test_the_file_may_be_named_by_darkroom_config_and_the_argument_wins(
    write: Write, tmp_path: Path
) -> None:
    file = write("kafka: {group_id: named}")
    environ = {"DARKROOM_CONFIG": str(file)}
    other = tmp_path / "other.yaml"
    other.write_text("kafka: {group_id: other}")

    assert load_settings(environ=environ).settings.kafka.group_id == "named"
    assert load_settings(other, environ=environ).settings.kafka.group_id == "other"


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("DARKROOM_KAFKA__INPUT_TOPICS", '["a", "b"]', ("a", "b")),
        ("DARKROOM_MODELS__ACTIVE", '{"digits": "2"}', {"digits": "2"}),
        ("DARKROOM_BATCH__MAX_SIZE", "16", 16),
        ("DARKROOM_BATCH__MAX_SIZE", "auto", "auto"),
        ("DARKROOM_ENGINE__DEVICES", "all", "all"),
        ("DARKROOM_ENGINE__DEVICES", '["GPU-1", "MIG-2"]', ("GPU-1", "MIG-2")),
        ("DARKROOM_LIMITS__IN_FLIGHT_S", "0.5", 0.5),
        ("DARKROOM_DATA_DIR", "/data", Path("/data")),
        (
            "DARKROOM_ENGINE__PROVIDER_OPTIONS",
            '{"CUDAExecutionProvider": {"use_tf32": "1"}}',
            {"CUDAExecutionProvider": {"use_tf32": "1"}},
        ),
        ("ORT_EXECUTION_PROVIDER", "CPU", "cpu"),
        ("ORT_EXECUTION_PROVIDER", "CUDA", "require-cuda"),
        ("ORT_EXECUTION_PROVIDER", "openvino", "require-openvino"),
        ("DARKROOM_KAFKA__CLIENT_RACK", "null", None),
        ("DARKROOM_KAFKA__CLIENT_RACK", "1", "1"),
        ("DARKROOM_KAFKA__GROUP_ID", "null", "null"),
    ],
)
def test_variables_are_text_numbers_or_json(variable: str, text: str, value: object) -> None:
    settings, origins = load_settings(environ={variable: text})

    [path] = [path for path, origin in origins.items() if origin == variable]
    found: object = settings
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_ort_execution_provider_wins_over_the_file_like_any_variable(write: Write) -> None:
    file = write("engine: {policy: require-gpu}")
    loaded = load_settings(file, environ={"ORT_EXECUTION_PROVIDER": "CPU"})
    assert loaded.settings.engine.policy == "cpu"
    assert loaded.origins["engine.policy"] == "ORT_EXECUTION_PROVIDER"
    assert (
        load_settings(file, environ={"ORT_EXECUTION_PROVIDER": ""})
        .origins["engine.policy"]
        .startswith(str(file))
    )


def test_an_unknown_execution_provider_is_told_those_that_there_are() -> None:
    text = problems(ORT_EXECUTION_PROVIDER="CUDNN")
    assert (
        "engine.policy (ORT_EXECUTION_PROVIDER): 'CUDNN' given; expected one of cpu, tensorrt, cuda"
        in text
    )


def test_the_policy_is_not_said_twice_by_variables() -> None:
    text = problems(ORT_EXECUTION_PROVIDER="CUDA", DARKROOM_ENGINE__POLICY="cpu")
    assert "DARKROOM_ENGINE__POLICY is set too; keep one" in text


def test_variables_that_are_no_settings_are_left_alone() -> None:
    load_settings(
        environ={
            "DARKROOM_CONFIG": "",
            "DARKROOM_DEBUG": "1",
            "DARKROOM_FAILPOINT": "after_run=kill",
            "DARKROOM_TEST_ASSETS": "/assets",
            "KAFKA__GROUP_ID": "x",
        }
    )


def test_all_that_is_wrong_is_told_in_one_message(write: Write) -> None:
    file = write(
        "kafka:\n  group_idd: x\n  input_topics: [predictions]\nbatch:\n  max_size: 0\nhtpp: {}\n"
    )

    text = problems(file, DARKROOM_LIMITS__IN_FLIGHT_S="soon", DARKROOM_MODEL__DEFAULT="digits")

    assert text.splitlines() == [
        "6 problems in the settings:",
        f"  kafka.group_idd ({file}:2): unknown setting; did you mean kafka.group_id?",
        f"  htpp ({file}:6): unknown setting; did you mean http?",
        "  DARKROOM_MODEL__DEFAULT: unknown setting; did you mean DARKROOM_MODELS__DEFAULT?",
        f"  batch.max_size ({file}:5): 0 given; expected an integer >= 1 and <= 4096 or auto",
        '  limits.in_flight_s (DARKROOM_LIMITS__IN_FLIGHT_S): "soon" given; expected a number > 0',
        f"  kafka.output_topic (default), kafka.input_topics ({file}:3): {EATEN}",
    ]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("kafka: {group_id: [", 1, "no valid YAML"),
        ("kafka:\n  group_id: a\n  group_id: b", 3, "kafka.group_id .*stands in the file twice"),
        ("- kafka", 1, "expected a map of settings"),
        ("\nkafka: yes", 2, "kafka .*expected a map of settings"),
        ("group_id: x", 1, "did you mean kafka.group_id?"),
        ("kafka: {delivery: sometimes}", 1, "expected at_least_once"),
        ("kafka: {security_protocol: TLS}", 1, "expected one of PLAINTEXT, SSL, SASL_PLAINTEXT"),
        ("kafka: {input_topics: images}", 1, '"images" given; expected a list of at least one'),
        ("kafka: {input_topics: []}", 1, "expected a list of at least one"),
        ("engine: {devices: []}", 1, "expected one of auto, all or a list of at least one"),
        ("engine: {devices: ['0']}", 1, "expected one of auto, all or a list of at least one"),
        ("kafka: {output_topic: 'a b'}", 1, "expected a string like"),
        ("kafka: {group_id: ''}", 1, "expected a string of length >= 1"),
        ("models: {active: {digits: 1}}", 1, "expected a map of names to strings .quote numbers"),
        ("http: {port: 70000}", 1, "expected an integer >= 0 and <= 65535"),
        ("limits: {in_flight_s: .inf}", 1, "expected a number > 0"),
        ("limits: {image_max_bytes: yes}", 1, "true given; expected an integer >= 1"),
        ("engine: {policy: fast}", 1, "expected one of prefer-gpu, require-gpu, cpu, require-t"),
        (
            "engine: {provider_options: {CPUExecutionProvider: fast}}",
            1,
            "expected a map of names to maps of names to strings .quote numbers",
        ),
        (
            "engine: {provider_options: {CUDAExecutionProvider: {gpu_mem_limt: '1'}}}",
            1,
            "CUDAExecutionProvider.gpu_mem_limt: not an option; did you mean gpu_mem_limit",
        ),
        (
            "engine:\n  provider_options: {CUDAExecutionProvider: {use_tf32: '2'}, Metal: {}}",
            2,
            "(?s)CUDAExecutionProvider.use_tf32: cannot be '2'.*Metal: no execution provider",
        ),
        ("shutdown: {drain_deadline_s: 300}", 1, "expected a number > 0 and <= 280"),
        ("kafka: {ssl_cafile: 7}", 1, "7 given; expected a path or null"),
    ],
)
def test_a_wrong_file_is_told_by_its_line(text: str, line: int, said: str, write: Write) -> None:
    file = write(text)

    message = problems(file)

    assert f"{file}:{line}" in message
    assert re.search(said, message), message


def test_an_empty_file_and_an_empty_section_change_nothing(write: Write) -> None:
    assert load_settings(write(""), environ={}) == load_settings(environ={})
    assert load_settings(write("kafka:\n"), environ={}) == load_settings(environ={})


def test_an_absent_file_does_not_hide_the_other_problems(tmp_path: Path) -> None:
    text = problems(tmp_path / "absent.yaml", DARKROOM_KAFKA__GRUOP_ID="x")

    assert "absent.yaml: the settings file cannot be read" in text
    assert "DARKROOM_KAFKA__GRUOP_ID: unknown setting" in text


def test_a_list_in_the_environment_must_be_json() -> None:
    text = problems(DARKROOM_KAFKA__INPUT_TOPICS="images")

    assert """'images' is no JSON such as ["a", "b"]""" in text


CROSS_CHECKS: list[tuple[dict[str, str], str]] = [
    ({"KAFKA__INPUT_TOPICS": '["a", "images.dead"]'}, "images.dead is read and written"),
    ({"KAFKA__OUTPUT_TOPIC": "images"}, "images is read and written"),
    ({"KAFKA__DEAD_LETTER_TOPIC": "predictions"}, "both are predictions"),
    ({"MODELS__DEFAULT": "cats"}, "cats has no active version .active: digits"),
    ({"MODELS__ACTIVE": "{}"}, "digits has no active version .active: none"),
    ({"BATCH__MIN_SIZE": "8", "BATCH__MAX_SIZE": "4"}, "min_size 8 is above max_size 4"),
    ({"LIMITS__IN_FLIGHT_BYTES": "1000"}, "would never fit into in_flight_bytes"),
    ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, "kafka.sasl_mechanism .*missing"),
    (
        {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__SASL_MECHANISM": "PLAIN"},
        "kafka.sasl_password .default., .*: missing; PLAIN needs it",
    ),
    (
        {"KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA__SASL_MECHANISM": "OAUTHBEARER"},
        "kafka.sasl_oauth .default., .*: missing; OAUTHBEARER needs it",
    ),
    ({"KAFKA__SASL_USERNAME": "alice"}, "kafka.sasl_username .*PLAINTEXT does not use it"),
    ({"KAFKA__SSL_PASSWORD": "x"}, "kafka.ssl_password .*PLAINTEXT does not use it"),
    (
        {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_CAFILE": "absent/ca.pem"},
        "kafka.ssl_cafile .*absent/ca.pem is no file",
    ),
    (
        {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_KEYFILE": "absent/key.pem"},
        "a key file needs its certificate file",
    ),
    ({"MODELS__REPOSITORY": "absent/models"}, "absent/models is no folder"),
]


@pytest.mark.parametrize(("given", "said"), CROSS_CHECKS, ids=[said for _, said in CROSS_CHECKS])
def test_settings_that_do_not_go_together_are_refused(given: dict[str, str], said: str) -> None:
    environ = {f"DARKROOM_{name}": text for name, text in given.items()}

    text = problems(None, **environ)

    assert re.search(said, text), text
    assert any(name in text for name in environ)


def test_what_is_already_known_to_be_wrong_is_not_told_twice() -> None:
    text = problems(DARKROOM_KAFKA__OUTPUT_TOPIC="a b", DARKROOM_KAFKA__DEAD_LETTER_TOPIC="images")

    assert text.count("kafka.output_topic") == 1
    assert "images is read and written" in text


def test_complete_security_settings_are_accepted(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("-")

    settings = load_settings(
        environ={
            "DARKROOM_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "DARKROOM_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
            "DARKROOM_KAFKA__SASL_USERNAME": "alice",
            "DARKROOM_KAFKA__SASL_PASSWORD": "pw",
            "DARKROOM_KAFKA__SSL_CAFILE": str(certificate),
        }
    ).settings

    assert settings.kafka.sasl_password == SecretStr("pw")


SASL = {
    "DARKROOM_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "DARKROOM_KAFKA__SASL_MECHANISM": "PLAIN",
    "DARKROOM_KAFKA__SASL_USERNAME": "alice",
}


def test_a_secret_may_come_from_a_file_and_is_masked_when_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse\n")

    loaded = load_settings(environ={**SASL, "DARKROOM_KAFKA__SASL_PASSWORD_FILE": str(file)})

    password = loaded.settings.kafka.sasl_password
    assert password is not None
    assert password.get_secret_value() == "correct horse"
    assert "horse" not in json.dumps(list(loaded.leaves())) + repr(loaded)
    assert loaded.origins["kafka.sasl_password"].startswith("DARKROOM_KAFKA__SASL_PASSWORD_FILE")


def test_a_secret_is_never_part_of_a_message(write: Write) -> None:
    text = problems(write("kafka: {sasl_password: [horse]}"))

    assert "kafka.sasl_password" in text
    assert "horse" not in text


def test_a_secret_given_twice_or_from_an_absent_file_is_refused(tmp_path: Path) -> None:
    twice = {"DARKROOM_KAFKA__SASL_PASSWORD": "a", "DARKROOM_KAFKA__SASL_PASSWORD_FILE": "b"}
    absent = {"DARKROOM_KAFKA__SASL_PASSWORD_FILE": str(tmp_path / "absent")}

    assert "keep one" in problems(None, **SASL, **twice)
    assert "the secret cannot be read" in problems(None, **SASL, **absent)
    assert "unknown setting" in problems(DARKROOM_KAFKA__GROUP_ID_FILE="x")


def test_settings_are_frozen() -> None:
    settings = load_settings(environ={}).settings

    with pytest.raises(ValidationError, match="frozen"):
        settings.kafka.group_id = "other"


def test_leaves_are_every_setting_in_plain_json() -> None:
    leaves = list(load_settings(environ={}).leaves())

    assert [leaf.path for leaf in leaves] == list(LEAVES)
    assert json.loads(json.dumps(leaves))[-1] == ["data_dir", ".darkroom", "default"]


def test_switches_outside_the_settings_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DARKROOM_FAILPOINT", "DARKROOM_DEBUG", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert (failpoint(), debug()) == (None, False)
    assert cache_dir() == Path.home() / ".cache" / "darkroom"

    monkeypatch.setenv("DARKROOM_FAILPOINT", "after_run=kill")
    monkeypatch.setenv("DARKROOM_DEBUG", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert (failpoint(), debug()) == ("after_run=kill", True)
    assert cache_dir() == Path("/cache/darkroom")


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (
            {"URL": "redis://u:p@example:1"},
            "control.url (DARKROOM_CONTROL__URL): expected redis://",
        ),
        ({"URL": "http://host:1"}, "expected redis://HOST:PORT/DB"),
        ({"LABELS": '{"zone": "a"}'}, "control.labels (DARKROOM_CONTROL__LABELS), control.url"),
        ({"URL": "redis://host:1", "SSL_CAFILE": "/dev/null"}, "only rediss:// uses it"),
        ({"URL": "rediss://host:1", "SSL_CAFILE": "/nowhere"}, "/nowhere is no file"),
        ({"URL": "redis://host:1", "USERNAME": "u"}, "a user needs a password"),
        ({"URL": "redis://host:1", "FLEET": "a b"}, "control.fleet (DARKROOM_CONTROL__FLEET)"),
        ({"URL": "redis://host:1", "POLL_S": "0"}, "control.poll_s (DARKROOM_CONTROL__POLL_S)"),
    ],
)
def test_settings_of_the_control_channel_that_do_not_go_together_are_told(
    control: dict[str, str], said: str
) -> None:
    told = problems(**{f"DARKROOM_CONTROL__{name}": value for name, value in control.items()})
    assert said in told


def test_a_profile_fills_in_what_is_not_given_and_says_so(write: Write) -> None:
    file = write("batch: {profile: throughput, max_wait_ms: 3}")

    settings, origins = load_settings(file, environ={})

    batch = settings.batch
    assert (batch.max_wait_ms, batch.slo_ms, batch.max_bytes) == (3.0, 500.0, 268_435_456)
    assert origins["batch.max_wait_ms"] == f"{file}:1"
    assert origins["batch.slo_ms"] == "profile throughput"
    assert origins["batch.min_size"] == "default"


@pytest.mark.parametrize(
    ("policy", "asked", "done"),
    [
        ("prefer-gpu", None, "cpu"),
        ("prefer-gpu", "leave", "leave"),
        ("require-gpu", None, "exit"),
        ("require-gpu", "cpu", "exit"),
        ("require-gpu", "leave", "leave"),
    ],
)
def test_where_a_gpu_is_required_its_loss_is_never_made_up_for_by_the_cpu(
    policy: str, asked: str | None, done: str
) -> None:
    environ = {"DARKROOM_ENGINE__POLICY": policy}
    if asked is not None:
        environ["DARKROOM_ENGINE__ON_GPU_LOSS"] = asked
    assert load_settings(environ=environ).settings.engine.gpu_loss == done
