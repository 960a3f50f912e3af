"""Brings a local Kafka and Redis up and down, as a whole and part by part.

One stack for a data folder. What runs is remembered in `local/stack.json` there, so that every
later command (or test, or benchmark) finds it; a lock keeps commands from working on it at once.
"""

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from worker.errors import CommandError
from worker.local import kafka, redis, topics
from worker.local.jars import kafka_jars
from worker.local.java import find_java
from worker.local.lock import locked
from worker.local.plan import addresses_of, is_alive, local_folder, plan
from worker.local.ports import listens
from worker.local.process import spawn, stop_all, telling_lines
from worker.local.spec import HOST, Addresses, Silent, StackSpec, Topic, Watcher
from worker.local.state import REDIS, Part, State, read_state, write_state

LOCK_DEADLINE_S = 300.0
GRACE_S = 15.0
POLL_S = 0.05


class PartStatus(NamedTuple):
    name: str
    port: int
    pid: int
    running: bool
    log: Path


class Status(NamedTuple):
    running: bool
    """Everything that was started runs, and listens."""
    addresses: Addresses | None
    parts: tuple[PartStatus, ...]


def up(spec: StackSpec, watcher: Watcher | None = None) -> Addresses:
    """Bring the stack up, or what is missing of it, and return its addresses when it is usable.

    Raises CommandError (MissingPart where this machine lacks something); then whatever this call
    had started is stopped again.
    """
    stack = Stack(spec, watcher or Silent())
    stack.bring_up()
    return stack.addresses


def down(data: Path) -> bool:
    """Stop everything that runs in the data folder; False when nothing did. The data stays."""
    folder = local_folder(data)
    if not folder.is_dir():
        return False
    with locked(folder / "lock", deadline_s=LOCK_DEADLINE_S):
        state = read_state(folder / "stack.json")
        if state is None:
            return False
        ran = [(part.pid, part.mark) for part in state.parts if is_alive(part)]
        stop_all(ran, grace_s=GRACE_S)
        (folder / "stack.json").unlink()
        return bool(ran)


def status(data: Path) -> Status:
    """Tell what runs in the data folder. Takes no lock: it may be asked while a stack comes up."""
    state = read_state(local_folder(data) / "stack.json")
    if state is None:
        return Status(running=False, addresses=None, parts=())
    parts = tuple(
        PartStatus(part.name, part.port, part.pid, is_alive(part) and listens(part.port), part.log)
        for part in state.parts
    )
    addresses = addresses_of(state, data.resolve())
    return Status(all(part.running for part in parts), addresses, parts)


@contextlib.contextmanager
def running(spec: StackSpec, watcher: Watcher | None = None) -> Iterator["Stack"]:
    """Have a stack for the length of a block; what the block's start had to start is stopped."""
    stack = Stack(spec, watcher or Silent())
    stack.bring_up()
    try:
        yield stack
    finally:
        stack.stop(*stack.started)


class Stack:
    """A stack that is up, and control of its parts: `broker-1`, `broker-2`, `broker-3`, `redis`."""

    def __init__(self, spec: StackSpec, watcher: Watcher) -> None:
        self.spec = spec
        self.started: set[str] = set()
        """Parts that this object started."""
        self._watcher = watcher
        self._folder = local_folder(spec.data)
        self._file = self._folder / "stack.json"

    @property
    def addresses(self) -> Addresses:
        return addresses_of(self._state(), self.spec.data.resolve())

    @property
    def bootstrap_servers(self) -> str:
        return self.addresses.bootstrap_servers

    @property
    def redis_url(self) -> str | None:
        return self.addresses.redis_url

    def pid(self, name: str) -> int:
        """Process id of a part; 0 when it does not run."""
        part = self._state().part(name)
        return part.pid if is_alive(part) else 0

    def bring_up(self) -> None:
        """Start what does not run, create the topics, wait until all is usable."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"the local stack cannot use {self._folder}: {error}") from error
        with self._lock():
            state = plan(self.spec, read_state(self._file))
            write_state(self._file, state)
            missing = [part.name for part in state.parts if not is_alive(part)]
            try:
                self._start(missing)
                self._settle(self.spec.topics)
            except BaseException:
                self._end(self.started)
                raise

    def create_topics(self, *wanted: Topic) -> None:
        """Create topics (those that exist stay as they are); every partition has a leader then."""
        self._settle(wanted)

    def start(self, *names: str) -> None:
        """Start stopped parts again, on their ports and data, and wait until they are usable."""
        with self._lock():
            self._start([name for name in names if not self.pid(name)])
            self._settle(())

    def stop(self, *names: str) -> None:
        """End parts by SIGTERM, after a while by SIGKILL."""
        with self._lock():
            self._end(names)

    def kill(self, *names: str) -> None:
        """End parts by SIGKILL."""
        with self._lock():
            state = self._state()
            ran = [part for part in map(state.part, names) if is_alive(part)]
            stop_all([(part.pid, part.mark) for part in ran], grace_s=0, first=signal.SIGKILL)

    def _start(self, names: list[str]) -> None:
        state = self._state()
        parts = [state.part(name) for name in names]
        commands = self._commands(state, parts)
        for part, argv in zip(parts, commands, strict=True):
            self._watcher.say(f"starting {part.name} on {HOST}:{part.port}")
            self.started.add(part.name)
            state = state.with_pid(part.name, spawn(argv, part.log))
            write_state(self._file, state)
        self._wait_listening(names)

    def _commands(self, state: State, parts: list[Part]) -> list[list[str]]:
        """Make all ready that the parts need; their command lines."""
        brokers = [part for part in parts if part.name != REDIS]
        commands = {}
        if len(brokers) < len(parts):
            commands[REDIS] = redis.command(state.part(REDIS), redis.find_redis())
        if brokers:
            java = find_java()
            runtime = kafka.Runtime(java, kafka_jars(self.spec.cache, self._watcher))
            kafka.prepare(self.spec, state, brokers, runtime)
            commands |= {part.name: kafka.command(self.spec, part, runtime) for part in brokers}
        return [commands[part.name] for part in parts]

    def _wait_listening(self, names: list[str]) -> None:
        end_s = time.monotonic() + self.spec.start_deadline_s
        for part in map(self._state().part, names):
            ready = redis.answers if part.name == REDIS else listens
            port = part.port if part.name == REDIS else part.peer_port
            while not ready(port):
                self._check_alive(names)
                if time.monotonic() > end_s:
                    raise CommandError(_with_log(part, "did not come up in time"))
                time.sleep(POLL_S)

    def _settle(self, wanted: tuple[Topic, ...]) -> None:
        live = [part for part in self._state().kafka if is_alive(part)]
        if not live:
            return
        names = [part.name for part in live]
        topics.settle(
            ",".join(f"{HOST}:{part.peer_port}" for part in live),
            wanted,
            brokers=frozenset(part.number for part in live),
            deadline_s=self.spec.start_deadline_s,
            check=lambda: self._check_alive(names),
        )

    def _check_alive(self, names: list[str]) -> None:
        for part in map(self._state().part, names):
            if not is_alive(part):
                raise CommandError(_with_log(part, "ended before it was usable"))

    def _end(self, names: Iterable[str]) -> None:
        state = read_state(self._file)
        if state is None:  # `down` was here
            return
        ran = [part for part in map(state.part, names) if is_alive(part)]
        stop_all([(part.pid, part.mark) for part in ran], grace_s=GRACE_S)

    def _state(self) -> State:
        state = read_state(self._file)
        if state is None:
            raise CommandError(f"no local stack runs in {self._folder}")
        return state

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._folder / "lock", deadline_s=LOCK_DEADLINE_S)


def _with_log(part: Part, what: str) -> str:
    return f"{part.name} {what}; from {part.log}:\n{telling_lines(part.log)}"
