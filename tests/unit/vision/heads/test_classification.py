from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from worker.errors import ModelError, RecordFault
from worker.models.manifest import Activation, ClassificationHead
from worker.types import Reason
from worker.vision.heads.classification import activate, compile_head, top

HEAD = ClassificationHead(output="scores", activation="none", labels="labels.txt", top_k=3)


def head(
    activation: Activation = "none", *, top_k: int = 3, threshold: float = 0.0
) -> ClassificationHead:
    return ClassificationHead(
        output="scores",
        activation=activation,
        labels="labels.txt",
        top_k=top_k,
        threshold=threshold,
    )


def answers(spec: ClassificationHead, output: NDArray[Any], labels: list[str]) -> list[object]:
    return [
        row if isinstance(row, RecordFault) else orjson.loads(row)
        for row in compile_head(spec, labels)(output)
    ]


scores = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 150)),
    elements=st.floats(-100, 100, width=32),
)


@settings(deadline=None)
@given(scores)
def test_softmax_agrees_with_its_definition(given_scores: NDArray[np.float32]) -> None:
    wide = np.exp(given_scores.astype(np.float64) - given_scores.max(axis=1, keepdims=True))
    expected = wide / wide.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(activate(given_scores, "softmax"), expected, rtol=1e-4, atol=1e-36)


@settings(deadline=None)
@given(scores)
def test_sigmoid_agrees_with_its_definition(given_scores: NDArray[np.float32]) -> None:
    expected = 1 / (1 + np.exp(-given_scores.astype(np.float64)))
    np.testing.assert_allclose(activate(given_scores, "sigmoid"), expected, rtol=1e-5, atol=1e-36)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_largest_scores_do_not_overflow(activation: Activation) -> None:
    largest = float(np.finfo(np.float32).max)
    given_scores = np.array([[largest, -largest, 0.0]], np.float32)
    done = activate(given_scores, activation)
    assert done[0, 0] == 1.0
    assert done[0, 1] == 0.0


@settings(deadline=None)
@given(scores, st.integers(1, 200))
def test_top_is_the_head_of_all_sorted(given_scores: NDArray[np.float32], k: int) -> None:
    indices, values = top(given_scores, k)
    expected = -np.sort(-given_scores, axis=1)[:, :k]
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.take_along_axis(given_scores, indices, axis=1), expected)
    assert all(len(set(row)) == len(row) for row in indices.tolist())


@pytest.mark.parametrize("classes", [5, 500])
def test_equal_scores_stand_in_the_order_of_their_labels(classes: int) -> None:
    given_scores = np.zeros((1, classes), np.float32)
    given_scores[0, [1, 3, 4]] = 1.0
    indices, _ = top(given_scores, 3)
    assert indices.tolist() == [[1, 3, 4]]


def test_a_row_is_its_best_labels_best_first() -> None:
    output = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    assert answers(head(top_k=2), output, ["a", 'quoted "b"', "č"]) == [
        [
            {"label": 'quoted "b"', "index": 1, "score": 0.7},
            {"label": "č", "index": 2, "score": 0.2},
        ],
        [
            {"label": "a", "index": 0, "score": 0.5},
            {"label": 'quoted "b"', "index": 1, "score": 0.25},
        ],
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 1, 1)])
def test_trailing_axes_of_one_are_dropped(shape: tuple[int, ...], dtype: type) -> None:
    output: NDArray[Any] = np.array([[1, 2, 3], [9, 8, 7]], dtype).reshape(shape)
    done = answers(head(top_k=1), output, ["a", "b", "c"])
    assert done == [
        [{"label": "c", "index": 2, "score": 3}],
        [{"label": "a", "index": 0, "score": 9}],
    ]


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 3), (6,), (2, 3, 2)])
def test_an_output_that_does_not_fit_its_labels_is_the_models_fault(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"labels\.txt has 3 labels") as caught:
        compile_head(HEAD, ["a", "b", "c"])(np.zeros(shape, np.float32))
    assert caught.value.field == "output scores"


def test_below_the_threshold_nothing_is_told() -> None:
    output = np.array([[0.1, 0.6, 0.3], [0.2, 0.2, 0.2]], np.float32)
    first, second = answers(head(threshold=0.3), output, ["a", "b", "c"])
    assert isinstance(first, list)
    assert [entry["label"] for entry in first] == ["b", "c"]
    assert second == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_a_row_that_is_not_finite_leaves_its_neighbours_alone(
    bad: float, activation: Activation
) -> None:
    output = np.array([[1, 2, 3], [4, 5, 6], [3, 2, 1]], np.float32)
    alone = answers(head(activation), output, ["a", "b", "c"])
    output[1, 0] = bad
    first, second, third = answers(head(activation), output, ["a", "b", "c"])
    assert isinstance(second, RecordFault)
    assert second.reason is Reason.RESULT_NOT_FINITE
    assert "scores" in str(second)
    assert [first, third] == [alone[0], alone[2]]


def test_a_double_beyond_float32_is_not_finite() -> None:
    [row] = answers(head(), np.array([[1e300, 0, 0]]), ["a", "b", "c"])
    assert isinstance(row, RecordFault)


@settings(deadline=None)
@given(st.floats(0, 1, width=32))
def test_scores_are_numbers_of_six_digits(score: float) -> None:
    [row] = compile_head(head(top_k=1), ["a"])(np.array([[score]], np.float32))
    assert isinstance(row, bytes)
    told = orjson.loads(row)[0]["score"]
    assert told == pytest.approx(score, rel=1e-5, abs=0)
    assert told == float(f"{score:.6g}")
