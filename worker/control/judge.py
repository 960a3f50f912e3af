"""What one worker makes of what it read where the desired state should be: pure.

Whatever that is, nothing is unloaded for it; and where the key is missing, broken or older than
what this worker knows, it says what to put back. Must not know how a state is carried out.
"""

from dataclasses import dataclass
from typing import NamedTuple

from worker.control.answers import Code
from worker.control.documents import parse_state, stored_names
from worker.control.messages import DesiredState, digest
from worker.errors import StateError


class Known(NamedTuple):
    """The newest state that this worker has taken, from the control channel or its disk."""

    epoch: str
    generation: int
    digest: str
    document: bytes
    """Its canonical bytes."""


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    restore: bytes | None = None
    """The document to put back by the compare-and-set; None: nothing is to be put back."""
    expected: int | None = None
    """The generation that it replaces; None: there is none that can be read."""


@dataclass(frozen=True)
class New(_Verdict):
    """To be carried out."""

    state: DesiredState


@dataclass(frozen=True)
class Same(_Verdict):
    """What this worker knows."""


@dataclass(frozen=True)
class Missing(_Verdict):
    """No state at all: Redis is new, or was emptied."""


@dataclass(frozen=True)
class Refused(_Verdict):
    """Not to be carried out; what is served goes on."""

    code: Code
    reason: str


Verdict = New | Same | Missing | Refused
"""A closed union, matched exhaustively."""


def judge(data: bytes | None, fleet: str, known: Known | None) -> Verdict:
    """Say what a worker of this fleet makes of what it read (None: there is nothing)."""
    if data is None:
        return Missing(restore=known.document if known else None)
    if known is not None and data == known.document:
        return Same()
    try:
        state = parse_state(data)
    except StateError as error:
        return _behind(known, stored_names(data)[0], Code.STATE_INVALID, str(error))
    return _judge(state, fleet, known)


def _judge(state: DesiredState, fleet: str, known: Known | None) -> Verdict:
    if state.fleet != fleet:
        reason = f"the desired state is of fleet {state.fleet}, this worker is of {fleet}"
        return Refused(Code.STATE_FLEET, reason)
    if known is None:
        return New(state)
    if state.epoch != known.epoch:
        return _other_epoch(state, known)
    return _same_epoch(state, known)


def _other_epoch(state: DesiredState, known: Known) -> Verdict:
    if known.epoch in state.supersedes:
        return New(state)
    if state.epoch in parse_state(known.document).supersedes:
        reason = f"epoch {state.epoch} is older than this worker's, {known.epoch}"
        return _behind(known, state.generation, Code.STATE_STALE, reason)
    reason = (
        f"epoch {state.epoch} does not supersede {known.epoch}, of which this worker knows "
        f"generation {known.generation}: a state to be taken must name it under supersedes (a "
        f"worker forgets what it knew when control/{state.fleet}.json is removed from its data_dir "
        "while it is stopped)"
    )
    return Refused(Code.STATE_EPOCH, reason)


def _same_epoch(state: DesiredState, known: Known) -> Verdict:
    assert state.generation is not None
    if state.generation > known.generation:
        return New(state)
    if state.generation < known.generation:
        reason = f"generation {state.generation} is older than {known.generation}, taken before"
        return _behind(known, state.generation, Code.STATE_STALE, reason)
    found = digest(state)
    if found == known.digest:
        return Same()
    # Neither is put over the other: no worker can say which of the two was meant.
    reason = (
        f"generation {state.generation} has the digest {found[:12]}, and had {known.digest[:12]} "
        "when it was taken: any command makes a new generation of it"
    )
    return Refused(Code.STATE_CONFLICT, reason)


def _behind(known: Known | None, stored: int | None, code: Code, reason: str) -> Refused:
    """Refuse what is older than what this worker knows, or broken, and put that back.

    A broken state with a higher generation stays: it may be of a later release than this worker.
    """
    if known is None or (stored is not None and stored >= known.generation):
        return Refused(code, reason)
    return Refused(code, reason, restore=known.document, expected=stored)
