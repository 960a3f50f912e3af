"""Pictures for workers, made by hand or out of the demo's pack, with what decides their fate."""

import struct
import zlib

from worker.demo.pictures import pictures

PACK = [picture.png for picture in pictures()]
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def digit(number: int) -> bytes:
    return PACK[number % len(PACK)]


def large(number: int, side_px: int) -> bytes:
    """A gray picture that takes its time to decode."""
    row = b"\x00" + bytes((number + at) % 251 for at in range(side_px))
    return png(side_px, side_px, zlib.compress(row * side_px, 1))


def png(width: int, height: int, idat: bytes, *, bits: int = 8, color: int = 0) -> bytes:
    """A PNG of compressed rows; gray of 8 bits where nothing else is said."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_chunk(data: bytes, kind: bytes, payload: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return data[:33] + chunk(kind, payload) + data[33:]


def chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def zeros(count: int) -> bytes:
    """So many bytes of nought, compressed without having them all at once."""
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    parts = [packer.compress(piece) for _ in range(count >> 20)]
    parts += [packer.compress(bytes(count & ((1 << 20) - 1))), packer.flush()]
    return b"".join(parts)
