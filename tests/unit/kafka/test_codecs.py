"""Decoders with a cap: what they give back, and what they refuse."""

import gzip
import zlib
from collections.abc import Callable, Iterator

import cramjam
import pytest
from aiokafka import codec
from aiokafka.errors import CorruptRecordException
from aiokafka.record import default_records

from worker.kafka.codecs import cap_decompression

CAP = 4 << 20
PLAIN = bytes(range(256)) * 1000
BOMB = bytes(3 * CAP)

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "snappy": codec.snappy_encode,
    "snappy raw": lambda data: bytes(cramjam.snappy.compress_raw(data)),
    "lz4": codec.lz4_encode,
    "zstd": codec.zstd_encode,
}
NAMES = list(ENCODERS)
WRONG = (CorruptRecordException, cramjam.DecompressionError, OSError, EOFError)


@pytest.fixture(autouse=True)
def cap() -> Iterator[None]:
    cap_decompression(CAP)
    yield
    cap_decompression(1 << 28)


def decode(name: str, data: bytes) -> bytes:
    decoder = getattr(default_records, f"{name.partition(' ')[0]}_decode")
    plain: bytes = decoder(data)
    return bytes(plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plain", [PLAIN, b"x", bytes(CAP)], ids=["usual", "1", "cap"])
def test_what_was_compressed_comes_back(name: str, plain: bytes) -> None:
    assert decode(name, ENCODERS[name](plain)) == plain


@pytest.mark.parametrize("name", NAMES)
def test_what_would_be_more_than_the_cap_is_refused(name: str) -> None:
    with pytest.raises(CorruptRecordException, match=f"more than {CAP} bytes"):
        decode(name, ENCODERS[name](BOMB))


@pytest.mark.parametrize("name", NAMES)
def test_one_byte_more_than_the_cap_is_refused(name: str) -> None:
    with pytest.raises(CorruptRecordException):
        decode(name, ENCODERS[name](bytes(CAP + 1)))


@pytest.mark.parametrize("name", ["gzip", "lz4", "zstd"])
def test_data_that_is_cut_off_is_refused(name: str) -> None:
    with pytest.raises(WRONG):
        decode(name, ENCODERS[name](PLAIN)[:-20])


@pytest.mark.parametrize("name", NAMES)
def test_data_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises((*WRONG, zlib.error)):
        decode(name, b"this was never compressed" * 10)


def test_a_snappy_frame_whose_block_goes_backwards_is_refused() -> None:
    framed = ENCODERS["snappy"](PLAIN)
    with pytest.raises(cramjam.DecompressionError):
        decode("snappy", framed[:16] + (-4).to_bytes(4, "big", signed=True) + framed[20:])


def test_the_compiled_record_reader_is_capped_too() -> None:
    compiled = pytest.importorskip("aiokafka.record._crecords.default_records")
    with pytest.raises(CorruptRecordException):
        compiled.zstd_decode(ENCODERS["zstd"](BOMB))
