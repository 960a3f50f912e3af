"""Statistics of noisy pairs: medians, intervals, rates from stamps. Pure."""

import random
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

_RESAMPLES = 4000
_NEAREST = 4


class Timed(NamedTuple):
    """A value, and when it was measured."""

    at_s: float
    value: float


class Spread(NamedTuple):
    """The median of some values, a 95 % interval of it by resampling, and their range."""

    median: float
    low: float
    high: float
    least: float
    most: float
    runs: int


def beside(run: Timed, baselines: Sequence[Timed], *, nearest: int = _NEAREST) -> float:
    """Return a run over the median of the baseline runs nearest in time: the machine drifts."""
    near = sorted(baselines, key=lambda baseline: abs(baseline.at_s - run.at_s))[:nearest]
    return run.value / median(baseline.value for baseline in near)


def spread(values: Sequence[float], *, seed: int = 0) -> Spread:
    """Return the median and its bootstrap interval; the same values always give the same."""
    draw = random.Random(seed)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    low, high = medians[int(_RESAMPLES * 0.025)], medians[int(_RESAMPLES * 0.975)]
    return Spread(median(values), low, high, min(values), max(values), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of them lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def steady_rate(stamps_ms: Sequence[int]) -> float:
    """Return records a second between the first and the last of these stamps.

    Those of the first stamp only say when counting began: results come in groups, and a window
    that cuts through groups would count one too many or too few.
    """
    first, last = min(stamps_ms), max(stamps_ms)
    if first == last:
        raise ValueError("all results came in the same millisecond: the window is too short")
    return sum(stamp > first for stamp in stamps_ms) / (last - first) * 1e3
