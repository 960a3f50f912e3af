import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract.engines import DEADLINE_S, load
from tests.unit.engine import graphs
from worker.engine.host import Ending, serve
from worker.engine.model import Model
from worker.errors import ChannelError, ModelError
from worker.protocol.channel import Channel, socket_pair
from worker.protocol.messages import Bye, Load, Loaded, LoadFailed, Message, Row, Stopped, Submit
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize(
    ("quiet", "options", "steps_back"),
    [
        (True, {}, True),
        (True, {"intra_op_num_threads": "1"}, True),
        (False, {}, False),
        (True, {"intra_op_num_threads": "4"}, False),
    ],
)
def test_a_load_beside_others_steps_back_with_a_thread_that_ends_with_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    quiet: bool,
    options: dict[str, str],
    steps_back: bool,
) -> None:
    seen: dict[int, int] = {}

    def refuses(_: Load) -> Model:
        seen[threading.get_native_id()] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        raise ModelError("enough was seen")

    monkeypatch.setattr("worker.engine.host.load_model", refuses)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    page, (ours, theirs) = Page.make(lanes=2, max_ids=4), socket_pair()
    Channel(ours).send(load(tmp_path, "cafe", quiet=quiet, session=options))
    assert serve(theirs, page) is Ending.REFUSED
    [(thread, priority)] = seen.items()
    assert priority == min(19, before + 10 * steps_back)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
    assert thread not in {each.native_id for each in threading.enumerate()}
    ours.close()
    page.close()
