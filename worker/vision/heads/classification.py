"""Classification: one output [N, classes, 1...] -> for each row the JSON list of its best labels.

Pure functions over whole batches; must not know sessions, files or what else the result holds.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from worker.errors import ModelError, RecordFault
from worker.models.manifest import Activation, ClassificationHead
from worker.types import Reason

Scores = NDArray[np.float32]
"""[N, classes]."""
Encoded = bytes | RecordFault
"""`[{"label": ..., "index": ..., "score": ...}, ...]`, best first, or why the row has none."""

_SORTED_CLASSES: Final = 64
"""Up to here sorting all classes costs no more than picking out the best first."""


def compile_head(
    head: ClassificationHead, labels: Sequence[str]
) -> Callable[[NDArray[Any]], list[Encoded]]:
    """Return `encode(output)` for one head: as many answers as rows, in their order.

    A row with a score that is not finite gets RecordFault(result.not-finite); its neighbours do not
    notice. Scores are written with 6 significant digits: float32 holds no more than 7, and the same
    record on another batch or machine agrees in 4.
    """
    starts = [
        b'{"label":%b,"index":%d,"score":' % (orjson.dumps(label), index)
        for index, label in enumerate(labels)
    ]
    return partial(_encode, head, starts)


def _encode(
    head: ClassificationHead, starts: Sequence[bytes], output: NDArray[Any]
) -> list[Encoded]:
    scores = _flat(head, output, classes=len(starts))
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    if not finite.all():
        scores = np.where(finite[:, np.newaxis], scores, np.float32(0))
    best, best_scores = top(activate(scores, head.activation), head.top_k)
    kept = (best_scores >= head.threshold).sum(axis=1)
    forms = [_form(count) for count in range(best.shape[1] + 1)]
    rows = zip(finite.tolist(), best.tolist(), best_scores.tolist(), kept.tolist(), strict=True)
    return [
        _row(forms[count], starts, indices[:count], values[:count]) if good else _not_finite(head)
        for good, indices, values, count in rows
    ]


def activate(scores: Scores, activation: Activation) -> Scores:
    """Turn finite raw scores [N, classes] into what is reported; no input overflows."""
    match activation:
        case "none":
            return scores
        case "softmax":
            with np.errstate(over="ignore"):  # a difference of -inf is a share of 0
                powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
        case "sigmoid":
            small = np.exp(-np.abs(scores))  # in 0..1 on both sides
            return np.asarray(np.where(scores >= 0, 1, small) / (1 + small), np.float32)


def top(scores: Scores, k: int) -> tuple[NDArray[np.intp], Scores]:
    """Return indices and values of the k best of each row, best first; equals by their index."""
    classes = scores.shape[1]
    if k >= classes or classes <= _SORTED_CLASSES:
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return best, np.take_along_axis(scores, best, axis=1)
    picked = np.sort(np.argpartition(scores, classes - k, axis=1)[:, -k:], axis=1)
    values = np.take_along_axis(scores, picked, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(picked, order, axis=1), np.take_along_axis(values, order, axis=1)


def _flat(head: ClassificationHead, output: NDArray[Any], *, classes: int) -> Scores:
    if output.ndim < 2 or output.size != len(output) * classes or output.shape[1] != classes:
        raise ModelError(
            f"the model gave {list(output.shape)}, {head.labels} has {classes} labels",
            field=f"output {head.output}",
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and that is told
        return np.asarray(output.reshape(len(output), classes), np.float32)


def _row(
    form: bytes, starts: Sequence[bytes], indices: Sequence[int], values: Sequence[float]
) -> bytes:
    """Write a row's labels in one go: a third less time than one by one."""
    parts: list[bytes | float] = [0.0] * (2 * len(indices))
    parts[::2] = [starts[index] for index in indices]
    parts[1::2] = values
    return form % tuple(parts)


def _form(count: int) -> bytes:
    return b"[%b]" % b",".join([b"%b%.6g}"] * count)


def _not_finite(head: ClassificationHead) -> RecordFault:
    return RecordFault(
        Reason.RESULT_NOT_FINITE, f"the model gave NaN or infinity in output {head.output}"
    )
