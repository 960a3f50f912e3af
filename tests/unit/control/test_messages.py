import pytest

from worker.control.messages import desired
from worker.errors import SettingsError
from worker.types import ModelRef


def test_a_desired_state_names_its_versions_and_where_it_comes_from() -> None:
    state = desired({"digits": "1", "cats": "2"}, "digits")
    assert state.refs == (ModelRef("digits", "1"), ModelRef("cats", "2"))
    assert state.generation is None
    assert desired({"digits": "1"}, "digits", generation=4).generation == 4


def test_nobody_can_change_it_afterwards() -> None:
    models = {"digits": "1"}
    state = desired(models, "digits")
    models["digits"] = "2"
    assert state.models == {"digits": "1"}
    with pytest.raises(TypeError):
        state.models["digits"] = "2"  # type: ignore[index]  # that it cannot be written is shown


def test_a_default_that_is_no_model_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"models\.default: 'dogs'.*names: cats, digits"):
        desired({"digits": "1", "cats": "1"}, "dogs")
