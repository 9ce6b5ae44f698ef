"""Convolutions and Einstein sums of ONNX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...ir import ops
from ...ir.graph import Value
from ...ir.types import DimLike, product
from .errors import Unmapped
from .ops_reduce import over
from .use import Handlers, Use


def _conv(use: Use) -> Value:
    x, w, b = use[0], use[1], use.get(2)
    axes = x.rank - 2
    if axes not in (1, 2):
        raise Unmapped(f"a convolution over {axes} axes")
    stride: Sequence[int] = use.attribute("strides", (1,) * axes)
    dilation: Sequence[int] = use.attribute("dilations", (1,) * axes)
    before, after = _pads(use, x, w, stride, dilation)
    padding = tuple(before)
    if before != after:
        widths: list[tuple[DimLike, DimLike]] = [(0, 0), (0, 0), *zip(before, after, strict=True)]
        x, padding = ops.pad(x, widths=tuple(widths)), (0,) * axes
    make = ops.conv1d if axes == 1 else ops.conv2d
    return make(
        x, w, b, stride=tuple(stride), padding=padding, dilation=tuple(dilation), groups=use.attribute("group", 1)
    )


def _pads(use: Use, x: Value, w: Value, stride: Sequence[int], dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    axes, auto = x.rank - 2, use.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID", ""):
        pads = use.attribute("pads", (0,) * (2 * axes)) if auto != "VALID" else (0,) * (2 * axes)
        return list(pads[:axes]), list(pads[axes:])
    before, after = list[int](), list[int]()
    for i in range(axes):
        size, taps = x.shape[2 + i], w.shape[2 + i]
        if not isinstance(size, int) or not isinstance(taps, int):
            raise Unmapped(f"auto_pad {auto} of {size} places")
        total = max(0, (-(-size // stride[i]) - 1) * stride[i] + dilation[i] * (taps - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before, after


def _einsum(use: Use) -> Value:
    """One or two operands without a letter twice in one of them: a batched matrix product between reshapes."""
    equation = use.attribute("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if (
        "." in equation
        or not re.fullmatch(r"[A-Za-z,]*", left)
        or len(terms) not in (1, 2)
        or len(terms) != len(use.node.input)
    ):
        raise Unmapped(f"the sum {equation}")
    if not arrow:
        letters = left.replace(",", "")
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if any(len(set(t)) < len(t) for t in (*terms, right)):
        raise Unmapped(f"the sum {equation} has a diagonal")
    if len(terms) == 1:
        x, names = _summed(use[0], terms[0], right)
        return _ordered(x, names, right)
    return _product(use[0], use[1], terms[0], terms[1], right)


def _summed(x: Value, names: str, kept: str) -> tuple[Value, str]:
    """x summed over the letters that are not kept."""
    axes = [i for i, c in enumerate(names) if c not in kept]
    if not axes:
        return x, names
    return over(x, axes, ops.sum, keep=False), "".join(c for c in names if c in kept)


def _ordered(x: Value, names: str, wanted: str) -> Value:
    order = tuple(names.index(c) for c in wanted)
    return x if order == tuple(range(len(order))) else ops.transpose(x, permutation=order)


def _product(x: Value, y: Value, a: str, b: str, out: str) -> Value:
    x, a = _summed(x, a, b + out)
    y, b = _summed(y, b, a + out)
    sizes = dict(zip(a + b, x.shape + y.shape, strict=True))
    batch = [c for c in a if c in b and c in out]
    inner = [c for c in a if c in b and c not in out]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]

    def size(names: list[str]) -> DimLike:
        return product(sizes[c] for c in names)

    def shape(names: list[str]) -> tuple[DimLike, ...]:
        return tuple(sizes[c] for c in names)

    left = ops.reshape(_ordered(x, a, "".join(batch + rows + inner)), shape=(*shape(batch), size(rows), size(inner)))
    right = ops.reshape(
        _ordered(y, b, "".join(batch + inner + columns)), shape=(*shape(batch), size(inner), size(columns))
    )
    z = ops.reshape(ops.matmul(left, right), shape=shape(batch + rows + columns))
    return _ordered(z, "".join(batch + rows + columns), out)


PRODUCTS: Handlers = {"Conv": _conv, "Einsum": _einsum}
"""By op type of the standard domain."""
