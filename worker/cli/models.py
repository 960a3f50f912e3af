"""`darkroom models`: what lies in the repository, and whether it would serve."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli.options import Config, Json
from worker.cli.terminal import say, write, write_json
from worker.errors import DarkroomError

app = typer.Typer(
    help="Look at models at rest, and prove them.", no_args_is_help=True, rich_markup_mode=None
)

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME[/VERSION]|PATH",
        help="Models, versions or folders of one version; none: all, and the active ones.",
    ),
]
RepositoryFolder = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        metavar="FOLDER",
        help="Model repository.",
        show_default="models.repository of the settings, else the demo's models",
    ),
]
Facts = dict[str, Any]


@app.command(epilog="Example: darkroom models inspect digits/1")
def inspect(
    targets: Targets = None,
    *,
    repository: RepositoryFolder = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what versions declare and check the digests of their files; exit 3 if any is broken."""
    from worker.cli.versions import chosen, declared
    from worker.config import load_settings

    settings = load_settings(config).settings
    folders = chosen(targets or [], settings, repository)
    facts = [_told(str(ref), partial(declared, folder)) for ref, folder in folders.items()]
    _report(facts, as_json=as_json)


@app.command(epilog="Example: darkroom models verify digits --repository models")
def verify(
    targets: Targets = None,
    *,
    repository: RepositoryFolder = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Load versions in an engine as a worker would: files, graph, golden samples; exit 3 if not."""
    from worker.cli.versions import chosen, proved
    from worker.config import load_settings
    from worker.telemetry.logs import configure

    configure("error")
    settings = load_settings(config).settings
    folders = chosen(targets or [], settings, repository)
    facts = [
        _told(str(ref), partial(asyncio.run, proved(ref, folder, settings)))
        for ref, folder in folders.items()
    ]
    _report(facts, as_json=as_json)


def _told(version: str, ask: Callable[[], Facts]) -> Facts:
    try:
        return {"version": version, "ok": True, **ask()}
    except DarkroomError as error:
        fault = {name: getattr(error, name, None) for name in ("file", "field")}
        return {"version": version, "ok": False, **fault, "problem": str(error)}


def _report(facts: Sequence[Facts], *, as_json: bool) -> None:
    broken = sum(not fact["ok"] for fact in facts)
    if as_json:
        write_json(facts)
    else:
        write(_yaml(facts))
    if broken:
        say(f"darkroom: {broken} of {len(facts)} must not be served")
        raise typer.Exit(3)


def _yaml(facts: Sequence[Facts]) -> str:
    """Return facts as YAML in which a text of several lines stands as it is."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(facts, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return dumped.rstrip()
