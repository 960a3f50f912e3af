"""`darkroom fleet` on a real Redis; its workers answer and step rollouts, and serve nothing."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.redis_server import RedisServer, running_redis
from worker.cli.main import app
from worker.config_sections import ControlSettings
from worker.control.answers import Ack, Answer, Code, ModelUse, encode_ack
from worker.control.channel import Channel
from worker.control.documents import parse_ack, parse_state
from worker.control.messages import DesiredState, digest, encode_state
from worker.control.rollout import step
from worker.control.wanted import wanted
from worker.local.ports import free_ports
from worker.models.router import NOTHING

pytestmark = pytest.mark.redis

LOOK_S = 0.1
Refusals = Mapping[str, str]
"""Worker -> version that it refuses."""


class Simulated:
    """A worker that says of every state that it is what that wants, or refuses a version."""

    def __init__(self, name: str, settings: ControlSettings, refuses: str | None) -> None:
        self._name = name
        self._settings = settings
        self._refuses = refuses
        self._served: DesiredState | None = None
        self._said = Ack(settings.fleet, name, "serving", "", None, None, None, Answer.PENDING)
        self.alive = threading.Event()

    async def run(self) -> None:
        woken = asyncio.Event()
        async with contextlib.aclosing(Channel(self._settings)) as channel:
            watching = asyncio.create_task(channel.watch(woken.set))
            try:
                while True:
                    await self._look(channel)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await woken.wait()
                    woken.clear()
            finally:
                watching.cancel()
                await asyncio.wait((watching,))

    async def _look(self, channel: Channel) -> None:
        data = await channel.read()
        state = parse_state(data) if data is not None else None
        if state is not None:
            self._said = self._ack(state)
        await channel.announce(self._name, encode_ack(self._said), ttl_s=5)
        self.alive.set()
        if state is None:
            return
        now_ms, answers = await channel.members()
        acks = {worker: parse_ack(answer) for worker, answer in answers.items()}
        following = step(state, acks, now_ms)
        if following is not None:
            following = following._replace(written_by=self._name)
            document = encode_state(following)
            await channel.write(
                document, expected=state.generation, command="rollout", by=self._name
            )

    def _ack(self, state: DesiredState) -> Ack:
        want = wanted(state, self._name, {})
        part = want.preparation
        wants = {ref.version for ref in state.refs} | ({part.ref.version} if part else set())
        refused = self._refuses in wants and (part is None or part.turn)
        if not refused:
            self._served = state
        served = self._served
        prepared = part.rollout if part is not None and part.turn and not refused else None
        return Ack(
            fleet=state.fleet,
            worker=self._name,
            state="serving",
            epoch=state.epoch,
            observed=state.generation,
            generation=served.generation if served else None,
            digest=digest(served) if served else None,
            answer=Answer.NACK if refused else Answer.ACK,
            code=Code.MODEL_INVALID if refused else None,
            reason="a golden sample differs" if refused else None,
            prepared=prepared or want.prepared,
            models={ref.name: ModelUse(ref.version) for ref in (served.refs if served else ())},
        )


@contextlib.contextmanager
def simulated(
    settings: ControlSettings, *workers: str, refuses: Refusals = NOTHING
) -> Iterator[None]:
    """Have workers for the length of a block, on a loop of their own."""
    crowd = [Simulated(name, settings, refuses.get(name)) for name in workers]
    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as pool:
        loop = runner.get_loop()
        living = asyncio.ensure_future(_live(crowd), loop=loop)
        ended = pool.submit(_run, loop, living)
        try:
            assert all(worker.alive.wait(10) for worker in crowd)
            yield
        finally:
            loop.call_soon_threadsafe(living.cancel)
            ended.result(10)


async def _live(crowd: Iterable[Simulated]) -> None:
    async with asyncio.TaskGroup() as group:
        for worker in crowd:
            group.create_task(worker.run())


def _run(loop: asyncio.AbstractEventLoop, living: asyncio.Future[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(living)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def settings(server: RedisServer, unique: str) -> ControlSettings:
    return server.settings(fleet=unique)


@pytest.fixture
def config(settings: ControlSettings, tmp_path: Path) -> Path:
    file = tmp_path / "darkroom.yaml"
    file.write_text(f"control: {{url: '{settings.url}', fleet: '{settings.fleet}'}}\n")
    return file


@pytest.fixture
def fleet(config: Path) -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(app, ["fleet", *words, "--config", str(config)])


def told(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_version_is_activated_on_all_workers_and_rolled_back(
    fleet: Callable[..., Result], settings: ControlSettings
) -> None:
    with simulated(settings, "w-1", "w-2", "w-3"):
        activated = fleet("activate", "digits", "2", "--wait")
        status = told(fleet("status", "--json"))
        back = fleet("rollback", "--wait")

    assert activated.exit_code == 0, activated.output
    lines = activated.stderr.splitlines()
    assert {f"w-{number}: serves generation 1" for number in (1, 2, 3)} <= set(lines)
    assert (status["generation"], status["converged"]) == (1, True)
    actives = [worker["models"]["digits"]["active"] for worker in status["workers"]]
    assert actives == ["2", "2", "2"]
    assert back.exit_code == 0, back.output
    rows = told(fleet("history", "--json"))
    assert [row["command"] for row in rows] == ["rollback", "activate digits 2"]
    assert rows[0]["changes"][0].startswith("digits: active 2 -> 1")


def test_two_phases_are_carried_out_by_the_workers_alone(
    fleet: Callable[..., Result], settings: ControlSettings
) -> None:
    with simulated(settings, "w-1", "w-2", "w-3"):
        result = fleet("activate", "digits", "2", "--two-phase", "--wait")

    assert result.exit_code == 0, result.output
    status = told(fleet("status", "--json"))
    assert (status["rollout"]["phase"], status["rollout"]["version"]) == ("done", "2")
    rows = told(fleet("history", "--json"))
    assert rows[-1]["command"] == "activate digits 2 --two-phase"
    assert {row["by"] for row in rows[:-1]} <= {"w-1", "w-2", "w-3"}


def test_one_worker_that_refuses_stops_two_phases_and_nobody_switches(
    fleet: Callable[..., Result], settings: ControlSettings
) -> None:
    with simulated(settings, "w-1", "w-2", "w-3", refuses={"w-2": "2"}):
        result = fleet("activate", "digits", "2", "--two-phase", "--wait")
        status = told(fleet("status", "--json"))

    assert result.exit_code == 1
    assert "the rollout was given up" in result.stdout
    assert "w-2" in result.stdout
    assert "a golden sample differs" in result.stdout
    actives = {worker["models"]["digits"]["active"] for worker in status["workers"]}
    assert actives == {"1"}


def test_one_worker_that_refuses_at_once_is_told_while_the_others_serve(
    fleet: Callable[..., Result], settings: ControlSettings
) -> None:
    with simulated(settings, "w-1", "w-2", refuses={"w-2": "2"}):
        result = fleet("activate", "digits", "2", "--json", "--wait")

    assert result.exit_code == 1
    document = told(result)
    assert document["outcome"] == "refused"
    by_id = {worker["id"]: worker for worker in document["workers"]}
    assert by_id["w-1"]["reason"] is None
    assert "a golden sample differs" in by_id["w-2"]["reason"]


def test_without_any_worker_the_time_is_over_and_the_state_stays(
    fleet: Callable[..., Result],
) -> None:
    result = fleet("activate", "digits", "2", "--wait", "0.5")

    assert result.exit_code == 8
    assert "no worker is alive" in result.stdout
    assert told(fleet("status", "--json"))["generation"] == 1


def test_a_redis_that_is_not_there_is_told(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = tmp_path / "darkroom.yaml"
    config.write_text(f"control: {{url: 'redis://127.0.0.1:{port}/0'}}\n")

    result = CliRunner().invoke(app, ["fleet", "status", "--config", str(config)])

    assert (result.exit_code, result.stdout) == (7, "")
    assert f"redis://127.0.0.1:{port}/0 cannot be reached" in result.stderr


def test_what_was_flushed_is_not_begun_again_while_workers_follow_it(
    fleet: Callable[..., Result], settings: ControlSettings, server: RedisServer
) -> None:
    with simulated(settings, "w-1"):
        assert fleet("activate", "digits", "2", "--wait").exit_code == 0
        server.do("DEL", f"darkroom:{{{settings.fleet}}}:desired")

        refused = fleet("pause")
        begun = fleet("pause", "--supersede", "--wait")

    assert refused.exit_code == 1
    assert "no desired state is stored, but worker w-1 follows generation 1" in refused.stderr
    assert begun.exit_code == 0, begun.output
    assert told(fleet("show", "--json"))["supersedes"]


@pytest.mark.long  # two writers of a thousand are tried on the channel
def test_commands_at_the_same_time_lose_nothing_of_each_other(
    config: Path, fleet: Callable[..., Result]
) -> None:
    assert fleet("activate", "digits", "2").exit_code == 0
    command = [sys.executable, "-m", "worker", "fleet", "pin", "digits", "1", "--worker"]
    racing = [
        subprocess.Popen(
            [*command, f"w-{number}", "--config", str(config)], stdout=subprocess.DEVNULL
        )
        for number in range(4)
    ]

    assert [process.wait(60) for process in racing] == [0] * 4
    state = told(fleet("show", "--json"))
    assert state["generation"] == 5
    assert len(state["models"]["digits"]["pins"]) == 4


def test_what_is_watched_goes_on_until_it_is_interrupted(
    config: Path, fleet: Callable[..., Result]
) -> None:
    assert fleet("activate", "digits", "2").exit_code == 0
    command = [sys.executable, "-m", "worker", "fleet", "status", "--watch", "--json"]
    with subprocess.Popen(
        [*command, "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert [look["generation"] for look in looks] == [1, 1]
    assert (process.returncode, errors) == (130, b"darkroom: interrupted\n")
