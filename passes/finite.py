"""Weights that are about to be kept in fewer bits must be finite: one rule, whichever way they become narrower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..ir.errors import WeightsError
from ..ir.tensors import Array, Tensor

_SLAB = 1 << 20
"""Numbers looked at together."""


def check_finite(name: str, values: Array, first: int = 0) -> None:
    """Raises WeightsError naming a weight, the number, and where it is, if one is NaN or infinite in f32.

    first: index along the first axis at which the values begin, where they are a part of the weight.
    """
    if not (values.size and values.dtype.kind not in "iub"):
        return
    rows = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
    step = max(1, _SLAB // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        with np.errstate(over="ignore"):
            finite = np.isfinite(rows[start : start + step].astype(np.float32, copy=False))
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            inside = np.unravel_index(column, values.shape[1:]) if values.ndim > 1 else ()
            place = [first + start + row, *map(int, inside)] if values.ndim else []
            what = f"{name} has a number that is not finite: {rows[start + row, column]} at {place}"
            raise WeightsError(what, hint="look at the checkpoint: in fewer bits no sense can be made of it")


def check_weights(weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """`check_finite` of the named weights that hold floats, one at a time. Those that are not there are left out."""
    for name in names:
        tensor = weights.get(name)
        if tensor is not None and tensor.dtype.is_float:
            check_finite(name, tensor.numpy())
