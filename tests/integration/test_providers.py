"""Execution providers with nothing scripted: a worker's process, and OpenVINO's ONNX Runtime.

The GPU wheel's own silences are in `tests/unit/engine/test_session.py`.
"""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import orjson
import pytest

from tests.conftest import missing
from tests.contract.engines import Engine, load
from tests.unit.engine import graphs
from worker.engine.devices import cuda_problem
from worker.engine.providers import CPU, OPENVINO
from worker.protocol.messages import Done, Load, Loaded, LoadFailed

OPENVINO_WHEEL = "onnxruntime-openvino==1.24.1"
ENGINE_NEEDS = ("numpy", "opencv-python-headless", "orjson", "pyyaml")
INSTALL_S = 500.0
BRIGHT, DARK = graphs.png(graphs.BRIGHT), graphs.png(graphs.DARK)


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a usable GPU")
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DARKROOM_ENGINE__POLICY", "require-gpu", "engine.policy is require-gpu, but "),
        ("ORT_EXECUTION_PROVIDER", "CUDA", "engine.policy is require-cuda, but "),
    ],
)
def test_a_worker_that_requires_a_gpu_ends_without_one_and_says_why(
    tmp_path: Path, variable: str, value: str, said: str
) -> None:
    environ = {**os.environ, "DARKROOM_HTTP__PORT": "0", variable: value}
    command = [sys.executable, "-m", "worker", "run"]
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    ended = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=False, text=True
    )
    assert ended.returncode == 4
    assert said in ended.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment whose one ONNX Runtime is OpenVINO's, with an engine's needs."""
    folder = tmp_path_factory.mktemp("openvino")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    needs = [f"{name}=={version(name)}" for name in ENGINE_NEEDS]
    installed = subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            OPENVINO_WHEEL,
            *needs,
        ],
        capture_output=True,
        timeout=INSTALL_S,
        check=False,
        text=True,
    )
    if installed.returncode:
        missing(f"{OPENVINO_WHEEL} cannot be installed: {installed.stderr.strip()[-300:]}")
    return python


@pytest.fixture
def asked(tmp_path: Path) -> Load:
    return load(tmp_path / "1", graphs.version(tmp_path / "1"))


@pytest.fixture
def engine(openvino: str) -> Iterator[Engine]:
    with Engine("process", openvino) as engine:
        yield engine


@pytest.mark.long
@pytest.mark.timeout(INSTALL_S + 60)
@pytest.mark.parametrize("policy", ["prefer-gpu", "require-openvino"])
def test_a_real_engine_serves_on_openvino(engine: Engine, asked: Load, policy: str) -> None:
    answer = engine.load(asked._replace(policy=policy))
    assert isinstance(answer, Loaded), answer
    assert (answer.provider, answer.fallback) == (OPENVINO, False)
    assert answer.signature["nodes"].keys() == {OPENVINO}
    engine.submit([BRIGHT, b"", DARK] * 10)
    ends = engine.outcomes(30)
    served = [end for end, _ in ends.values() if isinstance(end, Done)]
    assert len(served) == 20
    best = {orjson.loads(end.predictions)["light"][0]["label"] for end in served}
    assert best == {"bright", "dark"}
    assert engine.bye() == {}
    assert engine.ended() == 0


@pytest.mark.long
@pytest.mark.timeout(INSTALL_S + 60)
def test_a_device_that_openvino_does_not_have_never_ends_on_the_cpu_in_silence(
    engine: Engine, openvino: str, asked: Load
) -> None:
    gpu = {OPENVINO: {"device_type": "GPU"}}
    refused = engine.load(asked._replace(policy="require-openvino", provider_options=gpu))
    assert isinstance(refused, LoadFailed)
    assert refused.kind == "device"
    assert f"{OPENVINO} was asked for and ONNX Runtime took {CPU}" in refused.message
    with Engine("process", openvino) as other:
        fallen = other.load(asked._replace(policy="prefer-gpu", provider_options=gpu))
        assert isinstance(fallen, Loaded)
        assert (fallen.provider, fallen.fallback) == (CPU, True)
        assert "was asked for" in fallen.signature["refused"][0]


@pytest.mark.long
@pytest.mark.timeout(INSTALL_S + 60)
@pytest.mark.parametrize("policy", ["require-gpu", "require-cuda"])
def test_openvino_is_no_gpu(engine: Engine, asked: Load, policy: str) -> None:
    answer = engine.load(asked._replace(policy=policy))
    assert isinstance(answer, LoadFailed)
    assert answer.message == (
        f"engine.policy is {policy}, but the onnxruntime installed here was built without CUDA "
        "(install onnxruntime-gpu)"
    )
