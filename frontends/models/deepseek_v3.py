"""DeepSeek V3: latent attention, and experts chosen by group beside one that all tokens take. (DeepSeek-AI 2024)"""

from __future__ import annotations

import math
from typing import Any

from ...ir import Init, Value, ops
from ...ir.errors import ConfigError
from ..dsl import Checkpoint, Config, Scope, key, key_mask, model
from ..experts import by_expert, routed, router
from ..harmless import keys
from ..layers import Rotate, gated_feed_forward, like, rotary, widened
from ..rope import rope_kind, rope_settings

_LATENT_EPS = 1e-6
"""Of the norms over latents, whatever `rms_norm_eps` is."""
_NOTHING = 1e-20


class DeepseekV3(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size")
    ffn: int = key("intermediate_size")
    expert_ffn: int = key("moe_intermediate_size")
    layers: int = key("num_hidden_layers")
    heads: int = key("num_attention_heads")
    experts: int = key("n_routed_experts")
    shared: int = key("n_shared_experts", 1)
    chosen: int = key("num_experts_per_tok", 8)
    groups: int = key("n_group", 8)
    chosen_groups: int = key("topk_group", 4)
    dense: int = key("first_k_dense_replace", 3)
    normed: bool = key("norm_topk_prob", True)
    factor: float = key("routed_scaling_factor", 2.5)
    q_rank: int | None = key("q_lora_rank", 1536)
    rank: int = key("kv_lora_rank", 512)
    turned: int = key("qk_rope_head_dim", 64)
    plain: int = key("qk_nope_head_dim", 128)
    values: int = key("v_head_dim", 128)
    interleaved: bool = key("rope_interleave", True)
    eps: float = key("rms_norm_eps", 1e-6)
    max_positions: int = key("max_position_embeddings", 4096)
    theta: float = key("rope_theta", 10000.0)
    rope_scaling: dict[str, Any] | None = key("rope_scaling", None)
    rope_parameters: dict[str, Any] | None = key("rope_parameters", None)
    tied: bool = key("tie_word_embeddings", False)
    attention_bias: bool = key("attention_bias", False)
    activation: str = key("hidden_act", "silu")

    noted = {
        **keys("the layers for it are not part of the model that answers", "num_mtp_layers num_nextn_predict_layers"),
        **keys("it follows from the widths of heads", "head_dim qk_head_dim"),
        "num_key_value_heads": "all heads read one latent",
    }
    turning = ("mscale_all_dim",)

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ConfigError(f"n_group is {self.groups}, expected a positive number")
        in_group, rest = divmod(self.experts, self.groups)
        if self.chosen_groups < self.groups and (rest or in_group < 2 or self.chosen > self.chosen_groups * in_group):
            what = f"{self.experts} n_routed_experts in n_group {self.groups} do not give num_experts_per_tok"
            raise ConfigError(f"{what} {self.chosen} of topk_group {self.chosen_groups} groups of at least 2")

    @property
    def scale(self) -> float:
        """Of attention scores: YaRN's temperature is in it, twice, as in both of q and k; under any type of scaling."""
        given = self.rope_scaling or self.rope_parameters or {}
        weight, factor = float(given.get("mscale_all_dim") or 0.0), float(given.get("factor") or 1.0)
        raised = 0.1 * weight * math.log(factor) + 1.0 if rope_kind(given) != "default" and factor > 1 else 1.0
        return float((self.plain + self.turned) ** -0.5 * raised**2)


def latent_attention(m: Scope, c: DeepseekV3, x: Value, mask: Value, rotate: Rotate) -> Value:
    """Attention whose keys and values are one latent per token, with one rotary key beside it.

    The projections from the latent to the keys and the values of each head are moved to the queries and the output:
    q (w_k l) = (q w_k) l, so that every head reads the same key, [latent, rotary key], and the same value, the latent.
    """
    batch, length, _ = x.shape
    if c.q_rank is None:
        q = m.linear("q_proj", x, c.heads * (c.plain + c.turned))
    else:
        q = m.rms_norm("q_a_layernorm", m.linear("q_a_proj", x, c.q_rank, bias=c.attention_bias), _LATENT_EPS)
        q = m.linear("q_b_proj", q, c.heads * (c.plain + c.turned))
    q = q.split_heads(c.heads)
    both = m.linear("kv_a_proj_with_mqa", x, c.rank + c.turned, bias=c.attention_bias)
    latent = m.rms_norm("kv_a_layernorm", ops.slice_(both, axis=-1, start=0, length=c.rank), _LATENT_EPS)
    latent = latent.reshape(batch, length, 1, c.rank)
    k_turned = ops.slice_(both, axis=-1, start=c.rank, length=c.turned).reshape(batch, length, 1, c.turned)
    w = (m / "kv_b_proj").param("weight", c.heads * (c.plain + c.values), c.rank)
    w = w.reshape(c.heads, c.plain + c.values, c.rank)
    w_k = ops.slice_(w, axis=1, start=0, length=c.plain)
    w_v = ops.slice_(w, axis=1, start=c.plain, length=c.values)
    absorbed = per_head(ops.slice_(q, axis=-1, start=0, length=c.plain), w_k)
    q_turned = rotate(ops.slice_(q, axis=-1, start=c.plain, length=c.turned))
    q, k = ops.concat(absorbed, q_turned, axis=-1), ops.concat(latent, rotate(k_turned), axis=-1)
    y = ops.attention(q, k, latent, mask=mask, causal=True, scale=c.scale)
    y = per_head(y, w_v.transpose(0, 2, 1)).merge_heads()
    return m.linear("o_proj", y, c.dim, bias=c.attention_bias)


def per_head(x: Value, w: Value) -> Value:
    """x [B,S,H,D] by w [H,D,E]: [B,S,H,E]."""
    return (x.transpose(0, 2, 1, 3) @ w).transpose(0, 2, 1, 3)


def chosen(m: Scope, c: DeepseekV3, x: Value) -> tuple[Value, Value]:
    """(weights, indices) [B,S,k] of the best experts in the best groups; a group is as good as its best two."""
    scores = ops.sigmoid(router(m, "gate", x, c.experts))
    bias = (m / "gate").param("e_score_correction_bias", c.experts, init=Init("zeros"))
    rating = scores + widened(bias)
    if c.chosen_groups < c.groups:
        batch, length, _ = x.shape
        by_group = rating.reshape(batch, length, c.groups, c.experts // c.groups)
        best, _ = ops.topk(by_group, k=2)
        _, groups = ops.topk(ops.sum(best, keepdims=False), k=c.chosen_groups)
        number = ops.iota(start=0, length=c.groups).reshape(c.groups, 1)
        kept = ops.any(ops.equal(number, groups.reshape(batch, length, 1, c.chosen_groups)))
        nothing = ops.constant(value=rating.dtype.lowest, dtype=rating.dtype)
        rating = ops.where(kept, by_group, nothing).reshape(*rating.shape)
    _, indices = ops.topk(rating, k=c.chosen)
    weights = ops.take_along_axis(scores, indices)
    if c.normed:
        weights = weights / (ops.sum(weights) + _NOTHING)
    return like(weights * c.factor, x.dtype), indices


@model(
    checkpoint=Checkpoint(
        "DeepseekV3ForCausalLM",
        unused={"model.layers.61.*": "the layer that guesses further tokens is not part of the model that answers"},
        prefix="model",
        tied={"lm_head.weight": "model.embed_tokens.weight"},
        layout=by_expert,
    ),
)
def deepseek_v3(m: Scope, c: DeepseekV3, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate = rotary(m, position_ids, c.turned, **rope_settings(c), interleaved=c.interleaved)
    mask = key_mask(attention_mask)

    def experts(m: Scope, x: Value) -> Value:
        options: dict[str, Any] = {"count": c.experts, "width": c.expert_ffn, "activation": c.activation}
        y = routed(m / "experts", x, *chosen(m, c, x), **options)
        return y + gated_feed_forward(m / "shared_experts", x, c.expert_ffn * c.shared, c.activation)

    x = m.embed("model.embed_tokens", input_ids, c.vocab, c.dim)
    for i, b in enumerate(m.layers("model.layers", c.layers)):
        x = x + latent_attention(b / "self_attn", c, b.rms_norm("input_layernorm", x, c.eps), mask, rotate)
        y = b.rms_norm("post_attention_layernorm", x, c.eps)
        x = x + (gated_feed_forward(b / "mlp", y, c.ffn, c.activation) if i < c.dense else experts(b / "mlp", y))
    x = m.rms_norm("model.norm", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="model.embed_tokens" if c.tied else None)
