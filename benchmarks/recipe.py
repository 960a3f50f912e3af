"""A model served by hand, as a good engineer would write it without Darkroom: cv2, NumPy, one run.

It shares nothing with `worker/`: it is what the loops beside it do with a chunk of pictures, and it
says what the golden samples of a case must be, so that both paths are held to each other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


class Recipe(NamedTuple):
    """What a picture must become, and what is read off the model; plain JSON."""

    model: str
    """Path of the ONNX file."""
    labels: str
    """Path of the labels, one a line."""
    head: str
    input: str
    output: str
    size_px: int
    gray: bool
    """One channel; otherwise three, BGR."""
    area: bool
    """Resize by area; otherwise linear."""
    scale: float
    mean: float
    std: float
    softmax: bool
    top_k: int


class ByHand:
    """One session, for any thread; `careful=False` leaves its options as ONNX Runtime has them."""

    def __init__(self, recipe: Recipe, *, careful: bool = True) -> None:
        options = ort.SessionOptions()
        if careful:
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            options.log_severity_level = 3  # squeezenet's graph is worth a warning at every run
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            cv2.setNumThreads(1)
        self._recipe = recipe
        self._labels = Path(recipe.labels).read_text("utf-8").splitlines()
        self._session = ort.InferenceSession(
            recipe.model, sess_options=options, providers=["CPUExecutionProvider"]
        )

    def serve(self, images: Sequence[bytes]) -> list[list[dict[str, Any]]]:
        """Return the best labels of each picture: `[{label, index, score}, ...]`, best first."""
        recipe = self._recipe
        channels = 1 if recipe.gray else 3
        batch = np.empty((len(images), channels, recipe.size_px, recipe.size_px), np.float32)
        for row, data in zip(batch, images, strict=True):
            self._fill(row, data)
        (scores,) = self._session.run([recipe.output], {recipe.input: batch})
        scores = np.asarray(scores).reshape(len(images), -1)
        if recipe.softmax:
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = powers / powers.sum(axis=1, keepdims=True)
        return self._best(scores)

    def _fill(self, row: Array, data: bytes) -> None:
        recipe = self._recipe
        flag = cv2.IMREAD_GRAYSCALE if recipe.gray else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        if image is None:
            raise ValueError("a picture that cannot be decoded")
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
        if side != recipe.size_px:
            how = cv2.INTER_AREA if recipe.area else cv2.INTER_LINEAR
            image = cv2.resize(image, (recipe.size_px, recipe.size_px), interpolation=how)
        if recipe.gray:
            row[0] = image
        else:
            for plane, channel in zip(row, cv2.split(image), strict=True):
                plane[...] = channel
        if (recipe.scale, recipe.mean, recipe.std) != (1.0, 0.0, 1.0):
            row *= recipe.scale / recipe.std
            row -= recipe.mean / recipe.std

    def _best(self, scores: Array) -> list[list[dict[str, Any]]]:
        k = self._recipe.top_k
        best = np.argpartition(-scores, min(k, scores.shape[1] - 1), axis=1)[:, :k]
        values = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-values, axis=1)
        best = np.take_along_axis(best, order, axis=1).tolist()
        values = np.take_along_axis(values, order, axis=1).tolist()
        return [
            [
                {"label": self._labels[index], "index": index, "score": score}
                for index, score in zip(*row, strict=True)
            ]
            for row in zip(best, values, strict=True)
        ]
