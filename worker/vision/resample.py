"""Antialiased resizing of uint8 images, as Pillow and torchvision do it; OpenCV has none.

Method: `ImagingResample` of Pillow (src/libImaging/Resample.c): a separable filter, widened by the
ratio when shrinking, columns first, rounded to uint8 between the two passes. Here each pass is a
banded matrix, multiplied in blocks that are dense and fit the cache. Weights are integers, as
Pillow's are, and float64 adds their products without rounding: equal to Pillow to the last bit, on
every machine (with float32 a tie would fall as the BLAS library likes).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 8
"""Output pixels of one block: fewer cost calls, more cost multiplications by zero (measured)."""
_STRIP_FLOATS: Final = 1 << 18
"""Input converted to float64 at a time: 2 MiB; less costs calls, more costs cache."""
_CACHED_SIDE_PX: Final = 8192
"""Weights take up to 90 bytes for each pixel of a side; those of longer ones are not kept."""
_WEIGHT_ONE: Final = float(1 << 22)
"""Pillow's weights are fixed-point numbers of 22 bits; here they stand as integers / 2^22."""


class Kernel(NamedTuple):
    """An interpolation filter."""

    weigh: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    support: float
    overshoots: bool


class _Block(NamedTuple):
    """Outputs `first` to `last` are inputs `start` to `stop` times `weights` [inputs, outputs]."""

    first: int
    last: int
    start: int
    stop: int
    weights: NDArray[np.float64]


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weigh by Keys' cubic with a = -0.5, which Pillow and torchvision use when antialiasing."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


LINEAR: Final = Kernel(_triangle, 1.0, overshoots=False)
CUBIC: Final = Kernel(_keys, 2.0, overshoots=True)


def resize_antialiased(
    image: NDArray[np.uint8], *, height_px: int, width_px: int, kernel: Kernel
) -> NDArray[np.uint8]:
    """Resize a uint8 image [H, W] or [H, W, C], C-contiguous or a crop of such an image."""
    planes = _planes(image)
    channels, rows_in, _ = planes.shape
    columns = _blocks(planes.shape[2], width_px, kernel)
    narrow = _shrink_columns(planes.reshape(channels * rows_in, -1), columns, kernel)
    narrow = narrow.reshape(channels, rows_in, width_px)
    out = np.empty((channels, height_px, width_px), np.float64)
    for first, last, start, stop, weights in _blocks(rows_in, height_px, kernel):
        np.matmul(weights.T, narrow[:, start:stop].astype(np.float64), out=out[:, first:last])
    done = np.empty(out.shape, np.uint8)
    _round(out, done, kernel)
    return done[0] if image.ndim == 2 else _merged(done)


def _planes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 2:
        return np.ascontiguousarray(image)[np.newaxis]
    planes = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return planes


def _merged(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.merge(list(planes)), np.uint8)


def _shrink_columns(
    rows: NDArray[np.uint8], blocks: tuple[_Block, ...], kernel: Kernel
) -> NDArray[np.uint8]:
    (count, width_in), width_out = rows.shape, blocks[-1].last
    out = np.empty((count, width_out), np.uint8)
    strip = min(count, max(1, _STRIP_FLOATS // width_in))
    wide_buffer = np.empty((strip, width_in), np.float64)  # one for all strips: new memory is slow
    narrow_buffer = np.empty((strip, width_out), np.float64)
    for at in range(0, count, strip):
        size = min(strip, count - at)
        wide, narrow = wide_buffer[:size], narrow_buffer[:size]
        np.copyto(wide, rows[at : at + size])
        for first, last, start, stop, weights in blocks:
            np.matmul(wide[:, start:stop], weights, out=narrow[:, first:last])
        _round(narrow, out[at : at + size], kernel)
    return out


def _round(values: NDArray[np.float64], out: NDArray[np.uint8], kernel: Kernel) -> None:
    """Round half up, as Pillow does; only a filter that overshoots can leave 0..255."""
    if kernel.overshoots:
        np.clip(values, 0, 255, out=values)
    values += 0.5
    np.copyto(out, values, casting="unsafe")


def _blocks(size_in: int, size_out: int, kernel: Kernel) -> tuple[_Block, ...]:
    make = _cached_blocks if size_in <= _CACHED_SIDE_PX else _make_blocks
    return make(size_in, size_out, kernel)


def _make_blocks(size_in: int, size_out: int, kernel: Kernel) -> tuple[_Block, ...]:
    ratio = size_in / size_out
    stretch = max(ratio, 1.0)
    support = kernel.support * stretch
    blocks = []
    for first in range(0, size_out, _BLOCK):
        last = min(first + _BLOCK, size_out)
        centers = (np.arange(first, last) + 0.5) * ratio
        start = max(int(centers[0] - support + 0.5), 0)
        stop = min(int(centers[-1] + support + 0.5), size_in)
        offsets = np.arange(start, stop)[:, np.newaxis] + 0.5 - centers
        weights = kernel.weigh(offsets / stretch)
        weights /= weights.sum(axis=0)
        fixed = np.rint(weights * _WEIGHT_ONE) / _WEIGHT_ONE
        blocks.append(_Block(first, last, start, stop, fixed))
    return tuple(blocks)


_cached_blocks = lru_cache(maxsize=64)(_make_blocks)
