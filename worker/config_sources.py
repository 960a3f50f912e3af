"""Where settings come from: a YAML file and variables, as raw values with their origins.

Knows the dotted paths that exist and their annotations, not what the settings mean, and reads no
environment of its own: `config.py` hands it one.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import SecretStr

PREFIX = "DARKROOM_"
NO_SETTINGS = {
    "DARKROOM_CONFIG",
    "DARKROOM_DEBUG",
    "DARKROOM_FAILPOINT",
    "DARKROOM_TEST_ASSETS",
}
"""Variables with our prefix that are no settings."""


class Sources:
    """What was read so far: raw values and origins by dotted path, and the problems met."""

    def __init__(self, annotations: Mapping[str, Any]) -> None:
        """Take the annotation of every setting by its dotted path."""
        self.annotations = annotations
        self.sections = {path.rpartition(".")[0] for path in annotations}
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def read_file(self, path: Path) -> None:
        """Take the values of a YAML file; whatever is wrong with it becomes a problem."""
        try:
            loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
            node = loader.get_single_node()
            if node is not None:
                self._read_node(node, "", _File(path, loader))
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{path}: the settings file cannot be read: {error}")
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            self.problems.append(f"{path}:{line}: no valid YAML: {error.problem}")
        except yaml.YAMLError as error:
            self.problems.append(f"{path}: no valid YAML: {error}")

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Take the values of our variables; an unknown one is a problem."""
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or variable in NO_SETTINGS:
                continue
            path = variable.removeprefix(PREFIX).lower().replace("__", ".")
            of_file = path.removesuffix("_file")
            if path in self.annotations and variable == _variable(path):
                self._read_variable(path, environ[variable])
            elif path.endswith("_file") and self.is_secret(of_file):
                self._read_secret(of_file, variable, environ)
            else:
                meant = self._meant(path, show=_variable)
                self.problems.append(f"{variable}: unknown setting{meant}")

    def is_secret(self, path: str) -> bool:
        return SecretStr in get_args(self.annotations.get(path))

    def _put(self, path: str, value: Any, origin: str) -> None:
        self.values[path] = value
        self.origins[path] = origin

    def _read_node(self, node: yaml.Node, path: str, file: "_File") -> None:
        origin = f"{file.path}:{node.start_mark.line + 1}"
        if path in self.annotations:
            if path in self.values:
                self.problems.append(f"{path} ({origin}): stands in the file twice")
            self._put(path, file.loader.construct_object(node, deep=True), origin)
        elif path not in self.sections:
            self.problems.append(f"{path} ({origin}): unknown setting{self._meant(path)}")
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._read_node(value, f"{path}.{key.value}" if path else str(key.value), file)
        elif node.tag != "tag:yaml.org,2002:null":
            where = f"{path} ({origin})" if path else origin
            self.problems.append(f"{where}: expected a map of settings")

    def _read_variable(self, path: str, text: str) -> None:
        variable = _variable(path)
        annotation = self.annotations[path]
        if get_origin(annotation) in (tuple, dict) or (
            _may_be_list(annotation) and text[:1] == "["
        ):
            try:
                self._put(path, json.loads(text), variable)
            except ValueError:
                example = '["a", "b"]' if get_origin(annotation) is tuple else '{"name": "1"}'
                self.problems.append(f"{path} ({variable}): {text!r} is no JSON such as {example}")
        else:
            optional = type(None) in get_args(annotation)
            self._put(path, None if optional and text == "null" else text, variable)

    def _read_secret(self, path: str, variable: str, environ: Mapping[str, str]) -> None:
        if _variable(path) in environ:
            self.problems.append(f"{path} ({variable}): {_variable(path)} is set too; keep one")
            return
        try:
            secret = Path(environ[variable]).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{path} ({variable}): the secret cannot be read: {error}")
        else:
            self._put(path, secret, f"{variable} ({environ[variable]})")

    def _meant(self, path: str, *, show: Callable[[str], str] = str) -> str:
        known = [*self.annotations, *filter(None, self.sections)]
        close = difflib.get_close_matches(path, known, n=1)
        return f"; did you mean {show(close[0])}?" if close else ""


class _File(NamedTuple):
    path: Path
    loader: yaml.SafeLoader


def _may_be_list(annotation: Any) -> bool:
    """Say whether a list is one of several kinds of value; one with bounds is Annotated."""
    kinds = (getattr(kind, "__origin__", kind) for kind in get_args(annotation))
    return any(get_origin(kind) is tuple for kind in kinds)


def _variable(path: str) -> str:
    return PREFIX + path.replace(".", "__").upper()
