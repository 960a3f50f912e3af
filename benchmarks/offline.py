"""The offline limit: the engine's own loader, batcher and lanes in one process, fed from memory.

No Kafka, no channel, no process boundary: what these lanes do is the most that a worker with as
many lanes can serve on this machine. `python -m benchmarks.offline SPEC` prints one JSON line.
"""

import cProfile
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from worker.config_sections import Settings
from worker.engine.lanes import Floor, Lane
from worker.engine.loader import load_model, sizing_of
from worker.engine.queue import Queue, Work
from worker.engine.reserve import Reserve
from worker.engine.rows import Rows
from worker.inference.budget import budget_of, limits_of
from worker.models.manifest import load_manifest
from worker.protocol.failpoints import Failpoints
from worker.protocol.messages import Load, Outcomes
from worker.protocol.page import Page

_GROUP = 128
"""Records handed over at a time: as many as the dispatcher's messages hold."""


class Spec(NamedTuple):
    """What to run; plain JSON."""

    folder: str
    """Of the model version."""
    pictures: str
    """A folder of pictures, sent in the order of their names, over and over."""
    cap: int
    warm_s: float
    seconds: float
    profile: str | None
    """Where to write a profile of the first lane; it is slower then."""


class Mill:
    """Keeps the lanes fed, and notes when outcomes came."""

    def __init__(self, images: list[bytes], *, ahead: int) -> None:
        self._images = images
        self._ahead = ahead
        self._changed = threading.Condition()
        self._inside = 0
        self._next = 0
        self.came: list[tuple[float, int]] = []
        """(`time.monotonic()`, records) of every message that a lane sent."""
        self.best: dict[int, str] = {}
        """Picture -> its best label."""
        self.failed = ""

    def send(self, outcomes: Outcomes) -> None:
        """Take what a lane would have sent to its worker."""
        if outcomes.faults or outcomes.retries:
            self.failed = str(outcomes.faults or outcomes.retries)
        if len(self.best) < len(self._images):
            for row in outcomes.done:
                ((label, *_),) = json.loads(row.predictions).values()
                self.best[row.id % len(self._images)] = label["label"]
        with self._changed:
            self.came.append((time.monotonic(), len(outcomes.done)))
            self._inside -= len(outcomes.done)
            if self._inside <= self._ahead - _GROUP:
                self._changed.notify()

    def feed(self, queue: Queue, until_s: float) -> None:
        """Keep so many records in the queue until then."""
        images = self._images
        while (now_s := time.monotonic()) < until_s and not self.failed:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._inside <= self._ahead - _GROUP, until_s - now_s
                )
                self._inside += _GROUP
            works = []
            for number in range(self._next, self._next + _GROUP):
                image = images[number % len(images)]
                works.append(
                    Work(number, image, alone=False, size_bytes=len(image), arrived_s=now_s)
                )
            self._next += _GROUP
            queue.add(works)


def run(spec: Spec) -> dict[str, Any]:
    """Serve for the time asked; return the rate, and what a record cost."""
    settings = Settings.model_validate({"batch": {"max_size": spec.cap}})
    share = budget_of(settings).share(1)
    limits = limits_of(settings)
    folder = Path(spec.folder)
    digest = load_manifest(folder)[1]
    load = Load(str(folder), digest, share.lanes, limits, share.decode_bytes, "cpu", {}, None)
    model = load_model(load)
    images = [path.read_bytes() for path in sorted(Path(spec.pictures).iterdir())]
    sizing = sizing_of(model, limits)
    mill = Mill(images, ahead=4 * _GROUP + 16 * sizing.most)
    queue = Queue(sizing.bounds)
    floor = Floor(
        model=model,
        queue=queue,
        sizing=sizing,
        rows=Rows(model.row_shape, model.row_dtype, cap=sizing.most),
        reserve=Reserve(share.decode_bytes),
        page=Page.make(lanes=share.lanes, max_ids=4096),
        limits=limits,
        send=mill.send,
        trouble=print,
        failpoints=Failpoints(None),
    )
    lanes = [
        threading.Thread(target=_work, args=(Lane(number, floor), spec, number), daemon=True)
        for number in range(share.lanes)
    ]
    for lane in lanes:
        lane.start()
    mill.feed(queue, time.monotonic() + spec.warm_s)
    began_s, cpu_s = time.monotonic(), time.process_time()
    mill.feed(queue, began_s + spec.seconds)
    cpu_s, ended_s = time.process_time() - cpu_s, time.monotonic()
    queue.abandon()
    for lane in lanes:
        lane.join()
    if mill.failed:
        raise SystemExit(f"the offline limit serves nothing else than good pictures: {mill.failed}")
    came = [(at_s, count) for at_s, count in mill.came if began_s <= at_s <= ended_s]
    count = sum(count for _, count in came)
    return {
        # From the first message to the last: whole batches, whole time.
        "rate": (count - came[0][1]) / (came[-1][0] - came[0][0]),
        "cpu_ms": cpu_s * 1e3 / count,
        "lanes": share.lanes,
        "best": [mill.best[number] for number in range(len(images))],
    }


def _work(lane: Lane, spec: Spec, number: int) -> None:
    if spec.profile is None or number != 0:
        lane.work()
        return
    profile = cProfile.Profile()
    profile.runcall(lane.work)
    profile.dump_stats(spec.profile)


if __name__ == "__main__":
    print(json.dumps(run(Spec(*json.loads(sys.argv[1])))))
