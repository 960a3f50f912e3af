import asyncio
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from worker.errors import ChannelError
from worker.protocol.async_channel import AsyncChannel
from worker.protocol.channel import Channel, socket_pair
from worker.protocol.messages import Bye, Outcomes, Retry, Row, Stopped, Submit

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_messages_cross_both_ways_in_their_order(pair: Pair) -> None:
    worker, engine = await AsyncChannel.open(pair[0]), Channel(pair[1])
    image = bytes(range(256)) * 4096
    worker.send(Submit((Row(1, image, alone=False), Row(2, b"", alone=True))))
    worker.send(Bye())
    received = await asyncio.to_thread(engine.receive)
    assert received == Submit((Row(1, image, alone=False), Row(2, b"", alone=True)))
    assert await asyncio.to_thread(engine.receive) == Bye()
    engine.send(Stopped())
    assert await worker.receive() == Stopped()
    worker.close()


async def test_each_side_sees_that_the_other_has_gone(pair: Pair) -> None:
    worker, engine = await AsyncChannel.open(pair[0]), Channel(pair[1])
    engine.close()
    assert await worker.receive() is None
    worker.send(Bye())
    worker.close()


@pytest.mark.parametrize(
    "sent", [b"", b"\x05", struct.pack("<II", 9, 0) + b"[", b"\x02\0\0\0\1\0\0\0[]"]
)
def test_an_engine_whose_worker_died_in_the_middle_of_a_frame_reads_the_end(
    pair: Pair, sent: bytes
) -> None:
    pair[0].sendall(sent)
    pair[0].close()
    assert Channel(pair[1]).receive() is None


@pytest.mark.parametrize("header_bytes", [0, 1 << 31])
def test_a_frame_of_an_impossible_size_is_a_channel_error(pair: Pair, header_bytes: int) -> None:
    pair[0].sendall(struct.pack("<II", header_bytes, 0))
    with pytest.raises(ChannelError, match="declares a header"):
        Channel(pair[1]).receive()


async def test_lanes_that_send_at_once_never_mix_their_frames(pair: Pair) -> None:
    worker, engine = await AsyncChannel.open(pair[0]), Channel(pair[1])

    def lane(number: int) -> None:
        for n in range(50):
            retry = Retry(number * 50 + n, "x" * 2000)
            engine.send(Outcomes((), (), (retry,), 0.0, 0.0, 0))

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(4)]
    for thread in lanes:
        thread.start()
    seen = set()
    for _ in range(200):
        message = await worker.receive()
        assert isinstance(message, Outcomes)
        seen.add(message.retries[0].id)
    assert seen == set(range(200))
    for thread in lanes:
        thread.join()
    worker.close()


def test_hanging_up_wakes_a_thread_that_is_reading(pair: Pair) -> None:
    engine = Channel(pair[1])
    ended = []
    reader = threading.Thread(target=lambda: ended.append(engine.receive()))
    reader.start()
    engine.hang_up()
    reader.join(timeout=10)
    assert ended == [None]
