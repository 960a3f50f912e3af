"""Caps what a compressed batch may become: aiokafka decompresses on the loop, without a bound.

24 kB of zstd on the wire were seen to become a record of 800 MB. aiokafka takes its decoders from
globals of its record module, in C or in Python; both get decoders that stop at the cap.
"""

import contextlib
import importlib
import zlib
from collections.abc import Callable
from typing import Any

import cramjam
from aiokafka import codec
from aiokafka.errors import CorruptRecordException
from aiokafka.record import default_records

Decode = Callable[[bytes], bytes]

_ROOMS = (8, 64)
"""How many times its size data usually needs, tried in turn before the cap."""
_LEAST_ROOM_BYTES = 1 << 20


def cap_decompression(max_bytes: int) -> None:
    """Make every decoder of this process's Kafka clients refuse more than `max_bytes`."""
    decoders: dict[str, Decode] = {
        "gzip_decode": lambda data: _gunzip(data, max_bytes),
        "snappy_decode": lambda data: _snappy(data, max_bytes),
        "lz4_decode": lambda data: _into(cramjam.lz4.decompress_into, data, max_bytes),
        "zstd_decode": lambda data: _into(cramjam.zstd.decompress_into, data, max_bytes),
    }
    modules: list[Any] = [default_records]
    with contextlib.suppress(ImportError):  # a platform for which aiokafka compiled nothing
        modules.append(importlib.import_module("aiokafka.record._crecords.default_records"))
    for module in modules:
        for name, decode in decoders.items():
            if not hasattr(module, name):
                raise RuntimeError(f"this aiokafka has no {module.__name__}.{name} to cap")
            setattr(module, name, decode)


def _into(decompress: Callable[[bytes, bytearray], int], data: bytes, max_bytes: int) -> bytes:
    rooms = [max(_LEAST_ROOM_BYTES, len(data) * times) for times in _ROOMS]
    for room in [*(room for room in rooms if room < max_bytes), max_bytes]:
        buffer = bytearray(room)
        try:
            size = decompress(data, buffer)
        except cramjam.DecompressionError as error:
            if room == max_bytes:
                raise CorruptRecordException(
                    f"a batch of {len(data)} bytes is broken, or more than {max_bytes} bytes "
                    f"when decompressed ({error})"
                ) from error
        else:
            return bytes(memoryview(buffer)[:size])
    raise AssertionError("the last room returns or raises")


def _gunzip(data: bytes, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    plain = decompressor.decompress(data, max_bytes)
    if decompressor.unconsumed_tail:
        raise _too_large(data, max_bytes)
    if not decompressor.eof:
        raise CorruptRecordException(f"a batch of {len(data)} bytes of gzip is cut off")
    return plain


def _snappy(data: bytes, max_bytes: int) -> bytes:
    """Add up what the blocks declare, before aiokafka's own decoder believes them."""
    view = memoryview(data)
    size = 0
    if codec._detect_xerial_stream(view):  # noqa: SLF001 - the framing that Kafka's clients use
        at = 16
        while at + 4 <= len(view):
            block = int.from_bytes(view[at : at + 4], "big")
            size += cramjam.snappy.decompress_raw_len(view[at + 4 : at + 4 + block])
            at += 4 + block
    else:
        size = cramjam.snappy.decompress_raw_len(view)
    if size > max_bytes:
        raise _too_large(data, max_bytes)
    plain: bytes = codec.snappy_decode(data)
    return plain


def _too_large(data: bytes, max_bytes: int) -> CorruptRecordException:
    return CorruptRecordException(
        f"a batch of {len(data)} bytes is more than {max_bytes} bytes when decompressed"
    )
