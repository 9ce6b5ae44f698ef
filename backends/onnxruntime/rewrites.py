"""From fused layers to ONNX Runtime's own ops, and the passes each variant of a graph runs."""

from __future__ import annotations

from collections.abc import Collection

from ...ir.graph import Graph, Node, Value
from ...ir.ops import add_layer_norm, add_rms_norm, linear, silu
from ...ir.ops.feed_forward import FeedForward, GatedFeedForward
from ...ir.ops.linear import Linear
from ...passes.adapters import AddAdapters
from ...passes.cse import cse
from ...passes.dce import dce
from ...passes.decompose import inline_body
from ...passes.fold_rows import FoldRows
from ...passes.manager import FunctionPass, Pass, Pipeline, RewritePass
from ...passes.pack import pack_linears
from ...passes.pattern import Rewrite
from ..onnx.recurrent import RecurrentToOnnx
from ..onnx.rewrites import AttentionToOnnx, RotaryToOnnx
from ..target import Target
from .attention import GroupQuery, PackProjections
from .choices import choices_of
from .logits import select_rows
from .multi_head import MultiHead
from .next_token import CHOOSE
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

    def __init__(self, target: Target) -> None:
        self.target = target

    def before(self, x: Value) -> Value:
        return silu(x)

    def when(self, x: Value) -> bool | str:
        return self.target.has("QuickGelu", x.dtype) or f"no kernel in {x.dtype}"

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


def pack_gates(graph: Graph) -> int:
    """Both projections of a gated feed-forward that read one input become one product and its halves. Gives how many.

    The blocks become linear layers and activations.
    """
    packed = 0
    for node in [n for n in graph if isinstance(n.op, GatedFeedForward)]:
        x = node.value("x")
        inline_body(graph, node)
        gates = [n for n in x.users if isinstance(n.op, Linear) and n["x"] is x]
        packed += len(gates) == 2 and pack_linears(graph, gates)
    return packed


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
    choices = choices_of(target)
    chosen: dict[Rewrite, bool] = {
        SkipRMSNorm(): choices.skip_rms_norm,
        SkipLayerNorm(): choices.skip_layer_norm,
        QuickGelu(target): choices.quick_gelu,
        TiedLinear(): choices.tied_head == "stored",
    }
    return RewritePass("ort_layers", [rewrite for rewrite, wanted in chosen.items() if wanted])


def common(target: Target, adapters: AddAdapters | None = None) -> Pipeline:
    """What every variant begins with: packed weights are the same in all of them, and are stored once."""
    choices = choices_of(target)
    passes: dict[Pass, bool] = {
        PackProjections(target): choices.pack_projections,
        FunctionPass("pack_gates", pack_gates): choices.pack_gates,
        FunctionPass("open_blocks", open_blocks): True,
        **({} if adapters is None else {adapters: True}),
        FunctionPass("select_rows", select_rows): True,
        CHOOSE: choices.next_token,
        layers(target): True,
    }
    return Pipeline("ort_common", [step for step, wanted in passes.items() if wanted])


def lengths_variant(target: Target, positions: int, sources: Collection[str] = ()) -> Pipeline:
    """For prompts padded on the right: lengths for masks, shared buffers for caches, tables of `positions` rows.

    sources: inputs of the encoder beside the decoder, whose rows are told from those of tokens on the CPU; captured
    steps of CUDA have no sizes to compute.
    """
    fold = [FoldRows(sources)] if target.provider == "cpu" else []
    return Pipeline("ort_lengths", [*fold, GroupQuery(target, positions), *_rest(target)])


def mask_variant(target: Target) -> Pipeline:
    """For any mask: every mask is explicit, caches grow. Also the only variant of a graph without a cache."""
    return Pipeline("ort_mask", _rest(target))


def _rest(target: Target) -> list[Pass]:
    attention = choices_of(target).attention
    passes: dict[Pass, bool] = {
        MultiHead(target): attention == "multi_head",
        AttentionToOnnx(known=target.provider == "cpu"): attention != "parts",
    }
    return [*(step for step, wanted in passes.items() if wanted), _ROTARY, RecurrentToOnnx(), _CSE, _DCE]
