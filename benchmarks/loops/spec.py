"""What a hand-written loop is told when it is started: one JSON argument."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from benchmarks.recipe import Recipe


class LoopSpec(NamedTuple):
    """Topics, group, model, and how much at a time."""

    bootstrap: str
    input: str
    output: str
    group: str
    lanes: int
    chunk: int
    chunks: int
    poll: int
    batches: bool
    recipe: Recipe

    def to_json(self) -> str:
        return json.dumps(self)


def from_arguments() -> LoopSpec:
    *plain, recipe = json.loads(sys.argv[1])
    return LoopSpec._make((*plain, Recipe._make(recipe)))


def result(
    head: str, partition: int | None, offset: int | None, best: Sequence[dict[str, Any]]
) -> bytes:
    """Return what such a loop would publish: the labels, and which record they are of."""
    source = {"partition": partition, "offset": offset}
    return orjson.dumps({"status": "ok", "source": source, "predictions": {head: best}})
