"""What an operator sees of a fleet, and how far a change of it has come: pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from worker.control.answers import Ack, Answer
from worker.control.convergence import why_not
from worker.control.messages import DesiredState, Mode, Phase, Rollout

_NO_STATE_YET = "no state yet: workers serve what their settings say; the first change begins one"


class Look(NamedTuple):
    """The fleet at one moment."""

    state: DesiredState | None
    """None: none is stored, or none that can be read."""
    broken: str | None
    """Why what is stored cannot be read."""
    generation: int | None
    """Of what is stored, also where that is broken; None: none can be read."""
    epoch: str
    """As the generation; "": none."""
    members: Mapping[str, Ack]
    """Those that are alive, by id."""
    unreadable: Mapping[str, str]
    """Worker -> why its answer cannot be read."""
    now_ms: int
    """Redis's clock."""

    @property
    def fresh(self) -> bool:
        """Nobody has said yet what the fleet should be: none is stored, and no worker knows one."""
        nothing = self.state is None and self.broken is None
        return nothing and not any(ack.epoch for ack in self.members.values())

    @property
    def stuck(self) -> str | None:
        """Why no state will be there that the fleet could be, unless somebody commands one.

        Who is not there yet may know one: a Redis that was emptied has lost its members too. So may
        who is there and cannot be read.
        """
        if self.unreadable or not self.members:
            return None
        if self.fresh:
            return _NO_STATE_YET
        known = [ack.observed or 0 for ack in self.members.values() if ack.epoch]
        if self.broken is None or any((self.generation or 0) < observed for observed in known):
            return None  # it is there, or a worker puts its own back
        return f"{self.broken}\nno worker replaces it: any command with --supersede does"

    @property
    def lacks(self) -> list[str]:
        """What the fleet lacks to be what its state says, in words; none: it has converged."""
        if self.fresh:
            return [_NO_STATE_YET]
        if self.state is None:
            return [self.broken or "no desired state is stored: workers put theirs back soon"]
        unreadable = [f"{worker}: {why}" for worker, why in self.unreadable.items()]
        return [*unreadable, *why_not(self.state, self.members, unreadable=self.unreadable)]

    @property
    def refusing(self) -> list[str]:
        """The workers that refuse the very state that is stored."""
        if self.state is None:
            return []
        now = (Answer.NACK, self.state.epoch, self.state.generation)
        return [
            worker
            for worker, ack in self.members.items()
            if (ack.answer, ack.epoch, ack.observed) == now
        ]


class Changed(NamedTuple):
    """What a change came to."""

    before: DesiredState | None
    """None: there was no state yet."""
    after: DesiredState
    """What was before, where there was nothing to change."""
    written: bool
    """False: nothing to change, or only tried."""

    @property
    def rollout(self) -> Rollout | None:
        """The rollout that this change began."""
        old = self.before.rollout if self.before else None
        new = self.after.rollout
        begun = new is not None and (old is None or old.id != new.id)
        return new if begun else None

    @property
    def activates(self) -> Mapping[str, str]:
        """Model -> version that this change is to make active."""
        if self.rollout is not None:
            two_phase = self.rollout.mode is Mode.TWO_PHASE
            return {self.rollout.model: self.rollout.version} if two_phase else {}
        old = self.before.models if self.before else {}
        return {
            name: model.active
            for name, model in self.after.models.items()
            if name not in old or old[name].active != model.active
        }


class Outcome(StrEnum):
    WAITING = "waiting"
    CONVERGED = "converged"
    REFUSED = "refused"
    """Every worker has answered, and at least one refuses; or one does, when the time is over."""
    ABORTED = "aborted"
    """The rollout was given up."""
    OVERTAKEN = "overtaken"
    """Another change took the place of this one."""
    LATE = "late"
    """The time is over and it has not converged."""


class Progress(NamedTuple):
    """How far a change has come."""

    outcome: Outcome
    look: Look
    reasons: tuple[str, ...]
    """Why it is that, in words; none when it has converged."""


def progress_of(change: Changed | None, look: Look, *, late: bool) -> Progress:
    """Return how far a change has come by what is seen now; `late`: its time is over.

    None: how far the fleet has come to be what is stored, whoever wrote that.
    """
    ended = None if change is None else _ended(change, look)
    if ended is not None:
        return ended
    lacks, refusing = tuple(look.lacks), look.refusing
    outcome = Outcome.WAITING
    if not lacks and (change is None or _seen(change, look)):
        outcome = Outcome.CONVERGED
    elif refusing and (late or len(refusing) == len(lacks)):
        outcome = Outcome.REFUSED
    elif late:
        outcome = Outcome.LATE
    return Progress(outcome, look, lacks)


def _seen(change: Changed, look: Look) -> bool:
    """Whether the change is what is stored, or under it.

    Else the state was lost since (emptied, or an old backup): workers put it back.
    """
    return (look.generation or 0) >= (change.after.generation or 0)


def _ended(change: Changed, look: Look) -> Progress | None:
    """Return how a change ended that can come true no more."""
    state, rollout = look.state, change.rollout
    if state is None or not _seen(change, look):
        return None
    by = f"by generation {state.generation} of {state.written_by or 'nobody'}"
    if state.epoch != change.after.epoch:
        return Progress(Outcome.OVERTAKEN, look, (f"{by}, of another epoch",))
    now = state.rollout
    if rollout is not None and (now is None or now.id != rollout.id):
        return Progress(Outcome.OVERTAKEN, look, (by,))
    if rollout is not None and now is not None and now.phase is Phase.ABORTED:
        return Progress(Outcome.ABORTED, look, (now.reason or "it does not say why",))
    undone = _undone(change, state)
    return Progress(Outcome.OVERTAKEN, look, (f"{by}: {undone}",)) if undone else None


def _undone(change: Changed, state: DesiredState) -> str | None:
    """Say which version that the change made active is not active any more."""
    if change.rollout and state.rollout and state.rollout.phase is Phase.PREPARE:
        return None
    for name, version in change.activates.items():
        active = state.models[name].active if name in state.models else "none"
        if active != version:
            return f"{name} {active} is active, not {version}"
    return None
