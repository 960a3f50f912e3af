from worker.inference.window import WINDOW_BYTES, Window


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_slow_engine_has_the_batches_that_it_was_given() -> None:
    clock = Clock()
    window = Window(64, clock_s=clock)
    for _ in range(10):
        clock.now_s += 1.0
        window.served(100)
    assert window.rows == 64


def test_a_fast_engine_has_a_tenth_of_a_second_of_work() -> None:
    clock = Clock()
    window = Window(64, clock_s=clock)
    for _ in range(200):
        clock.now_s += 0.05
        window.served(600)
    assert 1190 < window.rows <= 1200


def test_after_a_quiet_time_the_window_is_small_again() -> None:
    clock = Clock()
    window = Window(64, clock_s=clock)
    clock.now_s = 1.0
    window.served(12_000)
    assert window.rows == 600
    for _ in range(10):
        clock.now_s += 10.0
        window.served(10)
    assert window.rows == 64


def test_it_is_filled_again_when_a_quarter_is_free() -> None:
    window = Window(8, clock_s=Clock())
    assert [window.worth_filling(inside) for inside in (0, 6, 7, 8)] == [True, True, False, False]


def test_bytes_bound_it_but_never_keep_an_empty_engine_waiting() -> None:
    window = Window(8, clock_s=Clock())
    assert window.has_room(0, WINDOW_BYTES)
    assert window.has_room(1, WINDOW_BYTES - 1)
    assert not window.has_room(1, WINDOW_BYTES)
    assert not window.has_room(8, 0)


def test_it_follows_the_batches_that_the_engine_makes() -> None:
    window = Window(4, cap=16, clock_s=Clock())
    assert window.rows == 64
    window.cap = 2
    assert window.rows == 8


def test_it_has_room_for_some_rows_however_small_the_batches_are() -> None:
    window = Window(6, cap=1, least=32, clock_s=Clock())
    assert window.rows == 32
    window.cap = 16
    assert window.rows == 96


def test_it_tells_how_long_records_take_at_the_rate_of_late() -> None:
    clock = Clock()
    window = Window(8, clock_s=clock)
    assert window.seconds(100) == 0.0
    for _ in range(30):
        clock.now_s += 1.0
        window.served(50)
    assert 1.99 < window.seconds(100) < 2.01
