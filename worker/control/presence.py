"""Whether the members that Redis names are all that live: pure, the clock is given.

Redis may have lost them (emptied, an old backup, away for longer than an answer holds). Whoever
lives answers again within two beats; until then nothing may be decided by who is there.
"""

from collections.abc import Mapping

from worker.control.answers import Ack


class Presence:
    """What one worker has seen of the others."""

    def __init__(self, *, holds_s: float, beat_s: float) -> None:
        """Take how long an answer holds, and how often a live worker gives one."""
        self._early_s = holds_s - beat_s
        """Who goes within this time of an answer did not expire: a look may come a beat late."""
        self._returns_s = 2 * beat_s
        self._heard: dict[str, tuple[Ack, float]] = {}
        self._doubted_until_s = 0.0

    def doubt(self, now_s: float) -> None:
        """Note that Redis did not answer, or has lost something."""
        self._doubted_until_s = now_s + self._returns_s

    def whole(self, acks: Mapping[str, Ack], now_s: float) -> bool:
        """Say whether these are all that live, as far as one can know."""
        for worker in self._heard.keys() - acks.keys():
            ack, heard_s = self._heard.pop(worker)
            if ack.state != "stopping" and now_s - heard_s < self._early_s:
                self.doubt(now_s)
        for worker, ack in acks.items():
            before = self._heard.get(worker)
            if before is None or before[0] != ack:
                self._heard[worker] = (ack, now_s)
        return now_s >= self._doubted_until_s
