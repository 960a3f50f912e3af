import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from worker.engine.reserve import Reserve
from worker.errors import RecordFault
from worker.types import Reason

DEADLINE_S = 10


@contextmanager
def held(reserve: Reserve, size_bytes: int) -> Iterator[None]:
    reserve.take(size_bytes)
    try:
        yield
    finally:
        reserve.give(size_bytes)


def test_what_needs_more_than_there_is_in_all_is_the_records_fault() -> None:
    reserve = Reserve(1600)
    with pytest.raises(RecordFault, match=r"limits\.decode_bytes = 1600") as caught:
        reserve.take(1601)
    assert caught.value.reason is Reason.IMAGE_TOO_MANY_PIXELS
    reserve.take(1600)


def test_a_big_one_waits_and_small_ones_behind_it_do_not_pass_it() -> None:
    reserve = Reserve(100)
    order: list[str] = []
    release, started = threading.Event(), threading.Barrier(2)

    def hold(name: str, size_bytes: int) -> None:
        if name != "first":
            with held(reserve, size_bytes):
                order.append(name)
            return
        with held(reserve, size_bytes):
            order.append(name)
            started.wait(DEADLINE_S)
            release.wait(DEADLINE_S)

    threads = [threading.Thread(target=hold, args=("first", 50))]
    threads[0].start()
    started.wait(DEADLINE_S)
    for waiting, (name, size_bytes) in enumerate([("big", 100), ("small", 10)], start=1):
        threads.append(threading.Thread(target=hold, args=(name, size_bytes)))
        threads[-1].start()
        _until_waiting(reserve, waiting)
    assert order == ["first"]
    release.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert order == ["first", "big", "small"]


def test_lanes_together_never_hold_more_than_there_is() -> None:
    reserve = Reserve(100)
    lock, sums, peak = threading.Lock(), [0], [0]

    def lane() -> None:
        for size_bytes in (60, 30, 100, 10) * 25:
            with held(reserve, size_bytes):
                with lock:
                    sums[0] += size_bytes
                    peak[0] = max(peak[0], sums[0])
                with lock:
                    sums[0] -= size_bytes

    lanes = [threading.Thread(target=lane) for _ in range(4)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert 0 < peak[0] <= 100


def _until_waiting(reserve: Reserve, count: int) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while len(reserve._waiting) != count:
        assert time.monotonic() < deadline_s
        time.sleep(0)
