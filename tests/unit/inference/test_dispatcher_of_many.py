"""One dispatcher, several engines: who gets what, and who judges while the others go on."""

import pytest

from tests.unit.inference.jobs import (
    Ends,
    Port,
    attached,
    broken,
    dispatcher,
    done,
    job,
    jobs,
    name,
    raised,
)
from worker.errors import ChannelError
from worker.inference.dispatcher import Dispatcher
from worker.protocol.messages import Row


def two(ends: Ends, *, windows: tuple[int, int] = (8, 8)) -> tuple[Dispatcher, Port, Port]:
    work, ports = dispatcher(ends), (Port(), Port())
    for port, window in zip(ports, windows, strict=True):
        work.attach(attached(port, window=window))
    return work, *ports


def held(port: Port, count: int) -> set[int]:
    return {row.id for row in port.rows[:count]}


def serve(work: Dispatcher, *ports: Port) -> None:
    """Let engines serve all that they get."""
    while any(port.rows for port in ports):
        for port in ports:
            if port.rows:
                work.outcomes(port, done(*port.take()))


def test_each_job_goes_to_the_engine_with_the_most_room() -> None:
    work, small, large = two(Ends(), windows=(4, 12))
    work.submit(jobs(*range(8)))
    assert (len(small.rows), len(large.rows)) == (0, 8), "the large one had more room until now"
    work.submit(jobs(*range(8, 100)))
    assert (len(small.rows), len(large.rows)) == (4, 12)
    assert sorted([*small.names, *large.names]) == list(range(16))


def test_a_few_jobs_are_shared_by_engines_alike_and_each_gets_one_message() -> None:
    work, one, two_ = two(Ends())
    work.submit(jobs(*range(6)))
    assert (one.messages, two_.messages) == ([3], [3])


def test_an_engine_that_is_full_by_bytes_leaves_the_rest_to_the_others() -> None:
    work, one, two_ = two(Ends(), windows=(64, 8))
    work.submit([job(n, image=bytes(24 << 20)) for n in range(6)])
    assert (len(one.rows), len(two_.rows)) == (3, 3)


def test_an_engine_that_joins_gets_what_waits_and_one_that_is_closed_gets_no_more() -> None:
    work, one, two_ = two(Ends(), windows=(4, 4))
    work.submit(jobs(*range(20)))
    work.close(one)
    work.outcomes(one, done(*one.take()))
    assert one.rows == []
    three = Port()
    work.attach(attached(three, window=4))
    assert three.names == [8, 9, 10, 11]
    assert len(two_.rows) == 4


def test_what_a_dead_engine_had_is_given_to_the_others_at_once() -> None:
    ends = Ends()
    work, one, two_ = two(ends)
    work.submit(jobs(*range(8)))
    assert not work.detach(one, (), "SIGKILL")
    assert sorted(two_.names) == list(range(8))
    serve(work, two_)
    assert work.ready
    assert ends.count() == {"Predicted": 8}


def test_an_engine_answers_for_its_own_rows_only() -> None:
    work, one, two_ = two(Ends())
    work.submit(jobs(*range(2)))
    with pytest.raises(ChannelError, match="does not hold"):
        work.outcomes(two_, done(*one.take()))
    with pytest.raises(ChannelError, match="given up"):
        work.outcomes(Port(), done(*two_.take()))


def test_suspects_run_alone_on_one_engine_while_the_others_go_on() -> None:
    ends = Ends()
    work, one, two_ = two(ends, windows=(4, 4))
    three = Port()
    work.attach(attached(three, window=4))
    work.submit(jobs(*range(40)))
    suspects = [name(row) for row in one.rows[:2]]
    work.detach(one, held(one, 2), "SIGSEGV")
    work.outcomes(two_, done(*two_.take()))
    work.outcomes(three, done(*three.take()))
    judge, other = (two_, three) if two_.rows[0].alone else (three, two_)
    assert len(judge.rows) == 1
    assert len(other.rows) == 4
    assert not any(row.alone for row in other.rows)
    alone: list[int] = []
    while len(alone) < 3:
        alone += judge.names
        work.outcomes(judge, done(*judge.take()))
    assert alone[1:] == suspects, "behind a witness"
    serve(work, two_, three)
    assert ends.count() == {"Predicted": 40}


def test_what_others_serve_meanwhile_witnesses_nothing() -> None:
    ends = Ends()
    work, one, two_ = two(ends, windows=(2, 2))
    work.submit(jobs(*range(4)))
    suspect = one.names[0]
    work.detach(one, held(one, 1), "SIGKILL")
    work.outcomes(two_, done(*two_.take()))  # they were inside when it died
    assert two_.names != [suspect], "a witness comes first"
    work.detach(two_, held(two_, 1), "SIGKILL")
    assert ends.convicted == set(), "both may have been killed by the same"


def test_one_record_waits_for_the_judge_while_it_lacks_a_witness() -> None:
    ends = Ends()
    work, one, two_ = two(ends, windows=(4, 4))
    three = Port()
    work.attach(attached(three, window=4))
    work.submit(jobs(*range(12)))
    suspect = one.names[0]
    work.detach(one, held(one, 1), "SIGSEGV")
    work.outcomes(three, done(*three.take()))
    assert len(three.rows) == 2, "three were given back, and one of those must wait"
    work.outcomes(three, done(*three.take()))
    assert three.rows == []
    work.outcomes(two_, done(*two_.take()))
    assert two_.names not in ([], [suspect])
    serve(work, two_, three)
    assert ends.count() == {"Predicted": 12}


def test_a_record_that_kills_wherever_it_runs_is_convicted_by_the_judge() -> None:
    ends = Ends()
    work, one, two_ = two(ends, windows=(4, 4))
    work.submit(jobs(*range(8)))
    killer = one.names[0]
    work.detach(one, held(one, 1), "SIGSEGV")
    while not (two_.rows[0].alone and two_.names == [killer]):
        work.outcomes(two_, done(*two_.take(1)))
    assert work.detach(two_, held(two_, 1), "SIGSEGV"), "it was guilty of this end"
    assert ends.convicted == {killer}


def test_an_engine_that_raises_at_everything_judges_and_is_replaced() -> None:
    ends = Ends()
    work, sick, well = two(ends, windows=(4, 4))
    work.submit(jobs(*range(40)))
    while sick.condemned is None:
        work.outcomes(sick, raised(*sick.take()))
        if well.rows:
            work.outcomes(well, done(*well.take()))
    work.detach(sick, (), "condemned")
    assert ends.convicted == set()
    serve(work, well)
    assert ends.count() == {"Predicted": 40}


def test_two_engines_that_raise_both_have_their_rows_tried_by_one() -> None:
    ends = Ends()
    work, one, two_ = two(ends, windows=(4, 4))
    work.submit(jobs(*range(8)))
    work.outcomes(one, raised(*one.take()))
    work.outcomes(two_, raised(*two_.take()))
    assert [len(port.rows) for port in (one, two_)] == [1, 0]
    serve(work, one, two_)
    assert ends.count() == {"Predicted": 8}


def test_nobody_is_convicted_of_what_a_device_fails_at() -> None:
    ends = Ends()
    work, port = dispatcher(ends), Port()
    work.attach(attached(port, window=4))
    work.submit(jobs(*range(4)))
    victim = 0
    work.detach(port, held(port, 1), "SIGSEGV")
    for _ in range(10):
        port = Port()
        work.attach(attached(port, window=4))
        while port.names != [victim]:
            work.outcomes(port, done(*port.take()))
            work.submit(jobs(100 + len(ends.of)))
        assert not work.detach(port, held(port, 1), "it said sticky", by_device=True)
    assert ends.convicted == set()
    port = Port()
    work.attach(attached(port))
    serve(work, port)
    assert ends.count() == {"Predicted": len(ends.of)}


def test_a_judge_that_is_stopped_leaves_the_suspects_to_another() -> None:
    ends = Ends()
    work, one, two_ = two(ends, windows=(4, 4))
    work.submit(jobs(*range(8)))
    work.outcomes(one, raised(*one.take(2)))
    work.outcomes(one, done(*one.take()))
    assert one.rows[0].alone
    work.close(one)
    work.outcomes(one, broken(*one.take()))
    work.detach(one, (), "it was stopped")
    serve(work, two_)
    assert work.in_flight == 0
    assert work.ready


def test_withdrawn_suspects_leave_an_engine_that_serves_as_before() -> None:
    ends = Ends()
    work, one, two_ = two(ends, windows=(4, 4))
    work.submit(jobs(*range(12)))
    work.outcomes(one, raised(*one.take(1)))
    assert len(work.withdraw(suspects=True)) == 5
    serve(work, one, two_)
    work.submit(jobs(50, 51))
    rows: list[Row] = [*one.rows, *two_.rows]
    assert [row.alone for row in rows] == [False, False]
