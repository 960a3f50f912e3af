import threading
import time

from worker.engine.batcher import Bounds, Decode, Decoded, Role, Run, Stop
from worker.engine.queue import Queue, Work

DEADLINE_S = 10


def work(number: int, *, alone: bool = False) -> Work:
    return Work(number, b"", alone, 100_000, time.monotonic())


def test_a_row_is_run_by_an_idle_lane_while_the_one_that_made_it_is_busy() -> None:
    queue = Queue(Bounds(cap=4, min_size=2, max_wait_s=0.05))
    first, second = work(1), work(2)
    queue.add([first])
    assert queue.take() == Decode([first])
    ran: list[object] = []
    idle = threading.Thread(target=lambda: ran.append(queue.take()))
    idle.start()
    queue.add([second])
    # Whichever lane got the second one to decode, the first row's deadline is watched.
    mine = queue.take(decoded=Decoded([first], 1))
    idle.join(DEADLINE_S)
    assert sorted([type(mine), type(ran[0])], key=str) == [Decode, Run]


def test_closing_lets_every_waiting_lane_stop() -> None:
    queue = Queue(Bounds(cap=4, min_size=1, max_wait_s=0.05))
    taken: list[object] = []
    lanes = [threading.Thread(target=lambda: taken.append(queue.take())) for _ in range(3)]
    for lane in lanes:
        lane.start()
    queue.close()
    for lane in lanes:
        lane.join(DEADLINE_S)
    assert taken == [Stop()] * 3


def test_an_abandoned_queue_stops_with_work_left() -> None:
    queue = Queue(Bounds(cap=4, min_size=1, max_wait_s=0.05))
    queue.add([work(1)])
    queue.abandon()
    assert queue.take() == Stop()


def test_lower_bounds_wake_a_lane_that_waits_for_company() -> None:
    queue = Queue(Bounds(cap=8, min_size=8, max_wait_s=DEADLINE_S))
    row = work(1)
    taken: list[object] = []
    lane = threading.Thread(target=lambda: taken.append(queue.take(decoded=Decoded([row], 1))))
    lane.start()
    queue.bound(Bounds(cap=8, min_size=1, max_wait_s=DEADLINE_S))
    lane.join(DEADLINE_S / 2)
    assert taken == [Run([row])]


def test_lanes_with_roles_serve_all_and_stop() -> None:
    """Deadlines are far away: a wake-up that is lost leaves this waiting."""
    for _ in range(20):
        queue = Queue(Bounds(cap=3, min_size=1, max_wait_s=DEADLINE_S * 10))
        ran: list[int] = []
        roles = (Role.DECODE, Role.DECODE, Role.DECODE, Role.RUN, Role.RUN)
        lanes = [threading.Thread(target=serve, args=(queue, role, ran)) for role in roles]
        for lane in lanes:
            lane.start()
        for n in range(0, 100, 4):
            queue.add([work(n + i, alone=n % 12 == 0) for i in range(4)])
        queue.close()
        for lane in lanes:
            lane.join(DEADLINE_S)
            assert not lane.is_alive()
        assert sorted(ran) == [n for n in range(100) if n % 5]


def serve(queue: Queue, role: Role, ran: list[int]) -> None:
    """Work as a lane does; every fifth picture is bad."""
    action = queue.take(role=role)
    while not isinstance(action, Stop):
        if isinstance(action, Decode):
            rows = [w for w in action.jobs if w.id % 5]
            action = queue.take(role=role, decoded=Decoded(rows, len(action.jobs)))
        else:
            ran.extend(row.id for row in action.rows)
            action = queue.take(role=role)
