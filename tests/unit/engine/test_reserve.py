import threading
import time

import pytest

from worker.engine.reserve import Reserve
from worker.errors import RecordFault
from worker.types import Reason

DEADLINE_S = 10


def test_what_needs_more_than_there_is_in_all_is_the_records_fault() -> None:
    reserve = Reserve(1600)
    with (
        pytest.raises(RecordFault, match=r"limits\.decode_bytes = 1600") as caught,
        reserve.held(1601),
    ):
        pass
    assert caught.value.reason is Reason.IMAGE_TOO_MANY_PIXELS
    with reserve.held(1600):
        pass


def test_bytes_come_back_when_a_decode_raises() -> None:
    reserve = Reserve(100)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), reserve.held(100):
            raise ValueError("broken")


def test_a_big_one_waits_and_small_ones_behind_it_do_not_pass_it() -> None:
    reserve = Reserve(100)
    order: list[str] = []
    release, started = threading.Event(), threading.Barrier(2)

    def hold(name: str, size_bytes: int) -> None:
        if name != "first":
            with reserve.held(size_bytes):
                order.append(name)
            return
        with reserve.held(size_bytes):
            order.append(name)
            started.wait(DEADLINE_S)
            release.wait(DEADLINE_S)

    threads = [threading.Thread(target=hold, args=("first", 50))]
    threads[0].start()
    started.wait(DEADLINE_S)
    for waiting, (name, size_bytes) in enumerate([("big", 100), ("small", 10)], start=1):
        threads.append(threading.Thread(target=hold, args=(name, size_bytes)))
        threads[-1].start()
        _until(lambda waiting=waiting: len(reserve._waiting) == waiting)
    assert order == ["first"]
    release.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert order == ["first", "big", "small"]


def test_lanes_together_never_hold_more_than_there_is() -> None:
    reserve = Reserve(100)
    lock, held, peak = threading.Lock(), [0], [0]

    def lane() -> None:
        for size_bytes in (60, 30, 100, 10) * 25:
            with reserve.held(size_bytes):
                with lock:
                    held[0] += size_bytes
                    peak[0] = max(peak[0], held[0])
                with lock:
                    held[0] -= size_bytes

    lanes = [threading.Thread(target=lane) for _ in range(4)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert 0 < peak[0] <= 100


def _until(condition: "object") -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0)
