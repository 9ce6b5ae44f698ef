"""Norms by meaning: what an inverse root of a mean of squares is multiplied with, through casts and in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...ir import ops
from ...ir.errors import MonographError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Add, Cast, Maximum, Mul, Neg, Pow, Rsqrt, Sub
from ...ir.ops.reduce import Mean, Sum
from ...ir.ops.shape import Reshape
from ...ir.types import DimLike, Shape
from .check import Check
from .constants import scalar_of
from .report import Left, Raised, RaisingReport
from .unread import erase_unread
from .views import factor


@dataclass(frozen=True)
class Root:
    """1 / sqrt(mean(z * z) + eps): centred is z, x what it was made of, mean what was taken off (None: nothing)."""

    x: Value
    centred: Value
    mean: Value | None
    eps: float


def raise_norms(graph: Graph, check: Check, report: RaisingReport) -> int:
    """Replace RMS and layer norms by their ops; each root of a mean of squares that is left is in the report. Gives how
    many."""
    raised = 0
    for node in [n for n in graph if isinstance(n.op, Rsqrt)]:
        root = _root(node) if node.order >= 0 else None
        if root is None:
            continue
        applied = _applied(node, root)
        raised += sum(_replace(graph, root, found, check, report) for found in applied)
        if not applied:
            user = next(iter(node.output.users), None)
            report.left.append(Left.at("norm", node, user, "what is multiplied by the root is not what the root is of"))
    return raised


def _uncast(v: Value) -> Value:
    """Below casts between float types."""
    while v.producer is not None and isinstance(v.producer.op, Cast) and v.producer.value("x").dtype.is_float:
        v = v.producer.value("x")
    return v


def _plain(v: Value) -> Value:
    """Below casts between float types and reshapes that add and drop axes of one element."""
    while v.producer is not None and isinstance(v.producer.op, (Cast, Reshape)):
        x = v.producer.value("x")
        if not x.dtype.is_float or _long(x) != _long(v):
            break
        v = x
    return v


def _long(v: Value) -> Shape:
    """Axes of more than one element."""
    return tuple(d for d in v.shape if d != 1)


def _ones_behind(v: Value) -> int:
    """Axes of one element at the end."""
    return next((i for i, d in enumerate(reversed(v.shape)) if d != 1), v.rank)


def _width(v: Value) -> DimLike:
    """The size of the last axis that is longer than 1."""
    return next((d for d in reversed(v.shape) if d != 1), 1)


def _root(node: Node) -> Root | None:
    inner = _plain(node.value("x"))
    eps = 0.0
    if inner.producer is not None and isinstance(inner.producer.op, Add):
        x, y = inner.producer.arguments
        number = scalar_of(y)
        if number is None or number < 0:
            return None
        inner, eps = _plain(x), number
    if inner.producer is not None and isinstance(inner.producer.op, (Maximum, Sub)):
        return _of_moments(inner.producer, eps)
    averaged = _averaged(inner)
    a = None if averaged is None else _squared(_plain(averaged))
    if a is None:
        return None
    centred = _plain(a).producer
    if centred is not None and isinstance(centred.op, Sub):
        x, mean = centred.arguments
        whole = _averaged(_plain(mean))
        if whole is not None and _uncast(whole) is _uncast(x):
            return Root(x, centred.output, mean, eps)
    return Root(a, a, None, eps)


def _squared(v: Value) -> Value | None:
    """x of x * x, or of x to the power of 2."""
    node = v.producer
    if node is None or not isinstance(node.op, (Mul, Pow)):
        return None
    x, y = node.arguments
    return x if (x is y if isinstance(node.op, Mul) else scalar_of(y) == 2) else None


def _of_moments(node: Node, eps: float) -> Root | None:
    """mean(x * x) - mean(x) * mean(x), and at least 0, in the place of the mean of squares of what is centred."""
    if isinstance(node.op, Maximum):
        inner = _plain(node.arguments[0]).producer
        above = scalar_of(node.arguments[1]) == 0
        return _of_moments(inner, eps) if above and inner is not None and isinstance(inner.op, Sub) else None
    second, first = (_plain(v) for v in node.arguments)
    whole, mean = _averaged(second), _squared(first)
    x = None if whole is None else _squared(_plain(whole))
    below = None if mean is None else _averaged(_plain(mean))
    if x is None or mean is None or below is None or _uncast(below) is not _uncast(x):
        return None
    users = (u.output for u in mean.users if isinstance(u.op, Sub) and u.arguments[1] is mean)
    centred = next((v for v in users if v.producer is not None and v.producer.arguments[0] is x), x)
    return Root(x, centred, mean, eps)


def _averaged(v: Value) -> Value | None:
    """What v is the mean of, over the last axis longer than 1, or as a sum over its length."""
    node = v.producer
    if node is not None and isinstance(node.op, (Mean, Sum)):
        whole = isinstance(node.op, Mean) or _width(node.arguments[0]) == 1
        return node.arguments[0] if whole and _along_last(node) else None
    found = None if node is None else factor(node)
    total = None if found is None else _plain(found[0]).producer
    if found is None or total is None or not isinstance(total.op, Sum):
        return None
    size = _width(total.arguments[0])
    exact = isinstance(size, int) and abs(found[1] * size - 1) < 1e-5
    return total.arguments[0] if exact and _along_last(total) else None


def _along_last(node: Node) -> bool:
    """Whether a reduction is over the last axis that is longer than 1."""
    return -node.attributes["axis"] == _ones_behind(node.arguments[0]) + 1


@dataclass
class Applied:
    """The value that is a norm, its weights, and all nodes it is made of after the root."""

    result: Value
    w: Value | None = None
    b: Value | None = None


def _applied(node: Node, root: Root) -> list[Applied]:
    """Follow the inverse root to the last values that are still norms of x; several may share it."""
    return _follow(node.output, Applied(node.output), root, joined=False)


def _follow(v: Value, state: Applied, root: Root, *, joined: bool) -> list[Applied]:
    """Norms below v, which is `state` so far. joined: x has been multiplied in."""
    complete = joined and _alike(v, root.x) and not (root.mean is None and state.b is not None)
    best = [Applied(v, state.w, state.b)] if complete else []
    users = v.users
    if not joined and len(users) == 2 and (shifted := _shifted(users, v, root, state)) is not None:
        return [shifted]
    if v.graph.is_output(v) or (len(users) != 1 and not joined):
        return best
    found = [_through(user, v, state, root, joined=joined) for user in users]
    return [norm for norms in found for norm in norms] if found and all(found) else best


def _through(user: Node, v: Value, state: Applied, root: Root, *, joined: bool) -> list[Applied]:
    """Norms below one reader of v."""
    side = next((x for x in user.arguments if x is not v), None)
    if len(user.outputs) != 1:
        return []
    y = user.output
    if isinstance(user.op, Mul) and side is not None and not joined and _uncast(side) in _same(root):
        return _follow(y, Applied(y, state.w, state.b), root, joined=True)
    weighted = None if joined or side is None or state.w is not None else _weighted(side, root)
    if isinstance(user.op, Mul) and weighted is not None:
        return _follow(y, Applied(y, weighted, state.b), root, joined=True)
    vector = side is not None and state.b is None and _vector(side, v if joined else root.x)
    if isinstance(user.op, Mul) and side is not None and state.w is None and vector:
        return _follow(y, Applied(y, side, None), root, joined=joined)
    if isinstance(user.op, Add) and joined and side is not None and vector:
        return _follow(y, Applied(y, state.w, side), root, joined=joined)
    moved = isinstance(user.op, Reshape) and (_alike(y, root.x) if joined else _long(y) == _long(v))
    if moved or (isinstance(user.op, Cast) and y.dtype.is_float):
        return _follow(y, Applied(y, state.w, state.b), root, joined=joined)
    return []


def _alike(v: Value, x: Value) -> bool:
    """Whether v has the rows of x, whatever axes they are counted along."""
    return v.type.elements == x.type.elements and _width(v) == _width(x)


def _weighted(v: Value, root: Root) -> Value | None:
    """The weights in `x * weights`, for the x of a root."""
    node = _uncast(v).producer
    if node is None or not isinstance(node.op, Mul):
        return None
    x, w = node.arguments
    x, w = (x, w) if _uncast(x) in _same(root) else (w, x)
    return w if _uncast(x) in _same(root) and _vector(w, root.x) else None


def _same(root: Root) -> set[Value]:
    return {root.centred, _uncast(root.centred)}


def _shifted(users: list[Node], v: Value, root: Root, state: Applied) -> Applied | None:
    """x * g + (b - mean * g), with g the inverse root times w: how batch norms are written."""
    if root.mean is None:
        return None
    below = next((u.output for u in root.mean.users if isinstance(u.op, Neg)), None)
    first = next((u.output for u in users if isinstance(u.op, Mul) and root.x in u.arguments), None)
    taken = next((u.output for u in users if isinstance(u.op, Mul) and root.mean in u.arguments), None)
    added = next(
        (u.output for u in users if isinstance(u.op, Mul) and below is not None and below in u.arguments), None
    )
    if first is None or (taken is None) == (added is None) or len(first.users) != 1:
        return None
    total = first.users[0]
    b: Value | None = None
    if taken is not None:
        (offset, *others) = taken.users
        if offset is total:
            return Applied(total.output, state.w) if isinstance(total.op, Sub) and total.arguments[0] is first else None
        if others or not isinstance(offset.op, (Sub, Neg)) or offset.arguments[-1] is not taken:
            return None
        b = offset.arguments[0] if isinstance(offset.op, Sub) else None
        added = offset.output
    assert added is not None
    if added not in total.arguments and len(added.users) == 1 and isinstance(added.users[0].op, Add) and b is None:
        b = next((x for x in added.users[0].arguments if x is not added), None)
        added = added.users[0].output
    if not isinstance(total.op, Add) or added not in total.arguments or len(added.users) != 1:
        return None
    return Applied(total.output, state.w, b) if b is None or _vector(b, root.x) else None


def _vector(v: Value, x: Value) -> bool:
    """Whether v is one number for each channel of x, or one for all."""
    return (_long(v) == _long(x)[-1:] and _ones_behind(v) == _ones_behind(x)) or scalar_of(v) is not None


def _candidates(root: Root, dtype: object) -> Iterator[Value]:
    """x, with or without the casts above it, in the type of the result."""
    for x in dict.fromkeys((root.x, _uncast(root.x))):
        if x.dtype is dtype:
            yield x


def _replace(graph: Graph, root: Root, found: Applied, check: Check, report: RaisingReport) -> int:
    old = found.result
    assert old.producer is not None
    source = next(_candidates(root, old.dtype), None)
    kind = "rms_norm" if root.mean is None else "layer_norm"
    if source is None:
        return 0
    try:
        with graph.at(old.producer):
            x = _reshaped(source, old.shape[: old.rank - _ones_behind(old)])
            w = _channels(found.w, x)
            if root.mean is None:
                normed = ops.rms_norm(x, w, eps=root.eps)
            else:
                normed = ops.layer_norm(x, w, None if found.b is None else _channels(found.b, x), eps=root.eps)
            new = _reshaped(normed, old.shape)
    except MonographError as e:
        report.undone.append(Left.at(kind, old.producer, None, e.what))
        return 0
    made = normed.producer
    assert made is not None
    wrong = check.difference(old, new, {source}, {made})
    if wrong:
        erase_unread(graph, new)
        report.undone.append(Left.at(kind, old.producer, None, wrong))
        return 0
    location = old.producer.location
    graph.replace(old, new)
    report.raised.append(Raised(kind, location))
    return 1


def _reshaped(x: Value, shape: Shape) -> Value:
    return x if x.shape == shape else x.reshape(*shape)


def _channels(v: Value | None, x: Value) -> Value:
    """Weights [C] in the type of x; ones where there are none."""
    size = x.shape[-1]
    number = 1.0 if v is None else scalar_of(v)
    if number is not None:
        return ops.expand(ops.constant(value=number, dtype=x.dtype), shape=(size,))
    assert v is not None
    if v.producer is not None and isinstance(v.producer.op, Reshape) and v.producer.value("x").shape == (size,):
        v = v.producer.value("x")
    flat = v if v.rank == 1 else v.reshape(size)
    return flat if flat.dtype == x.dtype else flat.cast(x.dtype)
