"""What a manifest and its graph must agree on, and what follows from both: a pure check.

It must not know ONNX Runtime, files or arrays; errors name the manifest's field.
"""

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from worker.errors import ModelError
from worker.models.manifest import ClassificationHead, Manifest

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_SCORES = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})


class Tensor(NamedTuple):
    """One input or output as the graph declares it."""

    name: str
    dtype: str
    """ONNX Runtime's words: `tensor(float)`, `seq(map(int64,tensor(float)))`."""
    shape: tuple[int | str | None, ...]
    """An int is fixed; a name or None is free."""


class Signature(NamedTuple):
    """What the graph says of itself, copied: a retained NodeArg would pin the whole model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: dict[str, str]


class Agreement(NamedTuple):
    """What a batch of this version looks like."""

    input_name: str
    row_shape: tuple[int, ...]
    row_dtype: str
    fixed_batch: int | None
    """Rows that every run must have; None: any number."""
    outputs: tuple[str, ...]
    """Names of the outputs that heads read, in the order of the heads."""


def agree(
    manifest: Manifest, signature: Signature, *, labels: Mapping[str, int], file: str
) -> Agreement:
    """Check a manifest against its graph; `labels` is the number of labels of each head.

    Raises ModelError with the manifest as `file` and the first field that is wrong.
    """
    name, shape = _input(manifest, signature, file)
    batch = shape[0]
    for head_name, head in manifest.heads.items():
        _head(head_name, head, signature, labels=labels[head_name], file=file)
    fixed_batch = batch if isinstance(batch, int) else None
    if fixed_batch and manifest.batch_max_size and manifest.batch_max_size > fixed_batch:
        _wrong(
            f"is {manifest.batch_max_size}, but the graph fixes its first axis to {fixed_batch}",
            file,
            "batch.max_size",
        )
    tensor = next(t for t in signature.inputs if t.name == name)
    row_shape = tuple(size for size in shape[1:] if isinstance(size, int))
    return Agreement(
        name,
        row_shape,
        _DTYPES[tensor.dtype],
        fixed_batch,
        tuple(head.output for head in manifest.heads.values()),
    )


def _input(
    manifest: Manifest, signature: Signature, file: str
) -> tuple[str, tuple[int | str | None, ...]]:
    name = next(iter(manifest.inputs))
    field = f"inputs.{name}"
    graph = {tensor.name: tensor for tensor in signature.inputs}
    if name not in graph:
        _wrong(f"the graph has no such input; it has {_list(signature.inputs)}", file, field)
    if others := sorted(set(graph) - {name}):
        _wrong(f"the graph also wants {', '.join(others)}; one image input is served", file, field)
    _, dtype, shape = graph[name]
    if dtype not in _DTYPES:
        _wrong(f"is {dtype} in the graph; served are {', '.join(_DTYPES)}", file, field)
    if len(shape) != 4:
        _wrong(f"has shape {_shape(shape)} in the graph, which is no batch of images", file, field)
    if not all(isinstance(size, int) and size > 0 for size in shape[1:]):
        _wrong(
            f"has shape {_shape(shape)} in the graph; only its first axis may be free", file, field
        )
    if isinstance(shape[0], int) and shape[0] < 1:
        _wrong(f"has shape {_shape(shape)} in the graph, a batch of no rows", file, field)
    if not {shape[1], shape[3]} & {1, 3}:
        _wrong(f"has shape {_shape(shape)} in the graph: neither 1 nor 3 channels", file, field)
    return name, shape


def _head(
    name: str, head: ClassificationHead, signature: Signature, *, labels: int, file: str
) -> None:
    field = f"heads.{name}.output"
    tensor = next((t for t in signature.outputs if t.name == head.output), None)
    if tensor is None:
        _wrong(
            f"the graph has no output {head.output!r}; it has {_list(signature.outputs)}",
            file,
            field,
        )
    if tensor.dtype not in _SCORES:
        _wrong(f"{head.output!r} is {tensor.dtype} in the graph, no tensor of scores", file, field)
    shape = list(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 2:
        _wrong(
            f"{head.output!r} has shape {_shape(tensor.shape)} in the graph, not [N, classes]",
            file,
            field,
        )
    if isinstance(shape[1], int) and shape[1] != labels:
        _wrong(
            f"{head.labels} has {labels} labels, {head.output!r} in the graph {shape[1]} classes",
            file,
            f"heads.{name}.labels",
        )


def _wrong(message: str, file: str, field: str) -> NoReturn:
    raise ModelError(message, file=file, field=field)


def _list(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(tensor.name for tensor in tensors)


def _shape(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
