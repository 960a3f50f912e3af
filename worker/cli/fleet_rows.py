"""A fleet in words and as JSON: its workers, what a change changes, what happened before."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from worker.control.answers import Ack, ModelUse
from worker.control.changes import change
from worker.control.channel import Entry
from worker.control.convergence import said
from worker.control.documents import parse_state
from worker.control.messages import DesiredState, Rollout, frozen
from worker.control.progress import Changed, Look
from worker.errors import StateError

_HEAD = ("worker", "state", "models", "device", "generation", "lag", "in flight", "answer")
_DISPENSABLE = ("device", "in flight", "lag", "generation", "state")
"""Columns that a narrow terminal does without, in this order."""
_CUT = ("worker", "models")
"""Columns whose cells are cut in the middle where it is narrower still."""
_CUT_CHARS = 12
"""So much is left of them."""
_LAST_MS = 253_402_128_000_000
"""9999-12-30, which every time zone has."""


def status_document(fleet: str, look: Look) -> dict[str, Any]:
    """Return what `fleet status --json` prints."""
    state = look.state
    return {
        "fleet": fleet,
        "generation": state.generation if state else None,
        "converged": not look.lacks,
        "reasons": look.lacks,
        "epoch": state.epoch if state else None,
        "written_by": state.written_by if state else None,
        "written_at_ms": state.written_at_ms if state else None,
        "rollout": _rollout_document(state.rollout) if state and state.rollout else None,
        "workers": worker_rows(look),
    }


def worker_rows(look: Look) -> list[dict[str, Any]]:
    """Return every worker that is alive, as the JSON says it."""
    reasons = _reasons(look)
    rows = [_worker(ack, reasons.get(worker)) for worker, ack in look.members.items()]
    unreadable = [_unreadable(worker, why) for worker, why in look.unreadable.items()]
    return sorted([*rows, *unreadable], key=lambda row: str(row["id"]))


def status_lines(look: Look, *, width: float = math.inf) -> list[str]:
    """Return the fleet for people: its state, a row for each worker, and what it lacks.

    Rows do without what matters least until they have `width` characters.
    """
    rows = [_cells(row) for row in worker_rows(look)]
    lines = [_title(look), *(_table(rows, width) if rows else [])]
    if look.state and look.state.rollout:
        lines.append(_rollout_line(look.state.rollout))
    if look.fresh:
        return lines
    lacks = look.lacks
    return [*lines, "converged"] if not lacks else [*lines, "not converged:", *_indented(lacks)]


def answers(look: Look) -> dict[str, str]:
    """Return what each worker says, in a line."""
    reasons = _reasons(look)
    return {
        str(row["id"]): reasons.get(str(row["id"])) or f"serves generation {row['generation']}"
        for row in worker_rows(look)
    }


def differences(changed: Changed) -> list[str]:
    """Return what a change changes, a line for each thing."""
    return _between(changed.before, changed.after)


def history_rows(entries: Sequence[Entry], count: int) -> list[dict[str, Any]]:
    """Return the newest `count` of these entries, which begin with the newest.

    What each changed is told from the one before it; the oldest of all begins with everything.
    """
    states = [_read(entry) for entry in entries]
    rows: list[dict[str, Any]] = []
    for number, (entry, state) in enumerate(zip(entries, states, strict=True)):
        if number == count:
            break
        before = states[number + 1] if number + 1 < len(states) else None
        changes = [state] if isinstance(state, str) else _between(_known(before), state)
        stamp = _local(entry.at_ms)
        rows.append(
            {
                "generation": entry.generation,
                "at": stamp.isoformat(timespec="milliseconds"),
                "by": entry.by,
                "command": entry.command,
                "changes": changes,
            }
        )
    return rows


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows with their cells below each other."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def drawn(look: Look, width: int) -> Text:
    """Return the fleet to be drawn on a terminal; what is longer than its rows goes on below."""
    return Text("\n".join(status_lines(look, width=width)), overflow="fold")


def _table(rows: Sequence[Sequence[str]], width: float) -> list[str]:
    shown = list(zip(_HEAD, *rows, strict=True))
    for name in _DISPENSABLE:
        if _excess(shown, width) > 0:
            shown = [column for column in shown if column[0] != name]
    for name in _CUT:
        excess = _excess(shown, width)
        shown = [_shorter(each, excess) if each[0] == name else each for each in shown]
    return columns(list(zip(*shown, strict=True)))


def _excess(shown: Sequence[Sequence[str]], width: float) -> float:
    """Return how many characters these columns have more than the terminal."""
    return sum(max(map(len, column)) for column in shown) + 2 * (len(shown) - 1) - width


def _shorter(column: tuple[str, ...], excess: float) -> tuple[str, ...]:
    """Return a column with so many characters less, as far as that goes."""
    widest = max(map(len, column))
    most = int(max(_CUT_CHARS, widest - max(0, excess)))
    begin, end = most // 2, (most - 1) // 2
    return tuple(cell if len(cell) <= most else f"{cell[:begin]}…{cell[-end:]}" for cell in column)


def _title(look: Look) -> str:
    state = look.state
    if state is None:
        return look.lacks[0]
    stamp = _local(state.written_at_ms)
    written = f"written by {state.written_by} at {stamp:%Y-%m-%d %H:%M:%S}"
    return f"fleet {state.fleet}: generation {state.generation}, {written}"


def _local(at_ms: int) -> datetime:
    """Return a time as it is here; one that no calendar has (by hand, not in ms) is the last."""
    return datetime.fromtimestamp(min(at_ms, _LAST_MS) / 1000, UTC).astimezone()


def _worker(ack: Ack, reason: str | None) -> dict[str, Any]:
    return {
        "id": ack.worker,
        "generation": ack.generation,
        "state": ack.state,
        "models": {name: _use(use) for name, use in ack.models.items()},
        "provider": ack.provider,
        "device": ack.device,
        "devices": dict(ack.devices),
        "lag": ack.lag,
        "in_flight": ack.in_flight,
        "reason": reason,
        "answer": ack.answer.value,
        "observed": ack.observed,
        "labels": dict(ack.labels),
        "build": ack.build,
    }


def _use(use: ModelUse) -> dict[str, Any]:
    return {"active": use.active, "loaded": list(use.loaded), "pinned": use.pinned}


def _unreadable(worker: str, why: str) -> dict[str, Any]:
    unknown = (
        "generation",
        "provider",
        "device",
        "lag",
        "in_flight",
        "answer",
        "observed",
        "build",
    )
    return {
        **dict.fromkeys(unknown),
        "id": worker,
        "state": "unreadable",
        "models": {},
        "reason": why,
        "labels": {},
        "devices": {},
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    models = [_model_cell(name, use) for name, use in row["models"].items()]
    provider = (row["provider"] or "").removesuffix("ExecutionProvider")
    device = row["device"] or ""
    amiss = sorted({state for state in row["devices"].values() if state != "gpu_ok"})
    return (
        row["id"],
        row["state"],
        ", ".join(models) or "-",
        " ".join(dict.fromkeys(filter(None, (provider, device, *amiss)))) or "-",
        *("-" if row[name] is None else str(row[name]) for name in ("generation", "lag")),
        "-" if row["in_flight"] is None else str(row["in_flight"]),
        row["answer"] or "-",
    )


def _model_cell(name: str, use: dict[str, Any]) -> str:
    pinned = " pinned" if use["pinned"] else ""
    beside = [version for version in use["loaded"] if version != use["active"]]
    loaded = f" (+ {' '.join(beside)})" if beside else ""
    return f"{name} {use['active'] or 'none'}{pinned}{loaded}"


def _reasons(look: Look) -> dict[str, str]:
    """Return why workers are not what they should be, by worker."""
    found = dict(look.unreadable)
    for worker, ack in look.members.items():
        start = f"{worker}: "
        lacks = [lack.removeprefix(start) for lack in look.lacks if lack.startswith(start)]
        if lacks:
            found[worker] = lacks[0]
        elif look.state is None:
            found[worker] = said(ack)
    return found


def _rollout_document(rollout: Rollout) -> dict[str, Any]:
    return {
        "id": rollout.id,
        "model": rollout.model,
        "version": rollout.version,
        "mode": rollout.mode.value,
        "phase": rollout.phase.value,
        "admitted": list(rollout.admitted),
        "reason": rollout.reason,
    }


def _rollout_line(rollout: Rollout) -> str:
    what = f"rollout {rollout.id} of {rollout.model} {rollout.version} ({rollout.mode.value})"
    return f"{what}: {rollout.phase.value}" + (f": {rollout.reason}" if rollout.reason else "")


def _between(before: DesiredState | None, after: DesiredState) -> list[str]:
    nothing = after._replace(models=frozen({}), holds=(), rollout=None)
    return change(before or nothing, after)


def _read(entry: Entry) -> DesiredState | str:
    """Return an entry's state, or why it cannot be read."""
    try:
        return parse_state(entry.document)
    except StateError as error:
        return str(error)


def _known(state: DesiredState | str | None) -> DesiredState | None:
    return state if isinstance(state, DesiredState) else None


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
