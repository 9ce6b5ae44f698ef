"""Index algebra: a value as a rearrangement of another one, through reshapes, transposes, expands and repeats.

Axes are products of atoms. A reshape splits atoms or groups them anew, a transpose reorders groups, an expand adds
atoms that the source does not have. Two chains that rearrange alike have the same atoms, however they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir.errors import MonographError
from ...ir.graph import Node, Value
from ...ir.ops.elementwise import Div, Mul, Neg
from ...ir.ops.shape import Concat, Expand, Gather, Reshape, Slice, Transpose, expand, reshape, transpose
from ...ir.types import DimLike, exact_div, product
from .constants import array_of, scalar_of


class Unaligned(Exception):
    """Two factorisations of one axis have no common refinement; an outcome of matching, not an error."""


@dataclass(eq=False)
class Atom:
    """A factor of an axis. real: the source has it; else elements repeat along it. parts: what it was split in."""

    size: DimLike
    real: bool = True
    parts: list[Atom] = field(default_factory=list["Atom"])

    def split(self, first: DimLike) -> None:
        """Split into `first` times the rest."""
        self.parts = [Atom(first, self.real), Atom(exact_div(self.size, first), self.real)]


Group = list[Atom]


def flat(atoms: Iterable[Atom]) -> Group:
    """Atoms with those that were split replaced by their parts."""
    return [p for a in atoms for p in (flat(a.parts) if a.parts else [a])]


def flats(groups: Iterable[Group]) -> list[Group]:
    return [flat(g) for g in groups]


def whole(size: DimLike) -> Group:
    """The group of an axis of this size; an axis of one element has no atoms."""
    return [] if size == 1 else [Atom(size)]


def divides(a: DimLike, b: DimLike) -> bool:
    """Whether a is a multiple of b."""
    try:
        exact_div(a, b)
    except MonographError:
        return False
    return True


def regroup(atoms: Iterable[Atom], shape: Sequence[DimLike]) -> list[Group]:
    """The same atoms in row-major order as axes of `shape`, split where needed. Raises Unaligned."""
    rest, groups = flat(atoms), list[Group]()
    for size in shape:
        group, need = Group(), size
        while need != 1:
            if not rest or need == 0:
                raise Unaligned
            atom = rest.pop(0)
            if divides(need, atom.size):
                group.append(atom)
                need = exact_div(need, atom.size)
            elif divides(atom.size, need):
                atom.split(need)
                group.append(atom.parts[0])
                rest.insert(0, atom.parts[1])
                need = 1
            else:
                raise Unaligned
        groups.append(group)
    if rest:
        raise Unaligned
    return groups


def align(a: Group, b: Group) -> None:
    """Split atoms of two factorisations of one axis until they agree; one may be empty (broadcast).

    Raises Unaligned.
    """
    left, right = flat(a), flat(b)
    if not left or not right:
        return
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x.size == y.size:
            continue
        if divides(x.size, y.size):
            x.split(y.size)
            left.insert(0, x.parts[1])
        elif divides(y.size, x.size):
            y.split(x.size)
            right.insert(0, y.parts[1])
        else:
            raise Unaligned
    if left or right:
        raise Unaligned


def paired(a: Group, b: Group) -> dict[Atom, Atom | None]:
    """Atoms of the aligned factorisation `a` with those of `b` that lie at the same place; None: b repeats there."""
    left, right = flat(a), flat(b)
    if not right:
        return dict.fromkeys(left)
    return {x: y if y.real else None for x, y in zip(left, right, strict=True)}


@dataclass
class View:
    """Axes `groups` of what is `scale` times the elements of `source`, whose atoms in row-major order are `order`."""

    source: Value
    order: Group
    groups: list[Group]
    scale: float = 1.0

    @classmethod
    def of(cls, source: Value) -> View:
        groups = [whole(d) for d in source.shape]
        return cls(source, [a for g in groups for a in g], groups)

    def padded(self, rank: int) -> list[Group]:
        """Groups with broadcast axes in front, up to `rank`."""
        return [Group() for _ in range(rank - len(self.groups))] + self.groups


def view_of(v: Value, *, scales: bool = False) -> View:
    """The furthest value that `v` rearranges, and how. scales: constant factors on the way are taken out, too."""
    node = v.producer
    found = None if node is None else _step(node, scales)
    return found or View.of(v)


def _step(node: Node, scales: bool) -> View | None:
    op = node.op
    if isinstance(op, (Reshape, Transpose, Expand)):
        view = view_of(node.value("x"), scales=scales)
        try:
            view.groups = rearranged(node, view.groups)
        except Unaligned:
            return None
        return view
    if scales and (number := factor(node)) is not None:
        carrier, by = number
        view = view_of(carrier, scales=True)
        view.scale *= by
        return view
    return _repeated(node, scales) if isinstance(op, (Concat, Gather)) else None


def rearranged(node: Node, groups: list[Group]) -> list[Group]:
    """Groups after a reshape, transpose or expand. Raises Unaligned."""
    shape = node.output.shape
    if isinstance(node.op, Reshape):
        return regroup([a for g in groups for a in g], shape)
    if isinstance(node.op, Transpose):
        return [groups[i] for i in node.attributes["permutation"]]
    before = node.value("x").shape
    added = len(shape) - len(before)
    found = [[Atom(d, real=False)] if d != 1 else Group() for d in shape[:added]]
    for group, old, new in zip(groups, before, shape[added:], strict=True):
        found.append([*group, Atom(new, real=False)] if old == 1 and new != 1 else group)
    return found


def factor(node: Node) -> tuple[Value, float] | None:
    """(x, c) of a product of x of the same type with one number c, however it is written."""
    if isinstance(node.op, Neg):
        return node.value("x"), -1.0
    if not isinstance(node.op, (Mul, Div)):
        return None
    x, y = node.arguments
    pairs = [(x, y), (y, x)] if isinstance(node.op, Mul) else [(x, y)]
    for carrier, by in pairs:
        number = scalar_of(by)
        if number is not None and carrier.type == node.output.type and (number or isinstance(node.op, Mul)):
            return carrier, number if isinstance(node.op, Mul) else 1.0 / number
    return None


def _repeated(node: Node, scales: bool) -> View | None:
    """A concat or gather that repeats elements along its axis: each of them, or all of them, a number of times."""
    found = _picked(node)
    if found is None:
        return None
    x, at, picks = found
    size = x.shape[at]
    if not isinstance(size, int) or size == 0 or len(picks) % size:
        return None
    times, each = len(picks) // size, np.arange(size)
    view = view_of(x, scales=scales)
    extra = [Atom(times, real=False)] if times != 1 else Group()
    if np.array_equal(picks, np.repeat(each, times)):
        view.groups[at] = [*view.groups[at], *extra]
    elif np.array_equal(picks, np.tile(each, times)):
        view.groups[at] = [*extra, *view.groups[at]]
    else:
        return None
    return view


def _picked(node: Node) -> tuple[Value, int, np.ndarray] | None:
    """(x, axis, indices along it) of a concat of parts of x, or a gather by constants of rank 1."""
    axis: int = node.attributes["axis"]
    if isinstance(node.op, Gather):
        indices = array_of(node.value("indices"))
        x = node.value("x")
        if indices is None or indices.ndim != 1 or not isinstance(x.shape[axis], int):
            return None
        size = x.shape[axis]
        return x, axis % x.rank, indices % size if isinstance(size, int) else indices
    parts = [_part(v, axis) for v in node.arguments]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts) or any(p[0] is not known[0][0] for p in known):
        return None
    return known[0][0], axis % known[0][0].rank, np.concatenate([p[1] for p in known])


def _part(v: Value, axis: int) -> tuple[Value, np.ndarray] | None:
    node = v.producer
    sliced = node is not None and isinstance(node.op, Slice) and node.attributes["axis"] == axis
    start = node.attributes["start"] if sliced and node is not None else 0
    x = node.value("x") if sliced and node is not None else v
    length = v.shape[axis]
    return (x, np.arange(start, start + length)) if isinstance(start, int) and isinstance(length, int) else None


def built(view: View, groups: Sequence[Group], *, expanded: bool) -> Value:
    """The source of a view with axes `groups`, made of its atoms and of broadcast ones; `scale` is not applied.

    expanded: repeated axes have their full size; else they have size 1, unless the source has a part of the axis.
    Adds nodes at the current point.
    """
    order, wanted = flat(view.order), flats(groups)
    real = [a for g in wanted for a in g if a.real]
    permutation = tuple(order.index(a) for a in real)
    moves = permutation != tuple(range(len(order)))
    full = [expanded or any(a.real for a in g) for g in wanted]
    kept = [a for g, keep in zip(wanted, full, strict=True) if keep for a in g]
    repeats = any(not a.real for a in kept)
    shape = tuple(product(a.size for a in g) if keep else 1 for g, keep in zip(wanted, full, strict=True))
    if not moves and not repeats:
        return _reshaped(view.source, shape)
    x = _reshaped(view.source, tuple(a.size for a in order))
    if moves:
        x = transpose(x, permutation=permutation)
    if repeats:
        x = _reshaped(x, tuple(a.size if a.real else 1 for a in kept))
        x = expand(x, shape=tuple(a.size for a in kept))
    return _reshaped(x, shape)


def _reshaped(x: Value, shape: tuple[DimLike, ...]) -> Value:
    return x if x.shape == shape else reshape(x, shape=shape)
