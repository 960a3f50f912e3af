from pathlib import Path

import pytest

from worker.local.kafka import Runtime, command, properties
from worker.local.plan import plan
from worker.local.spec import StackSpec


def test_one_node_keeps_one_copy_of_everything(tmp_path: Path) -> None:
    spec = StackSpec(data=tmp_path)
    state = plan(spec, None)

    given = properties(spec, state, state.part("broker-1"))

    copies = {value for key, value in given.items() if "replication.factor" in key}
    assert copies == {"1"}
    assert {value for key, value in given.items() if key.endswith(("min.isr", "replicas"))} == {"1"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_three_nodes_keep_three_copies_and_know_each_other(tmp_path: Path, number: int) -> None:
    spec = StackSpec(data=tmp_path, brokers=3)
    state = plan(spec, None)

    given = properties(spec, state, state.part(f"broker-{number}"))

    assert given["node.id"] == str(number)
    assert given["default.replication.factor"] == "3"
    assert given["min.insync.replicas"] == given["transaction.state.log.min.isr"] == "2"
    voters = [f"{part.number}@127.0.0.1:{part.quorum_port}" for part in state.kafka]
    assert given["controller.quorum.voters"] == ",".join(voters)


def test_clients_are_told_the_proxy_and_brokers_go_past_it(tmp_path: Path) -> None:
    spec = StackSpec(data=tmp_path, brokers=3, advertised={2: "127.0.0.1:9999"})
    state = plan(spec, None)
    part = state.part("broker-2")

    given = properties(spec, state, part)

    told = f"PLAINTEXT://127.0.0.1:9999,PEER://127.0.0.1:{part.peer_port}"
    assert given["advertised.listeners"] == told
    assert f"PLAINTEXT://127.0.0.1:{part.port}," in given["listeners"]
    assert given["inter.broker.listener.name"] == "PEER"


def test_properties_that_are_asked_for_stand_over_our_own(tmp_path: Path) -> None:
    extra = {"message.max.bytes": "1000", "my.listener": "SSL://127.0.0.1:{port}"}
    spec = StackSpec(data=tmp_path, broker_properties=extra)
    state = plan(spec, None)
    part = state.part("broker-1")

    given = properties(spec, state, part)

    assert given["message.max.bytes"] == "1000"
    assert given["my.listener"] == f"SSL://127.0.0.1:{part.port}"


def test_the_mark_of_a_node_stands_in_its_command_line(tmp_path: Path) -> None:
    spec = StackSpec(data=tmp_path)
    part = plan(spec, None).part("broker-1")

    words = command(spec, part, Runtime("/bin/java", tmp_path))

    assert words[0] == "/bin/java"
    assert words[-2:] == ["kafka.Kafka", part.mark]
