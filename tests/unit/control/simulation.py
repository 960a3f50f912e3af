"""A fleet without Redis, engines or time: what its workers make of states, one event at a time.

The decisions are the real ones (`judge`, `wanted`, `step`); only loading is pretended.
"""

from collections.abc import Callable

from tests.unit.control.states import DIGEST
from worker.control.answers import Ack, Answer, Code
from worker.control.documents import parse_state
from worker.control.judge import Known, New, Refused, judge
from worker.control.messages import (
    DesiredState,
    Mode,
    ModelState,
    Phase,
    Rollout,
    digest,
    encode_state,
    frozen,
)
from worker.control.rollout import step
from worker.control.wanted import wanted
from worker.errors import CommandError

FLEET, MODEL = "default", "digits"
VERSIONS = ("1", "2", "3")
Edit = Callable[[DesiredState], DesiredState]


def first() -> DesiredState:
    """Return generation 1: version 1 is active."""
    model = ModelState(frozen(dict.fromkeys(VERSIONS, DIGEST)), "1")
    return DesiredState(FLEET, "e-1", 1, MODEL, frozen({MODEL: model}))


class Store:
    """The key, under its compare-and-set; every document that it ever held; and the members."""

    def __init__(self) -> None:
        self.stored: bytes | None = None
        self.held: list[bytes] = []
        self.allowed: set[str] = {"1"}
        """Versions that some state made active or pinned to."""
        self.members: dict[str, Ack] = {}
        self.now_ms = 0

    def write(self, document: bytes, *, expected: int | None) -> bool:
        new, old = parse_state(document), self.state()
        assert encode_state(new) == document
        if (old and old.generation) != expected:
            return False
        if old is not None and (new.generation or 0) <= (old.generation or 0):
            return False
        self.stored = document
        self.held.append(document)
        for model in new.models.values():
            self.allowed |= {model.active, *(pin.version for pin in model.pins)}
        return True

    def write_next(self, state: DesiredState, *, expected: int) -> bool:
        """Write what an edit or a step made: always the number after the one it was made of."""
        assert state.generation == expected + 1
        return self.write(encode_state(state), expected=expected)

    def state(self) -> DesiredState | None:
        return None if self.stored is None else parse_state(self.stored)

    def read(self, lag: int = 0) -> bytes | None:
        """Return what is stored, or what was so many documents ago."""
        return self.stored if lag == 0 else self.held[max(0, len(self.held) - 1 - lag)]


class Worker:
    """One worker: what it has taken, loaded, and would answer."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self.labels = {"zone": name[-1]}
        self.store = store
        self.broken: set[str] = set()
        self.absent: set[str] = set()
        self.alive = True
        self.disk: DesiredState | None = None
        """The state that it served by last, as it comes back with."""
        self.start(remembers=False)

    def start(self, *, remembers: bool) -> None:
        self.alive = True
        self.loaded: dict[str, int] = {}
        self.serving: str | None = None
        self.known: Known | None = None
        self.state: DesiredState | None = None
        self.applied: DesiredState | None = None
        self.refused: Refused | None = None
        self.proposed: DesiredState | None = None
        self.answer = Answer.PENDING
        self.code: Code | None = None
        self.prepared: str | None = None
        if not remembers:
            self.disk = None
        elif self.disk is not None:
            self._take(self.disk)

    def die(self) -> None:
        self.alive = False

    def look(self, lag: int = 0) -> None:
        verdict = judge(self.store.read(lag), FLEET, self.known)
        self.refused = verdict if isinstance(verdict, Refused) else None
        if isinstance(verdict, New):
            before = self.known
            self._take(verdict.state)
            assert before is None or before.generation < (verdict.state.generation or 0)
        elif verdict.restore is not None:
            self.store.write(verdict.restore, expected=verdict.expected)

    def _take(self, state: DesiredState) -> None:
        assert state.generation is not None
        self.state = state
        self.known = Known(state.epoch, state.generation, digest(state), encode_state(state))
        self.answer, self.code, self.prepared = Answer.PENDING, None, None

    def work(self) -> None:
        """Make it so, as far as it can be."""
        if self.state is None:
            return
        want = wanted(self.state, self.name, self.labels)
        model, part = want.models[MODEL], want.preparation
        serve = model.routes.serving or ""
        code = self._load(serve, model.reload)
        if code is None:
            self.serving, self.applied, self.disk = serve, self.state, self.state
            if part is not None and part.turn:
                code = self._load(part.ref.version, 0)
        if part is not None:
            self.prepared = part.rollout if part.ref.version in self.loaded else None
        else:
            self.prepared = want.prepared if code is None else None
        kept = {serve, model.keep, part and part.ref.version, self.serving}
        self.loaded = {v: number for v, number in self.loaded.items() if v in kept}
        self.code = code
        answers = {None: Answer.ACK, Code.MODEL_ABSENT: Answer.PENDING}
        self.answer = answers.get(code, Answer.NACK)

    def _load(self, version: str, number: int) -> Code | None:
        if self.loaded.get(version, -1) >= number:
            return None
        if version in self.broken:
            return Code.MODEL_INVALID
        if version in self.absent:
            return Code.MODEL_ABSENT
        self.loaded[version] = number
        return None

    def announce(self) -> None:
        refused, applied = self.refused, self.applied
        self.store.members[self.name] = Ack(
            fleet=FLEET,
            worker=self.name,
            state="serving",
            epoch=self.known.epoch if self.known else "",
            observed=self.known.generation if self.known else None,
            generation=applied.generation if applied else None,
            digest=digest(applied) if applied else None,
            answer=Answer.NACK if refused else self.answer,
            code=refused.code if refused else self.code,
            reason=refused.reason if refused else self.code,
            prepared=self.prepared,
        )

    def propose(self) -> None:
        """Work out what follows; it is written later, or never."""
        self.proposed = None
        if self.refused is None and self.state is not None:
            members = dict(self.store.members)
            self.proposed = step(self.state, members, self.store.now_ms)
            if self.proposed is not None:
                check_step(self.state, self.proposed, members)

    def write(self) -> None:
        """Write what was proposed, if nothing came between."""
        proposed, self.proposed = self.proposed, None
        if proposed is not None and proposed.generation is not None:
            named = proposed._replace(written_by=self.name, written_at_ms=self.store.now_ms)
            self.store.write_next(named, expected=proposed.generation - 1)


class Operator:
    """Somebody who commands; between reading and writing anything may happen."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self.store = store
        self.intended: DesiredState | None = None

    def read(self, edit: Edit) -> None:
        state = self.store.state()
        self.intended = None
        if state is None or state.generation is None:
            return
        if any((ack.observed or 0) > state.generation for ack in self.store.members.values()):
            return  # workers put the newest back first
        try:
            edited = edit(state)
        except CommandError:
            return
        if edited is not state:
            self.intended = edited._replace(written_by=self.name)

    def write(self) -> None:
        intended, self.intended = self.intended, None
        if intended is not None and intended.generation is not None:
            self.store.write_next(intended, expected=intended.generation - 1)


def check_step(before: DesiredState, after: DesiredState, members: dict[str, Ack]) -> None:
    """Hold a step to what rollouts promise, whatever the fleet looks like."""
    old, new = before.rollout, after.rollout
    assert old is not None
    assert new is not None
    assert old.phase is Phase.PREPARE
    prepared = [ack for ack in members.values() if ack.prepared == old.id]
    refused = [
        worker
        for worker, ack in members.items()
        if ack.answer is Answer.NACK and ack.prepared != old.id
        if worker in old.admitted and ack.observed == before.generation
    ]
    assert new.phase is Phase.ABORTED or not refused
    if new.phase is Phase.DONE:
        assert len(prepared) >= (len(members) if old.quorum is None else old.quorum) > 0
        assert after.models[MODEL].active == (
            old.version if old.mode is Mode.TWO_PHASE else before.models[MODEL].active
        )
        return
    assert after.models == before.models
    if new.phase is Phase.PREPARE:
        _check_admission(old, new, members)


def _check_admission(old: Rollout, new: Rollout, members: dict[str, Ack]) -> None:
    assert new.admitted[: len(old.admitted)] == old.admitted
    preparing = [w for w in new.admitted if w in members and members[w].prepared != old.id]
    assert 0 < len(preparing) <= new.max_preparing
    assert len(set(new.admitted)) == len(new.admitted)


def settle(store: Store, workers: list[Worker]) -> None:
    """Let the live workers go on without any fault, until nothing changes any more."""
    for _ in range(60):
        before = (store.stored, dict(store.members))
        for worker in workers:
            worker.look()
            worker.work()
            worker.announce()
            worker.propose()
            worker.write()
        if (store.stored, store.members) == before:
            return
    raise AssertionError("it never ends")
