"""From fused layers to ONNX Runtime's own ops, and the passes each variant of a graph runs."""

from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ir.ops import add_rms_norm, linear, silu
from ...passes.cse import cse
from ...passes.dce import dce
from ...passes.decompose import inline_body
from ...passes.manager import FunctionPass, Pass, Pipeline, RewritePass
from ...passes.pattern import Rewrite
from ..onnx.recurrent import RecurrentToOnnx
from ..onnx.rewrites import AttentionToOnnx, RotaryToOnnx
from .attention import GroupQuery, MultiHead, PackProjections
from .logits import select_rows
from .ops import quick_gelu, skip_rms_norm, tied_linear

DISABLED_OPTIMIZERS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""ONNX Runtime's own fusions that make a CPU graph slower: SkipLayerNormalization takes 3 times as long as Add and
LayerNormalization, BiasGelu twice as long as Gelu after a bias that stayed in the matrix product."""


class SkipRMSNorm(Rewrite):
    """add_rms_norm => SkipSimplifiedLayerNormalization, which is faster than its parts (LayerNorm's is not)."""

    name = "ort_skip_rms_norm"  # type: ignore[assignment]

    def before(self, x: Value, r: Value, w: Value, *, eps: float) -> tuple[Value, Value]:
        return add_rms_norm(x, r, w, eps=eps)

    def when(self, x: Value, **_: object) -> bool | str:
        return x.rank in (2, 3) or f"x is {x.type}, and the kernel takes rank 2 or 3"

    def after(self, x: Value, r: Value, w: Value, *, eps: float) -> tuple[Value, Value]:
        return skip_rms_norm(x, r, w, eps=eps)


class QuickGelu(Rewrite):
    """silu => QuickGelu with alpha 1: one pass over memory in place of two."""

    name = "ort_quick_gelu"  # type: ignore[assignment]

    def before(self, x: Value) -> Value:
        return silu(x)

    def after(self, x: Value) -> Value:
        return quick_gelu(x)


class TiedLinear(Rewrite):
    """A linear whose weight something else reads as it is stored => a product that does not want it transposed."""

    name = "ort_tied_linear"  # type: ignore[assignment]

    def before(self, x: Value, w: Value) -> Value:
        return linear(x, w, transposed=False)

    def when(self, x: Value, w: Value) -> bool | str:
        if not w.is_param:
            return f"{w!r} is not a parameter"
        return any(not _transposing(n, w) for n in w.users) or f"{w.name} is read by linear layers only"

    def after(self, x: Value, w: Value) -> Value:
        return tied_linear(x, w)


def _transposing(node: Node, w: Value) -> bool:
    return node.op.name == "linear" and node.operands[1] is w and not node.attributes["transposed"]


def open_blocks(graph: Graph) -> int:
    """Feed-forward blocks become linear layers and activations, which have kernels. Gives how many."""
    blocks = [n for n in graph if n.op.name in ("feed_forward", "gated_feed_forward")]
    for node in blocks:
        inline_body(graph, node)
    return len(blocks)


LAYERS = RewritePass("ort_layers", [SkipRMSNorm(), QuickGelu(), TiedLinear()])
_CSE, _DCE = FunctionPass("cse", cse), FunctionPass("dce", dce)
_ROTARY = RewritePass("onnx_rotary", [RotaryToOnnx()])


def common() -> Pipeline:
    """What every variant begins with: packed weights are the same in all of them, and are stored once."""
    packing: list[Pass] = [PackProjections(), FunctionPass("open_blocks", open_blocks)]
    return Pipeline("ort_common", [*packing, FunctionPass("select_rows", select_rows), LAYERS])


def lengths_variant(positions: int) -> Pipeline:
    """For prompts padded on the right: lengths for masks, shared buffers for caches, tables of `positions` rows."""
    return Pipeline("ort_lengths", [GroupQuery(positions), *_rest()])


def mask_variant() -> Pipeline:
    """For any mask: every mask is explicit, caches grow. Also the only variant of a graph without a cache."""
    return Pipeline("ort_mask", _rest())


def _rest() -> list[Pass]:
    return [MultiHead(), AttentionToOnnx(), _ROTARY, RecurrentToOnnx(), _CSE, _DCE]
