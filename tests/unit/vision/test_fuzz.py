"""Whatever the bytes are, sniffing and decoding answer with an image or a RecordFault."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vision.pictures import (
    animated,
    corners,
    encoded,
    exif,
    exif_segment,
    flat_jpeg,
    jpeg_with,
    png_chunk,
    png_with,
    tiff,
    webp_with_exif,
)
from worker.errors import RecordFault
from worker.types import Reason
from worker.vision.decode import decode, prepare_process
from worker.vision.sniff import check

MAX_PIXELS = 1 << 20
"""Small, so that a size that flipped costs no time."""
FRAMES = [corners(16, 16), 255 - corners(16, 16)]
SEEDS = [
    encoded(".png", corners()),
    png_with(encoded(".png", corners()), png_chunk(b"eXIf", exif(6))),
    animated(".png", FRAMES),
    jpeg_with(encoded(".jpg", corners()), exif_segment(6)),
    cv2.imencode(".jpg", corners(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
    flat_jpeg(1, 2, 3, 4, adobe_transform=2),
    encoded(".webp", corners()),
    webp_with_exif(encoded(".webp", corners()), 3),
    animated(".webp", FRAMES),
    encoded(".bmp", corners()),
    encoded(".tiff", corners()),
    tiff(corners(), order=">", orientation=8),
    encoded(".gif", corners()),
    animated(".gif", FRAMES),
]
REASONS = {
    Reason.IMAGE_EMPTY,
    Reason.IMAGE_TYPE,
    Reason.IMAGE_CORRUPT,
    Reason.IMAGE_TOO_LARGE,
    Reason.IMAGE_TOO_MANY_PIXELS,
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    prepare_process()


def survives(data: bytes) -> None:
    view = memoryview(data)
    try:
        header = check(view, max_bytes=1 << 16, max_pixels=MAX_PIXELS)
        image = decode(view, header)
    except RecordFault as caught:
        fault = caught
    else:
        assert image.dtype == np.uint8
        assert sorted(image.shape[:2]) == sorted((header.height_px, header.width_px))
        return
    assert fault.reason in REASONS
    assert str(fault)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    survives(data)


@settings(deadline=None)
@given(st.sampled_from(sorted({seed[:12] for seed in SEEDS})), st.binary(max_size=200))
def test_random_bytes_behind_a_magic(magic: bytes, data: bytes) -> None:
    survives(magic + data)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_pictures_with_bytes_changed_and_cut_off(
    seed: bytes, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(seed)
    for where, value in changes:
        data[int(where * len(data))] = value
    survives(bytes(data))
    survives(bytes(data[: int(kept * len(data))]))
