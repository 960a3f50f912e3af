"""A fleet of three workers under command: records sent, versions swapped, answers timed.

Workers, operator and model repository are those of the integration tests.
"""

import itertools
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import redis

from benchmarks import topics
from benchmarks.age import Sender, arrivals, until
from benchmarks.cases import demo_digits, photographs
from benchmarks.served import Account, Following, Row, gap_of
from tests.broker import Topics
from tests.fleets import Fleet
from tests.workers import Crew, Settings, Worker, crew_in
from worker.control import edits
from worker.control.answers import Answer
from worker.control.messages import DesiredState
from worker.control.operator import Operator
from worker.control.progress import Outcome, Progress
from worker.local.stack import Stack

WORKERS = 3
WARM_S = 1.0
"""Of a stretch at a rate: it does not count, and no swap begins in it."""
POLL_S = 2.0
"""`control.poll_s`: long enough to tell a nudge from the timer, short enough to wait for it."""
VERSIONS = ("1", "2", "3")
_HELD = 2
"""`models.max_loaded`: one version that serves, one kept warm; a third one must be loaded."""
_ENTRIES = 10_000
_REST_S = 0.3
"""After a swap, so that records come by the new version."""
_SETTLE_S = 30.0
_LINGER_MS = 20
"""librdkafka sends one request for each partition and wait. At 7,000 records a second the broker
took 100 us of a record with its default of 5 ms, 80 with 20, and the steady p50 age was lower."""
_CONVERGED_S = 600.0
"""On a busy machine a load that steps back takes minutes."""
_LOOK_S = 0.05
_USER = "bench"
"""Of the workers in Redis, and their password."""
LOAD, IN_TURN, WARM, ROLLBACK = "load", "load in turn", "warm", "rollback"
"""A load by all workers at once; by one after the other, in two phases; a warm version; back."""


class Setup(NamedTuple):
    """What is served to whom."""

    key: str
    title: str
    model: str
    pictures: Sequence[bytes]
    linger_ms: float
    cap: int
    ahead: int
    """Records of a backlog."""


class Step(NamedTuple):
    """A swap that is to be made."""

    kind: str
    version: str | None
    """None: roll back."""


class Change(NamedTuple):
    """A swap that was made."""

    kind: str
    generation: int
    written_ms: int
    """Redis's clock, as all clocks here the machine's own."""
    answered_ms: Mapping[str, int]
    """Worker -> when it said that it is done."""
    gaps_s: Sequence[float]
    """What the workers measured of the switch."""

    @property
    def took_ms(self) -> int:
        return max(self.answered_ms.values()) - self.written_ms

    @property
    def span_ms(self) -> tuple[int, int]:
        return self.written_ms, max(self.answered_ms.values())


class Stretch(NamedTuple):
    """Records sent, swaps made meanwhile, and what came of it."""

    rows: Sequence[Row]
    changes: Sequence[Change]
    due_s: Sequence[float]
    first: int
    """Number of the record that was due first."""
    late_s: float
    """How late the producer was, at the worst."""


def digits(models: Path) -> Setup:
    """The demo's digits, 1 and 2; 3 is 2 again."""
    case = demo_digits()
    shutil.copytree(models / "digits" / "2", models / "digits" / "3")
    title = "the demo's digits, tiny PNGs: a load costs little"
    return Setup("digits", title, "digits", case.pictures, _LINGER_MS, case.cap, 12_000)


def squeezenet(assets: Path, models: Path) -> Setup:
    """Squeezenet and photographs: one content under three version numbers."""
    case = photographs(assets, models)
    for version in VERSIONS[1:]:
        shutil.copytree(models / case.model / "1", models / case.model / version)
    title = "squeezenet and photographs: a load costs something"
    return Setup("squeezenet", title, case.model, case.pictures, case.linger_ms, case.cap, 240)


def cycle() -> Iterator[Step]:
    """Yield swaps for ever: one that must load, back to the one before, forth again."""
    versions = itertools.cycle((*VERSIONS[1:], VERSIONS[0]))
    for kind, version in zip(itertools.cycle((LOAD, IN_TURN)), versions, strict=False):
        yield Step(kind, version)
        yield Step(ROLLBACK, None)
        yield Step(WARM, version)


class Stopped(Exception):  # noqa: N818 - it is asked for
    """Swaps that are under way are not waited for any more."""


class Commanded(Fleet):
    """A fleet that serves one model, for a benchmark."""

    model = "digits"

    def __init__(self, url: str, name: str, folder: Path) -> None:
        super().__init__(url, name, folder)
        self.stopped = threading.Event()
        """Set: `swap` raises Stopped at its next look at the answers."""

    def settings(self, **control: object) -> Settings:
        return {
            **super().settings(username=_USER, password=_USER, poll_s=POLL_S, **control),
            "kafka": {"session_timeout_ms": 30_000},
            "models": {
                "repository": str(self.models),
                "default": self.model,
                "active": {self.model: VERSIONS[0]},
                "max_loaded": _HELD,
            },
        }

    def swap(self, steps: Iterable[Step], gaps: Callable[[], Sequence[float]]) -> list[Change]:
        """Make swaps one after the other, each waited for; `gaps` is asked after each."""

        async def swapped(operator: Operator) -> list[Change]:
            made = [await self._swapped(operator, step, gaps) for step in steps]
            entries = await operator.history(_ENTRIES)
            written_ms = {entry.generation: entry.at_ms for entry in entries}
            return [each._replace(written_ms=written_ms[each.generation]) for each in made]

        return self.run(swapped)

    def allowed(self) -> dict[int, str]:
        """Return the version that each generation serves."""
        states = self.history().items()
        active = {number: state.models[self.model].active for number, state in states}
        return {0: VERSIONS[0], **active}

    async def _swapped(
        self, operator: Operator, step: Step, gaps: Callable[[], Sequence[float]]
    ) -> Change:
        change = await operator.change(
            lambda state, now_ms: self._edited(state, now_ms, step), step.kind
        )
        said_ms: dict[tuple[str, int | None], int] = {}

        def looked(progress: Progress) -> None:
            if self.stopped.is_set():
                raise Stopped
            for worker, ack in progress.look.members.items():
                if ack.answer is Answer.ACK:
                    said_ms.setdefault((worker, ack.observed), ack.sent_at_ms)

        end = await operator.wait(change, deadline_s=_CONVERGED_S, tell=looked)
        if end.outcome is not Outcome.CONVERGED:
            raise SystemExit(f"a swap did not succeed, {end.outcome}: {end.reasons}")
        time.sleep(_REST_S)  # noqa: ASYNC251 - nothing else runs on this loop
        last = end.look.generation
        answered_ms = {worker: at for (worker, observed), at in said_ms.items() if observed == last}
        return Change(step.kind, change.after.generation or 0, 0, answered_ms, gaps())

    def _edited(self, state: DesiredState, now_ms: int, step: Step) -> DesiredState:
        if step.version is None:
            return edits.rollback(state, self.model)
        sha256 = self.sha256(step.version, model=self.model)
        terms = edits.Terms(uuid.uuid4().hex, now_ms) if step.kind == IN_TURN else None
        return edits.activate(state, self.model, step.version, sha256=sha256, terms=terms)

    def _first(self) -> DesiredState:
        known = {self.model: {VERSIONS[0]: self.sha256(VERSIONS[0], model=self.model)}}
        active = {self.model: VERSIONS[0]}
        return edits.first_state(self.name, self.name, active, self.model, versions=known)


class Run:
    """Three workers, what is sent to them and what comes back."""

    def __init__(self, stack: Stack, setup: Setup, fleet: Commanded, crew: Crew) -> None:
        names = topics.make(stack, f"{fleet.name}-{time.time_ns()}")
        self.setup = setup
        self.fleet = fleet
        self.account = Account()
        self._stack = stack
        self._crew = crew
        self._names = names
        where = Topics(stack.bootstrap_servers, *names, names[0], topics.PARTITIONS)
        settings = {**fleet.settings(), "batch": {"max_size": setup.cap}}
        self.workers = [crew.start(where, settings) for _ in range(WORKERS)]
        self._sender = Sender(stack.bootstrap_servers, where.input, setup.pictures, setup.linger_ms)
        self._following = Following(stack, where.output)
        self._gaps: dict[Worker, float] = {}

    @property
    def lost(self) -> int:
        return self._sender.count - self.account.count

    def begin(self) -> None:
        """Wait until all serve."""
        for worker in self.workers:
            worker.wait_ready()
        self._sender.send_many(topics.PARTITIONS * 10)
        self._settled()

    def at_rate(
        self, rate: float, *, seed: int, seconds: float = 0.0, steps: Iterable[Step] | None = None
    ) -> Stretch:
        """Send at a rate: for so long, or until all swaps are made, from `WARM_S` on."""
        first = self._sender.count
        due: Iterable[float] = arrivals(rate, seed)
        with self._swapping(steps, tuple, after=int(rate * WARM_S / topics.PARTITIONS)) as swaps:
            going = itertools.takewhile(lambda _: not swaps.done(), due)
            due_s, late_s = self._sender.send_at(until(seconds, due) if steps is None else going)
            changes = swaps.result()
        return Stretch(self._settled(), changes, due_s, first, late_s)

    def backlog(self, *, seconds: float = 0.0, steps: Iterable[Step] | None = None) -> Stretch:
        """Keep a backlog before everybody: for so long, or until all swaps are made."""
        first, each = self._sender.count, self.setup.ahead // topics.PARTITIONS
        with self._swapping(steps, self.gaps, after=each) as swaps:
            self._sender.send_many(self.setup.ahead)
            until_s = time.monotonic() + seconds
            while not swaps.done() or time.monotonic() < until_s:
                least = min(self._sender.count // topics.PARTITIONS - n for n in self._done())
                self._sender.send_many(max(0, each - least) * topics.PARTITIONS)
                time.sleep(_LOOK_S)
            changes = swaps.result()
        return Stretch(self._settled(), changes, (), first, 0.0)

    def gaps(self) -> list[float]:
        """Return what the workers measured of their last switch, where that is new."""
        found = []
        for worker in self.workers:
            gap_s = gap_of(worker.ask("/metrics")[1])
            if gap_s is not None and gap_s != self._gaps.get(worker):
                self._gaps[worker] = gap_s
                found.append(gap_s)
        return found

    def loads_s(self) -> dict[str, list[float]]:
        """Return the seconds of each worker's loads, the first one at its start left out."""
        return {
            str(worker.events("worker starting")[0]["worker"]): [
                event["took_s"] for event in worker.events("engine.loaded")[1:]
            ]
            for worker in self.workers
        }

    def resident_mb(self) -> list[float]:
        """Return the resident megabytes of each worker with its engines."""
        return [
            sum(
                process.memory_info().rss
                for process in (psutil.Process(worker.process.pid), *worker.engines())
            )
            / 1e6
            for worker in self.workers
        ]

    def cpu_s(self) -> float:
        """Return the CPU seconds of all that belongs to the benchmark, so far."""
        ours = [psutil.Process(), *(psutil.Process(w.process.pid) for w in self.workers)]
        ours += [engine for worker in self.workers for engine in worker.engines()]
        ours += [psutil.Process(self._stack.pid(part)) for part in ("broker-1", "redis")]
        # With the children that ended: engines that were replaced.
        return sum(sum(process.cpu_times()[:4]) for process in ours)

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Let workers hear no nudge for the length of a block."""
        redis_says(self._stack, "ACL", "SETUSER", _USER, "resetchannels")
        try:
            yield
        finally:
            allow(self._stack)

    def end(self) -> None:
        """Ask the workers to end; they must drain."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            if code := worker.wait():
                raise SystemExit(f"a worker ended with {code}\n{worker.end_of_log}")

    def remove(self) -> None:
        self._following.close()
        topics.remove(self._stack, self._names)

    @contextmanager
    def _swapping(
        self, steps: Iterable[Step] | None, gaps: Callable[[], Sequence[float]], *, after: int = 0
    ) -> Iterator[Future[list[Change]]]:
        """Make swaps on a thread; `after`: once each partition has so many results more."""
        goal = [done + after for done in self._done()]

        def swapped() -> list[Change]:
            if steps is None:
                return []
            while any(d < g for d, g in zip(self._done(), goal, strict=True)):
                if self.fleet.stopped.wait(_LOOK_S):
                    raise Stopped
            return self.fleet.swap(steps, gaps)

        self.fleet.stopped.clear()
        with ThreadPoolExecutor(1) as pool:
            try:
                yield pool.submit(swapped)
            finally:  # else leaving the pool would wait for all swaps
                self.fleet.stopped.set()

    def _done(self) -> list[int]:
        return self._following.ends()

    def _settled(self) -> list[Row]:
        """Wait until everything has a result; return the results that are new."""
        self._sender.flush()
        rows: list[Row] = []
        until_s = time.monotonic() + _SETTLE_S
        while self.lost and time.monotonic() < until_s:
            self._crew.check()
            time.sleep(_LOOK_S)
            if sum(self._done()) >= self._sender.count:
                came = self._following.read()
                self.account.take(came)
                rows += came
        return rows


@contextmanager
def run_of(
    stack: Stack, folder: Path, make: Callable[[Path], Setup], say: Callable[[str], None]
) -> Iterator[Run]:
    """Have a fleet for the length of a block."""
    assert stack.redis_url is not None
    allow(stack)
    fleet = Commanded(stack.redis_url, f"bench-{folder.name}", folder)
    setup = make(fleet.models)
    fleet.model = setup.model
    say(f"\n{setup.key}: {setup.title}; {WORKERS} workers of one lane")
    with crew_in(folder) as crew:
        run = Run(stack, setup, fleet, crew)
        try:
            run.begin()
            yield run
            run.end()
        finally:
            crew.end()
            run.remove()


def allow(stack: Stack) -> None:
    """Let the workers' user do everything."""
    redis_says(stack, "ACL", "SETUSER", _USER, "on", f">{_USER}", "~*", "&*", "+@all")


def redis_says(stack: Stack, *words: str) -> None:
    assert stack.redis_url is not None
    with redis.Redis.from_url(stack.redis_url) as client:
        client.execute_command(*words)
