"""The files of one model version, held to its manifest before anything opens them.

It must not know what the files mean.
"""

import hashlib
import os
from pathlib import Path

from worker.errors import ModelError
from worker.models.manifest import MANIFEST_NAME, Manifest
from worker.models.regular import open_regular


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check that `folder` holds exactly the files that the manifest lists, byte for byte.

    Raises one ModelError that names every file that is absent, not regular, of another digest,
    or there without being listed (ONNX Runtime would open it as external data, unchecked).
    """
    problems = []
    for name, sha256 in manifest.files.items():
        try:
            with open_regular(folder, name) as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except ModelError as error:
            problems.append(str(error))
            continue
        if found != sha256:
            problems.append(
                f"{folder / name}: has sha256 {found}, the manifest says {sha256}: fetch the"
                " version again; a file changed on purpose wants a new version and manifest"
            )
    problems += [
        f"{folder / name}: is not listed in the manifest: add it under files with its"
        " sha256, or remove it"
        for name in sorted(names_below(folder) - {*manifest.files, MANIFEST_NAME})
    ]
    if len(problems) == 1:
        raise ModelError(problems[0])
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ModelError(f"{folder}: {len(problems)} files are not as they must be{lines}")


def names_below(folder: Path) -> set[str]:
    """Names of all that is no folder, symbolic links to folders too."""
    names = set()
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        names |= {Path(parent, name).relative_to(folder).as_posix() for name in [*files, *links]}
    return names
