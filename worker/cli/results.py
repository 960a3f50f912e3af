"""`darkroom results`: read the output topic, as a table for people or as JSON lines."""

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from worker.cli.options import BootstrapServers, Config, Json, takes
from worker.cli.terminal import say, write, write_json
from worker.errors import CommandError

EXAMPLE = "Example: darkroom results --follow --failed"
_COLUMNS = {
    "time": 12,
    "id": 32,
    "status": 10,
    "model": 16,
    "prediction": 22,
    "batch": 5,
    "age": 9,
    "reason": 0,
}
"""Width of each column; 0: as long as it is."""


class Start(StrEnum):
    BEGINNING = "beginning"
    NOW = "now"


@dataclass(frozen=True, kw_only=True)
class Options:
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until interrupted.")
    ] = False
    start: Annotated[Start, typer.Option("--from", help="Where to begin; `now` follows.")] = (
        Start.BEGINNING
    )
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="End after N results; fewer: exit 1."),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SECONDS", help="End after this time."),
    ] = None
    failed: Annotated[
        bool, typer.Option("--failed", help="Only what is not ok: failed and skipped.")
    ] = False
    topic: Annotated[
        str | None,
        typer.Option(help="Topic to read.", show_default="kafka.output_topic"),
    ] = None
    bootstrap_servers: BootstrapServers = None
    config: Config = None
    as_json: Json = False


@takes(Options)
def results(options: Options) -> None:
    """Show results: those that are there, or what comes (--follow)."""
    shown = asyncio.run(_show(options))
    if not shown:
        say("no such results" if options.failed else "no results")
    if options.count is not None and shown < options.count:
        raise CommandError(f"{shown} results were there, {options.count} were asked for")


async def _show(options: Options) -> int:
    from worker.config import load_settings
    from worker.kafka.tail import tail
    from worker.telemetry.logs import configure

    configure("error")
    kafka = load_settings(options.config).settings.kafka
    if options.bootstrap_servers:
        kafka = kafka.model_copy(update={"bootstrap_servers": options.bootstrap_servers})
    from_beginning = options.start is Start.BEGINNING
    reading = tail(
        kafka,
        options.topic or kafka.output_topic,
        from_beginning=from_beginning,
        follow=options.follow or not from_beginning,
    )
    shown = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(options.timeout), aclosing(reading):
            async for record in reading:
                row = _row(record.value)
                if options.failed and row["status"] == "ok":
                    continue
                if options.as_json:
                    write_json(row, indent=False)
                else:
                    if not shown:
                        write(_line({name: name for name in _COLUMNS}))
                    write(_line(_cells(row)))
                shown += 1
                if shown == options.count:
                    break
    return shown


def _row(value: bytes | None) -> dict[str, Any]:
    """Return a result as it is on the topic; what is none gets the status `unreadable`."""
    import orjson

    try:
        row = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        row = None
    if isinstance(row, dict) and isinstance(row.get("status"), str):
        return row
    return {"status": "unreadable", "reason": "no result of Darkroom", "bytes": len(value or b"")}


def _cells(row: dict[str, Any]) -> dict[str, str]:
    source, model, engine = (row.get(name) or {} for name in ("source", "model", "engine"))
    stamp_ms, age_ms = source.get("timestamp_ms"), row.get("age_ms")
    time = datetime.fromtimestamp(stamp_ms / 1000, UTC).astimezone() if stamp_ms else None
    reason = ": ".join(row[name] for name in ("reason", "message") if row.get(name))
    return {
        "time": f"{time:%H:%M:%S.%f}"[:12] if time else "-",
        "id": str(row.get("id") or "-"),
        "status": row["status"],
        "model": f"{model['name']}@{model['version']}" if model else "-",
        "prediction": _top(row.get("predictions")),
        "batch": str(engine.get("batch_size", "-")),
        "age": "-" if age_ms is None else f"{age_ms:.0f} ms",
        "reason": reason,
    }


def _top(predictions: dict[str, Any] | None) -> str:
    """Return the best prediction of the first head, in a few characters."""
    for head, said in (predictions or {}).items():
        if not said:
            return f"{head}: nothing"
        if isinstance(said, list) and "score" in said[0]:
            return f"{said[0]['label']} {said[0]['score']:.2f}"
        return str(head)
    return "-"


def _line(cells: dict[str, str]) -> str:
    parts = []
    for name, width in _COLUMNS.items():
        text = cells[name]
        cut = f"{text[: width - 1]}…" if width and len(text) > width else text
        parts.append(cut.rjust(width) if name in {"batch", "age"} else cut.ljust(width))
    return "  ".join(parts).rstrip()
