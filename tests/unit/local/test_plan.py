import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from worker.errors import CommandError
from worker.local.plan import addresses_of, plan
from worker.local.ports import free_ports
from worker.local.process import command_line
from worker.local.spec import StackSpec
from worker.local.state import Part, State


def running_here(state: State) -> State:
    """The same stack, as if this very process were each of its parts."""
    line = command_line(os.getpid())
    assert line
    parts = tuple(replace(part, pid=os.getpid(), mark=line) for part in state.parts)
    return replace(state, parts=parts)


def all_ports(parts: tuple[Part, ...]) -> list[int]:
    ports = [port for part in parts for port in (part.port, part.peer_port, part.quorum_port)]
    return [port for port in ports if port]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["broker-1", "redis"]),
        ({"brokers": 3}, ["broker-1", "broker-2", "broker-3", "redis"]),
        ({"redis": False}, ["broker-1"]),
        ({"kafka": False}, ["redis"]),
    ],
)
def test_a_stack_has_the_parts_that_are_asked_for_each_on_its_own_ports(
    tmp_path: Path, options: dict[str, int], names: list[str]
) -> None:
    state = plan(StackSpec(data=tmp_path, **options), None)  # type: ignore[arg-type] # a table

    assert [part.name for part in state.parts] == names
    ports = all_ports(state.parts)
    assert len(set(ports)) == len(ports) == sum(3 if "broker" in name else 1 for name in names)
    assert len({part.mark for part in state.parts}) == len(names)


def test_ports_that_are_given_are_the_clients_ports(tmp_path: Path) -> None:
    ports = free_ports(3)

    state = plan(StackSpec(data=tmp_path, brokers=3, ports=ports), None)

    assert tuple(part.port for part in state.kafka) == ports


def test_as_many_ports_as_brokers_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"3 broker\(s\), but 1 port"):
        plan(StackSpec(data=tmp_path, brokers=3, ports=free_ports(1)), None)


def test_a_given_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CommandError, match=f"port {port} for broker 1 is taken"):
            plan(StackSpec(data=tmp_path, ports=(port,)), None)


def test_clients_are_told_the_proxy_in_front_and_its_port_is_left_free(tmp_path: Path) -> None:
    (proxy,) = free_ports(1)
    spec = StackSpec(data=tmp_path, advertised={1: f"127.0.0.1:{proxy}"})

    state = plan(spec, None)

    assert addresses_of(state, tmp_path).bootstrap_servers == f"127.0.0.1:{proxy}"
    assert proxy not in all_ports(state.parts)


def test_what_runs_is_kept_as_it_is(tmp_path: Path) -> None:
    spec = StackSpec(data=tmp_path)
    found = running_here(plan(spec, None))

    assert plan(spec, found) == found


def test_what_is_lacking_is_added_to_what_runs(tmp_path: Path) -> None:
    found = running_here(plan(StackSpec(data=tmp_path, kafka=False), None))

    state = plan(StackSpec(data=tmp_path, brokers=3), found)

    assert {part.name for part in state.parts} == {"broker-1", "broker-2", "broker-3", "redis"}
    assert state.part("redis") == found.part("redis")


def test_asking_for_less_than_what_runs_changes_nothing(tmp_path: Path) -> None:
    found = running_here(plan(StackSpec(data=tmp_path, brokers=3), None))

    assert plan(StackSpec(data=tmp_path, kafka=False), found) == found


def test_a_stack_of_which_nothing_runs_is_planned_anew(tmp_path: Path) -> None:
    found = plan(StackSpec(data=tmp_path), None)
    dead = replace(found, parts=tuple(replace(part, pid=4_000_000) for part in found.parts))

    assert all(part.pid == 0 for part in plan(StackSpec(data=tmp_path), dead).parts)


@pytest.mark.parametrize(
    "options", [{"brokers": 3}, {"advertised": {1: "127.0.0.1:9"}}, {"ports": (1,)}]
)
def test_another_stack_in_the_same_folder_is_refused(
    tmp_path: Path, options: dict[str, int]
) -> None:
    found = running_here(plan(StackSpec(data=tmp_path), None))

    with pytest.raises(CommandError, match=r"another local stack runs in .* down` first"):
        plan(StackSpec(data=tmp_path, **options), found)  # type: ignore[arg-type] # a table
