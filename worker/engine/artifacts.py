"""What engines make of a model and keep: its folded graph, TensorRT's engines and timings.

A folder for each model under the worker's `data_dir`, named by the sha256 of its file: the weights
are in what is made, and TensorRT's own names know only the graph's structure. What TensorRT keeps
is native code: the folder is the worker's own. Whoever is at a folder holds a shared lock on it;
only what nobody holds is removed.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import weakref
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

_KEPT = 8
"""Models; the folders of those that were loaded longest ago are removed, if no engine has them."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Hold:
    """A folder that nobody removes while this lives."""

    def __init__(self, folder: Path) -> None:
        """Wait while it is being removed. Raises OSError."""
        self.descriptor = os.open(folder, _FOLDER)
        weakref.finalize(self, os.close, self.descriptor)
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)


def folder_of(root: str, model_sha256: str) -> Path | None:
    """Return the folder of a model, which need not be there; None: nothing is kept."""
    return Path(root) / model_sha256 if root else None


def hold(folder: Path | None) -> Hold | None:
    """Hold the folder of a model; None: it is not there, or cannot be held."""
    try:
        return None if folder is None else _hold(folder)
    except OSError:
        return None


def make(folder: Path) -> Hold:
    """Make or touch the folder of a model, hold it, and make room. Raises OSError."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = None
    while held is None:  # it may be removed as it is found
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            held = _hold(folder)
    os.utime(folder)
    others = sorted(_loaded(folder.parent, but=folder), reverse=True)
    for _, old in others[_KEPT - 1 :]:
        _remove(old)
    return held


def _hold(folder: Path) -> Hold | None:
    """Hold a folder; None: it was removed meanwhile. Raises OSError."""
    held = Hold(folder)
    return held if os.path.samestat(os.fstat(held.descriptor), folder.stat()) else None


def _loaded(root: Path, *, but: Path) -> Iterator[tuple[int, Path]]:
    """Yield when each other model was loaded, and its folder."""
    for path in root.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another engine made room
            found = path.lstat()
            if path != but and stat.S_ISDIR(found.st_mode):
                yield found.st_mtime_ns, path


def _remove(folder: Path) -> None:
    """Remove a folder, unless an engine has it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, _FOLDER)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else it is a new one
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def tensorrt_options(
    folder: Path, capability: tuple[int, int] | None
) -> tuple[dict[str, str], Hold]:
    """Return the options by which TensorRT keeps engines and timings of one model.

    And what holds the folder: it is written for minutes. What is kept serves these versions and
    this kind of GPU alone. Raises OSError.
    """
    held = make(folder)
    kind = "" if capability is None else f"-sm{capability[0]}{capability[1]}"
    kept = folder / f"{_versions()}{kind}"
    kept.mkdir(mode=0o700, exist_ok=True)
    options = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(kept),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(kept),
    }
    return options, held


def _versions() -> str:
    """Return the versions of ONNX Runtime, TensorRT and CUDA's libraries, as installed here."""
    wanted = ("onnxruntime", "tensorrt", "nvidia-cuda-runtime")
    found = {
        f"{name}{each.version}"
        for each in distributions()
        if (name := (each.metadata["Name"] or "").lower().replace("_", "-")).startswith(wanted)
    }
    return "-".join(sorted(found))
