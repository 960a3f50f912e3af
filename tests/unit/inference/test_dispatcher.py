import asyncio
from collections.abc import Callable

import pytest

from tests.unit.inference.jobs import (
    NOW_S,
    REF,
    Ends,
    Port,
    attached,
    broken,
    dispatcher,
    done,
    job,
    jobs,
    raised,
)
from tests.unit.inference.test_window import Clock
from worker.errors import ChannelError
from worker.inference.window import Window
from worker.protocol.messages import Outcomes
from worker.types import (
    EngineStamp,
    Failed,
    ModelStamp,
    Predicted,
    Reason,
    Skipped,
    SkipReason,
    Timing,
)


def test_a_served_row_becomes_a_prediction_with_all_that_made_it() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(7))
    work.outcomes(port, done(*port.take()))
    assert ends.of[7].ticket == job(7).ticket
    assert ends.of[7].outcome == Predicted(
        b'{"n":7}',
        8,
        6,
        1,
        Timing(1.0, 2.0, 3.0, 4.0, 5.0),
        ModelStamp("digits", "1", "cafe", "beef"),
        EngineStamp("CPUExecutionProvider", "cpu", "fp32", fallback=False),
    )
    assert work.in_flight == 0


def test_a_message_of_the_engine_is_told_as_one_group() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(*range(16)))
    work.outcomes(port, done(*port.take()))
    assert ends.groups == [16]


def test_a_fault_of_the_record_fails_that_record_alone() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(1, 2))
    first, second = port.take()
    work.outcomes(port, broken(first))
    work.outcomes(port, done(second))
    assert ends.of[1].outcome == Failed(Reason.IMAGE_CORRUPT, "not an image")
    assert isinstance(ends.of[2].outcome, Predicted)


def test_jobs_wait_while_there_is_no_engine() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.submit(jobs(1, 2))
    assert work.in_flight == 2
    assert not work.ready
    work.attach(attached(port))
    assert port.names == [1, 2]
    assert work.ready


def test_the_engine_has_no_more_rows_than_its_window() -> None:
    port = Port()
    work = dispatcher(Ends())
    work.attach(attached(port, window=8))
    work.submit(jobs(*range(20)))
    assert port.names == list(range(8))


def test_the_window_is_filled_again_when_a_quarter_of_it_is_free() -> None:
    port = Port()
    work = dispatcher(Ends())
    work.attach(attached(port, window=8))
    work.submit(jobs(*range(20)))
    work.outcomes(port, done(*port.take(1)))
    assert port.messages == [8]
    work.outcomes(port, done(*port.take(1)))
    assert port.messages == [8, 2]


def test_large_pictures_close_a_message_early_and_bound_the_window_by_bytes() -> None:
    port = Port()
    work = dispatcher(Ends())
    work.attach(attached(port, window=64))
    work.submit([job(n, image=bytes(24 << 20)) for n in range(8)])
    assert port.messages == [1, 1, 1]
    assert work.in_flight == 8


def test_a_job_past_its_deadline_is_skipped_instead_of_given_to_the_engine() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit([job(1, deadline_ms=int(NOW_S * 1e3) - 5), job(2, deadline_ms=int(NOW_S * 1e3))])
    assert port.names == [2]
    assert ends.of[1].outcome == Skipped(SkipReason.EXPIRED, "its deadline passed 5 ms ago")


def test_outcomes_are_never_told_from_inside_submit() -> None:
    deferred: list[Callable[[], None]] = []
    ends = Ends()
    work = dispatcher(ends, deferred=deferred)
    work.attach(attached(Port()))
    work.submit([job(1, deadline_ms=0)])
    assert ends.of == {}
    for call in deferred:
        call()
    assert list(ends.of) == [1]


@pytest.mark.parametrize("again", [True, False])
def test_an_outcome_for_a_row_that_the_engine_does_not_hold_breaks_the_protocol(
    *, again: bool
) -> None:
    port = Port()
    work = dispatcher(Ends())
    work.attach(attached(port))
    work.submit(jobs(1))
    row = port.take()[0]
    work.outcomes(port, done(row))
    with pytest.raises(ChannelError, match="does not hold"):
        work.outcomes(port, done(row if again else row._replace(id=99)))


def test_when_an_engine_dies_who_was_not_held_goes_first_and_in_order() -> None:
    port = Port()
    work = dispatcher(Ends())
    work.attach(attached(port, window=4))
    work.submit(jobs(*range(8)))
    work.detach(port, (), "SIGKILL")
    again = Port()
    work.attach(attached(again, window=8))
    assert again.names == list(range(8))
    assert not any(row.alone for row in again.rows)


def test_suspects_run_alone_with_nothing_else_in_the_engine() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(*range(6)))
    held = {row.id for row in port.rows[:2]}
    work.detach(port, held, "SIGSEGV")
    port = Port()
    work.attach(attached(port))
    order = []
    while not all(n in ends.of for n in (0, 1)):
        (row,) = port.rows
        assert row.alone
        order.extend(port.names)
        work.outcomes(port, done(*port.take()))
    assert order == [5, 0, 1], "the witness comes first"
    assert port.names == [2, 3, 4]
    assert work.ready


def test_after_a_failure_it_is_ready_when_a_record_was_served_or_none_waits() -> None:
    def ready() -> bool:
        return work.ready

    work = dispatcher(Ends())
    port = Port()
    work.attach(attached(port))
    work.submit(jobs(0))
    assert ready()
    for held in ({port.rows[0].id}, ()):
        work.detach(port, held, "SIGSEGV")
        assert not ready()
        port = Port()
        work.attach(attached(port))
        assert not ready(), "nothing shows that this engine is better"
    work.outcomes(port, done(*port.take()))
    assert ready()
    work.detach(port, (), "SIGKILL")
    work.attach(attached(Port()))
    assert ready(), "no record waits that could show it"


def test_a_record_that_kills_again_while_another_passes_is_convicted() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(0, 1, 2))
    work.detach(port, {row.id for row in port.rows[:2]}, "SIGSEGV")
    port = Port()
    work.attach(attached(port))
    work.outcomes(port, done(*port.take()))
    assert port.names == [0]
    work.detach(port, {port.rows[0].id}, "SIGSEGV")
    outcome = ends.of[0].outcome
    assert isinstance(outcome, Failed)
    assert outcome.reason is Reason.RECORD_POISON
    assert "SIGSEGV" in outcome.message
    assert work.convicted == 1


def test_a_suspect_that_was_not_held_when_its_engine_died_is_not_blamed() -> None:
    ends = Ends()
    work = dispatcher(ends)
    port = Port()
    work.attach(attached(port))
    work.submit(jobs(0, 1))
    work.detach(port, {port.rows[0].id}, "SIGSEGV")
    port = Port()
    work.attach(attached(port))
    work.outcomes(port, done(*port.take()))
    for _ in range(5):  # killed from outside, before it began with the suspect
        assert port.names == [0]
        work.detach(port, (), "SIGKILL")
        port = Port()
        work.attach(attached(port))
    work.outcomes(port, done(*port.take()))
    assert ends.count() == {"Predicted": 2}


def test_a_run_that_raised_gives_its_rows_again_one_by_one() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(0, 1, 2))
    rows = port.take()
    work.outcomes(port, raised(*rows[:2]))
    assert port.rows == [], "the third is still inside"
    work.outcomes(port, done(rows[2]))
    assert port.names == [0]
    work.outcomes(port, raised(*port.take()))
    assert port.names == [1], "nobody has run alone and passed yet: 0 is not guilty"
    work.outcomes(port, done(*port.take()))
    work.outcomes(port, raised(*port.take()))
    assert ends.convicted == {0}
    assert ends.count() == {"Predicted": 2, "record.poison": 1}


def test_an_engine_that_raises_at_everything_is_replaced_and_nobody_convicted() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(*range(6)))
    while port.condemned is None:
        work.outcomes(port, raised(*port.take()))
    assert port.rows == []
    assert not work.ready
    work.detach(port, (), "condemned")
    port = Port()
    work.attach(attached(port))
    while port.rows:
        work.outcomes(port, done(*port.take()))
    assert ends.count() == {"Predicted": 6}


def test_a_suspect_whose_deadline_passed_is_skipped() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(0, 1))
    work.detach(port, {row.id for row in port.rows}, "SIGSEGV")
    work.submit([job(2, deadline_ms=1), job(3)])
    port = Port()
    work.attach(attached(port))
    while port.rows:
        work.outcomes(port, done(*port.take()))
    assert ends.count() == {"Predicted": 3, "expired": 1}


async def test_draining_waits_for_the_last_outcome() -> None:
    port = Port()
    work = dispatcher(Ends())
    work.attach(attached(port))
    await work.drained(0.0)
    work.submit(jobs(1))
    await work.drained(0.001)
    assert work.in_flight == 1
    work.outcomes(port, done(*port.take()))
    await work.drained(0.0)
    assert work.in_flight == 0


def test_what_is_left_at_an_unload_is_skipped() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port))
    work.submit(jobs(1, 2))
    work.close(port)
    work.submit(jobs(3))
    work.detach(port, {port.rows[0].id}, "it was stopped")
    assert work.abandon("digits/1 was unloaded") == 3
    assert ends.count() == {"model.version-unavailable": 3}
    assert {end.outcome[1] for end in ends.of.values()} == {"digits/1 was unloaded"}
    assert work.in_flight == 0
    work.attach(attached(port := Port()))
    work.submit(jobs(4, 5))
    assert port.names == [4, 5], "nobody is suspected any more"


def test_what_waits_can_be_withdrawn_but_neither_suspects_nor_what_is_in_an_engine() -> None:
    ends, port = Ends(), Port()
    work = dispatcher(ends)
    work.attach(attached(port, window=2))
    work.submit(jobs(1, 2, 3, 4))
    assert [job.ticket.position.offset for job in work.withdraw()] == [3, 4]
    work.detach(port, {port.rows[0].id}, "it died")
    assert [job.ticket.position.offset for job in work.withdraw()] == [2]
    assert work.in_flight == 1
    assert [job.ticket.position.offset for job in work.withdraw(suspects=True)] == [1]
    assert work.in_flight == 0
    assert ends.of == {}


async def test_who_waits_for_the_last_job_hears_of_it_when_that_is_withdrawn() -> None:
    work = dispatcher(Ends())
    work.submit(jobs(1))
    drained = asyncio.create_task(work.drained(10.0))
    await asyncio.sleep(0)
    work.withdraw()
    await drained


def test_a_stop_that_was_asked_for_casts_no_doubt_on_the_next_engine() -> None:
    work, port = dispatcher(Ends()), Port()
    work.attach(attached(port))
    work.close(port)
    work.detach(port, (), "it was stopped")
    work.submit(jobs(1))
    work.attach(attached(Port()))
    assert work.ready


def test_every_message_is_shown_to_the_observer() -> None:
    seen: list[tuple[object, Outcomes]] = []
    port = Port()
    work = dispatcher(Ends())
    work._observe = lambda ref, message: seen.append((ref, message))
    work.attach(attached(port))
    work.submit(jobs(1))
    message = done(*port.take())
    work.outcomes(port, message)
    assert seen == [(REF, message)]


def test_the_engine_is_told_how_long_what_waits_behind_will_take() -> None:
    port, clock = Port(), Clock()
    work = dispatcher(Ends())
    window = Window(8, clock_s=clock)
    work.attach(attached(port)._replace(window=window))
    work.submit(jobs(*range(20)))
    assert port.behind_s == 0.0, "no rate is known yet"
    clock.now_s += 1.0
    work.outcomes(port, done(*port.take(8)))
    assert port.behind_s == window.seconds(4) == 1.0


def test_the_window_follows_the_cap_that_the_engine_tells() -> None:
    port = Port()
    work = dispatcher(Ends())
    engine = attached(port)
    work.attach(engine._replace(window=Window(2, cap=4)))
    work.submit(jobs(*range(40)))
    assert port.messages == [8]
    work.outcomes(port, done(*port.take(8))._replace(cap=16))
    assert port.messages == [8, 32]


def test_topics_are_served_by_their_weight_while_they_wait() -> None:
    port = Port()
    work = dispatcher(Ends(), priorities={"urgent": 3})
    work.attach(attached(port, window=16))
    work.submit(jobs(*range(100)))
    urgent = [job(offset, topic="urgent") for offset in range(100, 120)]
    work.submit(urgent)
    work.outcomes(port, done(*port.take(16)))
    assert abs(sum(n >= 100 for n in port.names) - 12) <= 1
