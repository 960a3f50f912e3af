import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import structlog

from worker.errors import SettingsError
from worker.telemetry.health import Health, LoopLag, State
from worker.telemetry.metrics import Metrics


class Served:
    """A running Health, and what its paths answer."""

    def __init__(self, state: State, lag: LoopLag, client: aiohttp.ClientSession) -> None:
        self.state = state
        self.lag = lag
        self.client = client

    async def json(self, path: str) -> tuple[int, Any]:
        async with self.client.get(path) as answer:
            return answer.status, await answer.json()

    async def text(self, path: str) -> str:
        async with self.client.get(path) as answer:
            assert answer.content_type == "text/plain"
            return await answer.text()


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    state, lag = State(), LoopLag()
    health = Health(Metrics(), state, host="127.0.0.1", port=0, lag=lag)
    port = await health.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            yield Served(state, lag, client)
    finally:
        await health.stop()


async def test_a_starting_worker_is_alive_and_not_ready() -> None:
    async with serving() as served:
        assert await served.json("/livez") == (200, {"alive": True, "reasons": {}})
        assert await served.json("/readyz") == (
            503,
            {"ready": False, "reasons": {"worker": "starting"}},
        )


async def test_readiness_names_every_part_that_is_missing_until_none_is() -> None:
    async with serving() as served:
        served.state.ready("worker")
        served.state.unready("models", "digits/1 is loading")
        served.state.unready("group", "not joined")
        assert (await served.json("/readyz"))[1]["reasons"] == {
            "models": "digits/1 is loading",
            "group": "not joined",
        }
        assert "darkroom_ready 0.0" in await served.text("/metrics")

        served.state.ready("models")
        served.state.ready("group")
        assert await served.json("/readyz") == (200, {"ready": True, "reasons": {}})
        served.state.notes["control"] = "Redis does not answer"
        notes = {"notes": {"control": "Redis does not answer"}}
        assert await served.json("/readyz") == (200, {"ready": True, "reasons": {}, **notes})
        assert "darkroom_ready 1.0" in await served.text("/metrics")


async def test_a_part_beyond_repair_makes_the_worker_neither_alive_nor_ready() -> None:
    async with serving() as served:
        served.state.ready("worker")
        served.state.dead("engine digits/1", "hangs and cannot be killed")

        assert (await served.json("/livez"))[0] == 503
        assert (await served.json("/readyz"))[0] == 503

        served.state.alive("engine digits/1")
        assert (await served.json("/livez"))[0] == 200


async def test_a_loop_that_wakes_up_far_too_late_is_not_alive() -> None:
    async with serving() as served:
        served.lag.last_s = 16.0

        status, answer = await served.json("/livez")

    assert status == 503
    assert answer["reasons"] == {"loop": "woke up 16.0 s late"}


async def test_loop_lag_is_the_time_beyond_the_sleep() -> None:
    now_s = 0.0
    lags = []

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        lags.append(lag.last_s)
        if len(lags) == 4:
            raise asyncio.CancelledError
        now_s += seconds + (2.0 if len(lags) == 2 else 0.0)

    lag = LoopLag(lambda: now_s, sleep)
    with structlog.testing.capture_logs() as logged, pytest.raises(asyncio.CancelledError):
        await lag.watch()

    assert lags == [0.0, 0.0, 2.0, 0.0]
    assert [line["lag_s"] for line in logged] == [2.0]


async def test_a_taken_port_gives_a_warning_and_the_next_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asked = taken.getsockname()[1]
        health = Health(Metrics(), State(), host="127.0.0.1", port=asked)

        with structlog.testing.capture_logs() as logged:
            port = await health.start()
        await health.stop()

    assert asked < port <= asked + 100
    [line] = logged
    assert (line["log_level"], line["asked"], line["port"]) == ("warning", asked, port)


async def test_a_host_that_is_not_ours_is_a_problem_of_the_settings() -> None:
    health = Health(Metrics(), State(), host="192.0.2.1", port=0)

    with pytest.raises(SettingsError, match=r"http: cannot listen on 192\.0\.2\.1:0"):
        await health.start()


async def test_after_stop_nobody_listens_and_stopping_again_is_nothing() -> None:
    health = Health(Metrics(), State(), host="127.0.0.1", port=0)
    port = await health.start()

    await health.stop()
    await health.stop()

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
