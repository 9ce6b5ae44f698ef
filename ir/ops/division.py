"""Floor division and its rest, of floats and integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backward_reads as reads
from ..op import binary
from .elementwise import Binary


class FloorDiv(Binary):
    """The largest integer that is at most x / y, in the dtype of x, broadcast; an integer by 0 gives 0.

    As Python's `//`: floor_div(-7, 2) is -4.
    """

    torch_name, onnx_name = "floor_divide", "Div"
    backward_reads = reads.nothing

    def numpy(self, x: Any, y: Any) -> Any:
        return np.floor_divide(x, y)

    def torch(self, torch: Any, *xs: Any) -> Any:
        # Of floats only: the PyTorch backend has a function for integers, too, which looks at the dtype.
        return torch.div(*xs, rounding_mode="floor")

    def onnx(self, op: Any, *xs: Any) -> Any:
        x, y = xs
        zero, by = op.constant(np.zeros((), x.dtype.numpy)), y if x.dtype.is_float else _nonzero(op, y)
        # Cut towards 0 and then taken down: x less a rest of the other sign has no place beside the largest integer,
        # nor beside an infinite y.
        rest = op.Mod(x, by, fmod=int(x.dtype.is_float))
        below = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(x, zero), op.Less(by, zero)))
        if not x.dtype.is_float:
            return op.Mul(op.Sub(op.Div(x, by), _number(op, below, x)), _number(op, op.Not(op.Equal(y, zero)), x))
        cut = op.Round(op.Div(op.Sub(x, rest), by))
        quotient = op.Where(below, op.Sub(cut, op.constant(np.ones((), x.dtype.numpy))), cut)
        return op.Where(op.Equal(y, zero), op.Div(x, y), quotient)


class Mod(Binary):
    """x - y * floor(x / y), with the sign of y, broadcast; an integer by 0 gives 0.

    As Python's `%`: mod(-7, 2) is 1.
    """

    torch_name, onnx_name = "remainder", "Mod"
    backward_reads = reads.operands

    def numpy(self, x: Any, y: Any) -> Any:
        return np.mod(x, y)

    def onnx(self, op: Any, *xs: Any) -> Any:
        x, y = xs
        if x.dtype.is_float:
            return _rest(op, x, y)
        zero = op.constant(np.zeros((), x.dtype.numpy))
        return op.Mul(op.Mod(x, _nonzero(op, y)), _number(op, op.Not(op.Equal(y, zero)), x))


def _nonzero(op: Any, y: Any) -> Any:
    """y with 1 for 0: runtimes stop the process where they divide an integer by 0."""
    return op.Add(y, _number(op, op.Equal(y, op.constant(np.zeros((), y.dtype.numpy))), y))


def _number(op: Any, truth: Any, like: Any) -> Any:
    """1 or 0 in the dtype of `like`: runtimes that compute with an integer need not choose (Where) between two."""
    return op.Cast(truth, to=op.element_type(like.dtype))


def _rest(op: Any, x: Any, y: Any) -> Any:
    """The rest of floats with the sign of y; ONNX's own has that of x."""
    zero = op.constant(np.zeros((), x.dtype.numpy))
    rest = op.Mod(x, y, fmod=1)
    turned = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
    return op.Where(turned, op.Add(rest, y), rest)


floor_div, mod = binary(FloorDiv), binary(Mod)
