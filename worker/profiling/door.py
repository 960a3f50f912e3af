"""Where a worker listens for those who want a profile: a Unix socket in its data folder.

Not HTTP: `/metrics` may be open to a network, and a browser on this machine can ask any port of it.
The folder lets in the worker's own user alone, and the name says which worker of the machine it is.
"""

import socket
from pathlib import Path

FOLDER = "profile"
"""In `data_dir`."""
MAX_S = 300.0
"""A profile holds what it records in memory."""
_HOST_CHARS = 32
"""The path of a socket has at most 107 bytes."""


def socket_of(data_dir: Path, pid: int) -> Path:
    """Return the socket of a worker on this machine."""
    return data_dir / FOLDER / f"{_host()}-{pid}"


def sockets_in(data_dir: Path) -> dict[int, Path]:
    """Return the sockets of the workers on this machine by their pid; some may have been killed.

    Raises PermissionError.
    """
    folder = data_dir / FOLDER
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        return {}
    named = (path.name.rpartition("-") for path in found if path.is_socket())
    return {
        int(pid): socket_of(data_dir, int(pid))
        for host, _, pid in named
        if host == _host() and pid.isdecimal()
    }


def _host() -> str:
    return socket.gethostname()[:_HOST_CHARS]
