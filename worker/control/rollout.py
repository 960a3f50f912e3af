"""One step of a rollout: a pure function that every worker runs, so that nobody leads.

Whoever sees first that there is a step writes it by compare-and-set; who comes second loses, and
nothing is harmed. A rollout is part of the state, so it survives whoever began it. Must not know
what is loaded, nor how: only what the members answer.
"""

from collections.abc import Mapping

from worker.control.answers import Ack, Answer
from worker.control.convergence import needed, on_one_line, ours, said
from worker.control.fields import REASON_MAX_CHARS
from worker.control.messages import DesiredState, Mode, ModelState, Phase, Rollout
from worker.models.router import NOTHING

_NAMED_MAX = 10


def step(
    state: DesiredState,
    members: Mapping[str, Ack],
    now_ms: int,
    *,
    unreadable: Mapping[str, str] = NOTHING,
) -> DesiredState | None:
    """Return the state that follows (who writes it says so in it); None: there is none yet.

    `members` are those that are alive, by Redis's clock, as `now_ms` is. `unreadable`: more of
    them, and why nobody can tell what they answer. In two phases they count, as not prepared:
    nobody switches before all have proven the version. A rolling reload proves nothing, and goes
    on without them: they do their part when its end is in the state. In this order:

    - Nothing follows a rollout that has ended, nor a state that a member has seen a newer one of.
    - A member that refuses its part aborts the rollout, and so does the timeout.
    - When all members, or the quorum, are prepared, what was prepared comes into force.
    - Else members are admitted, in the order of their ids, while fewer than `max_preparing` of
      those that were are still at it. Who was admitted stays so, also when it dies and returns.
    """
    rollout = state.rollout
    if rollout is None or rollout.phase is not Phase.PREPARE:
        return None
    acks = ours(state, members)
    if any(_ahead(ack, state) for ack in acks.values()):
        return None
    end = _end(state, rollout, acks, now_ms, unreadable)
    if end is not None:
        return end
    unprepared = _unprepared(rollout, acks)
    preparing = sum(worker in rollout.admitted for worker in unprepared)
    waiting = [worker for worker in unprepared if worker not in rollout.admitted]
    turn = waiting[: max(0, rollout.max_preparing - preparing)]
    if not turn:
        return None
    return following(state)._replace(rollout=rollout._replace(admitted=(*rollout.admitted, *turn)))


def following(state: DesiredState) -> DesiredState:
    """Return the same content as the next generation."""
    assert state.generation is not None
    return state._replace(generation=state.generation + 1)


def aborted(state: DesiredState, reason: str) -> DesiredState:
    """Return the state with its rollout given up; what is active stays so."""
    assert state.rollout is not None
    rollout = state.rollout._replace(phase=Phase.ABORTED, reason=reason[:REASON_MAX_CHARS])
    return following(state)._replace(rollout=rollout)


def switched(
    model: ModelState, version: str, *, generation: int | None, new_heads: bool
) -> ModelState:
    """Return the model with another version active by this generation, and a way back."""
    assert generation is not None
    return model._replace(
        active=version, previous=model.active, activated=generation, new_heads=new_heads
    )


def _end(
    state: DesiredState,
    rollout: Rollout,
    acks: Mapping[str, Ack],
    now_ms: int,
    unreadable: Mapping[str, str],
) -> DesiredState | None:
    unprepared = _unprepared(rollout, acks)
    refusals = [
        f"{worker}: {said(ack)}"
        for worker, ack in unprepared.items()
        if worker in rollout.admitted and _refuses(ack, state)
    ]
    if refusals:
        return aborted(state, f"refused by {'; '.join(_listed(refusals))}")
    if now_ms - rollout.started_at_ms > rollout.timeout_s * 1000:
        return aborted(state, _timed_out(rollout, acks, unprepared, unreadable))
    prepared = len(acks) - len(unprepared)
    if prepared >= needed(rollout, acks, unreadable):
        return _in_force(state, rollout)
    return None


def _unprepared(rollout: Rollout, acks: Mapping[str, Ack]) -> dict[str, Ack]:
    return {worker: ack for worker, ack in acks.items() if ack.prepared != rollout.id}


def _ahead(ack: Ack, state: DesiredState) -> bool:
    """Whether a member has seen a newer state than this: it will be read, or put back."""
    assert state.generation is not None
    return ack.epoch == state.epoch and (ack.observed or 0) > state.generation


def _refuses(ack: Ack, state: DesiredState) -> bool:
    """Whether it refuses this very state.

    What it refused before (an older generation, another epoch) says nothing of this one. One that
    is admitted and cannot prepare refuses each generation again until the rollout is aborted.
    """
    answered = ack.epoch == state.epoch and ack.observed == state.generation
    return answered and ack.answer is Answer.NACK


def _in_force(state: DesiredState, rollout: Rollout) -> DesiredState:
    new = following(state)._replace(rollout=rollout._replace(phase=Phase.DONE))
    model = state.models[rollout.model]
    match rollout.mode:
        case Mode.TWO_PHASE if rollout.version == model.active:
            return new
        case Mode.TWO_PHASE:
            model = switched(
                model, rollout.version, generation=new.generation, new_heads=rollout.new_heads
            )
        case Mode.ROLLING:
            model = model._replace(reload=rollout.reload)
    return new.with_model(rollout.model, model)


def _timed_out(
    rollout: Rollout,
    acks: Mapping[str, Ack],
    unprepared: Mapping[str, Ack],
    unreadable: Mapping[str, str],
) -> str:
    after = f"not done within {rollout.timeout_s:g} s"
    if not acks and not unreadable:
        return f"{after}: no worker was alive"
    prepared = len(acks) - len(unprepared)
    missing = [
        f"{worker} ({said(ack)})"
        if worker in rollout.admitted
        else f"{worker} (waiting for its turn; {said(ack)})"
        for worker, ack in unprepared.items()
    ]
    if rollout.mode is Mode.TWO_PHASE or not acks:  # else it goes on without them
        missing += [f"{worker} ({on_one_line(why)})" for worker, why in unreadable.items()]
    done = f"{prepared} of {needed(rollout, acks, unreadable)} {rollout.mode.done}"
    return "; ".join([f"{after}: {done}", *_listed(missing)])


def _listed(items: list[str]) -> list[str]:
    """Return no more than a reason has room for."""
    more = len(items) - _NAMED_MAX
    return [*items[:_NAMED_MAX], f"and {more} more"] if more > 0 else items
