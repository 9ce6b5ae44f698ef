"""ATen ops that make tensors of numbers: ranges, constants, copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir import Value, ops
from ...ir.types import f32
from .call import Call, Number, Table


def _arange(c: Call, start: Number, end: Number, step: Number = 1) -> Value:
    (length,) = c.shape
    if not c.dtype.is_float:  # As in PyTorch, which cuts each of them first.
        start, step = (int(v) if isinstance(v, float) else v for v in (start, step))
    if isinstance(step, float) or isinstance(start, float):
        return ops.iota(start=0, length=length, dtype=c.dtype if c.dtype.is_float else f32).cast(c.dtype) * step + start
    first: Any = start
    if step == 1:
        return ops.iota(start=first, length=length, dtype=c.dtype)
    steps = ops.iota(start=0, length=length, dtype=c.dtype)
    return steps * step + c.value(start, c.dtype)


def _full(c: Call, size: Any, number: Number) -> Value:
    return c.expanded(c.value(number, c.dtype), c.shape)


def _arange_to(c: Call, end: Number) -> Value:
    return _arange(c, 0, end)


def _new_full(c: Call, x: Value, size: Any, number: Number) -> Value:
    return _full(c, size, number)


def _full_like(c: Call, x: Value, number: Number) -> Value:
    return c.expanded(c.value(number, c.dtype), c.shape)


def _all(number: float) -> Callable[..., Value]:
    """zeros, ones and what is not filled at all, of the shape that is asked for."""

    def handler(c: Call, *rest: Any) -> Value:
        return c.expanded(c.value(number, c.dtype), c.shape)

    return handler


def _scalar(c: Call, number: Number) -> Value:
    return c.value(number, c.dtype)


def _copied(c: Call, x: Value, source: Value) -> Value:
    return c.expanded(c.cast(source, x.dtype), x.shape)


_NOT_FILLED = ("empty.memory_format", "empty_like.default", "new_empty.default", "empty_permuted.default",
    "empty_strided.default", "new_empty_strided.default")  # fmt: skip

CREATION: Table = {
    "aten.arange.start_step": _arange,
    "aten.arange.start": _arange,
    "aten.arange.default": _arange_to,
    "aten.full.default": _full,
    "aten.full_like.default": _full_like,
    "aten.new_full.default": _new_full,
    **dict.fromkeys(("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default"), _all(0)),
    **{f"aten.{name}": _all(0) for name in _NOT_FILLED},
    **dict.fromkeys(("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default"), _all(1)),
    "aten.scalar_tensor.default": _scalar,
    "aten.fill.Scalar": _full_like,
    "aten.fill.Tensor": _full_like,
    "aten.copy.default": _copied,
}
"""Handlers of the ops of this file."""
