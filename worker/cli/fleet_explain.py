"""`darkroom fleet explain`: which version a record would get, and why; as a worker decides it."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import typer

from worker.cli.fleet_options import pairs, selector
from worker.cli.fleet_session import Fleet, connected
from worker.cli.options import Config, Json, takes
from worker.cli.terminal import write, write_json
from worker.control.messages import DesiredState, Selector
from worker.control.wanted import wanted
from worker.errors import CommandError, RecordFault, RecordSkipped, StateError
from worker.kafka.envelope import MODEL, TAGS, VERSION, parse
from worker.models.router import Explanation, Route, RoutingTable, explain
from worker.types import Headers, Position, Record

EXAMPLE = "Example: darkroom fleet explain --tag user_tier=premium --worker w-1"


@dataclass(frozen=True, kw_only=True)
class Explain:
    model: Annotated[str | None, typer.Option(help="Model that the record asks for.")] = None
    version: Annotated[str | None, typer.Option(help="Version or alias that it asks for.")] = None
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="A header of the record; may be repeated."),
    ] = None
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="A tag of the record; may be repeated."),
    ] = None
    topic: Annotated[
        str | None,
        typer.Option(help="Topic of the record.", show_default="the first of kafka.input_topics"),
    ] = None
    key: Annotated[str | None, typer.Option(help="Key of the record.")] = None
    worker: Annotated[
        str | None, typer.Option(metavar="ID", help="By what this worker decides.")
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="By what workers with this label decide."),
    ] = None
    config: Config = None
    as_json: Json = False


class View(NamedTuple):
    """Whose view it is, and by which state."""

    state: DesiredState
    worker: str
    labels: Mapping[str, str]


@takes(Explain)
def explain_record(options: Explain) -> None:
    """Say which version a record would get, and why, without sending one.

    Breakers are not looked at: whether a version is down is known to its worker alone.
    """
    headers = _headers(options)
    workers = selector(options.label, options.worker)
    asyncio.run(_explain(options, headers, workers))


async def _explain(options: Explain, headers: Headers, workers: Selector) -> None:
    async with connected(options.config) as fleet:
        view = await _view(fleet, workers)
    topic = options.topic or fleet.settings.kafka.input_topics[0]
    key = None if options.key is None else options.key.encode()
    now_ms = int(time.time() * 1000)
    record = Record(Position(topic, 0, 0), 0, key, b"an image", headers, now_ms, 0.0)
    document = _document(view.state, _explained(record, view))
    if options.as_json:
        write_json(document)
        return
    for step in document["steps"]:
        write(step)
    if document["status"] == "ok":
        write(f"-> {document['model']}/{document['version']} ({document['route']})")
    else:
        write(f"-> {document['status']}: {document['reason']}: {document['message']}")


def _headers(options: Explain) -> Headers:
    given = [*pairs(options.header, "--header").items()]
    asked = ((MODEL, options.model), (VERSION, options.version))
    given += [(name, value) for name, value in asked if value is not None]
    tags = pairs(options.tag, "--tag")
    if tags:
        given.append((TAGS, ",".join(f"{name}={value}" for name, value in tags.items())))
    return tuple((name, value.encode()) for name, value in given)


async def _view(fleet: Fleet, workers: Selector) -> View:
    look = await fleet.operator.look()
    if look.broken is not None:
        raise StateError(look.broken)
    state = look.state or fleet.catalogue.first(fleet.name)
    if workers.worker is None:
        return View(state, "", workers.labels)
    ack = look.members.get(workers.worker)
    if ack is None:
        alive = ", ".join(look.members) or "none"
        raise CommandError(f"no worker {workers.worker} is alive; there are: {alive}")
    return View(state, workers.worker, ack.labels)


def _explained(record: Record, view: View) -> Explanation:
    want = wanted(view.state, view.worker, view.labels)
    table = RoutingTable(want.default, {name: model.routes for name, model in want.models.items()})
    try:
        request = parse(
            record, image_max_bytes=len(record.value or b""), forward_headers=frozenset()
        )
    except RecordFault as fault:
        return Explanation(fault, ())
    return explain(request, table)


def _document(state: DesiredState, explanation: Explanation) -> dict[str, Any]:
    outcome = explanation.outcome
    model = outcome.model if isinstance(outcome, Route) else None
    document = {
        "generation": state.generation or None,
        "status": "ok",
        "model": model.name if model else None,
        "version": model.version if model else None,
        "route": outcome.reason if isinstance(outcome, Route) else None,
        "reason": None,
        "message": None,
        "steps": list(explanation.steps),
    }
    match outcome:
        case RecordFault(reason=reason):
            document |= {"status": "failed", "reason": reason.value, "message": str(outcome)}
        case RecordSkipped(reason=reason):
            document |= {"status": "skipped", "reason": reason.value, "message": str(outcome)}
        case Route():
            pass
    return document
