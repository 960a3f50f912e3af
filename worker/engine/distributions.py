"""Which distributions of ONNX Runtime are installed: two of them overwrite each other's files."""

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, distribution

from worker.errors import SettingsError

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-training",
    "onnxruntime-vitisai",
    "onnxruntime-windowsml",
    "ort-nightly",
    "ort-nightly-gpu",
    "ort-nightly-directml",
)
"""All of them install the one package `onnxruntime`."""


def installed() -> list[str]:
    """Return those of DISTRIBUTIONS that are installed here."""
    return [name for name in DISTRIBUTIONS if _is_installed(name)]


def only_one(found: Collection[str]) -> None:
    """Raise SettingsError when several were found: which of them would run, nobody can say."""
    if len(found) < 2:
        return
    raise SettingsError(
        f"{' and '.join(found)} are installed together and overwrite each other: "
        f"`pip uninstall {' '.join(found)}`, then install the one for your device"
    )


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
