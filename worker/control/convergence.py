"""Whether the fleet is what it should be, and in words why not: pure, for people.

What a rollout makes of the same answers is `rollout.py`.
"""

from collections.abc import Mapping

from worker.control.answers import Ack, Answer
from worker.control.messages import DesiredState, Mode, Phase, Rollout, digest
from worker.models.router import NOTHING

_REASON_CHARS = 300


def why_not(
    state: DesiredState, members: Mapping[str, Ack], *, unreadable: Mapping[str, str] = NOTHING
) -> list[str]:
    """Return a sentence for each thing that the fleet lacks to be what the state says; none: it is.

    `members` are those that are alive; `unreadable` more of them, whose answers cannot be read.
    """
    acks = ours(state, members)
    if not acks:
        return ["no worker is alive"]
    content = digest(state)
    lacks = {worker: _lack(state, content, ack) for worker, ack in acks.items()}
    found = [f"{worker}: {lack}" for worker, lack in lacks.items() if lack is not None]
    if state.rollout is not None and state.rollout.phase is Phase.PREPARE:
        found.append(_under_way(state.rollout, acks, unreadable))
    return found


def ours(state: DesiredState, members: Mapping[str, Ack]) -> dict[str, Ack]:
    """Return the answers of this fleet's workers, in the order of their ids.

    Those that are about to stop do not count: nothing is waited for, or heard, of them.
    """
    return {
        worker: ack
        for worker, ack in sorted(members.items())
        if ack.fleet == state.fleet and ack.state != "stopping"
    }


def needed(rollout: Rollout, acks: Mapping[str, Ack], unreadable: Mapping[str, str]) -> int:
    """Return how many must be prepared."""
    if rollout.quorum is not None:
        return rollout.quorum
    return max(1, len(acks) + (len(unreadable) if rollout.mode is Mode.TWO_PHASE else 0))


def said(ack: Ack) -> str:
    """Return what a worker said last, on one line: its answer, code and reason, if it gave them."""
    told = [ack.answer.value, *(text for text in (ack.code, ack.reason) if text)]
    return on_one_line(": ".join(told))


def on_one_line(told: str) -> str:
    """Return words on one line that is not too long."""
    text = " ".join(told.split())
    return text if len(text) <= _REASON_CHARS else f"{text[: _REASON_CHARS - 3]}..."


def _lack(state: DesiredState, content: str, ack: Ack) -> str | None:
    assert state.generation is not None
    observed = ack.observed if ack.epoch == state.epoch else None
    if ack.answer is Answer.NACK and ack.code is not None and ack.code.startswith("state."):
        lack = f"refuses what it read ({said(ack)}); serves {_serves(ack)}"
    elif observed is None or observed < state.generation:
        lack = f"has not seen generation {state.generation} yet ({said(ack)})"
    elif observed > state.generation:
        lack = f"has seen generation {observed}, which is newer"
    elif ack.answer is Answer.NACK:
        lack = f"refuses generation {state.generation} ({said(ack)}); serves {_serves(ack)}"
    elif ack.answer is Answer.PENDING:
        lack = f"is not done with generation {state.generation} ({said(ack)})"
    elif ack.digest != content:
        lack = f"serves other content, by {_serves(ack)}"
    elif ack.state == "draining":
        lack = f"is draining; {ack.in_flight} records are in flight"
    else:
        return None
    return lack


def _serves(ack: Ack) -> str:
    return "its settings" if ack.generation is None else f"generation {ack.generation}"


def _under_way(rollout: Rollout, acks: Mapping[str, Ack], unreadable: Mapping[str, str]) -> str:
    prepared = [worker for worker, ack in acks.items() if ack.prepared == rollout.id]
    waiting = [w for w in acks if w not in prepared and w not in rollout.admitted]
    text = (
        f"rollout {rollout.id} of {rollout.model} {rollout.version}: "
        f"{len(prepared)} of {needed(rollout, acks, unreadable)} {rollout.mode.done}"
    )
    return f"{text}; waiting for their turn: {', '.join(waiting)}" if waiting else text
