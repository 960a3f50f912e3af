"""`darkroom send`: publish images to a topic."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from worker.cli.options import BootstrapServers, Config, Json, takes
from worker.cli.paths import expand
from worker.cli.terminal import for_people, say, write_json
from worker.errors import CommandError

EXAMPLE = "Example: darkroom send photos/ 'more/*.jpg' --rate 100 --key '{name}'"
_KEY_FIELDS = "{name} {stem} {n} {sha256}"
_PROBLEMS_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Files, folders (all below) or globs.")
    ]
    topic: Annotated[
        str | None,
        typer.Option(help="Topic to send to.", show_default="the first of kafka.input_topics"),
    ] = None
    rate: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="Records a second, at most.")
    ] = None
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Send N records, over and over.")
    ] = None
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="Send every file N times.")] = 1
    key: Annotated[
        str | None, typer.Option(metavar="TEMPLATE", help=f"Key of a record, of {_KEY_FIELDS}.")
    ] = None
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A header for every record; may be repeated."),
    ] = None
    model: Annotated[str | None, typer.Option(help="Model to ask for.")] = None
    version: Annotated[str | None, typer.Option(help="Version of the model to ask for.")] = None
    bootstrap_servers: BootstrapServers = None
    config: Config = None
    as_json: Json = False


class Sent(NamedTuple):
    """What became of it all."""

    sent: int
    failed: int
    bytes: int
    seconds: float
    per_second: float
    problems: Sequence[str]


@takes(Options)
def send(options: Options) -> None:
    """Publish images to a topic, each file as it is; exit 1 if any was not acknowledged."""
    files = expand(options.paths)
    headers = _headers(options)
    _key(options.key, files[0], 0, b"")
    total = options.count or len(files) * options.repeat
    sent = asyncio.run(_send(options, files, headers, total))
    if options.as_json:
        write_json(sent._asdict())
    else:
        say(
            f"sent {sent.sent} of {total} records, {sent.bytes / 1e6:.1f} MB in"
            f" {sent.seconds:.1f} s: {sent.per_second:.0f} a second"
        )
    if sent.sent < total:
        told = "".join(f"\n  {problem}" for problem in sent.problems[:_PROBLEMS_TOLD])
        rest = len(sent.problems) - _PROBLEMS_TOLD
        more = f"\n  and {rest} more" if rest > 0 else ""
        raise CommandError(f"{total - sent.sent} of {total} records were not sent:{told}{more}")


async def _send(
    options: Options,
    files: Sequence[Path],
    headers: tuple[tuple[str, bytes | None], ...],
    total: int,
) -> Sent:
    from worker.config import load_settings
    from worker.kafka.publish import Message, MessageTooLarge, Publisher
    from worker.telemetry.logs import configure

    configure("error")
    kafka = load_settings(options.config).settings.kafka
    if options.bootstrap_servers:
        kafka = kafka.model_copy(update={"bootstrap_servers": options.bootstrap_servers})
    problems: list[str] = []
    sent_bytes = 0
    async with Publisher(kafka, options.topic or kafka.input_topics[0]) as publisher:
        began_s = time.monotonic()
        with _progress(total) as advance:
            for n, file in enumerate(itertools.islice(itertools.cycle(files), total)):
                if options.rate:
                    await asyncio.sleep(max(0.0, began_s + n / options.rate - time.monotonic()))
                try:
                    data = file.read_bytes()
                    key = _key(options.key, file, n, data)
                    await publisher.send(Message(key, data, headers))
                    sent_bytes += len(data)
                except OSError as error:
                    problems.append(f"{file}: {error.strerror}")
                except MessageTooLarge as error:
                    problems.append(f"{file}: {error}")
                advance()
            await publisher.flush()
        seconds = time.monotonic() - began_s
    problems += [f"{many} x {error}" for error, many in publisher.errors.items()]
    sent = publisher.acknowledged
    return Sent(sent, total - sent, sent_bytes, seconds, sent / seconds, problems)


def _headers(options: Options) -> tuple[tuple[str, bytes | None], ...]:
    headers: list[tuple[str, bytes | None]] = []
    if options.model:
        headers.append(("darkroom-model", options.model.encode()))
    if options.version:
        headers.append(("darkroom-version", options.version.encode()))
    for header in options.header or ():
        name, equals, value = header.partition("=")
        if not name or not equals:
            raise CommandError(f"--header {header!r}: expected NAME=VALUE")
        headers.append((name, value.encode()))
    return tuple(headers)


def _key(template: str | None, file: Path, n: int, data: bytes) -> bytes | None:
    if template is None:
        return None
    sha256 = hashlib.sha256(data).hexdigest() if "{sha256" in template else ""
    try:
        return template.format(name=file.name, stem=file.stem, n=n, sha256=sha256).encode()
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise CommandError(f"--key {template!r}: expected a text with {_KEY_FIELDS}") from error


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    if not for_people():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("sending", total=total)
        yield lambda: bar.advance(task)
