"""The local stack for real: Kafka and Redis as processes, brought up, hurt and taken down."""

import contextlib
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined] # not re-exported

from tests.conftest import missing
from worker.errors import CommandError
from worker.local.plan import local_folder
from worker.local.ports import free_ports, listens
from worker.local.process import alive, command_line
from worker.local.redis import answers, find_redis
from worker.local.spec import MissingPart, StackSpec, Topic
from worker.local.stack import Stack, down, running, status, up
from worker.local.state import read_state, write_state

UP = """
import sys
from pathlib import Path
from worker.local.spec import StackSpec
from worker.local.stack import up
print(up(StackSpec(data=Path(sys.argv[1]), kafka=False)).redis_url)
"""


@pytest.fixture
def redis_only(tmp_path: Path) -> Iterator[StackSpec]:
    """A stack of Redis alone, up in 0.1 s: most of what a stack does needs no more."""
    try:
        find_redis()
    except MissingPart as error:
        missing(str(error))
    yield StackSpec(data=tmp_path, kafka=False)
    down(tmp_path)


def send(bootstrap_servers: str, topic: str, values: list[bytes]) -> None:
    errors: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap_servers, "message.max.bytes": 16_000_000})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None] * len(values)


def read(bootstrap_servers: str, topic: str, count: int) -> list[bytes]:
    """All records of a topic's first partition, `count` of them."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": topic,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        records = consumer.consume(count + 1, timeout=30)
    finally:
        consumer.close()
    return [record.value() or b"" for record in records if record.error() is None]


@contextlib.contextmanager
def forwarding(port: int) -> Iterator[tuple[int, list[object]]]:
    """A proxy in front of a port: its own port, and who has come to it."""
    came: list[object] = []

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            came.append(self.client_address)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as end:
                back = threading.Thread(target=pump, args=(end, self.request), daemon=True)
                back.start()
                pump(self.request, end)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Forward) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield server.server_address[1], came
        server.shutdown()
        serving.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass on what comes until one of the two has gone, and then the other goes too."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.mark.redis
def test_redis_answers_and_keeps_to_loopback(redis_only: StackSpec) -> None:
    url = up(redis_only).redis_url

    assert url is not None
    port = int(url.rpartition(":")[2].removesuffix("/0"))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(16) == b"+PONG\r\n"
        client.sendall(b"CONFIG GET bind\r\n")
        assert b"127.0.0.1" in client.recv(256)
    assert (local_folder(redis_only.data) / "redis").stat().st_mode & 0o077 == 0


@pytest.mark.redis
def test_a_second_up_returns_what_runs(redis_only: StackSpec) -> None:
    first = up(redis_only)
    before = status(redis_only.data)

    assert up(redis_only) == first
    assert status(redis_only.data) == before
    assert before.running


@pytest.mark.redis
def test_after_down_nothing_runs_and_down_again_is_no_error(redis_only: StackSpec) -> None:
    up(redis_only)
    (part,) = status(redis_only.data).parts

    assert down(redis_only.data)
    assert not down(redis_only.data)
    assert command_line(part.pid) is None
    assert status(redis_only.data).addresses is None


@pytest.mark.redis
def test_what_was_started_outlives_the_command_that_started_it(redis_only: StackSpec) -> None:
    argv = [sys.executable, "-c", UP, str(redis_only.data)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout.strip() == status(redis_only.data).addresses.redis_url  # type: ignore[union-attr] # fails as well
    assert status(redis_only.data).running


@pytest.mark.redis
def test_commands_at_the_same_time_start_one_stack(redis_only: StackSpec) -> None:
    argv = [sys.executable, "-c", UP, str(redis_only.data)]
    commands = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    urls = {command.communicate(timeout=60)[0] for command in commands}

    assert len(urls) == 1
    assert [command.returncode for command in commands] == [0] * 4
    folder = str(local_folder(redis_only.data))
    lines = [command_line(int(each.name)) or "" for each in Path("/proc").glob("[0-9]*")]
    assert sum(folder in line for line in lines) == 1


@pytest.mark.redis
def test_a_process_id_that_somebody_else_got_is_left_alone(redis_only: StackSpec) -> None:
    up(redis_only)
    file = local_folder(redis_only.data) / "stack.json"
    state = read_state(file)
    down(redis_only.data)
    assert state is not None
    write_state(file, state.with_pid("redis", os.getpid()))

    assert not status(redis_only.data).running
    up(redis_only)

    assert status(redis_only.data).running
    assert status(redis_only.data).parts[0].pid != os.getpid()


@pytest.mark.redis
def test_a_block_that_fails_stops_what_it_started(redis_only: StackSpec) -> None:
    pids = []

    def fail_inside() -> None:
        with running(redis_only) as stack:
            pids.append(stack.pid("redis"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()

    assert [command_line(pid) for pid in pids] == [None]


@pytest.mark.redis
def test_a_block_leaves_a_stack_that_ran_before_it(redis_only: StackSpec) -> None:
    up(redis_only)

    with running(redis_only) as stack:
        assert stack.started == set()

    assert status(redis_only.data).running


@pytest.mark.redis
def test_one_part_is_killed_and_started_again_on_its_port(redis_only: StackSpec) -> None:
    with running(redis_only) as stack:
        before, port = stack.pid("redis"), status(redis_only.data).parts[0].port
        stack.kill("redis")
        assert stack.pid("redis") == 0
        assert not listens(port)

        stack.start("redis")

        assert stack.pid("redis") not in {0, before}
        assert answers(port)


@pytest.mark.kafka
def test_topics_are_created_once_with_their_settings(kafka: Stack, unique: str) -> None:
    for _ in range(2):
        kafka.create_topics(Topic(unique, 3, {"max.message.bytes": "12345"}))

    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    partitions = admin.list_topics(unique, timeout=10).topics[unique].partitions
    assert sorted(partitions) == [0, 1, 2]
    assert all(partition.leader == 1 for partition in partitions.values())
    resource = ConfigResource(ResourceType.TOPIC, unique)
    (described,) = admin.describe_configs([resource]).values()
    assert described.result(10)["max.message.bytes"].value == "12345"


@pytest.mark.kafka
async def test_topics_can_be_created_from_a_coroutine(kafka: Stack, unique: str) -> None:
    kafka.create_topics(Topic(unique, 1))

    assert read(kafka.bootstrap_servers, unique, 0) == []


@pytest.mark.kafka
def test_a_topic_that_kafka_refuses_is_told(kafka: Stack) -> None:
    with pytest.raises(CommandError, match="topic 'no spaces' is refused: InvalidTopic"):
        kafka.create_topics(Topic("no spaces", 1))


@pytest.mark.kafka
def test_a_record_of_fifteen_megabytes_passes(kafka: Stack, unique: str) -> None:
    kafka.create_topics(Topic(unique, 1))
    record = os.urandom(15_000_000)

    send(kafka.bootstrap_servers, unique, [record])

    assert read(kafka.bootstrap_servers, unique, 1) == [record]


@pytest.mark.kafka
@pytest.mark.long  # the spine's own test kills a broker too
def test_a_killed_broker_comes_back_on_its_port_with_its_records(
    kafka: Stack, tmp_path: Path
) -> None:
    del kafka  # skips this test where there is no Kafka
    spec = StackSpec(data=tmp_path, topics=(Topic("kept", 1),))
    with running(spec) as stack:
        before = stack.addresses
        send(before.bootstrap_servers, "kept", [b"one", b"two"])
        stack.kill("broker-1")

        assert up(spec) == before
        assert read(before.bootstrap_servers, "kept", 2) == [b"one", b"two"]
        assert down(tmp_path)


@pytest.mark.kafka
@pytest.mark.long
def test_records_are_kept_from_down_to_the_next_up(kafka: Stack, tmp_path: Path) -> None:
    del kafka  # skips this test where there is no Kafka
    spec = StackSpec(data=tmp_path, redis=False, topics=(Topic("kept", 1),))
    try:
        send(up(spec).bootstrap_servers, "kept", [b"one", b"two"])
        down(tmp_path)

        assert read(up(spec).bootstrap_servers, "kept", 2) == [b"one", b"two"]
    finally:
        down(tmp_path)


@pytest.mark.kafka
@pytest.mark.long  # what Kafka is told stands in test_kafka; it starts one: 10 s
def test_clients_are_told_the_proxy_in_front_of_a_broker(kafka: Stack, tmp_path: Path) -> None:
    del kafka  # skips this test where there is no Kafka
    (port,) = free_ports(1)
    with forwarding(port) as (proxy, came):
        advertised = {1: f"127.0.0.1:{proxy}"}
        topics = (Topic("through", 1),)
        spec = StackSpec(
            data=tmp_path, redis=False, ports=(port,), advertised=advertised, topics=topics
        )
        with running(spec) as stack:
            assert stack.bootstrap_servers == f"127.0.0.1:{proxy}"

            told = AdminClient(
                {"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0}
            ).list_topics(timeout=30)

            assert told.brokers[1].port == proxy
            send(stack.bootstrap_servers, "through", [b"one"])
            assert read(stack.bootstrap_servers, "through", 1) == [b"one"]
        assert came


@pytest.mark.kafka
def test_a_broker_that_cannot_start_is_told_with_its_log_and_nothing_is_left(
    kafka: Stack, tmp_path: Path
) -> None:
    del kafka  # skips this test where there is no Kafka
    spec = StackSpec(data=tmp_path, broker_properties={"metric.reporters": "no.such.Reporter"})

    with pytest.raises(CommandError, match=r"(?s)broker-1 ended before.*no\.such\.Reporter"):
        up(spec)

    state = read_state(local_folder(tmp_path) / "stack.json")
    assert state is not None
    assert [alive(part.pid, part.mark) for part in state.parts] == [False, False]


@pytest.mark.kafka
def test_the_command_prints_one_json_document(kafka: Stack, tmp_path: Path) -> None:
    del kafka  # skips this test where there is no Kafka
    script = "from worker.cli.dev import app; app()"
    argv = [sys.executable, "-c", script, "up", "--json", "--data-dir", str(tmp_path)]
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=100)

        answer = json.loads(ran.stdout)
        assert answer["data"] == str(tmp_path)
        assert set(answer) == {"bootstrap_servers", "redis_url", "data"}
        assert "starting broker-1" in ran.stderr
        admin = AdminClient({"bootstrap.servers": answer["bootstrap_servers"]})
        topics = admin.list_topics(timeout=10).topics
        assert {name: len(topic.partitions) for name, topic in topics.items()} == {
            "images": 6,
            "predictions": 6,
            "images.dead": 6,
        }
    finally:
        down(tmp_path)


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(300)
def test_three_brokers_serve_on_while_one_is_killed(kafka: Stack, tmp_path: Path) -> None:
    del kafka  # skips this test where there is no Kafka
    spec = StackSpec(data=tmp_path, redis=False, brokers=3, topics=(Topic("kept", 1),))
    with running(spec) as stack:
        servers = stack.bootstrap_servers
        assert servers.count(",") == 2
        send(servers, "kept", [b"with three"])

        stack.kill("broker-2")
        send(servers, "kept", [b"with two"])
        stack.start("broker-2")
        stack.stop("broker-1")
        send(servers, "kept", [b"with another two"])

        assert read(servers, "kept", 3) == [b"with three", b"with two", b"with another two"]


@pytest.mark.redis
def test_threads_of_one_process_are_kept_apart_too(redis_only: StackSpec) -> None:
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(up(redis_only).redis_url)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert len(found) == 3
    assert len(set(found)) == 1
