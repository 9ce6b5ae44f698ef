"""Reading encoded weights: the parts that are stored, and the numbers they stand for."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..backward_reads import nothing
from ..encodings import Encoding
from ..errors import check
from ..flow import Link, Links
from ..graph import Attributes, Node, Value
from ..op import Op, op, unmoved
from ..ranges import Range
from ..shard_rules import elementwise, needs_all
from ..types import DType, TensorType, f32, i8
from .elementwise import cast
from .shape import reshape, transpose

PARTS = ("codes", "scales", "minimums", "zeros")


def encoding_of(w: Value) -> Encoding:
    """The encoding of a stored weight. Raises OpError if it has none."""
    check(w.type.encoding is not None, f"w is {w.type}, which has no encoding")
    assert w.type.encoding is not None
    return w.type.encoding


class EncodedPart(Op):
    """A part of a stored weight w [...]: codes [lines..., blocks, block], or one number a block [lines..., blocks, 1].

    A line runs along the axis of the blocks, so it is the last axis here whichever it is in the weight.
    part: codes, scales, minimums or zeros (the code that stands for 0). encoding: how the weight is stored.
    """

    reads_encoded: ClassVar[bool] = True
    backward_reads = nothing
    shard = needs_all
    flops = unmoved

    def complete(self, w: Value, *, part: str, encoding: str) -> Attributes:
        return {"part": part, "encoding": str(encoding_of(w))}

    def infer(self, w: Value, *, part: str, encoding: str = "") -> TensorType:
        e = encoding_of(w)
        check(part in PARTS, f"part is {part!r}, expected one of {', '.join(PARTS)}")
        check(part != "minimums" or e.minimum, f"w is {w.type}, which stores no minimums")
        check(part != "zeros" or e.zeros, f"w is {w.type}, which stores no zero points")
        lines, length = w.type.stored.shape[:-1], w.shape[e.axis]
        assert isinstance(length, int)
        block = e.block_of(length)
        width = block if part == "codes" else 1
        dtype = e.codes_type if part in ("codes", "zeros") else e.scale
        return TensorType(dtype, (*lines, length // block if block else 0, width))

    def links(self, w: Value, *, part: str, encoding: str) -> Links:
        return tuple(Link(0, axis, None) for axis in range(w.rank))

    def numpy(self, w: Any, *, part: str, encoding: str) -> Any:
        e = Encoding.parse(encoding)
        read = {"codes": e.codes, "scales": e.scales, "minimums": e.minimums, "zeros": e.zero_points}[part]
        return read(np.asarray(w))

    def torch(self, torch: Any, w: Any, *, part: str, encoding: str) -> Any:
        e = Encoding.parse(encoding)
        blocks = torch.unflatten(w, -1, (-1, e.header + e.block * e.bits // 8)) if e.block else torch.unsqueeze(w, -2)
        if part == "codes":
            packed = blocks[..., e.header :]
            if e.bits == 8:
                return packed.contiguous().view(_torch_type(torch, i8))
            moved = [torch.bitwise_right_shift(packed, n) if n else packed for n in range(0, 8, e.bits)]
            return torch.cat([torch.bitwise_and(x, (1 << e.bits) - 1) for x in moved], -1)
        if part == "zeros":
            zeros = blocks[..., e.header - 1 : e.header].contiguous()
            return zeros.view(_torch_type(torch, i8)) if e.bits == 8 else zeros
        size = e.scale.bits // 8
        start = size * (part == "minimums")
        return blocks[..., start : start + size].contiguous().view(_torch_type(torch, e.scale))


def _torch_type(torch: Any, dtype: DType) -> Any:
    names = {"i8": "int8", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
    return getattr(torch, names[dtype.value])


encoded_part = op(EncodedPart)


class Dequantize(Op):
    """The numbers of an encoded weight w [...]: scale * (code - zero), or scale * code + minimum, in the type of w.

    zero: the encoding's, or the block's own. Computed in f32, or in the type of the numbers if that is wider; codes
    without zero and with scales of the type of the numbers, in that type. The only way to read an encoded weight.
    (The formats of GGUF, and integers by block)
    """

    reads_encoded: ClassVar[bool] = True
    folds: ClassVar[bool] = False
    shard = elementwise

    def infer(self, w: Value) -> TensorType:
        encoding_of(w)
        return w.type.decoded

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        return tuple(r for r in given if r is not None)

    def body(self, w: Value) -> Value:
        e = encoding_of(w)
        offset = e.zero or e.zeros or e.minimum
        wide = w.dtype if w.dtype.bits > 32 or (w.dtype == e.scale and not offset) else f32
        codes, scales = (_as(encoded_part(w, part=p), wide) for p in ("codes", "scales"))
        if e.zeros:
            codes = codes - _as(encoded_part(w, part="zeros"), wide)
        y = (codes - float(e.zero) if e.zero else codes) * scales
        if e.minimum:
            y = y + _as(encoded_part(w, part="minimums"), wide)
        lines = w.type.stored.shape[:-1]
        return along_axis(_as(reshape(y, shape=(*lines, w.shape[e.axis])), w.dtype), e.axis)


def along_axis(lines: Value, axis: int) -> Value:
    """Lines [..., length] with their length as axis `axis`."""
    if axis == -1:
        return lines
    order = list(range(lines.rank - 1))
    order.insert(axis, lines.rank - 1)
    return transpose(lines, permutation=tuple(order))


def _as(x: Value, dtype: DType) -> Value:
    return x if x.dtype == dtype else cast(x, dtype=dtype)


dequantize = op(Dequantize)
