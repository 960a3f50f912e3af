"""A fleet on a Redis in memory for tests of `darkroom fleet`."""

from collections.abc import Callable
from typing import Any

from typer.testing import Result

from tests.channels import FakeRedis
from tests.unit.control.states import ack
from worker.control.answers import Ack, ModelUse, encode_ack
from worker.control.documents import parse_state
from worker.control.messages import DesiredState, digest, encode_state

Fleet = Callable[..., Result]


def store(redis: FakeRedis, stored: DesiredState) -> None:
    redis.document = encode_state(stored)


def stored(redis: FakeRedis) -> DesiredState:
    assert redis.document is not None
    return parse_state(redis.document)


def say(redis: FakeRedis, *said: Ack) -> None:
    for one in said:
        redis.answers[one.worker] = (redis.now_ms + 30_000, encode_ack(one))


def serving(by: DesiredState, worker: str = "w-1", **changes: Any) -> Ack:
    """Return the answer of a worker that is what this state says."""
    active = by.models["digits"].active
    said = ack(worker, observed=by.generation, generation=by.generation, digest=digest(by))
    use = ModelUse(active, loaded=("1", "2"), state="serving")
    return said._replace(
        models={"digits": use}, provider="CPUExecutionProvider", device="cpu", lag=3, in_flight=2
    )._replace(**changes)
