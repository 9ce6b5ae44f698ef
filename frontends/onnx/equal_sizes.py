"""Sizes that operators require to be equal: a graph that runs at all has one number for both names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from ...ir.types import Dim, DimLike, TensorType

Pair = tuple[DimLike, DimLike]
_BROADCAST = {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or"}
_BROADCAST |= {"Sub", "Sum", "Where"}


def required(node: onnx.NodeProto, types: Sequence[TensorType], axis: int = 0) -> list[Pair]:
    """Pairs of different sizes that a node takes for equal.

    A size that may be broadcast is among them only beside a sum of several, as of the tokens of a past and new ones:
    that these are one token together, and the other size is not, is no use of a file that anybody has.
    types: of all operands. axis: along which a Concat joins.
    """
    if node.op_type == "MatMul" and len(types) == 2 and all(t.shape for t in types):
        x, y = (t.shape for t in types)
        return _unequal([(x[-1], y[-2 if len(y) > 1 else 0])])
    if node.op_type == "Concat" and types and all(len(t.shape) == len(types[0].shape) > 0 for t in types):
        first = types[0].shape
        others = [i for i in range(len(first)) if i != axis % len(first)]
        return _unequal([(first[i], t.shape[i]) for t in types[1:] for i in others])
    if node.op_type in _BROADCAST:
        rank = max(len(t.shape) for t in types)
        rows = [(1,) * (rank - len(t.shape)) + t.shape for t in types]
        sums = [next((d for d in column if _is_sum(d)), None) for column in zip(*rows, strict=True)]
        found = [(whole, d) for whole, column in zip(sums, zip(*rows, strict=True), strict=True) for d in column]
        return _unequal((x, d) for x, d in found if x is not None and isinstance(d, Dim))
    return []


def _is_sum(d: DimLike) -> bool:
    """Whether a size is a sum of symbols, or of symbols and a number: none is taken away."""
    return isinstance(d, Dim) and len(d.terms) > 1 and all(c > 0 for _, c in d.terms)


def _unequal(pairs: Iterable[Pair]) -> list[Pair]:
    return [(x, y) for x, y in pairs if x != y]


def solved(pairs: Iterable[Pair], free: frozenset[str], known: Mapping[str, DimLike]) -> dict[str, DimLike]:
    """Symbols => what they must be for all pairs to be equal, besides what is known. free: symbols that may go.

    A pair that no single symbol solves, or that cannot be equal, says nothing here: the operator keeps its words.
    """
    found = dict(known)
    for x, y in pairs:
        gap = _difference(x, y, found)
        if not isinstance(gap, Dim):
            continue
        values = {s: _value(gap, s) for s in sorted(gap.symbols, reverse=True) if _alone(gap, s)}
        name = next((s for s, d in values.items() if all(c > 0 for _, c in _terms(d))), None)
        if name is None or not gap.symbols <= free:
            continue
        value = values[name]
        found = {s: d.substitute({name: value}) if isinstance(d, Dim) else d for s, d in found.items()}
        found[name] = value
    return found


def _difference(x: DimLike, y: DimLike, values: Mapping[str, DimLike]) -> DimLike:
    a, b = (d.substitute(values) if isinstance(d, Dim) else d for d in (x, y))
    return a - b


def _value(gap: Dim, name: str) -> DimLike:
    """What a symbol must be for a difference to be 0."""
    sign = next(c for m, c in gap.terms if m == (name,))
    return -1 * sign * (gap - sign * Dim.symbol(name))


def _terms(d: DimLike) -> Sequence[tuple[tuple[str, ...], int]]:
    return d.terms if isinstance(d, Dim) else [((), d)]


def _alone(gap: Dim, name: str) -> bool:
    """Whether a symbol stands in one term only, by itself, plus or minus once."""
    within = [(m, c) for m, c in gap.terms if name in m]
    return len(within) == 1 and within[0][0] == (name,) and abs(within[0][1]) == 1
