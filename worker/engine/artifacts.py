"""What engines make of a model and keep: its folded graph, TensorRT's engines and timings.

A folder for each model under the worker's `data_dir`, named by the sha256 of its file: the weights
are in what is made, and TensorRT's own names know only the graph's structure. What TensorRT keeps
is native code: the folder is the worker's own.
"""

import shutil
from importlib.metadata import distributions
from pathlib import Path

_KEPT = 8
"""Models; the folders of those that were loaded longest ago are removed."""


def folder_of(root: str, model_sha256: str) -> Path | None:
    """Return the folder of a model, which need not be there; None: nothing is kept."""
    return Path(root) / model_sha256 if root else None


def make(folder: Path) -> None:
    """Make or touch the folder of a model, and make room. Raises OSError when it cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.touch()
    others = [path for path in folder.parent.iterdir() if path != folder and path.is_dir()]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in others[_KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)  # another engine may be at it


def tensorrt_options(folder: Path, capability: tuple[int, int] | None) -> dict[str, str]:
    """Return the options by which TensorRT keeps engines and timings of one model.

    What it keeps serves these versions and this kind of GPU alone. Raises OSError.
    """
    make(folder)
    kind = "" if capability is None else f"-sm{capability[0]}{capability[1]}"
    kept = folder / f"{_versions()}{kind}"
    kept.mkdir(mode=0o700, exist_ok=True)
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(kept),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(kept),
    }


def _versions() -> str:
    """Return the versions of ONNX Runtime, TensorRT and CUDA's libraries, as installed here."""
    wanted = ("onnxruntime", "tensorrt", "nvidia-cuda-runtime")
    found = {
        f"{name}{each.version}"
        for each in distributions()
        if (name := (each.metadata["Name"] or "").lower().replace("_", "-")).startswith(wanted)
    }
    return "-".join(sorted(found))
