import pytest

from worker.engine.devices import cpu_name, cuda_problem
from worker.engine.providers import CPU, CUDA, Choice, choices
from worker.errors import DeviceError

ALL = ["TensorrtExecutionProvider", CUDA, CPU]


@pytest.mark.parametrize(
    ("policy", "available", "problem", "expected"),
    [
        ("cpu", ALL, None, (Choice(CPU, fallback=False),)),
        ("prefer-gpu", ALL, None, (Choice(CUDA, fallback=False), Choice(CPU, fallback=True))),
        ("prefer-gpu", ALL, "no driver", (Choice(CPU, fallback=False),)),
        ("prefer-gpu", [CPU], None, (Choice(CPU, fallback=False),)),
        ("require-gpu", ALL, None, (Choice(CUDA, fallback=False),)),
    ],
)
def test_the_policy_chooses_providers(
    policy: str, available: list[str], problem: str | None, expected: tuple[Choice, ...]
) -> None:
    assert choices(policy, available=available, cuda_problem=lambda: problem) == expected


@pytest.mark.parametrize(
    ("policy", "available", "problem", "message"),
    [
        ("require-gpu", ALL, "no driver", "engine.policy is require-gpu, but no driver"),
        ("require-gpu", [CPU], None, "built without CUDA"),
        ("fastest", ALL, None, "engine.policy: 'fastest' is none of"),
    ],
)
def test_a_policy_that_cannot_be_met_is_refused_by_name(
    policy: str, available: list[str], problem: str | None, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        choices(policy, available=available, cuda_problem=lambda: problem)


def test_the_driver_is_asked_without_raising() -> None:
    problem = cuda_problem()
    assert problem is None or "driver" in problem
    assert cpu_name().startswith("cpu-")
