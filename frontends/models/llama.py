"""Llama: pre-norm decoder, rotary positions, grouped-query attention, gated feed-forward. (Touvron et al. 2023)"""

from __future__ import annotations

from typing import Any

from ..dsl import GGUF, Checkpoint, Config, Scope, Value, key, key_mask, model
from ..layers import attention, gated_feed_forward, rotary
from ..rope import rope_settings


class Llama(Config):
    vocab: int = key("vocab_size", gguf="vocab_size")
    dim: int = key("hidden_size", gguf="embedding_length")
    ffn: int = key("intermediate_size", gguf="feed_forward_length")
    layers: int = key("num_hidden_layers", gguf="block_count")
    heads: int = key("num_attention_heads", gguf="attention.head_count")
    kv_heads: int | None = key("num_key_value_heads", None, gguf="attention.head_count_kv")
    head_dim: int | None = key("head_dim", None, gguf="attention.key_length")
    eps: float = key("rms_norm_eps", 1e-6, gguf="attention.layer_norm_rms_epsilon")
    max_positions: int = key("max_position_embeddings", 2048, gguf="context_length")
    theta: float = key("rope_theta", 10000.0, gguf="rope.freq_base")
    rope_scaling: dict[str, Any] | None = key("rope_scaling", None)
    rope_parameters: dict[str, Any] | None = key("rope_parameters", None)
    tied: bool = key("tie_word_embeddings", False)
    attention_bias: bool = key("attention_bias", False)
    mlp_bias: bool = key("mlp_bias", False)
    activation: str = key("hidden_act", "silu")

    @property
    def width(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads


GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
"""GGUF module name => checkpoint module name."""


@model(
    checkpoint=Checkpoint("LlamaForCausalLM", prefix="model", tied={"lm_head.weight": "model.embed_tokens.weight"}),
    gguf=GGUF(GGUF_NAMES, permuted={"q_proj": "heads", "k_proj": "groups"}),
)
def llama(m: Scope, c: Llama, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate = rotary(m, position_ids, c.width, **rope_settings(c))
    heads: dict[str, Any] = {"heads": c.heads, "kv_heads": c.groups, "width": c.width, "biases": c.attention_bias}
    mask = key_mask(attention_mask)
    x = m.embed("model.embed_tokens", input_ids, c.vocab, c.dim)
    for b in m.layers("model.layers", c.layers):
        y = b.rms_norm("input_layernorm", x, c.eps)
        x = x + attention(b / "self_attn", y, **heads, mask=mask, causal=True, rotate=rotate)
        y = b.rms_norm("post_attention_layernorm", x, c.eps)
        x = x + gated_feed_forward(b / "mlp", y, c.ffn, c.activation, bias=c.mlp_bias)
    x = m.rms_norm("model.norm", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="model.embed_tokens" if c.tied else None)
