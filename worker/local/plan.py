"""Which parts a stack has, in which folders and on which ports: the state before anything runs."""

from collections.abc import Iterable
from pathlib import Path

from worker.errors import CommandError
from worker.local.ports import free_ports, is_free
from worker.local.process import alive
from worker.local.spec import HOST, Addresses, StackSpec
from worker.local.state import REDIS, Part, State, broker_name

LAYOUTS = {1: "one", 3: "three"}
"""Kafka's data of one and of three nodes lie apart: their quorums do not mix."""


def local_folder(data: Path) -> Path:
    return data.resolve() / "local"


def is_alive(part: Part) -> bool:
    return part.pid != 0 and alive(part.pid, part.mark)


def plan(spec: StackSpec, found: State | None) -> State:
    """Give the state to go on from: what was found while any of it runs, and what it lacks.

    Raises CommandError when what runs is not what is asked for.
    """
    if found is None or not any(is_alive(part) for part in found.parts):
        found = State({}, ())
    advertised = found.advertised
    parts = list(found.parts)
    if spec.kafka and found.kafka:
        _refuse_other(spec, found)
    elif spec.kafka:
        advertised = _advertised(spec)
        for number in range(1, spec.brokers + 1):
            parts.append(_broker(spec, number, taken=_ports(parts)))
    if spec.redis and all(part.name != REDIS for part in parts):
        home = str(local_folder(spec.data) / REDIS)
        (port,) = free_ports(1, taken=_ports(parts))
        parts.append(Part(REDIS, home, home, port))
    return State(advertised, tuple(parts))


def addresses_of(state: State, data: Path) -> Addresses:
    servers = (state.advertised.get(part.name, f"{HOST}:{part.port}") for part in state.kafka)
    redis_ports = [part.port for part in state.parts if part.name == REDIS]
    redis_url = f"redis://{HOST}:{redis_ports[0]}/0" if redis_ports else None
    return Addresses(",".join(servers), redis_url, data)


def _refuse_other(spec: StackSpec, found: State) -> None:
    ports = tuple(part.port for part in found.kafka)
    same_nodes = len(ports) == spec.brokers and found.advertised == _advertised(spec)
    if not same_nodes or (spec.ports and spec.ports != ports):
        raise CommandError(
            f"another local stack runs in {local_folder(spec.data)} ({len(ports)} broker(s), "
            f"{addresses_of(found, spec.data).bootstrap_servers}): `darkroom dev down` first"
        )


def _advertised(spec: StackSpec) -> dict[str, str]:
    return {broker_name(number): address for number, address in spec.advertised.items()}


def _broker(spec: StackSpec, number: int, *, taken: set[int]) -> Part:
    if spec.ports and len(spec.ports) != spec.brokers:
        raise CommandError(f"{spec.brokers} broker(s), but {len(spec.ports)} port(s): {spec.ports}")
    proxies = {int(address.rpartition(":")[2]) for address in spec.advertised.values()}
    taken = taken | set(spec.ports) | proxies
    port, peer_port, quorum_port = free_ports(3, taken=taken)
    if spec.ports:
        port = spec.ports[number - 1]
        if not is_free(port):
            raise CommandError(f"port {port} for broker {number} is taken on {HOST}")
    name = broker_name(number)
    home = local_folder(spec.data) / LAYOUTS[spec.brokers] / name
    return Part(name, str(home), str(home / "server.properties"), port, peer_port, quorum_port)


def _ports(parts: Iterable[Part]) -> set[int]:
    return {port for part in parts for port in (part.port, part.peer_port, part.quorum_port)}
