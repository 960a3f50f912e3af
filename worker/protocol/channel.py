"""The channel between the worker and one engine: a Unix stream socket with framed messages.

Frame: two little-endian u32 (bytes of the header, bytes of the body), the header, the body.
This is the engine's end, which blocks; the worker's is `async_channel.py`: an engine does without
asyncio, a tenth of what it imports.
"""

import contextlib
import socket
import struct
import threading

from worker.errors import ChannelError
from worker.protocol.messages import Buffer, Message, decode, encode

FRAME = struct.Struct("<II")
_MAX_HEADER_BYTES = 64 << 20
_MAX_BODY_BYTES = (1 << 32) - 1


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return (worker's end, engine's end); both close on exec unless passed on by name."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Channel:
    """The engine's end. `receive` is for one thread; `send` may be called from any."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()

    def receive(self) -> Message | None:
        """Wait for the next message; None when the worker has gone."""
        frame = self._read(FRAME.size)
        if frame is None:
            return None
        header_bytes, body_bytes = sizes(frame)
        header = self._read(header_bytes)
        body = self._read(body_bytes)
        if header is None or body is None:
            return None
        return decode(header, body)

    def send(self, message: Message) -> None:
        """Send a message whole.

        Raises OSError (BrokenPipeError, ConnectionResetError) when the worker has gone.
        """
        data = b"".join(framed(message))
        with self._sending:
            self._sock.sendall(data)

    def hang_up(self) -> None:
        """End the conversation for both sides, from any thread: `receive` returns None."""
        with contextlib.suppress(OSError):  # the other side has closed already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and close the socket; not while another thread is in `receive`."""
        self.hang_up()
        self._sock.close()

    def _read(self, size: int) -> memoryview | None:
        view = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            try:
                count = self._sock.recv_into(view[filled:])
            except ConnectionResetError:
                return None
            if count == 0:
                return None
            filled += count
        return view


def framed(message: Message) -> list[Buffer]:
    """Return the parts of a message's frame. Raises ChannelError when it is too large."""
    header, *body = encode(message)
    body_bytes = sum(map(len, body))
    if len(header) > _MAX_HEADER_BYTES or body_bytes > _MAX_BODY_BYTES:
        raise ChannelError(f"a message of {len(header)} + {body_bytes} bytes is too large")
    return [FRAME.pack(len(header), body_bytes), header, *body]


def sizes(frame: Buffer) -> tuple[int, int]:
    """Return the bytes of header and body of a frame. Raises ChannelError for what is none."""
    header_bytes, body_bytes = FRAME.unpack(frame)
    if not 0 < header_bytes <= _MAX_HEADER_BYTES:
        raise ChannelError(f"a frame that declares a header of {header_bytes} bytes")
    return header_bytes, body_bytes
