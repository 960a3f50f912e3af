from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.vision.resample import CUBIC, LINEAR, Kernel, resize_antialiased

Pixels = NDArray[np.uint8]


def triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def keys(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


PLAIN: dict[str, tuple[Kernel, Callable[[float], float], float]] = {
    "linear": (LINEAR, triangle, 1.0),
    "cubic": (CUBIC, keys, 2.0),
}


def pillow_rows(image: Pixels, size: int, weigh: Callable[[float], float], reach: float) -> Pixels:
    """Resize axis 0 in integers, line for line as Pillow's Resample.c does."""
    scale = len(image) / size
    filter_scale = max(scale, 1.0)
    out = np.empty((size, *image.shape[1:]), np.uint8)
    for at in range(size):
        center = (at + 0.5) * scale
        first = max(int(center - reach * filter_scale + 0.5), 0)
        last = min(int(center + reach * filter_scale + 0.5), len(image))
        weights = np.array([weigh((x - center + 0.5) / filter_scale) for x in range(first, last)])
        fixed = np.rint(weights / weights.sum() * (1 << 22)).astype(np.int64)
        total = np.tensordot(fixed, image[first:last].astype(np.int64), axes=1) + (1 << 21)
        out[at] = np.clip(total >> 22, 0, 255)
    return out


def pillow(image: Pixels, height: int, width: int, name: str) -> Pixels:
    _, weigh, reach = PLAIN[name]
    narrow = pillow_rows(image.swapaxes(0, 1), width, weigh, reach).swapaxes(0, 1)
    return pillow_rows(narrow, height, weigh, reach)


sides = st.integers(1, 70)


@settings(deadline=None)  # the machine is shared
@given(
    seed=st.integers(0, 1000),
    size_in=st.tuples(sides, sides),
    size_out=st.tuples(sides, sides),
    gray=st.booleans(),
    name=st.sampled_from(sorted(PLAIN)),
)
def test_resizing_equals_pillows_integers_to_the_last_bit(
    seed: int, size_in: tuple[int, int], size_out: tuple[int, int], *, gray: bool, name: str
) -> None:
    shape = size_in if gray else (*size_in, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    height, width = size_out
    done = resize_antialiased(image, height_px=height, width_px=width, kernel=PLAIN[name][0])
    np.testing.assert_array_equal(done, pillow(image, height, width, name))


@pytest.mark.parametrize("name", PLAIN)
def test_a_crop_of_a_large_picture_is_resized_in_strips(name: str) -> None:
    """More than one strip of rows, and rows that do not lie one behind the other."""
    large = np.random.default_rng(7).integers(0, 256, (300, 3000, 3), dtype=np.uint8)
    crop = large[10:290, 50:2950]
    done = resize_antialiased(crop, height_px=24, width_px=40, kernel=PLAIN[name][0])
    np.testing.assert_array_equal(done, pillow(crop, 24, 40, name))


@pytest.mark.parametrize("name", PLAIN)
def test_black_and_white_stay_so_beside_an_edge(name: str) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    done = resize_antialiased(image, height_px=16, width_px=16, kernel=PLAIN[name][0])
    assert (done[:, :6] == 0).all()
    assert (done[:, 10:] == 255).all()


def test_a_side_too_long_to_keep_its_weights_is_resized_all_the_same() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 9000, 3), dtype=np.uint8)
    done = resize_antialiased(image, height_px=1, width_px=8, kernel=LINEAR)
    np.testing.assert_array_equal(done, pillow(image, 1, 8, "linear"))
