"""Who may use the control channel: users with the fewest rights that suffice, passwords, TLS."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.exceptions import NoPermissionError

from tests.redis_server import RedisServer, running_redis
from tests.tls import Certificates, lock_key, make_certificates, server_context, tls_front
from tests.unit.control.states import state
from worker.config import load_settings
from worker.config_sections import ControlSettings
from worker.control.channel import Channel
from worker.control.messages import encode_state
from worker.errors import ControlUnavailable
from worker.local.spec import HOST

pytestmark = pytest.mark.redis

PASSWORD = "s3cret: of a test /@%#"
KEYS = "resetkeys ~darkroom:{default}:* resetchannels &darkroom:{default}:nudge -@all"
WORKER = (
    "+eval +time +get +set +del +zadd +zrem +zrangebyscore +zremrangebyscore "
    "+xadd +publish +subscribe +ping"
)
OPERATOR = "+eval +time +get +set +zrangebyscore +xadd +xrevrange +publish +subscribe +ping"
HEARD_S = 8.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def channel_to(settings: ControlSettings) -> AsyncIterator[Channel]:
    channel = Channel(settings, ping_s=0.1)
    try:
        yield channel
    finally:
        await channel.aclose()


def user(server: RedisServer, name: str, commands: str) -> ControlSettings:
    """Make a user and return the settings of one who uses it."""
    server.do("FLUSHALL")
    server.do("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *KEYS.split())
    server.do("ACL", "SETUSER", name, *commands.split())
    return server.settings(username=name, password=SecretStr(PASSWORD))


async def hear_once(channel: Channel) -> None:
    """Watch until a nudge was heard, and pings were answered."""
    woken = asyncio.Event()
    watch = asyncio.create_task(channel.watch(woken.set))
    try:
        async with asyncio.timeout(1.5):
            await woken.wait()
            woken.clear()
            await asyncio.sleep(0.5)
            assert not woken.is_set(), "it was cut off and subscribed again"
    except TimeoutError as error:
        raise ControlUnavailable("it hears nothing") from error
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def write_state(channel: Channel) -> None:
    for generation in (1, 2):
        new = encode_state(state(generation=generation))
        assert await channel.write(new, expected=generation - 1 or None, command="x", by="me")


async def do_as_worker(channel: Channel) -> None:
    await channel.read()
    await write_state(channel)
    await channel.announce("w-1", b"here", ttl_s=15)
    await channel.members()
    await channel.depart("w-1")
    await hear_once(channel)


async def do_as_operator(channel: Channel) -> None:
    await channel.read()
    await write_state(channel)
    await channel.members()
    await channel.history(10)
    await hear_once(channel)


ROLES = pytest.mark.parametrize(
    ("commands", "work"), [(WORKER, do_as_worker), (OPERATOR, do_as_operator)]
)


@ROLES
async def test_the_rights_that_are_documented_suffice(
    server: RedisServer, commands: str, work: Callable[[Channel], Awaitable[None]]
) -> None:
    async with channel_to(user(server, "somebody", commands)) as channel:
        await work(channel)


@ROLES
async def test_none_of_these_rights_is_too_much(
    server: RedisServer, commands: str, work: Callable[[Channel], Awaitable[None]]
) -> None:
    for right in commands.split():
        fewer = " ".join(other for other in commands.split() if other != right)
        settings = user(server, "somebody", fewer)
        async with channel_to(settings) as channel:
            with pytest.raises((ControlUnavailable, AssertionError)):
                await work(channel)


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "mine"),
        ("SET", "darkroom:{another}:desired", ""),
        ("PUBLISH", "darkroom:{another}:nudge", ""),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("EVAL", "return redis.call('SET', 'mine', '')", "0"),
    ],
)
def test_a_worker_may_do_nothing_else(server: RedisServer, words: tuple[str, ...]) -> None:
    user(server, "somebody", WORKER)
    with pytest.raises(Exception, match=r"(?i)permissions|can't (run|access)") as refusal:
        server.do(*words, username="somebody", password=PASSWORD)
    assert isinstance(refusal.value, NoPermissionError) or words[0] == "EVAL"


async def test_another_database_takes_one_right_more(server: RedisServer) -> None:
    url = f"redis://{HOST}:{server.port}/1"
    for commands, suffices in ((OPERATOR, False), (f"{OPERATOR} +select", True)):
        settings = user(server, "somebody", commands).model_copy(update={"url": url})
        async with channel_to(settings) as channel:
            if suffices:
                await do_as_operator(channel)
            else:
                with pytest.raises(ControlUnavailable, match=r"NOPERM.*select"):
                    await channel.read()


async def test_what_a_user_lacks_is_told(server: RedisServer) -> None:
    async with channel_to(user(server, "somebody", "+eval +get +time")) as channel:
        await channel.read()
        with pytest.raises(ControlUnavailable, match="the ACL rules of this user lack"):
            await channel.history(10)
        with pytest.raises(ControlUnavailable, match="the ACL rules of this user lack"):
            await write_state(channel)
        assert await channel.read() is None


async def test_a_password_from_a_file_lets_in_and_is_never_told(
    server: RedisServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = user(server, "somebody", WORKER)
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    environ = {
        "DARKROOM_CONTROL__URL": given.url or "",
        "DARKROOM_CONTROL__USERNAME": "somebody",
        "DARKROOM_CONTROL__PASSWORD_FILE": str(file),
    }
    async with channel_to(load_settings(environ=environ).settings.control) as channel:
        assert await channel.read() is None
        server.do("ACL", "SETUSER", "somebody", "resetpass", ">another")
        server.do("CLIENT", "KILL", "USER", "somebody")
        await asyncio.sleep(0.05)  # its end arrives

        with pytest.raises(ControlUnavailable) as refusal:
            await channel.read()

    assert "refuses: WRONGPASS" in str(refusal.value)
    assert "check control.username and control.password" in str(refusal.value)
    told = capfd.readouterr()
    assert "s3cret" not in f"{refusal.value!r} {channel!r} {given!r} {told.out} {told.err}"


async def test_a_password_where_none_is_wanted_is_told(server: RedisServer) -> None:
    settings = server.settings(password=SecretStr(PASSWORD))
    async with channel_to(settings) as channel:
        with pytest.raises(ControlUnavailable, match=r"check control\.username"):
            await channel.read()


def secured(port: int, certificates: Certificates, **changes: object) -> ControlSettings:
    given = {
        "url": f"rediss://{HOST}:{port}/0",
        "ssl_cafile": certificates.ca,
        "ssl_certfile": certificates.client,
        "ssl_keyfile": certificates.client_key,
        **changes,
    }
    return ControlSettings.model_validate(given)


async def test_all_of_it_works_by_tls(server: RedisServer, certificates: Certificates) -> None:
    server.do("FLUSHALL")
    async with (
        tls_front(server.port, server_context(certificates)) as port,
        channel_to(secured(port, certificates)) as channel,
    ):
        await do_as_worker(channel)
        assert len(await channel.history(10)) == 2


async def test_a_black_hole_behind_tls_is_told_in_time_and_closed(
    server: RedisServer, certificates: Certificates
) -> None:
    async with (
        tls_front(server.port, server_context(certificates)) as port,
        channel_to(secured(port, certificates)) as channel,
    ):
        await channel.read()
        with server.frozen():
            began_s = time.monotonic()
            with pytest.raises(ControlUnavailable, match="gives no answer in 2 s"):
                await channel.read()
            await channel.aclose()
            assert time.monotonic() - began_s < 4.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ssl_cafile": None}, r"CERTIFICATE_VERIFY_FAILED.*control\.ssl_cafile"),
        ({"ssl_certfile": None, "ssl_keyfile": None}, r"cannot be reached.*control\.ssl_certfile"),
    ],
)
async def test_who_does_not_prove_who_it_is_is_told(
    server: RedisServer, certificates: Certificates, changes: dict[str, None], words: str
) -> None:
    async with (
        tls_front(server.port, server_context(certificates)) as port,
        channel_to(secured(port, certificates, **changes)) as channel,
    ):
        with pytest.raises(ControlUnavailable, match=words):
            await channel.read()


async def test_a_certificate_for_another_host_is_refused(
    server: RedisServer, certificates: Certificates
) -> None:
    async with tls_front(server.port, server_context(certificates)) as port:
        settings = secured(port, certificates, url=f"rediss://localhost:{port}")
        async with channel_to(settings) as channel:
            with pytest.raises(ControlUnavailable, match=r"CERTIFICATE_VERIFY_FAILED.*host's name"):
                await channel.read()


async def test_plain_and_tls_mixed_up_is_told(
    server: RedisServer, certificates: Certificates
) -> None:
    async with tls_front(server.port, server_context(certificates)) as port:
        plain = ControlSettings(url=f"redis://{HOST}:{port}")
        for settings in (plain, secured(server.port, certificates)):
            async with channel_to(settings) as channel:
                with pytest.raises(ControlUnavailable, match=r"control\.url.*TLS"):
                    await channel.read()


async def test_a_key_that_is_locked_is_told_and_nobody_is_asked_for_its_password(
    certificates: Certificates, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    lock_key(certificates.client_key, locked)
    async with channel_to(secured(1, certificates, ssl_keyfile=locked)) as channel:
        with pytest.raises(ControlUnavailable, match=r"cannot be reached by TLS.*ssl_certfile"):
            await channel.read()
