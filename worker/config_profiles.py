"""What `batch.profile` stands for: named sets of bounds, for what the user does not set."""

from collections.abc import Mapping
from typing import Any

AUTO_MAX_SIZE = {"latency": 64, "balanced": 128, "throughput": 512}
"""Up to where `batch.max_size: auto` looks for the best size."""

_FILLED: Mapping[str, Mapping[str, float]] = {
    "latency": {"max_wait_ms": 1.0, "slo_ms": 100.0},
    "balanced": {"max_wait_ms": 5.0, "slo_ms": 250.0},
    "throughput": {"max_wait_ms": 20.0, "slo_ms": 500.0, "max_bytes": 268_435_456},
}


def filled_by(profile: Any) -> Mapping[str, float]:
    """Return settings of `batch` and their values; none for what is no profile."""
    return _FILLED.get(profile, {}) if isinstance(profile, str) else {}
