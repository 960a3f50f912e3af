"""What one model version declares of itself (`darkroom.manifest.v1`): the types, and the parser.

Pure: it opens nothing but the manifest, and must not know NumPy, ONNX Runtime or OpenCV.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["nearest", "linear", "cubic", "area"]
ColorSpace = Literal["rgb", "bgr", "gray"]
DType = Literal["float32", "float16", "uint8"]
Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CenterCrop:
    """Cut the middle out: the largest square, or exactly `output_size` (height, width)."""

    square: bool = False
    output_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Scale to `size` (height, width), or, aspect kept, to a short or a long side; one of them."""

    size: tuple[int, int] | None = None
    short_side: int | None = None
    long_side: int | None = None
    interpolation: Interpolation = "linear"
    antialias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Color:
    """From RGB to another order of channels, or to one channel."""

    to: ColorSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalize:
    """`(x * scale - mean) / std`; `mean` and `std` hold one value, or one for each channel."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSwap:
    """From HWC to CHW."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    to: DType


Step = CenterCrop | Resize | Color | Normalize | ChannelSwap | Cast
"""One step from the upright uint8 RGB HWC image to a row of the batch tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    preprocess: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationHead:
    """Reads one output `[N, classes, 1...]` as scores of classes."""

    output: str
    activation: Activation
    labels: str
    """Name of the file of labels, one a line."""
    top_k: int = 5
    threshold: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A picture and what the model must say of it before it may serve."""

    image: str
    head: str
    expect_label: str
    expect_score: float
    tolerance: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    files: Mapping[str, str]
    """Name relative to the version's folder -> sha256, 64 hex digits."""
    batch_max_size: int | None
    """Rows that a batch may have at most; None leaves it to the settings."""
    inputs: Mapping[str, InputSpec]
    """By the graph's name; exactly one, the image."""
    heads: Mapping[str, ClassificationHead]
    golden: tuple[Golden, ...]
