"""`darkroom run`: one worker, until it is told to stop."""

import asyncio
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

from worker.cli.options import Config

EXAMPLE = "Example: darkroom run --config darkroom.yaml"

UntilIdle = Annotated[
    float | None,
    typer.Option(
        "--until-idle",
        metavar="SECONDS",
        help="Stop when nothing came and nothing was in flight for so long.",
        min=0.1,
    ),
]


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogLevel = Annotated[Level, typer.Option("--log-level", help="Least severe lines to log.")]


def run(
    *, config: Config = None, until_idle_s: UntilIdle = None, log_level: LogLevel = Level.INFO
) -> None:
    """Serve: images from the input topics in, predictions out, until SIGTERM or SIGINT."""
    # structlog imports rich where it finds it, for tracebacks that are not drawn here: a sixth of
    # the time until a worker begins.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # so says Python: not to be had

    from worker.app import Worker
    from worker.config import failpoint, load_settings
    from worker.process import end_soon
    from worker.telemetry.logs import configure

    settings = load_settings(config).settings
    configure(log_level)

    async def main() -> int:
        worker = Worker(settings, failpoint=failpoint())
        return await worker.run(until_idle_s=until_idle_s)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(main())
        end_soon(code)
    raise typer.Exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop
