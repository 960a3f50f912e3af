"""Versions to put on a shelf, and a web server that can fail as servers do."""

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from worker.types import ModelRef

FISH = ModelRef("fish", "1")
FILES = {"model.onnx": b"weights" * 40, "labels.txt": b"tench\n", "golden/fish.png": b"picture"}
MANIFEST = """\
schema: darkroom.manifest.v1
files:
{files}
inputs: {{image: {{preprocess: [cast: {{to: float32}}]}}}}
heads: {{label: {{type: classification, output: y, activation: none, labels: labels.txt}}}}
golden: [{{image: golden/fish.png, head: label, expect: {{label: tench, score: 0.7}}}}]
"""
"""Its files are no model, and need not be."""


def put(shelf: Path, ref: ModelRef = FISH, **content: bytes) -> str:
    """Put a version into a repository and return its manifest's sha256; `model` is its weights."""
    folder = shelf / str(ref)
    files = dict(FILES)
    if "model" in content:
        files["model.onnx"] = content["model"]
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    listed = (f"  {name}: sha256:{digest(data)}" for name, data in files.items())
    manifest = MANIFEST.format(files="\n".join(listed))
    (folder / "manifest.yaml").write_text(manifest)
    return digest(manifest.encode())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


Fault = Callable[[http.server.BaseHTTPRequestHandler], None]


class Web:
    """Serves a folder on 127.0.0.1, but for the paths that have a fault."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.faults: dict[str, Fault] = {}
        """By method and path: `GET /fish/1/model.onnx`."""
        self.asked: list[str] = []
        self._news = threading.Condition()

    def note(self, asked: str) -> None:
        with self._news:
            self.asked.append(asked)
            self._news.notify_all()

    def wait_for(self, asked: str, *, count: int) -> bool:
        """Wait until something was asked so many times."""
        with self._news:
            return self._news.wait_for(lambda: self.asked.count(asked) >= count, timeout=30)


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Serve a folder over HTTP as long as the context lasts."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            asked = f"{self.command} {self.path}"
            web.note(asked)
            fault = web.faults.get(asked)
            if fault is not None:
                fault(self)
                self.close_connection = True
            return fault is None

        def log_message(self, *_: Any) -> None:
            pass

    handler = partial(Handler, directory=str(folder))
    with (
        pytest.MonkeyPatch.context() as environment,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
    ):
        environment.setenv("no_proxy", "127.0.0.1")
        server.daemon_threads = True
        web = Web(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


def status(code: int) -> Fault:
    """Answer with a status and nothing else."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def body(data: bytes, *, length: int | None = None) -> Fault:
    """Answer with these bytes, of which `length` were promised; None promises nothing."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data)

    return answer


class Stall:
    """Sends a part of the body, then nothing until `go` is set."""

    def __init__(self, data: bytes) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self._data = data

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self._data)))
        handler.end_headers()
        handler.wfile.write(self._data[: len(self._data) // 2])
        handler.wfile.flush()
        self.reached.set()
        self.go.wait(30)
        with suppress(OSError):  # whoever asked is gone
            handler.wfile.write(self._data[len(self._data) // 2 :])
