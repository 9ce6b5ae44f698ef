"""Plain numbers among the operands of an elementwise op: they become constants, by PyTorch's rules of promotion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .types import Dim, DType, bool_, f32, i64
from .value import Value

if TYPE_CHECKING:
    from .graph import Graph
    from .op import Op

_WIDEST = (bool_, i64, f32)
"""The dtype that plain numbers have by themselves: of truth values, of integers and of floats."""


def with_numbers(graph: Graph, op: Op, operands: Sequence[Any]) -> list[Any]:
    """Operands in which numbers and dimensions are values of the graph.

    A number takes the dtype of the operands beside it. Where these are integers and it is a float, they are cast to
    f32; where they are bool and it is an integer, to i64. Numbers alone are f32, i64 or bool. An op that is not
    elementwise takes no numbers: its operands are given back as they are.
    """
    numbers = {i: n for i, v in enumerate(operands) if (n := number_of(v)) is not None} if op.elementwise else {}
    if not numbers:
        return list(operands)
    own = {i for i, name in enumerate(op.signature.operand_names(len(operands))) if name in op.own_dtype}
    found = list(operands)
    for places in ([i for i in range(len(found)) if i not in own], *([i] for i in own)):
        beside = next((v.dtype for i in places if isinstance(v := found[i], Value)), None)
        kind = max((_kind(numbers[i]) for i in places if i in numbers), default=0)
        dtype = _WIDEST[kind] if beside is None or kind > _rank(beside) else beside
        for i in places:
            if i in numbers:
                found[i] = _constant(graph, numbers[i], dtype)
            elif isinstance(v := found[i], Value) and _rank(v.dtype) < kind:
                found[i] = graph.apply("cast", [v], {"dtype": dtype})
    return found


def number_of(v: object) -> Any:
    """A plain number (also one of NumPy) or a dimension; None for anything else."""
    if isinstance(v, (np.ndarray, np.generic)):
        array = np.asarray(cast("Any", v))
        return array.item() if array.ndim == 0 and array.dtype.kind in "biuf" else None
    return v if isinstance(v, (bool, int, float, Dim)) else None


def _kind(n: Any) -> int:
    return 0 if isinstance(n, bool) else 2 if isinstance(n, float) else 1


def _rank(dtype: DType) -> int:
    return 0 if dtype == bool_ else 2 if dtype.is_float else 1


def _constant(graph: Graph, n: Any, dtype: DType) -> Value:
    if isinstance(n, Dim):
        size = graph.apply("iota", [], {"start": n, "length": 1, "dtype": i64})
        scalar = graph.apply("reshape", [size], {"shape": ()})
        return scalar if dtype == i64 else graph.apply("cast", [scalar], {"dtype": dtype})
    return graph.constant(int(n) if isinstance(n, bool) and dtype != bool_ else n, dtype)
