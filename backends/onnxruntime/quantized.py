"""ONNX Runtime's own ops over blocks of codes: MatMulNBits and GatherBlockQuantized, which share one weight.

Checked on the CPU with ONNX Runtime 1.31.1: both take 4-bit codes two to a byte, the earlier in the low half, with 8
for 0, and 8-bit codes with 128 for 0, when no zero point is given. A zero point that is no integer sends MatMulNBits
to a path that dequantizes the whole weight on each call, so minimums become a product of their own (see
backends/onnx/quantized.py). Scales are 1-D or [N,K/block], but [N,K/block,1] for a gather over three axes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import check
from ...ir.graph import Value
from ...ir.interpret import Array
from ...ir.op import Op, op, unmoved
from ...ir.shard_rules import needs_all
from ...ir.types import DimLike, TensorType, i8, u8
from ...ir.value import type_of
from ..onnx.builder import MICROSOFT
from ..onnx.quantized import QuantizedLayers, Stored, with_offsets
from ..onnx.untyped import read_graph
from ..target import Target
from .choices import EXACT, Choices, choices_of

_FINE = "monograph.fine"
"""Metadata of a product over both parts of its activations."""
NARROW = 4
"""The accuracy level at which MatMulNBits rounds activations to 8 bits."""
_ZERO = {4: 8, 8: 128}
_BLOCKS = (16, 32, 64, 128, 256)


class OrtPackCodes(Op):
    """Codes i8 [rows, blocks, block] around 0 as bytes around 8 (two to a byte) or 128. Stored, never run."""

    shard = needs_all
    flops = unmoved

    def infer(self, codes: Value, *, bits: int) -> TensorType:
        check(codes.dtype == i8 and bits in _ZERO, f"codes are {codes.type} of {bits} bits, expected i8 of 4 or 8")
        *lead, block = codes.shape
        check(isinstance(block, int) and block * bits % 8 == 0, f"codes is {codes.type}: no whole bytes a block")
        return TensorType(u8, (*lead, block * bits // 8 if isinstance(block, int) else block))

    def numpy(self, codes: Any, *, bits: int) -> Any:
        moved = codes.view(np.uint8) + np.uint8(_ZERO[bits])
        return moved if bits == 8 else moved[..., 0::2] | (moved[..., 1::2] << 4)


def unpacked(packed: Array, bits: int) -> Array:
    """The inverse of `OrtPackCodes`, as f32."""
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
    return codes.astype(np.float32) - _ZERO[bits]


class OrtMatMulNBits(Op):
    """x @ (scale * code).T + b: x [..., K], codes u8 [N, K/block, bytes], scales [N, K/block], b [N].

    accuracy_level: 4 multiplies by x in 8 bits a block, where that is faster; 0 computes in the type of x.
    fine: x goes in as what 8 bits hold and as the rest, two rows of one product, so that the result is as good as
    with 16 bits. Greedy tokens of small models turn on such differences.
    """

    heavy = True
    shard = needs_all

    def flops(self, x: Value, codes: Value, *rest: Value | None, **attributes: Any) -> DimLike:
        return 2 * x.type.elements * codes.shape[0]

    def infer(
        self,
        x: Value,
        codes: Value,
        scales: Value,
        b: Value | None = None,
        *,
        bits: int,
        accuracy_level: int = 0,
        fine: bool = False,
    ) -> TensorType:
        rows, blocks, width = codes.shape
        check(isinstance(width, int) and codes.dtype == u8, f"codes is {codes.type}, expected bytes")
        check(scales.type == TensorType(x.dtype, (rows, blocks)), f"scales is {scales.type}, codes {codes.type}")
        columns = blocks * width * 8 // bits if isinstance(blocks, int) and isinstance(width, int) else blocks
        check(x.shape[-1] == columns, f"last axis of x is {x.shape[-1]} but codes is {codes.type} of {bits} bits")
        check(b is None or b.shape == (rows,), f"b is {type_of(b)}, expected [{rows}]")
        return TensorType(x.dtype, (*x.shape[:-1], rows))

    def numpy(
        self, x: Any, codes: Any, scales: Any, b: Any = None, *, bits: int, accuracy_level: int, fine: bool
    ) -> Any:
        w = (unpacked(codes, bits) * scales[..., None].astype(np.float32)).reshape(len(codes), -1)
        y = x.astype(np.float32) @ w.T
        return (y if b is None else y + b).astype(x.dtype)

    def onnx(
        self, op: Any, x: Any, codes: Any, scales: Any, b: Any = None, *, bits: int, accuracy_level: int, fine: bool
    ) -> Any:
        rows, blocks, width = codes.shape
        given = _coarse_and_rest(op, x, width * 8 // bits) if fine else x
        y = op.MatMulNBits(
            given, codes, scales, None, None, None if fine else b, domain=MICROSOFT, K=blocks * width * 8 // bits,
            N=rows, bits=bits, block_size=width * 8 // bits, accuracy_level=accuracy_level or None,
        )  # fmt: skip
        if not fine:
            return y
        y.value.producer().metadata_props[_FINE] = "1"
        y = op.ReduceSum(y, op.constant(np.array([0], np.int64)), keepdims=0)
        return y if b is None else op.Add(y, b)


def _coarse_and_rest(op: Any, x: Any, block: int) -> Any:
    """x [..., K] as [2, ..., K]: rounded to 8 bits a block as the kernel does it, and what that leaves."""
    shape = (*x.shape[:-1], x.shape[-1] // block, block)
    blocks = op.reshape(x, shape)
    largest = op.ReduceMax(op.Abs(blocks), op.constant(np.array([-1], np.int64)), keepdims=1)
    least = op.constant(np.array(1e-30, x.dtype.numpy))
    step = op.Div(op.Max(largest, least), op.constant(np.array(127, x.dtype.numpy)))
    coarse = op.Mul(op.Round(op.Div(blocks, step)), step)
    first = op.constant(np.array([0], np.int64))
    parts = [op.Unsqueeze(part, first) for part in (coarse, op.Sub(blocks, coarse))]
    both = op.Concat(*parts, axis=0, types=[TensorType(x.dtype, (2, *shape))])
    return op.reshape(both, (2, *x.shape))


class OrtGatherBlockQuantized(Op):
    """Rows of scale * code by ids [...]: [..., blocks, block], from codes and scales as MatMulNBits has them."""

    shard = needs_all

    def flops(self, codes: Value, ids: Value, scales: Value, *, bits: int) -> DimLike:
        return self.infer(codes, ids, scales, bits=bits).elements

    def infer(self, codes: Value, ids: Value, scales: Value, *, bits: int) -> TensorType:
        rows, blocks, width = codes.shape
        check(scales.shape == (rows, blocks), f"scales is {scales.type}, codes {codes.type}")
        return TensorType(scales.dtype, (*ids.shape, blocks, width * 8 // bits if isinstance(width, int) else width))

    def numpy(self, codes: Any, ids: Any, scales: Any, *, bits: int) -> Any:
        return (unpacked(codes[ids], bits) * scales[ids][..., None].astype(np.float32)).astype(scales.dtype)

    def onnx(self, op: Any, codes: Any, ids: Any, scales: Any, *, bits: int) -> Any:
        each = op.reshape(scales, (*scales.shape, 1))
        return op.GatherBlockQuantized(
            codes, ids, each, domain=MICROSOFT, bits=bits, block_size=codes.shape[-1] * 8 // bits, gather_axis=0,
            quantize_axis=2,
        )  # fmt: skip


class OrtGatherPacked(OrtGatherBlockQuantized):
    """The same rows by standard ops: the builds of ONNX Runtime for browsers have no GatherBlockQuantized."""

    def onnx(self, op: Any, codes: Any, ids: Any, scales: Any, *, bits: int) -> Any:
        _, blocks, width = codes.shape
        taken = op.Gather(codes, ids, axis=0, types=[TensorType(u8, (*ids.shape, blocks, width))])
        if bits == 4:
            last, four = op.constant(np.array([-1], np.int64)), op.constant(np.array(4, np.uint8))
            low = op.BitwiseAnd(taken, op.constant(np.array(15, np.uint8)))
            halves = [op.Unsqueeze(x, last) for x in (low, op.BitShift(taken, four, direction="RIGHT"))]
            pairs = op.Concat(*halves, axis=-1, types=[TensorType(u8, (*ids.shape, blocks, width, 2))])
            taken = op.reshape(pairs, (*ids.shape, blocks, width * 2))
        zero = op.constant(np.array(_ZERO[bits], scales.dtype.numpy))
        numbers = op.Sub(op.Cast(taken, to=op.element_type(scales.dtype)), zero)
        each = op.Gather(scales, ids, axis=0, types=[TensorType(scales.dtype, (*ids.shape, blocks))])
        return op.Mul(numbers, op.reshape(each, (*ids.shape, blocks, 1)))


pack_codes, matmul_nbits = op(OrtPackCodes), op(OrtMatMulNBits)
gather_block_quantized, gather_packed = op(OrtGatherBlockQuantized), op(OrtGatherPacked)


class RuntimeLayers:
    """MatMulNBits, and rows of the same bytes.

    choices: accuracy levels, and by which ops a head is multiplied and rows are taken.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.gather = gather_block_quantized if choices.block_embedding else gather_packed

    def refuses(self, w: Stored) -> str:
        if w.encoding.bits not in _ZERO or w.block not in _BLOCKS:
            return f"MatMulNBits has no blocks of {w.block} codes of {w.encoding.bits} bits"
        return ""

    def product(self, x: Value, w: Stored, b: Value | None) -> Value:
        bits = w.encoding.bits
        level = self.choices.level(bits, head=w.by_rows)
        # Of a table that is the head too: its product decides on tokens, and nothing after it evens out an error.
        fine = w.by_rows and level == NARROW and self.choices.fine_head
        return matmul_nbits(x, _packed(w), w.numbers("scales"), b, bits=bits, accuracy_level=level, fine=fine)

    def rows(self, ids: Value, w: Stored) -> Value:
        y = self.gather(_packed(w), ids, w.numbers("scales"), bits=w.encoding.bits)
        return with_offsets(y, ids, w)


def _packed(w: Stored) -> Value:
    return pack_codes(w.centred(), bits=w.encoding.bits)


def narrow_products(folder: str | Path) -> bool:
    """Whether a built folder multiplies by activations in 8 bits, so that it is near its model and not equal to it.

    Fine products count as equal: of SmolLM2-135M they move the largest logits, of 30, by 0.002.
    """
    files = (read_graph(f) for f in sorted(Path(folder).glob("*.onnx")))
    products = [node for f in files for node in f.graph.node if node.op_type == "MatMulNBits"]
    coarse = (node for node in products if not any(p.key == _FINE for p in node.metadata_props))
    return any(a.name == "accuracy_level" and a.i == NARROW for node in coarse for a in node.attribute)


def quantized_layers(target: Target) -> QuantizedLayers:
    """The pass for graphs that ONNX Runtime runs. After packing, so that packed weights are one product."""
    return QuantizedLayers(RuntimeLayers(choices_of(target)), "ort_quantized_layers")


def exact_layers() -> QuantizedLayers:
    """The same ops, multiplying in the type of the activations: for clients that set no option of a session.

    Over the standard ops ONNX Runtime makes products of its own, which round activations to 8 bits unless told not to.
    """
    return QuantizedLayers(RuntimeLayers(EXACT), "ort_exact_layers")
