"""What one model version declares of itself (`darkroom.manifest.v1`): the types, and the parser.

Pure: it opens nothing but the manifest, and must not know NumPy, ONNX Runtime or OpenCV.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from worker.errors import ModelError
from worker.models.document import ABSENT, Reader, below, load_yaml
from worker.models.regular import open_regular

MANIFEST_NAME: Final = "manifest.yaml"
MODEL_NAME: Final = "model.onnx"
SCHEMA: Final = "darkroom.manifest.v1"
MANIFEST_MAX_BYTES: Final = 1_048_576
SIDE_MAX_PX: Final = 16_384
BATCH_MAX_SIZE: Final = 4096
TOP_K_MAX: Final = 1_000_000

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


def load_manifest(folder: Path) -> tuple[Manifest, str]:
    """Read `folder/manifest.yaml`; answer it and the sha256 (hex) of its bytes.

    Raises ModelError: absent, not a regular file, or as `read_manifest`.
    """
    with open_regular(folder, MANIFEST_NAME) as stream:
        data = stream.read(MANIFEST_MAX_BYTES + 1)
    return read_manifest(data, file=str(folder / MANIFEST_NAME))


def read_manifest(data: bytes, *, file: str) -> tuple[Manifest, str]:
    """Answer a manifest and the sha256 (hex) of its bytes; `file` is what errors call it.

    Raises ModelError: too large, not UTF-8, or as `parse_manifest`.
    """
    if len(data) > MANIFEST_MAX_BYTES:
        raise ModelError(f"is larger than {MANIFEST_MAX_BYTES} bytes", file=file)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"is not UTF-8 at byte {error.start}", file=file) from error
    return parse_manifest(text, file=file), hashlib.sha256(data).hexdigest()


def parse_manifest(text: str, *, file: str) -> Manifest:
    """Parse a manifest; `file` is what errors call it.

    Raises one ModelError that names every field that is wrong, or line and column of bad YAML.
    """
    document = load_yaml(text, file=file)
    reader = Reader()
    manifest = _manifest(reader, document)
    reader.finish(file)
    return manifest


def _manifest(reader: Reader, document: Any) -> Manifest:
    members = reader.members(
        document,
        "",
        required=("schema", "files", "inputs", "heads", "golden"),
        optional=("batch",),
    )
    reader.choice(members["schema"], "schema", (SCHEMA,))
    batch = reader.members(members["batch"], "batch", required=(), optional=("max_size",))
    max_size = reader.integer(batch["max_size"], "batch.max_size", least=1, most=BATCH_MAX_SIZE)
    manifest = Manifest(
        files=_files(reader, members["files"]),
        batch_max_size=None if batch["max_size"] is ABSENT else max_size,
        inputs=_inputs(reader, members["inputs"]),
        heads=_heads(reader, members["heads"]),
        golden=tuple(_golden(reader, *item) for item in reader.items(members["golden"], "golden")),
    )
    _check_references(reader, manifest)
    return manifest


def _files(reader: Reader, value: Any) -> dict[str, str]:
    files = {}
    for name, digest in reader.mapping(value, "files").items():
        field = below("files", name)
        # ASCII, and no part that starts with a dot: the same on every file system and URL.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*", name):
            reader.wrong(
                field,
                "is no name for a file: relative to this folder, parts of A-Z a-z 0-9 . _ -"
                " between /, none starts with . or -",
            )
        elif name == MANIFEST_NAME:
            reader.wrong(field, "a manifest cannot hold its own digest: leave it out")
        files[name] = _sha256(reader, digest, field)
    if files and MODEL_NAME not in files:
        reader.wrong(below("files", MODEL_NAME), "missing")
    return files


def _sha256(reader: Reader, value: Any, field: str) -> str:
    text = reader.text(value, field)
    if text and not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        reader.wrong(field, f"must be sha256: and 64 digits of 0-9 a-f, is {text[:80]!r}")
    return text.removeprefix("sha256:")


def _inputs(reader: Reader, value: Any) -> dict[str, InputSpec]:
    inputs = {}
    for name, spec in reader.mapping(value, "inputs").items():
        field = below("inputs", name)
        if not name:
            reader.wrong(field, "is no name of an input")
        members = reader.members(spec, field, required=("preprocess",))
        steps = reader.items(members["preprocess"], f"{field}.preprocess")
        parsed = tuple(_step(reader, item, step_field) for step_field, item in steps)
        inputs[name] = InputSpec(preprocess=tuple(step for step in parsed if step is not None))
    if len(inputs) > 1:
        reader.wrong("inputs", f"must be the one image input, are {len(inputs)}")
    return inputs


def _step(reader: Reader, value: Any, field: str) -> Step | None:
    if not isinstance(value, dict) or len(value) != 1:
        reader.wrong(field, f"must be one step, one of {', '.join(_STEPS)}, with its settings")
        return None
    members = reader.members(value, field, required=(), optional=tuple(_STEPS))
    for name, parse in _STEPS.items():
        if members[name] is not ABSENT:
            return parse(reader, members[name], f"{field}.{name}")
    return None


def _center_crop(reader: Reader, value: Any, field: str) -> CenterCrop:
    members = reader.members(value, field, required=(), optional=("square", "output_size"))
    square = reader.flag(members["square"], f"{field}.square")
    if isinstance(value, dict) and square == (members["output_size"] is not ABSENT):
        reader.wrong(field, "must have either square: true or output_size")
    size = members["output_size"]
    if size is ABSENT:
        return CenterCrop(square=square)
    if isinstance(size, list):
        return CenterCrop(output_size=_size(reader, size, f"{field}.output_size"))
    side = _side(reader, size, f"{field}.output_size")
    return CenterCrop(output_size=(side, side))


def _resize(reader: Reader, value: Any, field: str) -> Resize:
    members = reader.members(
        value, field, required=("size",), optional=("interpolation", "antialias")
    )
    size, sides = members["size"], dict[str, int]()
    if isinstance(size, dict):
        if len(size) != 1:
            reader.wrong(f"{field}.size", "must have either short_side or long_side")
        given = reader.members(
            size, f"{field}.size", required=(), optional=("short_side", "long_side")
        )
        for name, side in given.items():
            if side is not ABSENT:
                sides[name] = _side(reader, side, f"{field}.size.{name}")
    return Resize(
        size=None if isinstance(size, dict) else _size(reader, size, f"{field}.size"),
        short_side=sides.get("short_side"),
        long_side=sides.get("long_side"),
        interpolation=reader.choice(
            members["interpolation"],
            f"{field}.interpolation",
            get_args(Interpolation),
            default="linear",
        ),
        antialias=reader.flag(members["antialias"], f"{field}.antialias"),
    )


def _color(reader: Reader, value: Any, field: str) -> Color:
    members = reader.members(value, field, required=("to",))
    return Color(to=reader.choice(members["to"], f"{field}.to", get_args(ColorSpace)))


def _normalize(reader: Reader, value: Any, field: str) -> Normalize:
    members = reader.members(value, field, required=(), optional=("scale", "mean", "std"))
    scale = reader.number(members["scale"], f"{field}.scale", default=1.0)
    if scale == 0:
        reader.wrong(f"{field}.scale", "must not be 0: every image would be the same")
    mean = _per_channel(reader, members["mean"], f"{field}.mean", default=0.0)
    std = _per_channel(reader, members["std"], f"{field}.std", default=1.0)
    if min(std) <= 0:
        reader.wrong(f"{field}.std", "must be above 0")
    return Normalize(scale=scale, mean=mean, std=std)


def _channel_swap(reader: Reader, value: Any, field: str) -> ChannelSwap:
    members = reader.members(value, field, required=("from", "to"))
    reader.choice(members["from"], f"{field}.from", ("hwc",))
    reader.choice(members["to"], f"{field}.to", ("chw",))
    return ChannelSwap()


def _cast(reader: Reader, value: Any, field: str) -> Cast:
    members = reader.members(value, field, required=("to",))
    return Cast(to=reader.choice(members["to"], f"{field}.to", get_args(DType)))


_STEPS: Final[Mapping[str, Callable[[Reader, Any, str], Step]]] = {
    "center_crop": _center_crop,
    "resize": _resize,
    "color": _color,
    "normalize": _normalize,
    "channel_swap": _channel_swap,
    "cast": _cast,
}


def _size(reader: Reader, value: Any, field: str) -> tuple[int, int]:
    if value is not ABSENT and (not isinstance(value, list) or len(value) != 2):
        reader.wrong(field, "must be [height, width] in pixels")
        return 1, 1
    height, width = value if isinstance(value, list) else (ABSENT, ABSENT)
    return _side(reader, height, f"{field}[0]"), _side(reader, width, f"{field}[1]")


def _side(reader: Reader, value: Any, field: str) -> int:
    return reader.integer(value, field, least=1, most=SIDE_MAX_PX)


def _per_channel(reader: Reader, value: Any, field: str, *, default: float) -> tuple[float, ...]:
    if value is ABSENT:
        return (default,)
    if isinstance(value, list) and len(value) not in {1, 3}:
        reader.wrong(field, f"must have 1 value, or 3 (one for each channel), has {len(value)}")
        return (default,)
    items = reader.items(value, field)
    return tuple(reader.number(item, at, default=default) for at, item in items) or (default,)


def _heads(reader: Reader, value: Any) -> dict[str, ClassificationHead]:
    heads = {}
    for name, head in reader.mapping(value, "heads").items():
        field = below("heads", name)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name):
            reader.wrong(
                field,
                "is no name for a member of the result: A-Z a-z 0-9 _ -, not first a digit"
                " or -, at most 64",
            )
        members = reader.members(
            head,
            field,
            required=("type", "output", "activation", "labels"),
            optional=("top_k", "threshold"),
        )
        reader.choice(members["type"], f"{field}.type", ("classification",))
        heads[name] = ClassificationHead(
            output=reader.text(members["output"], f"{field}.output"),
            activation=reader.choice(
                members["activation"], f"{field}.activation", get_args(Activation)
            ),
            labels=reader.text(members["labels"], f"{field}.labels"),
            top_k=reader.integer(
                members["top_k"], f"{field}.top_k", least=1, most=TOP_K_MAX, default=5
            ),
            threshold=reader.number(members["threshold"], f"{field}.threshold"),
        )
    return heads


def _golden(reader: Reader, field: str, value: Any) -> Golden:
    members = reader.members(
        value, field, required=("image", "head", "expect"), optional=("tolerance",)
    )
    expect = reader.members(members["expect"], f"{field}.expect", required=("label", "score"))
    tolerance = reader.number(members["tolerance"], f"{field}.tolerance", default=0.01)
    if tolerance <= 0:
        reader.wrong(f"{field}.tolerance", "must be above 0")
    return Golden(
        image=reader.text(members["image"], f"{field}.image"),
        head=reader.text(members["head"], f"{field}.head"),
        expect_label=reader.text(expect["label"], f"{field}.expect.label"),
        expect_score=reader.number(expect["score"], f"{field}.expect.score"),
        tolerance=tolerance,
    )


def _check_references(reader: Reader, manifest: Manifest) -> None:
    """Report what names something else of the manifest that is not there."""
    for name, head in manifest.heads.items():
        if head.labels and head.labels not in manifest.files:
            reader.wrong(below("heads", name) + ".labels", f"{head.labels!r} is not under files")
    for index, golden in enumerate(manifest.golden):
        if golden.image and golden.image not in manifest.files:
            reader.wrong(f"golden[{index}].image", f"{golden.image!r} is not under files")
        if golden.head and golden.head not in manifest.heads:
            reader.wrong(f"golden[{index}].head", f"{golden.head!r} is not under heads")
