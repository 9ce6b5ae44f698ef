"""A plan says, by name, how each weight is stored and who rounds it; applied, it gives weights that keep their blocks.

Each tensor is rounded once, written to a scratch file and read from there, so that one tensor is in memory at a time
and whoever wants codes and scales apart does not round twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...ir.encoded import Encoded
from ...ir.encodings import Encoding
from ...ir.errors import WeightsError
from ...ir.silent import silent
from ...ir.tensors import Array, ArrayTensor, Span, StoredTensor, Tensor, stamp_of
from ...ir.types import TensorType, f32, u8
from ...ir.weights import Weights

Progress = Callable[[int, int, str], None]
"""(tensors rounded, tensors in all, the one just rounded)."""


_SLAB = 1 << 20
"""Numbers compared with what they are stored as at a time."""


class Method(Protocol):
    """A way to choose codes. Those that need calibration hold their statistics."""

    @property
    def name(self) -> str:
        """As users write it: rtn, kquant, hqq, gptq, awq, smoothquant."""
        ...

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        """Stored lines u8 of weight f32 [rows, columns] in an encoding with blocks along its rows.

        Raises WeightsError for a weight with numbers that are not finite.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """What becomes of one weight. why: for reports, where the plan departs from what was asked."""

    encoding: Encoding
    method: Method
    why: str = ""


Plan = Mapping[str, Choice]
"""By name of the weight; weights that it does not name stay as they are."""


@dataclass(frozen=True)
class Rounded:
    """A weight that keeps its blocks. error: length of the difference over that of the weight."""

    name: str
    tensor: Encoded
    error: float


def apply(weights: Mapping[str, Tensor], plan: Plan, scratch: Path, progress: Progress | None = None) -> Weights:
    """The weights, with those of the plan rounded and stored in `scratch`, a folder that outlives what is given.

    Raises WeightsError for a tensor that cannot be read or rounded, EncodingError where an encoding does not fit.
    """
    return Weights({**weights, **{r.name: r.tensor for r in rounded(weights, plan, scratch, progress)}})


def rounded(
    weights: Mapping[str, Tensor], plan: Plan, scratch: Path, progress: Progress | None = None
) -> Iterator[Rounded]:
    """`apply`, weight by weight, with how far each is off."""
    for done, (name, choice) in enumerate(plan.items(), 1):
        encoding = choice.encoding
        type = weights[name].type.decoded.with_dtype(f32).encoded(encoding)
        values = weights[name].cast(f32).numpy()
        along_rows = np.ascontiguousarray(np.moveaxis(values, encoding.axis, -1))
        lines = choice.method.lines(name, along_rows, encoding.along(-1, 2))
        kept = written(scratch / f"{done}.lines", name, lines)
        error = _error(along_rows, lines, encoding.along(-1, 2))
        if not math.isfinite(error):
            most = float(np.abs(values).max())
            what = f"{name} cannot be rounded by {choice.method.name} to {encoding}: numbers reach {most:.3g}"
            raise WeightsError(what, hint="a number of this size is damage; where it is not, keep the weight wide")
        yield Rounded(name, Encoded(kept, type), error)
        (progress or silent)(done, len(plan), name)


def _error(weight: Array, lines: Array, encoding: Encoding) -> float:
    """Relative error of stored lines, a slab of rows at a time."""
    off = whole = 0.0
    step = max(1, _SLAB // max(weight.shape[-1], 1))
    for start in range(0, len(weight), step):
        x, piece = weight[start : start + step], lines[start : start + step]
        y = Encoded(ArrayTensor(piece), TensorType(f32, x.shape, encoding)).numpy()
        gap, wide = np.subtract(y, x, dtype=np.float64), x.astype(np.float64)
        off += float(np.vdot(gap, gap))
        whole += float(np.vdot(wide, wide))
    return (off / whole) ** 0.5 if whole else 0.0


def written(file: Path, name: str, lines: Array) -> StoredTensor:
    """An array on disk, memory-mapped when read."""
    with file.open("wb") as f:
        f.write(lines.data)
        f.flush()
        stamp = stamp_of(f.fileno())
    return StoredTensor(name, TensorType(u8, lines.shape), Span(file, 0, lines.nbytes, stamp))
