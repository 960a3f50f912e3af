"""One Kafka node (KRaft, broker and controller in one): its properties, its storage, its command.

The recipe's reasons stand beside the properties. It knows no stack and waits for nothing.
"""

import base64
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from worker.errors import CommandError
from worker.local.process import ENVIRONMENT
from worker.local.spec import HOST, RECORD_MAX_BYTES, StackSpec
from worker.local.state import Part, State

FORMAT_DEADLINE_S = 60.0
_JVM = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
"""Measured over 800,000 records on two cores: half the CPU of the defaults (C2, G1) while they warm
up, the same thereafter."""

# Without a binding and a configuration Kafka logs nothing at all.
_LOG4J2 = """\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p %c{1} %m%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
"""


class Runtime(NamedTuple):
    """What runs a node."""

    java: str
    jars: Path


def prepare(spec: StackSpec, state: State, parts: Sequence[Part], runtime: Runtime) -> None:
    """Write the nodes' configurations and format the storage of those that have none."""
    for part in parts:
        _configure(spec, state, part)
    cluster = _cluster(state)
    unformatted = [part for part in parts if not _formatted(part).exists()]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda part: _format(spec, part, runtime, cluster=cluster), unformatted))


def _configure(spec: StackSpec, state: State, part: Part) -> None:
    home = Path(part.home)
    home.mkdir(parents=True, exist_ok=True)
    lines = (f"{key}={value}\n" for key, value in properties(spec, state, part).items())
    Path(part.mark).write_text("".join(lines))
    (home / "log4j2.properties").write_text(_LOG4J2)


def properties(spec: StackSpec, state: State, part: Part) -> dict[str, str]:
    """Give the node's server.properties."""
    nodes = state.kafka
    copies = str(len(nodes))
    in_sync = "2" if len(nodes) > 1 else "1"
    advertised = state.advertised.get(part.name, f"{HOST}:{part.port}")
    ours = {
        "process.roles": "broker,controller",
        "node.id": str(part.number),
        "controller.quorum.voters": ",".join(f"{n.number}@{HOST}:{n.quorum_port}" for n in nodes),
        "listeners": f"PLAINTEXT://{HOST}:{part.port},PEER://{HOST}:{part.peer_port},"
        f"CONTROLLER://{HOST}:{part.quorum_port}",
        "advertised.listeners": f"PLAINTEXT://{advertised},PEER://{HOST}:{part.peer_port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PEER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        # Past any proxy in front: cutting a broker's clients off must not cut the broker off.
        "inter.broker.listener.name": "PEER",
        "log.dirs": str(_storage(part)),
        "auto.create.topics.enable": "false",
        "message.max.bytes": str(RECORD_MAX_BYTES),
        "replica.fetch.max.bytes": str(RECORD_MAX_BYTES),
        "min.insync.replicas": in_sync,
        "default.replication.factor": copies,
        # The first write to these is slow with the default of 50 partitions.
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": "0",
        # Below the default of 6 s, which would make every test with a killed member that slow.
        "group.min.session.timeout.ms": "1000",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # A killed broker that comes back is refused until its last session is over (default 9 s).
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
    }
    given = {k: v.replace("{port}", str(part.port)) for k, v in spec.broker_properties.items()}
    return ours | given


def command(spec: StackSpec, part: Part, runtime: Runtime) -> list[str]:
    """Give the command line of the node."""
    heap = ["-Xms256m", "-Xmx512m"] if spec.brokers == 1 else ["-Xms128m", "-Xmx384m"]
    log_config = f"-Dlog4j2.configurationFile={part.home}/log4j2.properties"
    classpath = ["-cp", f"{runtime.jars}/*"]
    return [runtime.java, *heap, *_JVM, log_config, *classpath, "kafka.Kafka", part.mark]


def _format(spec: StackSpec, part: Part, runtime: Runtime, *, cluster: str) -> None:
    shutil.rmtree(_storage(part), ignore_errors=True)  # an interrupted format
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", part.mark, *spec.format_args]
    try:
        ran = subprocess.run(
            [runtime.java, *_JVM, "-cp", f"{runtime.jars}/*", *tool],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=FORMAT_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{part.name}: formatting took over {error.timeout:.0f} s") from error
    if ran.returncode != 0:
        raise CommandError(f"{part.name}: formatting failed:\n{ran.stdout}{ran.stderr}")
    _formatted(part).touch()


def _storage(part: Part) -> Path:
    return Path(part.home) / "data"


def _formatted(part: Part) -> Path:
    """Name the file that says that formatting went through to its end."""
    return Path(part.home) / "formatted"


def _cluster(state: State) -> str:
    """Read the cluster's id, or make one: 16 random bytes as Kafka writes them.

    Kafka's tools take none that begins with a dash.
    """
    file = Path(state.kafka[0].home).parent / "cluster_id"
    if not file.exists():
        raw = b"\0" + uuid.uuid4().bytes[1:]
        file.write_text(base64.urlsafe_b64encode(raw).decode().rstrip("="))
    return file.read_text()
