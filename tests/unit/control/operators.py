"""Operators on a Redis in memory, what they do, and workers that answer as they should."""

from collections.abc import Callable
from typing import Any

from tests.channels import FakeChannel, FakeRedis
from tests.unit.control.states import ack, state
from worker.control import edits
from worker.control.answers import Ack
from worker.control.messages import DesiredState, Selector, digest
from worker.control.operator import Operator

ROLLOUT = "r-1"


def operator_of(redis: FakeRedis, by: str = "me@here") -> Operator:
    return Operator(FakeChannel(redis), by=by, first=lambda: state(generation=0))


def pause(before: DesiredState, _: int) -> DesiredState:
    return edits.pause(before, Selector())


def activate(version: str) -> Callable[[DesiredState, int], DesiredState]:
    return lambda before, _: edits.activate(before, "digits", version, sha256=None)


def two_phase(before: DesiredState, now_ms: int) -> DesiredState:
    terms = edits.Terms(ROLLOUT, now_ms)
    return edits.activate(before, "digits", "2", sha256=None, terms=terms)


def serving(by: DesiredState, worker: str = "w-1", **changes: Any) -> Ack:
    """Return the answer of a worker that is what this state says."""
    said = ack(worker, epoch=by.epoch, observed=by.generation, generation=by.generation)
    return said._replace(digest=digest(by))._replace(**changes)
