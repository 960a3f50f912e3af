import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from worker.telemetry.logs import QuietKafka, configure


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    """Leave logging as it was: other tests look at it too."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = before
    for name in ("aiokafka", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_json_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    structlog.get_logger("worker.pipeline").info("joined", partitions=[0, 1])

    [line] = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "joined",
        "level": "info",
        "logger": "worker.pipeline",
        "partitions": [0, 1],
    }


def test_lines_are_for_people_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure(stream=stream)

    structlog.get_logger("worker.pipeline").info("joined", partitions=2)

    assert "joined" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        lines(stream)


def test_the_standard_librarys_lines_look_the_same() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    logging.getLogger("somewhere").warning("late by %d s", 3)

    [line] = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("late by 3 s", "warning", "somewhere")


def test_the_level_holds_for_both_kinds() -> None:
    stream = io.StringIO()
    configure("warning", stream=stream)

    structlog.get_logger("ours").info("not this")
    logging.getLogger("theirs").info("nor this")
    structlog.get_logger("ours").warning("this")

    assert [line["event"] for line in lines(stream)] == ["this"]


def test_an_exception_is_part_of_its_line() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    try:
        int("disk")
    except ValueError:
        structlog.get_logger("ours").exception("cannot write")

    [line] = lines(stream)
    assert line["exception"][0]["exc_type"] == "ValueError"


def test_a_bound_context_is_part_of_every_line() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    with structlog.contextvars.bound_contextvars(worker="w1"):
        logging.getLogger("theirs").warning("x")

    assert lines(stream)[0]["worker"] == "w1"


def test_what_aiokafka_retries_is_a_warning_once_in_ten_seconds() -> None:
    now_s = [0.0]
    quiet = QuietKafka(lambda: now_s[0])

    def told(broker: int) -> str | None:
        record = logging.LogRecord(
            "aiokafka", logging.ERROR, __file__, 1, "Unable to connect to %d", (broker,), None
        )
        return f"{record.levelname} {record.getMessage()}" if quiet.filter(record) else None

    assert told(1) == "WARNING Unable to connect to 1"
    assert [told(2), told(3)] == [None, None]
    now_s[0] = 10.0
    assert told(4) == "WARNING Unable to connect to 4 (2 more like this)"
    now_s[0] = 20.0
    assert told(5) == "WARNING Unable to connect to 5"


def test_aiokafkas_chatter_and_a_completing_transaction_are_left_out() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    logging.getLogger("aiokafka.consumer").info("Discovered coordinator")
    logging.getLogger("aiokafka.producer").warning("retrying: %s", "[Error 19] NotEnoughReplicas")
    logging.getLogger("aiokafka.client").error("Unable to update metadata from %s", [1])

    assert [(line["event"], line["level"]) for line in lines(stream)] == [
        ("Unable to update metadata from [1]", "warning")
    ]


def test_what_aiokafka_retries_is_nothing_where_only_errors_are_asked_for() -> None:
    stream = io.StringIO()
    configure("error", stream=stream)

    logging.getLogger("aiokafka.client").error("Unable to update metadata from %s", [1])

    assert stream.getvalue() == ""


@pytest.mark.parametrize("as_json", [True, False])
def test_tracebacks_name_lines_but_no_values_of_variables(*, as_json: bool) -> None:
    stream = io.StringIO()
    configure(stream=stream, json=as_json)

    def fail(password: str) -> None:
        raise ValueError(len(password))

    try:
        fail("hunter-2"[::-1])
    except ValueError:
        structlog.get_logger("worker").exception("it failed")

    assert "ValueError" in stream.getvalue()
    assert "test_logs.py" in stream.getvalue()
    assert stream.getvalue().count("2-retnuh") == 0
