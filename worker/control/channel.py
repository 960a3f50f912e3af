"""The control channel: what is kept in Redis for one fleet, asked and told under deadlines.

The only user of redis-py. It knows keys and scripts, and what Redis's refusals mean; it must not
know what is in a document, nor what to make of it.
"""

import asyncio
import errno
import os
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import structlog
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.config_sections import ControlSettings
from worker.errors import ControlUnavailable, SettingsError

T = TypeVar("T")

DEADLINE_S = 2.0
"""Of a request, from the name's resolution to the answer."""
PING_S = 5.0
"""Of a silent subscription; after twice as long without any answer it is given up."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
_PORT = 6379

_WRITE, _ANNOUNCE, _MEMBERS = (
    files("worker.control").joinpath(f"{name}.lua").read_text("utf-8")
    for name in ("write", "announce", "members")
)

_log = structlog.get_logger()


class Members(NamedTuple):
    """Who is alive."""

    now_ms: int
    """Redis's clock."""
    acks: Mapping[str, bytes]
    """Worker -> its last answer, as it was announced."""


class Entry(NamedTuple):
    """A state that was written, from the audit stream; an entry made by hand may lack anything."""

    generation: int | None
    at_ms: int
    """Redis's clock."""
    by: str
    command: str
    document: bytes


class Channel:
    """One fleet's keys in Redis. Any method but `watch` and `aclose` may raise ControlUnavailable.

    Nothing is tried twice: who asks knows best whether, and when, to ask again.
    """

    def __init__(
        self, settings: ControlSettings, *, deadline_s: float = DEADLINE_S, ping_s: float = PING_S
    ) -> None:
        """Connect to nothing yet. Raises SettingsError for a `control.url` that is none."""
        options = client_options(settings, deadline_s=deadline_s)
        self._redis: Any = Redis(**options)  # its own types are partial
        self._tls = "ssl" in options
        self._met = False
        """A Redis has answered there."""
        scheme = "rediss" if self._tls else "redis"
        self._address = f"{scheme}://{options['host']}:{options['port']}/{options['db']}"
        self._deadline_s = deadline_s
        self._ping_s = ping_s
        self._keys = f"darkroom:{{{settings.fleet}}}:"

    async def read(self) -> bytes | None:
        """Return the desired state as it is stored; None where there is none."""
        data: bytes | None = await self._ask(
            "reading the desired state", self._do("GET", f"{self._keys}desired")
        )
        return data

    async def write(self, document: bytes, *, expected: int | None, command: str, by: str) -> bool:
        """Put a state in the place of generation `expected`; False: somebody else was first.

        None expects that there is no state, or nothing in which a generation can be read. When no
        answer comes, it may have been written all the same.
        """
        keys = (f"{self._keys}desired", f"{self._keys}audit")
        arguments = (document, "" if expected is None else expected, command, by)
        outcome, why = await self._ask(
            "writing the desired state", self._do("EVAL", _WRITE, len(keys), *keys, *arguments)
        )
        if outcome != b"written":
            _log.debug("control.race-lost", why=_text(why))
        return bool(outcome == b"written")

    async def announce(self, worker: str, ack: bytes, *, ttl_s: float) -> None:
        """Say what a worker answers, and that it is alive for so long from now."""
        keys = (f"{self._keys}members", f"{self._keys}worker:{worker}")
        arguments = (worker, ack, round(ttl_s * 1000))
        await self._ask(
            "announcing this worker", self._do("EVAL", _ANNOUNCE, len(keys), *keys, *arguments)
        )

    async def depart(self, worker: str) -> None:
        """Make a worker no member any more, at once."""

        async def leave() -> None:
            await self._do("ZREM", f"{self._keys}members", worker)
            await self._do("DEL", f"{self._keys}worker:{worker}")

        await self._ask("taking leave", leave())

    async def members(self) -> Members:
        """Return who is alive, by Redis's clock, and what they answered last."""
        now_ms, *found = await self._ask(
            "reading the members", self._do("EVAL", _MEMBERS, 1, f"{self._keys}members")
        )
        acks = {_text(worker): ack for worker, ack in zip(found[::2], found[1::2], strict=True)}
        return Members(int(now_ms), acks)

    async def history(self, count: int) -> list[Entry]:
        """Return the last states that were written, the newest first."""
        found = await self._ask(
            "reading the history",
            self._do("XREVRANGE", f"{self._keys}audit", "+", "-", "COUNT", count),
        )
        return [_entry(number, fields) for number, fields in found]

    async def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` on every nudge, and whenever one may have been missed; for ever.

        Redis may go, hang and come back: it is subscribed to again, and that wakes too.
        """
        pause_s = _FIRST_PAUSE_S
        deaf = False

        def heard() -> None:
            nonlocal pause_s, deaf
            if deaf:
                _log.info("control.subscribed", redis=self._address)
            pause_s, deaf = _FIRST_PAUSE_S, False
            wake()

        while True:
            try:
                await self._listen(heard)
            except (redis_errors.RedisError, OSError) as error:
                if not deaf:
                    why = self._complaint(error)
                    _log.warning("control.deaf", redis=self._address, why=why)
                deaf = True
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def aclose(self) -> None:
        """Close all connections, also where nobody answers at their other end."""
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._redis.aclose()
        except (redis_errors.RedisError, OSError) as error:
            _log.debug("control.close", why=self._complaint(error))

    async def _listen(self, heard: Callable[[], None]) -> None:
        """Listen to one subscription until it breaks, or is silent: a black hole says nothing.

        redis-py would subscribe again by itself, and never notice the silence: its health check
        sends PING, and waits for no answer.
        """
        now_s = asyncio.get_running_loop().time
        subscription = self._redis.pubsub(ignore_subscribe_messages=False)
        try:
            async with asyncio.timeout(self._deadline_s):
                await subscription.subscribe(f"{self._keys}nudge")
            heard_s = now_s()
            while now_s() - heard_s < 2 * self._ping_s:
                async with asyncio.timeout(self._ping_s + self._deadline_s):
                    frame = await subscription.get_message(timeout=self._ping_s)
                    if frame is None:
                        await subscription.ping()
                if frame is None:
                    continue
                heard_s = now_s()
                if frame["type"] != "pong":
                    heard()
            raise redis_errors.ConnectionError(f"silent for {2 * self._ping_s:g} s")
        finally:
            await subscription.aclose()

    async def _do(self, *words: Any) -> Any:
        return await self._redis.execute_command(*words)

    async def _ask(self, what: str, request: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await request
        except (redis_errors.RedisError, OSError) as error:
            told = self._complaint(error)
            raise ControlUnavailable(f"{what}: Redis at {self._address} {told}") from error
        self._met = True
        return answer

    def _complaint(self, error: BaseException) -> str:
        return complaint(error, self._deadline_s, tls=self._tls, met=self._met)


def client_options(settings: ControlSettings, *, deadline_s: float) -> dict[str, Any]:
    """Return redis-py's options; none that matters here is left to its defaults, which change.

    Raises SettingsError for a port that is none.
    """
    assert settings.url is not None
    url = urlsplit(settings.url)
    try:
        port = url.port
    except ValueError as error:
        raise SettingsError(f"control.url: {settings.url}: {error}") from error
    password = settings.password
    options: dict[str, Any] = {
        "host": url.hostname or "localhost",
        "port": _PORT if port is None else port,
        "db": int(url.path.strip("/") or 0),
        "username": settings.username,
        "password": password.get_secret_value() if password is not None else None,
        "protocol": 2,  # with 3, a user must be allowed HELLO; nothing here needs it
        "driver_info": None,  # else CLIENT SETINFO, which a user must be allowed too
        "decode_responses": False,
        # Deadlines are ours: with one of its own, redis-py sends through asyncio.wait_for, which
        # in Python 3.11 swallows a cancellation that comes while it ends: the task then never does.
        "socket_timeout": None,
        "socket_connect_timeout": deadline_s,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,  # see _listen
    }
    if url.scheme == "rediss":
        options |= {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": _path(settings.ssl_cafile),
            "ssl_certfile": _path(settings.ssl_certfile),
            "ssl_keyfile": _path(settings.ssl_keyfile),
            "ssl_password": "",  # without any, OpenSSL would ask the terminal, and wait
        }
    return options


_ADVICE = {
    "NOAUTH": "set control.password",
    "WRONGPASS": "check control.username and control.password",
    "NOPERM": "the ACL rules of this user lack what this needs",
    "The user executing the script": "the ACL rules of this user lack what this needs",
    "LOADING": "it has just been started, and reads its data",
    "READONLY": "control.url must name the primary, not a replica of it",
    "MASTERDOWN": "control.url must name the primary, not a replica of it",
    "OOM": "it has no memory left; see its maxmemory",
    "MISCONF": "it cannot save to its disk; see its log",
    "BUSY": "a script of somebody else runs and does not end",
    "MOVED": "control.url must name the node of the cluster that has this fleet's keys",
    "CLUSTERDOWN": "its cluster is not whole",
    "DB index": "control.url names a database that it does not have",
    "WRONGTYPE": "somebody else's value is there; delete the key",
}
"""Redis's own words for a refusal -> what to do."""
_HUNG_UP = (errno.ECONNRESET, errno.EPIPE)
"""Somebody was there, and did not like what we said: as who expects TLS, and hears none."""
_REFUSED = re.compile(rf"(?:^|\W)(({'|'.join(_ADVICE)})\b.*)")


def complaint(
    error: BaseException, deadline_s: float, *, tls: bool = False, met: bool = False
) -> str:
    """Say what Redis does not do, and what to check; goes after the words "Redis at ADDRESS".

    `tls`: it is spoken to by TLS; `met`: it has answered before, so that address and TLS are right.
    """
    text = " ".join(str(error).split()).rstrip(".")
    code = getattr(error, "status_code", None)
    refused = _REFUSED.search(text if code in {None, "ERR"} else f"{code} {text}")
    if refused is not None:
        return f"refuses: {refused[1]}: {_ADVICE[refused[2]]}"
    if isinstance(error, redis_errors.AuthenticationError):
        return f"refuses: {text}: {_ADVICE['WRONGPASS']}"
    if isinstance(error, redis_errors.ResponseError):
        return f"refuses: {text}"
    if isinstance(error, TimeoutError | redis_errors.TimeoutError):
        hint = " (rediss:// where it speaks no TLS)" if tls else ""
        return f"gives no answer in {deadline_s:g} s: does it hang, or is control.url wrong{hint}?"
    cause = _cause(error)
    if isinstance(cause, ssl.SSLError):
        return (
            f"cannot be reached by TLS ({cause}): check control.ssl_cafile, control.ssl_certfile "
            "and the host's name in control.url; does it speak TLS there?"
        )
    words = os.strerror(cause.errno) if cause and cause.errno and cause.errno > 0 else text
    if tls:
        check = "does it run there, and are control.url and control.ssl_certfile right?"
    elif not met and (cause is None or cause.errno in _HUNG_UP):
        check = "is it a Redis that control.url names, and does it speak TLS (rediss://)?"
    else:
        check = "does it run there, and is control.url right?"
    return f"cannot be reached ({words}): {check}"


def _cause(error: BaseException) -> OSError | None:
    """Return what the system said: redis-py wraps it, with and without `from`."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


def _entry(number: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    added_ms = number.partition(b"-")[0]
    generation = _count(fields.get(b"generation", b""))
    at_ms = _count(fields.get(b"at_ms", b""))
    return Entry(
        generation,
        int(added_ms) if at_ms is None else at_ms,
        _text(fields.get(b"by", b"")),
        _text(fields.get(b"command", b"")),
        fields.get(b"document", b""),
    )


def _count(digits: bytes) -> int | None:
    return int(digits) if digits.isdigit() else None


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _path(file: os.PathLike[str] | None) -> str | None:
    return None if file is None else os.fspath(file)
