import socket

import pytest

from worker.errors import CommandError
from worker.local.ports import HIGHEST, LOWEST, free_ports, is_free, listens


def test_free_ports_differ_and_lie_below_those_of_outgoing_connections() -> None:
    found = free_ports(20)

    assert len(set(found)) == 20
    assert all(LOWEST <= port < HIGHEST for port in found)


def test_only_ports_that_are_not_taken_are_given() -> None:
    left = free_ports(2)
    taken = set(range(LOWEST, HIGHEST)) - set(left)

    assert set(free_ports(2, taken=taken)) == set(left)
    with pytest.raises(CommandError, match="no 3 free ports"):
        free_ports(3, taken=taken)


def test_a_port_with_a_server_is_not_free_and_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert listens(port)
        assert not is_free(port)


def test_a_port_without_a_server_is_free_and_does_not_listen() -> None:
    (port,) = free_ports(1)

    assert is_free(port)
    assert not listens(port)
