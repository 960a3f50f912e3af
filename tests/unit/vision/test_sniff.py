import struct

import cv2
import numpy as np
import pytest

from tests.unit.vision.pictures import (
    MAX_BYTES,
    MAX_PIXELS,
    corners,
    encoded,
    exif_segment,
    flat_jpeg,
    jpeg_with,
    png_chunk,
    png_header,
    png_with,
    tiff,
    webp_with_exif,
)
from worker.errors import RecordFault
from worker.types import Reason
from worker.vision.containers import Header
from worker.vision.decode import decode, prepare_process
from worker.vision.sniff import check


def checked(data: bytes) -> Header:
    return check(memoryview(data), max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)


def refusal(
    data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> RecordFault:
    with pytest.raises(RecordFault) as caught:
        check(data, max_bytes=max_bytes, max_pixels=max_pixels)
    return caught.value


def lossy_webp() -> bytes:
    return cv2.imencode(".webp", corners(), [cv2.IMWRITE_WEBP_QUALITY, 60])[1].tobytes()


def progressive_jpeg() -> bytes:
    return cv2.imencode(".jpg", corners(64, 64), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def old_bmp() -> bytes:
    """OS/2 1.x: sizes of 16 bits."""
    return b"BM" + struct.pack("<IIIIHHHH", 26 + 300, 0, 26, 12, 12, 8, 1, 24) + bytes(300)


def bmp_from_the_top() -> bytes:
    data = bytearray(encoded(".bmp", corners()))
    data[22:26] = struct.pack("<i", -8)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded(".png", corners()), "PNG"),
        (encoded(".jpg", corners()), "JPEG"),
        (lossy_webp(), "WebP"),
        (encoded(".webp", corners()), "WebP"),
        (webp_with_exif(encoded(".webp", corners()), 6), "WebP"),
        (encoded(".bmp", corners()), "BMP"),
        (bmp_from_the_top(), "BMP"),
        (old_bmp(), "BMP"),
        (tiff(corners()), "TIFF"),
        (tiff(corners(), order=">"), "TIFF"),
        (encoded(".gif", corners()), "GIF"),
    ],
)
def test_type_and_size_are_read_without_decoding(data: bytes, name: str) -> None:
    assert checked(data) == Header(name, 12, 8)
    assert checked(data).decode_bytes == 16 * 12 * 8


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html>503</html>", "HTML"),
        (b"\xef\xbb\xbf \n<HTML>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>", "XML"),
        (b'{"image": "..."}', "JSON"),
        (b"hello\n", "text"),
        (b"BMW is no bitmap, and this is long enough", "BM"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\x03\x04\x14\x00", "ZIP"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00", "RIFF"),
        (b"\x00\x00\x00\x1cftypavif", "AVIF"),
        (b"\x00\x00\x00\x1cftypheic", "HEIC"),
        (b"II+\x00\x08\x00\x00\x00", "BigTIFF"),
        (b"\x00\x01\x02\x03", "00 01 02 03"),
        (flat_jpeg(77, bits=12), "12 bits"),
        (flat_jpeg(77).replace(b"\xff\xc0", b"\xff\xc3"), "lossless"),
        (cv2.imencode(".tiff", np.ones((4, 4), np.float32))[1].tobytes(), "32 bits"),
    ],
)
def test_what_is_not_served_is_named(data: bytes, words: str) -> None:
    fault = refusal(data)
    assert fault.reason is Reason.IMAGE_TYPE
    assert words in str(fault)
    assert "JPEG, PNG, WebP, BMP, TIFF and GIF are served" in str(fault)


def test_no_bytes_at_all_are_a_reason_of_their_own() -> None:
    assert refusal(b"").reason is Reason.IMAGE_EMPTY


def test_limits_hold_to_the_byte_and_to_the_pixel() -> None:
    data = encoded(".png", corners())
    assert check(data, max_bytes=len(data), max_pixels=96) == Header("PNG", 12, 8)
    assert refusal(data, max_bytes=len(data) - 1).reason is Reason.IMAGE_TOO_LARGE
    assert refusal(data, max_pixels=95).reason is Reason.IMAGE_TOO_MANY_PIXELS
    assert "12 x 8" in str(refusal(data, max_pixels=95))


def test_a_side_beyond_16_bits_is_too_many_pixels() -> None:
    fault = refusal(png_header(65_536, 1) + png_chunk(b"IEND", b""))
    assert fault.reason is Reason.IMAGE_TOO_MANY_PIXELS


@pytest.mark.parametrize(
    "data",
    [
        png_header(65_535, 65_535) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""),
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03" + bytes(9),
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535),
    ],
)
def test_a_header_of_billions_of_pixels_is_refused_for_them(data: bytes) -> None:
    assert refusal(data).reason is Reason.IMAGE_TOO_MANY_PIXELS


def huge_idat() -> bytes:
    """79 bytes that make decoders allocate what the chunk declares."""
    head = png_header(2, 2) + struct.pack(">I", 0x3FFF_FFFF) + b"IDAT"
    return head + bytes(79 - len(head))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (huge_idat(), "IDAT"),
        (png_with(encoded(".png", corners()), struct.pack(">I", 1 << 31) + b"zTXt"), "zTXt"),
        (png_header(0, 8) + png_chunk(b"IEND", b""), "0 x 8"),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IDAT", bytes(13)), "IHDR"),
        (png_header(2, 2), "IEND"),
        (png_header(2, 2) + png_chunk(b"teSt", b"") * 70_000, "chunks"),
        (b"\xff\xd8\xff\xd9", "frame header"),
        (b"\xff\xd8" + b"\xff\xfe\x00\x02" * 70_000, "segments"),
        (b"RIFF\xff\x00\x00\x00WEBPVP8 " + bytes(30), "263 bytes"),
        (b"RIFF\x20\x00\x00\x00WEBPVP8L" + bytes(28), "signature"),
        (b"RIFF\x20\x00\x00\x00WEBPVP8 " + bytes(28), "key frame"),
        (b"RIFF\x20\x00\x00\x00WEBPXXXX" + bytes(28), "first chunk"),
        (tiff(corners(), more=((322, 65_535), (323, 65_535))), "tiles"),
        (b"II*\x00\xff\xff\xff\x7f", "cut off"),
        (b"GIF89a\x00", "cut off"),
    ],
)
def test_what_a_header_cannot_mean_is_corrupt(data: bytes, words: str) -> None:
    fault = refusal(data)
    assert fault.reason is Reason.IMAGE_CORRUPT
    assert words in str(fault)


def test_hundreds_of_scans_are_refused_before_a_decoder_walks_them() -> None:
    data = progressive_jpeg()
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert checked(data[:-2] + scan * 8 + b"\xff\xd9") == Header("JPEG", 64, 64)
    assert "scans" in str(refusal(data[:-2] + scan * 300 + b"\xff\xd9"))


@pytest.mark.parametrize("kind", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif"])
def test_a_file_cut_off_anywhere_is_refused(kind: str) -> None:
    prepare_process()
    data = encoded(kind, corners())
    for size in range(1, len(data)):
        with pytest.raises(RecordFault) as caught:
            decode(data[:size], checked(data[:size]))
        assert caught.value.reason in (Reason.IMAGE_CORRUPT, Reason.IMAGE_TYPE), size


@pytest.mark.parametrize("data", [encoded(".jpg", corners()), progressive_jpeg()])
def test_a_jpeg_cut_inside_its_pixels_is_corrupt_though_opencv_would_fill_them(data: bytes) -> None:
    for size in range(data.index(b"\xff\xda") + 20, len(data)):
        assert "cut off" in str(refusal(data[:size]))


def test_the_end_of_a_thumbnail_is_not_the_end_of_its_picture() -> None:
    thumbnail = flat_jpeg(77)
    marker, block = exif_segment(1)
    data = jpeg_with(encoded(".jpg", corners()), (marker, block + thumbnail))
    assert checked(data) == Header("JPEG", 12, 8)
    assert refusal(data[:-2]).reason is Reason.IMAGE_CORRUPT
    assert refusal(data[: data.index(thumbnail) + len(thumbnail)]).reason is Reason.IMAGE_CORRUPT


@pytest.mark.parametrize("kind", [".jpg", ".png"])
@pytest.mark.parametrize("behind", [b"\x00" * 9, b"garbage \xff\xff\xff", flat_jpeg(77)[:-7]])
def test_bytes_behind_the_end_do_not_matter(kind: str, behind: bytes) -> None:
    assert checked(encoded(kind, corners()) + behind).width_px == 12


def test_fill_bytes_and_junk_between_segments_are_skipped() -> None:
    data = encoded(".jpg", corners())
    assert checked(data[:2] + b"\xff\x00junk\xff\xff" + data[2:]) == Header("JPEG", 12, 8)


@pytest.mark.parametrize("whole", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(whole: type) -> None:
    data = whole(encoded(".png", corners()))
    assert check(data, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS) == Header("PNG", 12, 8)
