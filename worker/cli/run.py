"""`darkroom run`: one worker, until it is told to stop."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from worker import config
from worker.telemetry import logs

Config = Annotated[Path | None, typer.Option("--config", help="Settings as YAML.")]
UntilIdle = Annotated[
    float | None,
    typer.Option(
        "--until-idle",
        metavar="SECONDS",
        help="Stop when nothing came and nothing was in flight for so long.",
        min=0.1,
    ),
]
Level = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]


def run(
    config_file: Config = None, until_idle_s: UntilIdle = None, log_level: Level = "info"
) -> None:
    """Serve: images from the input topics in, predictions out, until SIGTERM or SIGINT.

    Example: darkroom run --config darkroom.yaml

    Exit codes: 0 drained; 2 settings; 3 no model can be served; 4 the required GPU is absent or
    lost; 5 the brokers refuse us; 7 stopped before it could drain (nothing is lost: those records
    will be read again).
    """
    from worker.app import Worker  # noqa: PLC0415 - aiokafka and aiohttp are slow to import

    loaded = config.load_settings(config_file)
    logs.configure(log_level)

    async def main() -> int:
        worker = Worker(loaded.settings, failpoint=config.failpoint())
        return await worker.run(until_idle_s=until_idle_s)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        raise typer.Exit(runner.run(main()))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop  # noqa: PLC0415 - only a worker needs it

    return uvloop.new_event_loop
