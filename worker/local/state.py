"""What runs in a data folder, as it is remembered on disk between commands."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from worker.errors import CommandError

REDIS = "redis"


def broker_name(number: int) -> str:
    return f"broker-{number}"


@dataclass(frozen=True)
class Part:
    """One process of a stack. Its ports stay its own while anything of the stack runs."""

    name: str
    home: str
    """Its absolute folder: configuration, log, data."""
    mark: str
    """What its command line contains and no other one does."""
    port: int
    peer_port: int = 0
    """Broker only: the listener of the other brokers and of the stack itself."""
    quorum_port: int = 0
    """Broker only: the listener of the KRaft controllers."""
    pid: int = 0
    """0: was never started, or was stopped."""

    @property
    def number(self) -> int:
        """A broker's node id."""
        return int(self.name.removeprefix("broker-"))

    @property
    def log(self) -> Path:
        return Path(self.home) / "log.txt"


@dataclass(frozen=True)
class State:
    advertised: dict[str, str]
    """Name of a broker -> `host:port` that its clients are told."""
    parts: tuple[Part, ...]

    def part(self, name: str) -> Part:
        """Find a part by name. Raises CommandError, which names those that there are."""
        for part in self.parts:
            if part.name == name:
                return part
        names = ", ".join(part.name for part in self.parts)
        raise CommandError(f"the local stack has no part {name!r}: it has {names}")

    def with_pid(self, name: str, pid: int) -> "State":
        parts = (replace(part, pid=pid) if part.name == name else part for part in self.parts)
        return replace(self, parts=tuple(parts))

    @property
    def kafka(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.name != REDIS)


def read_state(file: Path) -> State | None:
    """Read what was written; None where nothing was. Raises CommandError on a damaged file."""
    try:
        raw = json.loads(file.read_text())
        parts = tuple(Part(**part) for part in raw.pop("parts"))
        return State(**raw, parts=parts)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CommandError(
            f"{file} is damaged ({error}): end the processes that `ps` shows with {file.parent} "
            "in their command lines, then delete the file"
        ) from error


def write_state(file: Path, state: State) -> None:
    """Replace the file in one step."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state), indent=2))
    fresh.replace(file)
