import asyncio

from tests.unit.inference.scripted import loads, serves
from tests.unit.inference.test_supervisor import Stage, started
from worker.protocol.channel import Channel
from worker.protocol.messages import Bye, Profiled, StartProfile, Stopped
from worker.protocol.page import Page


def records_itself(channel: Channel, _: Page) -> None:
    loads(channel)
    while (message := channel.receive()) is not None:
        match message:
            case StartProfile():
                channel.send(Profiled(None if message.kernels else "no room"))
            case Bye():
                channel.send(Stopped())
                return
            case _:
                return


PROFILE = StartProfile(0.1, "engine", "/data/profile/0.json", kernels=True)


async def test_an_engine_is_asked_for_its_profile_and_its_answer_comes_back() -> None:
    async with started(records_itself) as stage:
        assert await stage.supervisor.profile(PROFILE) == Profiled(None)
        refused = await stage.supervisor.profile(PROFILE._replace(kernels=False))
        assert refused == Profiled("no room")


async def test_an_engine_that_ends_while_it_is_profiled_is_told_of() -> None:
    def dies(channel: Channel, _: Page) -> None:
        loads(channel)
        channel.receive()

    async with started(dies) as stage:
        assert await stage.supervisor.profile(PROFILE) == Profiled("it ended meanwhile")


async def test_an_engine_that_is_stopped_while_it_is_profiled_is_told_of() -> None:
    def busy(channel: Channel, _: Page) -> None:
        loads(channel)
        while not isinstance(channel.receive(), Bye):
            pass
        channel.send(Stopped())

    async with started(busy) as stage:
        asked = asyncio.create_task(stage.supervisor.profile(PROFILE))
        await asyncio.sleep(0)
        await stage.supervisor.stop(5.0)
        assert await asked == Profiled("it ended meanwhile")


async def test_without_an_engine_there_is_nothing_to_profile() -> None:
    stage = Stage(serves)
    assert await stage.supervisor.profile(PROFILE) == Profiled("there is none now")
