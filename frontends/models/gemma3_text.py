"""Gemma 3, the text model: Gemma 2 with normed q and k, and two rotary bases instead of caps. (Gemma Team 2025)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...ir.errors import ConfigError
from ..dsl import GGUF, Checkpoint, Scope, Value, key, model
from ..harmless import keys
from ..layers import rotary
from ..rope import rope_arguments
from .gemma2 import FULL, SLIDING, Gemma2, decoder, layer_kinds


class Gemma3Text(Gemma2):
    vocab: int = key("vocab_size", gguf="vocab_size")
    dim: int = key("hidden_size", gguf="embedding_length")
    ffn: int = key("intermediate_size", gguf="feed_forward_length")
    layers: int = key("num_hidden_layers", gguf="block_count")
    heads: int = key("num_attention_heads", gguf="attention.head_count")
    kv_heads: int = key("num_key_value_heads", 4, gguf="attention.head_count_kv")
    head_dim: int = key("head_dim", 256, gguf="attention.key_length")
    eps: float = key("rms_norm_eps", 1e-6, gguf="attention.layer_norm_rms_epsilon")
    max_positions: int = key("max_position_embeddings", 131072, gguf="context_length")
    theta: float = key("rope_theta", 1e6, gguf="rope.freq_base")
    local_theta: float = key("rope_local_base_freq", 1e4, gguf="rope.freq_base_swa")
    window: int | None = key("sliding_window", 4096, gguf="attention.sliding_window")
    every: int = key("sliding_window_pattern", 6, gguf="attention.sliding_window_pattern")
    final_softcap: float | None = key("final_logit_softcapping", None, gguf="final_logit_softcapping")
    softcap: float | None = key("attn_logit_softcapping", None)  # The reference reads it and never uses it.

    noted = {
        **Gemma2.noted,
        "_sliding_window_pattern": "transformers keeps it and works it out anew",
        **keys("it is about the model that reads images, too", "mm_tokens_per_image text_config vision_config"),
    }

    @property
    def kinds(self) -> list[str]:
        return layer_kinds(self.layer_types, self.layers, self.every)

    def rope(self, kind: str) -> dict[str, Any]:
        """Arguments of `rotary`. rope_parameters are by kind; rope_scaling is for full layers only."""
        given: Mapping[str, Any] = self.rope_parameters or {}
        if given and not {*given} <= {SLIDING, FULL}:
            raise ConfigError(f"rope_parameters have the keys {', '.join(given)}, expected {SLIDING} and {FULL}")
        settings: dict[str, Any] = {**(given.get(kind) or {}), **((self.rope_scaling or {}) if kind == FULL else {})}
        return rope_arguments(settings, self.theta if kind == FULL else self.local_theta, self.max_positions)


GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
"""GGUF module name => checkpoint module name."""


def unsaid(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What GGUF leaves to the reader, as llama.cpp reads it.

    Heads share the width of the model, and each has keys of its own, where nothing is said. Scores are scaled by the
    width of a head, but not in the 27B model; without a window all layers look at everything, and the rotary base is
    10,000 where none is given.
    """
    large = settings.get("num_hidden_layers") == 62
    heads = settings.get("num_attention_heads") or 1
    even = settings["hidden_size"] / heads
    width = settings.get("head_dim", int(even))
    found: dict[str, Any] = {
        "head_dim": width,
        "num_key_value_heads": settings.get("num_key_value_heads", heads),
        "query_pre_attn_scalar": even if large else width,
        "rope_theta": settings.get("rope_theta", 1e4),
    }
    if not settings.get("sliding_window"):
        found |= {"layer_types": [FULL] * settings.get("num_hidden_layers", 0), "sliding_window": None}
    return found


@model(
    checkpoint=Checkpoint("Gemma3ForCausalLM", prefix="model", tied={"lm_head.weight": "model.embed_tokens.weight"}),
    gguf=GGUF(GGUF_NAMES, added={"*norm.weight": 1.0}, unsaid=unsaid),
)
def gemma3_text(m: Scope, c: Gemma3Text, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotations = {kind: rotary(m, position_ids, c.width, **c.rope(kind)) for kind in (SLIDING, FULL)}
    return decoder(m, c, input_ids, attention_mask, rotations.__getitem__, normed=True, softcap=None)
