"""The worker's end of the channel to an engine: the frames of `channel.py`, on asyncio streams."""

import asyncio
import socket
from typing import Self

from worker.protocol.channel import FRAME, framed, sizes
from worker.protocol.messages import Message, decode


class AsyncChannel:
    """The worker's end; `receive` is for one task, `send` may be called from any."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Take over a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=1 << 20)
        return cls(reader, writer)

    async def receive(self) -> Message | None:
        """Wait for the next message; None when the engine has gone."""
        try:
            header_bytes, body_bytes = sizes(await self._reader.readexactly(FRAME.size))
            header = await self._reader.readexactly(header_bytes)
            body = await self._reader.readexactly(body_bytes) if body_bytes else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return decode(header, memoryview(body))

    def send(self, message: Message) -> None:
        """Hand a message to the socket's buffer, which whoever sends must bound.

        A peer that has gone is seen by `receive`; what is sent to it is dropped.
        """
        if not self._writer.is_closing():
            self._writer.writelines(framed(message))

    def close(self) -> None:
        self._writer.close()
