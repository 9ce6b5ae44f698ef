"""How parameters of an imported graph start when they are drawn anew: no file says it, what reads them does."""

from __future__ import annotations

from collections.abc import Collection

from ..ir import Graph, Init, Value
from ..ir.init import FIXED
from ..ir.ops.elementwise import Add, Cast, Div, Mul, Sub
from ..ir.ops.norm import LayerNorm, RMSNorm
from ..ir.ops.shape import Concat, Expand, Reshape, Slice, Transpose
from ..ir.value import Node
from ..ir.weights import param_only

STD = 0.02
"""Of matrices, as of our own models."""

_MOVES = (Reshape, Transpose, Expand, Cast, Slice, Concat)
"""What gives the same numbers in another shape or type, or some of them, or more."""

_BIASES = frozenset({"b", "bias", "bias_ih", "bias_hh"})
"""What ops call the operands that they add."""


def set_starts(graph: Graph, constants: Collection[str] = ()) -> None:
    """Give every parameter without an Init one: ones for what scales, zeros for vectors that are added, else normal.

    What reads a parameter decides, not its shape: the weight of a layer with one output is no vector. constants: names
    of those that are buffers, as are all that are no floats.
    """
    fixed = param_only(graph)
    for name, v in graph.params.items():
        if v.init is None:
            buffer = name in constants or not v.dtype.is_float or v.type.encoding is not None
            v.init = Init(FIXED) if buffer else _start(v, fixed)


def _start(v: Value, fixed: set[Value]) -> Init:
    parts = _parts(v, fixed)
    if parts == {"scale"}:
        return Init("ones")
    if parts == {"shift"} and sum(d != 1 for d in v.shape) < 2:
        return Init("zeros")
    return Init("normal", STD)


def _parts(v: Value, fixed: set[Value]) -> set[str]:
    """What a parameter is to all that reads it, however it is shaped before, or multiplied by other parameters."""
    found: set[str] = set()
    waiting, seen = [v], {v}
    while waiting:
        x = waiting.pop()
        for node, at in x.uses:
            part = _part(node, at, fixed)
            if part is not None:
                found.add(part)
            elif node.output not in seen:
                seen.add(node.output)
                waiting.append(node.output)
    return found


def _part(node: Node, at: int, fixed: set[Value]) -> str | None:
    """What the operand at a place is to a node; None if it is the same to the readers of the node."""
    if isinstance(node.op, (*_MOVES, Mul, Div)) and node.output in fixed:
        return None
    if isinstance(node.op, (Mul, Div)):
        return "scale"
    if isinstance(node.op, Expand):  # To the sizes of an input.
        return None
    if isinstance(node.op, (Add, Sub)):
        return "shift"
    name = node.op.signature.operand_names(len(node.operands))[at]
    if isinstance(node.op, (RMSNorm, LayerNorm)) and name == "w":
        return "scale"
    return "shift" if name in _BIASES else "weight"
