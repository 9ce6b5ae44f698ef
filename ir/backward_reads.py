"""What the backward pass of an op reads again, by the derivatives PyTorch keeps; a rule is a method of the op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .value import Node, Value

if TYPE_CHECKING:
    from .layout import Layout
    from .op import Op

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Saved:
    """values: operands and outputs that the backward pass of a node reads. internal: bytes that its kernels keep
    beside them, such as row statistics and random masks.
    """

    values: tuple[Value, ...] = ()
    internal: int = 0


def everything(op: Op, node: Node, layout: Layout) -> Saved:
    """For an op without a rule: the most that it could read, and once more its outputs."""
    return Saved((*node.arguments, *node.outputs), sum(layout.bytes(v.type) for v in node.outputs))


def nothing(op: Op, node: Node, layout: Layout) -> Saved:
    return Saved()


def first(op: Op, node: Node, layout: Layout) -> Saved:
    """The first operand."""
    return Saved((node.arguments[0],))


def second(op: Op, node: Node, layout: Layout) -> Saved:
    """The second operand."""
    return Saved((node.arguments[1],))


def output(op: Op, node: Node, layout: Layout) -> Saved:
    return Saved((node.outputs[0],))


def both_ends(op: Op, node: Node, layout: Layout) -> Saved:
    """The operand and the output."""
    return Saved((node.arguments[0], node.outputs[0]))


def each_other(op: Op, node: Node, layout: Layout) -> Saved:
    """Of a product: the gradient of one operand is made with the other."""
    x, y = node.arguments
    return Saved(tuple(v for v, other in ((x, y), (y, x)) if other in layout.learns and v.number is None))


def operands(op: Op, node: Node, layout: Layout) -> Saved:
    """All operands but plain numbers."""
    return Saved(tuple(v for v in node.arguments if v.number is None))


def width_of(x: Value) -> int:
    """Bytes of a row statistic of x."""
    return max(x.dtype.bits // 8, 4)


def dense(shape: tuple[int, ...]) -> Strides:
    """Strides, in elements, of a tensor whose last axis lies together."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def viewed(shape: tuple[int, ...], strides: Strides, new: tuple[int, ...]) -> Strides | None:
    """Strides under which the same memory has another shape; None if the elements must move."""
    runs: list[tuple[int, int]] = []
    for n, stride in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == n * stride:
            runs[-1] = (runs[-1][0] * n, stride)
        else:
            runs.append((n, stride))
    result: list[int] = []
    left, step = 1, 1
    for n in reversed(new):
        if n != 1 and left == 1 and runs:
            left, step = runs.pop()
        if n == 0 or left % n:
            return None
        result.append(step)
        left, step = left // n, step * n
    return tuple(reversed(result))
