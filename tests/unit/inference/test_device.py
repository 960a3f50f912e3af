"""A device that several engines share: real waits, a clock in the test's hand."""

import asyncio
import subprocess
import sys

import pytest

from worker.errors import DeviceError
from worker.inference.device import Device
from worker.inference.ladder import FIRST_PAUSE_S, MAX_FAULTS, DeviceState


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lost() -> tuple[Device, Clock]:
    clock = Clock()
    device = Device("GPU-1", to_cpu=True, clock_s=clock)
    for _ in range(MAX_FAULTS):
        device.failed("CUDA failure 700")
    return device, clock


async def test_engines_may_start_on_a_device_in_use_at_any_time() -> None:
    device = Device("GPU-1", to_cpu=True)
    await asyncio.gather(device.admitted(), device.admitted())
    device.failed("CUDA failure 700")
    assert (device.state, device.why) == (DeviceState.RESTARTING, "CUDA failure 700")
    await device.admitted()
    device.loaded()
    assert (device.state, device.why) == (DeviceState.GPU_OK, None)


async def test_of_those_who_wait_one_tries_and_the_others_follow_when_it_has_loaded() -> None:
    device, clock = lost()
    clock.now_s += FIRST_PAUSE_S
    waiting = [asyncio.create_task(device.admitted()) for _ in range(3)]
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]
    assert device.state is DeviceState.PROBING
    device.loaded()
    await asyncio.gather(*waiting)


async def test_when_a_trial_is_given_up_another_takes_its_turn() -> None:
    device, clock = lost()
    clock.now_s += FIRST_PAUSE_S
    await device.admitted()
    second = asyncio.create_task(device.admitted())
    await asyncio.sleep(0)
    assert not second.done()
    device.given_up()
    await second
    assert device.state is DeviceState.PROBING


async def test_after_a_trial_that_failed_all_wait_for_the_next_one() -> None:
    device, clock = lost()
    clock.now_s += FIRST_PAUSE_S
    await device.admitted()
    second = asyncio.create_task(device.admitted())
    await asyncio.sleep(0)
    device.failed("no device")
    await asyncio.sleep(0)
    assert (device.state, device.usable) == (DeviceState.CPU_FALLBACK, False)
    assert not second.done()
    second.cancel()


async def test_a_device_is_tried_when_its_pause_is_over() -> None:
    device, clock = lost()
    clock.now_s += FIRST_PAUSE_S - 0.01
    waiting = asyncio.create_task(device.admitted())
    await asyncio.sleep(0)
    clock.now_s += 1
    await asyncio.wait_for(waiting, 5)


def test_every_change_is_told_once() -> None:
    told: list[DeviceState] = []
    device = Device("GPU-1", to_cpu=True)
    device.listeners.add(lambda: told.append(device.state))
    device.loaded()
    for _ in range(MAX_FAULTS):
        device.failed("sticky")
    assert told == [DeviceState.RESTARTING, DeviceState.CPU_FALLBACK]


async def test_a_driver_that_has_not_been_heard_of_late_is_asked_before_a_load() -> None:
    clock, answers = Clock(), iter([None, "it hangs", None])
    device = Device("GPU-1", to_cpu=True, clock_s=clock, ask=lambda: next(answers))
    await device.answers()  # nobody is asked: it was found a moment ago
    clock.now_s += 60
    await device.answers()
    await device.answers()
    clock.now_s += 60
    with pytest.raises(DeviceError, match="it hangs"):
        await device.answers()
    await device.answers()
    assert next(answers, "all were asked for") == "all were asked for"


async def test_an_error_while_the_driver_is_asked_reaches_who_asked() -> None:
    def ask() -> str | None:
        raise MemoryError("no thread for its output")

    clock = Clock()
    device = Device("GPU-1", to_cpu=True, clock_s=clock, ask=ask)
    clock.now_s += 60
    with pytest.raises(MemoryError, match="no thread"):
        await device.answers()


_ENDS = """
import asyncio, threading
from worker.inference.device import Device

async def main():
    asked = threading.Event()

    def ask():
        asked.set()
        threading.Event().wait()

    clock = iter([0.0, 60.0])
    device = Device("GPU-1", to_cpu=True, clock_s=lambda: next(clock), ask=ask)
    asking = asyncio.create_task(device.answers())
    while not asked.is_set():
        await asyncio.sleep(0.001)
    asking.cancel()

asyncio.run(main())
"""


def test_a_worker_ends_while_a_driver_that_hangs_is_asked() -> None:
    """One that waits for the answer never ends."""
    subprocess.run([sys.executable, "-c", _ENDS], check=True, timeout=60)
