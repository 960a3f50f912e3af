"""One engine as the dispatcher sees it: what is inside it, and what it still has room for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from worker.errors import ChannelError
from worker.inference.window import Window
from worker.protocol.messages import Row
from worker.types import EngineStamp, ModelStamp, Ticket

_GROUP_ROWS = 128
_GROUP_BYTES = 1 << 20
"""A message is closed when it has so many rows or bytes: the engine can begin, and one picture
that it still needs does not keep many others in its memory."""


class Job(NamedTuple):
    """A request on its way to an engine."""

    ticket: Ticket
    image: bytes
    deadline_ms: int | None
    """Epoch milliseconds after which it is skipped instead of run."""


class Port(Protocol):
    """What the dispatcher needs of an engine."""

    def submit(self, rows: Sequence[Row], *, behind_s: float) -> None:
        """Give it rows; `behind_s`: how long what waits behind them will take."""

    def condemn(self, why: str) -> None:
        """Kill it; `detach` follows."""


class Attached(NamedTuple):
    """An engine that is warm, and what stands in every prediction that it makes."""

    port: Port
    window: Window
    model: ModelStamp
    engine: EngineStamp


@dataclass(slots=True, eq=False)
class Feed:
    """One engine, and what is inside it."""

    engine: Attached
    number: int
    inside: dict[int, Job] = field(default_factory=dict)
    inside_bytes: int = 0
    group: list[Row] = field(default_factory=list)
    """Rows of the message that is being filled."""
    group_bytes: int = 0
    served: bool = False
    closed: bool = False
    """It is given nothing more."""

    def give(self, row: int, job: Job, *, alone: bool = False) -> None:
        """Give it a job with the next message; `alone`: nothing else is in it."""
        size_bytes = len(job.image)
        self.inside[row] = job
        self.inside_bytes += size_bytes
        self.group.append(Row(row, job.image, alone))
        self.group_bytes += size_bytes

    @property
    def filled(self) -> bool:
        """Whether the message that is being filled should be sent before more is given."""
        return len(self.group) == _GROUP_ROWS or self.group_bytes >= _GROUP_BYTES

    def send(self, *, behind: int) -> None:
        """Send the message that is being filled; `behind`: how many jobs wait behind it."""
        if self.group:
            behind_s = self.engine.window.seconds(behind)
            self.engine.port.submit(self.group, behind_s=behind_s)
            self.group, self.group_bytes = [], 0

    def take(self, row: int) -> Job:
        """Take a row out that has ended there. Raises ChannelError when it does not hold it."""
        job = self.inside.pop(row, None)
        if job is None:
            raise ChannelError(f"an outcome for row {row}, which the engine does not hold")
        self.inside_bytes -= len(job.image)
        return job

    @property
    def room(self) -> int:
        """Rows that its window has room for."""
        return self.engine.window.rows - len(self.inside)

    @property
    def has_room(self) -> bool:
        return self.engine.window.has_room(len(self.inside), self.inside_bytes)
