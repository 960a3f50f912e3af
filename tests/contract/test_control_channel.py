"""The control channel and its stand-in in memory: what commands and workers rely on, of both."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.channels import FakeChannel, FakeRedis
from tests.conftest import missing
from tests.fakes import eventually
from tests.unit.control.states import state
from worker.config_sections import ControlSettings
from worker.control.channel import Channel
from worker.control.messages import DesiredState, encode_state
from worker.errors import ControlUnavailable
from worker.local.spec import MissingPart, StackSpec
from worker.local.stack import running

AnyChannel = Channel | FakeChannel


class Fleet:
    """A fleet of which nothing is stored yet, on a Redis or on what stands in for one."""

    def __init__(self, name: str, url: str | None) -> None:
        self._settings = ControlSettings(url=url, fleet=name)
        self._redis = FakeRedis(name)
        self.channels: list[AnyChannel] = []

    def connect(self) -> AnyChannel:
        fake = self._settings.url is None
        channel = FakeChannel(self._redis) if fake else Channel(self._settings)
        self.channels.append(channel)
        return channel

    def document(self, new: DesiredState) -> bytes:
        return encode_state(new._replace(fleet=self._settings.fleet))

    async def write(
        self,
        new: DesiredState,
        *,
        expected: int | None,
        command: str = "pause",
        channel: AnyChannel | None = None,
    ) -> bool:
        return await (channel or self.connect()).write(
            self.document(new), expected=expected, command=command, by="me@here"
        )


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    spec = StackSpec(data=tmp_path_factory.mktemp("redis"), kafka=False)
    try:
        with running(spec) as stack:
            assert stack.redis_url is not None
            yield stack.redis_url
    except MissingPart as error:
        missing(str(error))


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.redis)])
async def fleet(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[Fleet]:
    url = request.getfixturevalue("redis_url") if request.param == "real" else None
    fleet = Fleet(unique, url)
    yield fleet
    for channel in fleet.channels:
        await channel.aclose()


async def test_a_new_fleet_has_nothing(fleet: Fleet) -> None:
    channel = fleet.connect()

    assert await channel.read() is None
    assert await channel.history(10) == []
    assert (await channel.members()).acks == {}


async def test_what_is_written_is_what_others_read_byte_for_byte(fleet: Fleet) -> None:
    assert await fleet.write(state(), expected=None)

    assert await fleet.connect().read() == fleet.document(state())


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (state(generation=8), None),
        (state(generation=8), 6),
        (state(generation=8), 8),
        (state(generation=7), 7),
        (state(generation=6), 7),
        (state(generation=8, epoch="e-2"), 7),
        (state(generation=8, epoch="e-2", supersedes=("e-0",)), 7),
    ],
    ids=[
        *("expects-none", "expects-older", "expects-newer"),
        *("same-number", "lower-number", "other-epoch", "supersedes-another"),
    ],
)
async def test_what_is_not_the_next_of_what_is_stored_is_not_written(
    fleet: Fleet, new: DesiredState, expected: int | None
) -> None:
    assert await fleet.write(state(), expected=None)

    assert not await fleet.write(new, expected=expected)

    channel = fleet.connect()
    assert await channel.read() == fleet.document(state())
    assert len(await channel.history(10)) == 1


async def test_nothing_is_replaced_where_nothing_is(fleet: Fleet) -> None:
    assert not await fleet.write(state(), expected=6)


async def test_an_epoch_that_supersedes_the_stored_one_is_written(fleet: Fleet) -> None:
    assert await fleet.write(state(), expected=None)

    new = state(generation=8, epoch="e-2", supersedes=("e-0", "e-1"))

    assert await fleet.write(new, expected=7)


@pytest.mark.parametrize("document", [b"?", b"{}", b'{"epoch": "e-1", "generation": 7}'])
async def test_what_is_no_state_of_the_fleet_is_refused(fleet: Fleet, document: bytes) -> None:
    with pytest.raises(ControlUnavailable, match="refuses"):
        await fleet.connect().write(document, expected=None, command="pause", by="me@here")


async def test_of_many_who_write_at_once_one_wins_each_time(fleet: Fleet) -> None:
    channels = [fleet.connect() for _ in range(4)]
    assert await fleet.write(state(generation=1), expected=None)

    for generation in range(1, 20):
        new = state(generation=generation + 1)
        won = await asyncio.gather(
            *(fleet.write(new, expected=generation, channel=channel) for channel in channels)
        )
        assert sum(won) == 1


async def test_the_history_begins_with_the_newest_and_says_who_did_what(fleet: Fleet) -> None:
    channel = fleet.connect()
    before = (await channel.members()).now_ms
    await fleet.write(state(generation=1), expected=None, command="activate digits 1")
    await fleet.write(state(generation=2), expected=1, command="pause")

    last, first = await channel.history(10)

    assert (last.generation, last.command, last.by) == (2, "pause", "me@here")
    assert (first.generation, first.command) == (1, "activate digits 1")
    assert first.document == fleet.document(state(generation=1))
    assert before <= first.at_ms <= last.at_ms <= (await channel.members()).now_ms
    assert [entry.generation for entry in await channel.history(1)] == [2]


async def test_members_are_those_that_were_announced_and_have_not_departed(fleet: Fleet) -> None:
    channel = fleet.connect()
    for worker in ("w-1", "w-2", "w-3"):
        await channel.announce(worker, worker.encode(), ttl_s=30)
    await channel.announce("w-1", b"again", ttl_s=30)
    await channel.depart("w-2")
    await channel.depart("w-4")

    assert (await fleet.connect().members()).acks == {"w-1": b"again", "w-3": b"w-3"}


async def test_a_member_that_says_nothing_more_expires(fleet: Fleet) -> None:
    channel = fleet.connect()
    await channel.announce("w-1", b"bye", ttl_s=0.1)
    await channel.announce("w-2", b"here", ttl_s=30)

    async with asyncio.timeout(5):
        while "w-1" in (await channel.members()).acks:  # noqa: ASYNC110 - only the clock tells
            await asyncio.sleep(0.01)
    assert (await channel.members()).acks == {"w-2": b"here"}


async def test_who_watches_is_woken_at_first_and_by_every_change(fleet: Fleet) -> None:
    woken: list[int] = []
    watching = asyncio.create_task(fleet.connect().watch(lambda: woken.append(1)))
    try:
        await eventually(lambda: len(woken) == 1)
        await fleet.write(state(generation=1), expected=None)
        await eventually(lambda: len(woken) == 2)
        await fleet.write(state(generation=2), expected=1)
        await eventually(lambda: len(woken) == 3)
    finally:
        watching.cancel()
        await asyncio.wait((watching,))
