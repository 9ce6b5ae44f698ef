"""GPT-NeoX: attention and feed-forward side by side, rotary positions on a part of each head. (Black et al. 2022)"""

from __future__ import annotations

from typing import Any

from ..buffers import CAUSAL
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..harmless import keys
from ..layers import Packed, attention, drop, feed_forward, rotary
from ..rope import rope_settings


class GPTNeoX(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    ffn: int = key("intermediate_size")
    layers: int = key("num_hidden_layers")
    heads: int = key("num_attention_heads")
    eps: float = key("layer_norm_eps", 1e-5)
    max_positions: int = key("max_position_embeddings", 2048)
    theta: float = key("rotary_emb_base", 10000.0)
    partial: float = key("rotary_pct", 0.25)
    rope_scaling: dict[str, Any] | None = key("rope_scaling", None)
    rope_parameters: dict[str, Any] | None = key("rope_parameters", None)
    parallel: bool = key("use_parallel_residual", True)
    bias: bool = key("attention_bias", True)
    dropout: float = key("hidden_dropout", 0.0)
    tied: bool = key("tie_word_embeddings", False)
    activation: str = key("hidden_act", "gelu")

    noted = keys("rotary_pct, rotary_emb_base or rope_parameters say it", "partial_rotary_factor rope_theta")


@model(
    checkpoint=Checkpoint(
        "GPTNeoXForCausalLM",
        prefix="gpt_neox",
        old={"embed_out.weight": "lm_head.weight"},
        tied={"lm_head.weight": "gpt_neox.embed_in.weight"},
        unused=CAUSAL,
    )
)
def gpt_neox(m: Scope, c: GPTNeoX, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate = rotary(m, position_ids, c.dim // c.heads, **rope_settings(c, partial=c.partial))
    packed = Packed("query_key_value", by_head=True)
    settings: dict[str, Any] = {"heads": c.heads, "packed": packed, "names": ("", "", "", "dense")}
    mask = key_mask(attention_mask)
    x = drop(m.embed("gpt_neox.embed_in", input_ids, c.vocab, c.dim), c.dropout)
    for b in m.layers("gpt_neox.layers", c.layers):
        y = b.layer_norm("input_layernorm", x, c.eps)
        y = attention(b / "attention", y, **settings, mask=mask, causal=True, rotate=rotate, biases=c.bias)
        attended = x + drop(y, c.dropout)
        y = b.layer_norm("post_attention_layernorm", x if c.parallel else attended, c.eps)
        names = ("dense_h_to_4h", "dense_4h_to_h")
        x = attended + drop(feed_forward(b / "mlp", y, c.ffn, c.activation, names=names, bias=True), c.dropout)
    x = m.layer_norm("gpt_neox.final_layer_norm", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="gpt_neox.embed_in" if c.tied else None)
