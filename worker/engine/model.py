"""One version, loaded: from a decoded image to a row, from rows to predictions.

Pure calls on arrays, for any lane at once; it must not know threads, records or the channel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from worker.engine.contract import Agreement
from worker.engine.session import Session
from worker.errors import RecordFault
from worker.types import Limits

Array = NDArray[Any]
_GAIN = 1.1
"""What a row alone must cost more than in the best batch for company to be worth waiting for."""
Reading = bytes | RecordFault
"""JSON of one row, or why there is none."""
Heads = dict[str, Callable[[Array], list[Reading]]]
"""By name, in the order of `Agreement.outputs`: one output array -> a reading of each row."""


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
    service_ms: dict[str, float] = field(default_factory=dict)
    """Batch size -> milliseconds of one run, measured while warming."""
    rows_mix: bool = False
    """Rows of one batch change each other's results: they are run one by one."""
    staging: str = "no"
    """Whether rows are staged for a device, and its graph folded; else why not (see staging)."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.agreement.row_shape

    @property
    def row_dtype(self) -> str:
        return self.agreement.row_dtype

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape)) * np.dtype(self.row_dtype).itemsize

    @property
    def gains(self) -> bool:
        """Say whether rows are cheaper together, by what was measured while warming."""
        each_ms = {int(size): ms / int(size) for size, ms in self.service_ms.items()}
        return each_ms.get(1, float("inf")) > _GAIN * min(each_ms.values(), default=0.0)

    def cap(self, limits: Limits) -> int:
        """Return how many rows a batch may have: the least that anybody allows, at least one."""
        allowed = [limits.max_size, limits.max_bytes // self.row_bytes]
        if self.max_size is not None:
            allowed.append(self.max_size)
        if self.agreement.fixed_batch is not None:
            allowed.append(self.agreement.fixed_batch)
        if self.rows_mix:
            allowed.append(1)
        return max(1, min(allowed))

    def run(self, batch: Array) -> list[Array]:
        """Return the outputs that heads read for rows `[n, ...]`; raises one of RUN_ERRORS.

        A graph of a fixed batch gets its tail padded with the last row; what comes of that is cut.
        """
        rows = len(batch)
        fixed = self.agreement.fixed_batch
        if fixed is not None and rows < fixed:
            batch = np.concatenate([batch, np.repeat(batch[-1:], fixed - rows, axis=0)])
        outputs = self.session.run(self.agreement.outputs, {self.agreement.input_name: batch})
        for name, output in zip(self.agreement.outputs, outputs, strict=True):
            if len(output) != len(batch):
                raise ValueError(f"output {name} has {len(output)} rows for {len(batch)}")
        return [output[:rows] for output in outputs]

    def predictions(self, outputs: Sequence[Array]) -> list[Reading]:
        """Return for each row a JSON object of all heads, or the fault of the first that failed."""
        columns = [read(output) for read, output in zip(self.heads.values(), outputs, strict=True)]
        names = [orjson.dumps(name) + b":" for name in self.heads]
        return [_member(names, row) for row in zip(*columns, strict=True)]


def _member(names: Sequence[bytes], row: Sequence[Reading]) -> Reading:
    parts = []
    for name, reading in zip(names, row, strict=True):
        if isinstance(reading, RecordFault):
            return reading
        parts.append(name + reading)
    return b"{" + b",".join(parts) + b"}"
