"""TLS for tests: certificates made on the spot, and a front that speaks it for a plain server."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conftest import missing
from worker.local.spec import HOST

_DAYS = "2"
_CHUNK_BYTES = 65_536


class Certificates(NamedTuple):
    """Signed by `ca`; the server's is good for 127.0.0.1 alone."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Have openssl (3.0 or later) make an authority and what it signs."""
    made = Certificates(
        *(folder / name for name in ("ca.pem", "server.pem", "server.key")),
        *(folder / name for name in ("client.pem", "client.key")),
    )
    ca_key = folder / "ca.key"
    _make(made.ca, ca_key, "/CN=an authority of a test")
    signer = ("-CA", str(made.ca), "-CAkey", str(ca_key))
    names = ("-addext", f"subjectAltName=IP:{HOST}")
    _make(made.server, made.server_key, "/CN=a server of a test", *signer, *names)
    _make(made.client, made.client_key, "/CN=a client of a test", *signer)
    return made


def _make(certificate: Path, key: Path, subject: str, *options: str) -> None:
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", _DAYS)
    files = ("-keyout", str(key), "-out", str(certificate))
    _openssl("req", "-x509", *kind, "-subj", subject, *options, *files)


def lock_key(key: Path, locked: Path) -> None:
    """Copy a key so that it wants a password."""
    _openssl("ec", "-aes256", "-passout", "pass:x", "-in", str(key), "-out", str(locked))


def _openssl(*words: str) -> None:
    try:
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        missing(f"certificates are made by the command openssl, 3.0 or later: {error}")


def server_context(certificates: Certificates) -> ssl.SSLContext:
    """Want a certificate of the client too."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@asynccontextmanager
async def tls_front(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Speak TLS on a port of its own for the plain server at `port`."""
    ended: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.current_task())
        back_reader, back_writer = await asyncio.open_connection(HOST, port)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(reader, back_writer))
            group.create_task(_pump(back_reader, writer))

    async with await asyncio.start_server(serve, HOST, 0, ssl=context) as front:
        yield front.sockets[0].getsockname()[1]
    await asyncio.gather(*(task for task in ended if task is not None))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
