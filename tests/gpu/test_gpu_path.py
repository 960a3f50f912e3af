"""What must be true of the path of a GPU on a GPU; tests/unit/engine/test_staging.py has the rest.

`pytest -m gpu tests/gpu`. Figures are benchmarks/gpu.py's.
"""

import os
import signal
from pathlib import Path

import numpy as np
import orjson
import pytest

from tests.contract.engines import LIMITS, Engine, load
from tests.unit.engine import graphs
from worker.engine.devices import cuda_device, cuda_problem
from worker.engine.loader import load_model
from worker.protocol.messages import Done, Load, Loaded
from worker.protocol.page import RUN_LANES

pytestmark = pytest.mark.gpu

BRIGHT, DARK = graphs.png(graphs.BRIGHT), graphs.png(graphs.DARK)


@pytest.fixture
def asked(tmp_path: Path) -> Load:
    if problem := cuda_problem():
        pytest.skip(problem)
    sha256 = graphs.version(tmp_path / "1")
    limits = LIMITS._replace(max_size=32)
    kept = str(tmp_path / "kept")
    return load(tmp_path / "1", sha256, policy="require-gpu", artifacts=kept, limits=limits)


def test_a_gpu_is_staged_by_itself_and_says_what_the_cpu_says(asked: Load) -> None:
    gpu, cpu = load_model(asked), load_model(asked._replace(policy="cpu"))
    assert gpu.session.stamp.provider == "CUDAExecutionProvider"
    assert (gpu.staging, cpu.staging) == ("bound, folded", "no")
    for size in (1, 3, 32):
        assert gpu.session.bound is not None
        pixels = gpu.session.bound.allocate((size, *gpu.row_shape), gpu.row_dtype)
        rows = np.empty((size, *cpu.row_shape), cpu.row_dtype)
        for at in range(size):
            image = np.random.default_rng(at).integers(0, 256, (20, 30, 3)).astype(np.uint8)
            gpu.prepare(image, pixels[at])
            cpu.prepare(image, rows[at])
        np.testing.assert_allclose(gpu.run(pixels)[0], cpu.run(rows)[0], atol=1e-3)


def test_memory_for_slabs_is_pinned(asked: Load) -> None:
    bound = load_model(asked).session.bound
    assert bound is not None
    slab = bound.allocate((4, 8, 8, 1), np.uint8)
    slab[...] = 3
    assert int(slab.sum()) == 768
    assert bound.pinned


def test_the_driver_tells_the_compute_capability(asked: Load) -> None:
    assert asked
    gpu = cuda_device()
    assert gpu is not None
    assert gpu.compute_capability is not None
    assert gpu.compute_capability >= (5, 0)


def test_each_record_has_one_outcome_and_a_killed_engine_leaves_the_gpu_to_the_next(
    asked: Load,
) -> None:
    for _ in range(2):  # the second on what the first one kept
        with Engine("process", lanes=2 + RUN_LANES) as engine:
            answer = engine.load(asked)
            assert isinstance(answer, Loaded)
            assert answer.signature["staging"] == "bound, folded"
            engine.submit([BRIGHT, DARK] * 500)
            for n, (end, _) in engine.outcomes(1000).items():
                assert isinstance(end, Done)
                [best, *_] = orjson.loads(end.predictions)["light"]
                assert best["label"] == ("bright" if n % 2 else "dark")
            assert engine.process is not None
            os.kill(engine.process.pid, signal.SIGKILL)
