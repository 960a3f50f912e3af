"""`darkroom config`: the settings in force and where they come from; what is wrong with them."""

import json
from collections.abc import Iterable
from typing import Any

import typer

from worker.cli.options import Config, Json
from worker.cli.terminal import write, write_json

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command(epilog="Example: darkroom config show --config darkroom.yaml")
def show(*, config: Config = None, as_json: Json = False) -> None:
    """Show every setting in force with the origin of its value; secrets are masked."""
    from worker.config import load_settings

    loaded = load_settings(config)
    if as_json:
        tree = loaded.settings.model_dump(mode="json")
        write_json({"settings": tree, "origins": loaded.origins})
    else:
        write(_as_yaml(loaded.leaves()))


@app.command(epilog="Example: darkroom config check --config darkroom.yaml")
def check(*, config: Config = None) -> None:
    """Tell all that is wrong with the settings at once; exit 2 if anything is."""
    from worker.config import load_settings

    origins = load_settings(config).origins.values()
    given = sum(origin != "default" for origin in origins)
    write(f"The settings are usable: {given} given, {len(origins) - given} left at their default.")


def _as_yaml(leaves: Iterable[tuple[str, Any, str]]) -> str:
    """Write a settings file that gives these settings; JSON is YAML, so values are JSON."""
    lines: list[tuple[str, str]] = []
    section = ""
    for path, value, origin in leaves:
        head, _, name = path.rpartition(".")
        if head != section:
            section = head
            if head:
                lines.append((f"{head}:", ""))
        indent = "  " if head else ""
        text = json.dumps(value, ensure_ascii=False)
        lines.append((f"{indent}{name}: {text}", f"# {origin}"))
    width = min(max(len(text) for text, _ in lines), 60)
    return "\n".join(f"{text:<{width}}  {note}".rstrip() for text, note in lines)
