"""What becomes of a device that fails: a pure state machine, the clock given with each call.

An engine that its device ended is started again there, after its back-off. After several faults
in a row of minutes the device is out of use: now and then one engine is tried on it (half open,
as a breaker), and when that proves itself on its golden samples, the device is back.
It must not know engines, nor who serves meanwhile.
"""

from collections import deque
from enum import StrEnum
from math import inf

MAX_FAULTS = 3
WINDOW_S = 600.0
"""So many faults within so long put a device out of use."""
FIRST_PAUSE_S = 60.0
LAST_PAUSE_S = 600.0
"""Until the next trial: doubled by each that fails, and by falling out again within WINDOW_S."""


class DeviceState(StrEnum):
    """What a device is good for."""

    GPU_OK = "gpu_ok"
    """Engines run on it."""
    SUSPECT = "suspect"
    """What it computes is in doubt: a new engine must prove it on the golden samples."""
    RESTARTING = "restarting"
    """It ended an engine, or let none load; the next one is on its way."""
    CPU_FALLBACK = "cpu_fallback"
    """Out of use. The CPU serves where no other device does."""
    PROBING = "probing"
    """An engine is tried on it; where the CPU may not serve, also the pauses between trials."""


class Ladder:
    """One device. `to_cpu`: the CPU may serve for it."""

    def __init__(self, *, to_cpu: bool) -> None:
        self.state = DeviceState.GPU_OK
        self._out = DeviceState.CPU_FALLBACK if to_cpu else DeviceState.PROBING
        self._faults_s: deque[float] = deque()
        self._due_s: float | None = None
        """When it may be tried; None: it is in use."""
        self._trying = False
        self._pause_s = FIRST_PAUSE_S
        self._back_s = -inf

    @property
    def usable(self) -> bool:
        """Engines may be started on it without a trial."""
        return self._due_s is None

    def wait_s(self, now_s: float) -> float:
        """Return how long until an engine may be started: infinite while another is tried."""
        if self._due_s is None:
            return 0.0
        return inf if self._trying else max(0.0, self._due_s - now_s)

    def starting(self) -> None:
        """Tell that an engine is being started on it; out of use, that is the one trial."""
        if self._due_s is not None:
            self._trying = True
            self.state = DeviceState.PROBING

    def given_up(self) -> None:
        """Tell that the start was given up for other reasons: another may try."""
        if self._trying:
            self._trying = False
            self.state = self._out

    def loaded(self, now_s: float) -> None:
        """Tell that an engine proved itself on it."""
        if self._trying:
            self._faults_s.clear()
            self._due_s, self._back_s = None, now_s
            self._trying = False
        if self._due_s is None:
            self.state = DeviceState.GPU_OK

    def failed(self, now_s: float, *, suspect: bool = False) -> None:
        """Tell that it ended an engine or let none load; `suspect`: what it computed is in doubt.

        Out of use only the trial counts: other engines that it had end one after the other.
        """
        if self._due_s is not None:
            if self._trying:
                self._leave(now_s, min(LAST_PAUSE_S, 2 * self._pause_s))
            return
        self._faults_s.append(now_s)
        while self._faults_s[0] <= now_s - WINDOW_S:
            self._faults_s.popleft()
        if len(self._faults_s) >= MAX_FAULTS:
            again = now_s - self._back_s < WINDOW_S
            self._leave(now_s, min(LAST_PAUSE_S, 2 * self._pause_s) if again else FIRST_PAUSE_S)
        else:
            self.state = DeviceState.SUSPECT if suspect else DeviceState.RESTARTING

    def _leave(self, now_s: float, pause_s: float) -> None:
        self._trying = False
        self._pause_s = pause_s
        self._due_s = now_s + pause_s
        self.state = self._out
