"""`darkroom config`: the settings in force and where they come from; what is wrong with them."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from worker.cli.options import Config, Json
from worker.cli.terminal import write, write_json

if TYPE_CHECKING:
    from worker.inference.memory import Memory

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command(epilog="Example: darkroom config show --config darkroom.yaml")
def show(*, config: Config = None, as_json: Json = False) -> None:
    """Show every setting in force with the origin of its value; secrets are masked.

    And how much memory the worker and its engines may come to need.
    """
    from worker.config import load_settings
    from worker.models.footprint import needed_memory

    loaded = load_settings(config)
    memory = needed_memory(loaded.settings)
    if as_json:
        tree = loaded.settings.model_dump(mode="json")
        write_json({"settings": tree, "origins": loaded.origins, "memory": _memory(memory)})
    else:
        write(f"{_as_yaml(loaded.leaves())}\n\n{_memory_lines(memory)}")


@app.command(epilog="Example: darkroom config check --config darkroom.yaml")
def check(*, config: Config = None) -> None:
    """Tell all that is wrong with the settings at once; exit 2 if anything is."""
    from worker.config import load_settings
    from worker.models.footprint import needed_memory

    loaded = load_settings(config)
    scarce = needed_memory(loaded.settings).check()
    origins = loaded.origins.values()
    given = sum(origin != "default" for origin in origins)
    write(f"The settings are usable: {given} given, {len(origins) - given} left at their default.")
    if scarce:
        write(f"But {scarce}.")


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


def _memory(memory: "Memory") -> dict[str, Any]:
    return {
        "worker_bytes": memory.worker_bytes,
        "engines_bytes": {str(ref): size for ref, size in memory.engines.items()},
        "together_bytes": memory.together_bytes,
        "max_loaded_bytes": memory.most_bytes,
        "limit_bytes": memory.limit_bytes,
    }


def _memory_lines(memory: "Memory") -> str:
    """Write the sum as comments: the text stays a settings file."""
    engine = "its engines: their processes, models and rows, and what they decode at a time"
    rows = [
        ("worker", memory.worker_bytes, "itself, and records in flight, here and in its engines"),
        *((str(ref), size, engine) for ref, size in memory.engines.items()),
        ("together", memory.together_bytes, f"of {_mb(memory.limit_bytes)} MB that there are"),
    ]
    if memory.most_bytes > memory.together_bytes:
        rows.append(("at most", memory.most_bytes, f"models.max_loaded: {memory.max_loaded}"))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"#   {name:<{width}} {_mb(size):>9} MB  {note}" for name, size, note in rows]
    return "\n".join(["# memory that may be needed, about:", *lines])


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f}"
