"""Conditions that many shape rules share; each raises OpError naming the operand and what it is."""

from __future__ import annotations

from ..errors import check
from ..graph import Value
from ..types import DType, TensorType, bool_, i32, i64


def floating(**operands: Value | None) -> None:
    """Every operand given has a floating-point type."""
    for name, v in operands.items():
        if v is not None:
            check(v.dtype.is_float, f"{name} is {v.dtype}, expected a floating-point type")


def number(**operands: Value) -> None:
    """Every operand is anything but bool."""
    for name, v in operands.items():
        check(v.dtype != bool_, f"{name} is bool, expected numbers: cast it")


def indices(**operands: Value) -> None:
    """Every operand is i64 or i32."""
    for name, v in operands.items():
        check(v.dtype in (i64, i32), f"{name} is {v.dtype}, expected i64 or i32")


def rank(wanted: int, **operands: Value) -> None:
    """Every operand has `wanted` axes."""
    for name, v in operands.items():
        check(v.rank == wanted, f"{name} has rank {v.rank}, expected {wanted}")


def not_scalar(**operands: Value) -> None:
    """Every operand has at least one axis."""
    for name, v in operands.items():
        check(v.rank > 0, f"{name} is a scalar, expected at least one axis")


def same_dtype(dtype: DType, **operands: Value | None) -> None:
    """Every operand given has this dtype, that of x."""
    for name, v in operands.items():
        if v is not None:
            check(v.dtype == dtype, f"x is {dtype} but {name} is {v.dtype}: cast one of them")


def typed(expected: TensorType, what: str, **operands: Value | None) -> None:
    """Every operand given has this very type; `what` says where it comes from."""
    for name, v in operands.items():
        if v is not None:
            check(v.type == expected, f"{name} is {v.type}, expected {expected}{what}")
