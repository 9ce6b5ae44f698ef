"""LFM2: gated short convolutions, and attention in some layers. (Liquid AI 2025)"""

from __future__ import annotations

from typing import Any

from ...ir import DType, Value, ops
from ...ir.errors import ConfigError
from ..dsl import Checkpoint, Config, Scope, key, key_mask, model
from ..layers import attention, gated_feed_forward, rotary
from ..rope import rope_settings

_ATTENTION, _CONVOLUTION = "full_attention", "conv"


class Lfm2(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    layers: int = key("num_hidden_layers")
    heads: int = key("num_attention_heads")
    intermediate: int | None = key("intermediate_size", None)
    block_ff_dim: int | None = key("block_ff_dim", None)
    multiple: int = key("block_multiple_of", 256)
    multiplier: float | None = key("block_ffn_dim_multiplier", 1.0)
    adjusted: bool = key("block_auto_adjust_ff_dim", True)
    kv_heads: int = key("num_key_value_heads", 8)
    attending: list[int] | None = key("full_attn_idxs", None)
    layer_types: list[str] | None = key("layer_types", None)
    taps: int = key("conv_L_cache", 3)
    conv_bias: bool = key("conv_bias", False)
    eps: float = key("norm_eps", 1e-5)
    theta: float = key("rope_theta", 1e6)
    max_positions: int = key("max_position_embeddings", 128000)
    rope_scaling: dict[str, Any] | None = key("rope_scaling", None)
    rope_parameters: dict[str, Any] | None = key("rope_parameters", None)
    tied: bool = key("tie_word_embeddings", True)
    tie_embedding: bool | None = key("tie_embedding", None)

    def __post_init__(self) -> None:
        kinds = self.layer_types
        if kinds is not None and (len(kinds) != self.layers or not set(kinds) <= {_ATTENTION, _CONVOLUTION}):
            what = f"layer_types is {kinds}, expected {_ATTENTION} or {_CONVOLUTION} for each of {self.layers} layers"
            raise ConfigError(what)
        if self.tie_embedding is not None:  # The older key; where it is, it is the one that counts.
            object.__setattr__(self, "tied", self.tie_embedding)
            object.__setattr__(self, "tie_embedding", None)

    @property
    def ffn(self) -> int:
        """Two thirds of what the config says, times a factor, up to a multiple."""
        width = self.block_ff_dim or self.intermediate or 12288
        if not self.adjusted:
            return width
        width = int(2 * width / 3)
        if self.multiplier is None:
            return width
        return -(int(self.multiplier * width) // -self.multiple) * self.multiple

    def attends(self, layer: int) -> bool:
        if self.layer_types is not None:
            return self.layer_types[layer] == _ATTENTION
        return self.attending is None or layer in self.attending


def short_convolution(m: Scope, c: Lfm2, x: Value, counts: Value) -> Value:
    """out(gate * conv(scale * x)), the three of one projection; tokens that do not count are passed over."""
    projected = m.linear("in_proj", x, 3 * c.dim, bias=c.conv_bias)
    scale, gate, x = (ops.slice_(projected, axis=-1, start=i * c.dim, length=c.dim) for i in range(3))
    w = (m / "conv").param("weight", c.dim, 1, c.taps).reshape(c.dim, c.taps)
    b = (m / "conv").param("bias", c.dim) if c.conv_bias else None
    y, _ = ops.causal_conv(scale * x, w, b, mask=counts)
    return m.linear("out_proj", gate * y, c.dim, bias=c.conv_bias)


@model(checkpoint=Checkpoint("Lfm2ForCausalLM", prefix="model", tied={"lm_head.weight": "model.embed_tokens.weight"}))
def lfm2(m: Scope, c: Lfm2, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate = rotary(m, position_ids, c.dim // c.heads, **rope_settings(c))
    counts, mask = attention_mask.cast(DType.bool_), key_mask(attention_mask)
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")

    def attend(m: Scope, x: Value) -> Value:
        def norm(name: str, y: Value) -> Value:
            return m.rms_norm(name.replace("norm", "layernorm"), y, c.eps)

        options: dict[str, Any] = {"heads": c.heads, "kv_heads": c.kv_heads, "names": projections}
        return attention(m, x, **options, mask=mask, causal=True, rotate=rotate, norm=norm)

    x = m.embed("model.embed_tokens", input_ids, c.vocab, c.dim)
    for i, b in enumerate(m.layers("model.layers", c.layers)):
        y = b.rms_norm("operator_norm", x, c.eps)
        mixed = attend(b / "self_attn", y) if c.attends(i) else short_convolution(b / "conv", c, y, counts)
        x = x + mixed
        y = b.rms_norm("ffn_norm", x, c.eps)
        x = x + gated_feed_forward(b / "feed_forward", y, c.ffn, "silu", names=("w1", "w3", "w2"))
    x = m.rms_norm("model.embedding_norm", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="model.embed_tokens" if c.tied else None)
