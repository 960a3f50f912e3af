import sys
import threading
from collections import Counter

from worker.profiling.sampler import function_names, sampled


def resting(begun: threading.Event, until: threading.Event) -> None:
    begun.set()
    until.wait(30)


def test_a_thread_is_found_where_it_is_under_its_name() -> None:
    begun, until = threading.Event(), threading.Event()
    thread = threading.Thread(target=resting, args=(begun, until), name="resting")
    thread.start()
    begun.wait(30)
    found = sampled(0.2, threading.Event())
    until.set()
    thread.join()
    assert found.threads[str(thread.ident)] == "resting"
    counts = Counter(stack for _, ident, stack in found.taken if ident == thread.ident)
    ((stack, count),) = counts.most_common(1)
    assert count > 2
    assert f"{__name__}.resting" in found.stacks[stack]
    assert found.stacks[stack][0].startswith("threading.Thread.")
    assert len({tuple(each) for each in found.stacks}) == len(found.stacks)


def test_the_sampling_thread_is_not_sampled_and_times_go_up() -> None:
    found = sampled(0.05, threading.Event())
    assert threading.get_ident() not in {ident for _, ident, _ in found.taken}
    times = [at_s for at_s, _, _ in found.taken]
    assert times == sorted(times)


def test_it_ends_when_it_is_stopped() -> None:
    stopped = threading.Event()
    stopped.set()
    assert sampled(60.0, stopped).taken == []


def test_functions_are_named_from_the_innermost_outwards() -> None:
    def inner() -> list[str]:
        return function_names(sys._getframe())

    here = "test_functions_are_named_from_the_innermost_outwards"
    assert inner()[:2] == [f"{__name__}.{here}.<locals>.inner", f"{__name__}.{here}"]
