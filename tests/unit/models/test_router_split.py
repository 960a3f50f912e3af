"""The sticky split: as the weights say, and keys move only where the weights make them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.models.routing import digits, request, table
from worker.models.router import RoutingTable, route
from worker.types import Position

Split = Mapping[str, int]


def parts(split: Split, keys: Sequence[bytes], model: str = "digits") -> list[str]:
    """Return where each key goes."""
    routes = digits(versions=frozenset(split), aliases={}, split=tuple(split.items()))
    routing = RoutingTable(model, {model: routes})
    return [route(request(key=key), routing).model.version for key in keys]


KEYS = [b"user-%d" % number for number in range(100_000)]


@pytest.mark.parametrize(
    "split",
    [{"1": 50, "2": 50}, {"1": 90, "2": 10}, {"1": 1, "2": 99}, {"1": 1, "2": 2, "3": 4, "4": 1}],
    ids=str,
)
def test_a_split_is_within_one_percent_of_its_weights_over_100_000_keys(split: Split) -> None:
    counts = Counter(parts(split, KEYS))
    for version, weight in split.items():
        assert counts[version] / len(KEYS) == pytest.approx(weight / sum(split.values()), abs=0.01)


def test_records_without_a_key_are_spread_and_go_the_same_way_again() -> None:
    routing = table(digits(split=(("1", 90), ("2", 10))))
    requests = [
        request(key=None, position=Position(topic, partition, offset))
        for topic in ("images", "photos")
        for partition in range(10)
        for offset in range(1000)
    ]
    first, again = ([route(each, routing) for each in requests] for _ in range(2))
    assert first == again
    share = sum(found.model.version == "2" for found in first) / len(first)
    assert share == pytest.approx(0.1, abs=0.01)


def test_an_empty_key_is_a_key() -> None:
    routing = table(digits(split=(("1", 50), ("2", 50))))
    positions = [Position("images", 0, offset) for offset in range(50)]
    found = {route(request(key=b"", position=position), routing) for position in positions}
    assert len(found) == 1


def test_a_canary_that_grows_step_by_step_keeps_every_key_that_it_has() -> None:
    steps = [parts({"1": 100 - share, "2": share}, KEYS[:20_000]) for share in (1, 5, 25, 50, 99)]
    for before, after in pairwise(steps):
        assert all(then == "2" for now, then in zip(before, after, strict=True) if now == "2")


SPLITS = st.dictionaries(
    st.sampled_from(["1", "2", "3", "candidate"]), st.integers(1, 1000), min_size=2
)


@settings(deadline=None)
@given(split=SPLITS, data=st.data(), more=st.integers(1, 10_000))
def test_when_a_weight_grows_keys_only_move_to_its_version(
    split: Split, data: st.DataObject, more: int
) -> None:
    grown = data.draw(st.sampled_from(sorted(split)))
    before = parts(split, KEYS[:200])
    after = parts({**split, grown: split[grown] + more}, KEYS[:200])
    assert {then for now, then in zip(before, after, strict=True) if now != then} <= {grown}


@settings(deadline=None)
@given(split=SPLITS, data=st.data())
def test_when_a_version_leaves_the_split_only_its_keys_move(
    split: Split, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(split)))
    left = {version: weight for version, weight in split.items() if version != gone}
    before, after = parts(split, KEYS[:200]), parts(left, KEYS[:200])
    assert {now for now, then in zip(before, after, strict=True) if now != then} <= {gone}


def test_keys_stay_with_an_alias_that_moves_to_another_version() -> None:
    split = (("1", 70), ("candidate", 30))
    before, after = (
        [
            route(request(key=key), table(digits(aliases={"candidate": version}, split=split)))
            for key in KEYS[:1000]
        ]
        for version in ("2", "3")
    )
    moves = Counter((a.model.version, b.model.version) for a, b in zip(before, after, strict=True))
    assert moves.keys() == {("1", "1"), ("2", "3")}


def test_the_splits_of_two_models_are_independent() -> None:
    keys = KEYS[:20_000]
    ours, theirs = (parts({"1": 50, "2": 50}, keys, model) for model in ("digits", "cats"))
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(keys)
    assert same == pytest.approx(0.5, abs=0.02)
