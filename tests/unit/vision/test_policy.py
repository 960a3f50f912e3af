"""The table in `worker/vision/decode.py`, line by line."""

import os
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.vision.pictures import (
    MAX_BYTES,
    MAX_PIXELS,
    Pixels,
    animated,
    corners,
    encoded,
    exif,
    exif_segment,
    flat_jpeg,
    jpeg_with,
    png,
    png_chunk,
    png_with,
    tiff,
    webp_with_exif,
)
from worker.errors import RecordFault
from worker.types import Reason
from worker.vision.containers import Header
from worker.vision.decode import decode, prepare_process
from worker.vision.sniff import check

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}
"""EXIF orientation -> how the stored picture is turned upright (CIPA DC-008, table of tag 274)."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    prepare_process()


def opened(data: bytes) -> Pixels:
    view = memoryview(data)
    image = decode(view, check(view, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS))
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    return image


def close(image: Pixels, expected: NDArray[np.uint8], *, within: float) -> bool:
    """Compare means of differences: encoders blur edges; a wrong turn costs about 100."""
    if image.shape != expected.shape:
        return False
    return float(np.abs(image.astype(int) - expected).mean()) <= within


@pytest.mark.parametrize(
    ("kind", "within"),
    [(".png", 0), (".webp", 0), (".bmp", 0), (".tiff", 0), (".gif", 3), (".jpg", 20)],
)
def test_colours_come_out_as_rgb(kind: str, within: int) -> None:
    assert close(opened(encoded(kind, corners(16, 32))), corners(16, 32), within=within)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int) -> None:
    image, expected = corners(16, 32), UPRIGHT[orientation](corners(16, 32))
    as_png, as_webp = encoded(".png", image), encoded(".webp", image)
    as_jpeg = encoded(".jpg", image)
    assert close(opened(jpeg_with(as_jpeg, exif_segment(orientation))), expected, within=20)
    exif_chunk = png_chunk(b"eXIf", exif(orientation))
    assert close(opened(png_with(as_png, exif_chunk)), expected, within=0)
    assert close(opened(webp_with_exif(as_webp, orientation)), expected, within=0)
    assert close(opened(tiff(image, orientation=orientation)), expected, within=0)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    data = jpeg_with(encoded(".jpg", corners(16, 32)), exif_segment(orientation))
    assert close(opened(data), corners(16, 32), within=20)


def test_orientation_in_a_text_chunk_is_not_applied() -> None:
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>"
    data = png_with(encoded(".png", corners()), png_chunk(b"iTXt", xmp))
    assert close(opened(data), corners(), within=0)


def test_exif_as_large_as_a_segment_can_be_is_served() -> None:
    segments = [exif_segment(6, padding=65_000), *[(0xE2, bytes(65_000))] * 30]
    data = jpeg_with(encoded(".jpg", corners(16, 32)), *segments)
    assert close(opened(data), UPRIGHT[6](corners(16, 32)), within=20)


def gray(*levels: int) -> NDArray[np.uint8]:
    return np.repeat(np.array(levels, np.uint8)[np.newaxis, :, np.newaxis], 3, axis=2)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png([b"\x00\x4d\xff"], 3, bits=8, color=0), gray(0, 77, 255), id="gray"),
        pytest.param(png([b"\xa0"], 3, bits=1, color=0), gray(255, 0, 255), id="one bit"),
        pytest.param(
            png([b"\x00\xff\x01\x00\x7f\xff\xff\x00"], 4, bits=16, color=0),
            gray(0, 1, 127, 255),
            id="16 bits gray: the high byte",
        ),
        pytest.param(
            png([b"\x01\xff\x02\x00\x03\x80"], 1, bits=16, color=2),
            np.array([[[1, 2, 3]]], np.uint8),
            id="16 bits RGB: the high byte",
        ),
        pytest.param(
            encoded(".tiff", np.array([[255, 256, 65_535]], np.uint16)),
            gray(0, 1, 255),
            id="16 bits TIFF: the high byte",
        ),
        pytest.param(
            png([b"\x0a\x00\xc8\xff"], 2, bits=8, color=4), gray(10, 200), id="gray, alpha"
        ),
        pytest.param(
            png([b"\x01\x02\x03\x00"], 1, bits=8, color=6),
            np.array([[[1, 2, 3]]], np.uint8),
            id="alpha is dropped, also where nothing is visible",
        ),
        pytest.param(
            png(
                [b"\x01\x00"],
                2,
                bits=8,
                color=3,
                extra=png_chunk(b"PLTE", b"\x01\x02\x03\x09\x08\x07")
                + png_chunk(b"tRNS", b"\xff\x00"),
            ),
            np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8),
            id="palette with transparency",
        ),
    ],
)
def test_depth_gray_alpha_and_palette_become_three_channels(
    data: bytes, expected: NDArray[np.uint8]
) -> None:
    assert close(opened(data), expected, within=0)


@pytest.mark.parametrize(
    ("levels", "transform", "rgb"),
    [
        ((255, 255, 255, 255), 0, (255, 255, 255)),
        ((0, 255, 255, 255), 0, (0, 255, 255)),
        ((255, 255, 255, 0), 0, (0, 0, 0)),
        ((255, 255, 0, 128), 0, (128, 128, 0)),
        ((255, 255, 255, 255), None, (255, 255, 255)),
        ((128, 128, 128, 255), 2, (128, 128, 128)),
    ],
)
def test_cmyk_is_ink_stored_inverted(
    levels: tuple[int, ...], transform: int | None, rgb: tuple[int, int, int]
) -> None:
    image = opened(flat_jpeg(*levels, adobe_transform=transform))
    assert close(image, np.full((8, 8, 3), rgb, np.uint8), within=2)


@pytest.mark.parametrize(("kind", "within"), [(".gif", 3), (".webp", 20), (".png", 0)])
def test_an_animation_is_its_first_frame(kind: str, within: int) -> None:
    frames = [corners(32, 32), 255 - corners(32, 32), corners(32, 32)]
    assert close(opened(animated(kind, frames)), frames[0], within=within)


def test_a_broken_animation_crashes_no_decoder() -> None:
    """OpenCV 5.0.0 alone dies of this one (SIGSEGV): its first frame is behind its picture."""
    whole = animated(".png", [corners(16, 16), 255 - corners(16, 16)])
    broken = whole.replace(b"fcTL", b"bcTL", 1).replace(b"fdAT", b"fdA\xff")
    assert broken != whole
    try:
        assert opened(broken).shape == (16, 16, 3)
    except RecordFault as fault:
        assert fault.reason is Reason.IMAGE_CORRUPT  # noqa: PT017 - either is an answer


def test_a_picture_outside_its_animation_is_the_one_served() -> None:
    control = png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 10, 0, 0))
    extra = png_chunk(b"acTL", struct.pack(">II", 1, 0))
    red = png([b"\xff\x00\x00"], 1, bits=8, color=2, extra=extra)
    blue = png_chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(b"\x00\x00\x00\xff"))
    data = red[:-12] + control + blue + red[-12:]
    assert close(opened(data), np.array([[[255, 0, 0]]], np.uint8), within=0)


def test_several_pages_are_the_first_one() -> None:
    pages = [cv2.cvtColor(page, cv2.COLOR_RGB2BGR) for page in (corners(), 255 - corners())]
    done, data = cv2.imencodemulti(".tiff", pages)
    assert done
    assert close(opened(data.tobytes()), corners(), within=0)


GRAY_ROWS = [b"\x00\x4d\xff", b"\x80\x01\x10"]


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        pytest.param(png(GRAY_ROWS, 3, bits=8, color=0), True, id="gray"),
        pytest.param(
            png(GRAY_ROWS, 3, bits=8, color=0, extra=png_chunk(b"tRNS", b"\x00\x4d")),
            True,
            id="gray, one level of it transparent",
        ),
        pytest.param(
            png(GRAY_ROWS, 3, bits=8, color=0, extra=png_chunk(b"gAMA", b"\x00\x00\xb1\x8f")),
            True,
            id="gray, with a gamma",
        ),
        pytest.param(
            png(GRAY_ROWS, 3, bits=8, color=0, extra=png_chunk(b"eXIf", exif(6))),
            True,
            id="gray, to be turned",
        ),
        pytest.param(png([b"\xa0"], 3, bits=1, color=0), False, id="one bit"),
        pytest.param(png([b"\x00\x4d\xff\x10"], 2, bits=16, color=0), False, id="16 bits"),
        pytest.param(png([b"\x0a\x00\xc8\xff"], 2, bits=8, color=4), False, id="gray, alpha"),
        pytest.param(encoded(".jpg", np.full((8, 8), 77, np.uint8)), False, id="gray JPEG"),
        pytest.param(encoded(".png", corners()), False, id="colours"),
    ],
)
def test_gray_that_is_kept_is_each_of_the_three_channels(data: bytes, *, kept: bool) -> None:
    view = memoryview(data)
    header = check(view, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
    image = decode(view, header, keep_gray=True)
    assert image.ndim == (2 if kept else 3)
    wide = np.repeat(image[..., np.newaxis], 3, axis=2) if kept else image
    np.testing.assert_array_equal(wide, opened(data))


def test_a_picture_that_lies_about_its_size_is_corrupt() -> None:
    data = encoded(".png", corners())
    with pytest.raises(RecordFault, match="12 x 8") as caught:
        decode(data, Header("PNG", 1, 1))
    assert caught.value.reason is Reason.IMAGE_CORRUPT


def test_opencvs_own_limit_is_told_as_what_it_is() -> None:
    """In a process of its own: OpenCV reads its environment once."""
    script = """
        from tests.unit.vision.pictures import corners, encoded
        from worker.errors import RecordFault
        from worker.vision.containers import Header
        from worker.vision.decode import decode

        try:
            decode(encoded(".png", corners()), Header("PNG", 12, 8))
        except RecordFault as fault:
            print(fault.reason)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": "95"},
    )
    assert done.stdout.strip() == Reason.IMAGE_TOO_MANY_PIXELS


BOMBS = {
    "a chunk of a gigabyte": "png_header(2, 2) + b'\\x3f\\xff\\xff\\xffIDAT' + bytes(38)",
    "65,535 pixels square": "png_header(65535, 65535) + png_chunk(b'IEND', b'')",
    "16,000 pixels square": "png_header(16000, 16000) + png_chunk(b'IEND', b'')",
    "a frame beyond its screen": (
        "b'GIF89a' + bytes([2, 0, 2, 0, 128, 0, 0]) + bytes(6)"
        " + b',' + bytes(4) + b'\\xff' * 4 + b'\\0\\2\\2\\x4c\\1\\0;'"
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_no_memory(bomb: str) -> None:
    """In a process of its own: the peak of a process never falls."""
    script = f"""
        from pathlib import Path
        from tests.unit.vision.pictures import png_chunk, png_header
        from worker.errors import RecordFault
        from worker.vision.decode import decode, prepare_process
        from worker.vision.sniff import check

        def peak_kb():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0])

        prepare_process()
        data, before_kb = {BOMBS[bomb]}, peak_kb()
        try:
            decode(data, check(data, max_bytes=1 << 25, max_pixels=50_000_000))
        except RecordFault as fault:
            print(fault.reason, peak_kb() - before_kb)
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc: the peak of a process's memory is read there")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True
    )
    reason, grown_kb = done.stdout.split()
    assert reason in (Reason.IMAGE_CORRUPT, Reason.IMAGE_TOO_MANY_PIXELS)
    assert int(grown_kb) < 16_384
