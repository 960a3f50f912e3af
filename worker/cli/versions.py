"""Which versions a command means, and the facts that `models` shows of them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from worker.config_sections import Settings
from worker.errors import CommandError
from worker.inference.budget import budget_of, limits_of
from worker.inference.devices import devices_of
from worker.inference.engines import Engine, EngineSpec
from worker.inference.process import spawn_process
from worker.models.cache import cache_of
from worker.models.files import names_below, verify_files
from worker.models.manifest import MANIFEST_NAME, Step
from worker.models.options import artifacts_of
from worker.models.repository import Repository, Version, demo_repository
from worker.protocol.messages import Load
from worker.types import ModelRef


class Chosen(NamedTuple):
    """A version that a command means, there or not."""

    ref: ModelRef
    repository: Repository


def chosen(
    targets: Sequence[str], settings: Settings, location: str | None, *, fetch: bool = False
) -> list[Chosen]:
    """Return the versions meant, of the repository at `location` or that of the settings.

    Without targets: all there are and the active ones; with `fetch` (then also what is local goes
    through the cache) the active ones alone. Raises CommandError for a target that cannot be one,
    ModelError when the repository must be listed and cannot, SettingsError for a URL without a
    driver.
    """
    at = partial(_repository, settings, fetch=fetch)
    repository = at(location or settings.models.repository or demo_repository())
    found = [one for target in targets for one in _meant(target, repository, at)]
    if not targets and not fetch:
        found = [Chosen(ref, repository) for ref in repository.versions()]
        if not found:
            raise CommandError(f"{repository.where} holds no NAME/VERSION/{MANIFEST_NAME}")
    if not targets and (fetch or location is None):  # what the worker would ask for, there or not
        active = settings.models.active.items()
        found += [Chosen(ModelRef(name, version), repository) for name, version in active]
    return list(dict.fromkeys(found))


def _repository(settings: Settings, location: str | Path, *, fetch: bool) -> Repository:
    """Return a repository that reads what is local in place, unless it is to be fetched."""
    is_url = "://" in str(location)
    return Repository(
        location if is_url else Path(location).resolve(),
        cache=cache_of(settings) if fetch or is_url else None,
        seen_file=settings.data_dir / "seen.json" if fetch else None,
    )


def _meant(target: str, repository: Repository, at: Callable[[Path], Repository]) -> list[Chosen]:
    folder = Path(target).resolve()
    if (folder / MANIFEST_NAME).is_file():
        return [Chosen(ModelRef(folder.parent.name, folder.name), at(folder.parent.parent))]
    name, _, version = target.partition("/")
    if name and version and "/" not in version:
        return [Chosen(ModelRef(name, version), repository)]
    known = repository.versions()
    found = [Chosen(ref, repository) for ref in known if ref.name == target]
    if not found:
        there = ", ".join(map(str, known)) or "none"
        raise CommandError(
            f"{target!r} is no model, version or folder; {repository.where} has {there}"
        )
    return found


def fetched(version: Version) -> dict[str, Any]:
    """Return where a version lies in the cache, and how much it is."""
    names = names_below(version.folder)
    return {
        "folder": str(version.folder),
        "manifest_sha256": version.manifest_sha256,
        "bytes": sum((version.folder / name).stat().st_size for name in names),
    }


def declared(version: Version) -> dict[str, Any]:
    """Return what the manifest declares, after the files were held to it. Raises ModelError."""
    manifest = version.manifest
    verify_files(version.folder, manifest)
    return {
        "folder": str(version.folder),
        "manifest_sha256": version.manifest_sha256,
        "files": dict(manifest.files),
        "batch_max_size": manifest.batch_max_size,
        "inputs": {
            name: [_step(step) for step in spec.preprocess]
            for name, spec in manifest.inputs.items()
        },
        "heads": {name: asdict(head) for name, head in manifest.heads.items()},
        "golden": [asdict(golden) for golden in manifest.golden],
    }


async def proved(version: Version, settings: Settings) -> dict[str, Any]:
    """Load a version in an engine, as a worker would, and return what the engine says of it.

    Raises ModelError (file and field where it has them), DeviceError or EngineFault.
    """
    share = budget_of(settings).share(1)
    devices = await asyncio.to_thread(devices_of, settings.engine)
    load = Load(
        folder=str(version.folder.resolve()),
        manifest_sha256=version.manifest_sha256,
        lanes=share.lanes,
        limits=limits_of(settings),
        decode_bytes=share.decode_bytes,
        policy=devices.policy(settings.engine.policy),
        session=dict(settings.engine.session),
        failpoint=None,
        provider_options=settings.engine.provider_options,
        staging=settings.engine.staging,
        artifacts=artifacts_of(settings),
    )
    spec = EngineSpec(version.ref, load, None, devices.first)
    engine = await Engine.start(spec, spawn_process)
    try:
        said = engine.loaded._asdict()
        service_ms = {size: round(ms, 3) for size, ms in engine.loaded.service_ms.items()}
        said["fallback"] = said["fallback"] or devices.fallback
        return {**said, "load_ms": round(engine.loaded.load_ms, 1), "service_ms": service_ms}
    finally:
        await engine.destroy()


def _step(step: Step) -> str:
    given = {name: value for name, value in asdict(step).items() if value not in (None, False)}
    return " ".join([type(step).__name__, *(f"{name}={value}" for name, value in given.items())])
