"""ONNX Runtime's own ops over blocks of codes: MatMulNBits and GatherBlockQuantized, which share one weight.

Checked on the CPU with ONNX Runtime 1.31.1: both take codes of 2, 4 and 8 bits, the earlier in the lower bits of a
byte, with 2, 8 and 128 for 0 when no zero point is given. Zero points are bytes, packed like the codes; one that is no
integer sends MatMulNBits to a path that dequantizes the whole weight on each call, so minimums become a product of
their own (see backends/onnx/quantized.py). Scales are [N,K/block], but [N,K/block,1] for a gather over three axes, and
zero points likewise, a byte each.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import check
from ...ir.graph import Value
from ...ir.interpret import Array
from ...ir.op import Op, op, unmoved
from ...ir.ops import reshape
from ...ir.shard_rules import needs_all
from ...ir.types import DimLike, TensorType, i8, u8
from ...ir.value import type_of
from ..onnx.builder import MICROSOFT
from ..onnx.quantized import QuantizedLayers, Stored, integer_product, rounded_product, with_offsets
from ..onnx.untyped import read_graph
from ..target import Target
from .blocks import blocks_of
from .choices import EXACT, Choices, choices_of

_FINE = "monograph.fine"
"""Metadata of a product over both parts of its activations."""
NARROW = 4
"""The accuracy level at which MatMulNBits rounds activations to 8 bits."""
_ZERO = {2: 2, 4: 8, 8: 128}
_BLOCKS = (16, 32, 64, 128, 256)


class OrtPackCodes(Op):
    """Codes or zero points i8 [..., n] around 0 as bytes, several to one, the last one filled. Stored, never run."""

    shard = needs_all
    flops = unmoved

    def infer(self, codes: Value, *, bits: int) -> TensorType:
        check(codes.dtype == i8 and bits in _ZERO, f"codes are {codes.type} of {bits} bits, expected i8 of 2, 4 or 8")
        *lead, n = codes.shape
        return TensorType(u8, (*lead, -(-n * bits // 8) if isinstance(n, int) else n))

    def numpy(self, codes: Any, *, bits: int) -> Any:
        moved = codes.view(np.uint8) + np.uint8(_ZERO[bits])
        per_byte = 8 // bits
        if left := -moved.shape[-1] % per_byte:
            moved = np.concatenate([moved, np.zeros((*moved.shape[:-1], left), np.uint8)], axis=-1)
        packed = moved[..., 0::per_byte]
        for i in range(1, per_byte):
            packed = packed | (moved[..., i::per_byte] << (i * bits))
        return packed


def unpacked(packed: Array, bits: int) -> Array:
    """The inverse of `OrtPackCodes`, as f32."""
    mask = (1 << bits) - 1
    codes = np.stack([packed >> shift & mask for shift in range(0, 8, bits)], -1)
    return codes.reshape(*packed.shape[:-1], -1).astype(np.float32) - _ZERO[bits]


class OrtMatMulNBits(Op):
    """x @ (scale * (code - zero)).T + b: x [..., K], codes u8 [N, K/block, bytes], scales [N, K/block], b [N].

    zeros: packed u8 [N, bytes]; None where 0 is in the middle. accuracy_level: 4 multiplies by x in 8 bits a block,
    where that is faster; 0 computes in the type of x. fine: x goes in as what 8 bits hold and as the rest, two rows of
    one product, so that the result is as good as with 16 bits. Greedy tokens of small models turn on such differences.
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
        zeros: Value | None = None,
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
        packed = TensorType(u8, (rows, -(-blocks * bits // 8) if isinstance(blocks, int) else blocks))
        check(zeros is None or zeros.type == packed, f"zeros is {type_of(zeros)}, expected {packed}")
        check(b is None or b.shape == (rows,), f"b is {type_of(b)}, expected [{rows}]")
        return TensorType(x.dtype, (*x.shape[:-1], rows))

    def numpy(
        self,
        x: Any,
        codes: Any,
        scales: Any,
        zeros: Any = None,
        b: Any = None,
        *,
        bits: int,
        accuracy_level: int,
        fine: bool,
    ) -> Any:
        w = unpacked(codes, bits)
        if zeros is not None:
            w -= unpacked(zeros, bits)[:, : w.shape[1], None]
        w = (w * scales[..., None].astype(np.float32)).reshape(len(codes), -1)
        y = x.astype(np.float32) @ w.T
        return (y if b is None else y + b).astype(x.dtype)

    def onnx(
        self,
        op: Any,
        x: Any,
        codes: Any,
        scales: Any,
        zeros: Any = None,
        b: Any = None,
        *,
        bits: int,
        accuracy_level: int,
        fine: bool,
    ) -> Any:
        rows, blocks, width = codes.shape
        given = _coarse_and_rest(op, x, width * 8 // bits) if fine else x
        y = op.MatMulNBits(
            given, codes, scales, zeros, None, None if fine else b, domain=MICROSOFT, K=blocks * width * 8 // bits,
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
    """Rows of scale * (code - zero) by ids [...]: [..., blocks, block], from codes and scales as MatMulNBits has them.

    zeros: u8 [N, K/block, 1], a byte each.
    """

    shard = needs_all

    def flops(self, codes: Value, ids: Value, scales: Value, zeros: Value | None = None, *, bits: int) -> DimLike:
        return self.infer(codes, ids, scales, zeros, bits=bits).elements

    def infer(self, codes: Value, ids: Value, scales: Value, zeros: Value | None = None, *, bits: int) -> TensorType:
        rows, blocks, width = codes.shape
        check(scales.shape == (rows, blocks), f"scales is {scales.type}, codes {codes.type}")
        one = TensorType(u8, (rows, blocks, 1))
        check(zeros is None or zeros.type == one, f"zeros is {type_of(zeros)}, expected {one}")
        return TensorType(scales.dtype, (*ids.shape, blocks, width * 8 // bits if isinstance(width, int) else width))

    def numpy(self, codes: Any, ids: Any, scales: Any, zeros: Any = None, *, bits: int) -> Any:
        y = unpacked(codes[ids], bits)
        if zeros is not None:
            y -= unpacked(zeros[ids], bits)[..., :1]
        return (y * scales[ids][..., None].astype(np.float32)).astype(scales.dtype)

    def onnx(self, op: Any, codes: Any, ids: Any, scales: Any, zeros: Any = None, *, bits: int) -> Any:
        each = op.reshape(scales, (*scales.shape, 1))
        given = [codes, ids, each] if zeros is None else [codes, ids, each, zeros]
        return op.GatherBlockQuantized(
            *given, domain=MICROSOFT, bits=bits, block_size=codes.shape[-1] * 8 // bits, gather_axis=0, quantize_axis=2
        )


class OrtGatherPacked(OrtGatherBlockQuantized):
    """The same rows by standard ops: the builds of ONNX Runtime for browsers have no GatherBlockQuantized."""

    def onnx(self, op: Any, codes: Any, ids: Any, scales: Any, zeros: Any = None, *, bits: int) -> Any:
        _, blocks, width = codes.shape
        taken = op.Gather(codes, ids, axis=0, types=[TensorType(u8, (*ids.shape, blocks, width))])
        if bits < 8:
            last, mask = op.constant(np.array([-1], np.int64)), op.constant(np.array((1 << bits) - 1, np.uint8))
            shifts = [op.constant(np.array(n, np.uint8)) for n in range(bits, 8, bits)]
            moved = [taken, *(op.BitShift(taken, n, direction="RIGHT") for n in shifts)]
            each_one = [op.Unsqueeze(op.BitwiseAnd(x, mask), last) for x in moved]
            together = op.Concat(*each_one, axis=-1, types=[TensorType(u8, (*ids.shape, blocks, width, 8 // bits))])
            taken = op.reshape(together, (*ids.shape, blocks, width * 8 // bits))
        number = op.element_type(scales.dtype)
        if zeros is None:
            zero = op.constant(np.array(_ZERO[bits], scales.dtype.numpy))
        else:
            zero = op.Cast(op.Gather(zeros, ids, axis=0, types=[TensorType(u8, (*ids.shape, blocks, 1))]), to=number)
        each = op.Gather(scales, ids, axis=0, types=[TensorType(scales.dtype, (*ids.shape, blocks))])
        return op.Mul(op.Sub(op.Cast(taken, to=number), zero), op.reshape(each, (*ids.shape, blocks, 1)))


pack_codes, matmul_nbits = op(OrtPackCodes), op(OrtMatMulNBits)
gather_block_quantized, gather_packed = op(OrtGatherBlockQuantized), op(OrtGatherPacked)


class RuntimeLayers:
    """MatMulNBits, and rows of the same bytes; products of integers for codes with one scale a row.

    choices: accuracy levels, and by which ops a head is multiplied and rows are taken. dynamic: whether the provider
    has the products of integers. fine: weights whose activations are multiplied in two parts, as if in 16 bits, where
    the kernel takes 8.
    """

    def __init__(self, choices: Choices, *, dynamic: bool = True, fine: Collection[str] = ()) -> None:
        self.choices, self.dynamic, self.fine = choices, dynamic, frozenset(fine)
        self.gather = gather_block_quantized if choices.block_embedding else gather_packed

    def refuses(self, w: Stored) -> str:
        if w.by_line:
            return "" if self.dynamic else "the provider multiplies no integers by activations rounded as they come"
        if w.encoding.bits not in _ZERO or w.block not in _BLOCKS:
            return f"MatMulNBits has no blocks of {w.block} codes of {w.encoding.bits} bits"
        return ""

    def product(self, x: Value, w: Stored, b: Value | None) -> Value:
        if w.by_line:
            return integer_product(x, w, b)
        bits, zeros = w.encoding.bits, w.zeros()
        level = self.choices.level(bits, head=w.by_rows)
        # Of a table that is the head too: its product decides on tokens, and nothing after it evens out an error. Where
        # layers before it round their activations, too, those are off by more.
        rounds = any(self.choices.level(n) == NARROW for n in w.layers)
        head = w.by_rows and self.choices.fine_head and not rounds
        fine = (head or any(v.name in self.fine for v in w.weights)) and level == NARROW
        packed = None if zeros is None else pack_codes(zeros, bits=bits)
        return matmul_nbits(x, _packed(w), w.numbers("scales"), packed, b, bits=bits, accuracy_level=level, fine=fine)

    def rows(self, ids: Value, w: Stored) -> Value:
        bits, zeros = w.encoding.bits, w.zeros()
        one = None if zeros is None else pack_codes(reshape(zeros, shape=(*zeros.shape, 1)), bits=bits)
        return with_offsets(self.gather(_packed(w), ids, w.numbers("scales"), one, bits=bits), ids, w)


class PromptLayers(RuntimeLayers):
    """The layers of a graph for prompts: blocks become rows of 8 bits, multiplied by activations rounded by row.

    For many tokens that is twice as fast as MatMulNBits in any form. Tables, heads that are one and weights whose
    activations lose too much in 8 bits stay as they are.
    """

    def product(self, x: Value, w: Stored, b: Value | None) -> Value:
        if w.by_line or w.by_rows or any(v.name in self.fine for v in w.weights):
            return super().product(x, w, b)
        return rounded_product(x, w.dense(), b)


def _packed(w: Stored) -> Value:
    return pack_codes(w.centred(), bits=w.encoding.bits)


def narrow_products(folder: str | Path) -> bool:
    """Whether a built folder multiplies by activations in 8 bits, so that it is near its model and not equal to it.

    Fine products count as equal: of SmolLM2-135M they move the largest logits, of 30, by 0.002.
    """
    products = _nodes(folder, "MatMulNBits")
    coarse = (node for node in products if not any(p.key == _FINE for p in node.metadata_props))
    return any(a.name == "accuracy_level" and a.i == NARROW for node in coarse for a in node.attribute)


def integer_products(folder: str | Path) -> bool:
    """Whether a built folder multiplies integers by integers, which no session does in float."""
    return bool(_nodes(folder, "MatMulInteger"))


def _nodes(folder: str | Path, op_type: str) -> list[Any]:
    """The nodes of a type in all graphs of a folder."""
    files = (read_graph(f) for f in sorted(Path(folder).glob("*.onnx")))
    return [node for f in files for node in f.graph.node if node.op_type == op_type]


def quantized_layers(target: Target, fine: Collection[str] = ()) -> QuantizedLayers:
    """The pass for graphs that ONNX Runtime runs. After packing, so that packed weights are one product.

    fine: weights whose activations lose too much in 8 bits.
    """
    layers = RuntimeLayers(choices_of(target), dynamic=blocks_of(target.provider).dynamic, fine=fine)
    return QuantizedLayers(layers, "ort_quantized_layers")


def prompt_layers(target: Target, fine: Collection[str] = ()) -> QuantizedLayers:
    """The same for the graph that reads prompts, if the target has one of its own."""
    return QuantizedLayers(PromptLayers(choices_of(target), fine=fine), "ort_prompt_layers")


def exact_layers() -> QuantizedLayers:
    """The same ops, multiplying in the type of the activations: for clients that set no option of a session.

    Over the standard ops ONNX Runtime makes products of its own, which round activations to 8 bits unless told not to.
    """
    return QuantizedLayers(RuntimeLayers(EXACT), "ort_exact_layers")
