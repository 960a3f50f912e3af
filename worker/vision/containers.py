"""How each image format says its size and its end: one reader a format, bytes in, numbers out.

`READERS` read the size; `WHOLE` check that nothing declared passes the end. They raise Broken,
Unserved, or PAST_THE_END where they read on; `sniff` turns those into faults of the record.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from worker.protocol.messages import Buffer

_MAX_PARTS: Final = 65_536
"""Chunks or segments of one file; more would only keep the lane busy."""
_DECODE_BYTES_PER_PIXEL: Final = 16
"""OpenCV's peak while decoding is 6 to 16 (architecture, section 3)."""


PAST_THE_END: Final = (struct.error, IndexError)


class Broken(Exception):  # noqa: N818 - the name is the whole sentence
    """Bytes that cannot be the image they say they are."""


class Unserved(Exception):  # noqa: N818 - the name is the whole sentence
    """A known kind of image that is not decoded, by decision."""


class Header(NamedTuple):
    """What an image says of itself; the size is as stored, before EXIF turns it upright."""

    format: str
    width_px: int
    height_px: int
    animated: bool = False
    """A PNG with chunks of an animation; the decoder must not see them (`still_png`)."""

    @property
    def pixels(self) -> int:
        return self.width_px * self.height_px

    @property
    def decode_bytes(self) -> int:
        """Memory to reserve before decoding."""
        return _DECODE_BYTES_PER_PIXEL * self.pixels


Size = tuple[int, int]
"""Width and height in pixels."""

# --- PNG ------------------------------------------------------------------------------------------

_PNG_IHDR = struct.Struct(">8xI4sII")
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_CHUNK_EXTRA_BYTES = 12
_PNG_ANIMATION: Final = frozenset({b"acTL", b"fcTL", b"fdAT"})


def _png_size(data: Buffer) -> Size:
    length, kind, width_px, height_px = _PNG_IHDR.unpack_from(data)
    if kind != b"IHDR" or length != 13:
        raise Broken("its first chunk is not IHDR")
    return width_px, height_px


def _png_chunks(data: Buffer) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of each chunk up to IEND; none of them passes the end of the data.

    Decoders allocate what a chunk declares before they look for it.
    """
    at, end = 8, len(data)
    for _ in range(_MAX_PARTS):
        if at + _PNG_CHUNK.size > end:
            raise Broken("ends without its IEND chunk")
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        start, at = at, at + length + _PNG_CHUNK_EXTRA_BYTES
        if at > end:
            raise Broken(
                f"its {kind.decode('latin-1')!r} chunk declares {length} bytes, "
                f"{at - end} more than there are"
            )
        yield kind, start, at
        if kind == b"IEND":
            return
    raise Broken(f"more than {_MAX_PARTS} chunks")


def _png_whole(data: Buffer) -> bool:
    """Check all chunks; say whether some belong to an animation."""
    animated = False
    for kind, _, _ in _png_chunks(data):
        animated |= kind in _PNG_ANIMATION
    return animated


def still_png(data: Buffer) -> bytes:
    """Leave out the chunks of an animation: OpenCV 5.0.0 dies of broken ones (SIGSEGV).

    What is left is the picture of every decoder that knows no animations.
    """
    view = memoryview(data)
    kept = [view[:8]]
    kept += [view[a:b] for kind, a, b in _png_chunks(data) if kind not in _PNG_ANIMATION]
    return b"".join(kept)


# --- JPEG (ITU-T T.81, annex B) -------------------------------------------------------------------

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\x01\xd0-\xd8]")  # none of those that stand alone
_JPEG_LENGTH = struct.Struct(">H")
_JPEG_FRAME = struct.Struct(">HBHHB")
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SERVED_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Baseline, extended, progressive, and the last two with arithmetic coding."""
_JPEG_SEQUENTIAL: Final = frozenset({0xC0, 0xC1, 0xC9})
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_MAX_SCANS: Final = 256
"""Encoders write about ten; each one is a pass over the whole picture."""


def _jpeg_segments(data: Buffer) -> Iterator[tuple[int, int]]:
    """Yield (marker, where its payload starts); whatever stands between segments is skipped."""
    at, end = 2, len(data)
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise Broken("cut off before its end marker")
        at = found.end()
        marker = data[at - 1]
        yield marker, at
        if marker == _JPEG_END:
            return
        at += int(_JPEG_LENGTH.unpack_from(data, at)[0])
        if at > end:
            raise Broken("cut off inside a segment")
    raise Broken(f"more than {_MAX_PARTS} segments")


def _jpeg_size(data: Buffer) -> Size:
    for marker, at in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            _, bits, height_px, width_px, _ = _JPEG_FRAME.unpack_from(data, at)
            if bits != 8:
                raise Unserved(f"a JPEG of {bits} bits a sample")
            if marker not in _JPEG_SERVED_FRAMES:
                raise Unserved(f"a lossless or hierarchical JPEG (SOF{marker - 0xC0})")
            return width_px, height_px
        if marker == _JPEG_SCAN:
            break
    raise Broken("no frame header before its first scan")


def _jpeg_whole(data: Buffer) -> bool:
    """Find the end marker of the first picture; what comes behind it does not matter.

    OpenCV fills what is missing with gray and says nothing. A hole in the middle nobody can see.
    A picture of one scan with the marker as its very last bytes needs no search through its scan.
    """
    scans, in_one_scan, components = 0, False, 0
    for marker, at in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            in_one_scan, components = marker in _JPEG_SEQUENTIAL, data[at + _JPEG_FRAME.size - 1]
        elif marker == _JPEG_SCAN:
            scans += 1
            if in_one_scan and data[at + 2] == components and data[-2:] == b"\xff\xd9":
                return False
            if scans > _JPEG_MAX_SCANS:
                raise Broken(f"more than {_JPEG_MAX_SCANS} scans")
    if scans == 0:
        raise Broken("no scan")
    return False


# --- WebP (RFC 9649) ------------------------------------------------------------------------------

_WEBP_RIFF = struct.Struct("<4xI4s4s")
_WEBP_LOSSY = struct.Struct("<3sHH")
_WEBP_LOSSLESS = struct.Struct("<BI")
_WEBP_EXTENDED = struct.Struct("<HBHB")


def _webp_size(data: Buffer) -> Size:
    size_bytes, form, kind = _WEBP_RIFF.unpack_from(data)
    if form != b"WEBP":
        raise Unserved("a RIFF file that is no WebP (a sound or a film)")
    if size_bytes + 8 > len(data):
        raise Broken(f"declares {size_bytes + 8} bytes, there are {len(data)}")
    if kind == b"VP8X":
        wide_low, wide_high, high_low, high_high = _WEBP_EXTENDED.unpack_from(data, 24)
        return (wide_low | wide_high << 16) + 1, (high_low | high_high << 16) + 1
    if kind == b"VP8L":
        signature, bits = _WEBP_LOSSLESS.unpack_from(data, 20)
        if signature != 0x2F:
            raise Broken("a VP8L chunk without its signature")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        start_code, width_px, height_px = _WEBP_LOSSY.unpack_from(data, 23)
        if start_code != b"\x9d\x01\x2a":
            raise Broken("a VP8 chunk that is no key frame")
        return width_px & 0x3FFF, height_px & 0x3FFF
    raise Broken("its first chunk is none of VP8, VP8L and VP8X")


# --- BMP ------------------------------------------------------------------------------------------

_BMP_CORE = struct.Struct("<14xIHH")
_BMP_INFO = struct.Struct("<14xIii")
_BMP_INFO_SIZES: Final = frozenset({40, 52, 56, 64, 108, 124})


def _bmp_size(data: Buffer) -> Size:
    header_bytes, width_px, height_px = _BMP_CORE.unpack_from(data)
    if header_bytes == 12:
        return width_px, height_px
    if header_bytes not in _BMP_INFO_SIZES:
        raise Unserved("it starts with BM and is no BMP")
    _, width_px, height_px = _BMP_INFO.unpack_from(data)
    return width_px, abs(height_px)  # negative: stored from the top


# --- TIFF (6.0, section 2) ------------------------------------------------------------------------

_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS = 256, 257, 258
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_TIFF_TAGS: Final = frozenset(
    {_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT}
)
_TIFF_SHORT = 3
_TIFF_MAX_TILE_PX: Final = 1 << 22
"""A tile is decoded whole, so it may not be much larger than its picture."""


def _tiff_size(data: Buffer) -> Size:
    tags = _tiff_tags(data)
    if tags.get(_TIFF_BITS, 1) > 16:
        raise Unserved(f"a TIFF of {tags[_TIFF_BITS]} bits a sample")
    width_px, height_px = tags.get(_TIFF_WIDTH, 0), tags.get(_TIFF_HEIGHT, 0)
    tile_px = tags.get(_TIFF_TILE_WIDTH, 0) * tags.get(_TIFF_TILE_HEIGHT, 0)
    if tile_px > max(_TIFF_MAX_TILE_PX, width_px * height_px):
        raise Broken(f"tiles of {tile_px} pixels in a picture of {width_px} x {height_px}")
    return width_px, height_px


def _tiff_tags(data: Buffer) -> dict[int, int]:
    """First value of each wanted tag of the first directory."""
    order = "<" if data[0] == ord("I") else ">"
    (directory,) = struct.unpack_from(f"{order}4xI", data)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    entry = struct.Struct(f"{order}HHI4s")
    tags = {}
    for at in range(directory + 2, directory + 2 + count * entry.size, entry.size):
        tag, kind, values, inline = entry.unpack_from(data, at)
        if tag not in _TIFF_TAGS:
            continue
        value = "H" if kind == _TIFF_SHORT else "I"
        if values * struct.calcsize(value) > len(inline):
            (where,) = struct.unpack(f"{order}I", inline)
            (tags[tag],) = struct.unpack_from(f"{order}{value}", data, where)
        else:
            (tags[tag],) = struct.unpack_from(f"{order}{value}", inline)
    return tags


# --- GIF ------------------------------------------------------------------------------------------

_GIF_SCREEN = struct.Struct("<6xHH")


def _gif_size(data: Buffer) -> Size:
    width_px, height_px = _GIF_SCREEN.unpack_from(data)
    return width_px, height_px


READERS: Final[tuple[tuple[bytes, str, Callable[[Buffer], Size]], ...]] = (
    (b"\xff\xd8", "JPEG", _jpeg_size),
    (b"\x89PNG\r\n\x1a\n", "PNG", _png_size),
    (b"RIFF", "WebP", _webp_size),
    (b"BM", "BMP", _bmp_size),
    (b"II*\x00", "TIFF", _tiff_size),
    (b"MM\x00*", "TIFF", _tiff_size),
    (b"GIF87a", "GIF", _gif_size),
    (b"GIF89a", "GIF", _gif_size),
)
"""Magic, name and reader of the size of each format served."""

WHOLE: Final[Mapping[str, Callable[[Buffer], bool]]] = {"JPEG": _jpeg_whole, "PNG": _png_whole}
"""Checks of the formats whose wholeness decoders check too late or not at all -> `animated`."""
