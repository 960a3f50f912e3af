"""From a Load message to a model that is proven and warm, or a refusal that names file and field.

In this order: manifest, digests of all files, graph, agreement of both, golden samples through the
real path, rows proven independent of each other, batch sizes warmed and timed.
Sizes between those that are warmed cost a CPU nothing more at their first run (measured).
"""

import contextlib
import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from worker.engine.artifacts import folder_of, hold
from worker.engine.batcher import Bounds
from worker.engine.contract import Agreement, agree
from worker.engine.costs import BESIDE_S, Costs, Took
from worker.engine.labels import read_labels
from worker.engine.model import Array, Heads, Model, Proof, same
from worker.engine.providers import CPU
from worker.engine.session import RUN_ERRORS, Session, open_session
from worker.engine.sizing import Sizing
from worker.engine.staging import is_staged, stage
from worker.engine.trouble import DEVICE, Kind, classify, said
from worker.errors import DarkroomError, DeviceError, ModelError, RecordFault
from worker.models.files import verify_files
from worker.models.manifest import MANIFEST_NAME, MODEL_NAME, Golden, Manifest, Step, load_manifest
from worker.protocol.messages import Load, Loaded
from worker.types import Limits
from worker.vision.decode import decode, prepare_process
from worker.vision.heads.classification import compile_head
from worker.vision.sniff import check
from worker.vision.transforms import compile_steps

_PROOF_ERRORS: tuple[type[Exception], ...] = (DarkroomError, *RUN_ERRORS)


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
    artifacts = folder_of(load.artifacts, manifest.files[MODEL_NAME])
    session = open_session(
        folder / MODEL_NAME,
        policy=load.policy,
        options=load.session,
        given=load.provider_options,
        artifacts=artifacts,
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
        costs=_costs(session, agreement, staged=is_staged(load, session)),
        kept=hold(artifacts),
    )
    if is_staged(load, session):
        model = stage(model, _steps(manifest), load, _images(manifest, load))
    rows = [_golden(model, index, golden, load) for index, golden in enumerate(manifest.golden)]
    model.proof = Proof(rows[0], model.run(rows[0]))
    model.heads = compile_heads(load.limits.thresholds)  # golden samples are held to the manifest's
    if agreement.fixed_batch is None:
        model.rows_mix = _rows_mix(model, rows[0])
    try:
        sizing_of(model, load.limits).widen()
    except RUN_ERRORS as error:
        if classify(error) is not Kind.OOM or not model.costs.largest:
            _not_the_device(model, error)
            raise ModelError(f"its largest batch cannot be run: {error}", file=file) from error
        model.headroom.hold(model.costs.largest)  # others may have the rest of the memory now
    _rest(model, rows[0])
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
        max_size=sizing_of(model, limits).bounds.cap,
        row_bytes=model.row_bytes,
        load_ms=load_ms,
        service_ms=service_ms(model.costs),
        signature={
            "inputs": [tensor._asdict() for tensor in graph.inputs],
            "outputs": [tensor._asdict() for tensor in graph.outputs],
            "metadata": graph.metadata,
            "rows_mix": model.rows_mix,
            "nodes": model.session.nodes,
            "refused": model.session.refused,
            "staging": model.staging,
        },
        bound=model.session.bound is not None,
    )


def service_ms(costs: Costs) -> dict[str, float]:
    """Return what batches take, by their size, as messages have it."""
    return {str(size): taken_s * 1e3 for size, taken_s in costs.times_s.items()}


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
        _not_the_device(model, error)
        problem = str(error)
    if problem:
        raise ModelError(
            f"{golden.image}: {problem}",
            file=str(folder / MANIFEST_NAME),
            field=f"golden[{index}]",
        )
    return batch


def _not_the_device(model: Model, error: Exception) -> None:
    """Raise DeviceError for an error that shows a fault of the device: no version is refused."""
    provider = model.session.stamp.provider
    if provider != CPU and classify(error) in DEVICE:
        raise DeviceError(f"{provider}: {said(error)}") from None


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
    return not all(same(one[0], two[1]) for one, two in zip(single, together, strict=True))


def sizing_of(
    model: Model,
    limits: Limits,
    *,
    tell: Callable[[Bounds], None] = lambda _: None,
    warmed: Callable[[], None] = lambda: None,
) -> Sizing:
    """Return what chooses the bounds of a model's batches, and warms them with its sample."""
    warm = partial(took_of, model)
    return Sizing(model.costs, limits, allowed=model.cap, warm=warm, tell=tell, warmed=warmed)


def _costs(session: Session, agreement: Agreement, *, staged: bool) -> Costs:
    """Return the table to be filled. A GPU prepares itself anew for every shape, a CPU does not.

    Who stages rows on a CPU wants what a GPU gets.
    """
    fixed = agreement.fixed_batch
    exact = fixed is None and session.stamp.provider == CPU and not staged
    return Costs(exact=exact, first=fixed or 1, beside_s=BESIDE_S)


def took_of(model: Model, rows: int) -> Took:
    """Return what a batch of the golden sample takes, as lanes take it; the better of two.

    The first one also pays for what a session does once for every size.
    """
    batch = model.golden(rows)
    return min(_took(model, batch) for _ in range(2))


def _rest(model: Model, batch: Array) -> None:
    """Give back what warming took and single records do not need.

    Measured: 70 MB of an engine instead of 190, squeezenet; it comes back with the first batches.
    """
    rows = np.repeat(batch, model.agreement.fixed_batch or 1, axis=0)
    model.session.shrink(model.agreement.outputs, {model.agreement.input_name: rows})
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def _took(model: Model, batch: Array) -> Took:
    """Return what a batch takes; not how long it waited for one that a lane had run meanwhile."""
    begun_s, worked_s = time.perf_counter(), time.thread_time()
    model.predictions(model.run(batch))
    seconds = time.perf_counter() - begun_s - model.session.waited_s
    return Took(seconds, model.work_s(seconds, time.thread_time() - worked_s))
