"""From bytes on the control channel to a desired state or an answer, or to all that is wrong.

By hand, proven equal to `schemas/desired.v1` and `schemas/ack.v1`; beyond those, whatever a state
names must be in it. Must not know where the bytes come from, nor what a worker makes of them.
"""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from worker.control.answers import ACK_SCHEMA, Ack, Answer, Code, ModelUse, Proof
from worker.control.fields import (
    DOCUMENT_MAX_BYTES,
    EPOCH,
    FLEET,
    MEMBERS_MAX,
    REASON_MAX_CHARS,
    SHA256,
    check_count,
    read_aliases,
    read_count,
    read_form,
    read_limits,
    read_names,
    read_number,
    read_rules,
    read_selector,
    read_split,
    read_text,
    read_texts,
)
from worker.control.messages import (
    DESIRED_SCHEMA,
    Action,
    DesiredState,
    Hold,
    Mode,
    ModelState,
    Phase,
    PinOrder,
    Rollout,
    frozen,
)
from worker.control.references import check_references
from worker.errors import ModelError, StateError
from worker.models.document import ABSENT, Reader, below

TIMEOUT_MAX_S = 604_800.0
_STATE_REQUIRED = ("schema", "fleet", "epoch", "generation", "default", "models")
_STATE_OPTIONAL = ("supersedes", "holds", "rollout", "written_by", "written_at_ms")
_MODEL_OPTIONAL = (
    "previous",
    "activated",
    "reload",
    "new_heads",
    "aliases",
    "pins",
    "rules",
    "split",
    "fallback_model",
    "limits",
)
_ROLLOUT_REQUIRED = ("id", "model", "version", "mode", "phase", "started_at_ms")
_ROLLOUT_OPTIONAL = (
    "timeout_s",
    "max_preparing",
    "quorum",
    "admitted",
    "reload",
    "new_heads",
    "reason",
)
_ACK_REQUIRED = ("schema", "fleet", "worker", "state", "epoch", "answer")
_ACK_NULLABLE = (
    "observed",
    "generation",
    "digest",
    "code",
    "reason",
    "prepared",
    "proof",
    "provider",
    "device",
    "lag",
)
_ACK_OPTIONAL = (
    *_ACK_NULLABLE,
    "labels",
    "models",
    "devices",
    "in_flight",
    "build",
    "sent_at_ms",
)
_USE_NULLABLE = ("active", "pinned", "state")
_USE_OPTIONAL = ("loaded", "pinned", "reload", "state")


def parse_state(data: bytes) -> DesiredState:
    """Read a desired state (`schemas/desired.v1`), in whatever order and spacing.

    Raises StateError (`state.invalid`): no JSON, or all fields that are wrong, one a line.
    """
    document = _load(data, "desired state")
    reader = Reader()
    state = _state(reader, document)
    check_references(reader, state)
    _finish(reader, "desired state")
    return state


def parse_ack(data: bytes) -> Ack:
    """Read a worker's answer (`schemas/ack.v1`).

    During an upgrade the workers of a fleet, and the commands that look at them, are of several
    releases. So members that this release does not know are passed over, a code that it does not
    know stays a text, and a proof that it does not know is none; what it knows must be right.
    Raises StateError (`state.invalid`).
    """
    document = _load(data, "answer")
    reader = Reader()
    ack = _ack(reader, document)
    _finish(reader, "answer")
    return ack


def read_acks(acks: Mapping[str, bytes]) -> tuple[dict[str, Ack], dict[str, str]]:
    """Return the answers that can be read, and of the others why they cannot; both by worker."""
    found: dict[str, Ack] = {}
    unreadable: dict[str, str] = {}
    for worker, data in sorted(acks.items()):
        try:
            found[worker] = parse_ack(data)
        except StateError as error:
            unreadable[worker] = str(error)
    return found, unreadable


def _load(data: bytes, what: str) -> Any:
    if len(data) > DOCUMENT_MAX_BYTES:
        raise StateError(
            f"{what}: has {len(data):,} bytes, may have at most {DOCUMENT_MAX_BYTES:,}"
        )
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StateError(f"{what}: not JSON: {error}") from error


def _finish(reader: Reader, what: str) -> None:
    try:
        reader.finish(what)
    except ModelError as error:
        raise StateError(str(error)) from None


def _state(reader: Reader, document: Any) -> DesiredState:
    members = reader.members(document, "", required=_STATE_REQUIRED, optional=_STATE_OPTIONAL)
    reader.choice(members["schema"], "schema", (DESIRED_SCHEMA,))
    models = read_names(reader, members["models"], "models", empty=False)
    holds = reader.items(members["holds"], "holds", empty=True)
    check_count(reader, holds, "holds")
    return DesiredState(
        fleet=read_form(reader, members["fleet"], "fleet", FLEET),
        epoch=read_form(reader, members["epoch"], "epoch", EPOCH),
        generation=read_count(reader, members["generation"], "generation", least=1),
        default=read_form(reader, members["default"], "default"),
        models=frozen(
            (name, _model(reader, model, below("models", name))) for name, model in models.items()
        ),
        supersedes=_supersedes(reader, members["supersedes"]),
        holds=tuple(_hold(reader, field, hold) for field, hold in holds),
        rollout=_rollout(reader, members["rollout"]),
        written_by=_maybe_empty(reader, members["written_by"], "written_by"),
        written_at_ms=read_count(reader, members["written_at_ms"], "written_at_ms"),
    )


def _model(reader: Reader, value: Any, field: str) -> ModelState:
    members = reader.members(
        value, field, required=("versions", "active"), optional=_MODEL_OPTIONAL
    )
    pins = reader.items(members["pins"], f"{field}.pins", empty=True)
    check_count(reader, pins, f"{field}.pins")
    return ModelState(
        versions=_versions(reader, members["versions"], f"{field}.versions"),
        active=read_form(reader, members["active"], f"{field}.active"),
        previous=read_form(reader, members["previous"], f"{field}.previous") or None,
        activated=read_count(reader, members["activated"], f"{field}.activated"),
        reload=read_count(reader, members["reload"], f"{field}.reload"),
        new_heads=reader.flag(members["new_heads"], f"{field}.new_heads"),
        aliases=read_aliases(reader, members["aliases"], f"{field}.aliases"),
        pins=tuple(_pin(reader, at, pin) for at, pin in pins),
        rules=read_rules(reader, members["rules"], f"{field}.rules"),
        split=read_split(reader, members["split"], f"{field}.split"),
        fallback_model=read_form(reader, members["fallback_model"], f"{field}.fallback_model")
        or None,
        limits=read_limits(reader, members["limits"], f"{field}.limits"),
    )


def _versions(reader: Reader, value: Any, field: str) -> Mapping[str, str | None]:
    versions = {}
    for version, digest in read_names(reader, value, field, empty=False).items():
        at = below(field, version)
        versions[version] = None if digest is None else read_form(reader, digest, at, SHA256)
    return frozen(versions)


def _pin(reader: Reader, field: str, value: Any) -> PinOrder:
    members = reader.members(value, field, required=("version",), optional=("workers", "strict"))
    return PinOrder(
        version=read_form(reader, members["version"], f"{field}.version"),
        workers=read_selector(reader, members["workers"], f"{field}.workers"),
        strict=reader.flag(members["strict"], f"{field}.strict", default=True),
    )


def _supersedes(reader: Reader, value: Any) -> tuple[str, ...]:
    items = reader.items(value, "supersedes", empty=True)
    check_count(reader, items, "supersedes")
    return tuple(read_form(reader, epoch, field, EPOCH) for field, epoch in items)


def _hold(reader: Reader, field: str, value: Any) -> Hold:
    members = reader.members(value, field, required=("action",), optional=("workers",))
    return Hold(
        action=reader.choice(members["action"], f"{field}.action", Action),
        workers=read_selector(reader, members["workers"], f"{field}.workers"),
    )


def _rollout(reader: Reader, value: Any) -> Rollout | None:
    if value is ABSENT:
        return None
    members = reader.members(
        value, "rollout", required=_ROLLOUT_REQUIRED, optional=_ROLLOUT_OPTIONAL
    )
    fields = {name: f"rollout.{name}" for name in members}
    items = reader.items(members["admitted"], fields["admitted"], empty=True)
    check_count(reader, items, fields["admitted"], MEMBERS_MAX)
    quorum = read_count(reader, members["quorum"], fields["quorum"], least=1, most=MEMBERS_MAX)
    return Rollout(
        id=read_text(reader, members["id"], fields["id"]),
        model=read_form(reader, members["model"], fields["model"]),
        version=read_form(reader, members["version"], fields["version"]),
        mode=reader.choice(members["mode"], fields["mode"], Mode),
        phase=reader.choice(members["phase"], fields["phase"], Phase),
        started_at_ms=read_count(reader, members["started_at_ms"], fields["started_at_ms"]),
        timeout_s=read_number(
            reader,
            members["timeout_s"],
            fields["timeout_s"],
            least=0.001,
            most=TIMEOUT_MAX_S,
            default=Rollout._field_defaults["timeout_s"],
        ),
        max_preparing=read_count(
            reader, members["max_preparing"], fields["max_preparing"], least=1, most=MEMBERS_MAX
        ),
        quorum=None if members["quorum"] is ABSENT else quorum,
        admitted=tuple(read_text(reader, worker, field) for field, worker in items),
        reload=read_count(reader, members["reload"], fields["reload"]),
        new_heads=reader.flag(members["new_heads"], fields["new_heads"]),
        reason=read_text(reader, members["reason"], fields["reason"], most=REASON_MAX_CHARS)
        or None,
    )


def _maybe_empty(reader: Reader, value: Any, field: str) -> str:
    return "" if value == "" else read_text(reader, value, field)


def _ack(reader: Reader, document: Any) -> Ack:
    given = reader.members(
        document, "", required=_ACK_REQUIRED, optional=_ACK_OPTIONAL, closed=False
    )
    members = _without_nulls(given, _ACK_NULLABLE)
    reader.choice(members["schema"], "schema", (ACK_SCHEMA,))
    models = reader.mapping(members["models"], "models", empty=True)
    answer = reader.choice(members["answer"], "answer", Answer)
    if answer is Answer.NACK:
        for name in ("code", "reason"):
            if members[name] is ABSENT:
                reader.wrong(name, "missing: a nack says why")

    def number(name: str, least: int) -> int | None:
        value = members[name]
        return None if value is ABSENT else read_count(reader, value, name, least=least)

    def text(name: str) -> str | None:
        return reader.text(members[name], name) or None

    epoch, code, proof = members["epoch"], text("code"), text("proof")
    return Ack(
        fleet=read_form(reader, members["fleet"], "fleet", FLEET),
        worker=read_text(reader, members["worker"], "worker"),
        state=text("state") or "",
        epoch="" if epoch == "" else read_form(reader, epoch, "epoch", EPOCH),
        observed=number("observed", 1),
        generation=number("generation", 1),
        digest=read_form(reader, members["digest"], "digest", SHA256) or None,
        answer=answer,
        code=next((known for known in Code if known == code), code),
        reason=text("reason"),
        prepared=text("prepared"),
        proof=next((known for known in Proof if known == proof), None),
        labels=read_texts(reader, members["labels"], "labels", empty=True),
        models=frozen(
            (name, _use(reader, use, below("models", name))) for name, use in models.items()
        ),
        provider=text("provider"),
        device=text("device"),
        devices=read_texts(reader, members["devices"], "devices", empty=True),
        lag=number("lag", 0),
        in_flight=read_count(reader, members["in_flight"], "in_flight"),
        build=_maybe_empty(reader, members["build"], "build"),
        sent_at_ms=read_count(reader, members["sent_at_ms"], "sent_at_ms"),
    )


def _use(reader: Reader, value: Any, field: str) -> ModelUse:
    given = reader.members(value, field, required=("active",), optional=_USE_OPTIONAL, closed=False)
    members = _without_nulls(given, _USE_NULLABLE)
    loaded = reader.items(members["loaded"], f"{field}.loaded", empty=True)
    return ModelUse(
        active=reader.text(members["active"], f"{field}.active") or None,
        loaded=tuple(reader.text(version, at) for at, version in loaded),
        pinned=reader.text(members["pinned"], f"{field}.pinned") or None,
        reload=read_count(reader, members["reload"], f"{field}.reload"),
        state=reader.text(members["state"], f"{field}.state") or None,
    )


def _without_nulls(members: Mapping[str, Any], nullable: Collection[str]) -> dict[str, Any]:
    """Read null as absent where it says the same."""
    return {
        name: ABSENT if value is None and name in nullable else value
        for name, value in members.items()
    }


def stored_names(data: bytes | None) -> tuple[int | None, str]:
    """Return generation and epoch that stand in what is stored, also where that is no state.

    As the compare-and-set (`write.lua`) reads them: to Lua 8.0 is the whole number 8.
    """
    try:
        document = orjson.loads(data or b"{}")
    except orjson.JSONDecodeError:
        return None, ""
    if not isinstance(document, dict):
        return None, ""
    generation, epoch = document.get("generation"), document.get("epoch")
    return _whole(generation), epoch if isinstance(epoch, str) else ""


def _whole(number: object) -> int | None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return int(number) if number >= 1 and number % 1 == 0 else None
