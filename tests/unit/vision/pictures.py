"""Small pictures made on the spot, byte by byte where no encoder would write them."""

import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

MAX_BYTES = 1 << 25
MAX_PIXELS = 50_000_000

_QUANT = b"\x00" + b"\x01" * 64
_DC_TABLE = b"\x00" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))  # 12 codes of 4 bits
_AC_TABLE = b"\x10" + bytes([1] + [0] * 15) + b"\x00"  # one code, end of block
_EXIF_ORIENTATION = 274


def corners(height: int = 8, width: int = 12) -> Pixels:
    """Red above left, green above right, blue below left, white below right: RGB."""
    image = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    image[:top, :left], image[:top, left:] = (255, 0, 0), (0, 255, 0)
    image[top:, :left], image[top:, left:] = (0, 0, 255), (255, 255, 255)
    return image


def encoded(kind: str, image: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Encode an RGB, RGBA or gray image as `kind` (".png")."""
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    stored = image if image.ndim == 2 else cv2.cvtColor(image, codes[image.shape[2]])
    done, data = cv2.imencode(kind, stored)
    assert done
    return data.tobytes()


def animated(kind: str, frames: Sequence[Pixels]) -> bytes:
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGRA) for frame in frames]
    animation.durations = [100] * len(frames)
    done, data = cv2.imencodeanimation(kind, animation)
    assert done
    return data.tobytes()


# --- EXIF -----------------------------------------------------------------------------------------


def exif(orientation: int, *, padding: int = 0) -> bytes:
    """A TIFF block with one tag, as JPEG, PNG and WebP embed it."""
    entry = struct.pack("<HHIHH", _EXIF_ORIENTATION, 3, 1, orientation, 0)
    return b"II*\x00" + struct.pack("<IH", 8, 1) + entry + bytes(4) + bytes(padding)


def jpeg_with(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with more segments (marker, payload) behind its first marker."""
    return data[:2] + b"".join(_segment(*segment) for segment in segments) + data[2:]


def exif_segment(orientation: int, *, padding: int = 0) -> tuple[int, bytes]:
    return 0xE1, b"Exif\x00\x00" + exif(orientation, padding=padding)


def webp_with_exif(data: bytes, orientation: int) -> bytes:
    """A simple WebP made an extended one."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    height, width = image.shape[:2]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    block = exif(orientation)
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0x08) + size + data[12:]
    body += b"EXIF" + struct.pack("<I", len(block)) + block
    return b"RIFF" + struct.pack("<I", len(body)) + body


# --- PNG ------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def png_header(width: int, height: int, *, bits: int = 8, color: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    )


def png(rows: Sequence[bytes], width: int, *, bits: int, color: int, extra: bytes = b"") -> bytes:
    """A PNG of raw rows; `extra` are whole chunks in front of the pixels."""
    pixels = zlib.compress(b"".join(b"\x00" + row for row in rows))
    header = png_header(width, len(rows), bits=bits, color=color)
    return header + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_with(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


# --- JPEG and TIFF byte by byte -------------------------------------------------------------------


def flat_jpeg(*levels: int, adobe_transform: int | None = None, bits: int = 8) -> bytes:
    """A baseline JPEG of 8 x 8 pixels, each component one level: what no encoder here writes."""
    count = len(levels)
    numbers = range(1, count + 1)
    frame = struct.pack(">BHHB", bits, 8, 8, count) + b"".join(bytes([n, 0x11, 0]) for n in numbers)
    scan = bytes([count]) + b"".join(bytes([n, 0]) for n in numbers) + b"\x00\x3f\x00"
    bits_text = "".join(_flat_block(level) for level in levels)
    bits_text += "1" * (-len(bits_text) % 8)
    entropy = int(bits_text, 2).to_bytes(len(bits_text) // 8, "big").replace(b"\xff", b"\xff\x00")
    segments = [(0xDB, _QUANT), (0xC0, frame), (0xC4, _DC_TABLE), (0xC4, _AC_TABLE), (0xDA, scan)]
    if adobe_transform is not None:
        segments.insert(0, (0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe_transform)))
    body = b"".join(_segment(marker, payload) for marker, payload in segments)
    return b"\xff\xd8" + body + entropy + b"\xff\xd9"


def _flat_block(level: int) -> str:
    """The bits of a block whose only coefficient is its mean."""
    mean = 8 * (level - 128)
    size = abs(mean).bit_length()
    value = mean if mean >= 0 else mean + (1 << size) - 1
    return f"{size:04b}" + (f"{value:0{size}b}" if size else "") + "0"


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def tiff(
    pixels: Pixels, *, order: str = "<", orientation: int = 1, more: Sequence[tuple[int, int]] = ()
) -> bytes:
    """An uncompressed RGB TIFF; `more` are (tag, value) that replace or join its own."""
    height, width = pixels.shape[:2]
    count = 10 + len([tag for tag, _ in more if tag > 300])
    bits_at = 8 + 2 + 12 * count + 4
    tags = {256: width, 257: height, 258: bits_at, 259: 1, 262: 2, 273: bits_at + 6}
    tags |= {274: orientation, 277: 3, 278: height, 279: pixels.nbytes} | dict(more)
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 3, 3, value)
        if tag == 258
        else struct.pack(f"{order}HHII", tag, 4, 1, value)
        for tag, value in sorted(tags.items())
    )
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + struct.pack(f"{order}HHH", 8, 8, 8) + pixels.tobytes()
