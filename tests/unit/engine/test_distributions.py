from importlib.metadata import packages_distributions

import pytest

from worker.engine.distributions import DISTRIBUTIONS, installed, only_one
from worker.errors import SettingsError


def test_the_one_that_is_installed_here_is_found_and_is_no_problem() -> None:
    assert set(installed()) == set(packages_distributions()["onnxruntime"])
    assert set(installed()) <= set(DISTRIBUTIONS)
    only_one(installed())


def test_several_are_an_error_that_says_what_to_uninstall() -> None:
    with pytest.raises(SettingsError) as caught:
        only_one(["onnxruntime", "onnxruntime-gpu"])
    assert str(caught.value) == (
        "onnxruntime and onnxruntime-gpu are installed together and overwrite each other: "
        "`pip uninstall onnxruntime onnxruntime-gpu`, then install the one for your device"
    )
