"""One version, loaded: from a decoded image to a row, from rows to predictions.

Pure calls on arrays, for any lane at once; it must not know threads, records or the channel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from worker.engine.artifacts import Hold
from worker.engine.contract import Agreement
from worker.engine.costs import Costs
from worker.engine.headroom import Headroom
from worker.engine.session import RUN_ERRORS, Session
from worker.errors import RecordFault
from worker.types import Limits

Array = NDArray[Any]
_SAME = 1e-3
"""Relative difference that another batch size may make; kernels sum in another order."""
Reading = bytes | RecordFault
"""JSON of one row, or why there is none."""
Heads = dict[str, Callable[[Array], list[Reading]]]
"""By name, in the order of `Agreement.outputs`: one output array -> a reading of each row."""


class Proof(NamedTuple):
    """A golden sample as a batch of one row, and what the graph gave for it when it was proved."""

    batch: Array
    outputs: list[Array]


@dataclass(slots=True)
class Model:
    """A session and what the manifest makes of it."""

    session: Session
    sha256: str
    agreement: Agreement
    prepare: Callable[[Array, Array], None]
    """Write a decoded image (uint8 RGB HWC) into a row of the batch tensor."""
    compile_heads: Callable[[Mapping[str, float]], Heads]
    """Return the heads with these thresholds; a head that is not named has its manifest's."""
    heads: Heads
    """Replaced whole while lanes run; the names stay."""
    max_size: int | None
    """Of the manifest."""
    costs: Costs
    """What batches take, by their size; their lock is the sizing's."""
    rows_mix: bool = False
    """Rows of one batch change each other's results: they are run one by one."""
    proof: Proof | None = None
    """Set once the golden samples have been right."""
    headroom: Headroom = field(default_factory=Headroom)
    kept: Hold | None = None
    """Of the folder with what was made of it, which is read and written as long as it serves."""
    staging: str = "no"
    """`no`; or how rows are staged for a device: `bound, folded`, or `bound, not folded: WHY`, and
    `bound, not pinned, …` where slabs are in memory that a GPU reads by way of another copy."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.agreement.row_shape

    @property
    def row_dtype(self) -> str:
        return self.agreement.row_dtype

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape)) * np.dtype(self.row_dtype).itemsize

    def cap(self, limits: Limits) -> int:
        """Return how many rows a batch may have: the least that anybody allows, at least one."""
        allowed = [limits.max_size, limits.max_bytes // self.row_bytes]
        if self.max_size is not None:
            allowed.append(self.max_size)
        if self.agreement.fixed_batch is not None:
            allowed.append(self.agreement.fixed_batch)
        if self.rows_mix:
            allowed.append(1)
        if self.headroom.rows is not None:
            allowed.append(self.headroom.rows)
        return max(1, min(allowed))

    def run(self, batch: Array) -> list[Array]:
        """Return the outputs that heads read for rows `[n, ...]`; raises one of RUN_ERRORS.

        Where only some sizes can be run, the tail is padded with the last row; what comes of that
        is cut.
        """
        rows = len(batch)
        whole = self.agreement.fixed_batch or self.costs.whole(rows)
        if rows < whole:
            batch = np.concatenate([batch, np.repeat(batch[-1:], whole - rows, axis=0)])
        outputs = self.session.run(self.agreement.outputs, {self.agreement.input_name: batch})
        for name, output in zip(self.agreement.outputs, outputs, strict=True):
            if len(output) != len(batch):
                raise ValueError(f"output {name} has {len(output)} rows for {len(batch)}")
        return [output[:rows] for output in outputs]

    def work_s(self, seconds: float, computed_s: float) -> float:
        """Return how much of the seconds of a run was work, if its lane computed for so long."""
        return computed_s if self.session.in_lane else seconds

    def golden(self, rows: int) -> Array:
        """Return a batch of so many rows, each that of the first golden sample."""
        assert self.proof is not None
        return np.repeat(self.proof.batch, rows, axis=0)

    def still_right(self, rows: int = 1) -> bool:
        """Run so many of the golden sample; say whether the device still gives what it gave.

        Another size may be another kernel's, which fails alone.
        """
        assert self.proof is not None
        try:
            outputs = self.run(self.golden(rows))
        except RUN_ERRORS:
            return False
        expected = [np.repeat(each, rows, axis=0) for each in self.proof.outputs]
        return all(map(same, expected, outputs))

    def predictions(self, outputs: Sequence[Array]) -> list[Reading]:
        """Return for each row a JSON object of all heads, or the fault of the first that failed."""
        columns = [read(output) for read, output in zip(self.heads.values(), outputs, strict=True)]
        names = [orjson.dumps(name) + b":" for name in self.heads]
        return [_member(names, row) for row in zip(*columns, strict=True)]


def same(one: Array, two: Array) -> bool:
    """Say whether two arrays of outputs are equal, but for what another batch size may change."""
    scale = float(np.max(np.abs(one), initial=0.0))
    return bool(np.allclose(one, two, rtol=_SAME, atol=_SAME * scale))


def _member(names: Sequence[bytes], row: Sequence[Reading]) -> Reading:
    parts = []
    for name, reading in zip(names, row, strict=True):
        if isinstance(reading, RecordFault):
            return reading
        parts.append(name + reading)
    return b"{" + b",".join(parts) + b"}"
