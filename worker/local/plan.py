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
    """Give the state to go on from: what was found while any of it runs, else a new one.

    Raises CommandError when what runs is not what is asked for.
    """
    if found is None or not any(is_alive(part) for part in found.parts):
        return _new(spec)
    asked = _new(spec, found)
    if (asked.brokers, asked.advertised) != (found.brokers, found.advertised) or (
        spec.ports and [part.port for part in asked.kafka] != [part.port for part in found.kafka]
    ):
        raise CommandError(
            f"another local stack runs in {local_folder(spec.data)} ({found.brokers} broker(s), "
            f"{addresses_of(found, spec.data).bootstrap_servers}): `darkroom dev down` first"
        )
    return asked


def addresses_of(state: State, data: Path) -> Addresses:
    servers = (state.advertised.get(part.name, f"{HOST}:{part.port}") for part in state.kafka)
    redis_ports = [part.port for part in state.parts if part.name == REDIS]
    redis_url = f"redis://{HOST}:{redis_ports[0]}/0" if redis_ports else None
    return Addresses(",".join(servers), redis_url, data)


def _new(spec: StackSpec, found: State | None = None) -> State:
    """Make a state as the specification asks; parts that `found` has stay as they are."""
    known = {part.name: part for part in found.parts} if found else {}
    parts = dict(known)
    if spec.kafka:
        for number in range(1, spec.brokers + 1):
            name = broker_name(number)
            if name not in known:
                parts[name] = _broker(spec, number, taken=_ports(parts.values()))
    if spec.redis and REDIS not in known:
        home = local_folder(spec.data) / REDIS
        (port,) = free_ports(1, taken=_ports(parts.values()))
        parts[REDIS] = Part(REDIS, str(home), str(home), port)
    advertised = {broker_name(number): at for number, at in spec.advertised.items()}
    return State(spec.brokers, advertised, tuple(parts.values()))


def _broker(spec: StackSpec, number: int, *, taken: set[int]) -> Part:
    if spec.ports and len(spec.ports) != spec.brokers:
        raise CommandError(f"{spec.brokers} broker(s), but {len(spec.ports)} port(s): {spec.ports}")
    taken = taken | set(spec.ports)
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
