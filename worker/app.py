"""The one place that knows everything: builds the worker, starts and stops it, in order."""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Coroutine, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, TypeVar

import structlog

from worker.config_sections import Settings
from worker.control.fixed import Fixed
from worker.control.memory import Memory
from worker.control.messages import settings_state
from worker.control.reconciler import Reconciler
from worker.errors import BrokerUnavailable, SettingsError
from worker.fleet import Host
from worker.inference.budget import budget_of
from worker.inference.devices import Devices, devices_of
from worker.inference.dispatcher import Finished
from worker.inference.feed import Job
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
from worker.models.cache import cache_of
from worker.models.footprint import needed_memory
from worker.models.options import Listeners, RegistryOptions
from worker.models.registry import Registry
from worker.models.repository import Repository, demo_repository
from worker.pipeline import Pipeline
from worker.process import NOT_DRAINED, settle_memory, signals
from worker.profiler import Profiler
from worker.protocol.failpoints import Failpoints
from worker.protocol.messages import Outcomes
from worker.protocol.survey import NO_DRIVER
from worker.telemetry.health import Health, State
from worker.telemetry.metrics import Metrics
from worker.types import ModelRef

_RETRY_S = 2.0
_FAILED_DRAIN_S = 3.0
_DRAIN_SHARE = 0.5
"""Of the deadline of a drain that what is in flight may take: a fifth is for commits, and the rate
is a mean."""
_LOOK_S = 0.2
_ENGINES_DEADLINE_S = 5.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


class _Agent(Protocol):
    """Who decides what is served."""

    @property
    def started(self) -> asyncio.Event:
        """Is set when the first state was carried out."""

    async def run(self) -> None: ...

    def changed(self) -> None: ...

    async def leave(self) -> None: ...


class _Crew(NamedTuple):
    """What decides, and has, the models that are served; there before any connection to Kafka."""

    registry: Registry
    host: Host
    agent: _Agent
    following: asyncio.Task[None]


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
        with signals(self._stop, deadline_s=settings.shutdown.drain_deadline_s):
            try:
                port = await health.start()
                log.info("worker starting", worker=self._id, http=f"{settings.http.host}:{port}")
                return await self._serve(until_idle_s)
            finally:
                await health.stop()

    async def _serve(self, until_idle_s: float | None) -> int:
        memory = await self._unless_stopped(asyncio.to_thread(needed_memory, self._settings))
        if memory is None:
            return 0
        try:
            scarce = memory.check()
        except SettingsError as error:
            if self._settings.control.url is None:
                raise
            scarce = str(error)  # the fleet may want other models than the settings name
        if scarce:
            log.warning("memory is scarce", why=scarce)
        devices = await self._unless_stopped(self._devices())
        if devices is None:
            return 0
        registry = self._registry(devices, memory.instances)
        host = Host(registry, self._state)
        agent = self._agent(registry, host)
        following = asyncio.create_task(agent.run(), name="agent")
        crew = _Crew(registry, host, agent, following)
        try:
            data_dir = self._settings.data_dir
            async with Profiler(data_dir, lambda: registry.engines, self._metrics, worker=self._id):
                prepared = await self._unless_stopped(self._prepared(crew))
                if prepared is None:
                    return 0  # stopped before anything was taken in
                facts, producer = prepared
                return await self._consume(crew, facts, producer, until_idle_s=until_idle_s)
        finally:
            following.cancel()
            await asyncio.wait((following,))
            await agent.leave()
            await registry.close(_ENGINES_DEADLINE_S)

    async def _consume(
        self, crew: _Crew, facts: TopicFacts, producer: Producer, *, until_idle_s: float | None
    ) -> int:
        settings = self._settings
        bound = Bound(
            max_records=settings.limits.in_flight_records,
            max_bytes=settings.limits.in_flight_bytes,
            max_s=settings.limits.in_flight_s,
            floor=1,  # the host sets it by what is loaded
            drain_s=settings.shutdown.drain_deadline_s * _DRAIN_SHARE,
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
        self._pipeline = pipeline = self._new_pipeline(crew.registry, facts, consumer, owned)
        self._metrics.in_flight_records.set_function(lambda: bound.records)
        self._metrics.in_flight_bytes.set_function(lambda: bound.size_bytes)
        membership = Membership(
            consumer,
            owned,
            crew.registry,
            self._state,
            self._metrics,
            drain_deadline_s=settings.shutdown.drain_deadline_s,
            exit_on_loss=settings.engine.gpu_loss == "exit",
        )
        crew.host.serving(pipeline, membership, bound)
        settle_memory()
        loops = [
            asyncio.create_task(pipeline.run(), name="pipeline"),
            asyncio.create_task(delivery.run(), name="commit-timer"),
            asyncio.create_task(membership.run(), name="membership"),
        ]
        deadline_s = settings.shutdown.drain_deadline_s
        ending = (*loops, owned.failed, crew.following)
        try:
            await self._until_stopped(ending, pipeline, until_idle_s)
        except BaseException:
            deadline_s = min(deadline_s, _FAILED_DRAIN_S)  # what failed will hardly drain
            raise
        finally:
            crew.host.stopping = True
            crew.agent.changed()
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

    async def _devices(self) -> Devices:
        """Return the GPUs for engines. Raises DeviceError: those that are required are not here."""
        devices = await asyncio.to_thread(devices_of, self._settings.engine)
        if devices.chosen:
            log.info("devices", chosen=[device._asdict() for device in devices.chosen])
        elif devices.problem not in {None, NO_DRIVER}:
            log.warning("no GPU is usable: engines run on the CPU", why=devices.problem)
        return devices

    def _registry(self, devices: Devices, on_cpu: int | None) -> Registry:
        settings = self._settings
        location = settings.models.repository
        if location is None:
            log.info("models.repository is not set: serving the demo's own models")
        repository = Repository(
            demo_repository() if location is None else location,
            cache=cache_of(settings),
            seen_file=settings.data_dir / "seen.json",
        )
        return Registry(
            repository,
            budget_of(settings),
            options=RegistryOptions.of(
                settings, on_cpu=on_cpu, failpoint=self._failpoint, devices=devices
            ),
            spawn=spawn_process,
            tell=Listeners(self._finished, self._withdrawn, self._batch_ran),
            metrics=self._metrics,
        )

    def _batch_ran(self, ref: ModelRef, outcomes: Outcomes) -> None:
        if outcomes.batch_size:
            self._metrics.batch_rows.observe(outcomes.batch_size)
            took_s = (outcomes.run_ms + outcomes.heads_ms) / 1e3
            self._metrics.batches.ran(str(ref), outcomes.batch_size, took_s, cap=outcomes.cap)

    def _finished(self, finished: Sequence[Finished]) -> None:
        assert self._pipeline is not None
        self._pipeline.finish(finished)

    def _withdrawn(self, jobs: Sequence[Job]) -> None:
        assert self._pipeline is not None
        self._pipeline.reroute(jobs)

    def _agent(self, registry: Registry, host: Host) -> _Agent:
        """Return who decides what is served: the fleet's control channel, or the settings."""
        control, models = self._settings.control, self._settings.models
        state = settings_state(models.active, models.default, fleet=control.fleet)
        reconciler = Reconciler(registry, max_loaded=models.max_loaded)
        if control.url is None:
            return Fixed(reconciler, host, state)
        from worker.control.agent import (  # noqa: PLC0415 - redis-py takes as long as all of aiokafka
            Agent,
            Identity,
        )
        from worker.control.channel import Channel  # noqa: PLC0415 - same

        return Agent(
            Identity(self._id, version("darkroom")),
            Channel(control),
            reconciler,
            host,
            memory=Memory(self._settings.data_dir, control.fleet),
            settings_state=state,
            settings=control,
        )

    async def _models_ready(self, crew: _Crew) -> None:
        """Wait until the first state was carried out.

        Raises ModelError when the settings' models cannot be served; what the control channel
        names and cannot be served is answered there, and waited for.
        """
        self._state.unready("models", "loading")
        started = asyncio.create_task(crew.agent.started.wait(), name="models")
        await asyncio.wait((started, crew.following), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if crew.following.done():
            crew.following.result()
        if crew.registry.ready:
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

    async def _prepared(self, crew: _Crew) -> tuple[TopicFacts, Producer]:
        """Load the models; then ask for our topics and start a producer until brokers answer."""
        self._state.unready("group", "not joined yet")
        await self._models_ready(crew)
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
