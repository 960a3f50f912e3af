"""The engine's host: it owns the channel, loads one version, and serves it with its lanes.

Works alike in a process of its own and on a thread of a test: it touches no signals and never ends
the process.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

from worker.engine.batcher import Bounds, Role
from worker.engine.lanes import Floor, Lane
from worker.engine.loader import load_model, loaded
from worker.engine.model import Model
from worker.engine.queue import Queue, Work
from worker.engine.reserve import Reserve
from worker.engine.rows import Rows
from worker.errors import ChannelError, DeviceError, ModelError, SettingsError
from worker.protocol.channel import Channel
from worker.protocol.failpoints import Failpoints
from worker.protocol.messages import Bye, Load, LoadFailed, Row, SetLimits, Stopped, Submit
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
    of order, and whatever unexpected a lane raised: such an engine is broken.
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
        self._queue = Queue(bounds(model, load.limits))
        self._floor = Floor(
            model=model,
            queue=self._queue,
            rows=rows_of(model, load.limits),
            reserve=Reserve(load.decode_bytes),
            page=page,
            limits=load.limits,
            send=channel.send,
            failpoints=Failpoints(load.failpoint),
        )
        self._crash: BaseException | None = None
        self._lanes = [
            threading.Thread(target=self._lane, args=(n, role), name=f"lane-{n}", daemon=True)
            for n, role in enumerate(roles_of(model, min(load.lanes, page.lanes), page.lanes))
        ]

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    def receive(self, on_gone: Callable[[], None] | None) -> Ending:
        while (message := self._channel.receive()) is not None:
            match message:
                case Submit(rows):
                    self._queue.add(_works(rows))
                case SetLimits(limits):
                    self._limit(limits)
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
        self._queue.abandon()

    def _limit(self, limits: Limits) -> None:
        model = self._floor.model
        if limits.thresholds != self._floor.limits.thresholds:
            model.heads = model.compile_heads(limits.thresholds)
        self._floor.limits = limits
        self._floor.rows.cap = model.cap(limits)
        self._queue.bound(bounds(model, limits))

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
        except OSError:  # the worker has gone while this lane was sending; `receive` sees it too
            return
        except BaseException as error:  # noqa: BLE001 - a lane that dies quietly would keep its records for ever: the engine must die of it
            self._crash = error
            self._channel.hang_up()


def _works(rows: tuple[Row, ...]) -> list[Work]:
    now_s = time.monotonic()
    return [Work(row.id, row.image, row.alone, len(row.image), now_s) for row in rows]


def rows_of(model: Model, limits: Limits) -> Rows:
    """Return where this model's rows wait, in memory that its device reads well."""
    bound, cap = model.session.bound, model.cap(limits)
    if bound is None:
        return Rows(model.row_shape, model.row_dtype, cap=cap)
    return Rows(model.row_shape, model.row_dtype, cap=cap, allocate=bound.allocate)


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


def bounds(model: Model, limits: Limits) -> Bounds:
    """Return what bounds this model's batches."""
    eager = not model.gains
    return Bounds(model.cap(limits), limits.min_size, limits.max_wait_ms / 1e3, eager)
