"""What becomes of records whose version has no engine: it is loaded, they go elsewhere, or end.

Every one of them has exactly one outcome in the end, wherever it goes meanwhile.
"""

import asyncio
from collections.abc import Sequence

import structlog

from worker.errors import DarkroomError
from worker.inference.dispatcher import OnWithdrawn
from worker.inference.feed import Job
from worker.models.berth import Berth, Role
from worker.models.berths import Berths
from worker.models.breaker import BreakerState
from worker.models.finding import Ask
from worker.models.loading import Loader
from worker.models.table import Table

_log = structlog.get_logger()


class Waiting:
    """Records that wait for versions. `on_withdrawn` is given those that are to be routed anew."""

    def __init__(
        self, table: Table, berths: Berths, loader: Loader, *, on_withdrawn: OnWithdrawn
    ) -> None:
        self._table = table
        self._berths = berths
        self._loader = loader
        self._on_withdrawn = on_withdrawn
        self._returning: list[Job] = []

    @property
    def returning(self) -> int:
        """Jobs on their way back."""
        return len(self._returning)

    def served(self, name: str) -> bool:
        """Say whether a model has an engine, or gets one on demand; else its fallback has."""
        ref = self._table.serving(name)
        if ref is not None and self._table.is_down(ref):
            ref = self._table.fallback(ref)
        berth = None if ref is None else self._berths.get(ref)
        if berth is None:
            return ref is not None
        if berth.pool is None:
            return berth.state is not BreakerState.OPEN
        return berth.pool.ready

    def admit(self, berth: Berth, jobs: list[Job], now_s: float) -> None:
        """Let jobs wait at their version, and load that when it has no engine.

        With its breaker half open and a fallback there, one of them is let in as a trial and the
        others are routed anew; those that come back insist on it, and are let in.
        """
        berth.used_s = now_s
        on_trial = (
            not berth.trial
            and berth.state is BreakerState.HALF_OPEN
            and self._table.fallback(berth.ref) is not None
        )
        if on_trial:
            berth.trial = True
            self.pass_over()
            self.give_back(jobs[1:])
            jobs = jobs[:1]
        berth.dispatcher.submit(jobs)
        self.demand(berth)

    def pass_over(self) -> None:
        """Keep records from versions that failed too often, where others can serve them."""
        down = {
            berth.ref
            for berth in self._berths
            if berth.restricted and self._table.fallback(berth.ref) is not None
        }
        for ref in self._table.take_down(frozenset(down)):
            _log.warning("model.down", model=str(ref), why=str(self._berths.of(ref).error))
            berth = self._berths.of(ref)
            if not berth.trial:
                # Suspects too: another model's engine is the witness that this one cannot be.
                self.give_back(berth.dispatcher.withdraw(suspects=True, which=_did_not_ask))

    def turn_away(self, berth: Berth) -> None:
        """Have those routed anew whom a version keeps waiting for an engine without need.

        It left service, or has a fallback and failed again after its breaker's time was over. Who
        asked for it stays: there is no other for them, and their guilt is not forgotten.
        """
        elsewhere = berth.role is Role.HELD or (
            berth.reopened and self._table.fallback(berth.ref) is not None
        )
        if elsewhere and (berth.pool is None or not berth.pool.up):
            self.give_back(berth.dispatcher.withdraw(suspects=True, which=_did_not_ask))

    def give_back(self, jobs: Sequence[Job]) -> None:
        """Have jobs routed anew, soon: whoever submits is not called back."""
        if jobs and not self._returning:
            asyncio.get_running_loop().call_soon(self._return)
        self._returning += jobs

    def demand(self, berth: Berth) -> None:
        """Begin to load a version for which records wait, unless that is being seen to."""
        if berth.pool is None and berth.in_flight and not (berth.demand or berth.stopped):
            berth.demand = self._berths.start(self._on_demand(berth), f"demand {berth.ref}")

    def abandon(self, berth: Berth, why: str) -> None:
        """Skip the records that wait for a version."""
        skipped = berth.dispatcher.abandon(why)
        if skipped:
            _log.warning("model.unavailable", model=str(berth.ref), skipped=skipped, why=why)

    def _return(self) -> None:
        jobs, self._returning = self._returning, []
        self._on_withdrawn(jobs)

    async def _on_demand(self, berth: Berth) -> None:
        try:
            while berth.in_flight and berth.pool is None:
                if not self._table.knows(berth.ref):
                    self.abandon(berth, f"{berth.ref} is not one of the fleet's any more")
                    return
                ask = Ask(self._table.digest(berth.ref), berth.number, patient=True)
                try:
                    await self._loader.load(berth, ask)
                except DarkroomError as error:
                    self._not_to_be_had(berth, error)
        finally:
            berth.demand = None

    def _not_to_be_had(self, berth: Berth, error: DarkroomError) -> None:
        """Decide what becomes of those who waited: tried again until the breaker opens, if it may.

        What came though the version was known to be down has nowhere else to go.
        """
        known = self._table.is_down(berth.ref)
        if error is not berth.error and berth.state is not BreakerState.OPEN:
            berth.failed(error)
        if berth.trial:
            berth.trial = False
            self.give_back(berth.dispatcher.withdraw(suspects=True))
        elif known or self._table.fallback(berth.ref) is None:
            self.abandon(berth, str(error))


def _did_not_ask(job: Job) -> bool:
    return job.ticket.route != "asked"
