"""Reads Python sources for the architecture tests: modules, what they import, what they name.

It knows nothing of this project's rules: those stand in `rules.py`.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """A Python file, parsed."""

    name: str
    """Dotted, from the root of the project."""
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.name.endswith(".__init__")

    @property
    def area(self) -> str:
        """What the rules speak of: the package or top-level module under `worker`."""
        return self.name.split(".")[1] if "." in self.name else self.name


class Import(NamedTuple):
    """One name that a module imports, wherever in the file it does so."""

    module: str
    target: str
    """Dotted: a module, or a name in one."""
    line: int


def parse(name: str, text: str) -> Module:
    return Module(name, text, ast.parse(text))


def load(*folders: str) -> list[Module]:
    """Parse every Python file under folders of the project; a folder that is absent has none."""
    return [
        parse(".".join(path.relative_to(ROOT).with_suffix("").parts), path.read_text("utf-8"))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imports(module: Module) -> Iterator[Import]:
    """Every import: at the top, in a function, under TYPE_CHECKING alike."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.name.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, node.module] if node.module else package)
            targets = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(module.name, target, node.lineno) for target in targets)


def functions(module: Module) -> Iterator[Function]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node


def dotted_names(module: Module) -> Iterator[tuple[str, int]]:
    """Every name and dotted attribute that the module uses, as written, with its line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield ast.unparse(node), node.lineno


def comments(module: Module) -> Iterator[tuple[str, int]]:
    """Every comment, from its hash to the end of its line, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def reachable(modules: list[Module]) -> dict[str, set[str]]:
    """For each module, those among `modules` that it imports, directly or through others."""
    known = {module.name for module in modules}
    graph = {
        module.name: {
            inside
            for item in imports(module)
            if (inside := _resolve(item.target, known)) and inside != module.name
        }
        for module in modules
    }
    return {name: _reachable(name, graph) for name in graph}


def cycles(modules: list[Module]) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""
    reached = reachable(modules)
    groups = {
        tuple(sorted(other for other in seen if name in reached[other]))
        for name, seen in reached.items()
        if name in seen
    }
    return [list(group) for group in sorted(groups)]


def _resolve(target: str, known: set[str]) -> str | None:
    """The module that an imported name comes from, among `known`."""
    while target:
        if target in known:
            return target
        target = target.rpartition(".")[0]
    return None


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen
