"""The demo: real digits through a real Kafka and a real worker process, and what came of each.

Nothing is special about its worker: it runs `darkroom run` on the demo's own models, in topics of
its own, and everything is read back from Kafka.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import aiohttp
import orjson
import yaml

from worker.config import KafkaSettings
from worker.demo.pictures import pictures
from worker.errors import CommandError
from worker.kafka.publish import Message, Publisher
from worker.kafka.tail import tail
from worker.local.ports import free_ports
from worker.local.spec import HOST

_READY_DEADLINE_S = 60.0
_QUIET_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 45.0
_LOG_TAIL_BYTES = 2000


class Sent(NamedTuple):
    """What was published under one key; `label` is None for what nobody could serve."""

    key: str
    label: str | None
    value: bytes


class Report(NamedTuple):
    sent: int
    results: int
    dead_letters: int
    lost: int
    duplicated: int
    out_of_order: int
    accuracy: float
    per_second: float
    age_ms: dict[str, float]

    @property
    def whole(self) -> bool:
        """Nothing was lost, came twice, or out of order."""
        return not (self.lost or self.duplicated or self.out_of_order)


class Watcher(Protocol):
    """Who is told how the demo gets on."""

    def say(self, line: str) -> None: ...

    def sent(self, count: int) -> None: ...

    def came(self, count: int, correct: int, served: int) -> None: ...


def messages(count: int) -> list[Sent]:
    """Return `count` pictures, the pack over and over, with three that nobody can serve."""
    pack = pictures()
    half = pack[0].png[: len(pack[0].png) // 2]
    made = [
        Sent(f"{number:06d}", pack[number % len(pack)].label, pack[number % len(pack)].png)
        for number in range(count)
    ]
    for quarter, value in enumerate((b"", b"this is no picture", half), start=1):
        number = count * quarter // 4
        made[number] = Sent(f"{number:06d}", None, value)
    return made


async def run_demo(
    kafka: KafkaSettings, folder: Path, *, count: int, version: str, watcher: Watcher
) -> Report:
    """Send `count` records through one worker and account for every one of them.

    The topics of `kafka` exist and are empty; `folder` takes the worker's settings and log.
    Raises CommandError when the worker fails or results stop coming.
    """
    wanted = messages(count)
    async with _worker(kafka, folder, version) as process:
        watcher.say(f"one worker serves digits/{version}; its log: {folder / 'worker.log'}")
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_read(kafka, wanted, process, watcher))
            began_s = time.monotonic()
            async with Publisher(kafka, kafka.input_topics[0]) as publisher:
                for number, (key, _, value) in enumerate(wanted, start=1):
                    await publisher.send(Message(key.encode(), value, ()))
                    if number % 100 == 0:
                        watcher.sent(number)
            watcher.sent(count)
        results = reading.result()
        seconds = time.monotonic() - began_s
    letters = 0
    async for _ in tail(kafka, kafka.dead_letter_topic, from_beginning=True, follow=False):
        letters += 1
    return _report(wanted, results, letters, seconds)


async def _read(
    kafka: KafkaSettings,
    wanted: Sequence[Sent],
    process: subprocess.Popen[bytes],
    watcher: Watcher,
) -> list[dict[str, object]]:
    """Read results until there is one for every record, and a moment longer for repeats."""
    labels = {sent.key: sent.label for sent in wanted}
    results: list[dict[str, object]] = []
    missing = set(labels)
    correct = served = 0
    reader = tail(kafka, kafka.output_topic, from_beginning=True, follow=True)
    try:
        while missing:
            try:
                async with asyncio.timeout(_QUIET_DEADLINE_S):
                    published = await anext(reader)
            except TimeoutError:
                raise CommandError(
                    f"{len(missing)} results are missing and none came for "
                    f"{_QUIET_DEADLINE_S:g} s (worker: exit code {process.poll()})"
                ) from None
            result = orjson.loads(published.value or b"{}")
            key = (published.key or b"").decode()
            result["key"] = key
            results.append(result)
            missing.discard(key)
            if result["status"] == "ok":
                served += 1
                correct += result["predictions"]["digit"][0]["label"] == labels[key]
            if len(results) % 100 == 0 or not missing:
                watcher.came(len(results), correct, served)
    finally:
        await reader.aclose()
    return results


def _report(
    wanted: Sequence[Sent], results: Sequence[dict[str, object]], letters: int, seconds: float
) -> Report:
    labels = {sent.key: sent.label for sent in wanted}
    ids = Counter(result["id"] for result in results)
    last: dict[int, int] = {}
    out_of_order = correct = served = 0
    seen: set[object] = set()
    for result in results:
        source = result["source"]
        assert isinstance(source, dict)
        if result["id"] not in seen:
            seen.add(result["id"])
            out_of_order += source["offset"] < last.get(source["partition"], -1)
            last[source["partition"]] = source["offset"]
        if result["status"] == "ok":
            served += 1
            predictions = result["predictions"]
            assert isinstance(predictions, dict)
            correct += predictions["digit"][0]["label"] == labels[str(result["key"])]
    ages = sorted(float(str(result["age_ms"])) for result in results)
    return Report(
        sent=len(wanted),
        results=len(results),
        dead_letters=letters,
        lost=len(labels.keys() - {result["key"] for result in results}),
        duplicated=sum(ids.values()) - len(ids),
        out_of_order=out_of_order,
        accuracy=round(correct / served, 4) if served else 0.0,
        per_second=round(len(results) / seconds, 1),
        age_ms={"p50": _percentile(ages, 0.50), "p99": _percentile(ages, 0.99)},
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) if ordered else 0.0


@contextlib.asynccontextmanager
async def _worker(
    kafka: KafkaSettings, folder: Path, version: str
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run one worker for the length of a block, ready when the block begins, drained after it."""
    (port,) = free_ports(1)
    process, log = await asyncio.to_thread(_start, kafka, folder, version, port)
    try:
        await _ready(process, f"http://{HOST}:{port}/readyz", log)
        yield process
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, _STOP_DEADLINE_S)
        if code != 0:
            raise CommandError(f"the worker ended with exit code {code}; the end of {_tail(log)}")
    finally:
        process.kill()
        process.wait()


def _start(
    kafka: KafkaSettings, folder: Path, version: str, port: int
) -> tuple[subprocess.Popen[bytes], Path]:
    """Start `darkroom run` with settings of its own; return it and its log."""
    folder.mkdir(parents=True, exist_ok=True)
    topics = {"input_topics": list(kafka.input_topics), "output_topic": kafka.output_topic}
    settings = {
        "kafka": {
            **topics,
            "bootstrap_servers": kafka.bootstrap_servers,
            "group_id": kafka.group_id,
            "dead_letter_topic": kafka.dead_letter_topic,
        },
        "models": {"default": "digits", "active": {"digits": version}},
        "http": {"host": HOST, "port": port},
        "data_dir": str(folder),
    }
    config, log = folder / "worker.yaml", folder / "worker.log"
    config.write_text(yaml.safe_dump(settings))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    return process, log


async def _ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until_s = time.monotonic() + _READY_DEADLINE_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < until_s:
            if process.poll() is not None:
                raise CommandError(
                    f"the worker ended with exit code {process.returncode}; the end of {_tail(log)}"
                )
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise CommandError(f"the worker did not become ready; the end of {_tail(log)}")


def _tail(log: Path) -> str:
    return f"{log}:\n{log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors='replace')}"
