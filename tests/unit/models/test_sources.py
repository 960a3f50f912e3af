"""Sources: a folder or a URL, one way to read them, and one way to say what is wrong."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.unit.models.shelves import Stall, Web, body, serving, status
from worker.errors import ModelError, SettingsError
from worker.models import sources
from worker.models.sources import Folder, Remote, source_of

ME = "me:secret" + "@"  # apart: a whole one looks like an address of a package registry


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "a").write_bytes(b"content")
    with serving(tmp_path) as web:
        yield web


def read(location: str | Path, name: str) -> bytes:
    return b"".join(source_of(location).chunks(name))


@pytest.mark.parametrize(
    ("location", "kind", "where"),
    [
        (Path("/srv/models"), Folder, "/srv/models/a/b"),
        ("models", Folder, "models/a/b"),
        ("file:///srv/models", Folder, "/srv/models/a/b"),
        ("https://host/models", Remote, "https://host/models/a/b"),
        ("https://host/models/", Remote, "https://host/models/a/b"),
        (f"https://{ME}host/models", Remote, "https://host/models/a/b"),
        ("zip://models::/x.zip", Remote, "zip://models/a/b::/x.zip"),
        ("zip://models/::/x.zip", Remote, "zip://models/a/b::/x.zip"),
        (f"zip://::https://{ME}host/x.zip", Remote, "zip://a/b::https://host/x.zip"),
        ("memory://models", Remote, "memory://models/a/b"),
    ],
)
def test_a_location_is_a_folder_or_a_url_whose_files_have_names_without_secrets(
    location: str | Path, kind: type, where: str
) -> None:
    source = source_of(location)
    assert isinstance(source, kind)
    assert source.where("a/b") == where


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nope://bucket", "nope:// is no protocol that fsspec knows"),
        ("zip://models::nope://bucket/x.zip", "nope:// is no protocol that fsspec knows"),
        ("lakefs://models", "no driver for lakefs:// is installed: Please install lakefs-spec"),
    ],
)
def test_a_url_without_a_driver_is_refused_before_anything_is_read(url: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        source_of(url)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"models.repository {url}: ")


def test_a_missing_driver_is_named_with_the_package_to_install() -> None:
    with pytest.raises(SettingsError, match=r"\(pip install lakefs_spec\)$"):
        source_of("lakefs://models")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (404, "model.absent", "is not there"),
        (403, "model.fetch", "403"),
        (429, "model.fetch", "429"),
        (500, "model.fetch", "500"),
    ],
)
def test_what_a_server_refuses_is_told_apart_from_what_is_not_there(
    web: Web, answer: int, code: str, said: str
) -> None:
    web.faults["GET /a"] = status(answer)
    with pytest.raises(ModelError) as caught:
        read(web.url, "a")
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{web.url}/a: ")
    assert said in str(caught.value)


def test_a_file_is_read_with_one_request(web: Web) -> None:
    assert read(web.url, "a") == b"content"
    assert web.asked == ["GET /a"]


def test_a_size_that_is_not_told_is_no_error(web: Web) -> None:
    assert source_of(web.url).size("a") == 7
    web.faults["HEAD /a"] = status(405)
    assert source_of(web.url).size("a") == 7
    web.faults["GET /a"] = status(500)
    assert source_of(web.url).size("a") is None


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"http://127\.0\.0\.1:1/a: cannot be read: .*'127"
    ) as caught:
        read(f"http://{ME}127.0.0.1:1", "a")
    assert caught.value.code == "model.fetch"
    assert "secret" not in str(caught.value)


def test_a_server_that_falls_silent_is_given_up_on(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SILENCE_S", 0.2)
    fsspec.get_filesystem_class("http").clear_instance_cache()
    stall = web.faults["GET /a"] = Stall(b"content")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        read(web.url, "a")
    stall.go.set()
    fsspec.get_filesystem_class("http").clear_instance_cache()
    assert caught.value.code == "model.fetch"


def test_a_proxy_of_the_environment_is_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    web.faults["GET http://models.example/a"] = body(b"by the proxy")
    assert read("http://models.example", "a") == b"by the proxy"


def test_a_driver_that_raises_anything_is_told_in_one_line() -> None:
    class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
        protocol = "broken"

        def _open(self, *_: object, **__: object) -> object:
            raise RuntimeError(f"first line\nsecond at https://{ME}host/x " + "." * 400)

    fsspec.register_implementation("broken", Broken)
    with pytest.raises(ModelError) as caught:
        read("broken://x", "a")
    assert "RuntimeError: first line second at https://host/x ..." in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


async def test_a_url_is_read_from_a_thread_while_a_loop_runs(web: Web) -> None:
    assert await asyncio.to_thread(read, web.url, "a") == b"content"


def test_a_listing_is_never_remembered() -> None:
    fsspec.filesystem("memory").pipe("/now/1/a", b"a")
    source = source_of("memory://now")
    assert source.folders("") == ["1"]
    fsspec.filesystem("memory").pipe("/now/2/a", b"a")
    assert source.folders("") == ["1", "2"]
