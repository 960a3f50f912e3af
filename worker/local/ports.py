"""Ports on the loopback interface: free ones, and whether somebody listens."""

import itertools
import random
import socket
from collections.abc import Collection

from worker.errors import CommandError
from worker.local.spec import HOST

LOWEST, HIGHEST = 20_000, 32_000
"""Below the range of outgoing connections (Linux from 32768, macOS from 49152). A client that keeps
trying a dead broker's port of that range sooner or later connects to *itself*, and then keeps the
port from the broker that comes back."""


def free_ports(count: int, *, taken: Collection[int] = ()) -> tuple[int, ...]:
    """Ports that nobody listens on, none of `taken` among them."""
    shuffled = random.sample(range(LOWEST, HIGHEST), k=HIGHEST - LOWEST)
    free = (port for port in shuffled if port not in taken and is_free(port))
    found = tuple(itertools.islice(free, count))
    if len(found) < count:
        raise CommandError(f"no {count} free ports between {LOWEST} and {HIGHEST} on {HOST}")
    return found


def is_free(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            server.bind((HOST, port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex((HOST, port)) == 0
