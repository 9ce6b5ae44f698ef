"""Gemma 2: scaled embedding, norms around each block, soft caps, every other layer with a window. (Gemma Team 2024)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ir.errors import ConfigError
from ...ir.ops import tanh
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..layers import Rotate, attention, gated_feed_forward, rotary, unit_rms_norm
from ..rope import rope_settings

SLIDING, FULL = "sliding_attention", "full_attention"


class Gemma2(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    ffn: int = key("intermediate_size")
    layers: int = key("num_hidden_layers")
    heads: int = key("num_attention_heads")
    kv_heads: int = key("num_key_value_heads", 4)
    head_dim: int = key("head_dim", 256)
    eps: float = key("rms_norm_eps", 1e-6)
    max_positions: int = key("max_position_embeddings", 8192)
    theta: float = key("rope_theta", 10000.0)
    rope_scaling: dict[str, Any] | None = key("rope_scaling", None)
    rope_parameters: dict[str, Any] | None = key("rope_parameters", None)
    window: int | None = key("sliding_window", 4096)
    layer_types: list[str] | None = key("layer_types", None)
    scalar: float = key("query_pre_attn_scalar", 256)
    softcap: float | None = key("attn_logit_softcapping", 50.0)
    final_softcap: float | None = key("final_logit_softcapping", 30.0)
    attention_bias: bool = key("attention_bias", False)
    tied: bool = key("tie_word_embeddings", True)
    activation: str = key("hidden_activation", "gelu_pytorch_tanh")

    @property
    def width(self) -> int:
        return self.head_dim

    @property
    def kinds(self) -> list[str]:
        """What each layer looks at: a window, or everything."""
        return layer_kinds(self.layer_types, self.layers, every=2)


def layer_kinds(given: Sequence[str] | None, layers: int, every: int) -> list[str]:
    """The kinds of all layers, as given, or with every `every`-th one full. Raises ConfigError."""
    kinds = [FULL if (i + 1) % every == 0 else SLIDING for i in range(layers)] if given is None else list(given)
    if len(kinds) != layers or not {*kinds} <= {SLIDING, FULL}:
        raise ConfigError(f"layer_types are {kinds}, expected {SLIDING!r} or {FULL!r} for each of {layers} layers")
    return kinds


def decoder(
    m: Scope,
    c: Gemma2,
    ids: Value,
    mask: Value,
    rotate: Callable[[str], Rotate],
    *,
    normed: bool,
    softcap: float | None,
) -> Value:
    """Logits [B,S,V]. rotate: by the kind of the layer. normed: q and k are, too."""

    def attend(m: Scope, x: Value, kind: str) -> Value:
        return attention(
            m,
            x,
            heads=c.heads,
            kv_heads=c.kv_heads,
            width=c.width,
            mask=key_mask(mask),
            causal=True,
            window=c.window if kind == SLIDING else None,
            scale=c.scalar**-0.5,
            softcap=softcap,
            rotate=rotate(kind),
            norm=(lambda name, y: unit_rms_norm(m, name, y, c.eps)) if normed else None,
            biases=c.attention_bias,
        )

    x = m.embed("model.embed_tokens", ids, c.vocab, c.dim) * c.dim**0.5
    for b, kind in zip(m.layers("model.layers", c.layers), c.kinds, strict=True):
        y = attend(b / "self_attn", unit_rms_norm(b, "input_layernorm", x, c.eps), kind)
        x = x + unit_rms_norm(b, "post_attention_layernorm", y, c.eps)
        y = gated_feed_forward(b / "mlp", unit_rms_norm(b, "pre_feedforward_layernorm", x, c.eps), c.ffn, c.activation)
        x = x + unit_rms_norm(b, "post_feedforward_layernorm", y, c.eps)
    x = unit_rms_norm(m, "model.norm", x, c.eps)
    y = m.linear("lm_head", x, c.vocab, tie="model.embed_tokens" if c.tied else None)
    return y if c.final_softcap is None else tanh(y * (1.0 / c.final_softcap)) * c.final_softcap


@model(checkpoint=Checkpoint("Gemma2ForCausalLM", prefix="model", tied={"lm_head.weight": "model.embed_tokens.weight"}))
def gemma2(m: Scope, c: Gemma2, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate = rotary(m, position_ids, c.width, **rope_settings(c))
    return decoder(m, c, input_ids, attention_mask, lambda kind: rotate, normed=False, softcap=c.softcap)
