"""What encoded bytes are, how large their picture is, and whether they are whole: before decoding.

Reads headers and lengths only, never pixels; costs microseconds. It must not know OpenCV: what it
lets through a decoder may still refuse, what it refuses no decoder ever sees.
"""

from collections.abc import Callable

from worker.errors import RecordFault
from worker.protocol.messages import Buffer
from worker.types import Reason
from worker.vision import containers
from worker.vision.containers import PAST_THE_END, Broken, Header, Unserved

__all__ = ["Header", "check", "sniff"]

_HEAD_BYTES = 512
_MAX_SIDE_PX = 65_535  # what JPEG and GIF can say; resizing costs memory by the side
_SERVED = "JPEG, PNG, WebP, BMP, TIFF and GIF are served"

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer: the image itself was never downloaded"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"II+\x00", "a BigTIFF"),
    (0, b"MM\x00+", "a BigTIFF"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftyp", "an MP4 or another ISO media file"),
)
_MARKUP: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG"),
    (b"<?xml", "XML"),
    (b"{", "JSON or other text (JSON needs content-type: application/json)"),
)


def check(data: Buffer, *, max_bytes: int, max_pixels: int) -> Header:
    """Answer the header of an image that is worth decoding.

    In this order: bytes, type, pixels, then that nothing declared passes the end of the data.
    Raises RecordFault: image.empty, image.too-large, image.type, image.too-many-pixels or
    image.corrupt.
    """
    size = len(data)
    if size > max_bytes:
        raise RecordFault(
            Reason.IMAGE_TOO_LARGE, f"{size} bytes, more than limits.image_max_bytes = {max_bytes}"
        )
    header = sniff(data)
    if header.pixels > max_pixels or max(header.width_px, header.height_px) > _MAX_SIDE_PX:
        raise RecordFault(
            Reason.IMAGE_TOO_MANY_PIXELS,
            f"{header.width_px} x {header.height_px} pixels, "
            f"more than limits.image_max_pixels = {max_pixels}, or {_MAX_SIDE_PX} on a side",
        )
    whole = containers.WHOLE.get(header.format)
    if whole is not None:
        try:
            if whole(data):
                return header._replace(animated=True)
        except (Broken, *PAST_THE_END) as error:
            raise _corrupt(header.format, error) from error
    return header


def sniff(data: Buffer) -> Header:
    """Answer type and size from the first bytes; limits and wholeness are `check`'s.

    Raises RecordFault: image.empty, image.type or image.corrupt.
    """
    name, read = _reader(data)
    try:
        width_px, height_px = read(data)
    except Unserved as error:
        raise RecordFault(Reason.IMAGE_TYPE, f"{error}; {_SERVED}") from error
    except (Broken, *PAST_THE_END) as error:
        raise _corrupt(name, error) from error
    if width_px <= 0 or height_px <= 0:
        raise RecordFault(
            Reason.IMAGE_CORRUPT, f"{name}: a size of {width_px} x {height_px} pixels"
        )
    return Header(name, width_px, height_px)


def _corrupt(name: str, error: Exception) -> RecordFault:
    what = str(error) if isinstance(error, Broken) else "cut off inside its header"
    return RecordFault(Reason.IMAGE_CORRUPT, f"{name}: {what}")


def _reader(data: Buffer) -> tuple[str, Callable[[Buffer], containers.Size]]:
    head = bytes(data[:_HEAD_BYTES])
    for magic, name, read in containers.READERS:
        if head.startswith(magic):
            return name, read
    if not head:
        raise RecordFault(Reason.IMAGE_EMPTY, "no bytes at all")
    raise RecordFault(Reason.IMAGE_TYPE, f"{_likeness(head)}; {_SERVED}")


def _likeness(head: bytes) -> str:
    for at, magic, name in _FOREIGN:
        if head.startswith(magic, at):
            return name
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, name in _MARKUP:
        if text.startswith(start):
            return name
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "text"
    return f"of no known type (it starts with {head[:8].hex(' ')})"
