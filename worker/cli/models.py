"""`darkroom models`: what lies in the repository, whether it would serve, and fetching it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.options import Config, Json
from worker.cli.terminal import for_people, say, write, write_json
from worker.errors import DarkroomError
from worker.types import ModelRef

if TYPE_CHECKING:
    from worker.cli.versions import Chosen
    from worker.models.repository import Version

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
FetchTargets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME[/VERSION]|PATH",
        help="Models, versions or folders of one version; none: the active ones of the settings.",
    ),
]
Location = Annotated[
    str | None,
    typer.Option(
        "--repository",
        metavar="FOLDER|URL",
        help="Model repository.",
        show_default="models.repository of the settings, else the demo's models",
    ),
]
Facts = dict[str, Any]


@app.command(epilog="Example: darkroom models inspect digits/1")
def inspect(
    targets: Targets = None,
    *,
    repository: Location = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what versions declare and check the digests of their files; exit 3 if any is broken."""
    from worker.cli.versions import chosen, declared
    from worker.config import load_settings
    from worker.telemetry.logs import configure

    configure("warning")
    versions = chosen(targets or [], load_settings(config).settings, repository)
    _report([_told(version, declared) for version in versions], as_json=as_json)


@app.command(epilog="Example: darkroom models verify digits --repository models")
def verify(
    targets: Targets = None,
    *,
    repository: Location = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Load versions in an engine as a worker would: files, graph, golden samples; exit 3 if not."""
    from worker.cli.versions import chosen, proved
    from worker.config import load_settings
    from worker.telemetry.logs import configure

    configure("error")
    settings = load_settings(config).settings

    def prove(version: "Version") -> Facts:
        return asyncio.run(proved(version, settings))

    versions = chosen(targets or [], settings, repository)
    _report([_told(version, prove) for version in versions], as_json=as_json)


@app.command(epilog="Example: darkroom models fetch --config darkroom.yaml")
def fetch(
    targets: FetchTargets = None,
    *,
    repository: Location = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fetch versions into the cache under data_dir, where a worker finds them; exit 3 if not.

    What is there already is held to all its digests, and fetched again if it differs.
    """
    from worker.cli.versions import chosen, fetched
    from worker.config import load_settings
    from worker.telemetry.logs import configure

    configure("warning")
    versions = chosen(targets or [], load_settings(config).settings, repository, fetch=True)
    facts = [_told(version, fetched, verify=True) for version in versions]
    _report(facts, as_json=as_json, broken="could not be fetched")


class _Lines:
    """Tells on standard error that a fetch begins; for pipes and files."""

    def begin(self, ref: ModelRef, total_bytes: int | None) -> None:
        from rich.filesize import decimal

        say(f"fetching {ref}" + ("" if total_bytes is None else f", {decimal(total_bytes)}"))

    def advance(self, count_bytes: int) -> None:
        pass

    def end(self) -> None:
        pass


class _Bar:
    """A bar on standard error for every fetch."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def begin(self, ref: ModelRef, total_bytes: int | None) -> None:
        self._task = self._progress.add_task(str(ref), total=total_bytes)
        self._progress.start()

    def advance(self, count_bytes: int) -> None:
        self._progress.advance(self._task, count_bytes)

    def end(self) -> None:
        self._progress.stop()


def _told(version: "Chosen", ask: Callable[["Version"], Facts], *, verify: bool = False) -> Facts:
    """Find a version, with a bar where it must be fetched, and ask for its facts."""
    watcher = _Bar() if for_people() else _Lines()
    name = str(version.ref)
    try:
        found = version.repository.find(version.ref, watcher=watcher, verify=verify)
        return {"version": name, "ok": True, **ask(found)}
    except DarkroomError as error:
        fault = {name: getattr(error, name, None) for name in ("file", "field")}
        return {"version": name, "ok": False, **fault, "problem": str(error)}


def _report(facts: Sequence[Facts], *, as_json: bool, broken: str = "must not be served") -> None:
    count = sum(not fact["ok"] for fact in facts)
    if as_json:
        write_json(facts)
    else:
        write(_yaml(facts))
    if count:
        say(f"darkroom: {count} of {len(facts)} {broken}")
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
