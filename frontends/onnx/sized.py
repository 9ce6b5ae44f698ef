"""Sizes of what foreign nodes give, by operands whose integers are known as sizes; ONNX's inference reads numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.errors import MonographError
from ...ir.types import Dim, DimLike, Shape, exact_div, product
from .equal import MEETING, Equal
from .errors import Unmapped
from .use import Use

Shapes = Sequence["Shape | None"]


def sizes_of(use: Use, shapes: Sequence[Shape]) -> Shapes:
    """A shape for each output of a node, as far as its operands say one; their shapes are given."""
    kind = use.node.op_type
    if use.node.domain not in ("", "ai.onnx"):
        return ()
    if kind in MEETING and kind != "MatMul":
        return (_met(shapes, use.importer.sizes.inputs),)
    try:
        return SIZED[kind](use, shapes) if kind in SIZED else ()
    except (Unmapped, MonographError, IndexError):
        return ()


def counts_of(use: Use) -> list[Equal]:
    """Which axis of an input must be as long as a kernel or a weight has channels or rows."""
    at = COUNTED.get(use.node.op_type)
    if at is None or use.node.domain not in ("", "ai.onnx") or len(use.node.input) <= at:
        return []
    x, w = (use.importer.type_of(use.node.input[i]).shape for i in (0, at))
    try:
        if "Conv" not in use.node.op_type and x and len(w) > 1:
            use.importer.sizes.counted(x[-1], w[-2])
        elif "Conv" in use.node.op_type and len(x) > 2 and len(w) > 2:
            use.importer.sizes.counted(x[1], w[1] * use.attribute("group", 1))
    except Equal as e:
        return [e]
    return []


COUNTED = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
"""Operand that holds the kernel or weight, by the op type: it says how many channels or terms the first one has."""


def _met(shapes: Sequence[Shape], inputs: Sequence[str]) -> Shape:
    """Of operands that meet axis by axis, the size that says most: sizes of one axis are equal, or 1."""
    rank = max(map(len, shapes), default=0)
    found: list[DimLike] = []
    for axis in range(-rank, 0):
        here = [s[axis] for s in shapes if len(s) >= -axis and s[axis] != 1]
        found.append(min(here, key=lambda d: _unknown(d, inputs), default=1))
    return tuple(found)


def _unknown(d: DimLike, inputs: Sequence[str]) -> int:
    """0 for a number, 1 for what the sizes of the inputs are, 2 for others."""
    return 0 if not isinstance(d, Dim) else 1 if d.symbols <= set(inputs) else 2


def _topk(use: Use, shapes: Sequence[Shape]) -> Shapes:
    (count,) = use.dims(1)
    axis = use.axis(use.attribute("axis", -1), len(shapes[0]))
    shape = tuple(count if i == axis else d for i, d in enumerate(shapes[0]))
    return shape, shape


def _reshape(use: Use, shapes: Sequence[Shape]) -> Shapes:
    x, wanted = shapes[0], use.dims(1)
    zero = use.attribute("allowzero", 0)
    shape = [x[i] if isinstance(d, int) and d == 0 and not zero else d for i, d in enumerate(wanted)]
    if -1 in shape:
        at = shape.index(-1)
        shape[at] = exact_div(product(x), product(d for i, d in enumerate(shape) if i != at))
    return (tuple(shape),)


def _expand(use: Use, shapes: Sequence[Shape]) -> Shapes:
    return (_met([shapes[0], use.dims(1)], use.importer.sizes.inputs),)


def _filled(use: Use, _: Sequence[Shape]) -> Shapes:
    return (use.dims(0),)


def _conv(use: Use, shapes: Sequence[Shape]) -> Shapes:
    x, w = shapes[:2]
    return ((x[0], w[0], *_steps(use, x[2:], w[2:])),)


def _pool(use: Use, shapes: Sequence[Shape]) -> Shapes:
    if use.attribute("ceil_mode", 0):
        raise Unmapped("rounds up")
    (x,) = shapes
    shape = (*x[:2], *_steps(use, x[2:], use.attribute("kernel_shape")))
    return shape, shape


def _steps(use: Use, sizes: Shape, widths: Shape) -> Shape:
    """How often a kernel of these widths fits into axes of these sizes."""
    axes = len(sizes)
    pads = use.attribute("pads", (0,) * (2 * axes))
    steps, gaps = (use.attribute(name, (1,) * axes) for name in ("strides", "dilations"))
    if use.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise Unmapped("padding is computed")
    found: list[DimLike] = []
    for i, (size, width) in enumerate(zip(sizes, widths, strict=True)):
        room = size + pads[i] + pads[i + axes] - gaps[i] * (width - 1) - 1
        found.append(use.importer.sizes.steps(room, steps[i]))
        use.importer.symbols.allow(found[-1])
    return tuple(found)


def _pad(use: Use, shapes: Sequence[Shape]) -> Shapes:
    if use.version < 11 or use.has(3):
        raise Unmapped("pads some axes")
    pads = use.dims(1)
    half = len(pads) // 2
    return (tuple(d + a + b for d, a, b in zip(shapes[0], pads[:half], pads[half:], strict=True)),)


def _resize(use: Use, shapes: Sequence[Shape]) -> Shapes:
    if not use.has(3) or use.attribute("axes") or use.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unmapped("sizes are computed")
    return (use.dims(3),)


SIZED: dict[str, Callable[[Use, Sequence[Shape]], Shapes]] = {
    "TopK": _topk,
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "ConvInteger": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Pad": _pad,
    "Resize": _resize,
}
"""By op type of the standard domain."""
