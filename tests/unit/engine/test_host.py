from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.engines import DEADLINE_S, load
from tests.unit.engine import graphs
from worker.engine.host import Ending, bounds, serve
from worker.engine.loader import load_model
from worker.engine.model import Model
from worker.errors import ChannelError
from worker.protocol.channel import Channel, socket_pair
from worker.protocol.messages import Bye, Loaded, LoadFailed, Message, Row, Stopped, Submit
from worker.protocol.page import Page


def test_a_lane_that_breaks_takes_its_engine_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1"))
    page, (ours, theirs) = Page.make(lanes=2, max_ids=4), socket_pair()
    ours.settimeout(DEADLINE_S)
    worker = Channel(ours)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(serve, theirs, page)
        worker.send(asked)
        assert isinstance(worker.receive(), Loaded)
        monkeypatch.delattr(Model, "predictions")
        worker.send(Submit((Row(1, graphs.png(1), alone=False),)))
        assert worker.receive() is None
        assert isinstance(ended.exception(DEADLINE_S), AttributeError)
    worker.close()
    page.close()


def test_a_file_that_cannot_be_read_while_loading_is_told_and_is_no_quiet_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> tuple[str, ...]:
        raise OSError(5, "Input/output error", "labels.txt")

    monkeypatch.setattr("worker.engine.loader.read_labels", fails)
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1"))
    page, (ours, theirs) = Page.make(lanes=2, max_ids=4), socket_pair()
    ours.settimeout(DEADLINE_S)
    Channel(ours).send(asked)
    assert serve(theirs, page) is Ending.REFUSED
    answer = Channel(ours).receive()
    assert isinstance(answer, LoadFailed)
    assert "labels.txt" in answer.message
    ours.close()
    page.close()


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], Ending.GONE),
        (["load"], Ending.GONE),
        (["load", Bye()], Ending.STOPPED),
        ([Bye()], ChannelError),
        (["load", "load"], ChannelError),
        (["load", Stopped()], ChannelError),
    ],
    ids=str,
)
def test_an_engine_ends_as_its_worker_tells_it(
    tmp_path: Path, messages: list[Message | str], expected: Ending | type[Exception]
) -> None:
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1"))
    page, (ours, theirs) = Page.make(lanes=2, max_ids=4), socket_pair()
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(serve, theirs, page)
        for message in messages:
            Channel(ours).send(asked if isinstance(message, str) else message)
        if expected is Ending.GONE:
            ours.close()
        if isinstance(expected, Ending):
            assert ended.result(DEADLINE_S) is expected
        else:
            assert isinstance(ended.exception(DEADLINE_S), expected)
    ours.close()
    page.close()


@pytest.mark.parametrize(
    ("service_ms", "eager"),
    [
        ({"1": 8.7, "8": 70.2, "16": 142.0}, True),
        ({"1": 0.053, "32": 0.98, "64": 1.93}, False),
        ({"1": 9.0, "16": 130.0}, False),
        ({"1": 9.0}, True),
        ({}, False),
    ],
)
def test_rows_wait_for_company_only_where_it_makes_them_cheaper(
    tmp_path: Path, service_ms: dict[str, float], *, eager: bool
) -> None:
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1"))
    model = replace(load_model(asked), service_ms=service_ms)
    assert bounds(model, asked.limits).eager is eager
