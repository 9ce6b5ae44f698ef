"""Mistral: Llama whose attention looks back at a window of tokens. (Jiang et al. 2023)"""

from __future__ import annotations

from typing import Any

from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..harmless import CACHE, keys
from ..layers import attention, gated_feed_forward, rotary
from ..rope import rope_settings


class Mistral(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    ffn: int = key("intermediate_size")
    layers: int = key("num_hidden_layers")
    heads: int = key("num_attention_heads")
    kv_heads: int | None = key("num_key_value_heads", 8)
    head_dim: int | None = key("head_dim", None)
    eps: float = key("rms_norm_eps", 1e-6)
    max_positions: int = key("max_position_embeddings", 131072)
    theta: float = key("rope_theta", 10000.0)
    rope_scaling: dict[str, Any] | None = key("rope_scaling", None)
    rope_parameters: dict[str, Any] | None = key("rope_parameters", None)
    window: int | None = key("sliding_window", 4096)
    tied: bool = key("tie_word_embeddings", False)
    activation: str = key("hidden_act", "silu")

    noted = keys(CACHE, "layer_types")

    @property
    def width(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads


@model(
    checkpoint=Checkpoint("MistralForCausalLM", prefix="model", tied={"lm_head.weight": "model.embed_tokens.weight"})
)
def mistral(m: Scope, c: Mistral, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate = rotary(m, position_ids, c.width, **rope_settings(c))
    heads: dict[str, Any] = {"heads": c.heads, "kv_heads": c.groups, "width": c.width, "window": c.window}
    mask = key_mask(attention_mask)
    x = m.embed("model.embed_tokens", input_ids, c.vocab, c.dim)
    for b in m.layers("model.layers", c.layers):
        y = b.rms_norm("input_layernorm", x, c.eps)
        x = x + attention(b / "self_attn", y, **heads, mask=mask, causal=True, rotate=rotate)
        y = b.rms_norm("post_attention_layernorm", x, c.eps)
        x = x + gated_feed_forward(b / "mlp", y, c.ffn, c.activation)
    x = m.rms_norm("model.norm", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="model.embed_tokens" if c.tied else None)
