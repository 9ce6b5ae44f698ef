"""Which inputs of an imported decoder are its tokens, its mask and its positions: by what becomes of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ...ir.errors import PassError
from ...ir.graph import Graph, Node, Value
from ...ir.op import Op
from ...ir.ops.elementwise import Cast, Cos, Mul, Sin
from ...ir.ops.linear import Embedding, Linear, Matmul
from ...ir.ops.position import Rope
from ...ir.ops.scatter import GatherNd
from ...ir.ops.shape import Concat, Expand, Gather, Reshape, Slice, TakeAlongAxis, Transpose
from ...ir.slots import Stream
from ...ir.types import bool_
from .columns import is_stored

_MOVES = (Cast, Reshape, Expand, Transpose, Slice, Concat)
_LOOKS: dict[type[Op], tuple[str, str]] = {
    Embedding: ("table", "ids"),
    Gather: ("x", "indices"),
    GatherNd: ("x", "indices"),
    TakeAlongAxis: ("x", "indices"),
}


@dataclass
class _Use:
    """What becomes of integers: they turn (sines and cosines, also of a table, are made of them), or choose rows."""

    turns: bool = False
    looks: list[Node] = field(default_factory=list[Node])


def roles_of(graph: Graph, stream: Stream, output: str, zeros: Collection[str] = ()) -> dict[str, str]:
    """The inputs of a canonical graph that are tokens, mask and positions => their names in the stream.

    An input that has the name of one is it. Of the other integers [rows, tokens], positions are what is turned by, or
    what chooses rows that only scale others, as sines and cosines do; tokens choose rows of tables that have one for
    each number of the output, the vocabulary; the mask chooses nothing. output: the name of the one by token, if it
    has it. zeros: names of others. Raises PassError where it is open which of them are the tokens.
    """
    vocabulary = _vocabulary(graph, output)
    found = {name: name for name in stream.names if name in graph.inputs}
    uses = {
        v: _use_of(v) for k, v in graph.inputs.items()
        if k not in (*found, *zeros) and v.rank == 2 and not v.dtype.is_float and v.users
    }  # fmt: skip
    turned = [v for v, use in uses.items() if use.turns]
    looked = [v for v, use in uses.items() if use.looks and not use.turns]
    if stream.ids not in found.values():
        rows = [v for v in looked if _holds(uses[v], vocabulary)] or looked or [v for v in uses if v not in turned]
        if len(rows) != 1:
            has = ", ".join(f"{k} {v.type}" for k, v in graph.inputs.items())
            what = f"takes {has or 'nothing'}: which of it are tokens [rows, tokens] is open"
            raise PassError(what, place=graph.name, hint=f"call them {stream.ids}")
        found[rows[0].name] = stream.ids
        del uses[rows[0]]
    looked = [v for v in looked if v in uses]
    others = [v for v in uses if v not in turned and v not in looked]
    for role, fitting in ((stream.positions, turned or looked), (stream.mask, others)):
        if role not in found.values() and len(fitting) == 1:
            found[fitting[0].name] = role
    return found


def _vocabulary(graph: Graph, output: str) -> int | None:
    """How many numbers the output has for a token; None: not known."""
    own = [graph.outputs[output]] if output in graph.outputs else [*graph.outputs.values()]
    last = {v.shape[-1] for v in own if v.rank in (2, 3) and v.dtype.is_float}
    found = next(iter(last)) if len(last) == 1 else None
    return found if isinstance(found, int) else None


def _holds(use: _Use, vocabulary: int | None) -> bool:
    """Whether every table in which integers look has a row for each token that may follow."""
    rows = [node.value(_LOOKS[type(node.op)][0]).shape[0] for node in use.looks]
    return vocabulary is None or all(isinstance(n, int) and n >= vocabulary for n in rows)


def _use_of(v: Value) -> _Use:
    use = _Use()
    for node, x in _readers(v):
        names = next((n for kind, n in _LOOKS.items() if isinstance(node.op, kind)), None)
        if isinstance(node.op, (Sin, Cos)) or (isinstance(node.op, Rope) and node["positions"] is x):
            use.turns = True
        elif names is not None and node[names[1]] is x and is_stored(node.value(names[0])):
            use.looks.append(node)
    use.turns = use.turns or (bool(use.looks) and all(_scales(node.output) for node in use.looks))
    return use


def _scales(rows: Value) -> bool:
    """Whether rows of a table are only multiplied with what layers made of others, as sines and cosines are."""
    readers = _readers(rows)
    own = {rows} | {v for _, v in readers}
    meeting = {node: [v for v in node.arguments if v not in own and not is_stored(v)] for node, _ in readers}
    met = {node: others for node, others in meeting.items() if others}
    return bool(met) and all(isinstance(n.op, Mul) and all(map(_of_a_layer, others)) for n, others in met.items())


def _of_a_layer(v: Value) -> bool:
    """Whether a product of matrices comes before a value."""
    waiting, seen = [v], {v}
    while waiting:
        node = waiting.pop().producer
        if node is not None and (node.op.heavy or isinstance(node.op, Linear)):
            return True
        fresh = {x: None for x in (node.arguments if node is not None else ()) if x not in seen}
        seen.update(fresh)
        waiting += fresh
    return False


def _readers(v: Value) -> list[tuple[Node, Value]]:
    """Nodes that read a value, or what is made of it and of stored numbers alone, each with what it reads."""
    waiting, seen = [v], {v}
    found: list[tuple[Node, Value]] = []
    while waiting:
        x = waiting.pop()
        for node in x.users:
            found.append((node, x))
            goes_on = node.op.elementwise or isinstance(node.op, (*_MOVES, Linear, Matmul))
            alone = goes_on and all(y in seen or is_stored(y) for y in node.arguments)
            if alone and node.output.dtype is not bool_ and node.output not in seen:
                seen.add(node.output)
                waiting.append(node.output)
    return found
