"""How rows reach a device: as pixels, by a graph that does the rest, through bound runs.

`auto` does so where the device has a memory of its own; `always` does the same on a CPU, so that
all of it can be tested there.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from worker.engine.artifacts import folder_of, make
from worker.engine.binding import STAGED
from worker.engine.fold import NotFolded, fold, folded_name
from worker.engine.model import Array, Model
from worker.engine.session import RUN_ERRORS, Session, open_session
from worker.engine.trouble import DEVICE, classify
from worker.errors import DeviceError, ModelError
from worker.models.manifest import MODEL_NAME, Step
from worker.protocol.messages import Load
from worker.vision.transforms import Pixels, cut_steps

_SAME = 1e-3
"""Relative difference that folding may make: the same levels, scaled in float32 and not in 64."""
_RANDOM_ROWS = 3
_DIFFERENCES: tuple[type[Exception], ...] = (ModelError, DeviceError, NotFolded, *RUN_ERRORS)


def is_staged(load: Load, session: Session) -> bool:
    """Say whether rows are staged for the device of this session."""
    if load.staging == "auto":
        return session.stamp.provider in STAGED
    return load.staging == "always"


def stage(model: Model, steps: tuple[Step, ...], load: Load, images: list[Array]) -> Model:
    """Return the model with bound runs, and of pixels where its graph could be folded.

    The folded graph must give what the graph as it is gives, on the CPU, for the (decoded) images
    and for random rows; else it is not used, and `Model.staging` says why. Raises as open_session.
    """
    agreement = model.agreement
    pixels = cut_steps(
        steps, row_shape=agreement.row_shape, row_dtype=np.dtype(agreement.row_dtype)
    )
    try:
        graph = _proven(model, pixels, load, images, repr(steps))
    except (NotFolded, OSError) as error:
        folding = f"not folded: {error}"
    else:
        model, folding = _exchanged(model, graph, pixels, load)
    bound = model.session.bind()
    pageable = model.session.stamp.provider in STAGED and not bound.pinned
    model.staging = f"bound, {'not pinned, ' if pageable else ''}{folding}"
    return model


def _proven(model: Model, pixels: Pixels, load: Load, images: list[Array], steps: str) -> Path:
    """Return the folded graph, proven on the CPU. Raises NotFolded or OSError."""
    source = Path(load.folder) / MODEL_NAME
    key = hashlib.sha256(f"{steps} {model.agreement}".encode()).hexdigest()[:16]
    folder = folder_of(load.artifacts, model.sha256)
    if folder is None:
        raise NotFolded("this engine has no folder to keep it in")
    model.kept = make(folder)
    target = folder / f"folded-{key}.onnx"
    if not target.is_file():
        fold(source, target, input_name=model.agreement.input_name, pixels=pixels)
    try:
        plain = replace(model, session=_on_cpu(source, load))
    except (ModelError, DeviceError) as error:
        raise NotFolded(f"the CPU cannot open the graph as it is: {error}") from None
    try:
        _compare(plain, _of_pixels(model, _on_cpu(target, load), pixels), pixels, images)
    except _DIFFERENCES as error:
        passing = isinstance(error, DeviceError) or classify(error) in DEVICE
        if not passing:  # it is the file's fault, which another version of this may have written
            target.unlink(missing_ok=True)
        raise NotFolded(f"on the CPU {error}") from None
    return target


def _exchanged(model: Model, graph: Path, pixels: Pixels, load: Load) -> tuple[Model, str]:
    """Return the model of the folded graph, on its device, and that it is; else why it is not.

    The session that the model had is closed before another one is opened: the device may have no
    memory for two. Raises as open_session when not even the graph as it is can be opened again.
    """
    source, stamp = model.session.path, model.session.stamp
    model.session.close()
    try:
        session = _on_device(graph, load, graph.parent)
    except (ModelError, DeviceError) as error:
        why = str(error)  # and no more of it: its traceback may have what was opened
    else:
        if session.stamp.provider == stamp.provider:
            session.stamp = stamp  # the edges of the folded graph tell less of its precision
            return _of_pixels(model, session, pixels), "folded"
        why = f"it would run on {session.stamp.provider}, not on {stamp.provider}"
        session.close()
    model.session = _on_device(source, load, graph.parent)
    return model, f"not folded: {why}"


def _on_cpu(path: Path, load: Load) -> Session:
    return open_session(path, policy="cpu", options=load.session)


def _on_device(path: Path, load: Load, artifacts: Path) -> Session:
    return open_session(
        path,
        policy=load.policy,
        options=load.session,
        given=load.provider_options,
        artifacts=artifacts,
    )


def _of_pixels(model: Model, session: Session, pixels: Pixels) -> Model:
    agreement = model.agreement._replace(
        input_name=folded_name(model.agreement.input_name),
        row_shape=pixels.shape,
        row_dtype="uint8",
    )
    return replace(model, session=session, agreement=agreement, prepare=pixels.prepare)


def _compare(plain: Model, folded: Model, pixels: Pixels, images: list[Array]) -> None:
    """Raise NotFolded when both do not give the same."""
    batch = np.empty((len(images) + _RANDOM_ROWS, *pixels.shape), np.uint8)
    for image, row in zip(images, batch, strict=False):
        pixels.prepare(image, row)
    shape = (_RANDOM_ROWS, *pixels.shape)
    batch[len(images) :] = np.random.default_rng(0).integers(0, 256, shape)
    for at, row in enumerate(batch):
        written = np.empty((1, *plain.row_shape), plain.row_dtype)
        pixels.finish(row, written[0])
        both = zip(plain.run(written), folded.run(batch[at : at + 1]), strict=True)
        for name, (one, two) in zip(plain.agreement.outputs, both, strict=True):
            scale = float(np.max(np.abs(one), initial=0.0))
            if not np.allclose(one, two, rtol=_SAME, atol=_SAME * scale, equal_nan=True):
                off = float(np.max(np.abs(one - two)))
                raise NotFolded(f"output {name} differs by {off:.3g} of {scale:.3g}")
