"""The ledger check: what became of every record, after whatever was done to the workers.

It knows what was acknowledged and what was published, nothing of workers.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.broker import Published, Sent, Topics, read_all, wait_committed
from tests.contract.oracle import problems

SAME = 1e-4
"""How far scores of a repeat may be from those of the first: batches differ."""
SCHEMA_SAMPLE = 50


class Account(NamedTuple):
    """All results and dead letters of a test, of which everything that must hold holds."""

    results: Sequence[dict[str, Any]]
    letters: Sequence[Published]
    repeats: int


def account(
    topics: Topics,
    sent: Iterable[Sent],
    *,
    doomed: Mapping[bytes, str],
    repeats_max: int = 0,
) -> Account:
    """Hold output and dead letters to what was sent.

    Nothing is lost and nothing else is there (L1); every id comes once but for `repeats_max`
    repeats, which say the same (L2); first occurrences keep the order of their partition (L3); all
    of it is committed (L4). `doomed`: key -> reason, of the records that nobody can serve.
    """
    by_id = _in_the_topic(topics, sent)
    outputs = read_all(topics, topics.output)
    letters = read_all(topics, topics.dead)
    repeats = hold(by_id, outputs, letters, doomed=doomed, repeats_max=repeats_max)
    results = [published.json for published in outputs]
    for result in (*results[:SCHEMA_SAMPLE], *(r for r in results if r["status"] != "ok")):
        assert not problems("result", result), (problems("result", result), result)
    wait_committed(topics)
    return Account(results, letters, repeats)


def hold(
    by_id: Mapping[str, Published],
    outputs: Sequence[Published],
    letters: Sequence[Published],
    *,
    doomed: Mapping[bytes, str],
    repeats_max: int,
) -> int:
    """Hold what was published (L1 to L3) to the records, by id; return how many came again."""
    results = [published.json for published in outputs]
    _nothing_lost(by_id, results)
    repeats = _repeats_agree(results)
    assert repeats <= repeats_max, f"{repeats} repeats, at most {repeats_max} were in flight"
    _in_order(outputs)
    _statuses(by_id, results, doomed)
    _letters(by_id, letters, doomed, repeats_max)
    return repeats


def _in_the_topic(topics: Topics, sent: Iterable[Sent]) -> dict[str, Published]:
    """Return the records of the input topic by id; all that was acknowledged is among them."""
    records = read_all(topics, topics.input)
    there = sorted((record.partition, record.key or b"") for record in records)
    acknowledged = sorted((record.partition, record.key) for record in sent)
    assert there == acknowledged, "the input topic does not hold what was acknowledged, each once"
    return {
        f"{topics.input}/{record.partition}/{record.offset}@{record.timestamp_ms}": record
        for record in records
    }


def _nothing_lost(by_id: Mapping[str, Published], results: Sequence[dict[str, Any]]) -> None:
    there = {result["id"] for result in results}
    lost, strange = by_id.keys() - there, there - by_id.keys()
    seen = f"{len(strange)} results of what nobody sent: {sorted(strange)[:10]}"
    assert not lost, f"{len(lost)} of {len(by_id)} without result: {sorted(lost)[:10]}; {seen}"
    assert not strange, seen


def _repeats_agree(results: Sequence[dict[str, Any]]) -> int:
    """Count the results that came again; each says what the first one said."""
    first: dict[str, dict[str, Any]] = {}
    repeats = 0
    for result in results:
        before = first.setdefault(result["id"], result)
        if before is result:
            continue
        repeats += 1
        for field in ("status", "source", "model", "image", "reason"):
            assert result.get(field) == before.get(field), (field, before, result)
        assert same_predictions(result["predictions"], before["predictions"]), (before, result)
    return repeats


def same_predictions(one: Any, two: Any, tolerance: float = SAME) -> bool:
    """Whether two predictions say the same, numbers within the tolerance."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(
            same_predictions(one[key], two[key], tolerance) for key in one
        )
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(
            same_predictions(a, b, tolerance) for a, b in zip(one, two, strict=True)
        )
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= tolerance
    return bool(one == two)


def _in_order(outputs: Sequence[Published]) -> None:
    seen: set[str] = set()
    last: dict[tuple[int, str], tuple[int, int]] = {}
    homes: dict[int, set[int]] = defaultdict(set)
    count = 1 + max((published.partition for published in outputs), default=0)
    for published in outputs:
        result = published.json
        source = result["source"]
        homes[source["partition"]].add(published.partition)
        if result["id"] in seen:
            continue
        seen.add(result["id"])
        lane = (source["partition"], source["topic"])
        before = last.get(lane, (-1, -1))
        assert source["offset"] > before[0], (
            f"partition {lane[0]}: source offset {source['offset']} (output {published.offset}) "
            f"stands behind {before[0]} (output {before[1]})"
        )
        last[lane] = (source["offset"], published.offset)
    for source_partition, where in homes.items():
        assert where == {source_partition % count}, f"partition {source_partition} went to {where}"


def _statuses(
    by_id: Mapping[str, Published], results: Sequence[dict[str, Any]], doomed: Mapping[bytes, str]
) -> None:
    for result in results:
        reason = doomed.get(by_id[result["id"]].key or b"")
        said = (result["status"], result.get("reason"))
        assert said == (("ok", None) if reason is None else ("failed", reason)), result


def _letters(
    by_id: Mapping[str, Published],
    letters: Sequence[Published],
    doomed: Mapping[bytes, str],
    repeats_max: int,
) -> None:
    planned = {identity for identity, record in by_id.items() if record.key in doomed}
    found = Counter(letter.header("darkroom-id") or "" for letter in letters)
    assert found.keys() == planned, f"dead letters not as planned: {found.keys() ^ planned}"
    assert found.total() - len(found) <= repeats_max, f"repeated dead letters: {found}"
    for letter in letters:
        record = by_id[letter.header("darkroom-id") or ""]
        assert (letter.key, letter.value) == (record.key, record.value)
        assert letter.headers[: len(record.headers)] == record.headers
        assert letter.timestamp_ms == record.timestamp_ms
        assert letter.header("darkroom-reason") == doomed[record.key or b""]
