"""The engine's host: it owns the channel, loads one version, and serves it with its lanes.

Works alike in a process of its own and on a thread of a test: it touches no signals and never ends
the process.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

import numpy as np

from worker.engine.batcher import Bounds, Role
from worker.engine.lanes import Floor, Lane
from worker.engine.loader import load_model, loaded, service_ms, sizing_of
from worker.engine.model import Model
from worker.engine.profile import Profiler
from worker.engine.queue import Queue, Work
from worker.engine.reserve import Reserve
from worker.engine.rows import Rows
from worker.errors import ChannelError, DeviceError, ModelError, SettingsError
from worker.protocol.channel import Channel
from worker.protocol.failpoints import Failpoints
from worker.protocol.messages import (
    Bye,
    Load,
    LoadFailed,
    Row,
    SetLimits,
    StartProfile,
    Stopped,
    Submit,
    Trouble,
    Warmed,
)
from worker.protocol.page import RUN_LANES, Page
from worker.types import Limits

_NICE = 10
_POOL_SIZES = ("intra_op_num_threads", "inter_op_num_threads")


class Ending(Enum):
    """Why an engine ended."""

    STOPPED = "it said Stopped: everything submitted has had its outcome"
    REFUSED = "it said LoadFailed"
    GONE = "the worker has gone"


def serve(sock: socket.socket, page: Page, *, on_gone: Callable[[], None] | None = None) -> Ending:
    """Serve one engine channel from Load to its end, and close it; blocks.

    `on_gone` is called as soon as the worker is seen to have gone, before lanes are waited for: a
    process ends itself there, whatever its lanes are doing. Raises ChannelError for messages out
    of order, DeviceError when the device was lost (the worker was told, by a Trouble), and
    whatever unexpected a lane raised: such an engine is broken.
    """
    channel = Channel(sock)
    try:
        return _serve(channel, page, on_gone)
    except OSError:  # of a send: the worker has gone
        return Ending.GONE
    finally:
        channel.close()


def _serve(channel: Channel, page: Page, on_gone: Callable[[], None] | None) -> Ending:
    load = channel.receive()
    if load is None:
        return Ending.GONE
    if not isinstance(load, Load):
        raise ChannelError(f"{type(load).__name__} before Load")
    started_s = time.monotonic()
    try:
        model = _loaded_aside(load)
    except (ModelError, DeviceError, SettingsError, OSError) as error:
        channel.send(_refusal(error, load))
        return Ending.REFUSED
    channel.send(loaded(model, load.limits, load_ms=(time.monotonic() - started_s) * 1e3))
    host = _Host(channel, page, model, load)
    try:
        host.start()
        return host.receive(on_gone)
    finally:
        host.abandon()


def _loaded_aside(load: Load) -> Model:
    """Load on a thread that ends with it: a thread that has stepped back cannot come forward again.

    Nor could a pool of ONNX Runtime, whose threads are as nice as the one that starts them.
    """
    pooled = any(load.session.get(name, "1") != "1" for name in _POOL_SIZES)
    step_back = _step_back if load.quiet and not pooled else None
    with ThreadPoolExecutor(1, "load", initializer=step_back) as thread:
        return thread.submit(load_model, load).result()


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere the whole process would
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _refusal(error: Exception, load: Load) -> LoadFailed:
    match error:
        case ModelError(message=message, file=file, field=field):
            return LoadFailed("model", message, file, field)
        case OSError():
            return LoadFailed("model", f"cannot be read: {error}", load.folder, None)
        case SettingsError():
            return LoadFailed("settings", str(error), None, None)
        case _:
            return LoadFailed("device", str(error), None, None)


class _Host:
    def __init__(self, channel: Channel, page: Page, model: Model, load: Load) -> None:
        self._channel = channel
        self._sizing = sizing_of(model, load.limits, tell=self._bound, warmed=self._tell_sizes)
        self._queue = Queue(self._sizing.bounds)
        self._floor = Floor(
            model=model,
            queue=self._queue,
            sizing=self._sizing,
            rows=rows_of(model, self._sizing.most),
            reserve=Reserve(load.decode_bytes),
            page=page,
            limits=load.limits,
            send=channel.send,
            trouble=self._trouble,
            failpoints=Failpoints(load.failpoint),
        )
        self._largest = model.costs.largest
        """Size of batch that the worker has been told of."""
        self._crash: BaseException | None = None
        self._lanes = [
            threading.Thread(target=self._lane, args=(n, role), name=f"lane-{n}", daemon=True)
            for n, role in enumerate(roles_of(model, min(load.lanes, page.lanes), page.lanes))
        ]
        self._profiler = Profiler(self._floor, load, self._lanes)

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    def receive(self, on_gone: Callable[[], None] | None) -> Ending:
        while (message := self._channel.receive()) is not None:
            match message:
                case Submit(rows, behind_s):
                    self._sizing.behind(behind_s)
                    self._queue.add(_works(rows))
                case SetLimits(limits):
                    self._limit(limits)
                case StartProfile():
                    self._profiler.start(message, self._channel.send)
                case Bye():
                    self._drain()
                    return Ending.STOPPED
                case _:
                    raise ChannelError(f"{type(message).__name__} in the middle of serving")
        if self._crash:
            raise self._crash
        if on_gone:
            on_gone()
        self.abandon()
        self._join()
        return Ending.GONE

    def abandon(self) -> None:
        """Let the lanes stop, whatever is left."""
        self._sizing.close()
        self._profiler.abandon()
        self._queue.abandon()

    def _limit(self, limits: Limits) -> None:
        model = self._floor.model
        if limits.thresholds != self._floor.limits.thresholds:
            model.heads = model.compile_heads(limits.thresholds)
        self._floor.limits = limits
        self._sizing.limit(limits)

    def _bound(self, bounds: Bounds) -> None:
        self._floor.rows.cap = self._sizing.most
        self._queue.bound(bounds)

    def _tell_sizes(self) -> None:
        costs = self._floor.model.costs
        if costs.largest > self._largest:
            self._largest = costs.largest
            with contextlib.suppress(OSError):  # the worker has gone; `receive` sees it too
                self._channel.send(Warmed(service_ms(costs)))

    def _trouble(self, trouble: Trouble) -> None:
        self._sizing.choose()  # the device may have no memory for so many rows
        self._channel.send(trouble)

    def _drain(self) -> None:
        self._queue.close()
        self._join()
        if self._crash:
            raise self._crash
        self._channel.send(Stopped())

    def _join(self) -> None:
        for lane in self._lanes:
            lane.join()

    def _lane(self, number: int, role: Role) -> None:
        try:
            Lane(number, self._floor, role=role).work()
        except OSError:  # the worker has gone while this lane was sending
            self._channel.hang_up()  # so that `receive` sees it too
        except DeviceError as error:
            for lane in range(len(self._lanes)):  # what the others are at is not suspected either
                self._floor.page.idle(lane)
            self._crash = error
            self._channel.hang_up()
        except BaseException as error:  # noqa: BLE001 - a lane that dies quietly would keep its records for ever: the engine must die of it
            self._crash = error
            self._channel.hang_up()


def _works(rows: tuple[Row, ...]) -> list[Work]:
    now_s = time.monotonic()
    return [Work(row.id, row.image, row.alone, len(row.image), now_s) for row in rows]


def rows_of(model: Model, cap: int) -> Rows:
    """Return where this model's rows wait, in memory that its device reads well."""
    bound = model.session.bound
    allocate = np.empty if bound is None else bound.allocate
    return Rows(model.row_shape, model.row_dtype, cap=cap, allocate=allocate)


def roles_of(model: Model, lanes: int, slots: int) -> list[Role]:
    """Return what each lane does: where runs are bound, decoding is for lanes of its own.

    Of the two that run, one copies its batch in, or reads what came out, while the other one's
    batch runs; a third batch is being filled meanwhile.
    """
    if model.session.bound is None:
        return [Role.ANY] * lanes
    if slots < lanes + RUN_LANES:
        raise ChannelError(f"a page of {slots} lanes for {lanes} that decode and {RUN_LANES} more")
    return [Role.DECODE] * lanes + [Role.RUN] * RUN_LANES
