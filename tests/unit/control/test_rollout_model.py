"""Rollouts under every fault that there is, in any order; then the faults stop."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.control.simulation import (
    MODEL,
    VERSIONS,
    Edit,
    Operator,
    Store,
    Worker,
    first,
    settle,
)
from worker.control import edits
from worker.control.answers import Answer, Code
from worker.control.convergence import why_not
from worker.control.edits import Terms
from worker.control.messages import DesiredState, Phase, Selector, encode_state, frozen

NAMES = ("w-a", "w-b", "w-c", "w-d")
OPERATORS = ("one", "other")

names = st.sampled_from(NAMES)
versions = st.sampled_from(VERSIONS)
selectors = st.sampled_from([Selector(), Selector("w-a"), Selector(labels=frozen({"zone": "b"}))])


@st.composite
def commands(draw: st.DrawFn) -> Edit:
    """What an operator may ask for, possible or not."""
    version, workers = draw(versions), draw(selectors)
    terms = Terms(
        id=f"r-{draw(st.integers(1, 10**9))}",
        started_at_ms=0,
        timeout_s=draw(st.sampled_from([2.0, 600.0])),
        max_preparing=draw(st.integers(1, 3)),
        quorum=draw(st.none() | st.integers(1, 3)),
    )
    some: dict[str, Edit] = {
        "activate": lambda s: edits.activate(s, MODEL, version, sha256=None),
        "roll out": lambda s: edits.activate(s, MODEL, version, sha256=None, terms=terms),
        "reload": lambda s: edits.reload(s, MODEL, terms=terms),
        "pin": lambda s: edits.pin(s, MODEL, version, sha256=None, workers=workers),
        "unpin": lambda s: edits.unpin(s, MODEL, workers),
        "rollback": lambda s: edits.rollback(s, None),
        "pause": lambda s: edits.pause(s, workers),
        "resume": lambda s: edits.resume(s, workers),
        "abort": edits.abort,
    }
    return some[draw(st.sampled_from([*some, "roll out", "roll out", "reload"]))]


class Fleet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.workers: dict[str, Worker] = {}
        self.operators = {name: Operator(name, self.store) for name in OPERATORS}

    @initialize()
    def begin(self) -> None:
        self.store.write(encode_state(first()), expected=None)
        for name in NAMES[:3]:
            self.workers[name] = Worker(name, self.store)
        settle(self.store, self.live)

    @property
    def live(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.alive]

    # What workers do. Nudges come late, twice or never; reads may be old ones.

    @rule(name=names, lag=st.sampled_from([0, 0, 0, 1, 2, 5]))
    def look(self, name: str, lag: int) -> None:
        for worker in self._one(name):
            worker.look(lag)

    @rule(name=names)
    def work(self, name: str) -> None:
        for worker in self._one(name):
            worker.work()

    @rule(name=names)
    def announce(self, name: str) -> None:
        for worker in self._one(name):
            worker.announce()

    @rule(name=names)
    def propose(self, name: str) -> None:
        for worker in self._one(name):
            worker.propose()

    @rule(name=names)
    def write(self, name: str) -> None:
        for worker in self._one(name):
            worker.write()

    @rule(some=st.sets(names, min_size=1), propose=st.booleans())
    def go_on(self, some: set[str], *, propose: bool) -> None:
        for worker in self.live:
            if worker.name in some:
                worker.look()
                worker.work()
                worker.announce()
                worker.propose()
                if propose:
                    worker.write()

    # What operators do; two of them, so that they race.

    @rule(name=st.sampled_from(OPERATORS), command=commands(), at_once=st.booleans())
    def begin_command(self, name: str, command: Edit, *, at_once: bool) -> None:
        def now(state: DesiredState) -> DesiredState:
            edited = command(state)
            if edited.rollout is None or edited.rollout.started_at_ms or edited is state:
                return edited
            return edited._replace(rollout=edited.rollout._replace(started_at_ms=self.store.now_ms))

        self.operators[name].read(now)
        if at_once:
            self.operators[name].write()

    @rule(name=st.sampled_from(OPERATORS))
    def end_command(self, name: str) -> None:
        self.operators[name].write()

    # Faults.

    @precondition(lambda self: len(self.live) > 1)
    @rule(name=names)
    def die(self, name: str) -> None:
        for worker in self._one(name):
            worker.die()

    @rule(name=names)
    def expire(self, name: str) -> None:
        """Forget a member: it died, or Redis was not to be reached for a while."""
        self.store.members.pop(name, None)

    @rule(name=names, remembers=st.booleans())
    def come(self, name: str, *, remembers: bool) -> None:
        """Join, late; or return, with or without what was on its disk."""
        if name not in self.workers:
            self.workers[name] = Worker(name, self.store)
        elif not self.workers[name].alive:
            self.workers[name].start(remembers=remembers)

    @rule(name=names, version=versions, fault=st.sampled_from(["broken", "absent"]))
    def fault(self, name: str, version: str, fault: str) -> None:
        if name in self.workers:
            getattr(self.workers[name], fault).add(version)

    @rule(name=names, version=versions)
    def mend(self, name: str, version: str) -> None:
        if name in self.workers:
            self.workers[name].broken.discard(version)
            self.workers[name].absent.discard(version)

    @precondition(lambda self: any(worker.known for worker in self.live))
    @rule(ago=st.integers(1, 5))
    def lose(self, ago: int) -> None:
        """Flush Redis, or bring an old backup back."""
        self.store.stored = None if ago == 1 else self.store.read(ago - 1)

    @rule(ms=st.sampled_from([100, 1_000]))
    def wait(self, ms: int) -> None:
        self.store.now_ms += ms

    # What holds all the time, beside what the simulation asserts of every write and every step.

    @invariant()
    def nobody_serves_what_no_state_had_made_active_or_pinned_to(self) -> None:
        assert {w.serving for w in self.live} <= {None, *self.store.allowed}

    # What holds once the faults have stopped. What is broken stays so.

    def teardown(self) -> None:
        for name in NAMES:
            if name not in self.workers or not self.workers[name].alive:
                self.store.members.pop(name, None)
        if not self.live or not (self.store.stored or any(worker.known for worker in self.live)):
            return  # nobody is left, or nobody who knew what the fleet should be
        settle(self.store, self.live)
        if any(worker.refused for worker in self.live):
            self._decide_between_two_states_of_one_number()
        self._check_rollout_has_ended_unless_it_waits_for_time()
        self.store.now_ms += 600_001
        settle(self.store, self.live)
        rollout = self._state().rollout
        assert rollout is None or rollout.phase is not Phase.PREPARE
        self._check_convergence()

    def _decide_between_two_states_of_one_number(self) -> None:
        """After a loss, nobody but an operator knows which one was meant; any command says so."""
        assert {w.refused.code for w in self.live if w.refused} == {Code.STATE_CONFLICT}
        operator = self.operators["one"]
        operator.read(lambda state: edits.pause(state, Selector("nobody")))
        operator.write()
        settle(self.store, self.live)
        assert not any(worker.refused for worker in self.live)

    def _check_rollout_has_ended_unless_it_waits_for_time(self) -> None:
        state = self._state()
        rollout = state.rollout
        if rollout is None or rollout.phase is not Phase.PREPARE:
            return
        waits_for_a_repository = any(w.answer is Answer.PENDING for w in self.live)
        needs_more = rollout.quorum is not None and rollout.quorum > len(self.live)
        assert waits_for_a_repository or needs_more, rollout

    def _check_convergence(self) -> None:
        state = self._state()
        refusing = set()
        for worker in self.live:
            assert worker.known is not None
            assert worker.known.document == encode_state(state)
            if worker.answer is Answer.ACK:
                continue
            refusing.add(worker.name)
            bad = worker.broken | worker.absent
            assert bad
            assert state.models[MODEL].active in bad or state.models[MODEL].pins
        lacks = why_not(state, self.store.members)
        assert {lack.partition(":")[0] for lack in lacks} == refusing

    def _state(self) -> DesiredState:
        state = self.store.state()
        assert state is not None
        return state

    def _one(self, name: str) -> list[Worker]:
        """Return the worker of that name, if it lives."""
        return [worker for worker in self.live if worker.name == name]


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
