"""Where model versions lie: a folder, or what fsspec reads. Names in, bytes out.

It must not know what a manifest or a version is. All that goes wrong is a ModelError:
`model.absent` where there is nothing of a name, `model.fetch` for everything else.
"""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote

from worker.errors import ModelError, SettingsError
from worker.models.regular import open_regular

CHUNK_BYTES: Final = 1 << 20
_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 30.0
"""Of HTTP: a large file may take its time, silence may not."""


class Source(Protocol):
    """Files by name, with `/` between the parts; folders alike, and "" is the whole."""

    def where(self, name: str) -> str:
        """Return what people call a file; no secrets in it."""

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        """Read a file; whoever may stop before its end closes the generator."""

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None: the source does not say."""

    def folders(self, name: str) -> list[str]:
        """List the folders in a folder."""

    def has(self, name: str) -> bool:
        """Say whether there is a file of that name."""


def source_of(location: str | Path) -> Source:
    """Return the source that a setting names; nothing is read yet.

    Raises SettingsError for a URL of an unknown kind, or whose driver is not installed.
    """
    text = str(location)
    if isinstance(location, Path) or "://" not in text:
        return Folder(Path(location))
    if local := re.fullmatch(r"(?:file|local)://(.+)", text):
        return Folder(Path(local[1]))
    return Remote(text)


class Folder:
    """A folder of this machine, which others may change or unmount at any time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, name: str) -> str:
        return str(self.root / name)

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        with self._open(name) as stream, _telling(self.where(name)):
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def size(self, name: str) -> int:
        with self._open(name) as stream:
            return os.fstat(stream.fileno()).st_size

    def folders(self, name: str) -> list[str]:
        with _telling(self.where(name)), os.scandir(self.root / name) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def has(self, name: str) -> bool:
        with _telling(self.where(name)):
            return (self.root / name).is_file()

    def _open(self, name: str) -> BufferedReader:
        try:
            return open_regular(self.root, name)
        except ModelError as error:
            if error.code == "model.absent" and not self.root.is_dir():
                raise ModelError(
                    "cannot be read: no such folder", file=str(self.root), code="model.fetch"
                ) from error
            raise


class Remote:
    """A URL of any protocol that fsspec has a driver for.

    fsspec and aiohttp are imported when there is one: most repositories are folders, and a start
    is quicker without them.
    """

    def __init__(self, url: str) -> None:
        """Raise SettingsError when there is no driver."""
        # fsspec's chains name the innermost first: `zip://models::https://host/all.zip`.
        self._whole = url
        self._first, self._chain, self._rest = url.partition("::")
        self._streams = url.startswith(("http://", "https://"))
        self._options = {
            protocol: {"get_client": _http_client}
            for protocol in ("http", "https")
            if f"{protocol}://" in url
        }
        for protocol in re.findall(r"(?:^|::)([A-Za-z0-9+.-]+)(?=://|::)", url):
            _want_driver(protocol, self.where(""))

    def where(self, name: str) -> str:
        return _without_secrets(self._url(name))

    def chunks(self, name: str) -> Generator[bytes, None, None]:
        with _telling(self.where(name)):
            files, path = self._open(name)
            # HTTP: one request that streams, and none before it to ask for the size.
            options = {"block_size": 0, "size": 1} if self._streams else {}
            with files.open(path, "rb", **options) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk

    def size(self, name: str) -> int | None:
        try:
            with _telling(self.where(name)):
                files, path = self._open(name)
                size: int | None = files.info(path).get("size")
                return size
        except ModelError:
            return None  # many servers answer to GET alone; reading the file tells the rest

    def folders(self, name: str) -> list[str]:
        with _telling(self.where(name)):
            files, path = self._open(name)
            listed = files.ls(f"{path.rstrip('/')}/" if self._streams else path, detail=True)
            paths = [item["name"] for item in listed if item["type"] == "directory"]
            return [unquote(path.rstrip("/").rpartition("/")[2]) for path in paths]

    def has(self, name: str) -> bool:
        with _telling(self.where(name)):
            files, path = self._open(name)
            return bool(files.isfile(path))

    def _url(self, name: str) -> str:
        root = self._first if self._first.endswith("/") else f"{self._first}/"
        return f"{root}{name}{self._chain}{self._rest}" if name else self._whole

    def _open(self, name: str) -> tuple[Any, str]:
        import fsspec  # noqa: PLC0415 - see the class

        files, path = fsspec.url_to_fs(self._url(name), **self._options)
        files.invalidate_cache()  # drivers remember listings, for ever
        return files, path


async def _http_client(**options: Any) -> Any:
    """Make fsspec's HTTP client: our timeouts, and proxies as everybody names them."""
    import aiohttp  # noqa: PLC0415 - see `Remote`

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    return aiohttp.ClientSession(**{"timeout": timeout, "trust_env": True, **options})


def _want_driver(protocol: str, where: str) -> None:
    import fsspec  # noqa: PLC0415 - see `Remote`

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or protocol
        raise SettingsError(
            f"models.repository {where}: no driver for {protocol}:// is installed: {error}"
            f" (pip install {missing})"
        ) from error
    except ValueError as error:
        raise SettingsError(
            f"models.repository {where}: {protocol}:// is no protocol that fsspec knows: install"
            " the package that reads it, or name a folder, https:// or s3://"
        ) from error


@contextmanager
def _telling(where: str) -> Iterator[None]:
    """Turn what a disk or a driver raises into a ModelError that says where."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError("is not there", file=where, code="model.absent") from error
    except Exception as error:  # drivers raise what their own libraries raise
        raise ModelError(
            f"cannot be read: {_said(error)}", file=where, code="model.fetch"
        ) from error


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return _without_secrets(words if len(words) <= 300 else f"{words[:297]}...")


def _without_secrets(text: str) -> str:
    """Leave out user and password of URLs."""
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)
