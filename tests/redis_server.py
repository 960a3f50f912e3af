"""A Redis of a test's own: with options, on one port, killed, frozen and started again."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from tests.conftest import missing
from worker.config_sections import ControlSettings
from worker.local.ports import free_ports, listens
from worker.local.process import POLL_S, spawn, stop_all
from worker.local.redis import command, find_redis
from worker.local.spec import HOST, MissingPart
from worker.local.state import Part

START_S = 20.0


class RedisServer:
    """It is started by `running_redis`, and started again on its port by `start`."""

    def __init__(self, folder: Path, binary: str, options: tuple[str, ...]) -> None:
        self.port = free_ports(1)[0]
        self.pid = 0
        self._mark = str(folder)
        self._part = Part(name="redis", home=str(folder), mark=self._mark, port=self.port)
        self._command = [*command(self._part, binary), *options]

    def start(self, *options: str) -> None:
        self.pid = spawn([*self._command, *options], self._part.log)
        end_s = time.monotonic() + START_S
        while not listens(self.port):
            assert time.monotonic() < end_s, self._part.log.read_text()
            time.sleep(POLL_S)

    def kill(self) -> None:
        stop_all([(self.pid, self._mark)], grace_s=0, first=signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Answer nothing, refuse nothing: a black hole."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def do(self, *words: bytes | str | int, **options: Any) -> Any:
        """Run one command, as an administrator unless the client's `options` say otherwise."""
        with redis.Redis(host=HOST, port=self.port, protocol=2, **options) as client:
            return client.execute_command(*words)

    def settings(self, **changes: Any) -> ControlSettings:
        return ControlSettings(**{"url": f"redis://{HOST}:{self.port}/0", **changes})


@contextlib.contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Have a Redis for the length of a block; where there is none, skip, or in CI fail."""
    try:
        server = RedisServer(folder, find_redis(), options)
    except MissingPart as error:
        missing(str(error))
    server.start()
    try:
        yield server
    finally:
        server.kill()
