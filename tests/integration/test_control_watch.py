"""The watch on a real Redis that is killed, cut off, emptied and frozen: it always hears again."""

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.fakes import eventually
from tests.redis_server import RedisServer, running_redis
from tests.unit.control.states import state
from worker.config_sections import ControlSettings
from worker.control.channel import Channel
from worker.control.messages import encode_state
from worker.local.ports import free_ports
from worker.local.spec import HOST

pytestmark = pytest.mark.redis

NUDGE = "darkroom:{default}:nudge"
PING_S = 0.2
HEARD_S = 8.0
"""Above the longest pause between two attempts, and a deadline."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


class Woken:
    """Counts, and can be waited for."""

    def __init__(self) -> None:
        self.times = 0
        self._event = asyncio.Event()

    def wake(self) -> None:
        self.times += 1
        self._event.set()

    async def again(self) -> None:
        """Wait until it is woken, from now on."""
        self._event.clear()
        async with asyncio.timeout(HEARD_S):
            await self._event.wait()


@asynccontextmanager
async def watching(
    settings: ControlSettings, *, ping_s: float = PING_S
) -> AsyncIterator[tuple[Woken, Channel]]:
    """Watch for the length of a block; what it leaves behind is a warning, which is an error."""
    woken = Woken()
    channel = Channel(settings, deadline_s=0.5, ping_s=ping_s)
    task = asyncio.create_task(channel.watch(woken.wake))
    try:
        yield woken, channel
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await channel.aclose()
        gc.collect()


async def subscribers(server: RedisServer, count: int) -> None:
    def are_so_many() -> bool:
        return bool(server.do("PUBSUB", "NUMSUB", NUDGE) == [NUDGE.encode(), count])

    await eventually(are_so_many, HEARD_S)


async def test_it_wakes_when_it_is_subscribed_and_on_every_nudge(server: RedisServer) -> None:
    async with watching(server.settings()) as (woken, channel):
        await woken.again()
        for generation in (1, 2, 3):
            heard = asyncio.create_task(woken.again())
            new = encode_state(state(generation=generation))
            await channel.write(new, expected=generation - 1 or None, command="x", by="me")
            await heard
        assert woken.times == 4


async def test_its_own_pings_wake_nobody(server: RedisServer) -> None:
    async with watching(server.settings(), ping_s=0.02) as (woken, _):
        await woken.again()

        def pings() -> int:
            return int(server.do("INFO", "commandstats").get("cmdstat_ping", {}).get("calls", 0))

        await eventually(lambda: pings() > 10)
        assert woken.times == 1


async def test_after_a_kill_and_a_start_it_wakes_and_hears_nudges(server: RedisServer) -> None:
    async with watching(server.settings()) as (woken, _):
        await woken.again()
        server.kill()
        await asyncio.sleep(0.5)
        assert woken.times == 1
        server.start()

        await woken.again()

        heard = asyncio.create_task(woken.again())
        await subscribers(server, 1)
        server.do("PUBLISH", NUDGE, "{}")
        await heard


async def test_after_its_connection_is_killed_it_wakes_again(server: RedisServer) -> None:
    async with watching(server.settings()) as (woken, _):
        await woken.again()
        heard = asyncio.create_task(woken.again())
        server.do("CLIENT", "KILL", "TYPE", "pubsub")
        await heard


async def test_a_black_hole_is_given_up_and_it_wakes_when_that_ends(server: RedisServer) -> None:
    async with watching(server.settings()) as (woken, _):
        await woken.again()
        with capture_logs() as logs, server.frozen():
            await eventually(lambda: bool(logs))
            assert logs[0]["event"] == "control.deaf"
            assert "silent for 0.4 s" in logs[0]["why"]
            assert woken.times == 1
            heard = asyncio.create_task(woken.again())

        await heard

        await subscribers(server, 1)  # and what it gave up is gone


async def test_a_flush_takes_no_subscription_away(server: RedisServer) -> None:
    async with watching(server.settings()) as (woken, channel):
        await woken.again()
        server.do("FLUSHALL")
        heard = asyncio.create_task(woken.again())
        await channel.write(encode_state(state()), expected=None, command="restore", by="w-1")
        await heard


async def test_what_closes_every_connection_is_not_asked_in_a_rush() -> None:
    (port,) = free_ports(1)
    attempts = 0

    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async with (
        await asyncio.start_server(refuse, HOST, port),
        watching(ControlSettings(url=f"redis://{HOST}:{port}/0")) as (woken, _),
    ):
        with capture_logs() as logs:
            await asyncio.sleep(2.0)
        assert woken.times == 0
    assert 2 <= attempts <= 12
    assert [log["event"] for log in logs] == ["control.deaf"]


async def test_a_redis_that_cuts_off_each_subscription_is_not_asked_in_a_rush(
    server: RedisServer,
) -> None:
    async with watching(server.settings()) as (woken, _):
        await woken.again()
        began_s = time.monotonic()
        for _number in range(4):
            heard = asyncio.create_task(woken.again())
            server.do("CLIENT", "KILL", "TYPE", "pubsub")
            await heard
        assert time.monotonic() - began_s > 0.4
        assert woken.times <= 9


async def test_a_user_who_may_not_subscribe_is_told_once(server: RedisServer) -> None:
    server.do("ACL", "SETUSER", "default", "-subscribe")
    with capture_logs() as logs:
        async with watching(server.settings()) as (woken, _):
            await eventually(lambda: bool(logs))
            await asyncio.sleep(0.5)
            assert [log["event"] for log in logs] == ["control.deaf"]
            assert "NOPERM" in logs[0]["why"]
            server.do("ACL", "SETUSER", "default", "+subscribe")
            await woken.again()
    assert logs[-1]["event"] == "control.subscribed"


@pytest.mark.parametrize("frozen", [False, True])
async def test_it_ends_at_once_when_it_is_cancelled(server: RedisServer, *, frozen: bool) -> None:
    with contextlib.ExitStack() as stack:
        async with watching(server.settings(), ping_s=5.0) as (woken, _):
            await woken.again()
            if frozen:
                stack.enter_context(server.frozen())
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 1.0
    await subscribers(server, 0)


async def test_no_cancellation_is_ever_lost(server: RedisServer) -> None:
    """With a socket_timeout, redis-py lost two of three here: asyncio.wait_for swallowed them."""

    async def announce(channel: Channel) -> None:
        while True:
            await channel.announce("w-1", b"here", ttl_s=15)

    for _number in range(40):
        lost = 0
        channel = Channel(server.settings(), ping_s=0.01)
        tasks = [
            asyncio.create_task(channel.watch(Woken().wake)),
            asyncio.create_task(announce(channel)),
        ]
        await asyncio.sleep(random.uniform(0.01, 0.03))
        left = set(tasks)
        while left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=1.0)
            lost += len(left)
        await channel.aclose()
        assert lost == 0
