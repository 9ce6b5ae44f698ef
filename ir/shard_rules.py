"""Cutting tensors over ranks: what a cut is, and how it passes through an op; a rule is a method of the op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .types import DimLike, TensorType, exact_div
from .value import Node, Value

if TYPE_CHECKING:
    from .op import Op


class Stop(Exception):
    """Why a value cannot be cut."""


class Indivisible(Stop):
    """A layer that would be cut if it had more than one head."""


@dataclass(frozen=True)
class Cut:
    """A tensor cut along `axis` (negative); each of its `sections` is shared equally by the ranks.

    Several sections are what a packed projection has: every rank takes its part of the queries, of the keys and of
    the values.
    """

    axis: int
    sections: tuple[DimLike, ...]

    def local(self, type: TensorType, size: int) -> TensorType:
        """The type of one of `size` parts."""
        shape = list(type.shape)
        shape[self.axis] = sum((exact_div(s, size) for s in self.sections), start=0)
        return TensorType(type.dtype, tuple(shape), type.encoding)


Cuts = Mapping[Value, Cut]


def whole(v: Value, axis: int) -> Cut:
    return Cut(axis, (v.shape[axis],))


def first_cut(node: Node, known: Cuts) -> tuple[Value, Cut]:
    """An operand or output of a node that is cut, and how."""
    return next((v, known[v]) for v in [*node.arguments, *node.outputs] if v in known)


def needs_all(op: Op, node: Node, known: Cuts) -> dict[Value, Cut]:
    """No axis may be cut."""
    raise Stop(f"{node} needs all of it")


def elementwise(op: Op, node: Node, known: Cuts) -> dict[Value, Cut]:
    """Whoever has the cut axis in full is cut alike; who is broadcast along it stays whole."""
    v, cut = first_cut(node, known)
    size = v.shape[cut.axis]
    wide = [u for u in [*node.arguments, *node.outputs] if u.rank >= -cut.axis and u.shape[cut.axis] == size]
    return dict.fromkeys(wide, cut)


def along_axis(op: Op, node: Node, known: Cuts) -> dict[Value, Cut]:
    """Softmax and reductions that keep the axis: along another axis than the cut."""
    _, cut = first_cut(node, known)
    if cut.axis == node.attributes["axis"]:
        raise Stop(f"{node} needs the whole axis")
    return elementwise(op, node, known)


def norm(op: Op, node: Node, known: Cuts) -> dict[Value, Cut]:
    """Along any axis but the last."""
    _, cut = first_cut(node, known)
    if cut.axis == -1:
        raise Stop(f"{node} needs all channels")
    return dict.fromkeys((node.arguments[0], node.output), cut)
