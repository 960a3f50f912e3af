"""The command `darkroom`: its groups, and how an error becomes a message and an exit code.

Modules of commands import what they need inside their functions, so that help is quick and a
command about settings never loads a Kafka client.
"""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from worker.cli import config, demo, devices, models, results, run, send
from worker.cli.terminal import say, write
from worker.errors import DarkroomError

_EXIT_CODES = """\b
Exit codes:
  0  done
  1  the command could not do what was asked; standard error says why
  2  wrong settings or arguments
  3  no model can be served, or a model is broken
  4  the required GPU is absent or lost
  5  the brokers answer and refuse us
  7  the brokers or Redis do not answer, or stopped before drained (nothing is lost)
  8  not converged in the time that --wait gave
  130  interrupted
"""


class Commands(TyperGroup):
    """Turns errors that Darkroom raises on purpose into one message and their exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DarkroomError as error:
            if ctx.params.get("debug") or _debug():
                raise
            say(f"darkroom: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say("darkroom: interrupted")
            raise typer.Exit(130) from None


def _debug() -> bool:
    from worker.config import debug

    return debug()


def _version(asked: bool) -> None:  # noqa: FBT001 - called by typer
    if asked:
        from importlib.metadata import version

        write(f"darkroom {version('darkroom')}")
        raise typer.Exit


app = typer.Typer(
    name="darkroom",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=_EXIT_CODES,
)
app.add_typer(config.app, name="config")
app.add_typer(models.app, name="models")
app.command(epilog=run.EXAMPLE)(run.run)
app.command(epilog=demo.EXAMPLE)(demo.demo)
app.command(epilog=devices.EXAMPLE)(devices.devices)
app.command(epilog=send.EXAMPLE)(send.send)
app.command(epilog=results.EXAMPLE)(results.results)


def _add_group(name: str, text: str) -> None:
    """Add a group whose module is imported when it is asked for: it brings a client along."""

    @app.command(
        name,
        help=text,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def group(ctx: typer.Context) -> None:
        commands = typer.main.get_command(import_module(f"worker.cli.{name}").app)
        called = f"{ctx.find_root().info_name} {name}"
        with commands.make_context(called, ctx.args) as context:
            commands.invoke(context)


_add_group("fleet", "All workers of a fleet: what they serve, and what they should.")
_add_group(
    "dev", "A real Kafka and a real Redis on this machine: no Docker, no root, no Java needed."
)


@app.callback()
def darkroom(
    *,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show where an error comes from (also: DARKROOM_DEBUG=1)."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Images on Kafka, developed in batches on ONNX Runtime; predictions out, nothing lost."""
