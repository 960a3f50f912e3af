"""What is known of the active versions before they are loaded, for the sum of memory."""

from collections.abc import Iterable
from pathlib import Path

from worker.config_sections import Settings
from worker.errors import ModelError
from worker.inference.memory import Footprint, Memory, memory_of
from worker.models.manifest import (
    Cast,
    CenterCrop,
    ChannelSwap,
    Color,
    Manifest,
    Normalize,
    Resize,
    Step,
)
from worker.models.repository import Repository, demo_repository
from worker.models.room import files_bytes
from worker.types import ModelRef

_UNKNOWN = Footprint()
_ITEM_BYTES = {"float32": 4, "float16": 2, "uint8": 1}


def needed_memory(settings: Settings) -> Memory:
    """Return what memory the settings may need; blocks: it reads the manifests of active versions.

    Of versions at a URL, and of those that cannot be read (their load will say why), the files
    count nothing. Raises SettingsError.
    """
    location = settings.models.repository
    repository = None
    if location is None or "://" not in location:
        folder = demo_repository() if location is None else Path(location)
        repository = Repository(folder, cache=None, seen_file=None)
    active = [ModelRef(name, version) for name, version in settings.models.active.items()]
    return memory_of(settings, {ref: _footprint(repository, ref) for ref in active})


def _footprint(repository: Repository | None, ref: ModelRef) -> Footprint:
    if repository is None:
        return _UNKNOWN
    try:
        version = repository.find(ref)
        return Footprint(
            files_bytes(version), row_bytes(version.manifest), version.manifest.batch_max_size
        )
    except (ModelError, OSError):
        return _UNKNOWN


def row_bytes(manifest: Manifest) -> int | None:
    """Return the bytes of one row as the preprocessing leaves it; None: its size is not fixed."""
    (spec,) = manifest.inputs.values()
    size, channels, item_bytes = _size(spec.preprocess), 3, 1
    for step in spec.preprocess:
        match step:
            case Color(to=to):
                channels = 1 if to == "gray" else 3
            case Normalize():
                item_bytes = _ITEM_BYTES["float32"]
            case Cast(to=dtype):
                item_bytes = _ITEM_BYTES[dtype]
            case CenterCrop() | ChannelSwap() | Resize():
                pass
    return None if size is None else size[0] * size[1] * channels * item_bytes


def _size(steps: Iterable[Step]) -> tuple[int, int] | None:
    size = None
    for step in steps:
        match step:
            case Resize():
                size = step.size
            case CenterCrop(square=True):
                size = None if size is None else (min(size), min(size))
            case CenterCrop():
                size = step.output_size
            case _:
                pass
    return size
