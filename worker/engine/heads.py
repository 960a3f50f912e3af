"""From the manifest's heads to functions that read outputs: labels in, JSON of each row out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from worker.engine.model import Array, Reading
from worker.errors import ModelError, RecordFault
from worker.models.manifest import ClassificationHead, Manifest
from worker.types import Reason


def read_labels(folder: Path, head: ClassificationHead) -> tuple[str, ...]:
    """Read a file of labels, one a line.

    Raises ModelError for one that is not text, or holds an empty line.
    """
    path = folder / head.labels
    try:
        labels = tuple(path.read_text("utf-8").rstrip("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot be read as text: {error}", file=str(path)) from error
    return labels


def compile_heads(
    manifest: Manifest, labels: Mapping[str, Sequence[str]]
) -> dict[str, Callable[[Array], list[Reading]]]:
    return {name: partial(_read, head, labels[name]) for name, head in manifest.heads.items()}


def _read(head: ClassificationHead, labels: Sequence[str], output: Array) -> list[Reading]:
    scores: Array = output.reshape(len(output), -1).astype(np.float32)
    if head.activation == "softmax":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    elif head.activation == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    out: list[Reading] = []
    for row in scores:
        if not np.isfinite(row).all():
            out.append(RecordFault(Reason.RESULT_NOT_FINITE, "NaN"))
            continue
        order = np.argsort(-row)[: head.top_k]
        out.append(
            orjson.dumps(
                [
                    {"label": labels[i], "index": int(i), "score": float(row[i])}
                    for i in order
                    if row[i] >= head.threshold
                ]
            )
        )
    return out
