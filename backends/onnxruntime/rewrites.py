"""From fused layers to ONNX Runtime's own ops, and the passes each variant of a graph runs."""

from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ir.ops import add_layer_norm, add_rms_norm, linear, silu
from ...ir.ops.feed_forward import FeedForward, GatedFeedForward
from ...ir.ops.linear import Linear
from ...passes.adapters import AddAdapters
from ...passes.cse import cse
from ...passes.dce import dce
from ...passes.decompose import inline_body
from ...passes.manager import FunctionPass, Pass, Pipeline, RewritePass
from ...passes.pattern import Rewrite
from ..onnx.recurrent import RecurrentToOnnx
from ..onnx.rewrites import AttentionToOnnx, RotaryToOnnx
from ..target import Target
from .attention import GroupQuery, MultiHead, PackProjections
from .choices import choices_of
from .logits import select_rows
from .ops import quick_gelu, skip_layer_norm, skip_rms_norm, tied_linear


class SkipRMSNorm(Rewrite):
    """add_rms_norm => SkipSimplifiedLayerNormalization, which is faster than its parts (LayerNorm's is not)."""

    name = "ort_skip_rms_norm"  # type: ignore[assignment]

    def before(self, x: Value, r: Value, w: Value, *, eps: float) -> tuple[Value, ...]:
        return add_rms_norm(x, r, w, eps=eps)

    def when(self, x: Value, **_: object) -> bool | str:
        return x.rank in (2, 3) or f"x is {x.type}, and the kernel takes rank 2 or 3"

    def after(self, x: Value, r: Value, w: Value, *, eps: float) -> tuple[Value, ...]:
        return skip_rms_norm(x, r, w, eps=eps)


class SkipLayerNorm(Rewrite):
    """add_layer_norm => SkipLayerNormalization, for providers where it is faster than its parts."""

    name = "ort_skip_layer_norm"  # type: ignore[assignment]

    def before(self, x: Value, r: Value, w: Value, b: Value | None = None, *, eps: float) -> tuple[Value, ...]:
        return add_layer_norm(x, r, w, b, eps=eps)

    def when(self, x: Value, **_: object) -> bool | str:
        return x.rank in (2, 3) or f"x is {x.type}, and the kernel takes rank 2 or 3"

    def after(self, x: Value, r: Value, w: Value, b: Value | None = None, *, eps: float) -> tuple[Value, ...]:
        return skip_layer_norm(x, r, w, b, eps=eps)


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
    return isinstance(node.op, Linear) and node["w"] is w and not node.attributes["transposed"]


def open_blocks(graph: Graph) -> int:
    """Feed-forward blocks become linear layers and activations, which have kernels. Gives how many."""
    blocks = [n for n in graph if isinstance(n.op, (FeedForward, GatedFeedForward))]
    for node in blocks:
        inline_body(graph, node)
    return len(blocks)


_CSE, _DCE = FunctionPass("cse", cse), FunctionPass("dce", dce)
_ROTARY = RewritePass("onnx_rotary", [RotaryToOnnx()])


def layers(target: Target) -> RewritePass:
    """Layers as the provider's own ops, where those are faster than their parts."""
    choices = choices_of(target.provider)
    chosen = {SkipRMSNorm: choices.skip_rms_norm, SkipLayerNorm: choices.skip_layer_norm, QuickGelu: choices.quick_gelu}
    return RewritePass("ort_layers", [*(rewrite() for rewrite, wanted in chosen.items() if wanted), TiedLinear()])


def common(target: Target, adapters: AddAdapters | None = None) -> Pipeline:
    """What every variant begins with: packed weights are the same in all of them, and are stored once."""
    packing: list[Pass] = [PackProjections(target)] if choices_of(target.provider).pack_projections else []
    beside: list[Pass] = [adapters] if adapters is not None else []
    rest: list[Pass] = [FunctionPass("open_blocks", open_blocks), *beside, FunctionPass("select_rows", select_rows)]
    return Pipeline("ort_common", [*packing, *rest, layers(target)])


def lengths_variant(target: Target, positions: int) -> Pipeline:
    """For prompts padded on the right: lengths for masks, shared buffers for caches, tables of `positions` rows."""
    return Pipeline("ort_lengths", [GroupQuery(target, positions), *_rest(target)])


def mask_variant(target: Target) -> Pipeline:
    """For any mask: every mask is explicit, caches grow. Also the only variant of a graph without a cache."""
    return Pipeline("ort_mask", _rest(target))


def _rest(target: Target) -> list[Pass]:
    return [MultiHead(target), AttentionToOnnx(), _ROTARY, RecurrentToOnnx(), _CSE, _DCE]
