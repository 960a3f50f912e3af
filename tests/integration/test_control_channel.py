"""The control channel on a real Redis: races, what stands in the way of a write, refusals in time.

What it shares with its stand-in in memory is in tests/contract/test_control_channel.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from tests.contract.oracle import problems
from tests.redis_server import RedisServer, running_redis
from tests.unit.control.states import state
from worker.config_sections import ControlSettings
from worker.control.channel import Channel, Entry
from worker.control.documents import parse_state
from worker.control.messages import DesiredState, encode_state
from worker.errors import ControlUnavailable
from worker.local.ports import free_ports

pytestmark = pytest.mark.redis

DESIRED = "darkroom:{default}:desired"
AUDIT = "darkroom:{default}:audit"
MEMBERS = "darkroom:{default}:members"
NUDGE = "darkroom:{default}:nudge"
ALLOWED_S = 3.0
"""For a refusal, above the channel's own deadline of 2 s."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.do("FLUSHALL")
    return shared


@asynccontextmanager
async def channel_to(settings: ControlSettings) -> AsyncIterator[Channel]:
    channel = Channel(settings)
    try:
        yield channel
    finally:
        await channel.aclose()


async def write(
    channel: Channel, new: DesiredState, expected: int | None, *, by: str = "me@here"
) -> bool:
    return await channel.write(encode_state(new), expected=expected, command="activate", by=by)


async def test_of_two_writers_one_wins_each_of_a_thousand_times(server: RedisServer) -> None:
    async with channel_to(server.settings()) as one, channel_to(server.settings()) as other:
        assert await write(one, state(generation=1), None)
        winners = ["me@here"]
        for generation in range(2, 1002):
            new = {by: state(generation=generation, written_by=by) for by in ("one", "other")}
            won = await asyncio.gather(
                write(one, new["one"], generation - 1, by="one"),
                write(other, new["other"], generation - 1, by="other"),
            )
            assert sorted(won) == [False, True]
            winners.append("one" if won[0] else "other")

        entries = (await one.history(2000))[::-1]

    assert [entry.generation for entry in entries] == list(range(1, 1002))
    assert [entry.by for entry in entries] == winners
    written = [parse_state(entry.document) for entry in entries]
    assert [each.written_by for each in written[1:]] == winners[1:]
    assert server.do("GET", DESIRED) == entries[-1].document


async def test_writers_that_read_before_they_write_lose_no_change(server: RedisServer) -> None:
    async def change(channel: Channel, times: int) -> None:
        while times:
            before = parse_state(await channel.read() or b"")
            assert before.generation is not None
            new = before._replace(
                generation=before.generation + 1, written_at_ms=before.written_at_ms + 1
            )
            times -= await write(channel, new, before.generation)

    async with channel_to(server.settings()) as one, channel_to(server.settings()) as other:
        assert await write(one, state(generation=1, written_at_ms=0), None)
        await asyncio.gather(change(one, 100), change(other, 100))

        last = parse_state(await one.read() or b"")
        assert (last.generation, last.written_at_ms) == (201, 200)
        assert len(await one.history(1000)) == 201


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"no JSON",
        b'"text"',
        b"7",
        b"[7]",
        b"null",
        b'{"schema":"darkroom.desired.v1"}',
        b'{"generation":"7"}',
        b'{"generation":7.5}',
        b'{"generation":-7}',
        b'{"generation":null}',
        encode_state(state())[:-20],
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
async def test_a_value_in_which_no_generation_can_be_read_is_replaced_by_who_expects_none(
    server: RedisServer, stored: bytes
) -> None:
    server.do("SET", DESIRED, stored)
    async with channel_to(server.settings()) as channel:
        assert not await write(channel, state(), 6)
        assert await channel.read() == stored

        assert await write(channel, state(), None)

        assert await channel.read() == encode_state(state())


async def test_a_broken_state_that_has_a_generation_is_replaced_by_who_knows_it(
    server: RedisServer,
) -> None:
    server.do("SET", DESIRED, b'{"generation":7,"default":[]}')
    async with channel_to(server.settings()) as channel:
        assert not await write(channel, state(generation=8), None)
        assert not await write(channel, state(generation=7), 7)

        assert await write(channel, state(generation=8), 7)


@pytest.mark.parametrize(
    "document",
    [
        b"no JSON",
        b"[]",
        encode_state(state(fleet="another")),
        encode_state(state(generation=0)),
        encode_state(state(generation=None)),
        encode_state(state()).replace(b"desired.v1", b"desired.v2"),
        encode_state(state()).replace(b'"e-1"', b"1"),
    ],
)
async def test_what_is_no_state_of_this_fleet_is_never_written(
    server: RedisServer, document: bytes
) -> None:
    async with channel_to(server.settings()) as channel:
        with pytest.raises(ControlUnavailable, match="the document must be JSON of schema"):
            await channel.write(document, expected=None, command="activate", by="me@here")

        assert await channel.read() is None


async def test_the_entry_and_the_nudge_of_a_write_are_those_of_the_schemas(
    server: RedisServer,
) -> None:
    client: Any = redis.Redis(port=server.port, protocol=2)  # its own types are partial
    with client, client.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(NUDGE)
        subscription.get_message(timeout=5)
        async with channel_to(server.settings()) as channel:
            assert await write(channel, state(generation=2**53 - 1), None)
        nudge = subscription.get_message(timeout=5)
        ((_, fields),) = client.xrange(AUDIT)

    assert nudge is not None
    assert problems("nudge", orjson.loads(nudge["data"])) == []
    entry = {name.decode(): value.decode() for name, value in fields.items()}
    assert problems("audit", entry) == []
    assert entry["generation"] == str(2**53 - 1)
    assert abs(int(entry["at_ms"]) - time.time() * 1000) < 10_000


async def test_the_history_keeps_about_ten_thousand_entries(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as client, client.pipeline(transaction=False) as pipeline:
        for number in range(12_000):
            pipeline.xadd(AUDIT, {"n": str(number)})
        pipeline.execute()

    async with channel_to(server.settings()) as channel:
        assert await write(channel, state(), None)

    assert 10_000 <= server.do("XLEN", AUDIT) < 10_200


async def test_entries_made_by_hand_are_told_as_far_as_they_go(server: RedisServer) -> None:
    server.do("XADD", AUDIT, "5-1", "note", "maintenance")
    server.do("XADD", AUDIT, "6-1", "by", b"\xff", "generation", "seven", "at_ms", "-")
    async with channel_to(server.settings()) as channel:
        assert await channel.history(10) == [
            Entry(None, 6, "\ufffd", "", b""),
            Entry(None, 5, "", "", b""),
        ]


async def test_expired_members_are_gone_from_the_key_too(server: RedisServer) -> None:
    async with channel_to(server.settings()) as channel:
        await channel.announce("w-1", b"here", ttl_s=0.05)
        async with asyncio.timeout(5):
            while server.do("ZRANGE", MEMBERS, 0, -1) != [b"w-2"]:
                await channel.announce("w-2", b"here", ttl_s=15)

        seconds, _ = server.do("TIME")
        assert server.do("ZSCORE", MEMBERS, "w-2") > (int(seconds) + 10) * 1000
        assert 10_000 < server.do("PTTL", "darkroom:{default}:worker:w-2") <= 15_000
        now_ms, acks = await channel.members()
        assert abs(now_ms - int(seconds) * 1000) < 5_000
        assert acks == {"w-2": b"here"}


async def test_a_member_whose_answer_is_gone_is_none(server: RedisServer) -> None:
    async with channel_to(server.settings()) as channel:
        await channel.announce("w-1", b"here", ttl_s=15)
        server.do("DEL", "darkroom:{default}:worker:w-1")

        assert (await channel.members()).acks == {}


async def test_fleets_on_one_redis_do_not_see_each_other(server: RedisServer) -> None:
    async with (
        channel_to(server.settings(fleet="a")) as a,
        channel_to(server.settings(fleet="b")) as b,
    ):
        assert await write(a, state(fleet="a"), None)
        await a.announce("w-1", b"here", ttl_s=15)

        assert await b.read() is None
        assert await b.history(10) == []
        assert (await b.members()).acks == {}


async def refused(channel: Channel, *, reading: bool) -> str:
    """Return the sentence with which a request is refused in time."""
    began_s = time.monotonic()
    with pytest.raises(ControlUnavailable) as refusal:
        await (channel.read() if reading else write(channel, state(), None))
    assert time.monotonic() - began_s < ALLOWED_S
    told = str(refusal.value)
    assert "\n" not in told
    return told


async def test_a_black_hole_is_told_in_time_for_every_request(server: RedisServer) -> None:
    async with channel_to(server.settings()) as channel, channel_to(server.settings()) as fresh:
        await channel.read()
        with server.frozen():
            told = await asyncio.gather(
                _told("reading the desired state", channel.read()),
                _told("reading the desired state", fresh.read()),
                _told("writing the desired state", write(channel, state(), None)),
                _told("announcing this worker", channel.announce("w-1", b"here", ttl_s=15)),
                _told("taking leave", channel.depart("w-1")),
                _told("reading the members", channel.members()),
                _told("reading the history", channel.history(10)),
            )
            await channel.aclose()
        where = f"Redis at redis://127.0.0.1:{server.port}/0 gives no answer in 2 s"
        assert all(f": {where}: does it hang" in sentence for sentence in told)

        await fresh.read()  # it thaws, and is asked again


async def _told(what: str, request: Coroutine[Any, Any, object]) -> str:
    with pytest.raises(ControlUnavailable, match=f"^{what}: Redis at ") as refusal:
        async with asyncio.timeout(ALLOWED_S):
            await request
    return str(refusal.value)


async def test_nobody_there_is_told_at_once() -> None:
    (port,) = free_ports(1)
    async with channel_to(ControlSettings(url=f"redis://127.0.0.1:{port}/0")) as channel:
        assert await refused(channel, reading=True) == (
            f"reading the desired state: Redis at redis://127.0.0.1:{port}/0 cannot be reached "
            "(Connection refused): does it run there, and is control.url right?"
        )


async def test_a_server_that_is_no_redis_is_told() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as http:
        port = http.sockets[0].getsockname()[1]
        async with channel_to(ControlSettings(url=f"redis://127.0.0.1:{port}")) as channel:
            assert "is it a Redis that control.url names" in await refused(channel, reading=True)


async def test_a_request_after_a_restart_is_answered_at_once(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        async with channel_to(server.settings()) as channel:
            await channel.read()
            server.kill()
            assert "cannot be reached" in await refused(channel, reading=True)
            server.start()

            assert await channel.read() is None


async def test_a_connection_that_was_killed_while_idle_is_not_noticed(server: RedisServer) -> None:
    async with channel_to(server.settings()) as channel:
        await channel.read()
        server.do("CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.05)  # its end arrives

        assert await channel.read() is None


@pytest.mark.parametrize(
    ("options", "reading", "words", "advice"),
    [
        ("--replicaof 127.0.0.1 1", False, "READONLY", "must name the primary"),
        ("--maxmemory 1kb", False, "OOM", "no memory left"),
        ("--requirepass secret", True, "NOAUTH", "set control.password"),
    ],
)
async def test_a_redis_that_answers_and_refuses_is_told_with_what_to_do(
    tmp_path: Path, options: str, *, reading: bool, words: str, advice: str
) -> None:
    with running_redis(tmp_path, *options.split()) as server:
        async with channel_to(server.settings()) as channel:
            told = await refused(channel, reading=reading)

    assert f" refuses: {words} " in told
    assert advice in told


async def test_a_redis_that_still_loads_its_data_is_told(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        server.do("CONFIG", "SET", "rdbcompression", "no")
        for number in range(20):
            server.do("SET", f"key-{number}", bytes(1_000_000))
        server.do("SAVE")
        server.kill()
        server.start("--key-load-delay", "100000")  # us; it answers after every 2 MB
        async with channel_to(server.settings()) as channel:
            assert " refuses: LOADING " in await refused(channel, reading=True)


async def test_another_kind_of_value_under_the_key_is_told(server: RedisServer) -> None:
    server.do("LPUSH", DESIRED, "mine")
    async with channel_to(server.settings()) as channel:
        assert "WRONGTYPE" in await refused(channel, reading=True)
        assert "WRONGTYPE" in await refused(channel, reading=False)


async def test_nothing_is_written_where_its_entry_cannot_be(server: RedisServer) -> None:
    server.do("SET", AUDIT, "mine")
    async with channel_to(server.settings()) as channel:
        assert "WRONGTYPE" in await refused(channel, reading=False)
        assert await channel.read() is None
