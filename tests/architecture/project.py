"""Reads what stands around the code: tracked text, locks, the map, the linter's exceptions.

Each checker takes text and returns one sentence for each violation.
"""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MAP_LINES = 200
BINARY = {".onnx", ".png", ".jpg", ".npz", ".zip", ".gz"}
MADE_HERE = {".git", ".venv", ".darkroom", ".hypothesis", "build", "dist", "out", "__pycache__"}

MACHINE_PATH = re.compile(r"(?<![\w.$~{}])/(?:home/\w|root/|work/\w|Users/\w)")
ADDRESS = re.compile(
    r"(?:index-url|find-links)[= ]"
    r"|://[^/\s]*@(?!example\b)"
    r"|(?:registry|url)\s*=\s*\"?https?://\d"
    r"|pypi[^/\s]*/simple"
)
QUOTED_PATH = re.compile(r"`([\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:py|md|toml|yml|yaml))`")


def text_files(root: Path) -> list[Path]:
    """Every text file of the project, but what tools made in it."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.suffix not in BINARY
        and not any(
            part in MADE_HERE or part.endswith(("_cache", ".egg-info"))
            for part in path.relative_to(root).parts
        )
    ]


def machine_traces(name: str, text: str) -> list[str]:
    """Find paths of one machine, and addresses of package registries, that no user has."""
    return [
        f"{name}:{number} names what one machine has: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line) or ADDRESS.search(line)
    ]


def lock_faults(lock: str, declared: list[str]) -> list[str]:
    """Want each declared requirement pinned inside its bounds, each pin hashed, no address."""
    entries = re.sub(r"\\\n", "", re.sub(r"(?m)^\s*#.*\n", "", lock)).splitlines()
    pins: dict[str, list[str]] = {}
    found = []
    for entry in entries:
        pin = re.match(r"([\w.-]+)==([^\s;]+)", entry)
        if pin is None or "--hash=sha256:" not in entry or "://" in entry:
            found.append(f"no pin with a hash: {entry.strip()[:80]}")
            continue
        pins.setdefault(canonicalize_name(pin[1]), []).append(pin[2])
    for text in declared:
        wanted = Requirement(text)
        versions = pins.get(canonicalize_name(wanted.name), [])
        if not versions or not all(wanted.specifier.contains(version) for version in versions):
            found.append(f"{text} is not met by {versions or 'any pin'}: make lock")
    return found


def map_faults(text: str, root: Path) -> list[str]:
    """Want a short map, and every path that it quotes (from the root, or inside worker/)."""
    found = []
    if (lines := text.count("\n")) > MAP_LINES:
        found.append(f"{lines} lines: a map of more than {MAP_LINES} is not read")
    found += [
        f"{quoted} does not exist"
        for quoted in QUOTED_PATH.findall(text)
        if not any((base / quoted).exists() for base in (root, root / "worker"))
    ]
    return found


def unreasoned(pyproject: str) -> list[str]:
    """Find ruff exceptions without a reason on their line."""
    listed = re.compile(r'^\s+"[A-Z]+[0-9]*",|^"[^"]+" = \[".*\]')
    return [
        line.strip()
        for line in pyproject.partition("[tool.ruff.lint]")[2]
        .partition("[tool.mypy]")[0]
        .splitlines()
        if listed.match(line) and not re.search(r"# \S", line)
    ]
