"""What there is to say of the engines of one version."""

from typing import NamedTuple


class Status(NamedTuple):
    """What there is to say of a version's engine."""

    state: str
    """`loading`, `serving`, `suspecting` (records run alone), `down` (waits before the next)."""
    pid: int | None
    sha256: str | None
    """Of the model's weights."""
    provider: str | None
    device: str | None
    lanes: int
    max_size: int
    in_flight: int
    restarts: int
    convicted: int
    reason: str | None
    """Why it is down, or why the last engine ended."""
    lost: str | None = None
    """Why no device can serve it, nor the CPU for them."""
