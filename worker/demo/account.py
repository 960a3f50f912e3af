"""What came of the demo's records: pure, from what was sent and what was read back."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from worker.demo.pictures import pictures


class Sent(NamedTuple):
    """What is published under one key; `label` is None for what nobody could serve."""

    key: str
    label: str | None
    value: bytes


class Swap(NamedTuple):
    """The change of versions while records were served."""

    model: str
    before: str
    after: str
    generation: int
    seconds: float
    """From the command until every worker had said that it serves the new version."""
    first_after: str
    """Key of the first record that was sent when that was over."""


class Report(NamedTuple):
    sent: int
    results: int
    dead_letters: int
    lost: int
    duplicated: int
    out_of_order: int
    wrong_version: int
    """Results of a version that was not allowed when their record came."""
    accuracy: float
    accuracy_before: float
    """Of what the version before the swap served."""
    accuracy_after: float
    per_second: float
    age_ms: Mapping[str, float]
    swap: Swap

    @property
    def whole(self) -> bool:
        """Nothing was lost, came twice, out of order or from a wrong version."""
        return not (self.lost or self.duplicated or self.out_of_order or self.wrong_version)


Result = Mapping[str, Any]
"""A result as it was published, with its key."""


def messages(count: int) -> list[Sent]:
    """Return `count` pictures, the pack over and over, with three that nobody can serve."""
    pack = pictures()
    half = pack[0].png[: len(pack[0].png) // 2]
    made = [
        Sent(f"{number:06d}", pack[number % len(pack)].label, pack[number % len(pack)].png)
        for number in range(count)
    ]
    for quarter, value in enumerate((b"", b"this is no picture", half), start=1):
        number = count * quarter // 4
        made[number] = Sent(f"{number:06d}", None, value)
    return made


def account(
    wanted: Sequence[Sent], results: Sequence[Result], letters: int, swap: Swap, *, seconds: float
) -> Report:
    """Hold the results, in the order in which they were published, to what was sent."""
    labels = {sent.key: sent.label for sent in wanted}
    occurred: dict[str, Result] = {}
    for result in results:
        occurred.setdefault(result["id"], result)
    first = list(occurred.values())
    right: Counter[str] = Counter()
    served: Counter[str] = Counter()
    for result in results:
        if result["status"] == "ok":
            version = result["model"]["version"]
            served[version] += 1
            right[version] += is_right(result, labels)
    ages = sorted(float(result["age_ms"]) for result in results)
    return Report(
        sent=len(wanted),
        results=len(results),
        dead_letters=letters,
        lost=len(labels.keys() - {result["key"] for result in results}),
        duplicated=len(results) - len(first),
        out_of_order=_out_of_order(first),
        wrong_version=_wrong_version(first, swap),
        accuracy=_share(right.total(), served.total()),
        accuracy_before=_share(right[swap.before], served[swap.before]),
        accuracy_after=_share(right[swap.after], served[swap.after]),
        per_second=round(len(results) / seconds, 1),
        age_ms={"p50": _percentile(ages, 0.50), "p99": _percentile(ages, 0.99)},
        swap=swap,
    )


def is_right(result: Result, labels: Mapping[str, str | None]) -> bool:
    """Whether a served record's digit was read right."""
    best = result["predictions"]["digit"][0]["label"]
    return bool(best == labels[result["key"]])


def _out_of_order(first: Sequence[Result]) -> int:
    last: dict[int, int] = {}
    count = 0
    for result in first:
        source = result["source"]
        count += source["offset"] < last.get(source["partition"], -1)
        last[source["partition"]] = source["offset"]
    return count


def _wrong_version(first: Sequence[Result], swap: Swap) -> int:
    """Count results of neither version, of the old one after the new one, or too late of the old.

    Within a partition nothing of the old version follows the new one, and nothing that was sent
    when the swap was over is of the old one. The new one says the generation that brought it.
    """
    switched: set[int] = set()
    count = 0
    for result in first:
        if result["status"] != "ok":
            continue
        partition = result["source"]["partition"]
        said = (result["model"]["version"], result["generation"])
        if said == (swap.after, swap.generation):
            switched.add(partition)
        else:
            late = partition in switched or result["key"] >= swap.first_after
            count += late or said != (swap.before, None)
    return count


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _percentile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) if ordered else 0.0
