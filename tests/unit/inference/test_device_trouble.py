"""What a worker makes of an engine that tells of its device."""

import pytest
from structlog.testing import capture_logs

from tests.unit.inference.jobs import jobs
from tests.unit.inference.scripted import (
    LOADED,
    loads,
    loses_its_device,
    outcomes,
    serves,
    submits,
)
from tests.unit.inference.test_supervisor import started, until
from worker.protocol.channel import Channel
from worker.protocol.messages import Trouble
from worker.protocol.page import Page


@pytest.mark.parametrize("count", [1, 5])
async def test_engines_that_lose_their_device_make_no_record_guilty(count: int) -> None:
    with capture_logs() as logs:
        async with started(*[loses_its_device] * 6, serves) as stage:
            stage.work.submit(jobs(*range(count)))
            await until(lambda: len(stage.ends.of) == count)
            assert stage.ends.count() == {"Predicted": count}
            assert stage.supervisor.status.convicted == 0
    troubles = [log for log in logs if log["event"] == "engine.trouble"]
    assert [(log["kind"], log["log_level"]) for log in troubles] == [("sticky", "warning")] * 6


async def test_trouble_in_the_middle_ends_nothing() -> None:
    def shrinks(channel: Channel, _: Page) -> None:
        loads(channel)
        for submit in submits(channel):
            channel.send(Trouble("oom", "CUDA failure 2: out of memory"))
            channel.send(outcomes(submit))

    async with started(shrinks) as stage:
        stage.work.submit(jobs(1, 2))
        await until(lambda: len(stage.ends.of) == 2)
        assert stage.supervisor.status.restarts == 0


async def test_a_graph_that_does_not_run_where_it_was_wanted_is_warned_of() -> None:
    def falls_back(channel: Channel, _: Page) -> None:
        channel.receive()
        nodes = {"CUDAExecutionProvider": 40, "CPUExecutionProvider": 2}
        signature = {"refused": ["TensorrtExecutionProvider: no libnvinfer"], "nodes": nodes}
        channel.send(LOADED._replace(signature=signature))
        for _submit in submits(channel):
            pass

    with capture_logs() as logs:
        async with started(falls_back):
            pass
    warned = {log["event"]: log for log in logs if log["log_level"] == "warning"}
    assert warned["engine.fallback"]["why"] == ["TensorrtExecutionProvider: no libnvinfer"]
    assert warned["engine.nodes_elsewhere"]["nodes"]["CPUExecutionProvider"] == 2
