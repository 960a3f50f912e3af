import json
from typing import Any

import pytest

from worker.cli.results import _cells, _line, _row

OK = {
    "schema": "darkroom.result.v1",
    "status": "ok",
    "id": "images/3/1234@1795353364250",
    "source": {"topic": "images", "partition": 3, "offset": 1234, "timestamp_ms": 1795353364250},
    "model": {"name": "digits", "version": "1"},
    "predictions": {"digit": [{"label": "7", "index": 7, "score": 0.98}]},
    "engine": {"batch_size": 16},
    "age_ms": 21.0,
}


def test_a_served_record_is_a_line_with_its_best_prediction() -> None:
    cells = _cells(_row(json.dumps(OK).encode()))

    assert cells.pop("time").startswith(tuple("012"))
    assert cells == {
        "id": "images/3/1234@1795353364250",
        "status": "ok",
        "model": "digits@1",
        "prediction": "7 0.98",
        "batch": "16",
        "age": "21 ms",
        "reason": "",
    }


def test_a_failed_record_is_a_line_with_its_reason_and_no_model() -> None:
    failed = {
        **OK,
        "status": "failed",
        "reason": "image.corrupt",
        "message": "broken",
        "model": None,
        "engine": None,
        "predictions": None,
    }

    cells = _cells(_row(json.dumps(failed).encode()))

    assert (cells["status"], cells["model"], cells["prediction"]) == ("failed", "-", "-")
    assert (cells["batch"], cells["reason"]) == ("-", "image.corrupt: broken")


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[]", b"{}", b'{"status": 1}'])
def test_what_is_no_result_is_said_to_be_unreadable(value: bytes | None) -> None:
    cells = _cells(_row(value))

    assert (cells["status"], cells["reason"]) == ("unreadable", "no result of Darkroom")


@pytest.mark.parametrize(
    ("predictions", "said"),
    [
        ({"digit": []}, "digit: nothing"),
        ({"face": {"dim": 128, "vector": [0.0]}}, "face"),
        ({}, "-"),
    ],
)
def test_a_prediction_of_any_head_has_a_short_form(predictions: dict[str, Any], said: str) -> None:
    assert _cells({**OK, "predictions": predictions})["prediction"] == said


def test_columns_stand_below_each_other_and_long_cells_are_cut() -> None:
    short, long = _cells(OK), {**_cells(OK), "id": "x" * 100}

    assert _line(short).index("ok") == _line(long).index("ok")
    assert "x…  ok" in _line(long)
