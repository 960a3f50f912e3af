"""What tests of `darkroom fleet` have in common."""

from collections.abc import Callable
from typing import Any

from typer.testing import Result

from tests.unit.control import operators
from worker.control.answers import Ack, ModelUse
from worker.control.messages import DesiredState

Fleet = Callable[..., Result]
"""Runs `darkroom fleet ...` on a Redis in memory."""

KNOWS_NOTHING: dict[str, Any] = {"epoch": "", "observed": None, "generation": None, "digest": None}
"""Of the answer of a worker that has seen no state."""


def serving(by: DesiredState, worker: str = "w-1", **changes: Any) -> Ack:
    """Return the answer of a worker that is what this state says, with all that it may tell."""
    use = ModelUse(by.models["digits"].active, loaded=("1", "2"), state="serving")
    told = {"provider": "CPUExecutionProvider", "device": "cpu", "lag": 3, "in_flight": 2}
    said = operators.serving(by, worker, models={"digits": use}, **told)
    return said._replace(**changes)
