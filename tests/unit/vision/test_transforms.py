from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.errors import ModelError, RecordFault
from worker.models.manifest import (
    Cast,
    CenterCrop,
    ChannelSwap,
    Color,
    ColorSpace,
    Normalize,
    Resize,
    Step,
)
from worker.types import Reason
from worker.vision.resample import LINEAR, resize_antialiased
from worker.vision.transforms import compile_steps, cut_steps

Array = NDArray[Any]

SQUARE = Resize(size=(8, 8))
INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST_EXACT,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


def picture(height: int = 21, width: int = 34, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def transformed(steps: list[Step], image: NDArray[np.uint8], like: Array) -> Array:
    """Run compiled steps into the middle row of a batch; the other rows must stay as they are."""
    transform = compile_steps(steps, row_shape=like.shape, row_dtype=like.dtype)
    batch = np.full((3, *like.shape), 77, like.dtype)
    transform(image, batch[1])
    assert (batch[0] == 77).all()
    assert (batch[2] == 77).all()
    pixels = cut_steps(steps, row_shape=like.shape, row_dtype=like.dtype)
    row, finished = np.empty(pixels.shape, np.uint8), np.empty_like(batch[1])
    pixels.prepare(image, row)
    pixels.finish(row, finished)
    np.testing.assert_array_equal(finished, batch[1], err_msg="cut in two it is something else")
    return np.asarray(batch[1])


def plain(steps: list[Step], image: Array) -> Array:
    """The same steps one by one in plain NumPy, as slow and as obvious as can be."""
    color, chw = "rgb", False
    for step in steps:
        match step:
            case CenterCrop() | Resize():
                image = plain_size(step, image)
            case Color(to="gray"):
                ahead = image if color == "rgb" else image[..., ::-1]
                image = cv2.cvtColor(np.ascontiguousarray(ahead), cv2.COLOR_RGB2GRAY)[..., None]
                color = "gray"
            case Color(to=to):
                image = image if to == color else image[..., ::-1]
                color = to
            case Normalize(scale=scale, mean=mean, std=std):
                axes = (-1, 1, 1) if chw else (1, 1, -1)
                wide = image.astype(np.float64) * scale - np.array(mean).reshape(axes)
                kept = np.float16 if image.dtype == np.float16 else np.float32
                image = (wide / np.array(std).reshape(axes)).astype(kept)
            case ChannelSwap():
                image, chw = image.transpose(2, 0, 1), True
            case Cast(to=dtype):
                image = image.astype(dtype)
    return image


def plain_size(step: CenterCrop | Resize, image: Array) -> Array:
    channels = image.shape[2]
    match step:
        case CenterCrop(output_size=asked):
            height, width = asked or (min(image.shape[:2]),) * 2
            top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
            return image[top : top + height, left : left + width]
        case Resize(size=(height, width), antialias=True):
            done = resize_antialiased(image, height_px=height, width_px=width, kernel=LINEAR)
            return done.reshape(height, width, channels)
        case Resize(size=size, short_side=side, interpolation=name):
            short = side or 1
            height, width = size or (short * n // min(image.shape[:2]) for n in image.shape[:2])
            how = INTERPOLATIONS[name]
            if image.shape[:2] == (height, width):
                return image
            resized = np.asarray(cv2.resize(image, (width, height), interpolation=how))
            return resized.reshape(height, width, channels)


levels = st.floats(-200, 200, width=16)
normalizes = st.builds(
    Normalize,
    scale=st.sampled_from([1.0, 1 / 255, 2.0, 0.0078125]),
    mean=levels.map(lambda level: (level,)),
    std=st.sampled_from([(1.0,), (0.229,), (57.375,), (-2.0,)]),
)
crops = st.sampled_from([CenterCrop(square=True), CenterCrop(output_size=(12, 17))])
resizes = st.builds(
    Resize,
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    interpolation=st.sampled_from(["nearest", "linear", "cubic", "area"]),
) | st.builds(
    Resize, size=st.tuples(st.integers(1, 40), st.integers(1, 40)), antialias=st.just(True)
)


orders: list[list[ColorSpace]] = [[], ["bgr"], ["gray"], ["bgr", "gray"], ["bgr", "rgb"]]


@st.composite
def valid_steps(draw: st.DrawFn) -> list[Step]:
    sizes: list[Step] = [*draw(st.lists(crops, max_size=1)), draw(resizes)]
    colors: list[Step] = [Color(to=to) for to in draw(st.sampled_from(orders))]
    rest: list[Step] = list(draw(st.lists(normalizes, max_size=2)))
    rest += [Cast(to=draw(st.sampled_from(["float32", "float16"])))] * draw(st.integers(0, 1))
    rest += [ChannelSwap()] * draw(st.integers(0, 1))
    return [*merged(draw, sizes, colors), *draw(st.permutations(rest))]


def merged(draw: st.DrawFn, first: list[Step], second: list[Step]) -> list[Step]:
    """Both lists in one, each in its order."""
    places = draw(st.permutations([True] * len(first) + [False] * len(second)))
    ones, twos = iter(first), iter(second)
    return [next(ones) if place else next(twos) for place in places]


@settings(deadline=None)  # the machine is shared
@given(steps=valid_steps(), seed=st.integers(0, 100))
def test_compiled_steps_equal_the_same_steps_one_by_one(steps: list[Step], seed: int) -> None:
    image = picture(seed=seed)
    expected = plain(steps, image)
    np.testing.assert_array_equal(transformed(steps, image, expected), expected)


@settings(deadline=None)  # the machine is shared
@given(steps=valid_steps(), seed=st.integers(0, 100))
def test_one_channel_gives_what_three_equal_ones_give(steps: list[Step], seed: int) -> None:
    gray = picture(seed=seed)[..., 0]
    expected = plain(steps, np.dstack([gray] * 3))
    np.testing.assert_array_equal(transformed(steps, gray, expected), expected)


@pytest.mark.parametrize("chw", [True, False])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_mean_and_std_of_each_channel_follow_the_order_of_channels(
    *, chw: bool, color: str
) -> None:
    steps: list[Step] = [SQUARE, Color(to="bgr")] if color == "bgr" else [SQUARE]
    steps.append(Normalize(scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    steps += [ChannelSwap()] * chw
    expected = plain(steps, picture())
    np.testing.assert_array_equal(transformed(steps, picture(), expected), expected)


def test_the_contracts_example_is_compiled() -> None:
    steps: list[Step] = [
        CenterCrop(square=True),
        Resize(size=(224, 224), interpolation="linear", antialias=True),
        Color(to="bgr"),
        Normalize(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1)),
        ChannelSwap(),
        Cast(to="float32"),
    ]
    expected = plain(steps, picture(300, 451))
    assert expected.shape == (3, 224, 224)
    np.testing.assert_array_equal(transformed(steps, picture(300, 451), expected), expected)


@pytest.mark.parametrize(("height", "width"), [(21, 34), (34, 21), (20, 20), (7, 300)])
def test_short_side_and_a_crop_that_fits_give_a_known_size(height: int, width: int) -> None:
    steps: list[Step] = [Resize(short_side=16), CenterCrop(output_size=(16, 12))]
    image = picture(height, width)
    expected = plain(steps, image)
    assert expected.shape == (16, 12, 3)
    np.testing.assert_array_equal(transformed(steps, image, expected), expected)


@pytest.mark.parametrize(
    ("step", "size"),
    [
        (Resize(short_side=10), (10, 16)),
        (Resize(long_side=17), (10, 17)),
        (Resize(long_side=1), (1, 1)),
        (Resize(short_side=21), (21, 34)),
    ],
)
def test_the_side_that_follows_the_aspect_is_rounded_down(
    step: Step, size: tuple[int, int]
) -> None:
    like = np.empty((*size, 3), np.uint8)
    first = Resize(size=(21, 34))
    assert transformed([first, step], picture(), like).shape == like.shape


def test_a_picture_smaller_than_the_crop_is_left_whole_for_the_resize() -> None:
    steps: list[Step] = [CenterCrop(output_size=(100, 20)), SQUARE]
    expected = cv2.resize(picture()[:, 7:27], (8, 8), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(transformed(steps, picture(), expected), expected)


@pytest.mark.parametrize("shape", [(1, 65), (65, 1)])
def test_a_strip_that_would_grow_without_bound_is_the_records_fault(shape: tuple[int, int]) -> None:
    steps: list[Step] = [Resize(short_side=256), CenterCrop(square=True)]
    transform = compile_steps(steps, row_shape=(256, 256, 3), row_dtype=np.dtype(np.uint8))
    row = np.empty((256, 256, 3), np.uint8)
    transform(picture(1, 64), row)
    with pytest.raises(RecordFault, match="64 times") as caught:
        transform(picture(*shape), row)
    assert caught.value.reason is Reason.IMAGE_TOO_MANY_PIXELS


F32 = np.dtype(np.float32)
ROW = (3, 8, 8)


@pytest.mark.parametrize(
    ("steps", "field", "words"),
    [
        ([Normalize(), SQUARE], "[1].resize", "put it before normalize"),
        ([SQUARE, ChannelSwap(), Color(to="bgr")], "[2].color", "put it before"),
        ([SQUARE, Cast(to="float32"), CenterCrop(square=True)], "[2].center_crop", "put it before"),
        ([SQUARE, Color(to="gray"), Color(to="bgr")], "[2].color", "gray cannot become bgr"),
        ([SQUARE, Normalize(mean=(1, 2))], "[1].normalize", "mean has 2 values"),
        ([SQUARE, Color(to="gray"), Normalize(std=(1, 2, 3))], "[2].normalize", "std has 3 values"),
        ([SQUARE, Normalize(std=(1, 0, 1))], "[1].normalize", "std has a zero"),
        ([SQUARE, Normalize(scale=1e300)], "[1].normalize", "range of float32"),
        ([SQUARE, Normalize(), Cast(to="uint8")], "[2].cast", "float32 to uint8"),
        ([SQUARE, ChannelSwap(), ChannelSwap()], "[2].channel_swap", "CHW already"),
        ([Resize()], "[0].resize", "exactly one of"),
        ([Resize(size=(8, 8), short_side=8)], "[0].resize", "exactly one of"),
        (
            [Resize(size=(8, 8), interpolation="area", antialias=True)],
            "[0].resize",
            "not with area",
        ),
        ([CenterCrop()], "[0].center_crop", "square: true or output_size"),
        (
            [SQUARE, CenterCrop(output_size=(9, 8))],
            "[1].center_crop",
            "9 x 8 do not fit into 8 x 8",
        ),
        ([Resize(short_side=8), CenterCrop(output_size=(9, 9))], "[1].center_crop", "do not fit"),
        ([], "", "depends on the picture"),
        ([CenterCrop(square=True)], "", "depends on the picture"),
        ([Resize(long_side=8)], "", "depends on the picture"),
        ([SQUARE], "", "gives uint8 [8, 8, 3] (HWC), the graph takes float32 [3, 8, 8]"),
        ([SQUARE, ChannelSwap()], "", "gives uint8 [3, 8, 8] (CHW), the graph takes float32"),
        ([SQUARE, Color(to="gray"), ChannelSwap(), Cast(to="float32")], "", "[1, 8, 8]"),
        ([SQUARE, ChannelSwap(), Normalize(), Cast(to="float16")], "", "gives float16"),
    ],
)
def test_a_step_that_does_not_fit_is_named(steps: list[Step], field: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        compile_steps(steps, row_shape=ROW, row_dtype=F32, field="inputs.data_0.preprocess")
    assert caught.value.field == f"inputs.data_0.preprocess{field}"
    assert words in str(caught.value)


def test_gray_levels_pass_unchanged_from_a_gray_picture() -> None:
    steps: list[Step] = [SQUARE, Color(to="gray"), ChannelSwap(), Cast(to="float32")]
    image = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4, 3, axis=2)
    row = transformed(steps, image, np.empty((1, 8, 8), np.float32))
    np.testing.assert_array_equal(row[0], image[..., 0])
