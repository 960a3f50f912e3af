"""What a local stack is asked to be, and the addresses that it answers at.

Values only: nothing here starts, stops or reads anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from worker.errors import CommandError

HOST = "127.0.0.1"
RECORD_MAX_BYTES = 16_777_216
"""`message.max.bytes` of every local broker."""


class MissingPart(CommandError):  # noqa: N818 - the name is the whole sentence
    """A part that cannot be had on this machine: a package, Java, Redis or the way to the jars."""


class Topic(NamedTuple):
    name: str
    partitions: int = 6
    config: Mapping[str, str] = {}
    """Topic settings under Kafka's own names, `max.message.bytes` for example."""


DEFAULT_TOPICS = (Topic("images"), Topic("predictions"), Topic("images.dead"))


class Watcher(Protocol):
    """Who is told how a start is getting on. Called from the thread that asked for the start."""

    def say(self, line: str) -> None: ...

    def downloaded(self, files: int, total_files: int) -> None: ...


class Silent:
    """A watcher that does not look."""

    def say(self, line: str) -> None:
        pass

    def downloaded(self, files: int, total_files: int) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """A stack to be brought up under `data`/local."""

    data: Path
    kafka: bool = True
    redis: bool = True
    brokers: Literal[1, 3] = 1
    topics: tuple[Topic, ...] = DEFAULT_TOPICS
    ports: tuple[int, ...] = ()
    """Client port of broker 1, 2, 3; empty: free ones. Needed to set up a proxy beforehand."""
    advertised: Mapping[int, str] = field(default_factory=dict)
    """Broker -> `host:port` that clients are told instead of its own: a proxy in front. Brokers
    and the stack itself talk past it, on a listener of their own."""
    broker_properties: Mapping[str, str] = field(default_factory=dict)
    """Properties of every broker, over our own; `{port}` of a value is its client port."""
    format_args: tuple[str, ...] = ()
    """More arguments for Kafka's storage tool (`--add-scram`, ...)."""
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "darkroom")
    """Where Kafka's jars are kept, for all stacks of this user."""
    start_deadline_s: float = 90.0


class Addresses(NamedTuple):
    bootstrap_servers: str
    """Empty when the stack has no Kafka."""
    redis_url: str | None
    data: Path
