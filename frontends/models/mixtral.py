"""Mixtral: Llama with a layer of experts in place of the feed-forward. (Jiang et al. 2024)"""

from __future__ import annotations

from typing import Any

from ...ir import ops
from ...ir.weights import Weights
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..experts import by_expert, routed, router
from ..harmless import CACHE, LOSS, keys
from ..layers import attention, like, rotary
from ..rope import rope_settings

PROJECTIONS = ("w1", "w3", "w2")
"""Gate, up and down of an expert."""


class Mixtral(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    ffn: int = key("intermediate_size")
    layers: int = key("num_hidden_layers")
    heads: int = key("num_attention_heads")
    kv_heads: int | None = key("num_key_value_heads", 8)
    head_dim: int | None = key("head_dim", None)
    experts: int = key("num_local_experts", 8)
    chosen: int = key("num_experts_per_tok", 2)
    window: int | None = key("sliding_window", None)
    eps: float = key("rms_norm_eps", 1e-5)
    max_positions: int = key("max_position_embeddings", 131072)
    theta: float = key("rope_theta", 1e6)
    rope_scaling: dict[str, Any] | None = key("rope_scaling", None)
    rope_parameters: dict[str, Any] | None = key("rope_parameters", None)
    tied: bool = key("tie_word_embeddings", False)
    activation: str = key("hidden_act", "silu")

    noted = {
        **keys(LOSS, "output_router_logits router_aux_loss_coef"),
        **keys("noise in the choice of experts, which only training adds", "router_jitter_noise"),
        **keys(CACHE, "layer_types"),
    }


def stored(weights: Weights) -> Weights:
    """A checkpoint with a tensor for each expert; `mlp` is what transformers calls the layer in memory."""
    return by_expert(weights.renamed(lambda k: k.replace(".mlp.", ".block_sparse_moe.")), PROJECTIONS)


@model(
    checkpoint=Checkpoint(
        "MixtralForCausalLM", prefix="model", tied={"lm_head.weight": "model.embed_tokens.weight"}, layout=stored
    )
)
def mixtral(m: Scope, c: Mixtral, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    width = c.head_dim or c.dim // c.heads
    rotate = rotary(m, position_ids, width, **rope_settings(c))
    heads: dict[str, Any] = {"heads": c.heads, "kv_heads": c.kv_heads or c.heads, "width": width, "window": c.window}
    mask = key_mask(attention_mask)

    def experts(m: Scope, x: Value) -> Value:
        weights, indices = ops.topk(ops.softmax(router(m, "gate", x, c.experts)), k=c.chosen)
        weights = like(weights / ops.sum(weights), x.dtype)
        options: dict[str, Any] = {"count": c.experts, "width": c.ffn, "activation": c.activation}
        return routed(m / "experts", x, weights, indices, **options, names=PROJECTIONS)

    x = m.embed("model.embed_tokens", input_ids, c.vocab, c.dim)
    for b in m.layers("model.layers", c.layers):
        y = b.rms_norm("input_layernorm", x, c.eps)
        x = x + attention(b / "self_attn", y, **heads, mask=mask, causal=True, rotate=rotate)
        x = x + experts(b / "block_sparse_moe", b.rms_norm("post_attention_layernorm", x, c.eps))
    x = m.rms_norm("model.norm", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="model.embed_tokens" if c.tied else None)
