from worker.inference.backoff import Backoff


def test_the_back_off_doubles_up_to_half_a_minute_with_jitter_and_starts_again() -> None:
    backoff = Backoff(jitter=lambda: 1.0)
    assert [backoff.next_s() for _ in range(8)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    backoff.reset()
    assert backoff.next_s() == 0.0
