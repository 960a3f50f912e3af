"""From a Load message to a model that is proven and warm, or a refusal that names file and field.

In this order: manifest, digests of all files, graph, agreement of both, golden samples through the
real path, rows proven independent of each other, batch sizes warmed and timed.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from worker.engine.artifacts import folder_of
from worker.engine.contract import Agreement, agree
from worker.engine.labels import read_labels
from worker.engine.model import Array, Heads, Model
from worker.engine.session import RUN_ERRORS, open_session
from worker.engine.staging import is_staged, stage
from worker.errors import DarkroomError, ModelError, RecordFault
from worker.models.files import verify_files
from worker.models.manifest import MANIFEST_NAME, MODEL_NAME, Golden, Manifest, Step, load_manifest
from worker.protocol.messages import Load, Loaded
from worker.types import Limits
from worker.vision.decode import decode, prepare_process
from worker.vision.heads.classification import compile_head
from worker.vision.sniff import check
from worker.vision.transforms import compile_steps

_PROOF_ERRORS: tuple[type[Exception], ...] = (DarkroomError, *RUN_ERRORS)

_SAME = 1e-3
"""Relative difference that another batch size may make; kernels sum in another order."""
_ALL_SIZES = 16
"""Up to here every size of a batch is warmed."""


def load_model(load: Load) -> Model:
    """Load, prove and warm a version.

    Raises ModelError (the version is at fault), DeviceError, SettingsError (a session option), or
    OSError (a file of the version cannot be read now).
    """
    prepare_process()
    folder = Path(load.folder)
    file = str(folder / MANIFEST_NAME)
    manifest, manifest_sha256 = load_manifest(folder)
    if manifest_sha256 != load.manifest_sha256:
        raise ModelError(
            f"has sha256 {manifest_sha256}, the worker read {load.manifest_sha256}: it was changed"
            " in between; a change wants a new version",
            file=file,
        )
    verify_files(folder, manifest)
    session = open_session(
        folder / MODEL_NAME,
        policy=load.policy,
        options=load.session,
        artifacts=folder_of(load.artifacts, manifest.files[MODEL_NAME]),
    )
    labels = {name: read_labels(folder / head.labels) for name, head in manifest.heads.items()}
    agreement = agree(
        manifest,
        session.signature,
        labels={name: len(lines) for name, lines in labels.items()},
        file=file,
    )
    compile_heads = partial(_heads, manifest, labels)
    model = Model(
        session=session,
        sha256=manifest.files[MODEL_NAME],
        agreement=agreement,
        prepare=_prepare(manifest, agreement, file),
        compile_heads=compile_heads,
        heads=compile_heads({}),
        max_size=manifest.batch_max_size,
    )
    if is_staged(load, session):
        model = stage(model, _steps(manifest), load, _images(manifest, load))
        del session  # as it was opened: its memory is wanted
    rows = [_golden(model, index, golden, load) for index, golden in enumerate(manifest.golden)]
    model.heads = compile_heads(load.limits.thresholds)  # golden samples are held to the manifest's
    if agreement.fixed_batch is None:
        model.rows_mix = _rows_mix(model, rows[0])
    try:
        model.service_ms = _warm(model, rows[0], model.cap(load.limits))
    except RUN_ERRORS as error:
        raise ModelError(f"its largest batch cannot be run: {error}", file=file) from error
    return model


def loaded(model: Model, limits: Limits, *, load_ms: float) -> Loaded:
    """Return the answer to Load."""
    stamp, graph = model.session.stamp, model.session.signature
    return Loaded(
        sha256=model.sha256,
        provider=stamp.provider,
        device=stamp.device,
        precision=stamp.precision,
        fallback=stamp.fallback,
        max_size=model.cap(limits),
        row_bytes=model.row_bytes,
        load_ms=load_ms,
        service_ms=model.service_ms,
        signature={
            "inputs": [tensor._asdict() for tensor in graph.inputs],
            "outputs": [tensor._asdict() for tensor in graph.outputs],
            "metadata": graph.metadata,
            "rows_mix": model.rows_mix,
            "staging": model.staging,
        },
    )


def _heads(
    manifest: Manifest, labels: Mapping[str, Sequence[str]], thresholds: Mapping[str, float]
) -> Heads:
    return {
        name: compile_head(
            replace(head, threshold=thresholds.get(name, head.threshold)), labels[name]
        )
        for name, head in manifest.heads.items()
    }


def _prepare(manifest: Manifest, agreement: Agreement, file: str) -> Callable[[Array, Array], None]:
    name, spec = next(iter(manifest.inputs.items()))
    try:
        return compile_steps(
            spec.preprocess,
            row_shape=agreement.row_shape,
            row_dtype=np.dtype(agreement.row_dtype),
            field=f"inputs.{name}.preprocess",
        )
    except ModelError as error:
        raise ModelError(error.message, file=file, field=error.field) from None


def _steps(manifest: Manifest) -> tuple[Step, ...]:
    return tuple(next(iter(manifest.inputs.values())).preprocess)


def _images(manifest: Manifest, load: Load) -> list[Array]:
    """Return golden samples as images; those that cannot be decoded are refused where they count.

    Raises OSError.
    """
    images = []
    for golden in manifest.golden:
        with contextlib.suppress(RecordFault):
            images.append(_decoded((Path(load.folder) / golden.image).read_bytes(), load.limits))
    return images


def _golden(model: Model, index: int, golden: Golden, load: Load) -> Array:
    """Hold one golden sample to what it must give; return its row as a batch of one."""
    folder = Path(load.folder)
    data = (folder / golden.image).read_bytes()
    batch = np.empty((1, *model.row_shape), model.row_dtype)
    try:
        problem = _differs(golden, _predict(model, data, batch, load.limits))
    except _PROOF_ERRORS as error:
        problem = str(error)
    if problem:
        raise ModelError(
            f"{golden.image}: {problem}",
            file=str(folder / MANIFEST_NAME),
            field=f"golden[{index}]",
        )
    return batch


def _predict(model: Model, data: bytes, batch: Array, limits: Limits) -> bytes:
    """Take an encoded image along the path of every record, through `batch` of one row."""
    model.prepare(_decoded(data, limits), batch[0])
    [reading] = model.predictions(model.run(batch))
    if isinstance(reading, RecordFault):
        raise reading
    return reading


def _decoded(data: bytes, limits: Limits) -> Array:
    header = check(data, max_bytes=limits.image_max_bytes, max_pixels=limits.image_max_pixels)
    return decode(data, header, keep_gray=True)


def _differs(golden: Golden, predictions: bytes) -> str | None:
    expected = f"{golden.expect_label!r} {golden.expect_score:.4f} +- {golden.tolerance}"
    best = next(iter(orjson.loads(predictions)[golden.head]), None)
    if best is None:
        return f"nothing is above the threshold, expected {expected}"
    label, score = best["label"], best["score"]
    if label == golden.expect_label and abs(score - golden.expect_score) <= golden.tolerance:
        return None
    return (
        f"the model says {label!r} {score:.4f}, expected {expected}: are preprocess, labels and"
        " weights those of this version?"
    )


def _rows_mix(model: Model, batch: Array) -> bool:
    """Return whether a row's result depends on its batch mates, or a batch of two cannot be run.

    True of some exports that fix a reshape, and of dynamic quantisation, by design.
    """
    mate = batch.copy()
    mate.reshape(-1)[: batch.size // 2] = 0
    pair = np.concatenate([mate, batch])
    single = model.run(batch)
    try:
        together = model.run(pair)
    except RUN_ERRORS:
        return True
    return not all(_same(one[0], two[1]) for one, two in zip(single, together, strict=True))


def _same(one: Array, two: Array) -> bool:
    scale = float(np.max(np.abs(one), initial=0.0))
    return bool(np.allclose(one, two, rtol=_SAME, atol=_SAME * scale))


def _warm(model: Model, batch: Array, cap: int) -> dict[str, float]:
    """Run every batch size that will be seen often, so that no record pays for the first time.

    Returns milliseconds of one run for some of them; the better of two.
    """
    timed = {1, max(1, cap // 2), cap}
    sizes = timed if model.agreement.fixed_batch else timed | _usual(cap)
    service_ms = {}
    for size in sorted(sizes):
        rows = np.repeat(batch, size, axis=0)
        took_ms = [_run_ms(model, rows) for _ in range(2 if size in timed else 1)]
        if size in timed:
            service_ms[str(size)] = min(took_ms)
    return service_ms


def _usual(cap: int) -> set[int]:
    """Return all sizes up to _ALL_SIZES, then powers of two."""
    powers = {2**n for n in range(cap.bit_length())}
    return {*range(1, min(cap, _ALL_SIZES) + 1), *(size for size in powers if size <= cap)}


def _run_ms(model: Model, batch: Array) -> float:
    begun_s = time.perf_counter()
    model.run(batch)
    return (time.perf_counter() - begun_s) * 1e3
