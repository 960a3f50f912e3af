"""Fetches Kafka's jars once and keeps them in a cache that all stacks of a user share.

What stands under its final name is complete: jars are fetched and checked under another name, by
one process at a time, and renamed together.
"""

import logging
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from worker.local.java import extra_module
from worker.local.lock import locked
from worker.local.spec import MissingPart, Watcher

KAFKA_VERSION = "4.1.1"
# Two graphs: in one, the binding's dependency management would pull kafka-clients back to 3.8.
KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3"

ATTEMPTS = 3
CONNECTIONS = 4
FETCH_DEADLINE_S = 600.0
ADVICE = (
    "They come from Maven Central: behind a proxy set HTTPS_PROXY; where a certificate "
    "authority of your own signs, set REQUESTS_CA_BUNDLE to its file."
)


def kafka_jars(cache: Path, watcher: Watcher) -> Path:
    """Folder of the jars of Kafka and its log binding; fetched first where it is absent.

    Raises MissingPart when they can be neither found nor fetched.
    """
    ready = cache / f"kafka-{KAFKA_VERSION}"
    if ready.is_dir():
        return ready
    with locked(cache / "kafka.lock", deadline_s=FETCH_DEADLINE_S):
        if not ready.is_dir():
            watcher.say(f"fetching Apache Kafka {KAFKA_VERSION} (45 MB, this once) to {cache}")
            partial = cache / f"kafka-{KAFKA_VERSION}.partial"
            _fetch(partial, watcher)
            (partial / "jars").rename(ready)
            shutil.rmtree(partial)
    return ready


def _fetch(partial: Path, watcher: Watcher) -> None:
    """Put all jars into partial/jars; what an interrupted attempt left whole is used again."""
    maven = extra_module("jgo.maven")
    logging.getLogger("jgo").setLevel(logging.ERROR)
    for attempt in range(1, ATTEMPTS + 1):
        _drop_broken(partial)
        try:
            jars = _download(_artifacts(maven, partial / "repository"), watcher)
            _gather(jars, partial / "jars")
        except Exception as error:  # what requests, jgo and zipfile raise has no common root
            if attempt == ATTEMPTS:
                raise MissingPart(
                    f"Apache Kafka's jars cannot be fetched ({ATTEMPTS} attempts): {error}\n"
                    f"{ADVICE}"
                ) from error
            watcher.say(f"trying again: {error}")
        else:
            return


def _artifacts(maven: Any, repository: Path) -> list[Any]:
    def graph(endpoint: str) -> list[Any]:
        context = maven.MavenContext(resolver=maven.PythonResolver(), repo_cache=repository)
        inputs, transitive = context.resolver.resolve([context.create_dependency(endpoint)])
        wanted = [each for each in transitive if each.scope in {"compile", "runtime"}]
        return [each.artifact for each in (*inputs, *wanted)]

    return [*graph(KAFKA), graph(LOG_BINDING)[0]]


def _download(artifacts: list[Any], watcher: Watcher) -> list[Path]:
    fetches: list[Callable[[], Path]] = [artifact.resolve for artifact in artifacts]
    jars = []
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        futures = [pool.submit(fetch) for fetch in fetches]
        try:
            for future in as_completed(futures):
                jars.append(future.result())
                watcher.downloaded(len(jars), len(futures))
        finally:
            pool.shutdown(cancel_futures=True)
    return jars


def _gather(jars: list[Path], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for jar in jars:
        if not whole(jar):
            raise zipfile.BadZipFile(f"{jar.name} came broken")
        (folder / jar.name).hardlink_to(jar)


def _drop_broken(partial: Path) -> None:
    """Delete what an interrupted download left: the resolver takes a file that exists for whole."""
    for file in (partial / "repository").rglob("*"):
        if file.is_file() and not whole(file):
            file.unlink()


def whole(file: Path) -> bool:
    """Whether a fetched file is complete: a jar by its checksums, a POM by its last tag."""
    if file.suffix == ".jar":
        try:
            with zipfile.ZipFile(file) as jar:
                return jar.testzip() is None
        except (zipfile.BadZipFile, OSError):
            return False
    return file.suffix != ".pom" or b"</project>" in file.read_bytes()[-200:]
