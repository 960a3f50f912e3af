"""The container files without a container engine: they parse, and all that they name exists."""

import asyncio
import base64
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from worker.config import load_settings
from worker.config_sections import Settings
from worker.control.channel import client_options
from worker.local.kafka import properties
from worker.local.plan import plan
from worker.local.spec import StackSpec
from worker.telemetry.health import Health, State
from worker.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BROKER: dict[str, str] = SERVICES["kafka"]["environment"]
DEFAULTS = Settings()

INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE"} | {
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


class Instruction(NamedTuple):
    word: str
    rest: str


def dockerfile(text: str) -> list[Instruction]:
    """Join continued lines, drop comments, split off the instruction's word."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = kept.replace("\\\n", " ").splitlines()
    words = (line.strip().partition(" ") for line in lines if line.strip())
    return [Instruction(word, rest.strip()) for word, _, rest in words]


DOCKERFILE = dockerfile((ROOT / "Dockerfile").read_text("utf-8"))


def arguments(word: str) -> list[str]:
    return [instruction.rest for instruction in DOCKERFILE if instruction.word == word]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in arguments("ENV") for pair in rest.split())


def health_command() -> list[str]:
    (check,) = arguments("HEALTHCHECK")
    command: list[str] = json.loads(check.partition("CMD ")[2])
    return command


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, f"{text} is not so many seconds"
    return int(found[1])


def listeners(text: str) -> dict[str, str]:
    """Read `NAME://host:port,...` as NAME -> host:port."""
    return dict(each.split("://", 1) for each in text.split(","))


def topic_calls(tmp_path: Path) -> list[list[str]]:
    """Run the service that creates topics; in Kafka's place a tool that prints its arguments."""
    tool = tmp_path / "kafka-topics.sh"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    (script,) = SERVICES["topics"]["command"]
    script = script.replace("$$", "$").replace("/opt/kafka/bin/kafka-topics.sh", str(tool))
    entry = SERVICES["topics"]["entrypoint"]
    ran = subprocess.run([*entry, script], capture_output=True, text=True, check=True, timeout=30)
    return [line.split() for line in ran.stdout.splitlines()]


def test_the_dockerfile_has_instructions_only_and_ends_in_an_image_of_its_own() -> None:
    assert {instruction.word for instruction in DOCKERFILE} == INSTRUCTIONS
    assert DOCKERFILE[0].word == "FROM"


@pytest.mark.parametrize(
    "image",
    [rest.split()[0] for rest in arguments("FROM")]
    + [service["image"] for service in SERVICES.values() if "image" in service],
)
def test_an_image_is_pinned_by_its_tag(image: str) -> None:
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", image)


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    let_through = set((ROOT / ".dockerignore").read_text("utf-8").splitlines())
    copied = [rest.split()[:-1] for rest in arguments("COPY") if not rest.startswith("--from")]
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert f"!{source.partition('/')[0]}" in let_through, source


def test_what_one_stage_takes_from_another_was_made_there() -> None:
    stages = [rest.split()[-1] for rest in arguments("FROM") if " AS " in rest]
    for rest in arguments("COPY"):
        if rest.startswith("--from="):
            stage, path = rest.removeprefix("--from=").split()[:2]
            assert stage in stages
            assert any(f"venv --without-pip {path} " in run for run in arguments("RUN"))


def test_every_package_is_installed_by_its_hash() -> None:
    steps = [step for run in arguments("RUN") for step in run.split("&&") if "pip install" in step]
    from_lists = [step for step in steps if " -r " in step]
    assert len(from_lists) == 2
    assert all("--require-hashes" in step for step in from_lists)
    others = [step for step in steps if step not in from_lists]
    assert [step.split()[-2:] for step in others] == [["--no-deps", "dist/*.whl"]]


def test_the_image_runs_as_a_user_that_it_made() -> None:
    (user,) = arguments("USER")
    assert any(re.search(rf"useradd .* {user}\b", run) for run in arguments("RUN"))
    words = [instruction.word for instruction in DOCKERFILE]
    assert words.index("USER") < words.index("ENTRYPOINT")


def test_the_image_starts_a_command_that_exists_under_an_init_that_is_installed() -> None:
    (entry,), (command,) = arguments("ENTRYPOINT"), arguments("CMD")
    init, end_of_options, program, *more = json.loads(entry) + json.loads(command)
    assert end_of_options == "--"
    assert any(f"apt-get install -y --no-install-recommends {init}" in x for x in arguments("RUN"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert program in scripts
    told = subprocess.run(
        [sys.executable, "-m", "worker", *more, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert more[0] in told.stdout


def test_the_image_is_stopped_as_the_worker_wants_to_be() -> None:
    assert arguments("STOPSIGNAL") == ["SIGTERM"]


def test_the_settings_of_the_containers_are_settings() -> None:
    given = {**image_environment(), **SERVICES["worker"]["environment"]}
    ours = {name: value for name, value in given.items() if name.startswith("DARKROOM_")}
    assert set(ours) <= set(load_settings(environ=ours).origins.values())


def test_the_port_of_the_image_is_the_one_served_exposed_and_checked() -> None:
    settings = load_settings(environ=image_environment()).settings
    assert arguments("EXPOSE") == [str(settings.http.port)]
    assert f"127.0.0.1:{settings.http.port}/" in " ".join(health_command())
    assert settings.http.host == "0.0.0.0"


def test_the_data_of_the_image_lie_in_a_volume_of_its_user() -> None:
    (volume,) = arguments("VOLUME")
    (user,) = arguments("USER")
    assert load_settings(environ=image_environment()).settings.data_dir == Path(volume)
    assert any(f"install -d -o {user} -g {user} {volume}" in run for run in arguments("RUN"))


@pytest.mark.parametrize("dead", [False, True])
async def test_the_health_check_tells_a_live_worker_from_a_dead_one(*, dead: bool) -> None:
    state = State()
    if dead:
        state.dead("engine", "hangs")
    health = Health(Metrics(), state, host="127.0.0.1", port=0)
    port = await health.start()
    try:
        python, option, code = health_command()
        code = code.replace(f":{DEFAULTS.http.port}/", f":{port}/")
        assert python == "python"
        assert await run_beside(sys.executable, option, code) == (1 if dead else 0)
    finally:
        await health.stop()


async def run_beside(*command: str) -> int:
    """Run a command while this loop serves it; returns its exit status."""
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await asyncio.wait_for(process.wait(), 30)


def test_services_wait_for_what_can_be_waited_for() -> None:
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
            else:
                assert wanted["condition"] == "service_completed_successfully"
                assert SERVICES[name]["restart"] == "no"


def test_named_volumes_are_declared() -> None:
    used = {
        mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])
    }
    assert used == set(COMPOSE["volumes"])


def test_the_worker_has_time_to_drain_before_it_is_killed() -> None:
    grace_s = seconds(SERVICES["worker"]["stop_grace_period"])
    assert grace_s >= DEFAULTS.shutdown.drain_deadline_s + 10


def test_ports_of_the_host_are_its_own_and_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for service in SERVICES.values():
        for port in service.get("ports", []):
            host, outside, inside = port.split(":")
            assert host == "127.0.0.1"
            assert f"localhost:{outside}" in readme
            assert f":{inside}" in BROKER["KAFKA_LISTENERS"]


def test_every_property_of_the_broker_is_one_that_a_real_kafka_ran_with(tmp_path: Path) -> None:
    state = plan(StackSpec(data=tmp_path, redis=False), None)
    known = properties(StackSpec(data=tmp_path), state, state.kafka[0])
    given = {name.removeprefix("KAFKA_").lower().replace("_", ".") for name in BROKER} - {
        "cluster.id"
    }
    assert given - set(known) == set()


def test_the_listeners_of_the_broker_fit_together() -> None:
    bound, told = (
        listeners(BROKER["KAFKA_LISTENERS"]),
        listeners(BROKER["KAFKA_ADVERTISED_LISTENERS"]),
    )
    controller = BROKER["KAFKA_CONTROLLER_LISTENER_NAMES"]
    protocols = dict(
        x.split(":") for x in BROKER["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    )
    assert set(told) == set(bound) - {controller}
    assert set(protocols) == set(bound)
    assert all(told[name].endswith(bound[name]) for name in told)
    assert BROKER["KAFKA_INTER_BROKER_LISTENER_NAME"] in told
    assert (
        BROKER["KAFKA_CONTROLLER_QUORUM_VOTERS"]
        == f"{BROKER['KAFKA_NODE_ID']}@kafka{bound[controller]}"
    )
    assert len(base64.urlsafe_b64decode(BROKER["CLUSTER_ID"] + "==")) == 16
    assert len(BROKER["CLUSTER_ID"]) == 22


def test_the_worker_and_the_tools_talk_to_a_listener_that_the_broker_advertises(
    tmp_path: Path,
) -> None:
    told = set(listeners(BROKER["KAFKA_ADVERTISED_LISTENERS"]).values())
    assert SERVICES["worker"]["environment"]["DARKROOM_KAFKA__BOOTSTRAP_SERVERS"] in told
    assert SERVICES["kafka"]["healthcheck"]["test"][-1] in told
    assert {call[call.index("--bootstrap-server") + 1] for call in topic_calls(tmp_path)} <= told


def test_the_workers_are_commanded_through_the_redis_that_is_started() -> None:
    settings = load_settings(environ=SERVICES["worker"]["environment"]).settings.control
    options = client_options(settings, deadline_s=1.0)
    assert SERVICES[options["host"]]["command"][0] == "redis-server"
    assert options["port"] == 6379  # its own, which no option of the command changes
    assert "--port" not in SERVICES[options["host"]]["command"]
    assert SERVICES["worker"]["depends_on"][options["host"]] == {"condition": "service_healthy"}


def test_what_the_fleet_should_be_outlives_its_redis() -> None:
    redis = SERVICES["redis"]
    assert "--appendonly yes" in " ".join(redis["command"])
    assert [mount.split(":")[1] for mount in redis["volumes"]] == ["/data"]


def test_the_topics_of_the_settings_are_created_and_a_dead_letter_fits(tmp_path: Path) -> None:
    calls = {call[call.index("--topic") + 1]: call for call in topic_calls(tmp_path)}
    kafka = DEFAULTS.kafka
    assert set(calls) == {*kafka.input_topics, kafka.output_topic, kafka.dead_letter_topic}
    assert all({"--create", "--if-not-exists"} <= set(call) for call in calls.values())
    sizes = {
        topic: int(call[-1].removeprefix("max.message.bytes="))
        for topic, call in calls.items()
        if call[-2] == "--config"
    }
    assert (
        sizes[kafka.dead_letter_topic] >= max(sizes[topic] for topic in kafka.input_topics) + 65_536
    )
