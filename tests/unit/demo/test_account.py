"""The demo's account: what it calls lost, twice, out of order, and of the wrong version."""

from typing import Any

import pytest

from worker.demo.account import Report, Result, Sent, Swap, account, messages

WANTED = [Sent(f"{number:06d}", str(number), b"png") for number in range(8)]
SWAP = Swap("digits", "1", "2", 5, 1.25, first_after="000006")


def served(number: int, version: str, *, partition: int = 0, label: str | None = None) -> Result:
    """Return the result of a record, read right unless another label is given."""
    return {
        "key": f"{number:06d}",
        "id": f"images/{partition}/{number}@1",
        "status": "ok",
        "source": {"partition": partition, "offset": number},
        "model": {"version": version},
        "generation": 5 if version == "2" else None,
        "predictions": {"digit": [{"label": label or str(number)}]},
        "age_ms": 10.0 * number,
    }


ALL = [served(number, "1" if number < 4 else "2") for number in range(8)]


def report(results: list[Result]) -> Report:
    return account(WANTED, results, 3, SWAP, seconds=2.0)


def changed(number: int, **changes: Any) -> list[Result]:
    """Return all results with one of them changed."""
    return [{**one, **changes} if one is ALL[number] else one for one in ALL]


def test_all_results_in_order_are_a_whole_account() -> None:
    told = report(ALL)

    assert told.whole
    assert (told.sent, told.results, told.dead_letters, told.per_second) == (8, 8, 3, 4.0)
    assert (told.accuracy, told.accuracy_before, told.accuracy_after) == (1.0, 1.0, 1.0)
    assert told.age_ms == {"p50": 40.0, "p99": 70.0}
    assert told.swap is SWAP


def test_accuracy_is_told_of_each_version() -> None:
    wrong = {"predictions": {"digit": [{"label": "x"}]}}
    results = [{**one, **wrong} if index in {0, 1, 7} else one for index, one in enumerate(ALL)]

    told = report(results)

    assert (told.accuracy, told.accuracy_before, told.accuracy_after) == (0.625, 0.5, 0.75)
    assert told.whole


@pytest.mark.parametrize(
    ("results", "what"),
    [
        (ALL[:3] + ALL[4:], "lost"),
        ([*ALL, ALL[0]], "duplicated"),
        ([ALL[1], ALL[0], *ALL[2:]], "out_of_order"),
        (changed(1, model={"version": "3"}), "wrong_version"),
        (changed(1, model={"version": "2"}), "wrong_version"),
        (changed(5, generation=4), "wrong_version"),
        (changed(5, model={"version": "1"}, generation=None), "wrong_version"),
    ],
    ids=[
        *("one is missing", "one comes again", "two are swapped"),
        *("of no version", "of the new one before its time", "of another generation"),
        "of the old one after the new one",
    ],
)
def test_an_account_that_is_not_whole_says_what_is_wrong(results: list[Result], what: str) -> None:
    told = report(results)

    assert not told.whole
    wrong = ("lost", "duplicated", "out_of_order", "wrong_version")
    assert [name for name in wrong if getattr(told, name)] == [what]


def test_what_was_sent_when_the_swap_was_over_is_of_the_new_version() -> None:
    elsewhere = [*ALL[:6], served(6, "1", partition=1), ALL[7]]

    assert report(elsewhere).wrong_version == 1
    assert report([*ALL[:5], served(5, "1", partition=1), *ALL[6:]]).wrong_version == 0


def test_a_repeat_counts_once_and_in_no_order() -> None:
    told = report([*ALL, ALL[0], ALL[0]])

    assert (told.duplicated, told.out_of_order, told.wrong_version) == (2, 0, 0)


def test_a_record_that_nobody_could_serve_is_of_no_version() -> None:
    failed = changed(0, status="failed", model=None, predictions=None)

    assert report(failed).whole
    assert report(failed).accuracy == 1.0


def test_no_results_are_all_lost() -> None:
    told = report([])

    assert (told.lost, told.accuracy, told.age_ms) == (8, 0.0, {"p50": 0.0, "p99": 0.0})


@pytest.mark.parametrize("count", [10, 11, 400])
def test_three_of_the_messages_are_such_that_nobody_could_serve(count: int) -> None:
    made = messages(count)

    assert [sent.key for sent in made] == [f"{number:06d}" for number in range(count)]
    assert sum(sent.label is None for sent in made) == 3
