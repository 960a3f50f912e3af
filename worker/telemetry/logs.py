"""How log lines look: JSON lines on stderr, or for people where stderr is a terminal.

Lines of libraries (the stdlib's logging) go through the same renderer; aiokafka's are quietened.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

_QUIET_S = 10.0


class QuietKafka(logging.Filter):
    """Keep aiokafka to what an operator can use.

    It logs at ERROR what it tries again by itself, many times a second while a broker is away: our
    own lines tell when something is given up. So ERROR becomes WARNING, and the same line comes
    once in ten seconds, with how often it was left out. Brokers of 4.x answer the first produce of
    a transaction with NOT_ENOUGH_REPLICAS while the last one completes: that one is for DEBUG.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._quiet_until: dict[tuple[str, object], float] = {}
        self._left_out: dict[tuple[str, object], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if "NotEnoughReplicas" in record.getMessage():
            return False
        if record.levelno > logging.WARNING:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        key = (record.name, record.msg)
        now_s = self._clock()
        if now_s < self._quiet_until.get(key, now_s):
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return False
        self._quiet_until[key] = now_s + _QUIET_S
        left_out = self._left_out.pop(key, 0)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more like this)"
            record.args = None
        return True


def configure(
    level: str = "info", *, stream: TextIO | None = None, json: bool | None = None
) -> None:
    """Send every log line of `level` and above to `stream` (stderr); `json` None: by terminal."""
    stream = stream or sys.stderr
    as_json = not stream.isatty() if json is None else json
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    rendering: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        rendering += [
            # Without the values of variables: those are images, keys and passwords of users.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        rendering.append(
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering)
    )
    quiet = QuietKafka()
    handler.addFilter(
        lambda line: (
            not line.name.startswith("aiokafka")
            or (quiet.filter(line) and line.levelno >= threshold)
        )
    )
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    logging.getLogger("aiokafka").setLevel(max(threshold, logging.WARNING))
    logging.getLogger("asyncio").setLevel(max(threshold, logging.WARNING))
