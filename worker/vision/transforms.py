"""A manifest's preprocessing steps, checked one after the other and compiled into one function.

The function takes the upright uint8 RGB image, or one channel where the three would be equal, and
writes straight into its row of the batch tensor: the same values for both.
It keeps no state, so lanes share it. It must not know manifests' text, batches or sessions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
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
from worker.vision.resample import CUBIC, LINEAR, resize_antialiased

Image = NDArray[np.uint8]
"""[H, W, 3], or [H, W] once it is gray, or where it was gray from the start."""
Row = NDArray[Any]
Transform = Callable[[Image, Row], None]

_MAX_ASPECT: Final = 64
"""Longest a picture may be for its width where its aspect is kept: bounds the resized memory."""
_FILTERS: Final = {
    "nearest": cv2.INTER_NEAREST_EXACT,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}
_KERNELS: Final = {"linear": LINEAR, "cubic": CUBIC}
_NAMES: Final[dict[type[Step], str]] = {
    CenterCrop: "center_crop",
    Resize: "resize",
    Color: "color",
    Normalize: "normalize",
    ChannelSwap: "channel_swap",
    Cast: "cast",
}


class _Size(NamedTuple):
    """What is known of a size while no picture is there: all of it, its short side, or nothing."""

    exact: tuple[int, int] | None = None
    short: int | None = None


class Pixels(NamedTuple):
    """Preprocessing cut in two: what is done to pixels, and what is made of their levels."""

    shape: tuple[int, int, int]
    """[H, W, C] of a row of pixels, uint8."""
    prepare: Transform
    """An image -> its row of pixels."""
    finish: Transform
    """A row of pixels -> the row that the whole list would have written."""
    values: NDArray[Any]
    """[C, 256]: what each level of each channel becomes; its dtype is that of the whole row."""
    flip: bool
    """Before that the channels are turned round: RGB to BGR."""
    chw: bool


class _State(NamedTuple):
    """What the steps so far make of any picture."""

    size: _Size
    color: ColorSpace
    chw: bool
    values: NDArray[Any]
    """[channels, 256]: what each level of each channel has become; its dtype is the image's."""
    work: tuple[Callable[[Image], Image], ...]
    """Done on the uint8 pixels, in this order; the order RGB or BGR is settled when writing."""

    @property
    def raw(self) -> bool:
        """Say whether the pixels are still uint8 HWC."""
        return not self.chw and self.values.dtype == np.uint8


def compile_steps(
    steps: Sequence[Step],
    *,
    row_shape: tuple[int, ...],
    row_dtype: np.dtype[Any],
    field: str = "preprocess",
) -> Transform:
    """Compile steps into `transform(image_hwc, row)`; `field` is what errors call the list.

    The row must be C-contiguous. `normalize` is computed in float64 and rounded once. The transform
    raises RecordFault(image.too-many-pixels) for a picture more than 64 times as long as wide where
    its aspect is kept. Raises ModelError naming the first step that does not fit the one before, or
    the list when its end does not fit the row.
    """
    state = _state(steps, field)
    try:
        return partial(_transform, state.work, _writer(state, row_shape, np.dtype(row_dtype)))
    except _Misfit as misfit:
        raise ModelError(str(misfit), field=field) from None


def cut_steps(
    steps: Sequence[Step], *, row_shape: tuple[int, ...], row_dtype: np.dtype[Any]
) -> Pixels:
    """Cut steps, which `compile_steps` has accepted for this row, behind what is done to pixels."""
    state = _state(steps, "preprocess")
    exact, channels = state.size.exact, len(state.values)
    assert exact is not None
    write, gray = partial(_write_hwc, None, flip=False), state.color == "gray"
    finish = _writer(state, row_shape, row_dtype)
    return Pixels(
        shape=(*exact, channels),
        prepare=partial(_transform, state.work, write if gray else partial(_write_rgb, write)),
        finish=partial(_finish_gray, finish) if gray else finish,
        values=state.values,
        flip=state.color == "bgr",
        chw=state.chw,
    )


def _state(steps: Sequence[Step], field: str) -> _State:
    state = _State(_Size(), "rgb", chw=False, values=_levels(3), work=())
    for index, step in enumerate(steps):
        try:
            state = _after(state, step)
        except _Misfit as misfit:
            where = f"{field}[{index}].{_NAMES[type(step)]}"
            raise ModelError(str(misfit), field=where) from None
    return state


def _finish_gray(write: Transform, pixels_hwc: Image, row: Row) -> None:
    write(pixels_hwc[..., 0], row)


class _Misfit(Exception):  # noqa: N818 - named for what it says; never leaves this module
    """A step that does not fit; `compile_steps` adds which."""


def _transform(
    work: tuple[Callable[[Image], Image], ...],
    write: Transform,
    image_hwc: Image,
    row: Row,
) -> None:
    for do in work:
        image_hwc = do(image_hwc)
    write(image_hwc, row)


def _levels(channels: int) -> NDArray[np.uint8]:
    return np.tile(np.arange(256, dtype=np.uint8), (channels, 1))


# --- What each step makes of a state --------------------------------------------------------------


def _after(state: _State, step: Step) -> _State:
    match step:
        case CenterCrop() | Resize() | Color() if not state.raw:
            raise _Misfit(
                "needs the uint8 HWC image: put it before normalize, channel_swap and cast"
            )
        case CenterCrop(square=square, output_size=output_size):
            return _after_crop(state, square=square, output_size=output_size)
        case Resize():
            return _after_resize(state, step)
        case Color(to=color):
            return _after_color(state, color)
        case Normalize():
            return state._replace(values=_normalized(state.values, step))
        case ChannelSwap():
            if state.chw:
                raise _Misfit("the image is CHW already")
            return state._replace(chw=True)
        case Cast(to=to):
            if to == "uint8" and state.values.dtype != np.uint8:
                raise _Misfit(f"{state.values.dtype} to uint8 would lose what was made of it")
            return state._replace(values=state.values.astype(to))


def _after_crop(state: _State, *, square: bool, output_size: tuple[int, int] | None) -> _State:
    if square == (output_size is not None):
        raise _Misfit("needs either square: true or output_size")
    exact, short = state.size
    if output_size is None:
        side = min(exact) if exact else short
        size = _Size((side, side), side) if side else _Size()
        return state._replace(size=size, work=(*state.work, _crop_square))
    height_px, width_px = output_size
    room = exact or (short, short)
    size = _Size()
    if room[0] is not None and room[1] is not None:
        if height_px > room[0] or width_px > room[1]:
            raise _Misfit(f"{height_px} x {width_px} do not fit into {room[0]} x {room[1]}")
        size = _Size(output_size, min(output_size))
    crop = partial(_crop, height_px=height_px, width_px=width_px)
    return state._replace(size=size, work=(*state.work, crop))


def _after_resize(state: _State, step: Resize) -> _State:
    if sum(ask is not None for ask in (step.size, step.short_side, step.long_side)) != 1:
        raise _Misfit("needs exactly one of size, short_side and long_side")
    if step.antialias and step.interpolation not in _KERNELS:
        raise _Misfit(f"antialias works with linear and cubic, not with {step.interpolation}")
    target = partial(_target, step)
    if step.size:
        size = _Size(step.size, min(step.size))
    elif state.size.exact:
        exact = target(*state.size.exact)
        size = _Size(exact, min(exact))
    else:
        size = _Size(short=step.short_side)
    if step.antialias:
        scale = partial(resize_antialiased, kernel=_KERNELS[step.interpolation])
    else:
        scale = partial(_scale, interpolation=_FILTERS[step.interpolation])
    scale = scale if state.color == "gray" else partial(_scale_rgb, scale)
    return state._replace(size=size, work=(*state.work, partial(_resize, target, scale)))


def _after_color(state: _State, color: ColorSpace) -> _State:
    if color == state.color:
        return state
    if state.color == "gray":
        raise _Misfit(f"gray cannot become {color} again")
    if color != "gray":
        return state._replace(color=color)
    return state._replace(color=color, values=_levels(1), work=(*state.work, _gray))


def _normalized(values: NDArray[Any], step: Normalize) -> NDArray[Any]:
    channels = len(values)
    for name, given in (("mean", step.mean), ("std", step.std)):
        if len(given) not in (1, channels):
            raise _Misfit(f"{name} has {len(given)} values, the image has {channels} channels")
    if 0 in step.std:
        raise _Misfit("std has a zero")
    mean, std = (np.array(given, np.float64)[:, np.newaxis] for given in (step.mean, step.std))
    dtype = np.float16 if values.dtype == np.float16 else np.float32
    with np.errstate(over="ignore"):
        done: NDArray[Any] = ((values.astype(np.float64) * step.scale - mean) / std).astype(dtype)
    if not np.isfinite(done).all():
        raise _Misfit(f"leaves the range of {done.dtype}")
    return done


# --- Work on pixels -------------------------------------------------------------------------------


def _crop(image: Image, *, height_px: int, width_px: int) -> Image:
    """Cut out the middle; where it is odd, the upper left one of the two middles."""
    height, width = image.shape[:2]
    top, left = max((height - height_px) // 2, 0), max((width - width_px) // 2, 0)
    return image[top : top + height_px, left : left + width_px]


def _crop_square(image: Image) -> Image:
    side_px = min(image.shape[:2])
    return _crop(image, height_px=side_px, width_px=side_px)


def _gray(image: Image) -> Image:
    """Weigh by ITU-R BT.601; equal channels keep their level exactly."""
    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _rgb(image: Image) -> Image:
    if image.ndim == 3:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)


def _resize(
    target: Callable[[int, int], tuple[int, int]], scale: Callable[..., Image], image: Image
) -> Image:
    height, width = image.shape[:2]
    height_px, width_px = target(height, width)
    if (height_px, width_px) == (height, width):
        return image
    return scale(image, height_px=height_px, width_px=width_px)


def _target(step: Resize, height: int, width: int) -> tuple[int, int]:
    """Answer the size to resize to; the side that follows the aspect is rounded down."""
    if step.size:
        return step.size
    short, long = min(height, width), max(height, width)
    if step.short_side and long > _MAX_ASPECT * short:
        raise RecordFault(
            Reason.IMAGE_TOO_MANY_PIXELS,
            f"{width} x {height} pixels, more than {_MAX_ASPECT} times as long as wide: "
            "this model resizes by the short side",
        )
    if step.short_side:
        fixed, of = step.short_side, short
    else:
        fixed, of = step.long_side or long, long
    return max(1, fixed * height // of), max(1, fixed * width // of)


def _scale(image: Image, *, height_px: int, width_px: int, interpolation: int) -> Image:
    return np.asarray(
        cv2.resize(image, (width_px, height_px), interpolation=interpolation), np.uint8
    )


def _scale_rgb(
    scale: Callable[..., Image], image: Image, *, height_px: int, width_px: int
) -> Image:
    """Resize three channels, also those of a gray image: OpenCV may round one channel otherwise."""
    return scale(_rgb(image), height_px=height_px, width_px=width_px)


# --- Writing the row ------------------------------------------------------------------------------


def _writer(state: _State, row_shape: tuple[int, ...], row_dtype: np.dtype[Any]) -> Transform:
    channels, exact = len(state.values), state.size.exact
    if exact is None:
        raise _Misfit(
            "the size after the last step depends on the picture: "
            "end with resize: {size: [height, width]}, or with a center_crop that always fits"
        )
    shape = (channels, *exact) if state.chw else (*exact, channels)
    if shape != row_shape or state.values.dtype != row_dtype:
        layout = "CHW" if state.chw else "HWC"
        raise _Misfit(
            f"gives {state.values.dtype} {list(shape)} ({layout}), "
            f"the graph takes {row_dtype} {list(row_shape)}"
        )
    table = None if (state.values == _levels(channels)).all() else state.values
    flip = state.color == "bgr"
    write = partial(_write_chw if state.chw else _write_hwc, table, flip=flip)
    return write if state.color == "gray" else partial(_write_rgb, write)


def _write_rgb(write: Transform, image: Image, row: Row) -> None:
    write(_rgb(image), row)


def _write_chw(table: NDArray[Any] | None, image: Image, row: Row, *, flip: bool) -> None:
    if row.dtype == np.uint8:
        _split(image, row[::-1] if flip else row)
        return
    planes: Image
    if image.ndim == 2:
        planes = image[np.newaxis]
    else:
        planes = np.empty(row.shape, np.uint8)
        _split(image, planes[::-1] if flip else planes)
    if table is None:
        np.copyto(row, planes)
        return
    for plane, values, out in zip(planes, table, row, strict=True):
        cv2.LUT(plane, values, dst=out)


def _split(image: Image, planes: Image) -> None:
    if image.ndim == 2:
        planes[0] = image
    else:
        cv2.split(image, list(planes))


def _write_hwc(table: NDArray[Any] | None, image: Image, row: Row, *, flip: bool) -> None:
    if flip:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
    image = image.reshape(row.shape) if image.ndim == 2 else image
    if table is None:
        np.copyto(row, image)
        return
    cv2.LUT(image, np.ascontiguousarray(table.T)[np.newaxis], dst=row)
