import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.local import jars
from worker.local.jars import KAFKA_VERSION, kafka_jars, whole
from worker.local.spec import MissingPart, Silent


class Maven:
    """A stand-in for jgo.maven: three jars for Kafka, two for the log binding."""

    def __init__(self, save: Callable[[Path], None]) -> None:
        self.save = save
        self.downloads: list[str] = []

    def PythonResolver(self) -> "Maven":  # noqa: N802 - jgo's name
        return self

    def MavenContext(self, *, resolver: "Maven", repo_cache: Path) -> "Maven":  # noqa: N802 - jgo's name
        self.repository = repo_cache
        return resolver

    @property
    def resolver(self) -> "Maven":
        return self

    def create_dependency(self, endpoint: str) -> str:
        return endpoint

    def resolve(self, endpoints: list[str]) -> tuple[list[SimpleNamespace], list[SimpleNamespace]]:
        name = endpoints[0].split(":")[1]
        scopes = (("a", "compile"), ("b", "runtime"), ("c", "test"))
        transitive = [self._dependency(f"{name}-{word}", scope) for word, scope in scopes]
        return [self._dependency(name, None)], transitive

    def _dependency(self, name: str, scope: str | None) -> SimpleNamespace:
        file = self.repository / f"{name}.jar"

        def resolve() -> Path:
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                self.downloads.append(name)
                self.save(file)
            return file

        return SimpleNamespace(scope=scope, artifact=SimpleNamespace(resolve=resolve))


def save_jar(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as jar:
        jar.writestr("Some.class", file.name * 100)


def install(monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], None]) -> Maven:
    maven = Maven(save)
    monkeypatch.setattr(jars, "extra_module", lambda _: maven)
    return maven


WANTED = ["kafka_2.13", "kafka_2.13-a", "kafka_2.13-b", "log4j-slf4j-impl"]


def test_kafka_comes_with_what_it_runs_on_and_of_the_log_binding_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, save_jar)

    folder = kafka_jars(tmp_path, Silent())

    assert sorted(jar.stem for jar in folder.iterdir()) == WANTED
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "kafka.lock"}


def test_jars_that_are_there_are_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maven = install(monkeypatch, save_jar)
    kafka_jars(tmp_path, Silent())
    maven.downloads.clear()

    kafka_jars(tmp_path, Silent())

    assert maven.downloads == []


def test_two_first_starts_at_once_fetch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maven = install(monkeypatch, save_jar)
    threads = [threading.Thread(target=kafka_jars, args=(tmp_path, Silent())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert sorted(maven.downloads) == WANTED


def test_a_download_that_breaks_off_is_tried_again_without_the_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = iter([True])

    def save(file: Path) -> None:
        save_jar(file)
        if file.stem == "kafka_2.13-b" and next(broken, False):
            file.write_bytes(file.read_bytes()[:-30])
            raise ConnectionError("reset by peer")

    maven = install(monkeypatch, save)

    folder = kafka_jars(tmp_path, Silent())

    assert all(whole(jar) for jar in folder.iterdir())
    assert maven.downloads.count("kafka_2.13-b") == 2
    assert maven.downloads.count("kafka_2.13") == 1


def test_a_file_that_a_killed_start_left_half_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, save_jar)
    half = tmp_path / f"kafka-{KAFKA_VERSION}.partial" / "repository" / "kafka_2.13.jar"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"PK\x03\x04 half a jar")

    folder = kafka_jars(tmp_path, Silent())

    assert whole(folder / "kafka_2.13.jar")


def test_jars_that_never_come_whole_are_never_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(file: Path) -> None:
        file.write_bytes(b"<html>sign in to the hotel's network")

    install(monkeypatch, save)

    with pytest.raises(
        MissingPart, match=r"cannot be fetched \(3 attempts\).*came broken\n.*HTTPS_PROXY"
    ):
        kafka_jars(tmp_path, Silent())

    assert not (tmp_path / f"kafka-{KAFKA_VERSION}").exists()


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [
        ("a.pom", b"<project>...</project>\n", True),
        ("a.pom", b"<project>...<depende", False),
        ("a.jar", b"", False),
        ("maven-metadata.xml", b"", True),
    ],
)
def test_whether_a_fetched_file_is_whole(
    tmp_path: Path, name: str, content: bytes, *, answer: bool
) -> None:
    (tmp_path / name).write_bytes(content)

    assert whole(tmp_path / name) is answer
