import pytest

from worker.control.answers import Ack, Answer, better_off

OTHERS = {"w-2": {"GPU-2": "gpu_ok"}, "w-3": {}, "w-4": {"GPU-4": "suspect"}}


def ack(worker: str, devices: dict[str, str]) -> Ack:
    return Ack("f", worker, "serving", "e", 1, 1, "d", Answer.ACK, devices=devices)


@pytest.mark.parametrize(
    ("devices", "others"),
    [
        ({}, ()),
        ({"GPU-1": "gpu_ok"}, ()),
        ({"GPU-1": "restarting"}, ()),
        ({"GPU-1": "cpu_fallback"}, ("w-2",)),
        ({"GPU-1": "cpu_fallback", "GPU-9": "probing"}, ("w-2",)),
        ({"GPU-1": "cpu_fallback", "GPU-9": "gpu_ok"}, ()),
    ],
)
def test_others_are_better_off_when_they_have_a_gpu_and_this_worker_lost_all_of_its_own(
    devices: dict[str, str], others: tuple[str, ...]
) -> None:
    fleet = {worker: ack(worker, has) for worker, has in OTHERS.items()}
    assert better_off(ack("w-1", devices), fleet) == others
