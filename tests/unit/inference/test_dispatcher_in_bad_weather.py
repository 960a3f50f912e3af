"""Random worlds of broken engines and records: none lost, none doubled, no innocent blamed."""

import logging
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.inference.jobs import (
    Ends,
    Port,
    attached,
    broken,
    dispatcher,
    done,
    jobs,
    name,
    raised,
)
from worker.inference.dispatcher import Dispatcher
from worker.protocol.messages import Row


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of engines die here; their log lines are of no interest."""
    wrapper = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=wrapper)
    yield
    structlog.reset_defaults()


class World(NamedTuple):
    """What goes wrong, by the number of the record and of the engine."""

    killers: frozenset[int]
    raisers: frozenset[int]
    corrupt: frozenset[int]
    sick_lives: frozenset[int]
    """Engines that fail at everything. Two, for the third makes a last record guilty (stated)."""
    sick_raises: bool
    killed_from_outside: frozenset[int]
    seed: int

    @property
    def guilty(self) -> frozenset[int]:
        return (self.killers | self.raisers) - self.corrupt


numbers = st.frozensets(st.integers(0, 39), max_size=6)
worlds = st.builds(
    World,
    killers=numbers,
    raisers=numbers,
    corrupt=numbers,
    sick_lives=st.frozensets(st.integers(0, 12), max_size=2),
    sick_raises=st.booleans(),
    killed_from_outside=st.frozensets(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 1 << 30),
)


def live(work: Dispatcher, world: World, life: int, port: Port) -> bool:
    """Live one engine's life; return whether it died (else there is nothing left to do)."""
    chance = random.Random(world.seed + life)
    sick = life in world.sick_lives
    while port.rows and port.condemned is None:
        chance.shuffle(port.rows)
        batch = port.take(1 if port.rows[0].alone else chance.randint(1, 5))
        bad = [row for row in batch if name(row) in world.corrupt]
        rows = [row for row in batch if row not in bad]
        if bad:
            work.outcomes(port, broken(*bad))
        if not rows:
            continue
        kills = any(name(row) in world.killers for row in rows)
        if kills or (sick and not world.sick_raises) or _struck(world, life, chance, rows):
            other_lane = port.take(chance.randint(0, 3)) if not rows[0].alone else []
            work.detach(port, {row.id for row in (*rows, *other_lane)}, "SIGSEGV")
            return True
        if sick or any(name(row) in world.raisers for row in rows):
            # As the engine does: rows of a run that raised run alone; none passes, or it convicts.
            work.outcomes(port, raised(*rows))
        else:
            work.outcomes(port, done(*rows))
    if port.condemned is not None:
        work.detach(port, (), "condemned")
        return True
    return False


def _struck(world: World, life: int, chance: random.Random, rows: list[Row]) -> bool:
    """Whether somebody kills this engine from outside (but no record twice: that would be fate)."""
    return life in world.killed_from_outside and not rows[0].alone and chance.random() < 0.5


def live_until_quiet(work: Dispatcher, world: World, first: int) -> int:
    """Give it engines until one has nothing left to do, or a hundred have died of the same few."""
    for life in range(first, first + 100):
        port = Port()
        work.attach(attached(port, window=16))
        if not live(work, world, life, port):
            work.detach(port, (), "stopped")
            return life + 1
    return first + 100


@settings(deadline=None)
@given(world=worlds)
def test_every_record_has_one_outcome_and_only_the_guilty_are_blamed(world: World) -> None:
    ends = Ends()
    work = dispatcher(ends)
    work.submit(jobs(*range(40)))
    life = live_until_quiet(work, world, 0)
    assert ends.convicted <= world.guilty
    # Should only guilty ones be left, each waits for a witness; here they come.
    for witness in range(100, 112):
        work.submit(jobs(witness))
        life = live_until_quiet(work, world, life)
    assert set(ends.of) == {*range(40), *range(100, 112)}
    assert ends.convicted == world.guilty
    assert ends.count()["image.corrupt"] == len(world.corrupt)


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30), raises=st.booleans())
def test_when_everything_fails_nobody_is_ever_blamed(*, seed: int, raises: bool) -> None:
    nothing: frozenset[int] = frozenset()
    world = World(nothing, nothing, nothing, frozenset(range(60)), raises, nothing, seed)
    ends = Ends()
    work = dispatcher(ends)
    work.submit(jobs(*range(10)))
    for life in range(60):
        port = Port()
        work.attach(attached(port))
        assert live(work, world, life, port)
        assert not work.ready
    assert ends.of == {}
    assert work.in_flight == 10


class Pool:
    """Several engines at a time; chance says which does something next, and which device fails."""

    def __init__(self, work: Dispatcher, world: World, engines: int, *, failing: float) -> None:
        self.work, self.world, self.failing = work, world, failing
        self.chance = random.Random(world.seed)
        self.lives: dict[Port, int] = {}
        self.began = 0
        for _ in range(engines):
            self.begin()

    def begin(self) -> None:
        port = Port()
        self.lives[port], self.began = self.began, self.began + 1
        self.work.attach(attached(port, window=self.chance.choice((4, 8))))

    def until_quiet(self) -> None:
        """Let engines act, each that dies followed by another, until nothing is left to do.

        Or until a few dozen have died of the same few.
        """
        last = self.began + 40
        while self.began < last:
            busy = [port for port in self.lives if port.rows or port.condemned is not None]
            if not busy:
                return
            self.act(self.chance.choice(busy))

    def act(self, port: Port) -> None:
        work, world, chance = self.work, self.world, self.chance
        if port.condemned is not None:
            self.bury(port, ())
            return
        chance.shuffle(port.rows)
        rows = port.take(1 if port.rows[0].alone else chance.randint(1, 5))
        life = self.lives[port]
        sick = life in world.sick_lives
        if chance.random() < self.failing:
            self.bury(port, rows if chance.random() < 0.5 else (), by_device=True)
        elif bad := [row for row in rows if name(row) in world.corrupt]:
            work.outcomes(port, broken(*bad))
            port.rows += [row for row in rows if row not in bad]
        elif (
            any(name(row) in world.killers for row in rows)
            or (sick and not world.sick_raises)
            or _struck(world, life, chance, rows)
        ):
            other_lane = [] if rows[0].alone else port.take(chance.randint(0, 3))
            self.bury(port, (*rows, *other_lane))
        elif sick or any(name(row) in world.raisers for row in rows):
            work.outcomes(port, raised(*rows))
        else:
            work.outcomes(port, done(*rows))

    def bury(self, port: Port, held: Sequence[Row], *, by_device: bool = False) -> None:
        del self.lives[port]
        self.work.detach(port, {row.id for row in held}, "SIGSEGV", by_device=by_device)
        self.begin()


@settings(deadline=None)
@given(world=worlds, engines=st.integers(2, 3))
def test_with_several_engines_only_the_guilty_are_blamed_too(world: World, engines: int) -> None:
    ends = Ends()
    work = dispatcher(ends)
    pool = Pool(work, world, engines, failing=0.0)
    work.submit(jobs(*range(40)))
    pool.until_quiet()
    assert ends.convicted <= world.guilty
    for witness in range(100, 124):
        work.submit(jobs(witness))
        pool.until_quiet()
    assert set(ends.of) == {*range(40), *range(100, 124)}
    assert ends.convicted == world.guilty
    assert ends.count()["image.corrupt"] == len(world.corrupt)


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30), engines=st.integers(1, 3), failing=st.floats(0.05, 0.95))
def test_whatever_devices_do_no_record_is_lost_or_blamed(
    seed: int, engines: int, failing: float
) -> None:
    nothing: frozenset[int] = frozenset()
    world = World(nothing, nothing, nothing, nothing, seed % 2 == 0, nothing, seed)
    ends = Ends()
    work = dispatcher(ends)
    pool = Pool(work, world, engines, failing=failing)
    for first in range(0, 60, 10):
        work.submit(jobs(*range(first, first + 10)))
        pool.until_quiet()
    assert len(ends.of) + work.in_flight == 60
    pool.failing = 0.0
    pool.until_quiet()
    assert ends.count() == {"Predicted": 60}
