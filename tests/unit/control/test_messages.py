import hashlib

import orjson
import pytest

from tests.unit.control.states import DIGEST, digits, state
from worker.control.messages import (
    ModelState,
    PinOrder,
    Selector,
    digest,
    encode_state,
    frozen,
    settings_state,
)
from worker.errors import SettingsError
from worker.types import ModelRef


def test_the_settings_state_names_its_versions_and_has_no_generation() -> None:
    state = settings_state({"digits": "1", "cats": "2"}, "digits", fleet="line-3")
    assert state.refs == (ModelRef("digits", "1"), ModelRef("cats", "2"))
    assert (state.fleet, state.epoch, state.generation) == ("line-3", "", None)
    assert state.models["cats"] == ModelState(frozen({"2": None}), "2")


def test_nobody_can_change_it_afterwards() -> None:
    active = {"digits": "1"}
    state = settings_state(active, "digits")
    active["digits"] = "2"
    assert state.refs == (ModelRef("digits", "1"),)
    with pytest.raises(TypeError):
        state.models["digits"] = None  # type: ignore[index]  # that it cannot be written is shown


def test_a_default_that_is_no_model_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"models\.default: 'dogs'.*names: cats, digits"):
        settings_state({"digits": "1", "cats": "1"}, "dogs")


def test_a_model_is_replaced_in_another_state_not_in_this_one() -> None:
    before = state()
    after = before.with_model("cats", ModelState(frozen({"1": None}), "1"))
    assert set(before.models) == {"digits"}
    assert after._replace(models=before.models) == before
    assert set(after.models) == {"digits", "cats"}


def test_the_canonical_bytes_are_sorted_and_hold_nothing_that_is_empty() -> None:
    assert encode_state(state()) == (
        b'{"default":"digits","epoch":"e-1","fleet":"default","generation":7,"models":{"digits":'
        b'{"activated":0,"active":"1","reload":0,"versions":{"1":"%b","2":"%b"}}},'
        b'"schema":"darkroom.desired.v1","written_at_ms":0,"written_by":""}'
    ) % (DIGEST.encode(), DIGEST.encode())


def test_the_digest_is_that_of_the_canonical_bytes_however_the_state_was_made() -> None:
    one = digits(aliases=frozen({"a": "1", "b": "2"}))
    other = digits(aliases=frozen({"b": "2", "a": "1"}))
    assert digest(one) == digest(other) == hashlib.sha256(encode_state(one)).hexdigest()
    assert digest(one) != digest(state())


def test_a_pin_of_the_whole_fleet_names_no_workers() -> None:
    document = orjson.loads(encode_state(digits(pins=(PinOrder("1"),))))
    assert document["models"]["digits"]["pins"] == [{"version": "1", "strict": True}]


@pytest.mark.parametrize(
    ("selector", "matches", "rank"),
    [
        (Selector(), True, 0),
        (Selector(labels=frozen({"zone": "a"})), True, 1),
        (Selector(labels=frozen({"zone": "a", "gpu": "yes"})), False, 1),
        (Selector(labels=frozen({"zone": "b"})), False, 1),
        (Selector(worker="w-1"), True, 2),
        (Selector(worker="w-2"), False, 2),
    ],
)
def test_a_selector_means_one_worker_or_those_with_all_labels_or_the_fleet(
    selector: Selector, *, matches: bool, rank: int
) -> None:
    assert selector.matches("w-1", {"zone": "a", "disk": "ssd"}) is matches
    assert selector.rank == rank
