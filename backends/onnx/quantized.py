"""Layers over encoded weights: what every ONNX target does with them, and the standard ops for it.

`linear(x, dequantize(w))` is a product with scale * (code - zero), and where blocks have minimums, one more product:
the sum of x over each block times what is left of the minimum. `embedding(ids, dequantize(w))` takes rows of the
stored parts and dequantizes those. Codes and scales are read from what is stored and never rounded again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from ...ir.encodings import Encoding
from ...ir.errors import check
from ...ir.graph import Graph, Node, Value
from ...ir.op import Op, op
from ...ir.ops import cast, concat, encoded_part, gather, matmul, reshape, transpose
from ...ir.ops import sum as sum_
from ...ir.ops.linear import Embedding, Linear
from ...ir.ops.quant import Dequantize
from ...ir.ops.shape import Concat
from ...ir.types import DimLike, DType, TensorType, bf16, f16, f32, i8, i32
from ...ir.value import type_of
from ...passes.cse import cse
from ...passes.dce import dce
from ...passes.decompose import inline_body
from ...passes.encode import open_encodings, plain_again
from ...passes.pattern import NearMiss, Report
from .integers import integer_linear, row_codes, row_scales

CENTRES = {2: 2, 4: 8, 8: 0}
"""By bits, the code that stands for 0 where a kernel takes no other."""

SINCE = 21
"""The opset in which DequantizeLinear takes blocks, and 4-bit integers exist."""


class OnnxDequantizeLinear(Op):
    """scale * (code - zero) by blocks along an axis: codes [N,K], scales, zeros [N,K/block] (axis 1), or transposed."""

    folds: ClassVar[bool] = False

    def infer(self, codes: Value, scales: Value, zeros: Value | None = None, *, axis: int, block: int) -> TensorType:
        check(codes.rank == 2 and axis in (0, 1), f"codes is {codes.type} with blocks along axis {axis}")
        blocks = tuple(d // block if i == axis and isinstance(d, int) else d for i, d in enumerate(codes.shape))
        check(scales.shape == blocks, f"codes is {codes.type} but scales is {scales.type}, expected {list(blocks)}")
        fits = zeros is None or zeros.type == TensorType(codes.dtype, blocks)
        check(fits, f"zeros is {type_of(zeros)}, expected {TensorType(codes.dtype, blocks)}")
        return TensorType(scales.dtype, codes.shape)

    def body(self, codes: Value, scales: Value, zeros: Value | None = None, *, axis: int, block: int) -> Value:
        rows, columns = codes.shape
        split = (rows // block, block, columns) if axis == 0 else (rows, columns // block, block)
        kept = (rows // block, 1, columns) if axis == 0 else (rows, columns // block, 1)
        y = cast(reshape(codes, shape=split), dtype=scales.dtype)
        if zeros is not None:
            y = y - cast(reshape(zeros, shape=kept), dtype=scales.dtype)
        return reshape(y * reshape(scales, shape=kept), shape=codes.shape)

    def onnx(self, op: Any, codes: Any, scales: Any, zeros: Any = None, *, axis: int, block: int) -> Any:
        given = [codes, scales] if zeros is None else [codes, scales, zeros]
        return op.DequantizeLinear(*given, axis=axis, block_size=block)


onnx_dequantize_linear = op(OnnxDequantizeLinear)


@dataclass(frozen=True)
class Stored:
    """An encoded weight as rows over which a layer sums, or several of one encoding, one below the other.

    A weight that is stored [in, out] with its blocks along the first axis has the same rows. by_rows: an embedding
    reads it, so whatever else reads it takes the codes in the same order. layers: bits of the codes of all
    layers of the graph, without those that an embedding reads.
    """

    weights: tuple[Value, ...]
    encoding: Encoding
    dtype: DType
    by_rows: bool = False
    layers: frozenset[int] = frozenset()

    @property
    def columns(self) -> DimLike:
        return self.weights[0].shape[self.encoding.axis]

    @property
    def block(self) -> int:
        columns = self.columns
        assert isinstance(columns, int)
        return self.encoding.block_of(columns)

    @property
    def by_line(self) -> bool:
        """Whether it has 8-bit codes and one scale a row, for products of integers."""
        e = self.encoding
        return e.bits == 8 and not (e.block or e.zeros or e.minimum or self.by_rows)

    def part(self, name: str) -> Value:
        """A part of all rows, as stored: [rows, blocks, block or 1]."""
        parts = [encoded_part(w, part=name) for w in self.weights]
        return parts[0] if len(parts) == 1 else concat(*parts, axis=0)

    def numbers(self, name: str) -> Value:
        """Scales or minimums [rows, blocks] in the type of the weight."""
        x = _by_block(self.part(name))
        return x if x.dtype == self.dtype else cast(x, dtype=self.dtype)

    def centred(self) -> Value:
        """Codes [rows, blocks, block] i8; those of 4 bits are 8 less than stored, so from -8 to 7."""
        return self._around_zero(self.part("codes"))

    def zeros(self) -> Value | None:
        """Zero points [rows, blocks] i8, moved as the codes are; None where blocks store none."""
        return self._around_zero(_by_block(self.part("zeros"))) if self.encoding.zeros else None

    def dense(self) -> Value:
        """The numbers themselves less their offsets, f32 [rows, columns]."""
        codes, zeros = cast(self.centred(), dtype=f32), self.zeros()
        lead = (*codes.shape[:2], 1)
        if zeros is not None:
            codes = codes - reshape(cast(zeros, dtype=f32), shape=lead)
        y = codes * reshape(replace(self, dtype=f32).numbers("scales"), shape=lead)
        return reshape(y, shape=(codes.shape[0], codes.shape[1] * codes.shape[2]))

    def _around_zero(self, codes: Value) -> Value:
        return codes if codes.dtype == i8 else cast(codes, dtype=i8) - CENTRES[self.encoding.bits]

    def offsets(self) -> Value | None:
        """What a centred code 0 stands for, f32 [rows, blocks]; None where that is 0, or where `zeros` says.

        A scale and a minimum of f16 add up in f32 without rounding unless one is 2**13 times the other.
        """
        if self.encoding.zeros:
            return None
        moved = CENTRES[self.encoding.bits] - self.encoding.zero
        wide = replace(self, dtype=f32)
        zero = wide.numbers("scales") * float(moved) if moved else None
        if not self.encoding.minimum:
            return zero
        least = wide.numbers("minimums")
        return least if zero is None else least + zero


def _by_block(x: Value) -> Value:
    """Numbers [rows, blocks, 1] as [rows, blocks]."""
    return reshape(x, shape=x.shape[:-1])


def parts_of(w: Value | None, axis: int = 0) -> list[Value]:
    """The matrices that one consists of along the axis of its rows: itself, or what is concatenated."""
    if w is None:
        return []
    node = w.producer
    below = node is not None and isinstance(node.op, Concat) and node.attributes["axis"] in (axis, axis - w.rank)
    return node.arguments if node is not None and below else [w]


def encoded_param(w: Value) -> Value | None:
    """The parameter that a value is dequantized from; None for any other value."""
    dequantized = w.producer is not None and isinstance(w.producer.op, Dequantize)
    return w.producer["w"] if w.producer is not None and dequantized else None


def stored(w: Value, transposed: bool = False) -> Stored | str:
    """The encoded weight that a matrix is dequantized from, or why it is none that targets take.

    transposed: it is [in, out].
    """
    found = [encoded_param(p) for p in parts_of(w, int(transposed))]
    weights = tuple(v for v in found if v is not None and v.is_param)
    encodings = {v.type.encoding for v in weights}
    encoding = next(iter(encodings), None)
    if encoding is None or len(weights) != len(found) or len(encodings) != 1:
        shown = ", ".join(str(v.type if v is not None else w.type.decoded) for v in found)
        return f"weights that are stored differently stand in one matrix: {shown}"
    if w.rank != 2 or encoding.axis != (0 if transposed else -1):
        return f"the weight is {weights[0].type}, and its blocks do not lie along the axis that is summed over"
    by_line = not encoding.block and encoding.scale == f32
    if w.dtype not in (f32, f16, bf16) or (w.dtype not in (f32, encoding.scale) and not by_line):
        return f"scales of {encoding.scale} would be rounded to {w.dtype}"
    return Stored(weights, encoding, w.dtype)


def block_sums(x: Value, block: int) -> Value:
    """x [..., K] summed over blocks: [..., K/block]."""
    width = x.shape[-1]
    return sum_(reshape(x, shape=(*x.shape[:-1], width // block, block)), axis=-1, keepdims=False)


def integer_product(x: Value, w: Stored, b: Value | None) -> Value:
    """x @ w.T + b for 8-bit codes with one scale a row: x is rounded to 8 bits, each of its rows by its largest."""
    wide = x if x.dtype == f32 else cast(x, dtype=f32)
    scales = row_scales(wide)
    codes = transpose(flat(w.centred()), permutation=(1, 0))
    each = replace(w, dtype=f32).numbers("scales")
    each = reshape(each, shape=(each.shape[0],))
    y = integer_linear(row_codes(wide, scales), scales, codes, each)
    y = y if x.dtype == f32 else cast(y, dtype=x.dtype)
    return y if b is None else y + b


def rounded_product(x: Value, w: Value, b: Value | None) -> Value:
    """x @ w.T + b for a weight f32 [N,K] that is rounded to 8 bits by row when it is stored, and x as it comes."""
    wide = x if x.dtype == f32 else cast(x, dtype=f32)
    scales, each = row_scales(wide), row_scales(w)
    codes = cast(cast(row_codes(w, each), dtype=i32) - 128, dtype=i8)
    codes = transpose(codes, permutation=(1, 0))
    y = integer_linear(row_codes(wide, scales), scales, codes, reshape(each, shape=(each.shape[0],)))
    y = y if x.dtype == f32 else cast(y, dtype=x.dtype)
    return y if b is None else y + b


class Layers(Protocol):
    """How a target multiplies by an encoded weight and takes rows of one."""

    def refuses(self, w: Stored) -> str: ...
    def product(self, x: Value, w: Stored, b: Value | None) -> Value: ...
    def rows(self, ids: Value, w: Stored) -> Value: ...


class QuantizedLayers:
    """linear and embedding over encoded weights => the target's layers; what is left is a near miss with its reason.

    A weight that only such left-over layers read is stored as plain numbers, dequantized when it is written.
    """

    def __init__(self, layers: Layers, name: str) -> None:
        self.layers, self.name = layers, name

    def run(self, graph: Graph) -> Report:
        report = Report({self.name: 0})
        open_blocks(graph)
        readers = [n for n in graph if isinstance(n.op, (Linear, Embedding)) and _encoded(n)]
        tables = {v for n in readers if isinstance(n.op, Embedding) for v in _encoded(n)}
        coded = {v.type.encoding for n in readers for v in _encoded(n) if v not in tables}
        layers = frozenset(e.bits for e in coded if e is not None)
        for node in readers:
            reason = self.rewrite(graph, node, tables, layers)
            if reason:
                report.misses.append(NearMiss(self.name, node.location, reason, 2, 2, whole=True))
            else:
                report.counts[self.name] += 1
        dce(graph)
        report.counts["plain_weights"] = plain_again(graph)
        report.counts["also_plain_weights"] = open_encodings(graph)
        cse(graph)
        return report

    def rewrite(self, graph: Graph, node: Node, tables: set[Value], layers: frozenset[int]) -> str:
        """Rewrite one layer; gives the reason if it stays."""
        looks_up = isinstance(node.op, Embedding)
        x, matrix = (node.value("ids"), node.value("table")) if looks_up else (node.value("x"), node.value("w"))
        w = stored(matrix, not looks_up and bool(node.attributes["transposed"]))
        if isinstance(w, str):
            return w
        w = replace(w, by_rows=any(v in tables for v in w.weights), layers=layers)
        reason = self.layers.refuses(w)
        if reason:
            return reason
        if looks_up:
            with graph.at(node):
                y = self.layers.rows(x, w)
        else:
            with graph.at(node):
                y = self.product(x, w, node["b"])
        graph.replace(node.output, y)
        graph.erase(node)
        return ""

    def product(self, x: Value, w: Stored, b: Value | None) -> Value:
        y = self.layers.product(x, w, b)
        offsets = w.offsets()
        if offsets is None:
            return y
        sums = block_sums(x if x.dtype == f32 else cast(x, dtype=f32), w.block)
        more = matmul(sums, transpose(offsets, permutation=(1, 0)))
        return y + (more if x.dtype == f32 else cast(more, dtype=x.dtype))


def open_blocks(graph: Graph) -> int:
    """Composites that multiply by encoded weights somewhere inside become what they consist of. Gives how many."""
    opened, waiting = 0, [n for n in graph if _is_block(n)]
    while waiting:
        opened += len(waiting)
        for node in waiting:
            inline_body(graph, node)
        waiting = [n for n in graph if _is_block(n)]
    return opened


def _is_block(node: Node) -> bool:
    layer = isinstance(node.op, (Linear, Embedding)) or node.op.body is None
    return not layer and any(encoded_param(v) is not None for v in node.arguments)


def _encoded(node: Node) -> list[Value]:
    """The encoded parameters in the weight of a layer."""
    looks_up = isinstance(node.op, Embedding)
    parts = parts_of(node["table"]) if looks_up else parts_of(node["w"], int(node.attributes["transposed"]))
    return [v for p in parts if (v := encoded_param(p)) is not None]


def gathered(ids: Value, w: Stored, codes: Value) -> Value:
    """Rows of an encoded weight by ids [...], dequantized: [..., columns]. codes: centred, [rows, columns]."""
    taken = gather(codes, ids, axis=-2)
    numbers = cast(reshape(taken, shape=(*ids.shape, w.columns // w.block, w.block)), dtype=f32)
    zeros = w.zeros()
    if zeros is not None:
        numbers = numbers - cast(_each(zeros, ids), dtype=f32)
    return with_offsets(numbers * _each(replace(w, dtype=f32).numbers("scales"), ids), ids, w)


def with_offsets(y: Value, ids: Value, w: Stored) -> Value:
    """Blocks of scale * code [..., blocks, block] by ids as rows [..., columns] in the type of the weight."""
    offsets = w.offsets()
    if offsets is not None:
        y = (y if y.dtype == f32 else cast(y, dtype=f32)) + _each(offsets, ids)
    y = y if y.dtype == w.dtype else cast(y, dtype=w.dtype)
    return reshape(y, shape=(*ids.shape, w.columns))


def _each(numbers: Value, ids: Value) -> Value:
    """Rows of numbers [rows, blocks] by ids [...], to be multiplied with blocks: [..., blocks, 1]."""
    taken = gather(numbers, ids, axis=-2)
    return reshape(taken, shape=(*taken.shape, 1))


class StandardLayers:
    """DequantizeLinear by blocks, and Gather. A weight of layers alone is stored [in, out], as MatMul reads it.

    One scale a row, and no embedding that reads it: a product of integers, over activations rounded as they come.
    """

    def refuses(self, w: Stored) -> str:
        if w.encoding.bits not in (4, 8):
            return f"the standard ops have no integers of {w.encoding.bits} bits"
        return ""

    def product(self, x: Value, w: Stored, b: Value | None) -> Value:
        if w.by_line:
            return integer_product(x, w, b)
        scales, zeros = w.numbers("scales"), w.zeros()
        if w.by_rows:
            y = onnx_dequantize_linear(flat(w.centred()), scales, zeros, axis=1, block=w.block)
            y = matmul(x, transpose(y, permutation=(1, 0)))
        else:
            codes = _as_read(flat(w.centred()), w)
            turned = transpose(scales, permutation=(1, 0))
            less = None if zeros is None else _as_read(zeros, w)
            y = matmul(x, onnx_dequantize_linear(codes, turned, less, axis=0, block=w.block))
        return y if b is None else y + b

    def rows(self, ids: Value, w: Stored) -> Value:
        return gathered(ids, w, flat(w.centred()))


def _as_read(codes: Value, w: Stored) -> Value:
    """Codes or zero points i8 [rows, n] as [n, rows], in the type of their bits."""
    turned = transpose(codes, permutation=(1, 0))
    return turned if w.encoding.bits == 8 else cast(turned, dtype=DType.i4)


def flat(codes: Value) -> Value:
    """Codes [rows, blocks, block] as a matrix."""
    rows, blocks, block = codes.shape
    return reshape(codes, shape=(rows, blocks * block))
