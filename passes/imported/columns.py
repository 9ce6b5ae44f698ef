"""Counts of columns that stand for positions become positions: right behind a past and under padding on the left.

A graph without a past counts its columns from 0 and takes that count for the position of a token. What only compares
two columns may go on doing so. What looks rows of a table up, or turns by an angle, takes `position_ids` instead.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir import ops
from ...ir.errors import MonographError, PassError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Cast
from ...ir.ops.linear import Embedding, Linear, Matmul
from ...ir.ops.shape import Concat, Expand, Gather, Iota, Reshape, Slice, Transpose
from ...ir.slots import Stream
from ...ir.types import Dim, DimLike, TensorType, bool_, i64
from ..dce import dce
from ..token_flow import is_over

_ALONG = (Cast, Concat, Reshape, Expand, Transpose, Linear, Matmul, Embedding, Gather)
"""Ops besides elementwise ones that give positions, or rows looked up by them, for each column apart."""


def look_up_slices(graph: Graph, symbol: str, *, squares: bool = True) -> int:
    """The first S rows of a table become rows that are looked up by their number. Gives how many.

    squares: also of tables with two axes of one size, as masks have.
    """
    made = 0
    for node in graph:
        if isinstance(node.op, Slice) and _is_table_part(node, symbol, squares):
            x, axis = node.value("x"), node.attributes["axis"]
            with graph.at(node):
                rows = ops.iota(start=node.attributes["start"], length=node.attributes["length"])
                graph.replace(node.output, ops.gather(x, rows, axis=axis))
            made += 1
        elif isinstance(node.op, (Gather, Embedding)):
            made += _look_up_once(graph, node)
    dce(graph)
    return made


def _is_table_part(node: Node, symbol: str, squares: bool) -> bool:
    x, start, length = node.value("x"), node.attributes["start"], node.attributes["length"]
    if not isinstance(start, int) or not isinstance(x.shape[node.attributes["axis"]], int):
        return False
    square = x.rank > 1 and (x.shape[-1] == x.shape[-2] or any(is_over(d, symbol) for d in x.shape))
    return is_over(length, symbol) and (squares or not square)


def _look_up_once(graph: Graph, node: Node) -> bool:
    """Rows of the first rows of a table are rows of the table."""
    table, ids = _looked_up(node)
    inner = table.producer
    if inner is None or not isinstance(inner.op, Gather) or not _by_first_axis(node, inner):
        return False
    rows = inner.value("indices").producer
    if rows is None or not isinstance(rows.op, Iota) or not isinstance(rows.attributes["start"], int):
        return False
    with graph.at(node):
        start: int = rows.attributes["start"]
        graph.replace(
            node.output, ops.gather(inner.value("x"), ids + start if start else ids, axis=-inner.value("x").rank)
        )
    return True


def _looked_up(node: Node) -> tuple[Value, Value]:
    """(table, ids) of a node that looks rows up."""
    if isinstance(node.op, Embedding):
        return node.value("table"), node.value("ids")
    return node.value("x"), node.value("indices")


def _by_first_axis(*nodes: Node) -> bool:
    return all(isinstance(n.op, Embedding) or n.attributes["axis"] % n.value("x").rank == 0 for n in nodes)


class Positions:
    """Replaces counts of columns in one graph by the positions of tokens."""

    def __init__(self, graph: Graph, stream: Stream) -> None:
        self.graph, self.stream = graph, stream
        self.ids = graph.inputs[stream.ids]
        self.batch: DimLike = self.ids.shape[0]
        self.counted: dict[Value, None] = {}
        """Values that follow from the number of the column alone, with one axis over tokens."""
        self.made: dict[Value, Value] = {}

    def run(self) -> int:
        """Gives how many readers take positions now. Raises PassError for what counts from the end of the tokens."""
        for node in self.graph:
            self.check(node)
            if self.counts_columns(node):
                self.counted.update(dict.fromkeys(node.outputs))
        changed = 0
        for node in list(self.graph):
            if node.outputs[0] not in self.counted:
                changed += self.read(node)
        dce(self.graph)
        return changed

    def over(self, v: Value) -> list[int]:
        """Axes over tokens."""
        return [i for i, d in enumerate(v.shape) if is_over(d, self.stream.length)]

    def check(self, node: Node) -> None:
        start = node.attributes.get("start")
        if isinstance(start, Dim) and self.stream.length in start.symbols and not any(map(self.over, node.arguments)):
            what = f"{node.op.name} begins at {start}, which is another for each number of tokens"
            raise PassError(what, place=str(node.location))

    def counts_columns(self, node: Node) -> bool:
        v = node.outputs[0]
        if len(node.outputs) != 1 or len(self.over(v)) != 1 or set(v.type.symbols) != {self.stream.length}:
            return False
        if isinstance(node.op, Iota):
            return v.shape[0] == Dim.symbol(self.stream.length)
        carried = [x for x in node.arguments if x in self.counted]
        rest = [x for x in node.arguments if x not in self.counted and not self.is_plain(x)]
        return bool(carried) and not rest and (node.op.elementwise or isinstance(node.op, _ALONG))

    def is_plain(self, v: Value) -> bool:
        """Whether a value is a parameter, a number, or made of such, without an axis over tokens or rows."""
        return not v.type.symbols and (v.is_param or v.is_constant or is_stored(v))

    def read(self, node: Node) -> int:
        """Give a node that reads counts of columns positions in their place, if each row may have its own."""
        carried = [i for i, v in enumerate(node.operands) if v in self.counted]
        if not carried or len(node.outputs) != 1 or not self.takes_rows(node):
            return 0
        if any(not self.aligns(v, node.output.rank) for i in carried if (v := node.operands[i]) is not None):
            return 0
        with self.graph.at(node):
            for i in carried:
                v = node.operands[i]
                assert v is not None
                self.graph.set_operand(node, i, self.aligned(v, node.output.rank))
        return 1

    def takes_rows(self, node: Node) -> bool:
        v = node.output
        single = len(self.over(v)) == 1 and v.rank > 1 and v.shape[0] == self.batch
        return single and (node.op.elementwise or isinstance(node.op, (Expand, Cast)))

    def aligns(self, v: Value, rank: int) -> bool:
        return v.rank < rank or (v.rank == rank and v.shape[0] == 1)

    def aligned(self, v: Value, rank: int) -> Value:
        """A counted value by row, so that it broadcasts to a result of `rank` whose first axis is that of rows."""
        found = self.by_row(v)
        ones = (1,) * (rank - 1 - v.rank)
        rest = v.shape if v.rank < rank else v.shape[1:]
        return found.reshape(self.batch, *ones, *rest)

    def by_row(self, v: Value) -> Value:
        """A counted value with positions in place of columns, and rows as one more axis in front."""
        if v not in self.made:
            node = v.producer
            assert node is not None
            with self.graph.at(node):
                self.made[v] = self.positions(node) if isinstance(node.op, Iota) else self.again(node)
        return self.made[v]

    def positions(self, node: Node) -> Value:
        start: int = node.attributes["start"]
        given = self.graph.input_of(self.stream.positions, TensorType(i64, self.ids.shape))
        moved = given + start if start else given
        return moved if node.output.dtype is i64 else moved.cast(node.output.dtype)

    def again(self, node: Node) -> Value:
        v, rank = node.output, node.output.rank
        wanted = (self.batch, *v.shape)
        operands: list[Value | None] = []
        for x in node.operands:
            if x is None or x not in self.counted:
                operands.append(x)
                continue
            found = self.by_row(x)
            short = rank - x.rank if node.op.elementwise or isinstance(node.op, Expand) else 0
            operands.append(found.reshape(self.batch, *(1,) * short, *x.shape) if short > 0 else found)
        attributes = dict(node.attributes)
        if isinstance(node.op, (Reshape, Expand)):
            attributes["shape"] = wanted
        elif isinstance(node.op, Transpose):
            attributes["permutation"] = (0, *(i + 1 for i in attributes["permutation"]))
        try:
            made = self.graph.add(node.op, operands, attributes)[0]
            if isinstance(node.op, Gather) and node.value("x") not in self.counted:
                at = node.attributes["axis"] % node.value("x").rank  # Where the axis of rows has come to stand.
                made = made.transpose(at, *(i for i in range(made.rank) if i != at)) if at else made
        except MonographError as e:
            raise self.refused(node, e.what) from None
        if made.shape != wanted:
            raise self.refused(node, f"by row it is {made.type}, expected [{','.join(map(str, wanted))}]")
        return made

    def refused(self, node: Node, why: str) -> PassError:
        what = f"{node.op.name} cannot take the positions of each row in place of the number of the column"
        return PassError(what, place=str(node.location), details=[why])


def is_stored(v: Value) -> bool:
    """Whether a value is computed from parameters and constants alone."""
    waiting, seen = [v], set[Value]()
    while waiting:
        x = waiting.pop()
        if x in seen or x.is_param:
            continue
        seen.add(x)
        if x.producer is None:
            return False
        waiting += x.producer.arguments
    return True


def hide_padding(graph: Graph, stream: Stream, is_own: Callable[[Node], bool]) -> int:
    """Give every attention among tokens a mask of the keys that count, if the graph has none. Gives how many.

    is_own: whether an attention reads the tokens of the stream.
    """
    if stream.mask in graph.inputs:
        return 0
    ids = graph.inputs[stream.ids]
    mask = graph.input(stream.mask, TensorType(i64, ids.shape))
    batch, length = ids.shape
    hidden = 0
    for node in [n for n in graph if is_own(n)]:
        names = node.op.signature.operands
        with graph.at(node):
            kept = mask.cast(bool_).reshape(batch, 1, 1, length)
            before = node["mask"]
            graph.set_operand(node, names.index("mask"), kept if before is None else before & kept)
        hidden += 1
    return hidden
