"""A whole worker in this process: how it starts, what ends it, and its exit codes."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.broker import Feed, Topics, make_topics
from tests.fakes import eventually
from tests.ledger import account
from worker.app import Worker
from worker.config import Settings
from worker.demo.pictures import pictures
from worker.errors import BrokerRefused, DeviceError, ModelError
from worker.local.stack import Stack
from worker.process import NOT_DRAINED, signals

NOBODY = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def settings(tmp_path: Path, kafka: dict[str, Any], **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "kafka": kafka,
            "http": {"port": 0},
            "data_dir": tmp_path,
            "engine": {"policy": "cpu", "lanes": 1},
            "shutdown": {"drain_deadline_s": 5},
            **more,
        }
    )


def kafka_of(topics: Topics) -> dict[str, Any]:
    return {
        "bootstrap_servers": topics.bootstrap,
        "group_id": topics.group,
        "input_topics": [topics.input],
        "output_topic": topics.output,
        "dead_letter_topic": topics.dead,
        "session_timeout_ms": 2000,
    }


@pytest.mark.kafka
async def test_a_worker_serves_what_there_is_and_ends_when_idle(
    kafka: Stack, unique: str, tmp_path: Path
) -> None:
    topics = make_topics(kafka, unique, partitions=2)
    feed = Feed(topics)
    for number, picture in enumerate(pictures()[:40]):
        feed.send(b"%d" % number, picture.png, partition=number % 2)
    feed.send(b"bad", b"no picture")
    feed.flush()
    worker = Worker(settings(tmp_path, kafka_of(topics)))
    async with asyncio.timeout(60):
        assert await worker.run(until_idle_s=0.5) == 0
    assert worker._metrics.in_flight_records._value.get() == 0
    done = await asyncio.to_thread(account, topics, feed.sent, doomed={b"bad": "image.type"})
    assert len(done.results) == 41


@pytest.mark.kafka
async def test_a_signal_drains_a_worker_that_serves(
    kafka: Stack, unique: str, tmp_path: Path
) -> None:
    topics = make_topics(kafka, unique, partitions=1)
    worker = Worker(settings(tmp_path, kafka_of(topics)))
    running = asyncio.create_task(worker.run())
    await eventually(lambda: worker._state.is_ready, 60)
    assert worker._metrics.rebalances._value.get() == 1, "ready is a member that has its partitions"
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(30):
        assert await running == 0
    assert "worker" in worker._state.unready_because


@pytest.mark.kafka
async def test_a_topic_that_is_absent_ends_the_worker_with_5(
    kafka: Stack, unique: str, tmp_path: Path
) -> None:
    topics = make_topics(kafka, unique)._replace(output=f"{unique}.absent")
    with pytest.raises(BrokerRefused, match="absent") as refused:
        await Worker(settings(tmp_path, kafka_of(topics))).run()
    assert refused.value.exit_code == 5


async def test_a_model_that_is_absent_ends_the_worker_with_3_before_kafka_is_asked(
    tmp_path: Path,
) -> None:
    broken = settings(
        tmp_path,
        {"bootstrap_servers": NOBODY},
        models={"default": "digits", "active": {"digits": "99"}},
    )
    with pytest.raises(ModelError, match="99") as refused:
        async with asyncio.timeout(30):
            await Worker(broken).run()
    assert refused.value.exit_code == 3


async def test_a_gpu_that_is_named_and_not_here_ends_the_worker_with_4_before_a_model_is_loaded(
    tmp_path: Path,
) -> None:
    named = {"policy": "prefer-gpu", "devices": ["GPU-0"]}
    worker = Worker(settings(tmp_path, {"bootstrap_servers": NOBODY}, engine=named))
    with pytest.raises(DeviceError, match=r"engine\.devices names what is not here: GPU-0") as told:
        async with asyncio.timeout(90):
            await worker.run()
    assert told.value.exit_code == 4
    assert "models" not in worker._state.unready_because


async def test_a_worker_without_brokers_is_alive_unready_and_ends_when_told(
    tmp_path: Path,
) -> None:
    worker = Worker(settings(tmp_path, {"bootstrap_servers": NOBODY}))
    running = asyncio.create_task(worker.run())
    await eventually(lambda: "kafka" in worker._state.unready_because, 60)
    assert NOBODY in worker._state.unready_because["kafka"]
    assert worker._state.dead_because == {}
    assert "models" not in worker._state.unready_because, "they are warm before Kafka is asked"
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(30):
        assert await running == 0


async def test_a_signal_while_models_load_ends_the_worker_and_its_engine(tmp_path: Path) -> None:
    worker = Worker(settings(tmp_path, {"bootstrap_servers": NOBODY}))
    running = asyncio.create_task(worker.run())
    before = set(psutil.Process().children())
    await eventually(lambda: bool(set(psutil.Process().children()) - before), 30)
    (engine,) = set(psutil.Process().children()) - before
    assert worker._state.unready_because["models"] == "loading"
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await running == 0
    assert not engine.is_running()


async def test_a_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = asyncio.Event()
    with signals(stop, deadline_s=60.0):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await stop.wait()
        assert codes == []
        monkeypatch.setattr("worker.process._ONE_SIGNAL_S", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        await eventually(lambda: codes == [NOT_DRAINED])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


async def test_the_same_signal_to_us_and_to_our_group_is_one_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    came: list[str] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("worker.process._ONE_SIGNAL_S", 60.0)
    with signals(asyncio.Event(), deadline_s=60.0):
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.append, "later")
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        await eventually(lambda: came == ["later"])
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
    assert codes == []


async def test_a_drain_that_hangs_is_ended_by_a_timer_and_not_after_the_worker_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("worker.process._EXIT_SLACK_S", 0.0)
    with signals(asyncio.Event(), deadline_s=0.05):
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: codes == [NOT_DRAINED])


def test_a_thread_that_reads_what_hangs_does_not_keep_a_process_that_is_done() -> None:
    program = """if True:
        import asyncio, threading
        from worker.process import end_soon
        async def main():
            asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
        with asyncio.Runner() as runner:
            runner.run(main())
            end_soon(7, within_s=0.05)
        """
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 7
