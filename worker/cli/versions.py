"""What a model version declares, and what an engine says of it: the facts that `models` shows."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.config import Settings
from worker.errors import CommandError
from worker.inference.budget import budget_of, limits_of
from worker.inference.engines import Engine, EngineSpec
from worker.inference.process import spawn_process
from worker.models.files import verify_files
from worker.models.manifest import MANIFEST_NAME, Step, load_manifest
from worker.models.repository import Repository, demo_repository
from worker.protocol.messages import Load
from worker.types import ModelRef


def chosen(
    targets: Sequence[str], settings: Settings, repository: Path | None
) -> dict[ModelRef, Path]:
    """Return the folder of every version meant; without targets all there are and the active ones.

    Raises CommandError for a target that is neither in the repository nor a version's folder,
    ModelError when the repository cannot be read.
    """
    named = settings.models.repository
    root = (repository or (Path(named) if named else demo_repository())).resolve()
    known = {ref: root / ref.name / ref.version for ref in Repository(root, None).versions()}
    if not targets and not known:
        raise CommandError(f"{root} holds no NAME/VERSION/{MANIFEST_NAME}")
    found: dict[ModelRef, Path] = {} if targets else dict(known)
    if not targets and repository is None:  # what the worker would ask for, there or not
        active = (ModelRef(name, version) for name, version in settings.models.active.items())
        found |= {ref: root / ref.name / ref.version for ref in active}
    for target in targets:
        folder = Path(target).resolve()
        here = {ref: at for ref, at in known.items() if target in {ref.name, str(ref)}}
        if not here and (folder / MANIFEST_NAME).is_file():
            here = {ModelRef(folder.parent.name, folder.name): folder}
        if not here:
            there = ", ".join(map(str, known)) or "none"
            raise CommandError(f"{target!r} is no model, version or folder; {root} has {there}")
        found |= here
    return found


def declared(folder: Path) -> dict[str, Any]:
    """Return what the manifest declares, after the files were held to it. Raises ModelError."""
    manifest, sha256 = load_manifest(folder)
    verify_files(folder, manifest)
    return {
        "folder": str(folder),
        "manifest_sha256": sha256,
        "files": dict(manifest.files),
        "batch_max_size": manifest.batch_max_size,
        "inputs": {
            name: [_step(step) for step in spec.preprocess]
            for name, spec in manifest.inputs.items()
        },
        "heads": {name: asdict(head) for name, head in manifest.heads.items()},
        "golden": [asdict(golden) for golden in manifest.golden],
    }


async def proved(ref: ModelRef, folder: Path, settings: Settings) -> dict[str, Any]:
    """Load a version in an engine, as a worker would, and return what the engine says of it.

    Raises ModelError (file and field where it has them), DeviceError or EngineFault.
    """
    _, manifest_sha256 = load_manifest(folder)
    share = budget_of(settings).share(1)
    load = Load(
        folder=str(folder),
        manifest_sha256=manifest_sha256,
        lanes=share.lanes,
        limits=limits_of(settings),
        decode_bytes=share.decode_bytes,
        policy=settings.engine.policy,
        session=dict(settings.engine.session),
        failpoint=None,
    )
    engine = await Engine.start(EngineSpec(ref, load, None), spawn_process)
    try:
        said = engine.loaded._asdict()
        service_ms = {size: round(ms, 3) for size, ms in engine.loaded.service_ms.items()}
        return {**said, "load_ms": round(engine.loaded.load_ms, 1), "service_ms": service_ms}
    finally:
        await engine.destroy()


def _step(step: Step) -> str:
    given = {name: value for name, value in asdict(step).items() if value not in (None, False)}
    return " ".join([type(step).__name__, *(f"{name}={value}" for name, value in given.items())])
