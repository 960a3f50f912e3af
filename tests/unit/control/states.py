"""Desired states and answers for tests: a small one of each, and strategies for all valid ones."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from worker.control.answers import Ack, Answer, Code, ModelUse, Proof
from worker.control.messages import (
    Action,
    DesiredState,
    Hold,
    LiveLimits,
    Mode,
    ModelState,
    Phase,
    PinOrder,
    Rollout,
    Selector,
    frozen,
)
from worker.models.router import Match, Rule

DIGEST = "0123456789abcdef" * 4
MODELS = ("digits", "cats", "dogs")
VERSIONS = ("1", "2", "3.0rc1", "2026-11-25+build!1")
ALIASES = ("stable", "candidate")
WORKERS = ("w-1", "w-2", "w-3")


def state(**changes: Any) -> DesiredState:
    """Return generation 7 of a fleet that serves digits/1 and knows digits/2 too."""
    digits = ModelState(frozen({"1": DIGEST, "2": DIGEST}), "1")
    made = DesiredState("default", "e-1", 7, "digits", frozen({"digits": digits}))
    return made._replace(**changes)


def digits(**changes: Any) -> DesiredState:
    """Return the same state with members of its one model replaced."""
    made = state()
    return made.with_model("digits", made.models["digits"]._replace(**changes))


def ack(worker: str = "w-1", **changes: Any) -> Ack:
    """Return the answer of a worker that serves by generation 7."""
    made = Ack("default", worker, "serving", "e-1", 7, 7, DIGEST, Answer.ACK)
    return made._replace(**changes)


counts = st.integers(0, 2**53 - 1)
generations = st.integers(1, 2**53 - 1)
epochs = st.from_regex(r"[A-Za-z0-9-]{1,64}", fullmatch=True)
texts = st.text(min_size=1, max_size=20)
labels = st.dictionaries(texts, st.text(max_size=8), min_size=1, max_size=2).map(frozen)
selectors = (
    st.just(Selector())
    | (texts | st.sampled_from(WORKERS)).map(Selector)
    | labels.map(lambda names: Selector(None, names))
)
lower = texts.filter(lambda text: not any("A" <= char <= "Z" for char in text))
headers = st.dictionaries(lower, st.text(max_size=8), min_size=1, max_size=2).map(frozen)
topics = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
matches = topics.map(Match) | st.builds(
    Match, topic=st.none() | topics, tags=labels, headers=headers
)
heads = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,10}", fullmatch=True)
scores = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def limits(draw: st.DrawFn) -> LiveLimits:
    least, most = sorted(draw(st.tuples(st.integers(1, 4096), st.integers(1, 4096))))
    return LiveLimits(
        max_size=draw(st.sampled_from([None, most])),
        min_size=draw(st.sampled_from([None, least])),
        max_wait_ms=draw(st.none() | st.floats(0, 60_000)),
        thresholds=frozen(draw(st.dictionaries(heads, scores, max_size=2))),
        slo_ms=draw(st.none() | st.floats(1, 60_000)),
    )


@st.composite
def model_states(draw: st.DrawFn, *, others: tuple[str, ...] = ()) -> ModelState:
    """Valid states of a model that may fall back on one of `others`."""
    names = draw(st.lists(st.sampled_from(VERSIONS), min_size=1, unique=True))
    versions = st.sampled_from(names)
    aliases: Mapping[str, str] = draw(st.dictionaries(st.sampled_from(ALIASES), versions))
    meant = st.sampled_from([*names, *aliases])
    rule_names = draw(st.lists(st.sampled_from(["premium", "b", "nightly"]), unique=True))
    return ModelState(
        versions=frozen((name, draw(st.sampled_from([None, DIGEST]))) for name in names),
        active=draw(versions),
        previous=draw(st.none() | versions),
        activated=draw(counts),
        reload=draw(counts),
        new_heads=draw(st.booleans()),
        aliases=frozen(aliases),
        pins=tuple(
            draw(st.lists(st.builds(PinOrder, versions, selectors, st.booleans()), max_size=2))
        ),
        rules=tuple(Rule(name, draw(matches), draw(meant)) for name in rule_names),
        split=frozen(draw(st.dictionaries(meant, st.integers(1, 1_000_000), max_size=2))),
        fallback_model=draw(st.sampled_from([None, *others])),
        limits=draw(limits()),
    )


@st.composite
def desired_states(draw: st.DrawFn) -> DesiredState:
    """Every valid state: `parse_state(encode_state(state)) == state`."""
    names = draw(st.lists(st.sampled_from(MODELS), min_size=1, unique=True))
    models = {
        name: draw(model_states(others=tuple(names[:index]))) for index, name in enumerate(names)
    }
    return DesiredState(
        fleet=draw(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)),
        epoch=draw(epochs),
        generation=draw(generations),
        default=draw(st.sampled_from(names)),
        models=frozen(models),
        supersedes=tuple(draw(st.lists(epochs, max_size=2))),
        holds=tuple(
            draw(st.lists(st.builds(Hold, st.sampled_from(Action), selectors), max_size=2))
        ),
        rollout=draw(st.none() | rollouts(models)),
        written_by=draw(st.text(max_size=20)),
        written_at_ms=draw(counts),
    )


@st.composite
def rollouts(draw: st.DrawFn, models: Mapping[str, ModelState]) -> Rollout:
    """Rollouts, at any point of their lives, of a version that one of `models` has."""
    model = draw(st.sampled_from(sorted(models)))
    return Rollout(
        id=draw(texts),
        model=model,
        version=draw(st.sampled_from(sorted(models[model].versions))),
        mode=draw(st.sampled_from(Mode)),
        phase=draw(st.sampled_from(Phase)),
        started_at_ms=draw(counts),
        timeout_s=draw(st.floats(0.001, 604_800)),
        max_preparing=draw(st.integers(1, 10_000)),
        quorum=draw(st.none() | st.integers(1, 10_000)),
        admitted=tuple(draw(st.lists(st.sampled_from(WORKERS), unique=True))),
        reload=draw(counts),
        new_heads=draw(st.booleans()),
        reason=draw(st.none() | texts),
    )


model_uses = st.builds(
    ModelUse,
    active=st.none() | texts,
    loaded=st.lists(texts, max_size=3).map(tuple),
    pinned=st.none() | texts,
    reload=counts,
    state=st.sampled_from([None, "serving", "suspecting", "down"]),
)


@st.composite
def acks(draw: st.DrawFn) -> Ack:
    """Every valid answer: `parse_ack(encode_ack(ack)) == ack`."""
    answer = draw(st.sampled_from(Answer))
    code, reason = st.sampled_from(Code), texts
    may = st.nothing() if answer is Answer.NACK else st.none()
    return Ack(
        fleet=draw(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)),
        worker=draw(texts),
        state=draw(st.sampled_from(["starting", "serving", "paused", "draining", "stopping"])),
        epoch=draw(st.just("") | epochs),
        observed=draw(st.none() | generations),
        generation=draw(st.none() | generations),
        digest=draw(st.sampled_from([None, DIGEST])),
        answer=answer,
        code=draw(may | code),
        reason=draw(may | reason),
        prepared=draw(st.none() | texts),
        proof=draw(st.none() | st.sampled_from(Proof)),
        labels=draw(st.just(frozen({})) | labels),
        devices=draw(st.just(frozen({})) | labels),
        models=frozen(draw(st.dictionaries(texts, model_uses, max_size=2))),
        provider=draw(st.none() | texts),
        device=draw(st.none() | texts),
        lag=draw(st.none() | counts),
        in_flight=draw(counts),
        build=draw(st.text(max_size=8)),
        sent_at_ms=draw(counts),
    )
