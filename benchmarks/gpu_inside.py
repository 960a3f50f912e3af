"""What gpu.py measures inside one process: `session.run` at its best, and lanes fed decoded.

Each is called in a spawned process of its own, which ends with what it took of the device; what it
found it answers.
"""

import ctypes
import multiprocessing
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu_cases import Version, row
from worker.engine.batcher import Decoded
from worker.engine.host import roles_of, rows_of
from worker.engine.lanes import Floor, Lane
from worker.engine.loader import load_model, sizing_of
from worker.engine.model import Model
from worker.engine.queue import Queue, Work
from worker.engine.reserve import Reserve
from worker.engine.session import Session, open_session
from worker.protocol.failpoints import Failpoints
from worker.protocol.messages import Load, Outcomes, Trouble
from worker.protocol.page import RUN_LANES, Page
from worker.protocol.survey import CUDA_LIBRARY
from worker.vision.decode import decode
from worker.vision.sniff import check

_RUNS = 3
"""Of each size, at least, beside the first."""


class Table(NamedTuple):
    """Batch size -> milliseconds of a run."""

    plain_ms: dict[int, float]
    """`session.run` on rows as the manifest describes them."""
    staged_ms: dict[int, float]
    """As an engine runs them: pixels, folded, bound."""
    staging: str
    provider: str
    pinned: bool

    @property
    def best(self) -> float:
        """Images a second of `session.run` at its best size."""
        return max(size / ms * 1e3 for size, ms in self.plain_ms.items())


def table(answer: Callable[[Table], None], version: Version, load: Load, seconds: float) -> None:
    """Time every power of two up to the cap, both ways."""
    cap = load.limits.max_size
    sizes = [2**n for n in range(cap.bit_length()) if 2**n <= cap]
    each_s = seconds / len(sizes) / 2
    image = (version.folder / "golden.jpg").read_bytes()
    rows = np.repeat(row(version, image)[None], cap, axis=0)
    path = version.folder / "model.onnx"
    session = open_session(path, policy=load.policy, options=load.session)
    plain = _plain_ms(session, rows, sizes, each_s)
    del session
    model = load_model(load)
    slab = _slab(model, cap)
    model.prepare(_decoded(image), slab[0])
    slab[1:] = slab[0]
    staged = {size: _ms(partial(model.run, slab[:size]), each_s) for size in sizes}
    bound = model.session.bound
    provider = model.session.stamp.provider
    pinned = bound is not None and bound.pinned
    answer(Table(plain, staged, model.staging, provider, pinned))


def _plain_ms(session: Session, rows: Any, sizes: list[int], each_s: float) -> dict[int, float]:
    feeds = {size: {"image": rows[:size]} for size in sizes}
    return {size: _ms(partial(session.run, ("scores",), feeds[size]), each_s) for size in sizes}


def fed_decoded(
    answer: Callable[[float], None], version: Version, load: Load, seconds: float
) -> None:
    """Find images a second of an engine's own lanes whose pictures are decoded already."""
    model = load_model(load)
    image = _decoded((version.folder / "golden.jpg").read_bytes())
    sizing = sizing_of(model, load.limits, tell=lambda bounds: queue.bound(bounds))  # noqa: PLW0108 - it comes after
    queue, feed = Queue(sizing.bounds), _Feed(ahead=8 * sizing.most)
    page = Page.make(lanes=load.lanes + RUN_LANES, max_ids=4096)
    floor = Floor(
        model=model,
        queue=queue,
        sizing=sizing,
        rows=rows_of(model, sizing.most),
        reserve=Reserve(load.decode_bytes),
        page=page,
        limits=load.limits,
        send=feed.came,
        trouble=_no_trouble,
        failpoints=Failpoints(None),
    )
    lanes = [
        threading.Thread(target=_Decoded(n, floor, role=role, image=image).work, daemon=True)
        for n, role in enumerate(roles_of(model, load.lanes, page.lanes))
    ]
    for lane in lanes:
        lane.start()
    feed.run(queue, 1.0)
    begun, begun_s = feed.count, time.monotonic()
    feed.run(queue, seconds)
    rate = (feed.count - begun) / (time.monotonic() - begun_s)
    queue.close()
    for lane in lanes:
        lane.join()
    answer(rate)


def _no_trouble(trouble: Trouble) -> None:
    raise RuntimeError(str(trouble))


class _Decoded(Lane):
    """A lane that finds its pictures decoded."""

    def __init__(self, number: int, floor: Floor, *, role: Any, image: Any) -> None:
        super().__init__(number, floor, role=role)
        self._image = image

    def _decode(self, group: Any) -> Decoded[Work]:
        for work in group:
            work.image_hwc = self._image
            work.height_px, work.width_px = self._image.shape[:2]
            self._write(work)
        return Decoded(group, len(group))


class _Feed:
    """Keeps a queue full, and counts what came of it."""

    def __init__(self, *, ahead: int) -> None:
        self._ahead = ahead
        self._changed = threading.Condition()
        self._inside = 0
        self.count = 0

    def came(self, outcomes: Outcomes) -> None:
        assert not outcomes.faults
        assert not outcomes.retries
        with self._changed:
            self.count += len(outcomes.done)
            self._inside -= len(outcomes.done)
            self._changed.notify()

    def run(self, queue: Queue, seconds: float) -> None:
        until_s, group = time.monotonic() + seconds, self._ahead // 4
        while (now_s := time.monotonic()) < until_s:
            with self._changed:
                self._changed.wait_for(lambda: self._inside <= self._ahead - group, until_s - now_s)
                self._inside += group
            queue.add([Work(n, b"", False, 1024, now_s) for n in range(group)])  # noqa: FBT003 - as the host makes them


def _ms(run: Callable[[], Any], seconds: float) -> float:
    """Return the median of so many seconds of runs."""
    run()
    took: list[float] = []
    until_s = time.perf_counter() + seconds
    while len(took) < _RUNS or time.perf_counter() < until_s:
        begun_s = time.perf_counter()
        run()
        took.append(time.perf_counter() - begun_s)
    return float(np.median(took)) * 1e3


def _slab(model: Model, cap: int) -> Any:
    shape = (cap, *model.row_shape)
    bound = model.session.bound
    return bound.allocate(shape, model.row_dtype) if bound else np.empty(shape, model.row_dtype)


def _decoded(image: bytes) -> Any:
    """Return the picture at the size of a row: what is left of preprocessing is a copy."""
    import cv2  # noqa: PLC0415 - of this function alone

    header = check(image, max_bytes=1 << 25, max_pixels=1 << 25)
    return cv2.resize(decode(image, header, keep_gray=True), (224, 224))


def free_memory_taken(answer: Callable[[int], None]) -> None:
    """Take all memory that is free of the one GPU in sight; hold it until killed, or orphaned."""
    cuda = ctypes.CDLL(CUDA_LIBRARY)
    context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
    for code in (
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
    ):
        if code:
            raise RuntimeError(f"the driver answers with error {code}")
    size, taken = 1 << 34, 0
    while size >= 1 << 20:
        if cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0:
            taken += size
        else:
            size >>= 1
    answer(taken)
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
