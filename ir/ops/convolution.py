"""Convolutions over one and two axes, channels first: spectrograms and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import OpError, check
from ..flow import Link, Links
from ..graph import Node, Value
from ..op import Op, op
from ..types import Dim, DimLike, TensorType, product
from .checks import floating, rank, same_dtype, typed
from .reduce import accumulator

if TYPE_CHECKING:
    from ..layout import Layout

_windows: Any = np.lib.stride_tricks.sliding_window_view

PerAxis = int | tuple[int, ...]
"""One number for all axes that are slid over, or one for each."""


class Convolution(Op):
    """y[b,o,i] = sum over c, k of w[o,c,k] * x[b,c, i*stride + k*dilation - padding], x being zero outside.

    x [B,C,...], w [O,C/groups,...], b [O]; output channel o reads the input channels of its group only.
    """

    axes: ClassVar[int]
    heavy = True
    autocast = True
    shard = shard_rules.needs_all

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        """As of a product: the gradient of x is made with w, and that of w with x."""
        x, w = node.value("x"), node.value("w")
        return reads.Saved(tuple(v for v, other in ((x, w), (w, x)) if other in layout.learns))

    def infer(
        self,
        x: Value,
        w: Value,
        b: Value | None = None,
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
    ) -> TensorType:
        rank(2 + self.axes, x=x, w=w)
        floating(x=x)
        same_dtype(x.dtype, w=w)
        check(groups >= 1, f"groups is {groups}, expected at least 1")
        check(
            x.shape[1] == w.shape[1] * groups, f"x has {x.shape[1]} channels, w takes {w.shape[1]} in {groups} groups"
        )
        out = w.shape[0]
        check(isinstance(out, int) and out % groups == 0, f"w gives {out} channels, not a multiple of {groups} groups")
        typed(TensorType(x.dtype, (out,)), ", the output channels of w", b=b)
        steps = zip(x.shape[2:], w.shape[2:], each(stride), each(padding), each(dilation), strict=True)
        return TensorType(x.dtype, (x.shape[0], out, *(places(*step) for step in steps)))

    def complete(self, *operands: Value | None, groups: int, **attributes: PerAxis) -> dict[str, Any]:
        least = {"stride": 1, "padding": 0, "dilation": 1}
        full = {k: (v,) * self.axes if isinstance(v, int) else tuple(v) for k, v in attributes.items()}
        for name, values in full.items():
            right = len(values) == self.axes and min(values) >= least[name]
            check(right, f"{name} is {attributes[name]}, expected {self.axes} of at least {least[name]}")
        return {"groups": groups, **full}

    def links(self, x: Value, w: Value, b: Value | None = None, *, groups: int, **attributes: PerAxis) -> Links:
        found = [Link(0, 0, 0), Link(0, 1, None), Link(1, 0, 1), *(Link(1, i, None) for i in range(1, w.rank))]
        for i in range(self.axes):
            stride, padding, dilation = (each(attributes[k])[i] for k in ("stride", "padding", "dilation"))
            at, taps = 2 + i, w.shape[2 + i]
            if stride == 1 and isinstance(taps, int):
                found += [Link(0, at, at, shift=padding - k * dilation) for k in range(taps)]
            else:
                found.append(Link(0, at, None))
        return (*found, *(() if b is None else (Link(2, 0, 1),)))

    def flops(self, x: Value, w: Value, b: Value | None = None, **attributes: Any) -> DimLike:
        y, taps = self.infer(x, w, b, **attributes), product(w.shape[1:])
        return 2 * y.elements * taps + (0 if b is None else y.elements)

    def numpy(
        self, x: Any, w: Any, b: Any = None, *, stride: PerAxis, padding: PerAxis, dilation: PerAxis, groups: int
    ) -> Any:
        padded = np.pad(accumulator(x), [(0, 0), (0, 0), *((p, p) for p in each(padding))])
        spans = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], each(dilation), strict=True)]
        windows: Any = _windows(padded, spans, axis=tuple(range(2, x.ndim)))
        windows = windows[(..., *(slice(None, None, n) for n in (*each(stride), *each(dilation))))]
        windows = windows.reshape(x.shape[0], groups, -1, *windows.shape[2:])
        at, taps = "ij"[: self.axes], "kl"[: self.axes]
        kernel = accumulator(w).reshape(groups, -1, *w.shape[1:])
        y = np.einsum(f"bgc{at}{taps},goc{taps}->bgo{at}", windows, kernel)
        y = y.reshape(x.shape[0], w.shape[0], *y.shape[3:])
        return (y if b is None else y + accumulator(b).reshape(-1, *(1,) * self.axes)).astype(x.dtype)

    def torch(self, torch: Any, x: Any, w: Any, b: Any = None, **attributes: Any) -> Any:
        return getattr(torch.nn.functional, self.name)(x, w, b, **attributes)

    def onnx(
        self,
        op: Any,
        x: Any,
        w: Any,
        b: Any = None,
        *,
        stride: PerAxis,
        padding: PerAxis,
        dilation: PerAxis,
        groups: int,
    ) -> Any:
        pads = [*each(padding), *each(padding)]
        return op.Conv(x, w, b, strides=each(stride), pads=pads, dilations=each(dilation), group=groups)


def each(value: PerAxis) -> tuple[int, ...]:
    """The numbers by axis, as `complete` has made them."""
    assert isinstance(value, tuple)
    return value


def places(length: DimLike, taps: DimLike, stride: int, padding: int, dilation: int) -> DimLike:
    """How often a kernel fits into an axis. Raises OpError where that depends on a remainder of a symbol."""
    room = length + 2 * padding - dilation * (taps - 1) - 1
    if isinstance(room, int):
        check(room >= 0, f"{taps} taps with dilation {dilation} do not fit into {length} + 2 * {padding} places")
        return room // stride + 1
    constant = next((c for symbols, c in room.terms if not symbols), 0)
    if any(c % stride for symbols, c in room.terms if symbols):
        raise OpError(
            f"stride is {stride}: the {length} places may not divide by it", hint="give the axis as a multiple"
        )
    steps = room - constant
    return (steps // stride if isinstance(steps, Dim) else 0) + constant // stride + 1


class Conv1d(Convolution):
    """Convolution over one axis: x [B,C,L], w [O,C/groups,k], b [O] -> [B,O,L']. (LeCun 1989)

    stride, padding (zeros on both sides) and dilation: one number, or one an axis. groups: the channels are cut into as
    many parts, each by itself.
    """

    axes = 1
    name = "conv1d"  # type: ignore[assignment]


class Conv2d(Convolution):
    """Convolution over two axes: x [B,C,H,W], w [O,C/groups,k,k], b [O] -> [B,O,H',W']. (LeCun et al. 1989)

    stride, padding (zeros on both sides) and dilation: one number, or one an axis. groups: the channels are cut into as
    many parts, each by itself.
    """

    axes = 2
    name = "conv2d"  # type: ignore[assignment]


conv1d, conv2d = op(Conv1d), op(Conv2d)
