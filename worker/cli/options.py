"""Options that several commands share, so that they read the same everywhere."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

O = TypeVar("O")  # noqa: E741 - the class of a command's options

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings file (YAML); DARKROOM_... variables win over it.",
        show_default="DARKROOM_CONFIG, else none",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT[,...]",
        help="Brokers to ask.",
        show_default="kafka.bootstrap_servers of the settings",
    ),
]


def takes(options: type[O]) -> Callable[[Callable[[O], None]], Callable[..., None]]:
    """Make a command of a function of one dataclass: its fields are the command's parameters."""

    def decorate(function: Callable[[O], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            function(options(**given))

        hints = get_type_hints(options, include_extras=True)
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)  # type: ignore[arg-type]  # any dataclass
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer asks for it
        command.__annotations__ = hints
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate
