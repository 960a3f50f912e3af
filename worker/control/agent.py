"""A worker's part in its fleet: looks at the desired state, makes it so, answers, steps rollouts.

Redis is asked and told here, and nothing that serves records ever waits for it: what it does not
answer is asked again, while the worker serves on what it has. `judge` decides what to make of what
was read, `rollout.step` what the fleet does next; here is only what must be done about it.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from typing import NamedTuple

import structlog

from worker.config_sections import ControlSettings
from worker.control.answers import BEAT_S, Ack, Answer, Code, better_off, encode_ack
from worker.control.documents import read_acks
from worker.control.judge import Known, Missing, New, Refused, Same, judge
from worker.control.memory import Memory
from worker.control.messages import DesiredState, Phase, digest, encode_state
from worker.control.ports import Host, Port
from worker.control.presence import Presence
from worker.control.reconciler import Reconciler, Report
from worker.control.rollout import step
from worker.control.wanted import wanted
from worker.errors import ControlUnavailable

TTL_S = 15.0
"""A worker that has not answered for so long is no member any more."""
_DRAINING_BEAT_S = 0.5
"""Whoever drains a worker waits for its end."""
_ROLLOUT_LOOK_S = 2.0
_FIRST_LOOK_S = 1.0
_RESTORE_WITHIN_S = 1.0

_log = structlog.get_logger()


class Identity(NamedTuple):
    """Who answers."""

    worker: str
    build: str
    """Its release."""


class _Members(NamedTuple):
    """Who is alive."""

    now_ms: int
    """Redis's clock."""
    acks: Mapping[str, Ack]
    """Worker of this fleet -> what it answered last."""
    unreadable: Mapping[str, str]
    """Others -> why their answers cannot be read."""


class Agent:
    """One worker's member of the fleet. `run` for ever, then `leave`."""

    def __init__(
        self,
        me: Identity,
        channel: Port,
        reconciler: Reconciler,
        host: Host,
        *,
        memory: Memory,
        settings_state: DesiredState,
        settings: ControlSettings,
    ) -> None:
        self._me = me
        self._channel = channel
        self._reconciler = reconciler
        self._host = host
        self._memory = memory
        self._settings_state = settings_state
        self._fleet = settings.fleet
        self._labels = settings.labels
        self._poll_s = settings.poll_s
        self._start_wait_s = settings.start_wait_s
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._state: DesiredState | None = None
        """What this worker is, or is becoming."""
        self._known: Known | None = None
        self._applied: Known | None = None
        self._report: Report | None = None
        """Of the last pass; None while one is under way."""
        self._refused: Refused | None = None
        self._note: str | None = None
        self._becoming: asyncio.Task[None] | None = None
        self._crash: BaseException | None = None
        self._retry_at_s = 0.0
        self._said: tuple[Answer, str | None] | None = None
        self._presence = Presence(holds_s=TTL_S, beat_s=BEAT_S)
        self._warned = False
        """Of GPUs that others have."""
        self._troubles: dict[str, str] = {}
        """Part of us -> what Redis does not do for it now."""
        self._complaints: set[str] = set()
        """Of Redis, that were logged."""
        self._unreadable: Mapping[str, str] = {}
        """Members whose answers could not be read when last looked at -> why."""
        self.started = asyncio.Event()
        """Set when the first state was carried out, or what could be of it."""

    async def run(self) -> None:
        """Follow the desired state until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._channel.watch(self._woken.set), name="control-watch")
                group.create_task(self._beat(), name="control-beat")
                group.create_task(self._follow(), name="control-follow")
        finally:
            if self._becoming is not None:
                self._becoming.cancel()
                await asyncio.wait((self._becoming,))
            await self._reconciler.close()

    async def leave(self) -> None:
        """Say goodbye, so that nobody waits for this worker; then close the channel."""
        with contextlib.suppress(ControlUnavailable):
            await self._channel.depart(self._me.worker)
        await self._channel.aclose()

    def changed(self) -> None:
        """Answer now: something that others see has changed."""
        self._changed.set()

    async def _follow(self) -> None:
        self._take(await self._first_state())
        while True:
            rollout = self._state.rollout if self._state else None
            busy = rollout is not None and rollout.phase is Phase.PREPARE
            pause_s = min(self._poll_s, _ROLLOUT_LOOK_S) if busy else self._poll_s
            await _event(self._woken, pause_s * random.uniform(0.8, 1.2))
            if self._crash is not None:
                raise self._crash
            await self._look()

    async def _first_state(self) -> DesiredState:
        """Return what to begin with: by Redis, else the disk, else (in time) the settings."""
        remembered = await asyncio.to_thread(self._memory.load)
        if remembered is not None:
            self._known = _known(remembered)
        until_s = time.monotonic() + self._start_wait_s
        while True:
            state = await self._first_look(remembered)
            if state is not None:
                return state
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                self._note = "no desired state could be had: serving the versions of its settings"
                _log.warning("control.none", why=self._note, waited_s=self._start_wait_s)
                return self._settings_state
            await _event(self._woken, min(_FIRST_LOOK_S, left_s))

    async def _first_look(self, remembered: DesiredState | None) -> DesiredState | None:
        try:
            verdict = judge(await self._channel.read(), self._fleet, self._known)
            lost = isinstance(verdict, Missing) and await self._others_know()
        except ControlUnavailable as error:
            self._asked("look", error)
            return remembered
        self._asked("look", None)
        self._refuse(verdict if isinstance(verdict, Refused) else None)
        match verdict:
            case New(state):
                return state
            case Missing() if remembered is None and not lost:
                self._note = "there is no desired state yet: serving the versions of its settings"
                _log.info("control.none", why=self._note)
                return self._settings_state
            case Same() | Missing() | Refused():
                pass
        return remembered

    async def _others_know(self) -> bool:
        members = await self._members()
        return any(ack.observed is not None for ack in members.acks.values())

    async def _members(self) -> _Members:
        """Return who is alive of this fleet; warn of those whose answers cannot be read."""
        now_ms, answers = await self._channel.members()
        acks, unreadable = read_acks(answers)
        for worker, why in unreadable.items():
            if self._unreadable.get(worker) != why:
                _log.warning("control.answer-unreadable", worker=worker, why=why)
        self._unreadable = unreadable
        ours = {worker: ack for worker, ack in acks.items() if ack.fleet == self._fleet}
        return _Members(now_ms, ours, unreadable)

    async def _look(self) -> None:
        try:
            await self._heed(await self._channel.read())
            await self._step()
            await self._look_around()
        except ControlUnavailable as error:
            self._asked("look", error)
        else:
            self._asked("look", None)
        failed = self._report is not None and self._report.failures
        if failed and self._becoming is None and time.monotonic() >= self._retry_at_s:
            self._become()  # what failed may pass now: a repository that lagged, a breaker

    async def _heed(self, data: bytes | None) -> None:
        verdict = judge(data, self._fleet, self._known)
        self._refuse(verdict if isinstance(verdict, Refused) else None)
        match verdict:
            case New(state):
                self._take(state)
            case Missing() if self._known is not None:
                _log.warning("control.missing", serving_on=self._known.generation)
            case Same() | Missing() | Refused():
                pass
        if verdict.restore is not None and self._known is not None:
            self._presence.doubt(time.monotonic())  # the members may be lost too
            # Several workers come to it; who is second loses the compare-and-set, harmlessly.
            await asyncio.sleep(random.uniform(0, _RESTORE_WITHIN_S))
            restored = await self._channel.write(
                verdict.restore, expected=verdict.expected, command="restore", by=self._me.worker
            )
            if restored:
                _log.warning("control.restored", generation=self._known.generation)

    def _refuse(self, refused: Refused | None) -> None:
        """Answer that what was read is refused, or (None) that it is not."""
        if refused == self._refused:
            return
        self._refused = refused
        self._changed.set()
        if refused is not None:
            _log.error("control.refused", code=refused.code.value, why=refused.reason)

    async def _step(self) -> None:
        """Move the rollout on, if it is this worker that sees first that it can."""
        state = self._state
        if (
            self._refused is not None
            or state is None
            or state.rollout is None
            or state.rollout.phase is not Phase.PREPARE
        ):
            return
        now_ms, members, unreadable = await self._members()
        whole = self._presence.whole(members, time.monotonic())
        following = step(state, members, now_ms, unreadable=unreadable)
        if following is None or following.rollout is None:
            return
        if not whole and following.rollout.phase is not Phase.ABORTED:
            return  # somebody may be alive who is not among them
        following = following._replace(written_by=self._me.worker, written_at_ms=now_ms)
        written = await self._channel.write(
            encode_state(following),
            expected=state.generation,
            command=f"rollout {state.rollout.id}",
            by=self._me.worker,
        )
        if written:
            self._take(following)

    async def _look_around(self) -> None:
        """Warn once when this worker fell back to the CPU and others of the fleet have a GPU."""
        ack = self._ack()
        if "cpu_fallback" not in ack.devices.values():
            self._warned = False
        elif not self._warned:
            members = await self._members()
            if others := better_off(ack, members.acks):
                self._warned = True
                _log.warning("device.others-have-gpus", others=others, devices=dict(ack.devices))

    def _take(self, state: DesiredState) -> None:
        """Begin to be what the state says; what only an older one wanted is given up."""
        self._state = state
        if state.generation is not None:
            self._known = _known(state)
            self._note = None
        _log.info("control.state", generation=state.generation, written_by=state.written_by)
        self._report = None
        self._become()

    def _become(self) -> None:
        if self._becoming is not None:
            self._becoming.cancel()
        self._becoming = asyncio.create_task(self._make_so(), name="control-reconcile")
        self._becoming.add_done_callback(self._became)
        self._changed.set()

    async def _make_so(self) -> None:
        state = self._state
        assert state is not None
        want = wanted(state, self._me.worker, self._labels)
        self._host.hold(want.hold)
        report = await self._reconciler.apply(want)
        self._report = report
        self._retry_at_s = time.monotonic() + self._poll_s
        self._host.applied()
        self.started.set()
        self._changed.set()
        if not any(not failure.preparing for failure in report.failures):
            self._applied = self._known if state.generation is not None else None
            if state.generation is not None:
                await asyncio.to_thread(self._memory.save, state)

    def _became(self, task: asyncio.Task[None]) -> None:
        if self._becoming is task:
            self._becoming = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = error  # a mistake of ours: the worker must not go on as if all were well
            self._woken.set()

    async def _beat(self) -> None:
        """Answer at once when something changed, and every few seconds to be known alive."""
        pause_s = BEAT_S
        while True:
            await _event(self._changed, pause_s * random.uniform(0.8, 1.0))
            ack = self._ack()
            pause_s = _DRAINING_BEAT_S if ack.state == "draining" else BEAT_S
            try:
                await self._channel.announce(self._me.worker, encode_ack(ack), ttl_s=TTL_S)
            except ControlUnavailable as error:
                self._asked("beat", error)
                continue
            self._asked("beat", None)
            said = (ack.answer, ack.prepared)
            if said != self._said:
                self._said = said
                self._woken.set()  # it may be what a rollout waited for

    def _ack(self) -> Ack:
        answer, code, reason = self._answer()
        applied, report = self._applied, self._report
        return self._host.vitals(
            Ack(
                fleet=self._fleet,
                worker=self._me.worker,
                state="starting",
                epoch=self._known.epoch if self._known else "",
                observed=self._known.generation if self._known else None,
                generation=applied.generation if applied else None,
                digest=applied.digest if applied else None,
                answer=answer,
                code=code,
                reason=reason,
                prepared=report.prepared if report else None,
                proof=report.proof if report else None,
                labels=self._labels,
                build=self._me.build,
                sent_at_ms=int(time.time() * 1000),
            )
        )

    def _answer(self) -> tuple[Answer, Code | None, str | None]:
        if self._refused is not None:
            return Answer.NACK, self._refused.code, self._refused.reason
        if self._report is None or self._note is not None:
            return Answer.PENDING, None, self._note
        failures = self._report.failures
        if not failures:
            return Answer.ACK, None, None
        # A rollout asks about its part: what else is amiss here must not stop it.
        asked = [failure for failure in failures if failure.preparing] or failures
        absent = all(failure.code is Code.MODEL_ABSENT for failure in asked)
        worst = next((f for f in asked if f.code is not Code.MODEL_ABSENT), asked[0])
        reason = "; ".join(f"{failure.ref}: {failure.error}" for failure in failures)
        return (Answer.PENDING if absent else Answer.NACK), worst.code, reason

    def _asked(self, part: str, error: ControlUnavailable | None) -> None:
        """Note what came of what a part of us asked of Redis: its trouble stays until it has it."""
        if error is None:
            self._troubles.pop(part, None)
        else:
            why = self._troubles[part] = str(error)
            self._presence.doubt(time.monotonic())  # answers expire while nobody can renew them
            if why not in self._complaints:  # outages are told by the subscription, each time
                self._complaints.add(why)
                _log.warning("control.unreachable", why=why)
        self._host.unreachable(next(iter(self._troubles.values()), None))


def _known(state: DesiredState) -> Known:
    assert state.generation is not None
    return Known(state.epoch, state.generation, digest(state), encode_state(state))


async def _event(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, no longer than this, and clear it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()
