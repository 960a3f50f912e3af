"""The one place that knows everything: builds the worker, starts and stops it, in order."""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from worker.config import Settings
from worker.control.messages import desired
from worker.control.reconciler import reconcile
from worker.errors import BrokerUnavailable
from worker.inference.budget import budget_of, limits_of
from worker.inference.dispatcher import Finished
from worker.inference.process import spawn_process
from worker.kafka.consumer import Consumer
from worker.kafka.delivery import AtLeastOnce
from worker.kafka.envelope import parse
from worker.kafka.ledger import Bound
from worker.kafka.outbox import Outbox
from worker.kafka.owned import Owned
from worker.kafka.producer import Producer
from worker.kafka.resolve import Resolver
from worker.kafka.topics import TopicFacts, inspect_topics
from worker.membership import Membership
from worker.models.registry import EngineOptions, Registry
from worker.models.repository import Repository, demo_repository
from worker.pipeline import Pipeline
from worker.protocol.failpoints import Failpoints
from worker.protocol.messages import Outcomes
from worker.telemetry.health import Health, State
from worker.telemetry.metrics import Metrics
from worker.types import ModelRef

_RETRY_S = 2.0
_FAILED_DRAIN_S = 3.0
_ONE_SIGNAL_S = 0.5
_GC_ALLOCATIONS = 20_000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BUFFER_BYTES = 32 << 20
_KEPT_BYTES = 64 << 20
_LOOK_S = 0.2
_ENGINES_DEADLINE_S = 5.0
_EXIT_SLACK_S = 15.0

NOT_DRAINED = 7

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Worker:
    """One worker, from its settings to its exit code."""

    def __init__(self, settings: Settings, *, failpoint: str | None = None) -> None:
        self._settings = settings
        self._failpoint = failpoint
        self._failpoints = Failpoints(failpoint)
        self._metrics = Metrics()
        self._state = State()
        self._id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._pipeline: Pipeline | None = None
        self._stop = asyncio.Event()

    async def run(self, *, until_idle_s: float | None = None) -> int:
        """Serve until a signal (or until idle for so long); return the exit code of the contract.

        Raises DarkroomError, with its exit code, for what cannot be served at all.
        """
        settings = self._settings
        health = Health(
            self._metrics, self._state, host=settings.http.host, port=settings.http.port
        )
        with _signals(self._stop, deadline_s=settings.shutdown.drain_deadline_s):
            try:
                port = await health.start()
                log.info("worker starting", worker=self._id, http=f"{settings.http.host}:{port}")
                return await self._serve(until_idle_s)
            finally:
                await health.stop()

    async def _serve(self, until_idle_s: float | None) -> int:
        registry = self._registry()
        try:
            prepared = await self._unless_stopped(self._prepared(registry))
            if prepared is None:
                return 0  # stopped before anything was taken in
            facts, producer = prepared
            return await self._consume(registry, facts, producer, until_idle_s=until_idle_s)
        finally:
            await registry.close(_ENGINES_DEADLINE_S)

    async def _consume(
        self,
        registry: Registry,
        facts: TopicFacts,
        producer: Producer,
        *,
        until_idle_s: float | None,
    ) -> int:
        settings = self._settings
        bound = Bound(
            max_records=settings.limits.in_flight_records,
            max_bytes=settings.limits.in_flight_bytes,
            max_s=settings.limits.in_flight_s,
            floor=4 * registry.capacity_rows,
        )
        consumer = Consumer(
            settings.kafka,
            drain_deadline_s=settings.shutdown.drain_deadline_s,
            batch_max_bytes=settings.limits.in_flight_bytes,
        )
        delivery = AtLeastOnce(
            producer,
            consumer,
            commit_interval_s=settings.kafka.commit_interval_ms / 1000,
            bound=bound,
            metrics=self._metrics,
            failpoints=self._failpoints,
        )
        owned = Owned(delivery, bound, metrics=self._metrics, failpoints=self._failpoints)
        self._pipeline = pipeline = self._new_pipeline(registry, facts, consumer, owned)
        self._metrics.in_flight_records.set_function(lambda: bound.records)
        self._metrics.in_flight_bytes.set_function(lambda: bound.size_bytes)
        membership = Membership(consumer, owned, registry, self._state, self._metrics)
        _settle_memory()
        loops = [
            asyncio.create_task(pipeline.run(), name="pipeline"),
            asyncio.create_task(delivery.run(), name="commit-timer"),
            asyncio.create_task(membership.run(), name="membership"),
        ]
        deadline_s = settings.shutdown.drain_deadline_s
        try:
            await self._until_stopped((*loops, owned.failed), pipeline, until_idle_s)
        except BaseException:
            deadline_s = min(deadline_s, _FAILED_DRAIN_S)  # what failed will hardly drain
            raise
        finally:
            drained = await self._drain(pipeline, owned, consumer, loops, deadline_s=deadline_s)
            await producer.stop()
        return 0 if drained else NOT_DRAINED

    def _new_pipeline(
        self, registry: Registry, facts: TopicFacts, consumer: Consumer, owned: Owned
    ) -> Pipeline:
        settings = self._settings
        forward_headers = frozenset(settings.kafka.forward_headers)
        return Pipeline(
            consumer=consumer,
            parse=partial(
                parse,
                image_max_bytes=settings.limits.image_max_bytes,
                forward_headers=forward_headers,
            ),
            resolver=Resolver(),
            registry=registry,
            owned=owned,
            outbox=Outbox(
                facts,
                worker=self._id,
                omit_failures=settings.results.failures == "omit",
                forward_headers=forward_headers,
            ),
            metrics=self._metrics,
        )

    async def _until_stopped(
        self, loops: Sequence[asyncio.Future[None]], pipeline: Pipeline, until_idle_s: float | None
    ) -> None:
        """Wait for a signal, for idleness where that was asked, or for a loop that ends."""
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        waited: list[asyncio.Future[Any]] = [*loops, stop]
        look_s = None if until_idle_s is None else _LOOK_S
        try:
            while True:
                await asyncio.wait(waited, timeout=look_s, return_when=asyncio.FIRST_COMPLETED)
                for ended in filter(asyncio.Future.done, loops):
                    ended.result()
                if stop.done():
                    return
                if until_idle_s is not None and pipeline.idle_s >= until_idle_s:
                    log.info("idle", seconds=until_idle_s)
                    return
        finally:
            stop.cancel()

    async def _drain(
        self,
        pipeline: Pipeline,
        owned: Owned,
        consumer: Consumer,
        loops: Sequence[asyncio.Task[None]],
        *,
        deadline_s: float,
    ) -> bool:
        """Stop in order, each step with its deadline; True when nothing was left behind."""
        began_s = time.monotonic()
        self._state.unready("worker", "stopping")
        pipeline.stop()  # nothing more is taken in
        loops[-1].cancel()  # nor joined again
        drained = await owned.drain(deadline_s)  # outcomes, results, commits
        for task in loops:
            task.cancel()
        unfinished = owned.unfinished
        owned.forget()  # nothing more is published of what will be read again
        await consumer.leave()  # others get our partitions at once
        await asyncio.wait(loops, timeout=1.0)
        log.info(
            "worker drained" if drained else "worker not drained: records will be read again",
            unfinished=unfinished,
            seconds=round(time.monotonic() - began_s, 3),
        )
        return drained

    def _registry(self) -> Registry:
        settings = self._settings
        folder = settings.models.repository
        if folder is None:
            log.info("models.repository is not set: serving the demo's own models")
        repository = Repository(
            Path(folder) if folder is not None else demo_repository(),
            settings.data_dir / "seen.json",
        )
        engine = settings.engine
        return Registry(
            repository,
            budget_of(settings),
            options=EngineOptions(
                limits=limits_of(settings),
                policy=engine.policy,
                session=engine.session,
                watchdog_s=None if engine.watchdog_s == "auto" else engine.watchdog_s,
                max_loaded=settings.models.max_loaded,
                failpoint=self._failpoint,
            ),
            spawn=spawn_process,
            on_outcomes=self._finished,
            observe=self._batch_ran,
        )

    def _batch_ran(self, _: ModelRef, outcomes: Outcomes) -> None:
        if outcomes.batch_size:
            self._metrics.batch_rows.observe(outcomes.batch_size)

    def _finished(self, finished: Sequence[Finished]) -> None:
        assert self._pipeline is not None
        self._pipeline.finish(finished)

    async def _load_models(self, registry: Registry) -> None:
        """Load what the settings name. Raises ModelError when a model cannot be served."""
        self._state.unready("models", "loading")
        models = self._settings.models
        failures = await reconcile(desired(models.active, models.default), registry)
        for failure in failures:
            if failure.step.ref.name == models.default or not registry.active:
                raise failure.error
        self._state.ready("models")
        self._state.ready("worker")

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do what may take long; None when a signal came first, then it is cancelled."""
        task = asyncio.create_task(work, name="prepare")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stop.cancel()
            await asyncio.wait((task, stop))

    async def _prepared(self, registry: Registry) -> tuple[TopicFacts, Producer]:
        """Load the models; then ask for our topics and start a producer until brokers answer."""
        self._state.unready("group", "not joined yet")
        await self._load_models(registry)
        while True:
            try:
                facts = await inspect_topics(self._settings.kafka)
                producer = Producer(self._settings.kafka, facts)
                await producer.start()
            except BrokerUnavailable as error:
                self._state.unready("kafka", str(error))
                log.warning("waiting for Kafka", error=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                self._state.ready("kafka")
                return facts, producer


def _settle_memory() -> None:
    """Tune this process's memory for records that come and go."""
    # What is alive now lives as long as the worker: the collector need not look at it again,
    # nor so often at what records leave (measured: 1.4 to 3.9 us a record).
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 50)
    # Buffers of megabytes are needed again at once: giving them back to the system each time costs
    # their page faults (measured: 100 us for a picture of 120 kB, a sixth of the worker's CPU).
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BUFFER_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@contextlib.contextmanager
def _signals(stop: asyncio.Event, *, deadline_s: float) -> Iterator[None]:
    """Drain at the first SIGTERM or SIGINT; end at once at a second, or when the drain hangs."""
    loop = asyncio.get_running_loop()
    last: list[threading.Timer] = []
    asked_s = 0.0

    def asked(name: str) -> None:
        nonlocal asked_s
        if stop.is_set():
            if time.monotonic() - asked_s < _ONE_SIGNAL_S:
                return  # the same one, sent to us and to our process group
            log.warning("second signal: stopping at once", signal=name)
            os._exit(NOT_DRAINED)
        asked_s = time.monotonic()
        log.info("draining", signal=name)
        stop.set()
        timer = threading.Timer(deadline_s + _EXIT_SLACK_S, os._exit, (NOT_DRAINED,))
        timer.daemon = True
        timer.start()
        last.append(timer)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number.name)
    try:
        yield
    finally:
        for timer in last:
            timer.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
