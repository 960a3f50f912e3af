"""What an operator does to a fleet: look at it, change it, wait for it. Nothing here prints.

A change reads what is stored, makes the next generation of it and writes that by compare-and-set;
who lost the race reads again. Workers do the rest; to wait is only to read what they answer.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

from worker.control.channel import Entry, Members
from worker.control.documents import parse_state, read_acks, stored_names
from worker.control.messages import DesiredState, encode_state
from worker.control.progress import Changed, Look, Outcome, Progress, progress_of
from worker.control.rollout import following
from worker.errors import CommandError, ControlUnavailable, StateError

Edit = Callable[[DesiredState, int], DesiredState]
"""Makes the next generation of a state; the number is now, in ms of Redis's clock."""

_ATTEMPTS = 50
_BACKOFF_S = (0.005, 0.2)
"""Between attempts: grows from the one to the other, with jitter."""
_LOOK_S = 0.1


def _nobody(progress: Progress) -> None:
    """Tell nobody."""


def _no_longer(_: DesiredState | None) -> float:
    return 0.0


class Port(Protocol):
    """What an operator needs of the control channel; all of it raises ControlUnavailable."""

    async def read(self) -> bytes | None: ...

    async def write(
        self, document: bytes, *, expected: int | None, command: str, by: str
    ) -> bool: ...

    async def members(self) -> Members: ...

    async def history(self, count: int) -> list[Entry]: ...


class Operator:
    """Somebody who commands a fleet."""

    def __init__(self, channel: Port, *, by: str, first: Callable[[], DesiredState]) -> None:
        """Take a connection; `first` makes the state that a fleet without one begins with."""
        self._channel = channel
        self._by = by
        self._first = first

    async def look(self) -> Look:
        """Return what is stored and what the workers say. Raises ControlUnavailable."""
        # Answers first: then none of them can be of a newer state than the one that is read.
        now_ms, answers = await self._channel.members()
        data = await self._channel.read()
        members, unreadable = read_acks(answers)
        state, broken = None, None
        try:
            state = None if data is None else parse_state(data)
        except StateError as error:
            broken = str(error)
        return Look(state, broken, *stored_names(data), members, unreadable, now_ms)

    async def history(self, count: int) -> list[Entry]:
        """Return the last changes, the newest first."""
        return await self._channel.history(count)

    async def change(
        self,
        edit: Edit,
        command: str,
        *,
        expect: int | None = None,
        supersede: bool = False,
        dry_run: bool = False,
    ) -> Changed:
        """Write what `edit` makes of the state, again and again until no other came between.

        `expect`: of this generation only (0: of none). `supersede`: also over what cannot be read,
        and over workers that follow another epoch or a newer generation than what is stored.
        `dry_run`: write nothing.
        Raises CommandError (it cannot be done), StateError, ControlUnavailable.
        """
        for attempt in range(_ATTEMPTS):
            look = await self.look()
            stored = look.generation
            if expect is not None and expect != (stored or 0):
                raise CommandError(f"generation {stored or 'none'} is stored, not {expect}")
            if not supersede:
                _stop_for_newer(look)
            changed = self._changed(look, edit, supersede=supersede)
            if dry_run or not changed.written:
                return changed._replace(written=False)
            document = encode_state(changed.after)
            parse_state(document)  # what no worker could read must not get into the way
            if await self._write(document, stored, command):
                return changed
            await asyncio.sleep(_pause_s(attempt))
        raise CommandError(f"others changed the fleet {_ATTEMPTS} times meanwhile: try again")

    async def _write(self, document: bytes, expected: int | None, command: str) -> bool:
        try:
            return await self._channel.write(
                document, expected=expected, command=command, by=self._by
            )
        except ControlUnavailable as error:
            told = f"{error}; it may have been written all the same: see darkroom fleet history"
            raise ControlUnavailable(told) from error

    async def wait(
        self,
        change: Changed | None,
        *,
        deadline_s: float,
        longer: Callable[[DesiredState | None], float] = _no_longer,
        tell: Callable[[Progress], None] = _nobody,
    ) -> Progress:
        """Wait until it is decided what comes of a change; `tell` of every look meanwhile.

        None: of whatever is stored. `longer`: how long what is stored meanwhile may take, where
        that is more. Raises ControlUnavailable.
        """
        first_s = time.monotonic()
        until_s = first_s + deadline_s
        while True:
            began_s = time.monotonic()
            look = await self.look()
            until_s = max(until_s, first_s + longer(look.state))
            progress = progress_of(change, look, late=began_s >= until_s)
            tell(progress)
            if progress.outcome is not Outcome.WAITING:
                return progress
            took_s = time.monotonic() - began_s
            pause_s = max(_LOOK_S, 5 * took_s)  # a large fleet is asked less often
            await asyncio.sleep(max(0.0, min(pause_s, until_s - time.monotonic())))

    def _changed(self, look: Look, edit: Edit, *, supersede: bool) -> Changed:
        base = _caught_up(look.state or self._first(), look)
        if look.state is None and not supersede:
            _stop_for_others(base, look)
        after = edit(base, look.now_ms)
        if supersede:
            others = {look.epoch, *(ack.epoch for ack in look.members.values())}
            named = {*after.supersedes, *others} - {after.epoch, ""}
            after = after._replace(supersedes=tuple(sorted(named)))
        if after == look.state:
            return Changed(look.state, after, written=False)
        if after.generation == base.generation:
            after = following(after)
        after = after._replace(written_by=self._by, written_at_ms=look.now_ms)
        return Changed(look.state, after, written=True)


def _stop_for_newer(look: Look) -> None:
    """Refuse to build on what is stored while that is broken, or workers follow something newer."""
    if look.broken is not None:
        raise StateError(f"{look.broken}\n--supersede replaces it")
    stored = look.state
    for worker, ack in look.members.items():
        if not ack.epoch:
            continue
        follows = f"worker {worker} follows generation {ack.observed} of epoch {ack.epoch}"
        if stored is None:
            raise CommandError(
                f"no desired state is stored, but {follows}: workers put theirs back soon;"
                " --supersede begins another one"
            )
        if ack.epoch not in {stored.epoch, *stored.supersedes}:
            raise CommandError(
                f"generation {stored.generation} of epoch {stored.epoch} is stored, but"
                f" {follows}: --supersede takes over"
            )
        if ack.epoch == stored.epoch and (ack.observed or 0) > (stored.generation or 0):
            raise CommandError(
                f"generation {stored.generation} is stored, but {follows}: workers put theirs"
                " back soon; --supersede builds on what is stored"
            )


def _stop_for_others(first: DesiredState, look: Look) -> None:
    """Refuse to begin with settings by which workers would stop serving what theirs say."""
    begins = {name: model.active for name, model in first.models.items()}
    for worker, ack in look.members.items():
        for name, use in ack.models.items():
            if use.active not in {None, begins.get(name)}:
                raise CommandError(
                    f"there is no desired state yet, and your settings would begin one with"
                    f" {name} {begins.get(name, 'absent')}, but worker {worker} serves {name}"
                    f" {use.active}: use the settings of the workers (--config, models.active), or"
                    " --supersede"
                )


def _caught_up(state: DesiredState, look: Look) -> DesiredState:
    """Return the content to edit, so that its next generation is above all that was taken.

    Redis may have lost the newest state; a worker that took it refuses another one of its number.
    Of other epochs too: a backup of those may come yet, over which only a higher one is put back.
    """
    acks = look.members.values()
    taken = [ack.observed or 0 for ack in acks]
    return state._replace(generation=max(state.generation or 0, look.generation or 0, *taken))


def _pause_s(attempt: int) -> float:
    least, most = _BACKOFF_S
    return random.uniform(0.5, 1.0) * min(most, least * 2.0**attempt)
