"""Jobs and what becomes of them, for tests of the worker's side of inference."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import MappingProxyType

from worker.inference.dispatcher import Dispatcher, Finished
from worker.inference.feed import Attached, Job
from worker.inference.window import Window
from worker.protocol.messages import Done, Fault, Outcomes, Retry, Row
from worker.types import (
    EngineStamp,
    Failed,
    ModelRef,
    ModelStamp,
    Position,
    Reason,
    Skipped,
    Ticket,
)

REF = ModelRef("digits", "1")
NOW_S = 1_000.0


def job(
    offset: int,
    *,
    image: bytes | None = None,
    deadline_ms: int | None = None,
    topic: str = "images",
) -> Job:
    ticket = Ticket(Position(topic, 0, offset), 1, REF, "active", None)
    return Job(ticket, str(offset).encode() if image is None else image, deadline_ms)


def jobs(*offsets: int) -> list[Job]:
    return [job(offset) for offset in offsets]


def name(row: Row) -> int:
    """Offset of the job that became this row."""
    return int(bytes(row.image))


class Ends:
    """Collects how jobs ended; a job that ends twice is an error."""

    def __init__(self) -> None:
        self.of: dict[int, Finished] = {}
        self.groups: list[int] = []

    def __call__(self, finished: Sequence[Finished]) -> None:
        self.groups.append(len(finished))
        for end in finished:
            offset = end.ticket.position.offset
            assert offset not in self.of, f"{offset} ended twice"
            self.of[offset] = end

    @property
    def convicted(self) -> set[int]:
        return {
            offset
            for offset, end in self.of.items()
            if isinstance(end.outcome, Failed) and end.outcome.reason is Reason.RECORD_POISON
        }

    def count(self) -> Counter[str]:
        """How many ended how: the name of the outcome's type, or its reason."""
        return Counter(
            end.outcome.reason.value
            if isinstance(end.outcome, Failed | Skipped)
            else type(end.outcome).__name__
            for end in self.of.values()
        )


class Port:
    """An engine that only takes rows in; the test decides what becomes of them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.messages: list[int] = []
        self.behind_s = 0.0
        self.condemned: str | None = None

    def submit(self, rows: Sequence[Row], *, behind_s: float) -> None:
        self.behind_s = behind_s
        self.messages.append(len(rows))
        self.rows.extend(rows)

    def condemn(self, why: str) -> None:
        self.condemned = why

    def take(self, many: int = 1 << 30) -> list[Row]:
        taken, self.rows = self.rows[:many], self.rows[many:]
        return taken

    @property
    def names(self) -> list[int]:
        return [name(row) for row in self.rows]


def attached(port: Port, *, window: int = 64) -> Attached:
    return Attached(
        port,
        Window(window),
        ModelStamp(*REF, "cafe", "beef"),
        EngineStamp("CPUExecutionProvider", "cpu", "fp32", fallback=False),
    )


def dispatcher(
    ends: Ends,
    *,
    deferred: list[Callable[[], None]] | None = None,
    priorities: Mapping[str, int] = MappingProxyType({}),
) -> Dispatcher:
    """Return a dispatcher whose deferred calls run at once, or when the test calls them."""

    def at_once(call: Callable[[], None]) -> None:
        call()

    return Dispatcher(
        REF,
        on_outcomes=ends,
        observe=lambda _ref, _message: None,
        numbers=count(1),
        defer=at_once if deferred is None else deferred.append,
        wall_s=lambda: NOW_S,
        priorities=priorities,
    )


def done(*rows: Row) -> Outcomes:
    served = [Done(row.id, 8, 6, 1.0, 2.0, 3.0, b'{"n":%b}' % bytes(row.image)) for row in rows]
    return Outcomes(tuple(served), (), (), 4.0, 5.0, len(rows))


def broken(*rows: Row) -> Outcomes:
    faults = [Fault(row.id, Reason.IMAGE_CORRUPT, "not an image") for row in rows]
    return Outcomes((), tuple(faults), (), 0.0, 0.0, 0)


def raised(*rows: Row) -> Outcomes:
    retries = [Retry(row.id, "the run raised Fail") for row in rows]
    return Outcomes((), (), tuple(retries), 0.0, 0.0, 0)
