"""The demo's worker: one `darkroom run` process, with settings and a log of its own."""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from worker.config_sections import ControlSettings, KafkaSettings, ModelsSettings
from worker.errors import CommandError
from worker.local.ports import free_ports
from worker.local.spec import HOST

LOG_NAME = "worker.log"
_READY_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 45.0
_LOG_TAIL_BYTES = 2000


@contextlib.asynccontextmanager
async def worker_process(
    kafka: KafkaSettings, control: ControlSettings, models: ModelsSettings, folder: Path
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run one worker for the length of a block, ready when the block begins, drained after it.

    Raises CommandError when it does not become ready, or ends otherwise than it should.
    """
    (port,) = free_ports(1)
    log = folder / LOG_NAME
    settings = _settings(kafka, control, models, folder, port)
    process = await asyncio.to_thread(_start, settings, folder, log)
    try:
        await _ready(process, f"http://{HOST}:{port}/readyz", log)
        yield process
        await asyncio.to_thread(stop, process, log)
    finally:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """Have a worker drain and end; blocks. Raises CommandError when it does not, or not well."""
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(_STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"the worker did not end within {_STOP_DEADLINE_S:g} s of SIGTERM, and is killed; the"
            f" end of {_tail(log)}"
        ) from None
    if code != 0:
        raise CommandError(f"the worker ended with exit code {code}; the end of {_tail(log)}")


def _settings(
    kafka: KafkaSettings, control: ControlSettings, models: ModelsSettings, folder: Path, port: int
) -> dict[str, Any]:
    return {
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "group_id": kafka.group_id,
            "input_topics": list(kafka.input_topics),
            "output_topic": kafka.output_topic,
            "dead_letter_topic": kafka.dead_letter_topic,
        },
        "models": {"default": models.default, "active": dict(models.active)},
        "control": {"url": control.url, "fleet": control.fleet},
        "http": {"host": HOST, "port": port},
        "data_dir": str(folder / "data"),
    }


def _start(settings: dict[str, Any], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start `darkroom run` as if it never had run before: a demo knows of no other one."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "worker.yaml"
    config.write_text(yaml.safe_dump(settings))
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "worker", "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )


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
